"""Rows of a file in batches of columns, which cost a fraction of what a dict for each row costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any, Final

from qwen_task_heads.errors import Problem

BATCH_ROWS = 4096
BATCH_BYTES = 4 * 2**20  # of a file, about: a batch of long texts has fewer rows


class TextRow(dict[str, Any]):
    """A row of CSV or TSV: every value is text, numbers are still to be parsed."""


class _Absent:
    """A column that a row does not have; no value of a file, which may well be None."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()


class Batch(ABC):
    """Consecutive rows of one file.

    Args:
        numbers: line or row number of each row.
        source: name of the file, with what stands before the number: `train.jsonl:` or `train.parquet:row `.
        textual: whether the rows are `TextRow`.
    """

    def __init__(self, numbers: Sequence[int], source: str, *, textual: bool = False) -> None:
        self.numbers, self.source, self.textual = numbers, source, textual

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, place: int) -> str:
        """Return where a row stands, as messages name it."""
        return f"{self.source}{self.numbers[place]}"

    @property
    @abstractmethod
    def names(self) -> Mapping[str, object]:
        """The columns that some row has."""

    @abstractmethod
    def column(self, name: str) -> Sequence[Any]:
        """Return a value per row, `ABSENT` where a row lacks the column."""

    @abstractmethod
    def row(self, place: int) -> dict[str, Any]:
        """Return one row with the columns that it has."""

    @abstractmethod
    def first(self, rows: int) -> Batch:
        """Return the first rows alone."""


class RowBatch(Batch):
    """Rows as dicts, which may all have other columns.

    Example:
        >>> batch = RowBatch([{"text": "A", "label": 0}, {"text": "B"}], [1, 2], "train.jsonl:")
        >>> batch.column("label"), batch.where(1)
        ([0, ABSENT], 'train.jsonl:2')
    """

    def __init__(self, rows: Sequence[dict[str, Any]], numbers: Sequence[int], source: str) -> None:
        super().__init__(numbers, source, textual=isinstance(rows[0], TextRow))
        self._rows = rows
        self._names = dict.fromkeys(chain.from_iterable(rows))

    @property
    def names(self) -> Mapping[str, object]:
        """The columns that some row has."""
        return self._names

    def column(self, name: str) -> Sequence[Any]:
        """Return a value per row, `ABSENT` where a row lacks the column."""
        return [row.get(name, ABSENT) for row in self._rows]

    def row(self, place: int) -> dict[str, Any]:
        """Return one row with the columns that it has."""
        return self._rows[place]

    def first(self, rows: int) -> RowBatch:
        """Return the first rows alone."""
        return RowBatch(self._rows[:rows], self.numbers[:rows], self.source)


class ColumnBatch(Batch):
    """Rows as columns of values, with `ABSENT` where a row lacks one; columns without a value are none."""

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any]],
        numbers: Sequence[int],
        source: str,
        *,
        textual: bool = False,
    ) -> None:
        super().__init__(numbers, source, textual=textual)
        self._columns = columns

    @property
    def names(self) -> Mapping[str, object]:
        """The columns that some row has."""
        return self._columns

    def column(self, name: str) -> Sequence[Any]:
        """Return a value per row, `ABSENT` where a row lacks the column."""
        return self._columns[name] if name in self._columns else [ABSENT] * len(self)

    def row(self, place: int) -> dict[str, Any]:
        """Return one row with the columns that it has."""
        kind = TextRow if self.textual else dict
        pairs = ((name, values[place]) for name, values in self._columns.items())
        return kind((name, value) for name, value in pairs if value is not ABSENT)

    def first(self, rows: int) -> ColumnBatch:
        """Return the first rows alone."""
        columns = {name: values[:rows] for name, values in self._columns.items()}
        return ColumnBatch(columns, self.numbers[:rows], self.source, textual=self.textual)


Row = tuple[str, "dict[str, Any] | Problem"]
Item = Batch | Row  # what a file consists of: rows that can be read, and those that cannot


def in_batches(rows: Iterable[Row], size: int = BATCH_ROWS) -> Iterator[Item]:
    """Return rows of one file in batches, and those with a problem one by one, in their order."""
    held: list[dict[str, Any]] = []
    numbers: list[int] = []
    source = ""
    for where, row in rows:
        problem = isinstance(row, Problem)
        at = where.rfind(":") + 1
        at += 4 * where.startswith("row ", at)
        if held and (problem or len(held) >= size or source != where[:at] or type(row) is not type(held[0])):
            yield RowBatch(held, numbers, source)
            held, numbers = [], []
        if isinstance(row, Problem):
            yield where, row
        else:
            source = where[:at]
            held.append(row)
            numbers.append(int(where[at:]))
    if held:
        yield RowBatch(held, numbers, source)


def as_rows(items: Iterable[Item]) -> Iterator[Row]:
    """Return the rows of batches one by one."""
    for item in items:
        if isinstance(item, Batch):
            yield from ((item.where(place), item.row(place)) for place in range(len(item)))
        else:
            yield item


ClassNames = Mapping[str, tuple[str, ...]]


class RowSource:
    """The rows of one file, or of one split of a data set; they can be read several times.

    Args:
        name: as messages say it.
        items: gives all rows, from the first one.
        class_names: gives column -> names of its classes, as `datasets` declares them.

    Example:
        >>> source = RowSource("a.jsonl", lambda: in_batches([("a.jsonl:1", {"text": "A"})]))
        >>> list(source), len(next(source.items()))
        ([('a.jsonl:1', {'text': 'A'})], 1)
    """

    def __init__(
        self, name: str, items: Callable[[], Iterator[Item]], class_names: Callable[[], ClassNames] = dict
    ) -> None:
        self.name, self.items, self._class_names = name, items, class_names

    def __iter__(self) -> Iterator[Row]:
        return as_rows(self.items())

    @property
    def class_names(self) -> ClassNames:
        """Column -> names of its classes, {} where nothing declares them."""
        return self._class_names()


class Kept(Iterable[Item]):
    """Items that come only once, kept as they come, so that they can be read again."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items, self._kept = items, list[Item]()

    def __iter__(self) -> Iterator[Item]:
        for place in count():
            if place == len(self._kept):
                item = next(self._items, None)
                if item is None:
                    return
                self._kept.append(item)
            yield self._kept[place]
