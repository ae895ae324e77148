"""Metrics of title scores, each with its interval and its numbers of rows and groups.

Design decisions:

- Inputs are whole arrays, gathered over processes: a mean of batch means is a different metric.
- Intervals resample whole groups (experiments, prompts), because pairs of one experiment share titles and are
  not independent. They are percentile intervals of a seeded bootstrap of the ratio of sums.
- P(preferred) is `σ(c - r)`. A score that is not finite is an error: comparisons would count it as a loss.
- Scores that differ by less than the rounding of fp32 are a tie, which counts half: see `ties`.
- Only numpy is used, so that metrics can be recomputed from `predictions.jsonl` without torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qwen_task_heads.errors import error_at
from qwen_task_heads.metrics.ties import gap_signs, merge_ties, tie_bound

Floats = NDArray[np.float64]
Z_95 = 1.959964  # two-sided 95% of the normal distribution
CHUNK = 4_000_000  # group draws that the bootstrap keeps in memory at once: 32 MB


@dataclass(frozen=True)
class Metric:
    """One metric of `metrics.json`.

    Args:
        value: the metric; None if the data do not define it (a correlation of constants).
        low, high: bootstrap interval over groups; None if it is not computed or there are fewer than 2
            groups.
        n: rows that the metric is computed from.
        n_groups: groups of these rows, the number of independent units.
        ties: rows with equal scores, each counted half; only for accuracies.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_groups: int
    ties: int | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Return a dict for JSON; `ties` is included only if it is set."""
        return {key: item for key, item in asdict(self).items() if key != "ties" or item is not None}


def pair_credit(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    """Return 1 if chosen scores higher, 0 if lower, .5 if equal up to rounding (`ties.TIE`), (B,) float64.

    Raises:
        TaskHeadsError: shapes differ, no rows, or scores that are not finite.

    Example:
        >>> from qwen_task_heads.metrics.ranking import pair_credit
        >>> pair_credit([2.0, 1.0, 1.0], [1.0, 1.0 + 1e-9, 3.0]).tolist()
        [1.0, 0.5, 0.0]
    """
    return 0.5 + 0.5 * gap_signs(_gap(chosen, rejected), bound=tie_bound(chosen, rejected))


def pair_accuracy(
    chosen: ArrayLike, rejected: ArrayLike, *, groups: Sequence[str] | None = None, **bootstrap: Any
) -> Metric:
    """Compute the share of pairs in which chosen scores higher; ties count half and are reported.

    Args:
        chosen, rejected: scores (B,).
        groups: key of each row's group (B,); None makes every row its own group.
        bootstrap: `level`, `resamples`, `seed` of `bootstrap_interval`.

    Raises:
        TaskHeadsError: shapes differ, no rows, or scores that are not finite.

    Example:
        >>> from qwen_task_heads.metrics.ranking import pair_accuracy
        >>> pair_accuracy([2.0, 1.0, 0.5, 3.0], [1.0, 1.0, 0.0, 4.0]).value
        0.625
    """
    credit = pair_credit(chosen, rejected)
    return mean_metric(credit, groups=groups, ties=int((credit == 0.5).sum()), **bootstrap)


def mean_metric(
    values: ArrayLike, *, groups: Sequence[str] | None = None, ties: int | None = None, **bootstrap: Any
) -> Metric:
    """Compute the mean of `values` (B,) as a `Metric`, with the bootstrap interval over groups.

    Raises:
        TaskHeadsError: no values, values that are not finite, or another number of groups.
    """
    array, keys = _values_and_groups(values, groups)
    low, high = bootstrap_interval(array, keys, **bootstrap)
    return Metric(float(array.mean()), low, high, len(array), len(np.unique(keys)), ties)


def bootstrap_interval(
    values: ArrayLike,
    groups: Sequence[str] | NDArray[Any] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float | None, float | None]:
    """Compute the percentile bootstrap interval of the mean of `values` (B,), drawing whole groups.

    With few groups the interval is too narrow, as for every bootstrap. If all values are 0, or all are 1, all
    draws are equal, and the interval is Wilson's, with the groups as trials.
    Source: Efron 1979; groups as units: Field & Welsh 2007 (cluster bootstrap).

    Returns:
        low and high, or None and None with fewer than 2 groups.

    Raises:
        TaskHeadsError: no values, values that are not finite, another number of groups, or a level or number
            of resamples out of range.
    """
    if not 0 < level < 1 or resamples < 1:
        problem = f"found level {level!r} and {resamples!r} resamples"
        expected = "0 < level < 1 and resamples ≥ 1"
        raise error_at("bootstrap", problem, expected, "use .95 and 2000", code="option-range")
    array, keys = _values_and_groups(values, groups)
    _, member = np.unique(keys, return_inverse=True)
    sums, counts = np.bincount(member, weights=array), np.bincount(member).astype(np.float64)  # (G,)
    if len(sums) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // len(sums))
    means = []
    for start in range(0, resamples, step):
        draw = rng.integers(len(sums), size=(min(step, resamples - start), len(sums)))  # (R, G)
        means.append(sums[draw].sum(axis=1) / counts[draw].sum(axis=1))
    if array.min() == array.max() and array[0] in (0.0, 1.0):
        return wilson_interval(float(array[0]), count=len(sums))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    value = array.mean()  # by rounding it may lie outside of the quantiles
    return float(min(low, value)), float(max(high, value))


def wilson_interval(share: float, *, count: int) -> tuple[float, float]:
    """Compute the 95% interval of a share observed in `count` independent trials; (0, 1) without trials.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.

    Example:
        >>> from qwen_task_heads.metrics.ranking import wilson_interval
        >>> [round(end, 3) for end in wilson_interval(0.25, count=40)]
        [0.142, 0.402]
    """
    if count < 1:
        return 0.0, 1.0
    square = Z_95**2 / count
    centre = (share + square / 2) / (1 + square)
    half = (Z_95 / (1 + square)) * (share * (1 - share) / count + square / (4 * count)) ** 0.5
    # At 0 and 1 one end equals the share, which rounding may leave outside.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def log_loss(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    """Compute `-log σ(c - r)` per pair, (B,) float64; equal scores give 0.6931."""
    return np.logaddexp(0.0, -_gap(chosen, rejected))


def brier(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    """Compute `(1 - σ(c - r))²` per pair, (B,) float64; equal scores give .25."""
    return (1.0 - sigmoid(_gap(chosen, rejected))) ** 2


def expected_calibration_error(chosen: ArrayLike, rejected: ArrayLike, *, bins: int = 10) -> float:
    """Compute the mean distance between confidence `σ(|c - r|)` and accuracy, over equal bins from .5 to 1.

    In every pair the chosen title comes first, so that P(chosen) cannot be compared with a frequency. The
    confidence in the title that the scorer predicts can. The value is biased upwards on few pairs.
    Source: Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599.
    """
    gap = _gap(chosen, rejected)
    confidence, credit = sigmoid(np.abs(gap)), pair_credit(chosen, rejected)
    bin_numbers = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    differences = np.bincount(bin_numbers, weights=credit - confidence, minlength=bins)  # (bins,)
    return float(np.abs(differences).sum() / len(gap))


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Compute Spearman's rank correlation of two arrays (B,), with mean ranks; None if one is constant."""
    ranks_x, ranks_y = _ranks(merge_ties(x)), _ranks(merge_ties(y))
    a, b = ranks_x - ranks_x.mean(), ranks_y - ranks_y.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else None


