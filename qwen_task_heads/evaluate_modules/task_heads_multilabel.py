"""Micro and macro F1, mean average precision and subset accuracy of several labels per text."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from qwen_task_heads.evaluate_modules import flat
from qwen_task_heads.training.classification_metrics import classification_figures

DESCRIPTION = """
Figures of a multi-label classifier: micro/macro/weighted precision, recall, F1, mAP, subset accuracy.
"""
INPUTS = """
Args:
    predictions: logits, one row of L numbers per text.
    references: rows of L zeros and ones.
    threshold: P(label) from which it counts as predicted.
    groups: key of each row's group, for the intervals; rows stand alone without it.
    intervals: also give `<name>_low` and `<name>_high`, a 95% bootstrap over groups.

Returns:
    name to figure, such as `micro_f1` and `map`; None where the data do not define a figure.
"""


class TaskHeadsMultilabel(evaluate.Metric):
    """Figures of a multi-label classifier, from logits."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        groups: Any = None,
        threshold: float = 0.5,
        intervals: bool = False,
    ) -> dict[str, float | None]:
        names = [str(index) for index in range(len(predictions[0]))] if len(predictions) else []
        figures = classification_figures(
            "multi_label_classification",
            predictions,
            np.asarray(references),
            labels=names,
            groups=groups,
            threshold=threshold,
        )
        return flat(figures, intervals=intervals)
