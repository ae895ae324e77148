"""Hold rows of a file in batches of columns, which take a fraction of the memory of a dict per row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any, Final

from qwen_task_heads.errors import Problem

BATCH_ROWS = 4096
BATCH_BYTES = 4 * 2**20  # approximate bytes of the file: a batch of long texts has fewer rows


class TextRow(dict[str, Any]):
    """A row of CSV or TSV: every value is text, and numbers are not yet parsed."""


class _Absent:
    """The value of a column that a row does not have, as distinct from None."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()


class Batch:
    """Consecutive rows of one file, as columns of values.

    Args:
        columns: column -> a value per row, `ABSENT` for a missing one; without columns that have no value.
        numbers: line or row number of each row.
        source: name of the file and the prefix of a number: `train.jsonl:` or `train.parquet:row `.
        textual: whether the rows are `TextRow`.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any]],
        numbers: Sequence[int],
        source: str,
        *,
        textual: bool = False,
    ) -> None:
        self._columns = columns
        self.numbers, self.source, self.textual = numbers, source, textual

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, place: int) -> str:
        """Return the place of a row, as messages name it."""
        return f"{self.source}{self.numbers[place]}"

    @property
    def names(self) -> Mapping[str, object]:
        """The columns of any row."""
        return self._columns

    def column(self, name: str) -> Sequence[Any]:
        """Return a value per row, `ABSENT` if a row lacks the column."""
        return self._columns[name] if name in self._columns else [ABSENT] * len(self)

    def row(self, place: int) -> dict[str, Any]:
        """Return one row with its columns."""
        kind = TextRow if self.textual else dict
        pairs = ((name, values[place]) for name, values in self._columns.items())
        return kind((name, value) for name, value in pairs if value is not ABSENT)

    def first(self, rows: int) -> Batch:
        """Return a batch of the first rows."""
        columns = {name: values[:rows] for name, values in self._columns.items()}
        return Batch(columns, self.numbers[:rows], self.source, textual=self.textual)


class RowBatch(Batch):
    """Rows as dicts, each with columns of its own.

    Example:
        >>> batch = RowBatch([{"text": "A", "label": 0}, {"text": "B"}], [1, 2], "train.jsonl:")
        >>> batch.column("label"), batch.where(1)
        ([0, ABSENT], 'train.jsonl:2')
    """

    def __init__(self, rows: Sequence[dict[str, Any]], numbers: Sequence[int], source: str) -> None:
        names = dict.fromkeys(chain.from_iterable(rows), ())
        super().__init__(names, numbers, source, textual=isinstance(rows[0], TextRow))
        self._rows = rows

    def column(self, name: str) -> Sequence[Any]:
        """Return a value per row, `ABSENT` if a row lacks the column."""
        return [row.get(name, ABSENT) for row in self._rows]

    def row(self, place: int) -> dict[str, Any]:
        """Return one row with its columns."""
        return self._rows[place]

    def first(self, rows: int) -> RowBatch:
        """Return a batch of the first rows."""
        return RowBatch(self._rows[:rows], self.numbers[:rows], self.source)


Row = tuple[str, "dict[str, Any] | Problem"]
Item = Batch | Row  # a batch of readable rows, or a single row, which may be a problem


def in_batches(rows: Iterable[Row], size: int = BATCH_ROWS) -> Iterator[Item]:
    """Yield rows of one file in batches, and rows with a problem one by one, in their order."""
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
    """Yield the rows of batches one by one."""
    for item in items:
        if isinstance(item, Batch):
            yield from ((item.where(place), item.row(place)) for place in range(len(item)))
        else:
            yield item


ClassNames = Mapping[str, tuple[str, ...]]


class RowSource:
    """The rows of one file, or of one split of a data set; they can be read several times.

    Args:
        name: of the file or split, for messages.
        items: returns an iterator over all rows, from the first one.
        class_names: returns a map of columns to class names, as `datasets` declares them.

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
        """Map of columns to class names, {} if none are declared."""
        return self._class_names()


class Kept(Iterable[Item]):
    """Items of an iterator, kept as they are read, so that they can be read again."""

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
