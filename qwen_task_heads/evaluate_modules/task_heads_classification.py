"""Compute accuracy, precision, recall and F1 (macro, micro, weighted), log-loss and ECE for single labels."""

from __future__ import annotations

from typing import Any

import evaluate

from qwen_task_heads import evaluate_modules as shared

INPUTS = """
    predictions: ids or names of labels; None with `prediction_scores`.
    references: the true labels, as ids or names.
    prediction_scores: logits or probabilities, one row of L numbers per text.
    labels: names in the order of the ids or columns.
"""


class TaskHeadsClassification(shared.TakesLabels, evaluate.Metric):
    """Metrics of a single-label classifier, from labels or from scores."""

    def _info(self) -> evaluate.MetricInfo:
        return shared.describe_labels(INPUTS)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | None]:
        return shared.text_metrics("single_label_classification", predictions, references, **options)
