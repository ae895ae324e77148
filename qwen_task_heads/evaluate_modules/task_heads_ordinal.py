"""Compute mean absolute error in steps, quadratic kappa and class metrics for ordered labels."""

from __future__ import annotations

from typing import Any

import evaluate

from qwen_task_heads import evaluate_modules as shared

INPUTS = """
    predictions: ids of labels in their order, or names with `labels`; None with `prediction_scores`.
    references: the true labels, as ids or names.
    prediction_scores: log-probabilities or probabilities, one row of L numbers per text.
    labels: names in the order of the ids or columns.
"""


class TaskHeadsOrdinal(shared.TakesLabels, evaluate.Metric):
    """Metrics of an ordinal model, from labels or from scores."""

    def _info(self) -> evaluate.MetricInfo:
        return shared.describe_labels(INPUTS)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | None]:
        return shared.text_metrics("ordinal", predictions, references, **options)
