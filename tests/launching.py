"""Run recipes in tests: in this process, or in a child of a fork server that has imported torch.

A new process would spend most of its time on imports. Tests that need a separate process fork it from one
server, which has imported all modules of a run. Real launches are marked slow.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

RECIPES = Path(__file__).parents[1] / "recipes"
MACHINE = ["--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true"]
PRELOADED = [
    "launching",
    "qwen_task_heads.training.title_trainer",
    "qwen_task_heads.training.classifier_trainer",
    "qwen_task_heads.reports.title_report",
    "qwen_task_heads.reports.text_report",
    "qwen_task_heads.inference.batch_prediction",
    # Late imports of the report, which take half the time of a short run.
    "sklearn.linear_model",
    "sklearn.feature_extraction.text",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "warm",
]

# Its trainer in trl wraps the model itself.
WARNS = ("grpo_titles",)


def run(recipe: Path, *argv: object) -> int:
    """Run a recipe in this process as on the command line, and return its exit code."""
    words, before = [str(word) for word in argv], sys.argv
    sys.argv = [str(recipe), *words]
    try:
        runpy.run_path(str(recipe), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def child(
    target: Callable[..., Any], words: tuple[object, ...], log: str, environment: dict[str, str]
) -> None:
    """Run a function in the fork server, with its output in a file."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    gc.freeze()  # imports of the server are not garbage, and a collection over them takes 0.3 s
    torch.set_num_threads(1)
    code = target(*words)
    sys.stdout.flush()
    os._exit(code or 0)


def fork(target: Callable[..., Any], *words: object, log: Path, **environment: str) -> Any:
    """Call a function of a module's top level in a child; its output goes to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=child, args=(target, words, str(log), environment), daemon=True)
    process.start()
    return process


def fork_two(target: Callable[..., Any], *words: object, log: Path) -> list[Any]:
    """Start two children as ranks 0 and 1 of a launcher; their rank is appended to `log`."""
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        fork(target, *words, log=Path(f"{log}{rank}"), RANK=str(rank), LOCAL_RANK=str(rank), **launch)
        for rank in (0, 1)
    ]


def join(process: Any, log: Path) -> str:
    """Wait for a child, which must exit with code 0, and return its output."""
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    return log.read_text()


def kill_once_there(path: Path) -> None:
    """End this process by SIGKILL at its first audited event (a file, an import) after `path` exists.

    A watcher in another process would be too late on a busy machine.
    """

    def hook(event: str, arguments: Any) -> None:
        if event != "os.kill" and os.path.exists(path):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run_until(path: Path, recipe: Path, *argv: object) -> int:
    """Run a recipe in this process until `path` exists and SIGKILL ends it."""
    kill_once_there(path)
    return run(recipe, *argv)


def killed(recipe: Path, words: list[object], log: Path, *, path: Path) -> None:
    """Run a recipe in a child that SIGKILL ends once `path` exists."""
    process = fork(run_until, path, recipe, *words, log=log)
    process.join()
    assert process.exitcode == -signal.SIGKILL, log.read_text()[-3000:]


def start(recipe: Path, words: list[object], log: Path) -> Any:
    """Start a recipe in a child; its output goes to `log`."""
    return fork(run, recipe, *words, log=log)


def finished(recipe: Path, words: list[object], log: Path) -> str:
    """Run a recipe in a child, which must exit with code 0 and print no warning; return its output."""
    printed = join(start(recipe, words, log), log)
    warned = re.findall(r".*\b\w+Warning: .*", printed)
    assert recipe.stem in WARNS or not warned, warned
    return printed


def free_port() -> str:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def short(data: Path, base: str, output: Path, **changes: object) -> list[object]:
    """Return the arguments of a run of a few steps; later arguments override earlier ones."""
    options = {
        "model_name_or_path": base, "dataset_name": data, "output_dir": output, "max_steps": 4,
        "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1,
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "seed": 0,
    } | changes  # fmt: skip
    words: list[object] = [*MACHINE]
    for name, value in options.items():
        words += [f"--{name}", *value] if isinstance(value, (list, tuple)) else [f"--{name}", value]
    return words


def refused(recipe: Path, capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """Return the message of a run with bad input: exit code 2, one message, no traceback."""
    capfd.readouterr()
    assert run(recipe, *words) == 2
    message = capfd.readouterr().err
    assert "error: " in message
    assert "Traceback" not in message
    return message


def estimated(train: dict[str, Any], printed: str) -> None:
    """Compare the printed estimate and use of time and memory with those in `metrics.json`."""
    stated, used = train["estimate"], train["used"]
    assert min(stated[name] for name in ("memory", "weights", "tokens", "operations")) > 0
    assert stated["memory"] > stated["weights"]
    assert used["memory"] > 0
    [before], [after] = (
        [line for line in printed.splitlines() if line.startswith(start)]
        for start in ("estimate: ", "used: ")
    )
    assert printed.index(before) < printed.index(after)
    assert "on this machine" in before
    assert before.split(" about ")[1].split(" of memory")[0] in after
