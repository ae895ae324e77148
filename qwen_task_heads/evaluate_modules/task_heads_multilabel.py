"""Micro and macro F1, mean average precision and subset accuracy of several labels per text."""

from __future__ import annotations

from typing import Any

import evaluate

from qwen_task_heads import evaluate_modules as shared

INPUTS = """
    predictions: logits, one row of L numbers per text.
    references: rows of L zeros and ones.
"""


class TaskHeadsMultilabel(evaluate.Metric):
    """Figures of a multi-label classifier, from logits; `threshold` is P(label) from which it counts."""

    def _info(self) -> evaluate.MetricInfo:
        return shared.describe(INPUTS, rows=True, several=True)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | None]:
        return shared.text_figures("multi_label_classification", predictions, references, **options)
