"""Calibration on dev: a temperature, the calibration metrics, and the risk at each coverage.

Design decisions:

- One temperature divides all logits (Guo et al. 2017, https://arxiv.org/abs/1706.04599), so that the
  predictions of single-label and multi-label models and all rankings stay the same. For an ordinal model the
  latent value and the thresholds are divided, which keeps the cumulative form. Predictions of rows near a
  threshold may change.
- A temperature is used only if cross-validation over groups, with five folds, lowers the held-out log loss.
  Otherwise it is 1, and `reason` states the cause.
- These functions use numpy and scipy only, and no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qwen_task_heads.errors import error_at
from qwen_task_heads.metrics.classification import (
    MULTI,
    ORDINAL,
    REGRESSION,
    SINGLE,
    check_scores,
    member_numbers,
    probabilities,
)
from qwen_task_heads.metrics.ranking import Floats, Metric, sigmoid, wilson_interval
from qwen_task_heads.metrics.ties import top_credit
from qwen_task_heads.metrics.weighted import ECE_BINS, bootstrap, interval, log_softmax

PAIRS = "pairs"  # scores (N, 2) of the chosen and the rejected title
CALIBRATIONS = ("temperature", "none")
MIN_ROWS = 50  # of dev, below which nothing is fitted
FOLDS = 5
BOUNDS = (0.05, 20.0)  # of a temperature
PAIR_BINS = 10  # of the confidence in the predicted title, .5 to 1
COVERAGES = tuple(step / 20 for step in range(20, 0, -1))
RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """A temperature, with the data and the held-out log loss of its fit.

    Args:
        value: divisor of the logits; 1 leaves them unchanged.
        rows: number of rows of dev.
        groups: number of groups of dev.
        reason: why the temperature is 1; "" if it was fitted.
        log_loss: held out, at 1 and at the temperatures of the other folds; None if nothing was fitted.
    """

    value: float
    rows: int
    groups: int
    reason: str = ""
    log_loss: tuple[float, float] | None = None


def divide_logits(problem_type: str, logits: ArrayLike, temperature: float) -> Floats:
    """Return logits (N, L) as a head gives them after `head_rows.fold_temperature`, float64.

    Args:
        problem_type: of the model, or `PAIRS`.
        logits: (N, L); log-probabilities for an ordinal model.
        temperature: positive.

    Example:
        >>> from qwen_task_heads.metrics.calibration import divide_logits
        >>> divide_logits("single_label_classification", [[2.0, 0.0]], 2.0).tolist()
        [[1.0, 0.0]]
    """
    scores = np.asarray(logits, np.float64)
    if problem_type != ORDINAL:
        return scores / temperature
    below = np.logaddexp.accumulate(scores, axis=1)[:, :-1]  # log P(y <= k), k < K - 1
    above = np.logaddexp.accumulate(scores[:, ::-1], axis=1)[:, ::-1][:, 1:]  # log P(y > k)
    cut = (below - above) / temperature  # (N, K - 1), ascending
    gaps = np.maximum(np.diff(cut, axis=1), 1e-12)
    inside = -np.logaddexp(0.0, -cut[:, 1:]) - np.logaddexp(0.0, cut[:, :-1]) + np.log(-np.expm1(-gaps))
    ends = -np.logaddexp(0.0, -cut[:, :1]), -np.logaddexp(0.0, cut[:, -1:])
    return np.concatenate([ends[0], inside, ends[1]], axis=1)


def fit_temperature(
    problem_type: str, logits: ArrayLike, targets: Any = None, *, groups: Sequence[str] | None = None
) -> Temperature:
    """Fit the temperature with the least log loss on dev, and use it only if cross-validation confirms it.

    Args:
        problem_type: `single_label_classification`, `multi_label_classification`, `ordinal`, or `PAIRS`.
        logits: (N, L); for pairs the scores (N, 2), chosen first. P(preferred) depends only on the
            difference, so that a pair counts the same in both orders.
        targets: as for `classification_metrics`; None for pairs.
        groups: key of each row's group (N,), "" for a row on its own; None makes every row its own group.

    Raises:
        TaskHeadsError: as for `classification_metrics`, or a regression, which has no probabilities.

    Example:
        >>> from qwen_task_heads.metrics.calibration import fit_temperature
        >>> logits, targets = [[4.0, 0.0]] * 100, [0] * 80 + [1] * 20  # 98% sure, and right in 80%
        >>> round(fit_temperature("single_label_classification", logits, targets).value, 2)
        2.89
    """
    scores, truth = _checked(problem_type, logits, targets)
    member = member_numbers(groups, len(scores))
    counts: dict[str, Any] = {"rows": len(scores), "groups": int(member.max()) + 1}
    if reason := too_few(**counts):
        return Temperature(value=1.0, reason=reason, **counts)

    def losses(rows: Any, temperature: float) -> Floats:
        return _log_loss(problem_type, divide_logits(problem_type, scores[rows], temperature), truth[rows])

    def best(rows: Any) -> float:
        from scipy.optimize import minimize_scalar

        solution = minimize_scalar(
            lambda log_value: float(losses(rows, math.exp(log_value)).mean()),
            bounds=tuple(map(math.log, BOUNDS)),
            options={"xatol": 1e-4},
        )
        return math.exp(solution.x)

    value = best(slice(None))
    if value < 1.05 * BOUNDS[0]:
        reason = f"the log loss falls down to a temperature of {BOUNDS[0]:g}: dev has too few errors"
        return Temperature(value=1.0, reason=reason, **counts)
    held_out = [losses(test, best(train)).sum() for train, test in folds(member)]
    compared = float(losses(slice(None), 1.0).mean()), float(sum(held_out) / len(scores))
    if compared[1] >= compared[0]:
        reason = f"it does not lower the held-out log loss ({compared[0]:.4f}, and {compared[1]:.4f} with it)"
        return Temperature(value=1.0, reason=reason, log_loss=compared, **counts)
    return Temperature(value=value, log_loss=compared, **counts)


def calibration_metrics(
    problem_type: str,
    logits: ArrayLike,
    targets: Any = None,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compute ECE and Brier score, each `{value, low, high, n, n_groups}`, with 95% bootstrap intervals.

    Args:
        problem_type, logits, targets, groups: as for `fit_temperature`.
        resamples, seed: of the bootstrap over groups.

    Returns:
        `ece`: mean distance between confidence and accuracy over 15 bins of the best label's probability
        (multi-label: of each label's; pairs: 10 bins of the probability of the predicted title).
        `brier`: the squared distance of the probabilities from the truth, summed over labels (0 to 2);
        multi-label: the mean over labels; pairs: (1 - P(preferred))².
        Sources: Brier 1950; Guo et al. 2017, arXiv:1706.04599.

    Example:
        >>> from qwen_task_heads.metrics.calibration import calibration_metrics
        >>> metrics = calibration_metrics("single_label_classification", [[0.0, 0.0], [0.0, 0.0]], [0, 1])
        >>> metrics["ece"]["value"], metrics["brier"]["value"]
        (0.0, 0.5)
    """
    scores, truth = _checked(problem_type, logits, targets)
    misses, squared = _misses(problem_type, scores, truth)

    def weighted(weights: Floats) -> dict[str, Floats]:
        total = weights.sum(1)
        return {"ece": np.abs(weights @ misses).sum(1) / total, "brier": weights @ squared / total}

    member, ones = member_numbers(groups, len(scores)), np.ones((1, len(scores)))
    draws = bootstrap(weighted, member, width=misses.shape[1], resamples=resamples, seed=seed)
    metrics = {}
    for name, (value,) in weighted(ones).items():
        low = high = None
        if np.isfinite(draws[name]).all():
            largest = 1.0 if name == "ece" or problem_type in (MULTI, PAIRS) else 2.0
            low, high = interval(float(value), draws[name], is_mean=name == "brier", bounds=(0.0, largest))
        metrics[name] = Metric(float(value), low, high, len(scores), int(member.max()) + 1).as_dict()
    return metrics


