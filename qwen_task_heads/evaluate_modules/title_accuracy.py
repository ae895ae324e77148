"""Share of pairs in which the preferred title scores higher, with log-loss, Brier score and ECE."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from qwen_task_heads.evaluate_modules import flat
from qwen_task_heads.training.metrics import ranking_metrics

DESCRIPTION = """
Figures of a title scorer on pairs: accuracy (ties count half), log-loss, Brier score, score gap, ECE.
"""
INPUTS = """
Args:
    predictions: scores of the preferred titles.
    references: scores of the other titles, in the same order.
    groups: key of each row's group, for the intervals; rows stand alone without it.
    intervals: also give `<name>_low` and `<name>_high`, a 95% bootstrap over groups.

Returns:
    name to figure, such as `pair_accuracy` and `log_loss`; None where the data do not define a figure.
"""


class TitleAccuracy(evaluate.Metric):
    """Figures of a title scorer, from the scores of preferred and other titles."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(
        self, predictions: Any, references: Any, groups: Any = None, intervals: bool = False
    ) -> dict[str, float | None]:
        return flat(ranking_metrics(predictions, references, groups=groups), intervals=intervals)
