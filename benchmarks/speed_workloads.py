"""Workloads: two shapes of models with equal stock models, and rows of real lengths.

Lengths are those of real texts under Qwen's tokenizer, in the order of the file shuffled once. Ids are
random, because the time does not depend on them. Weights are random. "small" has 6 layers of 256 channels;
"0.5b" has 8 of the 24 layers of Qwen2.5-0.5B at their real shape. A vocabulary of 8,192 limits the memory of
the embeddings, whose time is not proportional to the tokens on either side.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from speed_measure import Bench
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, Qwen2Config

from qwen_task_heads import PooledClassifier, PooledClassifierConfig, TitleScorer, TitleScorerConfig
from qwen_task_heads.hubcode.encoding_task_heads import pad_rows

PAD, END, VOCABULARY = 0, 1, 8192
TOKENIZER = "qwen2.5-tokenizer"
# 0.02 * sqrt(1024 / 256): random layers of few channels then contribute as much as those of real width.
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.04,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 8,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "initializer_range": 0.02,
    },
}
# For each data set: rows of a batch, longest row in tokens, number of labels.
DATASETS: dict[str, dict[str, Any]] = {
    "waimai-10k": {"batch": 32, "longest": 512, "labels": 2},
    "goemotions": {"batch": 32, "longest": 512, "labels": 28},
    "longnews-7": {"batch": 8, "longest": 2048, "labels": 7},
}


def backbone(shape: str, *, vocabulary: int = VOCABULARY) -> Qwen2Config:
    """Return the config of a shape."""
    sizes = SHAPES[shape]
    return Qwen2Config(
        vocab_size=vocabulary, pad_token_id=PAD, max_position_embeddings=32768, use_cache=False, **sizes
    )


def classifier(bench: Bench, shape: str, *, labels: int, **changes: Any) -> PooledClassifier:
    """Return our classifier with random weights; keywords are fields of its config."""
    problem = "multi_label_classification" if labels == DATASETS["goemotions"]["labels"] else None
    config = backbone(shape, vocabulary=changes.pop("vocabulary", VOCABULARY))
    changes["problem_type"] = problem or "single_label_classification"
    return classifier_of(config, labels=labels, **changes).to(bench.device)


def classifier_of(config: PreTrainedConfig, *, labels: int, **fields: Any) -> PooledClassifier:
    """Return our classifier with random weights for a backbone config."""
    torch.manual_seed(0)
    options = {"problem_type": "single_label_classification", **fields}
    return PooledClassifier(PooledClassifierConfig(text_config=config, num_labels=labels, **options)).eval()


def scorer(bench: Bench, shape: str, **changes: Any) -> TitleScorer:
    """Return our title scorer with random weights."""
    torch.manual_seed(0)
    config = TitleScorerConfig(
        text_config=backbone(shape, vocabulary=changes.pop("vocabulary", VOCABULARY)), **changes
    )
    return TitleScorer(config).eval().to(bench.device)


def stock_of(model: Any) -> Any:
    """Return the class of transformers with the same weights, on the same device."""
    names = {"num_labels": model.config.num_labels, "problem_type": model.config.problem_type}
    backbone = model.config.text_config
    config = type(backbone)(**{**backbone.to_dict(), **names})
    twin = AutoModelForSequenceClassification.from_config(config)
    twin.load_state_dict(model.state_dict())
    return twin.eval().to(model.device)


class NoData(Exception):
    """The data of a row is missing; the message names it."""


@cache
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def tokenizer(bench: Bench) -> Any:
    """Return Qwen's real tokenizer."""
    if not (bench.data_dir / TOKENIZER).is_dir():
        raise NoData(f"{TOKENIZER} is not in {bench.data_dir}")
    return _tokenizer(bench.data_dir / TOKENIZER)


def texts(bench: Bench, name: str, *, rows: int) -> list[str]:
    """Return the first texts of a data set, shuffled once."""
    file = "pairs_train.jsonl" if name == "upworthy" else "train.jsonl"
    path = bench.data_dir / name / file
    if not path.is_file():
        raise NoData(f"{name} is not in {bench.data_dir}")
    with path.open(encoding="utf-8") as lines:
        content = [json.loads(line) for line in lines]
    random.Random(0).shuffle(content)
    field = "chosen" if name == "upworthy" else "text"
    cleaned = [row[field].removeprefix("<title>").removesuffix("</title>").strip() for row in content]
    return [text for text in cleaned if text][:rows]


def lengths(bench: Bench, name: str, *, rows: int, longest: int = 8192) -> list[int]:
    """Return lengths in tokens of real texts, with an end token, at most `longest`."""
    ids = tokenizer(bench)(texts(bench, name, rows=rows))["input_ids"]
    return [min(len(row) + 1, longest) for row in ids]


def titles(rows: int, *, low: int = 8, high: int = 40, seed: int = 0) -> list[int]:
    """Return lengths of titles, uniform from 8 to 40 tokens."""
    draw = random.Random(seed)
    return [draw.randint(low, high) for _ in range(rows)]


def row_of(length: int, *, draw: random.Random) -> list[int]:
    """Return random ids with the end token last, without the pad id, by which stock finds the last token."""
    return [draw.randrange(2, VOCABULARY) for _ in range(length - 1)] + [END]


def rows_of(sizes: list[int], *, prompt: int = 0, seed: int = 0) -> list[list[int]]:
    """Return random rows of these lengths after a shared prompt of `prompt` more tokens."""
    draw = random.Random(seed)
    before = [draw.randrange(2, VOCABULARY) for _ in range(prompt)]
    return [before + row_of(size, draw=draw) for size in sizes]


def padded(bench: Bench, rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Return a right-padded batch on the device."""
    return {name: value.to(bench.device) for name, value in pad_rows(rows, pad_id=PAD).items()}


def batches(bench: Bench, rows: list[list[int]], *, size: int) -> list[dict[str, torch.Tensor]]:
    """Return right-padded batches in the order of the rows."""
    return [padded(bench, rows[start : start + size]) for start in range(0, len(rows), size)]


def computed(inputs: list[dict[str, torch.Tensor]]) -> int:
    """Count the tokens of padded batches, including padding."""
    return sum(batch["input_ids"].numel() for batch in inputs)


def real(inputs: list[dict[str, torch.Tensor]]) -> int:
    """Count the real tokens of padded batches."""
    return sum(int(batch["attention_mask"].sum()) for batch in inputs)


def with_labels(inputs: list[dict[str, torch.Tensor]], model: Any) -> list[dict[str, torch.Tensor]]:
    """Return the batches with random labels of the model's problem type."""
    generator = torch.Generator().manual_seed(0)
    count = model.config.num_labels
    labelled = []
    for batch in inputs:
        size = len(batch["input_ids"])
        if model.config.problem_type == "multi_label_classification":
            labels = torch.randint(2, (size, count), generator=generator).float()
        else:
            labels = torch.randint(count, (size,), generator=generator)
        labelled.append({**batch, "labels": labels.to(model.device)})
    return labelled
