"""Calibration on dev: a temperature, the calibration metrics, and the risk at each coverage.

Design decisions:

- One temperature divides all logits (Guo et al. 2017, https://arxiv.org/abs/1706.04599), so that no answer of
  a single-label or multi-label model and no ranking changes. An ordinal model keeps its cumulative form: its
  latent value and its cut points are divided, which may change the answers of rows near a cut point.
- A temperature is used only if one that is fitted on four fifths of the groups lowers the log loss of the
  last fifth. Otherwise it is 1, and `reason` says why.
- numpy and scipy only: these functions know no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.metrics.classification import (
    MULTI,
    ORDINAL,
    REGRESSION,
    SINGLE,
    check_scores,
    member_numbers,
    probabilities,
)
from qwen_task_heads.metrics.ranking import Figure, Floats, wilson_interval
from qwen_task_heads.metrics.ties import top_credit
from qwen_task_heads.metrics.weighted import ECE_BINS, bootstrap, interval, log_softmax, sigmoid

PAIRS = "pairs"  # scores (N, 2) of the chosen and the rejected title
CALIBRATIONS = ("temperature", "none")
MIN_ROWS = 50  # of dev, below which nothing is fitted
FOLDS = 5
BOUNDS = (0.05, 20.0)  # of a temperature
PAIR_BINS = 10  # of the confidence in the title that is picked, .5 to 1
COVERAGES = tuple(step / 20 for step in range(20, 0, -1))
RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """A temperature and how it was found.

    Args:
        value: by which logits are divided; 1 changes nothing.
        rows: of dev.
        groups: among them.
        reason: why nothing is divided; "" otherwise.
        log_loss: held out, at 1 and at the temperatures of the other folds; None if nothing was fitted.
    """

    value: float
    rows: int
    groups: int
    reason: str = ""
    log_loss: tuple[float, float] | None = None


def divide_logits(problem_type: str, logits: ArrayLike, temperature: float) -> Floats:
    """Logits (N, L) as a head gives them after `head_rows.fold_temperature`, float64.

    Args:
        problem_type: of the model, or `PAIRS`.
        logits: (N, L); of an ordinal model log-probabilities.
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
    """Fit the temperature with the least log loss on dev, and hold it against its own cross-validation.

    Args:
        problem_type: `single_label_classification`, `multi_label_classification`, `ordinal`, or `PAIRS`.
        logits: (N, L); of pairs the scores (N, 2), chosen first. As P(preferred) depends on the difference
            alone, a pair counts the same in both orders.
        targets: as of `classification_figures`; None for pairs.
        groups: key of each row's group (N,), "" for a row on its own; None makes every row its own group.

    Raises:
        TaskHeadsError: as of `classification_figures`, or a regression, which has no probabilities.

    Example:
        >>> from qwen_task_heads.metrics.calibration import fit_temperature
        >>> logits, targets = [[4.0, 0.0]] * 100, [0] * 80 + [1] * 20  # 98% sure, and right in 80%
        >>> round(fit_temperature("single_label_classification", logits, targets).value, 2)
        2.89
    """
    scores, truth = _checked(problem_type, logits, targets)
    member = member_numbers(groups, len(scores))
    found: dict[str, Any] = {"rows": len(scores), "groups": int(member.max()) + 1}
    if reason := too_few(**found):
        return Temperature(value=1.0, reason=reason, **found)

    def losses(rows: Any, temperature: float) -> Floats:
        return _log_loss(problem_type, divide_logits(problem_type, scores[rows], temperature), truth[rows])

    def best(rows: Any) -> float:
        from scipy.optimize import minimize_scalar

        ends = tuple(map(math.log, BOUNDS))
        answer = minimize_scalar(
            lambda place: float(losses(rows, math.exp(place)).mean()), bounds=ends, options={"xatol": 1e-4}
        )
        return math.exp(answer.x)

    value = best(slice(None))
    if value < 1.05 * BOUNDS[0]:
        reason = f"the log loss falls down to a temperature of {BOUNDS[0]:g}: dev has too few errors"
        return Temperature(value=1.0, reason=reason, **found)
    held = [losses(out, best(rest)).sum() for rest, out in folds(member)]
    compared = float(losses(slice(None), 1.0).mean()), float(sum(held) / len(scores))
    if compared[1] >= compared[0]:
        reason = f"it does not lower the held-out log loss ({compared[0]:.4f}, and {compared[1]:.4f} with it)"
        return Temperature(value=1.0, reason=reason, log_loss=compared, **found)
    return Temperature(value=value, log_loss=compared, **found)


