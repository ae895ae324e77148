"""Preferences before pairing: columns of pairs, and columns of the arms of experiments."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import nan

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.example_tables import GroupTable, PairTable
from qwen_task_heads.data.scanning import RawRows
from qwen_task_heads.data.sequences import index_kind
from qwen_task_heads.data.stores import Numbers, Rows
from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.sources.keys import Hashes, combine, repeated


class PairRows(Rows):
    """Pairs, in reading order."""

    def __init__(self) -> None:
        numbers = {"margin": nan, "preference": nan, "weight": 1.0}
        super().__init__(("chosen", "rejected", "prompt", "group"), numbers)

    def table(self) -> PairTable:
        """Return the pairs."""
        rows = np.arange(len(self))
        return PairTable(
            **self.texts,
            chosen_rows=rows,
            rejected_rows=rows,
            margins=self.values("margin"),
            preferences=self.values("preference"),
            weights=self.values("weight"),
            places=self.places,
        )


class ArmRows(Rows):
    """Arms of experiments, in reading order."""

    def __init__(self) -> None:
        numbers = {"clicks": 0, "impressions": 0}
        super().__init__(("title", "prompt", "group"), numbers, keys={"title": "chosen"})

    def experiments(self) -> Experiments:
        """Group the arms by experiment and pool those with equal titles."""
        clicks, impressions = self.values("clicks").copy(), self.values("impressions").copy()
        groups = self.texts["group"].hashes()
        order = _by_first(groups)
        order, conflicts = self._check_prompts(order, groups)
        order, pooled = self._pool(order, groups, clicks, impressions)
        ids = groups[order]
        starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])[: len(ids)])
        ends = np.append(starts[1:], len(order))[: len(starts)]
        alone = ends - starts < 2
        lone = {int(row) for row in order[starts[alone]]}
        table = GroupTable(
            **self.texts,
            clicks=clicks,
            impressions=impressions,
            places=self.places,
            order=order,
            starts=starts[~alone],
            ends=ends[~alone],
        )
        with_lone = [row for row, first in pooled if first in lone]
        return Experiments(
            table,
            conflicts=conflicts,
            pooled=[self.places[row] for row, first in sorted(pooled) if first not in lone],
            lone=[self.places[row] for row in sorted([*lone, *with_lone])],
        )

    def _check_prompts(self, order: Numbers, groups: Hashes) -> tuple[Numbers, list[Problem]]:
        """Keep the arms that have the prompt of the first arm of their experiment; refuse the others."""
        prompts = self.texts["prompt"]
        if prompts.are_empty:
            return order, []
        problems: list[Problem] = []
        kept = np.ones(len(order), bool)
        first, group, prompt = 0, None, ""
        for place, (row, own) in enumerate(zip(order.tolist(), prompts.take(order), strict=True)):
            if group != groups[row]:
                first, group, prompt = row, groups[row], own
            elif own != prompt:
                kept[place] = False
                key = shorten(self.texts["group"][row])
                problem = f"experiment {key} has another prompt at {self.places[first]}"
                expected, fix = "one prompt per experiment", "give the experiments different keys"
                problems.append(Problem(self.places[row], problem, expected, fix, code="rows-conflict"))
        return order[kept], problems

    def _pool(
        self, order: Numbers, groups: Hashes, clicks: NDArray[np.int64], impressions: NDArray[np.int64]
    ) -> tuple[Numbers, list[tuple[int, int]]]:
        """Add the counts of arms that repeat a headline of their experiment to those of the first one.

        Returns:
            The remaining arms, and `(row, row of the first)` of each other arm.
        """
        equal = order[repeated(combine(groups[order], self.texts["title"].hashes()[order]))]
        first: dict[tuple[int, str], int] = {}
        pooled: list[tuple[int, int]] = []
        keys = zip(equal.tolist(), groups[equal].tolist(), self.texts["title"].take(equal), strict=True)
        for row, group, title in keys:
            kept = first.setdefault((group, " ".join(title.split())), row)
            if kept != row:
                clicks[kept] += clicks[row]
                impressions[kept] += impressions[row]
                pooled.append((row, kept))
        return order[~np.isin(order, [row for row, _ in pooled])], pooled


@dataclass(frozen=True)
class Experiments:
    """Experiments of at least two arms, and the places of the other arms.

    Args:
        table: the experiments, in the order of their first arms.
        conflicts: a problem of each arm with another prompt than its experiment.
        pooled: places of the arms that repeat a headline of their experiment.
        lone: places of the arms of experiments with one headline.
    """

    table: GroupTable
    conflicts: list[Problem] = field(default_factory=list)
    pooled: list[str] = field(default_factory=list)
    lone: list[str] = field(default_factory=list)


def _by_first(groups: Hashes) -> Numbers:
    """Sort rows by group; groups, and rows within a group, keep the order of their first rows."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(first[number], kind="stable").astype(index_kind(len(groups)))


@dataclass(kw_only=True)
class RawPairs(RawRows):
    """All pairs and arms of a source.

    Args:
        pairs: pairs of rows that are not arms.
        arms: arms of experiments.
        swapped: places of the rows whose preference signals prefer the rejected title.
        with_signals: number of rows with preference signals.
        conversations: places of the rows whose prompt was made of messages.
        several: number of pairs beyond the first of their row.
    """

    pairs: PairRows = field(default_factory=PairRows)
    arms: ArmRows = field(default_factory=ArmRows)
    swapped: list[str] = field(default_factory=list)
    with_signals: int = 0
    conversations: list[str] = field(default_factory=list)
    several: int = 0
