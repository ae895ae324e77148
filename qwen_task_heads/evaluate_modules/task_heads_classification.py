"""Accuracy, macro, micro and weighted precision, recall and F1, log-loss and ECE of one label per text."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from qwen_task_heads.evaluate_modules import flat
from qwen_task_heads.training.classification_metrics import classification_figures

DESCRIPTION = """
Figures of a single-label classifier: accuracy, macro/micro/weighted precision, recall, F1, log-loss, ECE.
"""
INPUTS = """
Args:
    predictions: logits, one row of L numbers per text.
    references: ids of the labels.
    groups: key of each row's group, for the intervals; rows stand alone without it.
    intervals: also give `<name>_low` and `<name>_high`, a 95% bootstrap over groups.

Returns:
    name to figure, such as `accuracy` and `macro_f1`; None where the data do not define a figure.
"""


class TaskHeadsClassification(evaluate.Metric):
    """Figures of a single-label classifier, from logits."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self, predictions: Any, references: Any, groups: Any = None, intervals: bool = False
    ) -> dict[str, float | None]:
        names = [str(index) for index in range(len(predictions[0]))] if len(predictions) else []
        figures = classification_figures(
            "single_label_classification", predictions, references, labels=names, groups=groups
        )
        return flat(figures, intervals=intervals)
