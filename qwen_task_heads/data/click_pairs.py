"""Pair the arms of experiments, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.click_rates import Counts, Floats, bad_counts, p_values, preferences_from_clicks
from qwen_task_heads.data.example_tables import GroupTable
from qwen_task_heads.data.examples import GroupExample
from qwen_task_heads.data.stores import Numbers

BLOCK = 2**15  # arms that are paired at a time: intermediate results take ten times the memory of the pairs
NO_PAIRS = (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0))


@dataclass(frozen=True)
class Arms:
    """Arms of many experiments; those of one experiment are consecutive.

    Args:
        experiments: number of the experiment of each arm, ascending.
        clicks: of each arm.
        impressions: of each arm.
    """

    experiments: Numbers
    clicks: Counts
    impressions: Counts

    def bounds(self, most: int) -> list[int]:
        """Return the bounds of blocks of about `most` arms that do not divide an experiment."""
        starts = np.searchsorted(self.experiments, self.experiments[most::most])  # first arms
        return np.unique([0, *starts.tolist(), len(self.experiments)]).tolist()

    def that_differ(self, shown: NDArray[np.bool_]) -> Numbers:
        """Return the experiments in which two of the arms selected by `shown` differ in click rate."""
        experiments, clicks, impressions = (
            column[shown] for column in (self.experiments, self.clicks, self.impressions)
        )
        first = np.searchsorted(experiments, experiments)  # the first arm of each experiment
        differ = exact_products(clicks, impressions[first]) != exact_products(clicks[first], impressions)
        return np.unique(experiments[differ])


def arms_of(groups: Sequence[GroupExample]) -> Arms:
    """Return the arms of a list or table of experiments."""
    if isinstance(groups, GroupTable):
        rows, experiments = groups.arms()
        return Arms(experiments, groups.clicks[rows], groups.impressions[rows])
    experiments = np.repeat(np.arange(len(groups)), [len(group.titles) for group in groups])
    clicks = [count for group in groups for count in group.clicks]
    impressions = [count for group in groups for count in group.impressions]
    return Arms(experiments, np.array(clicks, np.int64), np.array(impressions, np.int64))


def pair_arms(
    arms: Arms, *, least: int, max_p_value: float, all_pairs: bool
) -> tuple[Numbers, Numbers, Floats]:
    """Pair the arms of each experiment: the arm with the higher click rate comes first.

    Args:
        arms: n arms.
        least: minimum impressions of both arms.
        max_p_value: of the two-proportion z test.
        all_pairs: every pair of an experiment, or only the best arm with each other arm.

    Returns:
        `(better, worse, preferences)`: numbers of arms, and P(better > worse).

    Raises:
        TaskHeadsError: clicks that are negative or exceed the impressions.
    """
    blocks = [
        _pair(arms, start, end, least=least, max_p_value=max_p_value, all_pairs=all_pairs)
        for start, end in pairwise(arms.bounds(BLOCK))
    ]
    better, worse, preferences = (np.concatenate(columns) for columns in zip(NO_PAIRS, *blocks, strict=True))
    return better, worse, preferences


def _pair(
    arms: Arms, start: int, end: int, *, least: int, max_p_value: float, all_pairs: bool
) -> tuple[Numbers, Numbers, Floats]:
    """Return the pairs of consecutive arms, which are whole experiments."""
    clicks, impressions, numbers = (
        column[start:end] for column in (arms.clicks, arms.impressions, arms.experiments)
    )
    invalid = np.flatnonzero((clicks < 0) | (clicks > impressions))
    if len(invalid):
        counts_text = f"{clicks[invalid[0]]} clicks of {impressions[invalid[0]]} impressions"
        raise bad_counts(counts_text, "0 <= clicks <= impressions")
    shown = np.flatnonzero(impressions >= least)
    rates = clicks[shown] / impressions[shown]
    order = shown[np.lexsort((-rates, numbers[shown]))]  # best first; equal rates in the order of the file
    ordered = numbers[order]
    firsts, ends = np.searchsorted(ordered, ordered), np.searchsorted(ordered, ordered, side="right")
    places = np.arange(len(order))
    below = np.where(all_pairs | (places == firsts), ends - 1 - places, 0)
    one = np.repeat(places, below)
    two = one + 1 + np.arange(len(one)) - np.repeat(np.cumsum(below) - below, below)
    better, worse = order[one], order[two]
    counts = (clicks[better], impressions[better], clicks[worse], impressions[worse])
    kept = exact_products(counts[0], counts[3]) != exact_products(counts[2], counts[1])
    if max_p_value < 1:
        kept &= p_values(*counts) <= max_p_value
    preferences = preferences_from_clicks(*(column[kept] for column in counts))
    better, worse = ((side[kept] + start).astype(np.int32) for side in (better, worse))
    return better, worse, preferences


def exact_products(one: Counts, other: Counts) -> Any:
    """Return products of counts; counts above 3e9 need the integers of Python, which do not overflow."""
    largest = max(int(one.max(initial=0)), int(other.max(initial=0)))
    return one * other if largest < 3 * 10**9 else one.astype(object) * other.astype(object)
