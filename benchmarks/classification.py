"""Benchmark of the classification recipe: comparison with the stock class, and the gain of each option.

    python tools/pretrain_backbone.py --config tools/pretrain_chinese.yaml --data_dir DATA
    python benchmarks/classification.py --seeds 0 1 2 --jobs 2

Rows of "ours" run `recipes/classify.py` with its command line. Rows of "stock" run transformers'
`AutoModelForSequenceClassification` and `Trainer` on the same rows, with the same backbone, steps, learning
rate, batch and seed. The stock tokenizer adds no special tokens, as Qwen's tokenizer does not. Nothing is
selected on dev, and test is evaluated once per run. Intervals resample the rows of the test set; differences
are paired by row and averaged over seeds. Every finished run is kept under `--output_dir` and not repeated.
The backbones are tiny: the results compare training methods and do not show the accuracy of a pretrained
Qwen.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from classification_data import DATASETS, STOCK, Row, all_rows, prepare, split_arguments

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RESAMPLES = 1000


def train_ours(row: Row, seed: int, *, data: Path, scratch: Path, backbone: str, output: Path) -> None:
    """Run the recipe."""
    spec = DATASETS[row.data]
    splits = split_arguments(row.data, data=data, scratch=scratch, train=row.source)
    command = [
        *(sys.executable, "recipes/classify.py", "--model_name_or_path", backbone, *splits, *spec.options()),
        *("--max_seq_length", str(spec.max_seq_length), *row.options),
        *("--seed", str(seed), "--output_dir", str(output)),
    ]
    _run(command, output)


def train_stock(row: Row, seed: int, *, data: Path, scratch: Path, backbone: str, output: Path) -> None:
    """Run this file in a process for the stock side."""
    command = [sys.executable, __file__, "--stock", row.data, "--seeds", str(seed), "--data_dir", str(data)]
    _run([*command, "--backbone", backbone, "--output_dir", str(output)], output)


def _run(command: list[str], output: Path) -> None:
    log = output.parent / f"{output.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=stream, env=variables)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed; see {log}")


def stock(name: str, *, seed: int, data: Path, backbone: str, output: Path) -> None:
    """Train transformers' own class on the same rows and write `predictions.npz`."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        set_seed,
    )

    from qwen_task_heads.data.text_datasets import read_text_sets
    from qwen_task_heads.metrics.classification import dev_metrics
    from qwen_task_heads.pretrained import locate
    from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments

    spec = DATASETS[name]
    arguments = [*spec.options(), *split_arguments(name, data=data, scratch=output.parent)]
    arguments += ["--seed", str(seed), "--output_dir", str(output)]
    texts, args, _ = parse_classifier_arguments(arguments)
    sets = read_text_sets(texts.dataset_name, **texts.data_options())
    args.choose_metric(sets.problem_type)
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(locate(backbone))
    model = AutoModelForSequenceClassification.from_pretrained(
        locate(backbone),
        num_labels=len(sets.labels),
        problem_type=sets.problem_type,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )

    def encode(examples: Any) -> Dataset:
        first, second = [e.text for e in examples], [e.text_b for e in examples]
        rows = tokenizer(
            first, second if any(second) else None, truncation=True, max_length=spec.max_seq_length
        )
        labels: list[Any] = [e.target for e in examples]
        if sets.problem_type == "multi_label_classification":
            labels = [[float(k in target) for k in range(len(sets.labels))] for target in labels]
        elif sets.problem_type == "regression":
            labels = [float(target[0]) for target in labels]
        return Dataset.from_dict({**rows, "labels": labels})

    trainer = Trainer(
        model,
        args,
        train_dataset=encode(sets.train),
        eval_dataset=encode(sets.dev),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=dev_metrics(sets.problem_type),
    )
    trainer.train()
    logits = np.asarray(trainer.predict(encode(sets.test)).predictions, np.float64)
    np.savez(output / "predictions.npz", logits=logits.reshape(len(sets.test), -1))


