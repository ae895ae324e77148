"""How good the classification recipe is: against the stock class, and what each lever is worth.

    python recipes/pretrain_backbone.py --config recipes/configs/pretrain_chinese.yaml --data_dir DATA
    python benchmarks/classification.py --seeds 0 1 2 --jobs 2

Rows of "ours" are `recipes/classify.py` run as users run it; rows of "stock" are transformers'
`AutoModelForSequenceClassification` and `Trainer` on the same rows, with the same backbone, steps, learning
rate, batch and seed; the stock tokenizer adds nothing, as Qwen's does. Nothing is picked on dev, and test is
looked at once per run. Intervals resample the rows of the test set; differences are paired by row, seeds
averaged. Every run is kept under `--output_dir` as soon as it ends, and not repeated. The backbones are tiny:
the figures compare ways of training, they say nothing about what a pretrained Qwen can do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STOCK, OURS = "stock", "ours"
RESAMPLES = 1000


@dataclass(frozen=True)
class Set:
    """A data set and settings that fit two cores; both sides of a comparison have the same."""

    language: str
    metric: str
    max_seq_length: int
    epochs: int
    max_samples: int = 2000
    learning_rate: float = 1e-3
    batch: int = 32

    def options(self) -> list[str]:
        """The settings as words of the recipe's command line, the length apart."""
        return [
            *("--max_samples", str(self.max_samples), "--num_train_epochs", str(self.epochs)),
            *("--learning_rate", str(self.learning_rate), "--per_device_train_batch_size", str(self.batch)),
            *("--per_device_eval_batch_size", "64", "--lr_scheduler_type", "linear", "--warmup_steps", "0.1"),
            *("--weight_decay", "0.01", "--use_cpu", "true", "--disable_tqdm", "true"),
            # No checkpoint is picked: dev sets of 10,000 rows would cost more than the training.
            *("--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"),
        ]


SETS = {
    "thucnews-titles": Set("zh", "accuracy", 64, 3, max_samples=3000),
    "longnews-7": Set("zh", "accuracy", 256, 3, max_samples=300, batch=8),
    "banking77": Set("en", "accuracy", 64, 4),
    "goemotions": Set("en", "micro_f1", 64, 4, max_samples=6000, batch=16),  # fewer updates teach to say none
    "stsb": Set("en", "spearman", 128, 3),
    "n24news-abstract": Set("en", "accuracy", 96, 4),
    "fewclue-tnews": Set("zh", "accuracy", 128, 8, batch=16),
}
VERSUS = tuple(name for name in SETS if name != "fewclue-tnews")


@dataclass(frozen=True)
class Row:
    """One way to train on one set, in one of the tables."""

    table: str
    data: str
    name: str
    options: tuple[str, ...] = ()
    source: str = ""  # of the training rows, where it is not the set's own


def all_rows() -> list[Row]:
    """Every row, stock first; the first lever of a set is what the others are held against."""
    mean, tail = ("--pooling", "mean"), "thucnews-titles"
    long = (*mean, "--max_seq_length", "512", "--max_samples", "600")  # all of its training rows
    long_tail = {"source": "long_tail.jsonl"}
    return [
        *(Row("versus", name, side) for name in VERSUS for side in (STOCK, OURS)),
        Row("levers", "longnews-7", "cut at 512 (head)", long),
        Row("levers", "longnews-7", "windows of 512", (*long, "--truncation", "windows")),
        Row("levers", tail, "causal", mean),
        Row("levers", tail, "bidirectional", (*mean, "--bidirectional", "true")),
        Row("levers", tail, "long tail, cross-entropy", mean, **long_tail),
        Row("levers", tail, "long tail, class weights", (*mean, "--class_weights", "balanced"), **long_tail),
        Row("levers", tail, "long tail, focal", (*mean, "--loss", "focal"), **long_tail),
        Row("levers", tail, "long tail, logit adjustment", (*mean, "--loss", "logit_adjusted"), **long_tail),
        Row("levers", "fewclue-tnews", "the text alone", mean),
        Row(
            "levers",
            "fewclue-tnews",
            "label descriptions before the text",
            (
                *mean,
                *("--instruction", "{descriptions}\n", "--labels", "benchmarks/configs/tnews_labels.yaml"),
                *("--max_seq_length", "384"),  # the descriptions alone are 230 tokens
            ),
        ),
    ]


