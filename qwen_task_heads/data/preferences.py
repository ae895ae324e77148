"""Estimate probabilities of preferences from votes and clicks, and turn arms of experiments into pairs.

Design: a share of few votes is not a probability, so every count gets a uniform Beta(1, 1) prior: 8 of 10
votes become 0.75, and a title without impressions has a uniformly distributed click rate. The recipe decides
whether training uses a preference as a soft target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.click_pairs import arms_of, pair_arms
from qwen_task_heads.data.click_rates import bad_counts
from qwen_task_heads.data.example_tables import GroupTable
from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.data.sequences import pick
from qwen_task_heads.errors import error_at


def preference_from_votes(chosen: int, rejected: int) -> float:
    """Return P(the next voter prefers the chosen title), from votes on both.

    This is the posterior mean under a uniform prior, (chosen + 1) / (chosen + rejected + 2), Laplace's rule
    of succession (Laplace 1814; Gelman et al., Bayesian Data Analysis, section 2.4). Skipped votes do not
    count.

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
    """Turn groups of arms into pairs; the title with the higher click rate is the chosen one.

    Args:
        groups: experiments with clicks and impressions per title.
        min_impressions: minimum impressions of both titles (at least one is always required).
        max_p_value: maximum p value of the two-proportion z test of a pair; 1.0 keeps all pairs.
        all_pairs: every pair of an experiment; False pairs only the best title with each other title.

    Returns:
        Pairs in the order of the groups, with `group` and with `preference` from the clicks. Two titles with
        equal click rates are not paired. Pairs of a group are not independent: bootstrap over groups.

    Raises:
        TaskHeadsError: an option is out of its range.

    Example:
        >>> group = GroupExample(titles=("A", "B"), clicks=(10, 90), impressions=(1000, 1000), group="t1")
        >>> [(pair.chosen, pair.rejected, pair.group) for pair in groups_to_pairs([group], max_p_value=0.05)]
        [('B', 'A', 't1')]
    """
    if min_impressions < 0 or not 0 <= max_p_value <= 1:
        problem = f"found min_impressions={min_impressions}, max_p_value={max_p_value}"
        expected = "min_impressions >= 0 and max_p_value in [0, 1]"
        raise error_at("groups_to_pairs", problem, expected, "correct the option", code="option-range")
    arms = arms_of(groups)
    pairs = pair_arms(arms, least=max(1, min_impressions), max_p_value=max_p_value, all_pairs=all_pairs)
    if isinstance(groups, GroupTable):
        return groups.pairs(*pairs)
    sources = [source for group in groups for source in group.sources or [""] * len(group.titles)]
    titles = [title for group in groups for title in group.titles]
    better, worse, preferences = (column.tolist() for column in pairs)
    return [
        PairExample(
            chosen=titles[one],
            rejected=titles[two],
            prompt=groups[experiment].prompt,
            preference=preference,
            group=groups[experiment].group,
            source=" + ".join(filter(None, (sources[one], sources[two]))),
        )
        for one, two, preference, experiment in zip(
            better, worse, preferences, arms.experiments[pairs[0]].tolist(), strict=True
        )
    ]


def comparable_groups(
    groups: Sequence[GroupExample], *, min_impressions: int = 0
) -> tuple[Sequence[GroupExample], list[str]]:
    """Keep the arms with impressions, and the groups in which their click rates differ, for group losses.

    A title without impressions has no click rate. A rate of zero would rank it last in its experiment.

    Args:
        groups: experiments with clicks and impressions per title.
        min_impressions: arms with fewer impressions, and arms without any, are left out.

    Returns:
        `(groups, messages)`: groups in their order, each with two titles or more and a difference in click
        rate; and messages on the arms and groups that were left out.

    Example:
        >>> group = GroupExample(titles=("A", "B", "C"), clicks=(1, 9, 0), impressions=(100, 100, 0))
        >>> (kept,), messages = comparable_groups([group])
        >>> kept.titles, messages
        (('A', 'B'), ['1 arm with fewer than 1 impression left out of the experiments'])
    """
    least = max(1, min_impressions)
    arms = arms_of(groups)
    shown = arms.impressions >= least
    kept = arms.that_differ(shown)
    result = _with_arms(pick(groups, kept), shown[np.isin(arms.experiments, kept)])
    messages = []
    if count := int((~shown).sum()):
        fewer = f"{least:,} impression{'' if least == 1 else 's'}"
        arms_text = f"{count:,} arm{'' if count == 1 else 's'}"
        messages.append(f"{arms_text} with fewer than {fewer} left out of the experiments")
    if count := len(groups) - len(kept):
        experiments = f"{count:,} experiment{'' if count == 1 else 's'}"
        messages.append(f"{experiments} without a difference in click rate left out")
    return result, messages


def _with_arms(groups: Sequence[GroupExample], shown: NDArray[np.bool_]) -> Sequence[GroupExample]:
    """Return the same experiments with some of their arms; `shown` has one flag per arm of all groups."""
    if isinstance(groups, GroupTable):
        return groups.with_arms(shown)
    flags, result = iter(shown.tolist()), []
    for group in groups:
        arms = [arm for arm in range(len(group.titles)) if next(flags)]
        result.append(
            replace(
                group,
                titles=tuple(group.titles[arm] for arm in arms),
                clicks=tuple(group.clicks[arm] for arm in arms),
                impressions=tuple(group.impressions[arm] for arm in arms),
                sources=tuple(group.sources[arm] for arm in arms) if group.sources else (),
            )
        )
    return result
