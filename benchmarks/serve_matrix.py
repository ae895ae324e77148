"""Matrix of exports and servers: 50 texts each, compared with `Scorer` in fp32.

    python benchmarks/serve_matrix.py --environments ENVS --output_dir runs/matrix
    python benchmarks/serve_matrix.py --environments ENVS --output_dir runs/matrix --only vllm

A classifier and a title scorer of the embedded backbone (or `--model_name_or_path`) are exported in every
form; the results of another backbone are in files with its name. Each server runs in a virtual environment
of its own below `--environments`, which is created if it does not exist. A cell is `exact` if the ids agree
and no probability differs by more than 1e-6, or 4 times the rounding of a deep model in fp32; `refused` if
the stack does not start or refuses every text; otherwise the largest difference is shown.

The texts have Chinese, control tokens as text, NUL, white space, and more tokens than the limit.
"""

from __future__ import annotations

import argparse
import json
import random
import urllib.error
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from serve_stacks import ENVIRONMENTS, LABELS, ROOT, STACKS

RESULTS = ROOT / "benchmarks" / "results"
EXACT = 1e-6
SEVERAL = 4  # allowed multiples of the rounding of a deep model in fp32
LIMIT = 64  # tokens of a text


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
    path = RESULTS / f"{results_name(args)}.json"
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


def results_name(args: Any) -> str:
    """Return the name of the result files: those of another backbone have its name."""
    base = args.model_name_or_path
    return "serve_matrix" if base == "embedded" else f"serve_matrix_{Path(base).name}"


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
        if model != "classifier" and found.config.text_config.model_type == "qwen2":
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


@cache
def rounding(folder: Path, texts: tuple[str, ...]) -> float:
    """Return the largest difference of `Scorer` in fp32 to the same model in fp64."""
    from qwen_task_heads import Scorer, load, load_tokenizer

    scorers = [
        Scorer(model, tokenizer=load_tokenizer(str(folder)), progress=False)
        for model in (load(str(folder)), load(str(folder)).double())
    ]
    if scorers[0].is_title_scorer:
        rows = [[[score] for score in scorer.score(list(texts))] for scorer in scorers]
    else:
        rows = [
            [list(one.probabilities.values()) for one in scorer.predict(list(texts))] for scorer in scorers
        ]
    return max(differences(*rows))


def differences(found: list[list[float]], expected: list[list[float]]) -> list[float]:
    """Return the largest difference of each row, relative to the largest value if that is above 1."""
    scale = max(1.0, *(abs(value) for row in expected for value in row))
    return [
        max(abs(a - b) for a, b in zip(row, known, strict=True)) / scale
        for row, known in zip(found, expected, strict=True)
    ]


def verdict(found: list[list[float]], expected: list[list[float]], bound: float) -> str:
    """Return `exact` with the largest difference, or the number of rows that differ."""
    rows = differences(found, expected)
    wrong = sum(difference > bound for difference in rows)
    largest = f"{max(rows):.1e}"
    return f"exact, {largest}" if not wrong else f"{wrong} of {len(found)} differ, {largest}"


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
    bound = max(EXACT, SEVERAL * rounding(source, tuple(texts)))
    return verdict(found, offline(source, texts), bound)


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
    (RESULTS / f"{results_name(args)}.json").write_text(
        json.dumps(content, indent=1) + "\n", encoding="utf-8"
    )
    lines = [
        "# Exports and servers",
        "",
        f"`make serve-matrix`, backbone {Path(args.model_name_or_path).name}: 50 texts, compared with",
        "`Scorer` in fp32. `exact`: no probability, or score relative to the largest one, differs by more",
        "than 1e-6, or than 4 times the rounding of the model itself (fp32 against fp64), if that is more.",
        "",
        f"Versions: {', '.join(f'{name} {value}' for name, value in versions.items())}.",
        "",
        "| model | form | stack | result |",
        "|---|---|---|---|",
    ]
    lines += [f"| {cell.model} | {cell.form} | {cell.stack} | {cell.result} |" for cell in cells]
    (RESULTS / f"{results_name(args)}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