def length_bias(
    chosen: ArrayLike, rejected: ArrayLike, chosen_lengths: ArrayLike, rejected_lengths: ArrayLike
) -> dict[str, float | None]:
    """Compute how often the scorer and the data prefer the longer title.

    Args:
        chosen, rejected: scores (B,).
        chosen_lengths, rejected_lengths: lengths (B,), in characters.

    Returns:
        `spearman` of score gap and length gap, over each pair in both orders (so that it does not depend on
        which title was chosen); `scorer_prefers_longer` and `data_prefer_longer`, shares of the pairs of
        unequal length. None if undefined.
    """
    gap = _gap(chosen, rejected)
    sign = gap_signs(gap, bound=tie_bound(chosen, rejected))
    gap = np.where(sign == 0, 0.0, gap)
    longer = _gap(chosen_lengths, rejected_lengths)
    unequal = longer != 0
    agrees, wins = 0.5 + 0.5 * (sign * np.sign(longer))[unequal], (longer > 0)[unequal]
    return {
        "spearman": spearman(np.concatenate([gap, -gap]), np.concatenate([longer, -longer])),
        "scorer_prefers_longer": float(agrees.mean()) if unequal.any() else None,
        "data_prefer_longer": float(wins.mean()) if unequal.any() else None,
    }


def ranking_metrics(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    chosen_lengths: ArrayLike | None = None,
    rejected_lengths: ArrayLike | None = None,
    **bootstrap: Any,
) -> dict[str, dict[str, float | int | None]]:
    """Compute all metrics of a scorer on pairs: name to `{value, low, high, n, n_groups}`.

    The metrics are `pair_accuracy` (with `ties`), `log_loss`, `brier`, `ece` and `score_gap` (mean of c - r).
    With lengths, also `length_spearman`, `scorer_prefers_longer` and `data_prefer_longer`. The length metrics
    and `ece` have no interval.

    Raises:
        TaskHeadsError: shapes differ, no rows, or scores that are not finite.

    Example:
        >>> from qwen_task_heads.metrics.ranking import ranking_metrics
        >>> ranking_metrics([2.0, 1.0], [1.0, 3.0], groups=["a", "b"])["pair_accuracy"]
        {'value': 0.5, 'low': 0.0, 'high': 1.0, 'n': 2, 'n_groups': 2, 'ties': 0}
    """
    gap = _gap(chosen, rejected)
    accuracy = pair_accuracy(chosen, rejected, groups=groups, **bootstrap)
    metrics = {
        "pair_accuracy": accuracy,
        "log_loss": mean_metric(log_loss(chosen, rejected), groups=groups, **bootstrap),
        "brier": mean_metric(brier(chosen, rejected), groups=groups, **bootstrap),
        "score_gap": mean_metric(gap, groups=groups, **bootstrap),
    }
    plain: dict[str, float | None] = {"ece": expected_calibration_error(chosen, rejected)}
    if chosen_lengths is not None and rejected_lengths is not None:
        bias = length_bias(chosen, rejected, chosen_lengths, rejected_lengths)
        plain["length_spearman"] = bias.pop("spearman")
        plain.update(bias)
    for name, value in plain.items():
        metrics[name] = Metric(value, None, None, accuracy.n, accuracy.n_groups)
    return {name: metric.as_dict() for name, metric in metrics.items()}


