"""Votes and clicks -> how sure a preference is, and arms of tests -> pairs.

Design: a share of few votes is not a probability, so every count goes through a uniform Beta(1, 1) prior:
8 of 10 votes become 0.75, 0 clicks of 0 impressions become "do not know".
Nothing here decides what training does with a preference: a recipe may use it as a soft target, or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.click_pairs import arms_of, pair_arms
from qwen_task_heads.data.click_rates import bad_counts, preference_from_clicks, two_proportion_p_value
from qwen_task_heads.data.example_tables import GroupTable
from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.data.sequences import pick
from qwen_task_heads.errors import Problem, TaskHeadsError

__all__ = [
    "comparable_groups",
    "groups_to_pairs",
    "preference_from_clicks",
    "preference_from_votes",
    "two_proportion_p_value",
]


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
        raise bad_counts(f"{chosen} and {rejected} votes", "votes that are not negative")
    return (chosen + 1) / (chosen + rejected + 2)


def groups_to_pairs(
    groups: Sequence[GroupExample],
    *,
    min_impressions: int = 0,
    max_p_value: float = 1.0,
    all_pairs: bool = True,
) -> Sequence[PairExample]:
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
                "min_impressions >= 0, max_p_value in [0, 1]",
                "correct the option",
            )
        )
    table = arms_of(groups)
    made = pair_arms(table, least=max(1, min_impressions), max_p_value=max_p_value, all_pairs=all_pairs)
    if isinstance(groups, GroupTable):
        return groups.pairs(*made)
    sources = [source for group in groups for source in group.sources or [""] * len(group.titles)]
    titles = [title for group in groups for title in group.titles]
    better, worse, preferences = (column.tolist() for column in made)
    return [
        PairExample(
            chosen=titles[one],
            rejected=titles[two],
            prompt=groups[test].prompt,
            preference=preference,
            group=groups[test].group,
            source=" + ".join(filter(None, (sources[one], sources[two]))),
        )
        for one, two, preference, test in zip(
            better, worse, preferences, table.tests[made[0]].tolist(), strict=True
        )
    ]


def comparable_groups(
    groups: Sequence[GroupExample], *, min_impressions: int = 0
) -> tuple[Sequence[GroupExample], list[str]]:
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
    table = arms_of(groups)
    shown = table.impressions >= least
    arms = int((~shown).sum())
    kept = table.that_differ(shown)
    tests = len(groups) - len(kept)
    chosen = _with_arms(pick(groups, kept), shown[np.isin(table.tests, kept)])
    lines = []
    if arms:
        fewer = f"{least:,} impression{'' if least == 1 else 's'}"
        lines.append(f"{arms:,} arm{'' if arms == 1 else 's'} with fewer than {fewer} left out of the tests")
    if tests:
        lines.append(f"{tests:,} test{'' if tests == 1 else 's'} without a difference in click rate left out")
    return chosen, lines


def _with_arms(groups: Sequence[GroupExample], shown: NDArray[np.bool_]) -> Sequence[GroupExample]:
    """The same tests with some of their arms, all of them in one mask."""
    if isinstance(groups, GroupTable):
        return groups.with_arms(shown)
    flags, made = iter(shown.tolist()), []
    for group in groups:
        arms = [arm for arm in range(len(group.titles)) if next(flags)]
        made.append(
            replace(
                group,
                titles=tuple(group.titles[arm] for arm in arms),
                clicks=tuple(group.clicks[arm] for arm in arms),
                impressions=tuple(group.impressions[arm] for arm in arms),
                sources=tuple(group.sources[arm] for arm in arms) if group.sources else (),
            )
        )
    return made
