"""Compute micro and macro F1, mean average precision and subset accuracy for several labels per text."""

from __future__ import annotations

from typing import Any

import evaluate

from qwen_task_heads import evaluate_modules as shared

INPUTS = """
    predictions: rows of L zeros and ones, or lists of names; None with `prediction_scores`.
    references: the true labels, as ids or names.
    prediction_scores: logits or probabilities, one row of L numbers per text.
    labels: names in the order of the ids or columns.
    threshold: minimum P(label) of a predicted label, for `prediction_scores`.
"""


class TaskHeadsMultilabel(shared.TakesLabels, evaluate.Metric):
    """Metrics of a multi-label classifier, from labels or from scores."""

    several = True

    def _info(self) -> evaluate.MetricInfo:
        return shared.describe_labels(INPUTS)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | None]:
        return shared.text_metrics("multi_label_classification", predictions, references, **options)
