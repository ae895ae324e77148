"""Our figures as `evaluate` modules, loaded by their path from the installed package, without a network.

Design decisions:

- `evaluate.load("accuracy")` fetches code from a hub; a file of the package needs none and is the version
  that is installed. Modules that take the same inputs combine: `evaluate.combine([path, path])`.
- They compute nothing: every figure is that of `qwen_task_heads.training`, as in `metrics.json`.
- `predictions` and `references` are label ids or names, as in the metrics of `evaluate`. Logits and
  probabilities are `prediction_scores`, as in its `roc_auc` (`_inputs.py`).
- `evaluate` reads the imports of a module line by line: one name per line there.
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

__all__ = ["TakesLabels", "describe", "describe_labels", "flat", "metric_path", "text_figures"]

if TYPE_CHECKING:
    import evaluate

OPTIONS = """    groups: key of each row's group, for the intervals; rows stand alone without it.
    intervals: also give `<name>_low` and `<name>_high`, a 95% bootstrap over groups.

Returns:
    name to figure; None where the data do not define it.
"""


def metric_path(name: str) -> str:
    """Path of a metric for `evaluate.load`.

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
        >>> found = metric.compute(prediction_scores=[[2.0, 0.0], [3.0, 0.0]], references=[0, 1])
        >>> found["accuracy"], round(found["log_loss"], 2)
        (0.5, 1.59)
    """
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem[0] != "_")
    if name not in names:
        accepted = f"{', '.join(names)}"
        raise TaskHeadsError(Problem("metric", f"found {name!r}", accepted, "choose one of them"))
    return str(folder / f"{name}.py")


def flat(figures: Mapping[str, Any], *, intervals: bool) -> dict[str, float | None]:
    """Name to value, as `evaluate` shows figures; with `intervals`, also `<name>_low` and `<name>_high`.

    Args:
        figures: name to `{value, low, high, ...}`; what is no such dict (the labels one by one) is left out.
        intervals: give the ends of the 95% intervals where there are any.
    """
    found: dict[str, float | None] = {}
    for name, entry in figures.items():
        if not isinstance(entry, Mapping):
            continue
        found[name] = entry["value"]
        if intervals and entry["low"] is not None:
            found |= {f"{name}_low": entry["low"], f"{name}_high": entry["high"]}
    return found


def describe(inputs: str, *, stored: str = "float64") -> evaluate.MetricInfo:
    """What `evaluate` asks of a metric of numbers.

    Args:
        inputs: what predictions and references are.
        stored: dtype of `datasets` that rows are stored in.
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
    """What `evaluate` asks of a metric of labels, whose rows are JSON text; `inputs` as in `describe`."""
    return describe(inputs, stored="string")


def text_figures(
    problem_type: str, predictions: Any, references: Any, *, intervals: bool = False, **options: Any
) -> dict[str, float | None]:
    """`classification_metrics`, flat.

    Args:
        problem_type: of the model.
        predictions, references: values of a regression; else rows as `TakesLabels` stores them.
        intervals: as in `flat`.
        options: `groups`; of labels also `labels`, of several labels in a row `threshold`.
    """
    if problem_type == REGRESSION:
        values = np.asarray(predictions, np.float64)
        targets = np.asarray(references, np.float64)
        figures = classification_metrics(problem_type, values, targets, labels=["value"], **options)
    else:
        figures = _inputs.label_figures(problem_type, predictions, references, **options)
    return flat(figures, intervals=intervals)
