"""Base classes of the metrics: a metric of numbers, and a metric of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import evaluate
import numpy as np

from qwen_task_heads.evaluate_modules._inputs import TakesLabels, label_metrics
from qwen_task_heads.metrics.classification import classification_metrics

OPTIONS = """    groups: key of each row's group, for the intervals; None makes each row a group.
    intervals: also return `<name>_low` and `<name>_high`, a 95% bootstrap over groups.

Returns:
    map of names to metrics; None if the data do not define a metric.
"""


def flat(metrics: Mapping[str, Any], *, intervals: bool) -> dict[str, float | None]:
    """Return a map of names to values; with `intervals`, also `<name>_low` and `<name>_high`.

    Args:
        metrics: map of names to `{value, low, high, ...}`; other entries (metrics per label) are left out.
        intervals: return the bounds of the 95% intervals that exist.
    """
    result: dict[str, float | None] = {}
    for name, entry in metrics.items():
        if not isinstance(entry, Mapping):
            continue
        result[name] = entry["value"]
        if intervals and entry["low"] is not None:
            result |= {f"{name}_low": entry["low"], f"{name}_high": entry["high"]}
    return result


class NumberMetric(evaluate.Metric):
    """Metrics of numbers.

    Attributes:
        inputs: description of predictions and references.
        stored: dtype in which `datasets` stores rows.
        problem_type: of the model.
    """

    inputs = ""
    stored = "float64"
    problem_type = ""

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value(self.stored)
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description=f"\nArgs:{self.inputs}{OPTIONS}",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(
        self, predictions: Any, references: Any, *, intervals: bool = False, **options: Any
    ) -> dict[str, float | None]:
        return flat(self.measure(predictions, references, **options), intervals=intervals)

    def measure(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        """Return the metrics of the stored rows, by name."""
        values, targets = (np.asarray(column, np.float64) for column in (predictions, references))
        return classification_metrics(self.problem_type, values, targets, labels=["value"], **options)


class LabelMetric(TakesLabels, NumberMetric):
    """Metrics of labels, whose rows are stored as JSON text."""

    stored = "string"

    def measure(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        """Return the metrics of the stored rows, by name; `options` as in `label_metrics`."""
        return label_metrics(self.problem_type, predictions, references, **options)
