"""Read one file into columns, in one pass if its first rows have all columns.

The meaning of a column depends on all columns of a file. The reader assumes those of the first batch. If a
later row has another column, the file is read again from the start, so that no rows are kept in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from qwen_task_heads.data.row_reader import RowReader
from qwen_task_heads.data.schema import Layout
from qwen_task_heads.data.stores import Rows
from qwen_task_heads.errors import Problem
from qwen_task_heads.sources.batches import Batch, RowSource
from qwen_task_heads.sources.json_files import FileProblem


@dataclass(kw_only=True)
class RawRows:
    """The rows of all files of a source, in attributes that only grow while a file is read.

    Args:
        source: file, folder or dataset id, as the user named it.
        rows_read: all rows of data.
        refused: rows with a problem.
        problems: problems of rows; one row may have several.
        file_problems: problems of whole files, which are never skipped.
        unread: columns that are ignored, in order of appearance.
    """

    source: str
    rows_read: int = 0
    refused: int = 0
    problems: list[Problem] = field(default_factory=list)
    file_problems: list[Problem] = field(default_factory=list)
    unread: dict[str, None] = field(default_factory=dict)

    def reject(self, row: RowReader) -> None:
        """Count a refused row, and keep its problems."""
        self.refused += 1
        self.problems += row.problems

    def sizes(self) -> dict[str, int]:
        """Return each number, and the length of each attribute that grows."""
        return {
            name: value if isinstance(value, int) else len(value)
            for name, value in vars(self).items()
            if isinstance(value, int | list | dict | array | Rows)
        }

    def truncate(self, sizes: dict[str, int]) -> None:
        """Remove the rows and counts that were added since `sizes`."""
        for name, size in sizes.items():
            value: Any = vars(self)[name]
            if isinstance(value, int):
                setattr(self, name, size)
            elif isinstance(value, dict):  # dicts keep the order of insertion
                for key in [*value][size:]:
                    del value[key]
            elif isinstance(value, Rows):
                value.truncate(size)
            else:
                del value[size:]


class Scan(Protocol):
    """A reader of the rows of one file."""

    @property
    def layout(self) -> Layout:
        """The meaning of the columns of the file."""

    def add(self, batch: Batch) -> None:
        """Read the rows of a batch."""


AnyScan = TypeVar("AnyScan", bound=Scan)
Start = Callable[[str, Collection[str]], AnyScan]


def scan_file(
    rows: RowSource, into: RawRows, *, start: Start[AnyScan], left: int | None = None
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
    before = into.sizes()
    while True:
        seen: dict[str, None] = {}
        scan, more = _scan(rows, into, columns=columns, seen=seen, start=start, left=left)
        if scan is None or seen.keys() == columns.keys():
            break
        into.truncate(before)
        columns = seen
    if scan is not None:
        into.file_problems += scan.layout.problems
    if scan is not None and not scan.layout.problems:
        into.unread.update(dict.fromkeys(scan.layout.unread))
    return scan, more


def _scan(
    rows: RowSource,
    into: RawRows,
    *,
    columns: dict[str, None],
    seen: dict[str, None],
    start: Start[AnyScan],
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
