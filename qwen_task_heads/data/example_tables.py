"""Examples of many rows, kept in columns: an object is made for a row when somebody asks for it.

Design:
- A table is a `Sequence`: what reads a list of examples reads a table. Iteration makes objects in blocks.
- A part of a table (a split, a shuffle) is the same columns with other row numbers.
- `example_columns.py` asks lists and tables alike, so that nothing has to be written twice.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.data.keys import KEYS, Hashes
from qwen_task_heads.data.stores import Numbers, Places, Texts

Example = TypeVar("Example")
BLOCK = 4096  # rows of which objects are made at a time
Target = Any  # of a `TextExample`


class Table(Sequence[Example], Generic[Example]):
    """Rows of which examples are made on access; equal to a list of equal examples."""

    @abstractmethod
    def examples(self, rows: Numbers) -> list[Example]:
        """Return the examples of some rows, in their order."""

    @abstractmethod
    def pick(self, rows: Numbers) -> Table[Example]:
        """Return a table of some rows, in their order."""

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Table[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | Table[Example]:
        if isinstance(place, slice):
            return self.pick(np.arange(*place.indices(len(self))))
        row = range(len(self))[place]  # with the IndexError of a list
        return self.examples(np.array([row]))[0]

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), BLOCK):
            yield from self.examples(np.arange(start, min(start + BLOCK, len(self))))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} rows)"


@dataclass(frozen=True, eq=False, repr=False)
class TextTable(Table[TextExample]):
    """Labelled texts.

    Args:
        text, text_b, group: columns of a store.
        weights: of the rows of the store.
        codes: of the rows of the store: which of `targets` each has.
        targets: `(target, soft, candidates)` of an example.
        places: of the rows of the store.
        rows: numbers of the rows that the table holds.
    """

    text: Texts
    text_b: Texts
    group: Texts
    weights: NDArray[np.float64]
    codes: NDArray[np.int32]
    targets: Sequence[tuple[Target, tuple[float, ...] | None, tuple[str, ...]]]
    places: Places
    rows: Numbers

    def __len__(self) -> int:
        return len(self.rows)

    def examples(self, rows: Numbers) -> list[TextExample]:
        """Return the examples of some rows, in their order."""
        stored = self.rows[rows]
        made = []
        for text, text_b, group, weight, code, place in zip(
            self.text.take(stored), self.text_b.take(stored), self.group.take(stored),
            self.weights[stored].tolist(), self.codes[stored].tolist(), stored.tolist(), strict=True,
        ):  # fmt: skip
            target, soft, candidates = self.targets[code]
            made.append(
                TextExample(
                    text=text,
                    text_b=text_b,
                    target=target,
                    soft=soft,
                    candidates=candidates,
                    weight=weight,
                    group=group,
                    source=self.places[place],
                )
            )
        return made

    def pick(self, rows: Numbers) -> TextTable:
        """Return a table of some rows, in their order."""
        return replace(self, rows=self.rows[rows])

    def hashes(self, name: str) -> Hashes:
        """Return 64 bits per row of a column, equal for texts of equal `text_key`."""
        return vars(self)[name].hashes()[self.rows]


@dataclass(frozen=True, eq=False, repr=False)
class PairTable(Table[PairExample]):
    """Preferences, each made of two rows of a store: two arms of a test, or twice the row of a pair.

    Args:
        chosen, rejected, prompt, group: columns; `prompt` and `group` go by the rows of `chosen`.
        chosen_rows, rejected_rows: numbers of the rows of the store, one of each per pair.
        margins, preferences: per pair, NaN for None.
        weights: per pair.
        places: of the rows of the store; where a pair has two rows, both are named.
    """

    chosen: Texts
    rejected: Texts
    prompt: Texts
    group: Texts
    chosen_rows: Numbers
    rejected_rows: Numbers
    margins: NDArray[np.float64]
    preferences: NDArray[np.float64]
    weights: NDArray[np.float64]
    places: Places

    def __len__(self) -> int:
        return len(self.chosen_rows)

    def examples(self, rows: Numbers) -> list[PairExample]:
        """Return the examples of some rows, in their order."""
        one, two = self.chosen_rows[rows], self.rejected_rows[rows]
        made = []
        for chosen, rejected, prompt, group, margin, preference, weight, first, second in zip(
            self.chosen.take(one), self.rejected.take(two), self.prompt.take(one), self.group.take(one),
            self.margins[rows].tolist(), self.preferences[rows].tolist(), self.weights[rows].tolist(),
            one.tolist(), two.tolist(), strict=True,
        ):  # fmt: skip
            source = self.places[first]
            made.append(
                PairExample(
                    chosen=chosen,
                    rejected=rejected,
                    prompt=prompt,
                    margin=None if margin != margin else margin,
                    preference=None if preference != preference else preference,
                    weight=weight,
                    group=group,
                    source=source if first == second else f"{source} + {self.places[second]}",
                )
            )
        return made

    def pick(self, rows: Numbers) -> PairTable:
        """Return a table of some rows, in their order."""
        return replace(
            self,
            chosen_rows=self.chosen_rows[rows],
            rejected_rows=self.rejected_rows[rows],
            margins=self.margins[rows],
            preferences=self.preferences[rows],
            weights=self.weights[rows],
        )

    def hashes(self, name: str) -> Hashes:
        """Return 64 bits per row of a column, equal for texts of equal `text_key`."""
        rows = self.rejected_rows if name == "rejected" else self.chosen_rows
        return vars(self)[name].hashes()[rows]

    def with_groups(self, groups: Mapping[int, str]) -> PairTable:
        """Return the same pairs, some rows of them with another group."""
        names = self.group.take(np.arange(len(self.places)))
        for row, group in groups.items():
            names[self.chosen_rows[row]] = group
        column = Texts(KEYS["group"])
        column.extend(names)
        return replace(self, group=column)


@dataclass(frozen=True, eq=False, repr=False)
class GroupTable(Table[GroupExample]):
    """Tests with their arms.

    Args:
        title, prompt, group: columns of a store of arms; those of the first arm count for the test.
        clicks, impressions: of the rows of the store.
        places: of the rows of the store.
        order: rows of the store, the arms of a test side by side.
        starts, ends: of each test in `order`.
    """

    title: Texts
    prompt: Texts
    group: Texts
    clicks: NDArray[np.int64]
    impressions: NDArray[np.int64]
    places: Places
    order: Numbers
    starts: Numbers
    ends: Numbers

    def __len__(self) -> int:
        return len(self.starts)

    def examples(self, rows: Numbers) -> list[GroupExample]:
        """Return the examples of some tests, in their order."""
        sizes = (self.ends[rows] - self.starts[rows]).tolist()
        arms = self.order[spans(self.starts[rows], self.ends[rows])]
        titles, numbers = self.title.take(arms), arms.tolist()
        clicks, impressions = self.clicks[arms].tolist(), self.impressions[arms].tolist()
        first = self.order[self.starts[rows]]
        made, start = [], 0
        for size, prompt, group in zip(sizes, self.prompt.take(first), self.group.take(first), strict=True):
            end = start + size
            made.append(
                GroupExample(
                    titles=tuple(titles[start:end]),
                    clicks=tuple(clicks[start:end]),
                    impressions=tuple(impressions[start:end]),
                    prompt=prompt,
                    group=group,
                    sources=tuple(self.places[row] for row in numbers[start:end]),
                )
            )
            start = end
        return made

    def pick(self, rows: Numbers) -> GroupTable:
        """Return a table of some tests, in their order."""
        return replace(self, starts=self.starts[rows], ends=self.ends[rows])

    def arms(self) -> tuple[Numbers, Numbers]:
        """Return `(rows, tests)` of all arms: rows of the store, and the number of the test of each."""
        return self.order[spans(self.starts, self.ends)], np.repeat(
            np.arange(len(self)), self.ends - self.starts
        )

    def with_arms(self, kept: NDArray[np.bool_]) -> GroupTable:
        """Return the same tests with some of their arms, one flag for each arm of the table."""
        rows, tests = self.arms()
        sizes = np.bincount(tests[kept], minlength=len(self))
        ends = np.cumsum(sizes)
        return replace(self, order=rows[kept], starts=ends - sizes, ends=ends)

    def pairs(self, better: Numbers, worse: Numbers, preferences: NDArray[np.float64]) -> PairTable:
        """Return pairs of arms, which are numbered as those of `arms`."""
        rows, _ = self.arms()
        return PairTable(
            chosen=self.title,
            rejected=self.title,
            prompt=self.prompt,
            group=self.group,
            chosen_rows=rows[better],
            rejected_rows=rows[worse],
            margins=np.broadcast_to(np.nan, len(better)),
            preferences=preferences,
            weights=np.broadcast_to(1.0, len(better)),
            places=self.places,
        )

    def hashes(self, name: str) -> Hashes:
        """Return 64 bits per test: of its group, or of the prompt."""
        return vars(self)[name].hashes()[self.order[self.starts]]


class Joined(Table[Example]):
    """Several sequences one after the other."""

    def __init__(self, parts: Sequence[Sequence[Example]]) -> None:
        self.parts = [part for part in parts if len(part)]
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.parts else 0

    def examples(self, rows: Numbers) -> list[Example]:
        """Return the examples of some rows, in their order."""
        return [example for part, places in self._runs(rows) for example in pick(part, places)]

    def pick(self, rows: Numbers) -> Joined[Example]:
        """Return a table of some rows, in their order."""
        return Joined([pick(part, places) for part, places in self._runs(rows)])

    def _runs(self, rows: Numbers) -> Iterator[tuple[Sequence[Example], Numbers]]:
        parts = np.searchsorted(self.ends, rows, side="right")
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(parts)) + 1):
            if len(run):
                number = int(parts[run[0]])
                start = self.ends[number] - len(self.parts[number])
                yield self.parts[number], rows[run] - start


def pick(examples: Sequence[Example], rows: Numbers) -> Sequence[Example]:
    """Return some rows of a list or table, in their order.

    Example:
        >>> pick(["a", "b", "c"], np.array([2, 0]))
        ['c', 'a']
    """
    if isinstance(examples, Table):
        return examples.pick(rows)
    return [examples[row] for row in rows.tolist()]


def spans(starts: Numbers, ends: Numbers) -> Numbers:
    """Return the numbers from each start to before its end, one span after the other.

    Example:
        >>> spans(np.array([3, 8]), np.array([5, 9])).tolist()
        [3, 4, 8]
    """
    sizes = ends - starts
    before = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(starts, sizes) + np.arange(int(sizes.sum())) - before
