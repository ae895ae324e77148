"""Read one file into columns, in one pass if its first rows have all columns.

The meaning of a column depends on all columns of a file. The reader assumes those of the first batch. If a
later row has another column, the file is read again from the start, so that no rows are kept in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar, runtime_checkable

from qwen_task_heads.data.batches import Batch, RowSource
from qwen_task_heads.data.json_files import FileProblem
from qwen_task_heads.data.pair_layout import Layout
from qwen_task_heads.errors import Problem


class Collected(Protocol):
    """The rows of all files of a source, in attributes that only grow while a file is read."""

    rows_read: int
    refused: int
    problems: list[Problem]
    file_problems: list[Problem]


class Scan(Protocol):
    """A reader of the rows of one file."""

    @property
    def layout(self) -> Layout:
        """The meaning of the columns of the file."""

    def add(self, batch: Batch) -> None:
        """Read the rows of a batch."""


AnyScan = TypeVar("AnyScan", bound=Scan)


def scan_file(
    rows: RowSource,
    into: Collected,
    *,
    start: Callable[[str, Collection[str]], AnyScan],
    left: int | None = None,
) -> tuple[AnyScan | None, bool]:
    """Read a file.

    Args:
        rows: of the file.
        into: is extended by the rows.
        start: takes the place of the first row and the columns of the file, and returns its `Scan`.
        left: maximum number of rows to read; None for all.

    Returns:
        `(scan, more)`: the `Scan` that read the rows, None if no row can be read; and whether rows are left.
    """
    columns: dict[str, None] = {}
    before = _sizes(into)
    while True:
        seen: dict[str, None] = {}
        scan, more = _scan(rows, into, columns=columns, seen=seen, start=start, left=left)
        if scan is None or seen.keys() == columns.keys():
            break
        _forget(into, before)
        columns = seen
    if scan is not None:
        into.file_problems += scan.layout.problems
    return scan, more


def _scan(
    rows: RowSource,
    into: Collected,
    *,
    columns: dict[str, None],
    seen: dict[str, None],
    start: Callable[[str, Collection[str]], AnyScan],
    left: int | None,
) -> tuple[AnyScan | None, bool]:
    """Make one pass with `columns`, or fill them from the first batch; `seen` collects all columns."""
    scan: AnyScan | None = None
    end = None if left is None else into.rows_read + left
    for item in rows.items():
        if isinstance(item, tuple) and isinstance(item[1], FileProblem):
            into.file_problems.append(item[1])
            continue
        if into.rows_read == end:
            return scan, True
        if not isinstance(item, Batch):
            into.rows_read += 1
            into.refused += 1
            if isinstance(item[1], Problem):
                into.problems.append(item[1])
            continue
        room = len(item) if end is None else min(len(item), end - into.rows_read)
        batch = item if room == len(item) else item.first(room)
        seen.update(dict.fromkeys(batch.names))
        if scan is None:
            columns.update({} if columns else seen)
            scan = start(batch.where(0), columns)
        into.rows_read += len(batch)
        if seen.keys() <= columns.keys():  # else the file is read again
            scan.add(batch)
        if room < len(item):
            return scan, True
    return scan, False


@runtime_checkable
class _Columns(Protocol):
    """A column that grows at its end."""

    def __len__(self) -> int: ...

    def truncate(self, rows: int) -> None:
        """Remove all rows except the first `rows`."""


def _sizes(into: Collected) -> dict[str, int]:
    """Return each number, and the length of each attribute that grows."""
    return {
        name: value if isinstance(value, int) else len(value)
        for name, value in vars(into).items()
        if isinstance(value, int | list | dict | array | _Columns)
    }


def _forget(into: Collected, sizes: dict[str, int]) -> None:
    """Remove the rows and counts that were added since `_sizes`."""
    for name, size in sizes.items():
        value = vars(into)[name]
        if isinstance(value, int):
            setattr(into, name, size)
        elif isinstance(value, dict):  # dicts keep the order of insertion
            for key in [*value][size:]:
                del value[key]
        elif isinstance(value, _Columns):
            value.truncate(size)
        else:
            del value[size:]
