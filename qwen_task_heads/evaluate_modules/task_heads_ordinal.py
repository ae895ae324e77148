"""Mean absolute error in steps, quadratic kappa and the figures of classes, of ordered labels."""

from __future__ import annotations

from typing import Any

import evaluate

from qwen_task_heads import evaluate_modules as shared

INPUTS = """
    predictions: ids of labels in their order, or names with `labels`; or none, and `prediction_scores`.
    references: the true labels, in either form.
    prediction_scores: log-probabilities or probabilities, one row of L numbers per text.
    labels: names in the order of the ids, which relates names to ids or to columns.
"""


class TaskHeadsOrdinal(shared.TakesLabels, evaluate.Metric):
    """Figures of an ordinal model, from labels or from scores."""

    def _info(self) -> evaluate.MetricInfo:
        return shared.describe_labels(INPUTS)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | None]:
        return shared.text_figures("ordinal", predictions, references, **options)
