"""Provide metrics as `evaluate` modules, loaded by path from the installed package, without a network.

Design:

- `evaluate.load("accuracy")` fetches code from a hub. A file of the package needs no hub and is of the
  installed version. Modules with the same inputs combine: `evaluate.combine([path, path])`.
- All metrics are computed by `qwen_task_heads.metrics`, as in `metrics.json`.
- `predictions` and `references` are label ids or names, as in the metrics of `evaluate`. Logits and
  probabilities are `prediction_scores`, as in its `roc_auc` (`_inputs.py`).
- `evaluate` parses the imports of a module line by line, so modules have one import per line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.evaluate_modules import _inputs
from qwen_task_heads.evaluate_modules._inputs import TakesLabels
from qwen_task_heads.metrics.classification import REGRESSION, classification_metrics

__all__ = ["TakesLabels", "describe", "describe_labels", "flat", "metric_path", "text_metrics"]

if TYPE_CHECKING:
    import evaluate

OPTIONS = """    groups: key of each row's group, for the intervals; None makes each row a group.
    intervals: also return `<name>_low` and `<name>_high`, a 95% bootstrap over groups.

Returns:
    map of names to metrics; None if the data do not define a metric.
"""


def metric_path(name: str) -> str:
    """Return the path of a metric for `evaluate.load`.

    Args:
        name: `title_accuracy`, `task_heads_classification`, `task_heads_multilabel`,
            `task_heads_regression` or `task_heads_ordinal`.

    Raises:
        TaskHeadsError: there is no such metric.

    Example:
        >>> import evaluate
        >>> from qwen_task_heads.evaluate_modules import metric_path
        >>> metric = evaluate.load(metric_path("task_heads_classification"))
        >>> metric.compute(predictions=["good", "bad"], references=["good", "good"])["accuracy"]
        0.5
        >>> result = metric.compute(prediction_scores=[[2.0, 0.0], [3.0, 0.0]], references=[0, 1])
        >>> result["accuracy"], round(result["log_loss"], 2)
        (0.5, 1.59)
    """
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem[0] != "_")
    if name not in names:
        expected = ", ".join(names)
        raise TaskHeadsError(
            Problem("metric", f"found {name!r}", expected, "choose one of them", code="option-value")
        )
    return str(folder / f"{name}.py")


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


def describe(inputs: str, *, stored: str = "float64") -> evaluate.MetricInfo:
    """Return the description of a metric of numbers for `evaluate`.

    Args:
        inputs: description of predictions and references.
        stored: dtype in which `datasets` stores rows.
    """
    import datasets
    import evaluate

    value = datasets.Value(stored)
    return evaluate.MetricInfo(
        description=__doc__ or "",
        citation="",
        inputs_description=f"\nArgs:{inputs}{OPTIONS}",
        features=datasets.Features({"predictions": value, "references": value}),
    )


def describe_labels(inputs: str) -> evaluate.MetricInfo:
    """Return the description of a metric of labels, whose rows are JSON text; `inputs` as in `describe`."""
    return describe(inputs, stored="string")


def text_metrics(
    problem_type: str, predictions: Any, references: Any, *, intervals: bool = False, **options: Any
) -> dict[str, float | None]:
    """Return the classification or regression metrics of a model, flat.

    Args:
        problem_type: of the model.
        predictions, references: values of a regression; otherwise rows as `TakesLabels` stores them.
        intervals: see `flat`.
        options: `groups`; for labels also `labels`, and for several labels per row `threshold`.
    """
    if problem_type == REGRESSION:
        values = np.asarray(predictions, np.float64)
        targets = np.asarray(references, np.float64)
        metrics = classification_metrics(problem_type, values, targets, labels=["value"], **options)
    else:
        metrics = _inputs.label_metrics(problem_type, predictions, references, **options)
    return flat(metrics, intervals=intervals)
