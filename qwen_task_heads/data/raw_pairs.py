"""Preferences before pairing: columns of pairs, and columns of the arms of experiments."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.example_tables import GroupTable, PairTable
from qwen_task_heads.data.keys import KEYS, Hashes, combine, repeated
from qwen_task_heads.data.stores import Column, Numbers, Places, Texts
from qwen_task_heads.errors import Problem, shorten


class PairColumns:
    """Pairs, in reading order."""

    def __init__(self) -> None:
        self.texts = {name: Texts(KEYS[name]) for name in ("chosen", "rejected", "prompt", "group")}
        self.numbers = {name: Column("d", np.nan) for name in ("margin", "preference")}
        self.numbers["weight"] = Column("d", 1.0)
        self.places = Places()

    def __len__(self) -> int:
        return len(self.places)

    def extend(self, columns: dict[str, Sequence[Any]], *, source: str, numbers: Sequence[int]) -> None:
        """Add rows of one file; `source` and `numbers` are those of a `Batch`."""
        for name, texts in self.texts.items():
            texts.extend(columns[name])
        for name, values in self.numbers.items():
            values.extend(columns[name])
        self.places.extend(source, numbers)

    def truncate(self, rows: int) -> None:
        """Remove all rows but the first `rows`."""
        for texts in self.texts.values():
            texts.truncate(rows)
        for values in self.numbers.values():
            values.truncate(rows)
        self.places.truncate(rows)

    def table(self) -> PairTable:
        """Return the pairs."""
        rows = np.arange(len(self))
        margins, preferences, weights = (column.values() for column in self.numbers.values())
        return PairTable(
            **self.texts,
            chosen_rows=rows,
            rejected_rows=rows,
            margins=margins,
            preferences=preferences,
            weights=weights,
            places=self.places,
        )


class ArmColumns:
    """Arms of experiments, in reading order."""

    def __init__(self) -> None:
        self.title = Texts(KEYS["chosen"])
        self.prompt = Texts(KEYS["prompt"])
        self.group = Texts(KEYS["group"])
        self._clicks, self._impressions = array("q"), array("q")
        self.places = Places()

    def __len__(self) -> int:
        return len(self.places)

    def extend(self, columns: dict[str, Sequence[Any]], *, source: str, numbers: Sequence[int]) -> None:
        """Add rows of one file; `source` and `numbers` are those of a `Batch`."""
        self.title.extend(columns["title"])
        self.prompt.extend(columns["prompt"])
        self.group.extend(columns["group"])
        self._clicks.extend(columns["clicks"])
        self._impressions.extend(columns["impressions"])
        self.places.extend(source, numbers)

    def truncate(self, rows: int) -> None:
        """Remove all rows but the first `rows`."""
        for column in (self.title, self.prompt, self.group, self.places):
            column.truncate(rows)
        del self._clicks[rows:], self._impressions[rows:]

    def experiments(self) -> Experiments:
        """Group the arms by experiment and pool those with equal titles."""
        clicks, impressions = (
            np.frombuffer(column, np.int64) for column in (self._clicks, self._impressions)
        )
        groups = self.group.hashes()
        order = _by_first(groups)
        order, conflicts = self._check_prompts(order, groups)
        order, pooled = self._pool(order, groups, clicks, impressions)
        ids = groups[order]
        starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])[: len(ids)])
        ends = np.append(starts[1:], len(order))[: len(starts)]
        alone = ends - starts < 2
        lone = {int(row) for row in order[starts[alone]]}
        table = GroupTable(
            title=self.title,
            prompt=self.prompt,
            group=self.group,
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
        if self.prompt.are_empty:
            return order, []
        problems: list[Problem] = []
        kept = np.ones(len(order), bool)
        first, group, prompt = 0, None, ""
        for place, (row, own) in enumerate(zip(order.tolist(), self.prompt.take(order), strict=True)):
            if group != groups[row]:
                first, group, prompt = row, groups[row], own
            elif own != prompt:
                kept[place] = False
                key = shorten(self.group[row])
                problems.append(
                    Problem(
                        self.places[row],
                        f"experiment {key} has another prompt at {self.places[first]}",
                        "one prompt per experiment",
                        "give the experiments different keys",
                        code="rows-conflict",
                    )
                )
        return order[kept], problems

    def _pool(
        self, order: Numbers, groups: Hashes, clicks: NDArray[np.int64], impressions: NDArray[np.int64]
    ) -> tuple[Numbers, list[tuple[int, int]]]:
        """Add the counts of arms that repeat a headline of their experiment to those of the first one.

        Returns:
            The remaining arms, and `(row, row of the first)` of each other arm.
        """
        equal = order[repeated(combine(groups[order], self.title.hashes()[order]))]
        first: dict[tuple[int, str], int] = {}
        pooled: list[tuple[int, int]] = []
        keys = zip(equal.tolist(), groups[equal].tolist(), self.title.take(equal), strict=True)
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
    kind = np.int32 if len(groups) < 2**31 else np.int64
    return np.argsort(first[number], kind="stable").astype(kind)
