"""Our figures as `evaluate` modules, loaded by their path from the installed package, without a network.

Design decisions:

- `evaluate.load("accuracy")` fetches code from a hub; a file of the package needs none and is the version
  that is installed. Modules that take the same inputs combine: `evaluate.combine([path, path])`.
- They compute nothing: every figure is that of `qwen_task_heads.training`, as in `metrics.json`.
- `evaluate` reads the imports of a module line by line: one name per line there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.training.classification_metrics import classification_figures

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
        >>> metric.compute(predictions=[[2.0, 0.0], [3.0, 0.0]], references=[0, 1])["accuracy"]
        0.5
    """
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    if name not in names:
        accepted = f"accepted: {', '.join(names)}"
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


def describe(inputs: str, *, rows: bool = False, several: bool = False) -> evaluate.MetricInfo:
    """What `evaluate` asks of a metric.

    Args:
        inputs: what predictions and references are.
        rows: predictions are rows of numbers and references ids; else both are numbers.
        several: references are rows of 0 and 1.
    """
    import datasets
    import evaluate

    number, whole = datasets.Value("float64"), datasets.Value("int64")
    references = datasets.Sequence(whole) if several else whole if rows else number
    predictions = datasets.Sequence(number) if rows else number
    return evaluate.MetricInfo(
        description=__doc__ or "",
        citation="",
        inputs_description=f"\nArgs:{inputs}{OPTIONS}",
        features=datasets.Features({"predictions": predictions, "references": references}),
    )


def text_figures(
    problem_type: str, predictions: Any, references: Any, *, intervals: bool = False, **options: Any
) -> dict[str, float | None]:
    """`classification_figures`, flat.

    Args:
        problem_type: of the model.
        predictions, references: as in `classification_figures`; of several labels, rows of 0 and 1.
        intervals: as in `flat`.
        options: `groups`, `threshold`.
    """
    logits = np.asarray(predictions, np.float64)
    names = [str(index) for index in range(logits.shape[1] if logits.ndim == 2 else 1)]
    figures = classification_figures(problem_type, logits, np.asarray(references), labels=names, **options)
    return flat(figures, intervals=intervals)
