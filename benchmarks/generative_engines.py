"""Comparison of engines on the same small backbone: a head, a fine-tuned generator and prompted models.

    python tools/pretrain_backbone.py --config tools/pretrain_chinese.yaml --data_dir DATA
    OMP_NUM_THREADS=1 python benchmarks/generative_engines.py

The script runs `recipes/classify.py`, `recipes/sft_classify.py` and `recipes/compare.py` with their command
lines: all training rows, the last checkpoint, no selection on dev. Test is evaluated once. Runs are kept
under `--output_dir` and not repeated. The backbones are tiny and not trained on instructions. The table
compares training methods and does not show the accuracy of a pretrained chat model, in particular zero- or
few-shot.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EMBEDDED, SHOTS = "embedded", 8
DEV_ROWS = (
    200  # dev is not used for selection, and evaluation on whole dev sets would take longer than training
)
HEAD = """# Engines on the same small backbone

`python benchmarks/generative_engines.py`; the docstring of the script states the scope of these results.
Intervals of 95% resample the test rows. Times are of one thread.
"""


@dataclass(frozen=True)
class DatasetSpec:
    """A data set with settings for one core.

    Args:
        language: of its texts, `zh` or `en`.
        epochs: of head and generator.
        length: longest text of the head, in tokens.
        prompt: longest row of the generator.
        instruction: of the trained generator; None for the default, which lists all labels.
        names: labels in the order of their ids, if the data has no label file.
    """

    language: str
    epochs: tuple[int, int]
    length: int = 64
    prompt: int = 256
    instruction: str | None = None
    names: tuple[str, ...] = ()


DATASETS = {
    "fewclue-tnews": DatasetSpec("zh", (8, 6)),
    # With the default instruction, most training tokens would be the list of 77 labels in each of 9,220 rows.
    "banking77": DatasetSpec(
        "en", (4, 4), prompt=96, instruction="Which request of a bank's customer is this?\n"
    ),
    "waimai-10k": DatasetSpec("zh", (2, 2), length=128, prompt=192, names=("差评", "好评")),
}


def split_arguments(name: str, *, data: Path, scratch: Path) -> list[str]:
    """Return the files of train, dev, test and labels as arguments of a command line."""
    folder = data / name
    dev = scratch / f"{name}-dev.jsonl"
    lines = (folder / "dev.jsonl").read_text(encoding="utf-8").splitlines()[:DEV_ROWS]
    dev.write_text("\n".join(lines) + "\n", encoding="utf-8")
    labels = folder / "class.txt"
    if DATASETS[name].names:
        labels = scratch / f"{name}-labels.txt"
        labels.write_text("\n".join(DATASETS[name].names) + "\n", encoding="utf-8")
    words = {"dataset_name": folder / "train.jsonl", "dev_dataset": dev, "labels": labels}
    words["test_dataset"] = folder / "test_public.jsonl"
    return [str(word) for key, value in words.items() for word in (f"--{key}", value)]


def train(name: str, where: list[str], *, backbone: str, runs: Path) -> dict[str, Path]:
    """Train a head and a generator, unless they exist; return their folders."""
    spec = DATASETS[name]
    common = [
        *("--model_name_or_path", backbone, *where, "--learning_rate", "1e-3", "--seed", "0"),
        *("--per_device_train_batch_size", "16", "--per_device_eval_batch_size", "64"),
        *("--lr_scheduler_type", "linear", "--warmup_steps", "0.1", "--weight_decay", "0.01"),
        *("--use_cpu", "true", "--disable_tqdm", "true", "--report_to", "none"),
        *("--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"),
    ]
    own = {
        "head": ["recipes/classify.py", "--pooling", "mean", "--max_seq_length", str(spec.length)],
        "sft": ["recipes/sft_classify.py", "--max_length", str(spec.prompt)],
    }
    own["sft"] += ["--instruction", spec.instruction] if spec.instruction else []
    folders = {}
    for (kind, words), epochs in zip(own.items(), spec.epochs, strict=True):
        folders[kind] = runs / f"{name}-{kind}"
        if not (folders[kind] / "manifest.json").exists():
            last = ["--num_train_epochs", str(epochs), "--output_dir", str(folders[kind])]
            run([*words, *common, *last], folders[kind])
    return folders


def measure(name: str, where: list[str], *, backbone: str, runs: Path, rows: int | None) -> dict[str, Any]:
    """Train and compare; return `comparison.json` and the number of answers outside the labels."""
    folders, output = train(name, where, backbone=backbone, runs=runs), runs / f"{name}-engines"
    shutil.rmtree(output, ignore_errors=True)  # compare.py does not overwrite a comparison
    words = [f"{kind}={folder}" for kind, folder in folders.items()]
    words += [f"zero_shot={backbone}", f"few_shot={backbone}"]
    options = ["--shots", str(SHOTS), "--shots_by", "similarity", "--max_length", "2048", "--device", "cpu"]
    options += ["--max_rows", str(rows)] if rows else []
    run(["recipes/compare.py", *where, *options, "--output_dir", str(output), "--engines", *words], output)
    content: dict[str, Any] = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    known, outside, answers = {*content["data"]["labels"]}, 0, 0
    for line in (output / "answers.jsonl").read_text(encoding="utf-8").splitlines():
        labels = [answer["label"] for key, answer in json.loads(line)["answers"].items() if "=" in key]
        outside, answers = outside + sum(label not in known for label in labels), answers + len(labels)
    backbone_name = "the embedded backbone" if backbone == EMBEDDED else Path(backbone).name
    text = json.dumps(content, ensure_ascii=False)
    for path, short in ((str(runs) + os.sep, ""), (backbone, backbone_name)):
        text = text.replace(path, short) if path != EMBEDDED else text  # remove local paths
    kept = {key: value for key, value in json.loads(text).items() if key not in ("settings", "versions")}
    return {"set": name, "backbone": backbone_name, "answers": answers, "outside": outside, **kept}


def run(words: list[str], output: Path) -> None:
    """Run a recipe, with its output in a log file."""
    log = output.parent / f"{output.name}.log"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=stream, stderr=stream, env=variables)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\nfailed; see {log}")


def markdown(results: list[dict[str, Any]]) -> str:
    """Return a table and the advice for each data set."""
    from qwen_task_heads.reports.comparison_pages import engine_table

    answers, outside = (sum(one[key] for one in results) for key in ("answers", "outside"))
    lines = [HEAD, f"Answers outside the labels: {outside:,} of {answers:,} predictions.", ""]
    for one in results:
        data = one["data"]
        lines += [
            f"## {one['set']} ({data['rows']:,} rows, {len(data['labels'])} labels, {one['backbone']})",
            "",
        ]
        lines += [*engine_table(one), "", *one["advice"], "", *(f"- {note}" for note in one["notes"]), ""]
    return "\n".join(lines)


def main() -> None:
    """Train, compare, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "engines")
    parser.add_argument("--chinese_backbone", type=Path, default=ROOT / "runs" / "backbone_chinese")
    parser.add_argument("--only", nargs="+", choices=sorted(DATASETS), default=list(DATASETS))
    parser.add_argument("--max_rows", type=int, help="limit of rows to measure on, for a trial run")
    parser.add_argument("--results", type=Path, default=RESULTS / "generative_engines.json")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    old = json.loads(args.results.read_text(encoding="utf-8")) if args.results.is_file() else []
    results = {one["set"]: one for one in old}
    for name in args.only:
        if not (args.data_dir / name).is_dir():
            print(f"skipped: {name} is not in {args.data_dir}")
            continue
        backbone = EMBEDDED
        if DATASETS[name].language == "zh" and args.chinese_backbone.is_dir():
            backbone = str(args.chinese_backbone)
        elif DATASETS[name].language == "zh":
            print(f"{name}: no Chinese backbone (see the docstring of this file); using the embedded one")
        where = split_arguments(name, data=args.data_dir, scratch=args.output_dir)
        results[name] = measure(name, where, backbone=backbone, runs=args.output_dir, rows=args.max_rows)
        kept = [results[key] for key in DATASETS if key in results]
        args.results.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        args.results.with_suffix(".md").write_text(markdown(kept), encoding="utf-8")
        print("\n".join([name, *results[name]["advice"]]), flush=True)


if __name__ == "__main__":
    main()
