"""Compute the share of pairs whose preferred title scores higher, log-loss, Brier score and ECE."""

from typing import Any

from qwen_task_heads.evaluate_modules import _base
from qwen_task_heads.metrics import ranking


class TitleAccuracy(_base.NumberMetric):
    """Metrics of a title scorer, from the scores of preferred and other titles."""

    inputs = """
    predictions: scores of the preferred titles.
    references: scores of the other titles, in the same order.
"""

    def measure(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        """Return the metrics of the pairs, by name."""
        return ranking.ranking_metrics(predictions, references, **options)
