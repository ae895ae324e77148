"""Compare the click rates of two titles: the probability that one is higher, and the significance.

Design:
- Priors are uniform instead of Jeffreys, because whole-number Beta parameters give P(CTR 1 > CTR 2) as a
  finite sum, without scipy.
- Each function has a version for columns, with bitwise equal results, because the fingerprint of the data
  must not depend on the number of rows read at a time. Sums use products and quotients of doubles, which all
  processors round equally. Logarithms and exponentials come from `math`, once per distinct count.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

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
    _check_clicks(chosen_clicks, chosen_impressions)
    _check_clicks(rejected_clicks, rejected_impressions)
    a1, b1 = chosen_clicks + 1, chosen_impressions - chosen_clicks + 1
    a2, b2 = rejected_clicks + 1, rejected_impressions - rejected_clicks + 1
    if min(a1, a2, b1, b2) > EXACT_TERMS or max(a1, a2, b1, b2) > EXACT_COUNT:
        mean = _digamma(a1) - _digamma(b1) - _digamma(a2) + _digamma(b2)
        variance = sum(_trigamma(value) for value in (a1, b1, a2, b2))
        return 0.5 * math.erfc(-mean / math.sqrt(2 * variance))
    # The sum runs over one of the four counts; by symmetry it can be the smallest.
    smallest = min(a1, a2, b1, b2)
    if a1 == smallest:
        result = _beats(a1, b1, a2, b2)
    elif b2 == smallest:
        result = _beats(b2, a2, b1, a1)  # P(1 - X2 > 1 - X1)
    elif a2 == smallest:
        result = 1 - _beats(a2, b2, a1, b1)
    else:
        result = 1 - _beats(b1, a1, b2, a2)
    return min(1.0, max(0.0, result))


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
    cases = [a1 == smallest, b2 == smallest, a2 == smallest]
    terms = (
        np.select(cases, columns[:3], columns[3])
        for columns in ((a1, b2, a2, b1), (b1, a2, b2, a1), (a2, b1, a1, b2), (b2, a1, b1, a2))
    )
    beats = _beat(*terms)
    result[exact] = np.clip(np.where(cases[0] | cases[1], beats, 1 - beats), 0.0, 1.0)
    return result


def _beats(a1: int, b1: int, a2: int, b2: int) -> float:
    """Return P(X1 > X2) for X ~ Beta(a, b), as a sum of `a1` positive terms by recurrence."""
    log_first = math.lgamma(b1 + b2) + math.lgamma(a2 + b2) - math.lgamma(a2 + b1 + b2) - math.lgamma(b2)
    term = total = 1.0  # in units of the first term, which may underflow
    for i in range(a1 - 1):
        term *= (a2 + i) / (a2 + i + b1 + b2) * ((b1 + i) / (1 + i))
        total += term
        if total > BIG:
            term, total, log_first = term / BIG, total / BIG, log_first + LOG_BIG
    return total * math.exp(log_first)


def _beat(a1: Counts, b1: Counts, a2: Counts, b2: Counts) -> Floats:
    """Return `_beats` of many pairs."""
    order = np.argsort(-a1, kind="stable")  # pairs with terms left come first
    a1, b1, a2, b2 = (column[order] for column in (a1, b1, a2, b2))
    log_first = _each(math.lgamma, b1 + b2) + _each(math.lgamma, a2 + b2)
    log_first = log_first - _each(math.lgamma, a2 + b1 + b2) - _each(math.lgamma, b2)
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


def two_proportion_p_value(clicks_1: int, impressions_1: int, clicks_2: int, impressions_2: int) -> float:
    """Return the two-sided p value of the pooled two-proportion z test for equal click rates.

    Fleiss, Levin and Paik 2003, Statistical Methods for Rates and Proportions, section 3.1, without
    continuity correction. The result is 1.0 without impressions, and if all or none of them were clicked.

    Raises:
        TaskHeadsError: clicks are negative or exceed the impressions.

    Example:
        >>> round(two_proportion_p_value(68, 2629, 39, 2551), 4)
        0.0075
    """
    _check_clicks(clicks_1, impressions_1)
    _check_clicks(clicks_2, impressions_2)
    pooled = (clicks_1 + clicks_2) / max(1, impressions_1 + impressions_2)
    if impressions_1 == 0 or impressions_2 == 0 or pooled in (0.0, 1.0):
        return 1.0
    error = math.sqrt(pooled * (1 - pooled) * (1 / impressions_1 + 1 / impressions_2))
    z = (clicks_1 / impressions_1 - clicks_2 / impressions_2) / error
    return math.erfc(abs(z) / math.sqrt(2))


def p_values(clicks_1: Counts, impressions_1: Counts, clicks_2: Counts, impressions_2: Counts) -> Floats:
    """Return `two_proportion_p_value` of many pairs, one per row."""
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


def _check_clicks(clicks: int, impressions: int) -> None:
    if not 0 <= clicks <= impressions:
        raise bad_counts(f"{clicks} clicks of {impressions} impressions", "0 <= clicks <= impressions")


def bad_counts(counts: str, expected: str) -> TaskHeadsError:
    """Return the error of impossible counts."""
    return TaskHeadsError(
        Problem("counts", f"found {shorten(counts)}", expected, "correct the counts", code="value-range")
    )
