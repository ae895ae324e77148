"""Compute Pearson, Spearman, mean squared and absolute error and R² for one value per text."""

from __future__ import annotations

from typing import Any

import evaluate

from qwen_task_heads import evaluate_modules as shared

INPUTS = """
    predictions: one number per text.
    references: one number per text.
"""


class TaskHeadsRegression(evaluate.Metric):
    """Metrics of a regression model."""

    def _info(self) -> evaluate.MetricInfo:
        return shared.describe(INPUTS)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | None]:
        return shared.text_metrics("regression", predictions, references, **options)
