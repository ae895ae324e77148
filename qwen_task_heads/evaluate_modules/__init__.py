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
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError


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
