"""Models of every kind for the tests of the demo, on the embedded backbone."""

from __future__ import annotations

from typing import Any

import torch

from qwen_task_heads import Scorer, Template, bind_template, build, load_tokenizer

CURVE = [
    {"coverage": 1.0, "confidence": 0.347123, "error": 0.4, "upper": 0.5},
    {"coverage": 0.5, "confidence": 0.41, "error": 0.2, "upper": 0.3},
    {"coverage": 0.1, "confidence": 0.6, "error": 0.0, "upper": 0.1},
]
LABELS = ["card", "<b>cash</b>", "transfer"]
KINDS: dict[str, dict[str, Any]] = {
    "titles": {},
    "single": {"labels": LABELS, "calibration": {"risk_coverage": CURVE}},
    "multi": {"labels": LABELS, "problem_type": "multi_label_classification"},
    "stored": {
        "labels": LABELS,
        "problem_type": "multi_label_classification",
        "label_thresholds": [0.01, 0.99, 0.5],
    },
    "ordinal": {"labels": LABELS, "problem_type": "ordinal", "calibration": {"risk_coverage": CURVE}},
    "score": {"labels": ["stars"], "problem_type": "regression"},
    "scores": {"labels": ["clear", "short"], "problem_type": "regression"},
    "pairs": {"labels": LABELS},
}


def scorer_of(kind: str, *, seed: int = 0) -> Scorer:
    """Return the scorer of a model with a random head, whose answers depend on every word."""
    torch.manual_seed(seed)
    options = dict(KINDS[kind])
    task = "title_scorer" if kind == "titles" else "pooled_classifier"
    model, tokenizer = build("embedded", task=task, pooling="mean", **options), load_tokenizer("embedded")
    if kind != "titles":
        bind_template(tokenizer, model.config, template=Template(before="One: "), pairs=kind == "pairs")
    for weights in model.score.parameters():
        if weights.ndim == 2:
            weights.data *= 8
    return Scorer(model, tokenizer=tokenizer, progress=False)
