"""Define tables of examples, which create objects on access, and functions for both tables and lists.

Design:
- A table is a `Sequence`, so code for a list of examples also reads a table. Iteration creates objects in
  blocks.
- `pick`, `blocks` and `sources_of` take lists as well, so that callers need no second branch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.examples import GroupExample
from qwen_task_heads.data.stores import Numbers, Texts
from qwen_task_heads.sources.keys import Hashes

Example = TypeVar("Example")
BLOCK = 4096  # rows whose objects are created at a time


class Table(Sequence[Example], Generic[Example]):
    """Rows whose examples are created on access; a table equals a list of equal examples."""

    @abstractmethod
    def examples(self, rows: Numbers) -> list[Example]:
        """Return the examples of some rows, in their order."""

    @abstractmethod
    def pick(self, rows: Numbers) -> Table[Example]:
        """Return a table of some rows, in their order."""

    @abstractmethod
    def source(self, row: int) -> str:
        """Return the place of a row in the data; of an experiment, that of its first arm."""

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Table[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | Table[Example]:
        if isinstance(place, slice):
            return self.pick(np.arange(*place.indices(len(self))))
        row = range(len(self))[place]  # raises the IndexError of a list
        return self.examples(np.array([row]))[0]

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), BLOCK):
            yield from self.examples(np.arange(start, min(start + BLOCK, len(self))))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as for a list

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} rows)"


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
        runs = [*self._runs(rows)]
        if (
            len(runs) > len(rows) // 8
        ):  # a shuffle: tables of single rows would take more memory than the rows
            return Joined([[example for part, places in runs for example in pick(part, places)]])
        return Joined([pick(part, places) for part, places in runs])

    def source(self, row: int) -> str:
        """Return the place of a row in the data; of an experiment, that of its first arm."""
        ((part, places),) = self._runs(np.array([row]))
        place = int(places[0])
        return part.source(place) if isinstance(part, Table) else sources_of([part[place]])[0]

    def _runs(self, rows: Numbers) -> Iterator[tuple[Sequence[Example], Numbers]]:
        parts = np.searchsorted(self.ends, rows, side="right")
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(parts)) + 1):
            if len(run):
                number = int(parts[run[0]])
                start = self.ends[number] - len(self.parts[number])
                yield self.parts[number], rows[run] - start


class Sources(Sequence[str]):
    """The places of the rows of a table in the data, as strings that are created on access."""

    def __init__(self, table: Table[Any]) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        rows = range(len(self))[place]
        return self._table.source(rows) if isinstance(rows, int) else [*map(self._table.source, rows)]


def sources_of(examples: Sequence[Any]) -> Sequence[str]:
    """Return the place of each example in the data; of an experiment, that of its first arm.

    Example:
        >>> from qwen_task_heads.data.examples import TextExample
        >>> sources_of([TextExample(text="A", target=0, source="train.jsonl:1")])
        ['train.jsonl:1']
    """
    if isinstance(examples, Table):
        return Sources(examples)
    return ["".join(one.sources[:1]) if isinstance(one, GroupExample) else one.source for one in examples]


def pick(examples: Sequence[Example], rows: Numbers | Sequence[int]) -> Sequence[Example]:
    """Return some rows of a list or table, in their order.

    Example:
        >>> pick(["a", "b", "c"], [2, 0])
        ['c', 'a']
    """
    if isinstance(examples, Table):
        return examples.pick(np.asarray(rows, np.int64))
    return [examples[row] for row in rows]


def hashes_at(column: Texts, rows: Numbers | None) -> Hashes:
    """Return the hashes of some rows of a column, or of all if None; an empty column takes no memory."""
    hashes = column.hashes()
    if rows is None:
        return hashes
    return np.broadcast_to(hashes[:1], len(rows)) if column.are_empty else hashes[rows]


def blocks(examples: Sequence[Example], rows: int = 2**18) -> Iterator[Sequence[Example]]:
    """Yield the examples in blocks of at most `rows` rows, in their order."""
    for start in range(0, len(examples), rows):
        yield pick(examples, np.arange(start, min(start + rows, len(examples))))


def index(mask: NDArray[np.bool_]) -> Numbers:
    """Return the places where a mask is true, as int32 if they fit.

    Example:
        >>> index(np.array([True, False, True])).tolist()
        [0, 2]
    """
    kind = index_kind(len(mask))
    starts = range(0, len(mask), 2**20)
    parts = [(np.flatnonzero(mask[start : start + 2**20]) + start).astype(kind) for start in starts]
    return np.concatenate([np.zeros(0, kind), *parts])


def index_kind(rows: int) -> type[np.int32 | np.int64]:
    """Return the type of row numbers, which takes half of the memory for tables of common sizes."""
    return np.int32 if rows < 2**31 else np.int64


def spans(starts: Numbers, ends: Numbers) -> Numbers:
    """Return the numbers from each start up to its end, which is excluded, one span after the other.

    Example:
        >>> spans(np.array([3, 8]), np.array([5, 9])).tolist()
        [3, 4, 8]
    """
    sizes = ends - starts
    before = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(starts, sizes) + np.arange(int(sizes.sum())) - before
