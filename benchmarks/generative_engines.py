"""Which engine for these labels: head, fine-tuned generator and prompted ones on the same small backbone.

    python recipes/pretrain_backbone.py --config recipes/configs/pretrain_chinese.yaml --data_dir DATA
    OMP_NUM_THREADS=1 python benchmarks/generative_engines.py

`recipes/classify.py`, `recipes/sft_classify.py` and `recipes/compare.py` are run as users run them: all
training rows, the last checkpoint, no choice on dev; test is looked at once. Runs are kept under
`--output_dir` and not repeated. The backbones are tiny and know no instruction: the table compares ways to
train them and says nothing about what a pretrained chat model can do, zero- or few-shot least of all.
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
DEV_ROWS = 200  # dev plays no part, and whole sets would cost more than the training
HEAD = """# Engines on the same small backbone, measured

`python benchmarks/generative_engines.py`; its head says what this shows and what it does not. Intervals of
95% resample the test rows; times are of one thread.
"""


@dataclass(frozen=True)
class Set:
    """A data set with settings that fit one core.

    Args:
        language: of its texts, `zh` or `en`.
        epochs: of head and generator.
        length: longest text of the head, in tokens.
        prompt: longest row of the generator.
        instruction: of the generator that is trained; None for the default, which lists all labels.
        names: labels, in the order of their ids, where the data has no file of them.
    """

    language: str
    epochs: tuple[int, int]
    length: int = 64
    prompt: int = 256
    instruction: str | None = None
    names: tuple[str, ...] = ()


SETS = {
    "fewclue-tnews": Set("zh", (8, 6)),
    # A list of 77 labels in each of 9,220 rows would be most of the training.
    "banking77": Set("en", (4, 4), prompt=96, instruction="Which request of a bank's customer is this?\n"),
    "waimai-10k": Set("zh", (2, 2), length=128, prompt=192, names=("差评", "好评")),
}


def places(name: str, *, data: Path, scratch: Path) -> list[str]:
    """Where train, dev, test and labels stand, as words of a command line."""
    folder = data / name
    dev = scratch / f"{name}-dev.jsonl"
    lines = (folder / "dev.jsonl").read_text(encoding="utf-8").splitlines()[:DEV_ROWS]
    dev.write_text("\n".join(lines) + "\n", encoding="utf-8")
    labels = folder / "class.txt"
    if SETS[name].names:
        labels = scratch / f"{name}-labels.txt"
        labels.write_text("\n".join(SETS[name].names) + "\n", encoding="utf-8")
    words = {"dataset_name": folder / "train.jsonl", "dev_dataset": dev, "labels": labels}
    words["test_dataset"] = folder / "test_public.jsonl"
    return [str(word) for key, value in words.items() for word in (f"--{key}", value)]


def train(name: str, where: list[str], *, backbone: str, runs: Path) -> dict[str, Path]:
    """Train a head and a generator, unless that was done; their folders."""
    one = SETS[name]
    common = [
        *("--model_name_or_path", backbone, *where, "--learning_rate", "1e-3", "--seed", "0"),
        *("--per_device_train_batch_size", "16", "--per_device_eval_batch_size", "64"),
        *("--lr_scheduler_type", "linear", "--warmup_steps", "0.1", "--weight_decay", "0.01"),
        *("--use_cpu", "true", "--disable_tqdm", "true", "--report_to", "none"),
        *("--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"),
    ]
    own = {
        "head": ["recipes/classify.py", "--pooling", "mean", "--max_seq_length", str(one.length)],
        "sft": ["recipes/sft_classify.py", "--max_length", str(one.prompt)],
    }
    own["sft"] += ["--instruction", one.instruction] if one.instruction else []
    folders = {}
    for (kind, words), epochs in zip(own.items(), one.epochs, strict=True):
        folders[kind] = runs / f"{name}-{kind}"
        if not (folders[kind] / "manifest.json").exists():
            last = ["--num_train_epochs", str(epochs), "--output_dir", str(folders[kind])]
            run([*words, *common, *last], folders[kind])
    return folders


def measure(name: str, where: list[str], *, backbone: str, runs: Path, rows: int | None) -> dict[str, Any]:
    """Train, compare, and give what `comparison.json` holds, with the answers that are no label."""
    folders, output = train(name, where, backbone=backbone, runs=runs), runs / f"{name}-engines"
    shutil.rmtree(output, ignore_errors=True)  # a comparison replaces none
    words = [f"{kind}={folder}" for kind, folder in folders.items()]
    words += [f"zero_shot={backbone}", f"few_shot={backbone}"]
    options = ["--shots", str(SHOTS), "--shots_by", "similarity", "--max_length", "2048", "--device", "cpu"]
    options += ["--max_rows", str(rows)] if rows else []
    run(["recipes/compare.py", *where, *options, "--output_dir", str(output), "--engines", *words], output)
    content: dict[str, Any] = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    known, outside, answers = {*content["data"]["labels"]}, 0, 0
    for line in (output / "answers.jsonl").read_text(encoding="utf-8").splitlines():
        said = [answer["label"] for key, answer in json.loads(line)["answers"].items() if "=" in key]
        outside, answers = outside + sum(label not in known for label in said), answers + len(said)
    told = "the embedded backbone" if backbone == EMBEDDED else Path(backbone).name
    text = json.dumps(content, ensure_ascii=False)
    for path, short in ((str(runs) + os.sep, ""), (backbone, told)):
        text = text.replace(path, short) if path != EMBEDDED else text  # no paths of a machine
    kept = {key: value for key, value in json.loads(text).items() if key not in ("settings", "versions")}
    return {"set": name, "backbone": told, "answers": answers, "outside": outside, **kept}


def run(words: list[str], output: Path) -> None:
    """Run a recipe; its output goes to a file."""
    log = output.parent / f"{output.name}.log"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=stream, stderr=stream, env=variables)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\nfailed; see {log}")


def markdown(results: list[dict[str, Any]]) -> str:
    """A table and the advice of each set."""
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
    parser.add_argument("--only", nargs="+", choices=sorted(SETS), default=list(SETS))
    parser.add_argument("--max_rows", type=int, help="measure on so many rows, for a try")
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
        if SETS[name].language == "zh" and args.chinese_backbone.is_dir():
            backbone = str(args.chinese_backbone)
        elif SETS[name].language == "zh":
            print(f"{name}: no Chinese backbone (see the head of this file), so the embedded one is used")
        where = places(name, data=args.data_dir, scratch=args.output_dir)
        results[name] = measure(name, where, backbone=backbone, runs=args.output_dir, rows=args.max_rows)
        kept = [results[key] for key in SETS if key in results]
        args.results.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        args.results.with_suffix(".md").write_text(markdown(kept), encoding="utf-8")
        print("\n".join([name, *results[name]["advice"]]), flush=True)


if __name__ == "__main__":
    main()
