"""Accuracy, macro, micro and weighted precision, recall and F1, log-loss and ECE of one label per text."""

from __future__ import annotations

from typing import Any

import evaluate

from qwen_task_heads import evaluate_modules as shared

INPUTS = """
    predictions: ids or names of labels; or none, and `prediction_scores`.
    references: the true labels, in either form.
    prediction_scores: logits or probabilities, one row of L numbers per text.
    labels: names in the order of the ids, which relates names to ids or to columns.
"""


class TaskHeadsClassification(shared.TakesLabels, evaluate.Metric):
    """Figures of a single-label classifier, from labels or from scores."""

    def _info(self) -> evaluate.MetricInfo:
        return shared.describe_labels(INPUTS)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | None]:
        return shared.text_figures("single_label_classification", predictions, references, **options)