def risk_coverage(
    problem_type: str, logits: ArrayLike, targets: Any = None, *, groups: Sequence[str] | None = None
) -> list[dict[str, float]]:
    """Compute the error rate of the most confident rows, for coverages of 1, .95, ..., .05.

    Args:
        problem_type: a problem type with one label per row, or `PAIRS`.
        logits, targets, groups: as for `fit_temperature`; logits after calibration, if the model is
            calibrated.

    Returns:
        One row per distinct coverage: `coverage`, share of rows; `confidence`, the least probability of a
        prediction among these rows; `error`, share of wrong predictions; `upper`, the upper end of its 95%
        Wilson interval, with the groups as trials.
        Source: Geifman & El-Yaniv 2017, https://arxiv.org/abs/1705.08500.

    Example:
        >>> from qwen_task_heads.metrics.calibration import risk_coverage
        >>> logits = [[3.0, 0.0], [0.2, 0.0]] * 10
        >>> [(row["coverage"], row["error"]) for row in risk_coverage("ordinal", logits, [0, 1] * 10)]
        [(1.0, 0.5), (0.5, 0.0)]
    """
    scores, truth = _checked(problem_type, logits, targets)
    member = member_numbers(groups, len(scores))
    confidences, wrong = probabilities(SINGLE, scores).max(1), 1.0 - top_credit(scores, truth)
    descending = np.sort(confidences)[::-1]
    curve: dict[float, dict[str, float]] = {}
    for coverage in COVERAGES:
        # Rounded down: the confidence of the same row may differ by rounding in another run.
        least = math.floor(1e6 * descending[math.ceil(coverage * len(confidences)) - 1] - 1e-3) / 1e6
        kept = confidences >= least
        error = float(wrong[kept].mean())
        _, upper = wilson_interval(error, count=len(np.unique(member[kept])))
        row = {"coverage": float(kept.mean()), "confidence": least, "error": error, "upper": upper}
        curve.setdefault(row["coverage"], row)
    return list(curve.values())


