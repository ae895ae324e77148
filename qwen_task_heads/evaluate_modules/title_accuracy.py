"""Compute the share of pairs whose preferred title scores higher, log-loss, Brier score and ECE."""

from __future__ import annotations

from typing import Any

import evaluate

from qwen_task_heads import evaluate_modules as shared
from qwen_task_heads.metrics.ranking import ranking_metrics

INPUTS = """
    predictions: scores of the preferred titles.
    references: scores of the other titles, in the same order.
"""


class TitleAccuracy(evaluate.Metric):
    """Metrics of a title scorer, from the scores of preferred and other titles."""

    def _info(self) -> evaluate.MetricInfo:
        return shared.describe(INPUTS)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | None]:
        intervals = options.pop("intervals", False)
        return shared.flat(ranking_metrics(predictions, references, **options), intervals=intervals)
