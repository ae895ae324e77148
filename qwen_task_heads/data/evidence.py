"""Votes and clicks -> how sure a preference is.

Design: a share of few votes is not a probability, so every count goes through a uniform Beta(1, 1) prior:
8 of 10 votes become 0.75, 0 clicks of 0 impressions become "do not know". Uniform rather than Jeffreys,
because whole-number Beta parameters give P(CTR 1 > CTR 2) as a finite sum, without scipy.
Nothing here decides what training does with a preference: a recipe may use it as a soft target, or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

EXACT_TERMS = 256  # above this many terms the normal approximation is within 5e-4 of the sum
EXACT_COUNT = 10**8  # above this count, the rounding of lgamma outweighs the error of the approximation


def preference_from_votes(chosen: int, rejected: int) -> float:
    """P(the next voter prefers the chosen title), from votes on both.

    The posterior mean under a uniform prior, (chosen + 1) / (chosen + rejected + 2); Laplace's rule of
    succession (Laplace 1814; Gelman et al., Bayesian Data Analysis, section 2.4). Skipped votes say nothing.

    Args:
        chosen: votes for the chosen title, not negative.
        rejected: votes for the rejected title, not negative.

    Returns:
        A probability, strictly between 0 and 1.

    Raises:
        TaskHeadsError: a count is negative.

    Example:
        >>> preference_from_votes(8, 2)
        0.75
    """
    if min(chosen, rejected) < 0:
        raise _bad_counts(f"{chosen} and {rejected} votes", "votes that are not negative")
    return (chosen + 1) / (chosen + rejected + 2)


def preference_from_clicks(
    chosen_clicks: int, chosen_impressions: int, rejected_clicks: int, rejected_impressions: int
) -> float:
    """P(CTR of the chosen title > CTR of the rejected one), both click rates unknown.

    Each rate has the posterior Beta(clicks + 1, impressions - clicks + 1). Up to `EXACT_TERMS` terms the
    probability is summed exactly (Miller 2015, "Formulas for Bayesian A/B Testing", equation for two
    binomials); beyond, the difference of the log-odds is taken as normal with its exact mean and variance
    (digamma, trigamma), which for counts that large differs by less than 5e-4.

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
    # The sum runs over one of the four counts; symmetry lets the smallest one serve.
    smallest = min(a1, a2, b1, b2)
    if a1 == smallest:
        result = _beats(a1, b1, a2, b2)
    elif b2 == smallest:
        result = _beats(b2, a2, b1, a1)  # no click of 2 is more likely than no click of 1
    elif a2 == smallest:
        result = 1 - _beats(a2, b2, a1, b1)
    else:
        result = 1 - _beats(b1, a1, b2, a2)
    return min(1.0, max(0.0, result))


def _beats(a1: int, b1: int, a2: int, b2: int) -> float:
    """P(X1 > X2) for X ~ Beta(a, b), as a sum of `a1` positive terms, each from the one before."""
    log_term = math.lgamma(b1 + b2) + math.lgamma(a2 + b2) - math.lgamma(a2 + b1 + b2) - math.lgamma(b2)
    total = 0.0
    for i in range(a1):
        total += math.exp(log_term)  # in logs, because the first terms may underflow
        log_term += math.log((a2 + i) / (a2 + i + b1 + b2)) + math.log((b1 + i) / (1 + i))
    return total


def _digamma(x: float) -> float:
    """Asymptotic series after shifting to x >= 8 (Abramowitz and Stegun 6.3.18); error below 1e-10."""
    shift = 0.0
    while x < 8:
        shift -= 1 / x
        x += 1
    y = 1 / (x * x)
    return shift + math.log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y / 252))


def _trigamma(x: float) -> float:
    """Asymptotic series after shifting to x >= 8 (Abramowitz and Stegun 6.4.12)."""
    shift = 0.0
    while x < 8:
        shift += 1 / (x * x)
        x += 1
    y = 1 / (x * x)
    return shift + 1 / x + y / 2 + y / x * (1 / 6 - y * (1 / 30 - y / 42))


