"""Data sets and rows of `classification.py`, and the files that it prepares."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

STOCK, OURS = "stock", "ours"


@dataclass(frozen=True)
class DatasetSpec:
    """A data set and settings for two cores; both sides of a comparison use the same settings."""

    language: str
    metric: str
    max_seq_length: int
    epochs: int
    max_samples: int = 2000
    learning_rate: float = 1e-3
    batch: int = 32

    def options(self) -> list[str]:
        """Return the settings as arguments of the recipe's command line, without the length."""
        return [
            *("--max_samples", str(self.max_samples), "--num_train_epochs", str(self.epochs)),
            *("--learning_rate", str(self.learning_rate), "--per_device_train_batch_size", str(self.batch)),
            *("--per_device_eval_batch_size", "64", "--lr_scheduler_type", "linear", "--warmup_steps", "0.1"),
            *("--weight_decay", "0.01", "--use_cpu", "true", "--disable_tqdm", "true"),
            # No checkpoint is selected: evaluation on dev sets of 10,000 rows would take longer than
            # training.
            *("--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"),
        ]


DATASETS = {
    "thucnews-titles": DatasetSpec("zh", "accuracy", 64, 3, max_samples=3000),
    "longnews-7": DatasetSpec("zh", "accuracy", 256, 3, max_samples=300, batch=8),
    "banking77": DatasetSpec("en", "accuracy", 64, 4),
    "goemotions": DatasetSpec(
        "en", "micro_f1", 64, 4, max_samples=6000, batch=16
    ),  # with fewer updates no label is predicted
    "stsb": DatasetSpec("en", "spearman", 128, 3),
    "n24news-abstract": DatasetSpec("en", "accuracy", 96, 4),
    "fewclue-tnews": DatasetSpec("zh", "accuracy", 128, 8, batch=16),
}
VERSUS = tuple(name for name in DATASETS if name != "fewclue-tnews")


@dataclass(frozen=True)
class Row:
    """One training method on one data set, in one of the tables."""

    table: str
    data: str
    name: str
    options: tuple[str, ...] = ()
    source: str = ""  # file of the training rows, if not the data set's own


def all_rows() -> list[Row]:
    """Return every row, stock first; the first option of a data set is the reference for the others."""
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
    """Write a long-tailed training set and short dev sets.

    Dev is not used for selection, and evaluation on whole dev sets would take longer than training.

    The class sizes of the long tail decrease exponentially by a factor of 100, as in Cao et al. 2019
    (https://arxiv.org/abs/1906.07413). Dev and test stay balanced.
    """
    for name in DATASETS:
        if (data / name / "dev.jsonl").exists():
            lines = (data / name / "dev.jsonl").read_text(encoding="utf-8").splitlines()[:200]
            (scratch / f"{name}-dev.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source, rng = data / "thucnews-titles" / "train.jsonl", random.Random(0)
    if source.exists():
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        kept = [row for row in rows if rng.random() < 0.5 * 0.01 ** (row["label"] / 9)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
        (scratch / "long_tail.jsonl").write_text("".join(lines), encoding="utf-8")


def split_arguments(name: str, *, data: Path, scratch: Path, train: str = "") -> list[str]:
    """Return the files of train, dev and test as arguments of the recipe's command line."""
    dev, folder = scratch / f"{name}-dev.jsonl", data / name
    words = ["--dataset_name", str(scratch / train if train else folder)]
    words += ["--dev_dataset", str(dev)] if dev.exists() else []
    words += ["--test_dataset", str(folder / "test_public.jsonl")]
    labels = [folder / file for file in ("class.txt", "labels.txt") if (folder / file).exists()]
    return [*words, "--labels", str(labels[0])] if labels else words