def group_metrics(
    scores: ArrayLike, gains: ArrayLike, groups: Sequence[str], **bootstrap: Any
) -> dict[str, dict[str, float | int | None]]:
    """Compute metrics of a scorer on whole groups of titles, one value per group of at least 2 titles.

    Args:
        scores: (N,) scores.
        gains: (N,) values that define the true ranking, 0 or more: CTR, votes.
        groups: (N,) key of each title's group.
        bootstrap: `level`, `resamples`, `seed` of `bootstrap_interval`.

    Returns:
        `best_pick`: share of groups whose top title by score has the highest gain; `ndcg_at_1`: gain of that
        title over the highest gain (groups without any gain are excluded); `kendall_tau`: tau-b, over groups
        in which neither side is constant. Titles tied at the top share the prediction (see `ties`).
        Source: Järvelin & Kekäläinen 2002 (NDCG), Kendall 1945 (tau-b).

    Raises:
        TaskHeadsError: shapes differ, values that are not finite, negative gains, no group of 2 titles.
    """
    s, keys = _values_and_groups(scores, groups)
    g, _ = _values_and_groups(gains, groups)
    if (g < 0).any():
        raise error_at(
            "gains", f"found a minimum of {g.min():.6g}", "0 or more", "pass CTR or votes", code="value-range"
        )
    bound = tie_bound(s)
    best: list[float] = []
    ndcg: list[float] = []
    tau: list[float] = []
    _, member = np.unique(keys, return_inverse=True)
    for rows in np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1]):
        if len(rows) < 2:
            continue
        score, gain = s[rows], g[rows]
        top = score >= score.max() - bound
        best.append(float((gain[top] == gain.max()).mean()))
        if gain.max() > 0:
            ndcg.append(float(gain[top].mean() / gain.max()))
        a = gap_signs(score[:, None] - score[None, :], bound=bound)  # (k, k)
        b = np.sign(gain[:, None] - gain[None, :])
        scale = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
        if scale > 0:
            tau.append(float((a * b).sum()) / scale)
    if not best:
        raise error_at(
            "groups",
            "found no group of 2 titles",
            "2 or more titles per group",
            "check the keys",
            code="rows-too-few",
        )
    by_name = {"best_pick": best, "ndcg_at_1": ndcg, "kendall_tau": tau}
    empty = Metric(None, None, None, 0, 0)
    return {
        name: (mean_metric(values, **bootstrap) if values else empty).as_dict()
        for name, values in by_name.items()
    }


def _gap(left: ArrayLike, right: ArrayLike) -> Floats:
    """Check two arrays; return `left - right` (B,) float64."""
    a, b = np.asarray(left, np.float64), np.asarray(right, np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        problem = f"found shapes {a.shape} and {b.shape}"
        raise error_at(
            "pair metrics", problem, "two arrays (B,), B ≥ 1", "check the split", code="argument-type"
        )
    check_finite(a, "pair metrics, left side")
    check_finite(b, "pair metrics, right side")
    return a - b


def check_finite(values: Floats, where: str) -> None:
    """Validate that values (B,) are finite; the error names the first row that is not.

    Raises:
        TaskHeadsError: a value is NaN or infinite.
    """
    invalid = np.flatnonzero(~np.isfinite(values))
    if len(invalid):
        raise error_at(
            where,
            f"found {len(invalid)} values that are not finite, the first in row {invalid[0]}",
            "finite numbers",
            "check that row and the training loss",
            code="number-not-finite",
        )


def _values_and_groups(values: ArrayLike, groups: Any) -> tuple[Floats, NDArray[Any]]:
    """Check and return values (B,) float64 and one group key per row."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        problem = f"found values of shape {array.shape}"
        raise error_at("metrics", problem, "shape (B,), B ≥ 1", "check the split", code="argument-type")
    check_finite(array, "metrics")
    keys = np.arange(len(array)) if groups is None else np.asarray(groups)
    if keys.shape != array.shape:
        raise error_at(
            "metrics",
            f"found {len(array)} values and groups of shape {keys.shape}",
            "one group key per value",
            "pass the group of every row",
            code="argument-type",
        )
    return array, keys


def _ranks(values: Floats) -> Floats:
    """Return ranks from 0, with the mean rank for equal values."""
    _, member, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[member]


def sigmoid(x: Floats) -> Floats:
    """Compute `1 / (1 + exp(-x))` without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))
