"""Provide metrics as `evaluate` modules, loaded by path from the installed package, without a network.

Design:

- `evaluate.load("accuracy")` fetches code from a hub. A file of the package needs no hub and is of the
  installed version. Modules with the same inputs combine: `evaluate.combine([path, path])`.
- All metrics are computed by `qwen_task_heads.metrics`, as in `metrics.json`.
- `predictions` and `references` are label ids or names, as in the metrics of `evaluate`. Logits and
  probabilities are `prediction_scores`, as in its `roc_auc` (`_inputs.py`).
- `evaluate` parses the imports of a module line by line, so modules have one import per line. It uses the
  first metric among the names of a module, so modules do not import the classes of `_base.py` by name.
"""

from __future__ import annotations

from pathlib import Path

from qwen_task_heads.errors import error_at


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
        raise error_at(
            "metric", f"found {name!r}", ", ".join(names), "choose one of them", code="option-value"
        )
    return str(folder / f"{name}.py")
