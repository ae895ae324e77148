"""Mean absolute error in steps, quadratic kappa and the figures of classes, of ordered labels."""

from __future__ import annotations

from typing import Any

import evaluate

from qwen_task_heads import evaluate_modules as shared

INPUTS = """
    predictions: log-probabilities, one row of L numbers per text.
    references: ids of the labels, in their order.
"""


class TaskHeadsOrdinal(evaluate.Metric):
    """Figures of an ordinal model, from log-probabilities."""

    def _info(self) -> evaluate.MetricInfo:
        return shared.describe(INPUTS, rows=True)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | None]:
        return shared.text_figures("ordinal", predictions, references, **options)