def calibration_figures(
    problem_type: str,
    logits: ArrayLike,
    targets: Any = None,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """ECE and Brier score, each `{value, low, high, n, n_groups}`, with 95% bootstrap intervals over groups.

    Args:
        problem_type, logits, targets, groups: as of `fit_temperature`.
        resamples, seed: of the bootstrap.

    Returns:
        `ece`: mean distance of confidence and accuracy over 15 bins of the best label's probability
        (multi-label: of each label's; pairs: 10 bins of the probability of the title that is picked).
        `brier`: the squared distance of the probabilities from the truth, summed over labels (0 to 2);
        multi-label: the mean over labels; pairs: (1 - P(preferred))².
        Sources: Brier 1950; Guo et al. 2017, arXiv:1706.04599.

    Example:
        >>> from qwen_task_heads.metrics.calibration import calibration_figures
        >>> found = calibration_figures("single_label_classification", [[0.0, 0.0], [0.0, 0.0]], [0, 1])
        >>> found["ece"]["value"], found["brier"]["value"]
        (0.0, 0.5)
    """
    scores, truth = _checked(problem_type, logits, targets)
    misses, squared = _misses(problem_type, scores, truth)

    def weighted(weights: Floats) -> dict[str, Floats]:
        total = weights.sum(1)
        return {"ece": np.abs(weights @ misses).sum(1) / total, "brier": weights @ squared / total}

    member, one = member_numbers(groups, len(scores)), np.ones((1, len(scores)))
    drawn = bootstrap(weighted, member, width=misses.shape[1], resamples=resamples, seed=seed)
    figures = {}
    for name, (value,) in weighted(one).items():
        low = high = None
        if np.isfinite(drawn[name]).all():
            top = 1.0 if name == "ece" or problem_type in (MULTI, PAIRS) else 2.0
            low, high = interval(float(value), drawn[name], is_mean=name == "brier", bounds=(0.0, top))
        figures[name] = Figure(float(value), low, high, len(scores), int(member.max()) + 1).as_dict()
    return figures


def risk_coverage(
    problem_type: str, logits: ArrayLike, targets: Any = None, *, groups: Sequence[str] | None = None
) -> list[dict[str, float]]:
    """Error rate of the most confident rows, for coverages of 1, .95, ..., .05.

    Args:
        problem_type: one with one answer a row, or `PAIRS`.
        logits, targets, groups: as of `fit_temperature`; calibrated if they are going to be.

    Returns:
        Per coverage that the confidences tell apart: `coverage`, share of rows; `confidence`, the least
        probability of an answer among them; `error`, share of wrong answers; `upper`, the upper end of its
        95% Wilson interval, with the groups as trials.
        Source: Geifman & El-Yaniv 2017, https://arxiv.org/abs/1705.08500.

    Example:
        >>> from qwen_task_heads.metrics.calibration import risk_coverage
        >>> logits = [[3.0, 0.0], [0.2, 0.0]] * 10
        >>> [(row["coverage"], row["error"]) for row in risk_coverage("ordinal", logits, [0, 1] * 10)]
        [(1.0, 0.5), (0.5, 0.0)]
    """
    scores, truth = _checked(problem_type, logits, targets)
    member = member_numbers(groups, len(scores))
    sure, wrong = probabilities(SINGLE, scores).max(1), 1.0 - top_credit(scores, truth)
    descending = np.sort(sure)[::-1]
    curve: dict[float, dict[str, float]] = {}
    for coverage in COVERAGES:
        # Rounded down: the same row is computed again, and may differ by rounding.
        least = math.floor(1e6 * descending[math.ceil(coverage * len(sure)) - 1] - 1e-3) / 1e6
        kept = sure >= least
        error = float(wrong[kept].mean())
        _, upper = wilson_interval(error, count=len(np.unique(member[kept])))
        row = {"coverage": float(kept.mean()), "confidence": least, "error": error, "upper": upper}
        curve.setdefault(row["coverage"], row)
    return list(curve.values())


def _checked(problem_type: str, logits: ArrayLike, targets: Any) -> tuple[Floats, NDArray[Any]]:
    """Scores (N, L) and truths as `check_scores` gives them; of pairs the truth is the first column."""
    scores = np.asarray(logits, np.float64)
    if problem_type == REGRESSION:
        found, accepted = "a regression", "a problem type with probabilities"
        raise TaskHeadsError(Problem("calibration", f"found {found}", accepted, "drop it"))
    if problem_type == PAIRS:
        return check_scores(SINGLE, scores, np.zeros(len(scores), np.int64), num_labels=2)
    return check_scores(problem_type, scores, targets, num_labels=scores.shape[-1])


def too_few(*, rows: int, groups: int) -> str:
    """Why nothing is fitted; "" if it is."""
    if rows < MIN_ROWS:
        return f"dev has {rows:,} rows, and {MIN_ROWS} are needed"
    return "" if groups >= FOLDS else f"dev has {groups:,} groups, and {FOLDS} are needed"


def folds(member: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Rows to fit on and rows to hold out, five times; no group is in both."""
    from sklearn.model_selection import GroupKFold

    return GroupKFold(FOLDS).split(member, groups=member)


def _log_loss(problem_type: str, scores: Floats, truth: NDArray[Any]) -> Floats:
    """Log loss of each row (N,); multi-label: the mean over its labels."""
    if problem_type == MULTI:
        return (np.logaddexp(0.0, scores) - truth * scores).mean(1)
    return -log_softmax(scores)[np.arange(len(truth)), truth]


def _misses(problem_type: str, scores: Floats, truth: NDArray[Any]) -> tuple[Floats, Floats]:
    """Accuracy less confidence by bin (N, bins), and the squared distance (N,), of each row."""
    rows = np.arange(len(scores))
    if problem_type == MULTI:
        p = sigmoid(scores)
        missing, slots = (truth - p) / p.shape[1], np.minimum((p * ECE_BINS).astype(int), ECE_BINS - 1)
        places = (rows[:, None] * ECE_BINS + slots).ravel()
        sums = np.bincount(places, weights=missing.ravel(), minlength=len(p) * ECE_BINS)
        return sums.astype(np.float64).reshape(len(p), ECE_BINS), ((p - truth) ** 2).mean(1)
    p = probabilities(SINGLE, scores)
    sure, hit = p.max(1), top_credit(scores, truth)
    pairs = problem_type == PAIRS
    bins, place = (PAIR_BINS, 2 * sure - 1) if pairs else (ECE_BINS, sure)
    misses = np.zeros((len(p), bins))
    misses[rows, np.minimum((place * bins).astype(int), bins - 1)] = hit - sure
    squared = (p**2).sum(1) - 2 * p[rows, truth] + 1
    return misses, squared / 2 if pairs else squared
