"""Pearson, Spearman, mean squared and absolute error and R² of one value per text."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from qwen_task_heads.evaluate_modules import flat
from qwen_task_heads.training.classification_metrics import classification_figures

DESCRIPTION = """
Figures of a regression model: Pearson and Spearman correlation, MSE, MAE, R².
"""
INPUTS = """
Args:
    predictions: one number per text.
    references: one number per text.
    groups: key of each row's group, for the intervals; rows stand alone without it.
    intervals: also give `<name>_low` and `<name>_high`, a 95% bootstrap over groups.

Returns:
    name to figure, such as `spearman` and `mse`; None where the data do not define a figure.
"""


class TaskHeadsRegression(evaluate.Metric):
    """Figures of a regression model."""

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
        figures = classification_figures(
            "regression", predictions, references, labels=["score"], groups=groups
        )
        return flat(figures, intervals=intervals)
