"""A process that cannot import the package and loads models that other processes saved.

Its imports take seconds, so there is one per session. It reads jobs from its input and forks for each, so
that no job sees the imports of another job.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SERVER = r"""
import gc, importlib.abc, json, os, sys, traceback

sys.path.append(sys.argv[1])  # the folder of `equality`

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "qwen_task_heads":
            raise ImportError("this process does not have the package")

sys.meta_path.insert(0, Block())
try:
    import qwen_task_heads
except ImportError:
    pass
else:
    raise SystemExit("the package is there: this would show nothing")
import peft, torch, transformers.models.qwen2.modeling_qwen2
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("qwen2")  # compiles a thousand expressions, once for all jobs
torch.set_num_threads(1)
gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(job["logs"][stream - 1], os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
        os.chdir(job["folder"])
        sys.argv = ["-c", *job["words"]]
        code = 1
        try:
            exec(job["code"], {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class CleanProcess:
    """The server and the two logs of its last job; it starts with the first job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = [folder / "stdout", folder / "stderr"]
        self.server: subprocess.Popen[str] | None = None

    def run(self, code: str, *words: object, folder: Path) -> str:
        """Run code in `folder` and return its standard output; fail the test if the code fails."""
        if self.server is None:
            self.server = subprocess.Popen(
                [sys.executable, "-I", "-c", SERVER, str(Path(__file__).parent)],
                env={**os.environ, "HF_MODULES_CACHE": str(self.folder / "modules")},
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        job = {"code": code, "words": [str(word) for word in words], "folder": str(folder)}
        self.server.stdin.write(json.dumps({**job, "logs": [str(log) for log in self.logs]}) + "\n")
        self.server.stdin.flush()
        code_of_exit = self.server.stdout.readline()
        printed, errors = (log.read_text() for log in self.logs)
        assert code_of_exit == "0\n", errors[-3000:]
        return printed

    def close(self) -> None:
        """Stop the server."""
        if self.server is not None:
            self.server.communicate()
