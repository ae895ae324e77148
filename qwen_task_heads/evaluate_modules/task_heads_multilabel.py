"""Micro and macro F1, mean average precision and subset accuracy of several labels per text."""

from __future__ import annotations

from typing import Any

import evaluate

from qwen_task_heads import evaluate_modules as shared

INPUTS = """
    predictions: rows of L zeros and ones, or lists of names; or none, and `prediction_scores`.
    references: the true labels, in either form.
    prediction_scores: logits or probabilities, one row of L numbers per text.
    labels: names in the order of the ids, which relates names to ids or to columns.
    threshold: P(label) from which a label counts; with prediction_scores.
"""


class TaskHeadsMultilabel(shared.TakesLabels, evaluate.Metric):
    """Figures of a multi-label classifier, from labels or from scores."""

    several = True

    def _info(self) -> evaluate.MetricInfo:
        return shared.describe_labels(INPUTS)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | None]:
        return shared.text_figures("multi_label_classification", predictions, references, **options)
