"""Metrics of classifiers, regressors and ordinal models, each with its interval over groups.

Design decisions:

- Every metric is a function of row weights. The value is that function at weights of one. The interval is the
  same function at bootstrap counts of whole groups. Tests compare the values with scikit-learn and scipy.
- Intervals of means over rows are percentile intervals. Those of other metrics are corrected for the bias of
  resampling (`weighted.interval`). Each interval contains its value.
- A metric that the data do not define (a class that never occurs, the correlation of a constant) is None, not
  0, and gives no warning. Macro averages include the classes that occur among the truths or the predictions,
  as in scikit-learn; an undefined precision or recall then counts as 0.
- If k labels tie at the top of a row (`ties`), each of them gets 1/k of the prediction. A model with equal
  scores for all labels then has an accuracy of 1/k, independent of the order of the labels.
- Inputs are whole arrays, gathered over processes: a mean of batch means is a different metric.
- Only numpy is used, so that metrics can be recomputed from `predictions.jsonl` without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qwen_task_heads.errors import error_at
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.metrics.ranking import Floats, Metric, check_finite, sigmoid, wilson_interval
from qwen_task_heads.metrics.ties import top_shares
from qwen_task_heads.metrics.weighted import (
    Measures,
    bootstrap,
    interval,
    log_softmax,
    multilabel_metrics,
    number,
    of_classes,
    ordinal_metrics,
    regression_metrics,
)

SINGLE, MULTI, REGRESSION, ORDINAL = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
    "ordinal",
)
# Metric that selects the checkpoint, with Trainer's name, and whether a greater value is better.
BEST_METRIC: dict[str, tuple[str, bool]] = {
    SINGLE: ("eval_accuracy", True),
    MULTI: ("eval_micro_f1", True),
    REGRESSION: ("eval_spearman", True),
    ORDINAL: ("eval_quadratic_kappa", True),
    QUESTIONS: ("eval_mean_accuracy", True),  # `questions.py` computes it
}
# Metrics that are logged at every evaluation on dev.
DEV_METRICS: dict[str, tuple[str, ...]] = {
    SINGLE: ("accuracy", "macro_f1"),
    MULTI: ("micro_f1", "macro_f1", "map"),
    REGRESSION: ("spearman", "pearson", "mse"),
    ORDINAL: ("mae", "quadratic_kappa", "accuracy"),
    QUESTIONS: ("mean_accuracy", "mean_macro_f1"),
}
RESAMPLES = 500
MAX_CONFUSED = 1000  # limit of labels of a full confusion matrix
SHARES = ("accuracy", "subset_accuracy", "coarse_accuracy")  # metrics that are a share of rows
MEANS = (*SHARES, "log_loss", "mse", "mae")  # metrics that are a mean over rows
# With one label per row, these equal the accuracy.
SAME_AS_ACCURACY = ("micro_precision", "micro_recall", "micro_f1", "weighted_recall")
# Smallest and largest value of metrics whose range is not 0 to 1.
BOUNDS = {name: (-1.0, 1.0) for name in ("pearson", "spearman", "quadratic_kappa")} | {"r2": (-np.inf, 1.0)}
RANKING_WORK = 30_000_000  # limit of resamples x rows x labels for the bootstrap of mAP: about a second

_MEASURES: dict[str, Callable[[Floats, Any, Any], Measures]] = {
    SINGLE: of_classes,
    MULTI: multilabel_metrics,
    REGRESSION: regression_metrics,
    ORDINAL: ordinal_metrics,
}


def classification_metrics(
    problem_type: str,
    logits: ArrayLike,
    targets: Any,
    *,
    labels: Sequence[str],
    groups: Sequence[str] | None = None,
    threshold: float | Sequence[float] = 0.5,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute all metrics of a model on one split: name to `{value, low, high, n, n_groups}`.

    Args:
        problem_type: `single_label_classification`, `multi_label_classification`, `regression`, `ordinal`.
        logits: (N, L); for regression the values, (N,) or (N, L).
        targets: ids (N,); multi-label: an (N, L) array of 0 and 1, or N sequences of ids; regression: values
            (N,) or (N, L).
        labels: L names, in the order of the ids.
        groups: key of each row's group (N,), "" for a row on its own; None makes every row its own group.
        threshold: P(label) from which a label of a multi-label model counts as predicted; one, or L.
        resamples, seed: of the bootstrap; intervals of 95%, see `weighted.interval`.

    Returns:
        Single: `accuracy`, `macro_`, `micro_` and `weighted_` `precision`, `recall`, `f1`, `log_loss`, `ece`.
        Multi: the same averages, `map` (mean average precision over the labels that occur),
        `subset_accuracy`, `log_loss`. Regression: `pearson`, `spearman`, `mse`, `mae`, `r2`; for several
        values per row, the mean over them. Ordinal: `mae` in steps, `quadratic_kappa`, and those of single.
        `ece` has no interval. `per_class`: a list with precision, recall, f1, support and predicted (multi:
        and average_precision) of every label; for regression, the metrics of each value.
        Sources: Cohen 1968 (weighted kappa), Guo et al. 2017, arXiv:1706.04599 (ECE), Efron 1979.

    Raises:
        TaskHeadsError: an unknown problem type, shapes that differ, no rows, ids out of range, or numbers
            that are not finite.

    Example:
        >>> from qwen_task_heads.metrics.classification import classification_metrics
        >>> logits = [[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]
        >>> metrics = classification_metrics("ordinal", logits, [0, 1, 1], labels=["no", "yes"])
        >>> round(metrics["accuracy"]["value"], 3), metrics["per_class"][1]["recall"]
        (0.667, 0.5)
    """
    if problem_type == QUESTIONS:
        raise error_at(
            "problem_type",
            f"found {problem_type!r}",
            ", ".join(_MEASURES),
            "call metrics.questions.question_metrics",
            code="option-value",
        )
    scores, truth = check_scores(problem_type, logits, targets, num_labels=len(labels))
    weighted, plain, per_class = _MEASURES[problem_type](scores, truth, np.asarray(threshold))
    member = member_numbers(groups, len(scores))
    count = int(member.max()) + 1
    values = weighted(np.ones((1, len(scores))))
    if problem_type == MULTI:
        resamples = max(40, min(resamples, RANKING_WORK // max(1, scores.size)))
    draws = bootstrap(weighted, member, width=scores.shape[1], resamples=resamples, seed=seed)
    metrics: dict[str, Any] = {}
    for name, value in values.items():
        same = SAME_AS_ACCURACY if problem_type in (SINGLE, ORDINAL) else ()
        low, high = metric_ends(name, value[0], draws[name], groups=count, is_mean=name in (*MEANS, *same))
        metrics[name] = Metric(number(value[0]), low, high, len(scores), count).as_dict()
    for name, single in plain.items():
        metrics[name] = Metric(single, None, None, len(scores), count).as_dict()
    metrics["per_class"] = [{"label": label, **row} for label, row in zip(labels, per_class, strict=True)]
    return metrics


def coarse_accuracy(
    logits: ArrayLike,
    targets: Any,
    *,
    parents: Sequence[str],
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Compute the share of rows whose predicted label has the parent of the true label.

    The parent of the most probable label is compared, not the most probable parent. The value is at least the
    accuracy.

    Args:
        logits: (N, L) of a single-label or ordinal model.
        targets: ids (N,).
        parents: of the L labels, in the order of the ids, "" without one (`LabelMap.parents`).
        groups, resamples, seed: as for `classification_metrics`.

    Returns:
        `{value, low, high, n, n_groups}`; None if a label has no parent, or all have the same.

    Raises:
        TaskHeadsError: as for `classification_metrics`.

    Example:
        >>> from qwen_task_heads.metrics.classification import coarse_accuracy
        >>> parents = ["play", "play", "work"]
        >>> coarse_accuracy([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [1, 0], parents=parents)["value"]
        0.5
    """
    if not parents or not all(parents) or len(set(parents)) < 2:
        return None
    scores, truth = check_scores(SINGLE, logits, targets, num_labels=len(parents))
    parent = np.unique(parents, return_inverse=True)[1]  # (L,)
    hit = (top_shares(scores) * (parent == parent[truth][:, None])).sum(1)

    def weighted(weights: Floats) -> dict[str, Floats]:
        return {"coarse_accuracy": weights @ hit / weights.sum(1)}

    member = member_numbers(groups, len(hit))
    name = "coarse_accuracy"
    draws = bootstrap(weighted, member, width=1, resamples=resamples, seed=seed)[name]
    value, count = float(hit.mean()), int(member.max()) + 1
    ends = metric_ends(name, value, draws, groups=count, is_mean=True)
    return Metric(value, *ends, len(hit), count).as_dict()


def dev_metrics(problem_type: str) -> Callable[[Any], dict[str, float]]:
    """Return `compute_metrics` for `Trainer`: the metrics of `DEV_METRICS`, values only.

    Undefined metrics are 0.0 here, such as the rank correlation of constant predictions. Trainer needs
    numbers to select a checkpoint.

    Example:
        >>> import numpy as np
        >>> from transformers import EvalPrediction
        >>> from qwen_task_heads.metrics.classification import dev_metrics
        >>> dev_metrics("regression")(EvalPrediction(predictions=np.zeros((3, 1)), label_ids=np.arange(3.0)))
        {'spearman': 0.0, 'pearson': 0.0, 'mse': 1.6666666666666667}
    """
    names = DEV_METRICS[_known(problem_type)]

    def compute(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits, np.float64)
        count = 1 if logits.ndim == 1 else logits.shape[1]
        scores, truth = check_scores(problem_type, logits, prediction.label_ids, num_labels=count)
        weighted, _, _ = _MEASURES[problem_type](scores, truth, 0.5)
        values = weighted(np.ones((1, len(scores))))
        return {name: number(values[name][0]) or 0.0 for name in names}

    return compute


def check_scores(
    problem_type: str, logits: ArrayLike, targets: Any, *, num_labels: int
) -> tuple[Floats, NDArray[Any]]:
    """Return scores (N, L) float64, and truths: ids (N,) int64, (N, L) of 0 and 1 (multi), or (N, L) values.

    Raises:
        TaskHeadsError: as for `classification_metrics`.
    """
    _known(problem_type)
    scores = np.asarray(logits, np.float64)
    if scores.ndim == 1 and num_labels == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or not len(scores) or scores.shape[1] != num_labels:
        problem = f"found logits of shape {scores.shape} for {num_labels} labels"
        raise error_at(
            "metrics", problem, "shape (N, labels), N ≥ 1", "check the split", code="argument-type"
        )
    for column in scores.T:
        check_finite(column, "metrics, logits")
    if problem_type in (SINGLE, ORDINAL):
        truth = np.asarray(targets)
        fits = truth.shape == (len(scores),) and np.issubdtype(truth.dtype, np.integer)
        fits = fits and bool(((truth >= 0) & (truth < num_labels)).all())
        expected = f"{len(scores)} whole numbers from 0 to {num_labels - 1}"
    elif problem_type == MULTI:
        truth = _multi_hot(targets, num_labels)
        fits = truth.shape == scores.shape and bool(np.isin(truth, (0.0, 1.0)).all())
        expected = f"{len(scores)} rows of {num_labels} zeros and ones, or of ids below {num_labels}"
    else:
        truth = np.asarray(targets, np.float64)
        truth = truth[:, None] if truth.ndim == 1 else truth
        fits = truth.shape == scores.shape and bool(np.isfinite(truth).all())
        expected = f"{len(scores)} x {num_labels} finite numbers"
    if not fits:
        raise error_at(
            "metrics, targets",
            f"found targets of shape {truth.shape} that do not fit",
            expected,
            "check the labels of the split",
            code="argument-type",
        )
    return scores, truth


def probabilities(problem_type: str, logits: Floats) -> Floats:
    """Return P(label), (N, L): softmax, or the sigmoid of each label of a multi-label model; float64."""
    return sigmoid(logits) if problem_type == MULTI else np.exp(log_softmax(logits))


def confusion_matrix(logits: ArrayLike, targets: Any, *, num_labels: int) -> NDArray[np.int64]:
    """Return counts (L, L) of a single-label or ordinal model: rows are truths, columns predictions.

    Raises:
        TaskHeadsError: as for `classification_metrics`, or more than `MAX_CONFUSED` labels.
    """
    if num_labels > MAX_CONFUSED:
        raise error_at(
            "confusion matrix",
            f"found {num_labels:,} labels",
            f"up to {MAX_CONFUSED:,} labels",
            "see errors.md for the most frequent confusions",
            code="option-unsupported",
        )
    scores, truth = check_scores(SINGLE, logits, targets, num_labels=num_labels)
    cells = np.bincount(truth * num_labels + scores.argmax(1), minlength=num_labels**2)
    return cells.reshape(num_labels, num_labels)


def _known(problem_type: str) -> str:
    if problem_type not in BEST_METRIC:
        names = ", ".join(BEST_METRIC)
        raise error_at(
            "problem_type", f"found {problem_type!r}", names, "choose one of them", code="option-value"
        )
    return problem_type


def _multi_hot(targets: Any, num_labels: int) -> NDArray[Any]:
    if isinstance(targets, np.ndarray) and targets.ndim == 2:
        return targets.astype(np.float64)
    hot = np.zeros((len(targets), num_labels))
    for row, ids in enumerate(targets):
        if any(not 0 <= index < num_labels for index in ids):
            return np.zeros((len(targets), 0))  # a shape that the caller rejects with its message
        hot[row, list(ids)] = 1.0
    return hot


def member_numbers(groups: Sequence[str] | None, count: int) -> NDArray[np.int64]:
    """Return the number of each row's group (N,), from 0; a row without a key is its own group."""
    if groups is None:
        return np.arange(count)
    if len(groups) != count:
        raise error_at(
            "metrics",
            f"found {count} rows and {len(groups)} groups",
            "one group key per row",
            "pass the group of every row",
            code="argument-type",
        )
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(key or row, len(numbers)) for row, key in enumerate(groups)])


def metric_ends(
    name: str, value: float, draws: Floats, *, groups: int, is_mean: bool
) -> tuple[float | None, float | None]:
    """Return the 95% interval of a metric; None and None if most draws are undefined, or all are the same.

    For a share of rows that is the same in every draw, such as 0 or 1, it is Wilson's, of `groups` trials.
    """
    defined = draws[np.isfinite(draws)]
    if not np.isfinite(value) or 2 * len(defined) < len(draws):
        return None, None
    if defined.min() == defined.max():
        is_share = name in SHARES and groups > 1
        return wilson_interval(float(value), count=groups) if is_share else (None, None)
    bounds = (-np.inf, np.inf) if is_mean else BOUNDS.get(name, (0.0, 1.0))
    return interval(float(value), defined, is_mean=is_mean, bounds=bounds)