def two_proportion_p_value(clicks_1: int, impressions_1: int, clicks_2: int, impressions_2: int) -> float:
    """Two-sided p value of the pooled two-proportion z test: could both titles have one click rate?

    Fleiss, Levin and Paik 2003, Statistical Methods for Rates and Proportions, section 3.1, without
    continuity correction. Without impressions, or with none or only clicks, nothing can be told: 1.0.

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


def groups_to_pairs(
    groups: Iterable[GroupExample],
    *,
    min_impressions: int = 0,
    max_p_value: float = 1.0,
    all_pairs: bool = True,
) -> list[PairExample]:
    """Turn groups of arms into pairs: of two titles in a test, the higher click rate is chosen.

    Args:
        groups: tests with clicks and impressions per title.
        min_impressions: both titles need at least so many impressions (and at least one).
        max_p_value: keep pairs whose two-proportion z test gives at most this; 1.0 keeps all.
        all_pairs: every pair of a test; False pairs only the best title with each other one.

    Returns:
        Pairs in the order of the groups, with `group` and with `preference` from the clicks; two titles
        of one click rate make no pair. Pairs of a group are not independent: bootstrap over groups.

    Raises:
        TaskHeadsError: an option is out of its range.

    Example:
        >>> group = GroupExample(titles=("A", "B"), clicks=(10, 90), impressions=(1000, 1000), group="t1")
        >>> [(pair.chosen, pair.rejected, pair.group) for pair in groups_to_pairs([group], max_p_value=0.05)]
        [('B', 'A', 't1')]
    """
    if min_impressions < 0 or not 0 <= max_p_value <= 1:
        found = f"min_impressions={min_impressions}, max_p_value={max_p_value}"
        raise TaskHeadsError(
            Problem(
                "groups_to_pairs",
                found,
                "accepted: min_impressions >= 0, max_p_value in [0, 1]",
                "correct the option",
            )
        )
    pairs = []
    for group in groups:
        arms = list(range(len(group.titles)))
        shown = [arm for arm in arms if group.impressions[arm] >= max(1, min_impressions)]
        # Best first; equal rates keep the order of the file.
        shown.sort(key=lambda arm: group.clicks[arm] / group.impressions[arm], reverse=True)
        for place, better in enumerate(shown if all_pairs else shown[:1]):
            for worse in shown[place + 1 :]:
                counts = (
                    group.clicks[better],
                    group.impressions[better],
                    group.clicks[worse],
                    group.impressions[worse],
                )
                if (
                    counts[0] * counts[3] == counts[2] * counts[1]
                    or two_proportion_p_value(*counts) > max_p_value
                ):
                    continue
                pairs.append(
                    PairExample(
                        chosen=group.titles[better],
                        rejected=group.titles[worse],
                        prompt=group.prompt,
                        preference=preference_from_clicks(*counts),
                        group=group.group,
                        source=" + ".join((group.sources[better], group.sources[worse]))
                        if group.sources
                        else "",
                    )
                )
    return pairs


def comparable_groups(
    groups: Iterable[GroupExample], *, min_impressions: int = 0
) -> tuple[list[GroupExample], list[str]]:
    """Groups as a loss over whole groups may see them: arms that were shown, with rates that differ.

    A title that nobody was shown has no click rate: zero would call it the worst of its test.

    Args:
        groups: tests with clicks and impressions per title.
        min_impressions: arms with fewer (and always those with none) are left out of their test.

    Returns:
        `(groups, lines)`: in their order, each with two titles or more and a difference in click rate; and
        what was left out, in plain words.

    Example:
        >>> group = GroupExample(titles=("A", "B", "C"), clicks=(1, 9, 0), impressions=(100, 100, 0))
        >>> (kept,), lines = comparable_groups([group])
        >>> kept.titles, lines
        (('A', 'B'), ['1 arm with fewer than 1 impression left out of the tests'])
    """
    least = max(1, min_impressions)
    kept, arms, tests = [], 0, 0
    for group in groups:
        shown = [arm for arm, impressions in enumerate(group.impressions) if impressions >= least]
        arms += len(group.titles) - len(shown)
        counts = [(group.clicks[arm], group.impressions[arm]) for arm in shown]
        # Cross products: rates as floats may differ where the fractions are equal.
        if all(clicks * counts[0][1] == counts[0][0] * impressions for clicks, impressions in counts):
            tests += 1
            continue
        kept.append(
            replace(
                group,
                titles=tuple(group.titles[arm] for arm in shown),
                clicks=tuple(clicks for clicks, _ in counts),
                impressions=tuple(impressions for _, impressions in counts),
                sources=tuple(group.sources[arm] for arm in shown) if group.sources else (),
            )
        )
    lines = []
    if arms:
        fewer = f"{least:,} impression{'' if least == 1 else 's'}"
        lines.append(f"{arms:,} arm{'' if arms == 1 else 's'} with fewer than {fewer} left out of the tests")
    if tests:
        lines.append(f"{tests:,} test{'' if tests == 1 else 's'} without a difference in click rate left out")
    return kept, lines


def _check_clicks(clicks: int, impressions: int) -> None:
    if not 0 <= clicks <= impressions:
        raise _bad_counts(f"{clicks} clicks of {impressions} impressions", "0 <= clicks <= impressions")


def _bad_counts(found: str, accepted: str) -> TaskHeadsError:
    return TaskHeadsError(
        Problem("counts", f"found {shorten(found)}", f"accepted: {accepted}", "correct the counts")
    )