def prepare(data: Path, scratch: Path) -> None:
    """Write what the rows need beside the data: a long tail, and short dev sets.

    Dev plays no part here, and whole dev sets would cost more than the training.

    The tail falls by 100 from the largest to the smallest class, exponentially, as in Cao et al. 2019
    (https://arxiv.org/abs/1906.07413); dev and test stay balanced.
    """
    for name in SETS:
        if (data / name / "dev.jsonl").exists():
            lines = (data / name / "dev.jsonl").read_text(encoding="utf-8").splitlines()[:200]
            (scratch / f"{name}-dev.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source, rng = data / "thucnews-titles" / "train.jsonl", random.Random(0)
    if source.exists():
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        kept = [row for row in rows if rng.random() < 0.5 * 0.01 ** (row["label"] / 9)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
        (scratch / "long_tail.jsonl").write_text("".join(lines), encoding="utf-8")


def places(name: str, *, data: Path, scratch: Path, train: str = "") -> list[str]:
    """Where train, dev and test stand, as words of the recipe's command line."""
    dev, folder = scratch / f"{name}-dev.jsonl", data / name
    words = ["--dataset_name", str(scratch / train if train else folder)]
    words += ["--dev_dataset", str(dev)] if dev.exists() else []
    words += ["--test_dataset", str(folder / "test_public.jsonl")]
    labels = [folder / file for file in ("class.txt", "labels.txt") if (folder / file).exists()]
    return [*words, "--labels", str(labels[0])] if labels else words


def train_ours(row: Row, seed: int, *, data: Path, scratch: Path, backbone: str, output: Path) -> None:
    """Run the recipe."""
    one = SETS[row.data]
    sets = places(row.data, data=data, scratch=scratch, train=row.source)
    command = [
        *(sys.executable, "recipes/classify.py", "--model_name_or_path", backbone, *sets, *one.options()),
        *("--max_seq_length", str(one.max_seq_length), *row.options),
        *("--seed", str(seed), "--output_dir", str(output)),
    ]
    _run(command, output)


def train_stock(row: Row, seed: int, *, data: Path, scratch: Path, backbone: str, output: Path) -> None:
    """Run this file as the stock side."""
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

    one = SETS[name]
    words = [*one.options(), *places(name, data=data, scratch=output.parent)]
    words += ["--seed", str(seed), "--output_dir", str(output)]
    texts, args, _ = parse_classifier_arguments(words)
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
            first, second if any(second) else None, truncation=True, max_length=one.max_seq_length
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
    """Predictions on test of one run, as logits or probabilities (N, L), in the order of the file."""
    if row.name == STOCK:
        return np.load(output / "predictions.npz")["logits"]
    names = truth["labels"]
    rows = [
        json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    if truth["problem_type"] == "regression":
        return np.array([[row["score"]] for row in rows])
    return np.array([[row["probabilities"][name] for name in names] for row in rows])


def figure(metric: str, side: str, scores: Any, targets: Any) -> Any:
    """A function of row counts (N,): the metric of one run on a resample of the test set."""
    from qwen_task_heads.metrics.ties import merge_ties, top_credit

    if metric == "accuracy":
        right = top_credit(scores, targets)
        return lambda counts: float((right * counts).sum() / counts.sum())
    if metric == "micro_f1":
        guess = scores > (0.0 if side == STOCK else 0.5)  # logits of stock, probabilities of ours
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


def bootstrap(figures: list[Any], rows: int, against: list[Any] | None = None) -> tuple[float, float, float]:
    """Mean over seeds with its 95% interval over test rows; with `against`, of the paired difference."""

    def value(counts: Any) -> float:
        base = np.mean([f(counts) for f in against]) if against else 0.0
        return float(np.mean([f(counts) for f in figures]) - base)

    rng = np.random.default_rng(0)
    drawn = [value(np.bincount(rng.integers(rows, size=rows), minlength=rows)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return value(np.ones(rows, int)), float(low), float(high)


def summarise(rows: list[Row], seeds: list[int], *, data: Path, runs: Path) -> list[dict[str, Any]]:
    """Rows with a finished run: mean over its seeds, interval, baseline, difference from the base row.

    A difference is taken over the seeds that both rows have.
    """
    from qwen_task_heads.data.text_datasets import read_text_sets

    results, bases = [], {}
    for row in rows:
        done = [seed for seed in seeds if finished(row, place(row, seed, runs))]
        if not done:
            continue
        sets = read_text_sets(str(data / row.data))
        truth = {"labels": sets.labels.names, "problem_type": sets.problem_type}
        targets, metric = [text.target for text in sets.test], SETS[row.data].metric
        figures = {
            seed: figure(metric, row.name, scores_of(row, place(row, seed, runs), truth), targets)
            for seed in done
        }
        ones = np.ones(len(targets), int)
        mean, low, high = bootstrap([*figures.values()], len(targets))
        result: dict[str, Any] = {"table": row.table, "data": row.data, "row": row.name, "metric": metric}
        result |= {"mean": mean, "low": low, "high": high, "each": [f(ones) for f in figures.values()]}
        base = (row.table, row.data, row.source)
        if base in bases:
            both = [seed for seed in done if seed in bases[base]]
            pairs = [figures[seed] for seed in both], [bases[base][seed] for seed in both]
            difference = bootstrap(pairs[0], len(targets), pairs[1])
            result |= dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True))
        else:
            bases[base] = figures
        if row.name != STOCK:
            last = json.loads((place(row, done[-1], runs) / "metrics.json").read_text(encoding="utf-8"))
            result["seconds"] = last["train"]["seconds"]
            result["baseline"] = last["test"]["TF-IDF, linear"][metric]["value"]
        results.append(result)
    return results


def place(row: Row, seed: int, runs: Path) -> Path:
    """Folder of a run."""
    name = f"{row.table}-{row.data}-{row.name}-{seed}"
    return runs / "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in name)


def finished(row: Row, output: Path) -> bool:
    """Whether a run has ended."""
    return (output / ("predictions.npz" if row.name == STOCK else "manifest.json")).exists()


def markdown(results: list[dict[str, Any]]) -> str:
    """The results as two tables."""
    lines = [
        "# The classification recipe, measured",
        "",
        "`python benchmarks/classification.py --seeds 0 1 2`; two CPU cores, tiny backbones (1.7 to 2.3 M",
        "parameters, see the head of the script), mean over seeds on `test_public`, 95% bootstrap over its",
        "rows; differences are paired. At most 6,000 training rows a set: baselines and figures are below those",
        "of the full sets. A row has as many seeds as figures stand in `each seed`.",
    ]
    heads = {"versus": "Against the stock class and Trainer", "levers": "What a lever is worth"}
    for table, head in heads.items():
        lines += ["", f"## {head}", ""]
        lines += [
            "| data | row | metric | mean | 95% | each seed | difference from the first row | TF-IDF baseline |"
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
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--only", default="", help="rows whose table, set or name holds this text")
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
        elif SETS[row.data].language == "zh" and not Path(args.chinese_backbone).is_dir():
            print(f"skipped: {row.data} needs a Chinese backbone; see the head of this file")
        elif args.only in f"{row.table} {row.data} {row.name}":
            rows.append(row)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    prepare(args.data_dir, args.output_dir)

    def run(job: tuple[int, Row]) -> None:
        seed, row = job
        output = place(row, seed, args.output_dir)
        if not finished(row, output):
            train = train_stock if row.name == STOCK else train_ours
            chinese = SETS[row.data].language == "zh"
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
