"""Data sets, models, methods and rows of `real_weights.py`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

SMOL, QWEN = "smollm2-135m", "qwen2.5-coder-0.5b"
FROZEN, WARM, LORA, STOCK = "frozen", "lora from the frozen head", "lora", "stock lora"
ASKED = "label scoring"
EPOCHS = {WARM: 1, LORA: 2, STOCK: 2}  # a trained head needs fewer
METHODS = (FROZEN, WARM, LORA, STOCK, ASKED)
LAYERS = {
    SMOL: ("8", "15", "22", "30", "8+22", "8+15+22"),  # of 30
    QWEN: ("6", "12", "18", "24", "6+18", "6+12+18"),  # of 24
}
ASKED_DATASETS, ASKED_ROWS = ("banking77", "fewclue-tnews"), 400


@dataclass(frozen=True)
class DatasetSpec:
    """A data set with limits for two cores.

    Args:
        language: of its texts.
        metric: main metric of the data set.
        length: limit of tokens per text.
        rows: limit of training rows; None for all.
        lora_rows: limit of training rows for LoRA.
        dev: limit of dev rows.
        titles: whether the rows are pairs of titles; otherwise they are labelled texts.
        options: further arguments of a command line.
    """

    language: str
    metric: str
    length: int
    rows: int | None = None
    lora_rows: int = 1000
    dev: int | None = None
    titles: bool = False
    options: tuple[str, ...] = ()


DATASETS = {
    "upworthy": DatasetSpec("en", "pair_accuracy", 64, titles=True, lora_rows=2679),
    "banking77": DatasetSpec("en", "accuracy", 64, lora_rows=9220),
    "fewclue-tnews": DatasetSpec("zh", "accuracy", 64, lora_rows=1185),
    "n24news-abstract": DatasetSpec("en", "accuracy", 96, lora_rows=2000),
    "waimai-10k": DatasetSpec("zh", "accuracy", 96, rows=4000, lora_rows=1500),
    "sst5": DatasetSpec("en", "quadratic_kappa", 64, rows=4000, options=("--problem_type", "ordinal")),
    "stsb": DatasetSpec("en", "spearman", 96, rows=4000),
    "goemotions": DatasetSpec("en", "micro_f1", 64, rows=10_000, dev=2000),
    "thucnews-titles": DatasetSpec("zh", "accuracy", 48, rows=10_000, dev=2000),
    "adparaphrase-v2-ja": DatasetSpec("ja", "pair_accuracy", 64, titles=True, rows=3000),
    "fewclue-iflytek": DatasetSpec("zh", "accuracy", 128),
    "longnews-7": DatasetSpec("zh", "accuracy", 256),
}


@dataclass(frozen=True)
class Row:
    """A data set, a model and a method."""

    data: str
    model: str
    method: str

    @property
    def name(self) -> str:
        """Name of the folder and the entry."""
        return f"{self.data}--{self.model}--{self.method.replace(' ', '_')}"


def all_rows(methods: list[str]) -> list[Row]:
    """Return every row: SmolLM2 on the English data sets, the 0.5B model on all."""
    return [
        Row(data, model, method)
        for method in methods
        for data, spec in DATASETS.items()
        if method != ASKED or data in ASKED_DATASETS
        for model in ((SMOL, QWEN) if spec.language == "en" else (QWEN,))
    ]


def split_arguments(name: str, spec: DatasetSpec, folder: Path, options: argparse.Namespace) -> list[str]:
    """Return the files of train, dev and test as arguments; with a limit of rows, shortened copies."""
    prefix = "pairs_" if spec.titles else ""
    files = {split: folder / f"{prefix}{split}.jsonl" for split in ("train", "dev", "test_public")}
    for split, limit in (("train", spec.rows), ("dev", spec.dev)):
        if limit is not None and files[split].exists():
            files[split] = shortened(files[split], limit, options.output_dir / "data" / name)
    words = ["--dataset_name", str(files["train"]), "--test_dataset", str(files["test_public"])]
    words += ["--dev_dataset", str(files["dev"])] if files["dev"].exists() else []
    labels = [folder / file for file in ("class.txt", "labels.txt") if (folder / file).exists()]
    return [*words, "--labels", str(labels[0])] if labels else words


def shortened(path: Path, rows: int, folder: Path) -> Path:
    """Return a copy with evenly spaced rows of a file, or the file itself if it has no more rows."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) <= rows:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{path.stem}-{rows}.jsonl"
    kept = [lines[row * len(lines) // rows] for row in range(rows)]
    target.write_text("".join(kept), encoding="utf-8")
    return target