def _checked(problem_type: str, logits: ArrayLike, targets: Any) -> tuple[Floats, NDArray[Any]]:
    """Return scores (N, L) and truths as `check_scores` does; the truth of pairs is the first column."""
    scores = np.asarray(logits, np.float64)
    if problem_type == REGRESSION:
        raise error_at(
            "calibration",
            "found a regression",
            "a problem type with probabilities",
            "drop the calibration",
            code="option-unsupported",
        )
    if problem_type == PAIRS:
        return check_scores(SINGLE, scores, np.zeros(len(scores), np.int64), num_labels=2)
    return check_scores(problem_type, scores, targets, num_labels=scores.shape[-1])


def too_few(*, rows: int, groups: int) -> str:
    """Return why dev is too small for a fit; "" if it is large enough."""
    if rows < MIN_ROWS:
        return f"dev has {rows:,} rows, and {MIN_ROWS} are needed"
    return "" if groups >= FOLDS else f"dev has {groups:,} groups, and {FOLDS} are needed"


def folds(member: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield rows to fit on and held-out rows, five times; no group is in both."""
    from sklearn.model_selection import GroupKFold

    return GroupKFold(FOLDS).split(member, groups=member)


def _log_loss(problem_type: str, scores: Floats, truth: NDArray[Any]) -> Floats:
    """Return the log loss of each row (N,); multi-label: the mean over its labels."""
    if problem_type == MULTI:
        return (np.logaddexp(0.0, scores) - truth * scores).mean(1)
    return -log_softmax(scores)[np.arange(len(truth)), truth]


def _misses(problem_type: str, scores: Floats, truth: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return accuracy minus confidence by bin (N, bins), and the squared distance (N,), of each row."""
    rows = np.arange(len(scores))
    if problem_type == MULTI:
        p = sigmoid(scores)
        differences = (truth - p) / p.shape[1]
        bin_numbers = np.minimum((p * ECE_BINS).astype(int), ECE_BINS - 1)
        cells = (rows[:, None] * ECE_BINS + bin_numbers).ravel()
        sums = np.bincount(cells, weights=differences.ravel(), minlength=len(p) * ECE_BINS)
        return sums.astype(np.float64).reshape(len(p), ECE_BINS), ((p - truth) ** 2).mean(1)
    p = probabilities(SINGLE, scores)
    confidence, hit = p.max(1), top_credit(scores, truth)
    is_pairs = problem_type == PAIRS
    bins, position = (PAIR_BINS, 2 * confidence - 1) if is_pairs else (ECE_BINS, confidence)
    misses = np.zeros((len(p), bins))
    misses[rows, np.minimum((position * bins).astype(int), bins - 1)] = hit - confidence
    squared = (p**2).sum(1) - 2 * p[rows, truth] + 1
    return misses, squared / 2 if is_pairs else squared