def scores_of(row: Row, output: Path, truth: Any) -> Any:
    """Return the test predictions of a run as logits or probabilities (N, L), in the order of the file."""
    if row.name == STOCK:
        return np.load(output / "predictions.npz")["logits"]
    names = truth["labels"]
    rows = [
        json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    if truth["problem_type"] == "regression":
        return np.array([[row["score"]] for row in rows])
    return np.array([[row["probabilities"][name] for name in names] for row in rows])


def metric_of_counts(metric: str, side: str, scores: Any, targets: Any) -> Any:
    """Return a function of row counts (N,): the metric of one run on a resample of the test set."""
    from qwen_task_heads.metrics.ties import merge_ties, top_credit

    if metric == "accuracy":
        right = top_credit(scores, targets)
        return lambda counts: float((right * counts).sum() / counts.sum())
    if metric == "micro_f1":
        guess = scores > (0.0 if side == STOCK else 0.5)  # stock has logits, ours has probabilities
        truth = np.zeros_like(guess)
        for index, target in enumerate(targets):
            truth[index, list(target)] = True
        both, either = (guess & truth).sum(1), guess.sum(1) + truth.sum(1)
        return lambda counts: float(2 * (both * counts).sum() / (either * counts).sum())
    values = merge_ties(scores[:, 0]), np.array([target[0] for target in targets])

    def spearman(counts: Any) -> float:
        from scipy.stats import spearmanr

        drawn = np.repeat(np.arange(len(counts)), counts)
        return float(spearmanr(values[0][drawn], values[1][drawn]).statistic)

    return spearman


def bootstrap(metrics: list[Any], rows: int, against: list[Any] | None = None) -> tuple[float, float, float]:
    """Return the mean over seeds and its 95% interval over test rows; with `against`, of the difference."""

    def value(counts: Any) -> float:
        base = np.mean([f(counts) for f in against]) if against else 0.0
        return float(np.mean([f(counts) for f in metrics]) - base)

    rng = np.random.default_rng(0)
    draws = [value(np.bincount(rng.integers(rows, size=rows), minlength=rows)) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return value(np.ones(rows, int)), float(low), float(high)


def summarise(rows: list[Row], seeds: list[int], *, data: Path, runs: Path) -> list[dict[str, Any]]:
    """Summarise rows with a finished run: mean over its seeds, interval, baseline, difference.

    The difference from the reference row uses the seeds that both rows have.
    """
    from qwen_task_heads.data.text_datasets import read_text_sets

    results, bases = [], {}
    for row in rows:
        done = [seed for seed in seeds if finished(row, run_folder(row, seed, runs))]
        if not done:
            continue
        sets = read_text_sets(str(data / row.data))
        truth = {"labels": sets.labels.names, "problem_type": sets.problem_type}
        targets, metric = [text.target for text in sets.test], DATASETS[row.data].metric
        metrics = {}
        for seed in done:
            scores = scores_of(row, run_folder(row, seed, runs), truth)
            metrics[seed] = metric_of_counts(metric, row.name, scores, targets)
        ones = np.ones(len(targets), int)
        mean, low, high = bootstrap([*metrics.values()], len(targets))
        result: dict[str, Any] = {"table": row.table, "data": row.data, "row": row.name, "metric": metric}
        result |= {"mean": mean, "low": low, "high": high, "each": [f(ones) for f in metrics.values()]}
        base = (row.table, row.data, row.source)
        if base in bases:
            both = [seed for seed in done if seed in bases[base]]
            pairs = [metrics[seed] for seed in both], [bases[base][seed] for seed in both]
            difference = bootstrap(pairs[0], len(targets), pairs[1])
            result |= dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True))
        else:
            bases[base] = metrics
        if row.name != STOCK:
            last = json.loads((run_folder(row, done[-1], runs) / "metrics.json").read_text(encoding="utf-8"))
            result["seconds"] = last["train"]["seconds"]
            result["baseline"] = last["test"]["TF-IDF, linear"][metric]["value"]
        results.append(result)
    return results


def run_folder(row: Row, seed: int, runs: Path) -> Path:
    """Return the folder of a run."""
    name = f"{row.table}-{row.data}-{row.name}-{seed}"
    return runs / "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in name)


def finished(row: Row, output: Path) -> bool:
    """Return whether a run has finished."""
    return (output / ("predictions.npz" if row.name == STOCK else "manifest.json")).exists()


def markdown(results: list[dict[str, Any]]) -> str:
    """Return the results as two Markdown tables."""
    lines = [
        "# Results of the classification recipe",
        "",
        "`python benchmarks/classification.py`; two CPU cores, tiny backbones (1.7 to 2.3 M",
        "parameters, see the docstring of the script), mean over seeds on `test_public`, 95% bootstrap over",
        "its rows; differences are paired. With at most 6,000 training rows per data set, baselines and",
        "metrics are below those of the full data sets. The column `each seed` has one value per seed.",
    ]
    heads = {"versus": "Comparison with the stock class and Trainer", "levers": "Gain of each option"}
    for table, head in heads.items():
        lines += ["", f"## {head}", ""]
        lines += [
            "| data | row | metric | mean | 95% | each seed | difference from the first row "
            "| TF-IDF baseline |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for r in (r for r in results if r["table"] == table):
            each = ", ".join(f"{value:.3f}" for value in r["each"])
            change = ""
            if "difference" in r:
                change = f"{r['difference']:+.3f} ({r['difference_low']:+.3f} to {r['difference_high']:+.3f})"
            baseline = f"{r['baseline']:.3f}" if "baseline" in r else ""
            cells = [r["data"], r["row"], r["metric"], f"**{r['mean']:.3f}**"]
            cells += [f"{r['low']:.3f} to {r['high']:.3f}", each, change, baseline]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "classification")
    parser.add_argument("--chinese_backbone", default=str(ROOT / "runs" / "backbone_chinese"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs, each on one core")
    parser.add_argument("--only", default="", help="rows whose table, data set or name contains this text")
    parser.add_argument("--stock", help=argparse.SUPPRESS)
    parser.add_argument("--backbone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stock:
        where = {"data": args.data_dir, "backbone": args.backbone, "output": args.output_dir}
        return stock(args.stock, seed=args.seeds[0], **where)
    rows = []
    for row in all_rows():
        if not (args.data_dir / row.data).is_dir():
            print(f"skipped: {row.data} is not in {args.data_dir}")
        elif DATASETS[row.data].language == "zh" and not Path(args.chinese_backbone).is_dir():
            print(f"skipped: {row.data} needs a Chinese backbone; see the docstring of this file")
        elif args.only in f"{row.table} {row.data} {row.name}":
            rows.append(row)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    prepare(args.data_dir, args.output_dir)

    def run(job: tuple[int, Row]) -> None:
        seed, row = job
        output = run_folder(row, seed, args.output_dir)
        if not finished(row, output):
            train = train_stock if row.name == STOCK else train_ours
            chinese = DATASETS[row.data].language == "zh"
            backbone = args.chinese_backbone if chinese else "embedded"
            train(row, seed, data=args.data_dir, scratch=args.output_dir, backbone=backbone, output=output)
            print(f"done: {output.name}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, [(seed, row) for seed in args.seeds for row in rows]))
    results = summarise(all_rows(), args.seeds, data=args.data_dir, runs=args.output_dir)
    (RESULTS / "classification.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "classification.md").write_text(markdown(results), encoding="utf-8")
    print(markdown(results))
    return None


if __name__ == "__main__":
    main()
