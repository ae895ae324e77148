"""Accuracy, macro, micro and weighted precision, recall and F1, log-loss and ECE of one label per text."""

from __future__ import annotations

from typing import Any

import evaluate

from qwen_task_heads import evaluate_modules as shared

INPUTS = """
    predictions: logits, one row of L numbers per text.
    references: ids of the labels.
"""


class TaskHeadsClassification(evaluate.Metric):
    """Figures of a single-label classifier, from logits."""

    def _info(self) -> evaluate.MetricInfo:
        return shared.describe(INPUTS, rows=True)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | None]:
        return shared.text_figures("single_label_classification", predictions, references, **options)
