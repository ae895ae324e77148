"""Compare the click rates of two titles: the probability that one is higher, and the significance.

Design:
- Priors are uniform instead of Jeffreys, because whole-number Beta parameters give P(CTR 1 > CTR 2) as a
  finite sum, without scipy.
- Functions take columns of many pairs. The results do not depend on the number of rows read at a time,
  because the fingerprint of the data must not. Sums use products and quotients of doubles, which all
  processors round equally. Logarithms and exponentials come from `math`, once per distinct count.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.errors import TaskHeadsError, error_at, shorten

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
EXACT_TERMS = 256  # above this many terms the normal approximation is within 5e-4 of the sum
BIG = 2.0**500  # larger sums are scaled down, which is exact
LOG_BIG = 500 * math.log(2)
EXACT_COUNT = 10**8  # above this count, the rounding of lgamma outweighs the error of the approximation


def preference_from_clicks(
    chosen_clicks: int, chosen_impressions: int, rejected_clicks: int, rejected_impressions: int
) -> float:
    """Return P(CTR of the chosen title > CTR of the rejected title), with both click rates unknown.

    Each rate has the posterior Beta(clicks + 1, impressions - clicks + 1). Up to `EXACT_TERMS` terms, the
    probability is summed exactly (Miller 2015, "Formulas for Bayesian A/B Testing", equation for two
    binomials). With more terms, the difference of the log-odds is approximated as normal with its exact mean
    and variance (digamma, trigamma), which for counts that large differs by less than 5e-4.

    Args:
        chosen_clicks: 0 <= clicks <= impressions.
        chosen_impressions: impressions of the chosen title.
        rejected_clicks: 0 <= clicks <= impressions.
        rejected_impressions: impressions of the rejected title.

    Returns:
        A probability in [0, 1].

    Raises:
        TaskHeadsError: clicks are negative or exceed the impressions.

    Example:
        >>> round(preference_from_clicks(68, 2629, 39, 2551), 3)
        0.996
    """
    counts = (chosen_clicks, chosen_impressions, rejected_clicks, rejected_impressions)
    for clicks, impressions in (counts[:2], counts[2:]):
        if not 0 <= clicks <= impressions < 2**62:  # the columns are int64
            raise bad_counts(f"{clicks} clicks of {impressions} impressions", "0 <= clicks <= impressions")
    return float(preferences_from_clicks(*(np.array([count]) for count in counts))[0])


def preferences_from_clicks(
    chosen_clicks: Counts, chosen_impressions: Counts, rejected_clicks: Counts, rejected_impressions: Counts
) -> Floats:
    """Return `preference_from_clicks` of many pairs, one per row; the caller has checked the counts."""
    a1, b1 = chosen_clicks + 1, chosen_impressions - chosen_clicks + 1
    a2, b2 = rejected_clicks + 1, rejected_impressions - rejected_clicks + 1
    counts = np.stack([a1, a2, b1, b2])
    smallest, largest = counts.min(0), counts.max(0)
    result = np.empty(len(a1))
    normal = (smallest > EXACT_TERMS) | (largest > EXACT_COUNT)
    large = [column[normal] for column in (a1, b1, a2, b2)]  # summed in the same order as for one pair
    mean = _each(_digamma, large[0]) - _each(_digamma, large[1])
    mean = mean - _each(_digamma, large[2]) + _each(_digamma, large[3])
    variance = sum((_each(_trigamma, column) for column in large), np.zeros(len(mean)))
    result[normal] = 0.5 * _every(math.erfc, -mean / np.sqrt(2 * variance))
    exact = ~normal
    a1, b1, a2, b2, smallest = (column[exact] for column in (a1, b1, a2, b2, smallest))
    # The sum runs over one of the four counts; by symmetry it can be the smallest.
    cases = [a1 == smallest, b2 == smallest, a2 == smallest]
    terms = (
        np.select(cases, columns[:3], columns[3])
        for columns in ((a1, b2, a2, b1), (b1, a2, b2, a1), (a2, b1, a1, b2), (b2, a1, b1, a2))
    )
    beats = _beats(*terms)
    result[exact] = np.clip(np.where(cases[0] | cases[1], beats, 1 - beats), 0.0, 1.0)
    return result


def _beats(a1: Counts, b1: Counts, a2: Counts, b2: Counts) -> Floats:
    """Return P(X1 > X2) for X ~ Beta(a, b) of many pairs, each a sum of `a1` positive terms by recurrence."""
    order = np.argsort(-a1, kind="stable")  # pairs with terms left come first
    a1, b1, a2, b2 = (column[order] for column in (a1, b1, a2, b2))
    log_first = _each(math.lgamma, b1 + b2) + _each(math.lgamma, a2 + b2)
    log_first = log_first - _each(math.lgamma, a2 + b1 + b2) - _each(math.lgamma, b2)
    # In units of the first term, which may underflow.
    term, total = np.ones(len(a1)), np.ones(len(a1))
    up, own, below = a2.astype(float), b1.astype(float), (a2 + b1 + b2).astype(float)
    for i in range(int(a1.max(initial=1)) - 1):
        more = slice(0, int(np.searchsorted(-a1, -i - 1)))  # a1 > i + 1
        term[more] *= (up[more] + i) / (below[more] + i) * ((own[more] + i) / (1 + i))
        total[more] += term[more]
        if (total[more] > BIG).any():
            large = np.flatnonzero(total[more] > BIG)
            term[large], total[large] = term[large] / BIG, total[large] / BIG
            log_first[large] += LOG_BIG
    result = np.empty(len(a1))
    result[order] = total * _every(math.exp, log_first)
    return result


def _each(function: Callable[[int], float], counts: Counts) -> Floats:
    """Apply a function to whole numbers, once for each distinct number."""
    different, places = np.unique(counts, return_inverse=True)
    return _every(function, different)[places]


def _every(function: Callable[..., float], values: NDArray[np.generic]) -> Floats:
    return np.array([function(value) for value in values.tolist()], float)


def _digamma(x: float) -> float:
    """Return the asymptotic series, shifted to x >= 8 (Abramowitz and Stegun 6.3.18); error below 1e-10."""
    shift = 0.0
    while x < 8:
        shift -= 1 / x
        x += 1
    y = 1 / (x * x)
    return shift + math.log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y / 252))


def _trigamma(x: float) -> float:
    """Return the asymptotic series, shifted to x >= 8 (Abramowitz and Stegun 6.4.12)."""
    shift = 0.0
    while x < 8:
        shift += 1 / (x * x)
        x += 1
    y = 1 / (x * x)
    return shift + 1 / x + y / 2 + y / x * (1 / 6 - y * (1 / 30 - y / 42))


def p_values(clicks_1: Counts, impressions_1: Counts, clicks_2: Counts, impressions_2: Counts) -> Floats:
    """Return the two-sided p value of the pooled two-proportion z test for equal click rates, one per row.

    Fleiss, Levin and Paik 2003, Statistical Methods for Rates and Proportions, section 3.1, without
    continuity correction. A value is 1.0 without impressions, and if all or none of them were clicked.

    Example:
        >>> columns = (np.array([count]) for count in (68, 2629, 39, 2551))
        >>> p_values(*columns).round(4).tolist()
        [0.0075]
    """
    pooled = (clicks_1 + clicks_2) / np.maximum(1, impressions_1 + impressions_2)
    testable = (impressions_1 > 0) & (impressions_2 > 0) & (pooled > 0) & (pooled < 1)
    result = np.ones(len(pooled))
    counts = (clicks_1, impressions_1, clicks_2, impressions_2)
    clicks_1, impressions_1, clicks_2, impressions_2 = (column[testable] for column in counts)
    pooled = pooled[testable]
    error = np.sqrt(pooled * (1 - pooled) * (1 / impressions_1 + 1 / impressions_2))
    z = (clicks_1 / impressions_1 - clicks_2 / impressions_2) / error
    result[testable] = _every(math.erfc, np.abs(z) / math.sqrt(2))
    return result


def bad_counts(counts: str, expected: str) -> TaskHeadsError:
    """Return the error of impossible counts."""
    return error_at("counts", f"found {shorten(counts)}", expected, "correct the counts", code="value-range")
