"""Read the rows of a CSV, TSV or Parquet file.

Design:
- CSV and TSV are read strictly: a stray quote is refused at its line, so that it cannot include the lines
  below. All values stay text (`TextRow`), because whether `007` is a number depends on the column.
- Nulls of Parquet are absent values, because a columnar file cannot leave a value out.
- Memory: a batch of rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO

from qwen_task_heads.errors import Problem, error_at, shorten
from qwen_task_heads.sources.batches import ABSENT, BATCH_BYTES, BATCH_ROWS, Batch, Item, Row, in_batches
from qwen_task_heads.sources.file_options import PLAIN, FileOptions, bad_byte
from qwen_task_heads.sources.hub_datasets import names_of_classes
from qwen_task_heads.sources.json_files import (
    LONE_SURROGATE,
    MAX_LINE_BYTES,
    FileProblem,
    line_too_long,
    no_rows,
    numbered_lines,
)


def read_table(path: str, options: FileOptions = PLAIN, *, delimiter: str = ",") -> Iterator[Item]:
    """Yield the rows of a CSV or TSV file, each named by its first line; quotes have one meaning in both.

    The field limit of `csv` is global, so each batch sets and restores it.
    """
    odd = _OddLines(set(), set())
    with open(path, "rb") as stream:
        reader = csv.reader(_lines(stream, odd, options.encoding), delimiter=delimiter, strict=True)
        table = _Table(path, reader, delimiter, odd, options)
        while True:
            limit = csv.field_size_limit(MAX_LINE_BYTES)
            rows, size = [], 0
            try:
                for number, row in islice(table, BATCH_ROWS):
                    rows.append((number, row))
                    size += 0 if isinstance(row, Problem) else sum(map(len, row))
                    if size > BATCH_BYTES:
                        break
            finally:
                csv.field_size_limit(limit)
            yield from table.items(rows)
            if not rows:
                break
    if table.is_empty:
        yield path, no_rows(path, "found no rows below the header")


@dataclass(frozen=True)
class _OddLines:
    """Numbers of physical lines that were cut, and of lines with bytes outside the encoding."""

    cut: set[int]
    broken: set[int]


def _lines(stream: BinaryIO, odd: _OddLines, encoding: str) -> Iterator[str]:
    """Yield lines as text; undecodable bytes become lone surrogates, so that their row can be named."""
    for number, line in numbered_lines(stream):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError:
            odd.broken.add(number)
            text = line.decode(encoding, "surrogateescape")
        if len(line) > MAX_LINE_BYTES:
            odd.cut.add(number)
        yield text


Fields = tuple[str, ...]


class _Table(Iterator["tuple[int, Fields | Problem]"]):
    """The rows below the header of a table: the first line of each, with its fields or its problem."""

    def __init__(self, path: str, reader: Any, delimiter: str, odd: _OddLines, options: FileOptions) -> None:
        self.path, self.options, self.is_empty = path, options, True
        self._reader, self._delimiter, self._odd = reader, delimiter, odd
        self._header: list[str] | None = [*options.columns] or None
        self._count = len(options.columns)
        self._ended = False

    def __next__(self) -> tuple[int, Fields | Problem]:
        while not self._ended:
            first = self._reader.line_num + 1
            row = self._fields(first)
            if self._header is None:
                self._ended = isinstance(row, Problem)
                if isinstance(row, tuple) and row:
                    self._header = [name.strip() for name in row]
                    self._count = len(row)
                    problem = bad_header(self.path, self._header, self._delimiter)
                    self._ended, row = problem is not None, problem or ()
                elif isinstance(row, Problem):
                    row = FileProblem(**{**vars(row), "problem": f"header: {row.problem}"})
            repeats_columns = self.is_empty and row == self.options.columns  # a header equal to --columns
            if row and not repeats_columns:
                self.is_empty = False
                return first, row
        raise StopIteration

    def _fields(self, first: int) -> Fields | Problem:
        """Return the fields of the next row, or () for a blank line and at the end."""
        fields: Fields = ()
        malformed = ""
        try:
            fields = tuple(next(self._reader))  # tuples of strings are not tracked by the garbage collector
            if len(fields) == self._count and not self._odd.cut and not self._odd.broken:
                return fields
        except StopIteration:
            self._ended = True
        except csv.Error as error:
            malformed = f"malformed row ({error})"
        where = f"{self.path}:{first}"
        problem: Problem | None = None
        lines = range(first, self._reader.line_num + 1)
        if malformed:
            extent = f", in lines {first:,} to {lines[-1]:,}" if len(lines) > 1 else ""
            fix = 'close the quotes, and write " inside a quoted field as ""'
            problem = Problem(where, malformed + extent, "quoted or plain fields", fix, code="file-format")
        if self._odd.cut and not self._odd.cut.isdisjoint(lines):
            problem = line_too_long(where)
        elif problem is None and self._odd.broken and not self._odd.broken.isdisjoint(lines):
            problem = _bad_text(where, fields, self.options)
        if problem is None and self._header and fields and len(fields) != self._count:
            problem = self._miscounted(where, fields)
        return problem or fields

    def _miscounted(self, where: str, fields: Fields) -> Problem:
        problem, expected = f"found {len(fields)} fields", f"{self._count}, as in the header"
        fix = "quote fields that contain the separator; write a truncated last line again"
        if self.options.columns:
            expected, fix = f"{self._count}, as in --columns", "name as many columns in --columns"
        return Problem(where, problem, expected, fix, code="file-format")

    def items(self, rows: Sequence[tuple[int, Fields | Problem]]) -> Iterator[Item]:
        """Yield rows as batches, and the problems between them."""
        good: list[Fields] = []
        numbers: list[int] = []
        for number, row in rows:
            if isinstance(row, Problem):
                if good:
                    yield self._batch(good, numbers)
                    good, numbers = [], []
                yield (self.path if isinstance(row, FileProblem) else row.where), row
            else:
                good.append(row)
                numbers.append(number)
        if good:
            yield self._batch(good, numbers)

    def _batch(self, rows: list[Fields], numbers: list[int]) -> Batch:
        named = zip(self._header or (), zip(*rows, strict=True), strict=True)
        columns = {name: values for name, values in named if name}
        return Batch(columns, numbers, f"{self.path}:", textual=True)


def bad_header(path: str, header: list[str], delimiter: str) -> FileProblem | None:
    """Return the problem of a header with a repeated column or another delimiter."""
    named = [name for name in header if name]  # pandas writes its index under an empty name
    twice = next((name for name in named if named.count(name) > 1), None) if len(named) < 10_000 else None
    if twice is not None:
        problem, fix = f"the header repeats the column {shorten(twice)}", "rename one of the two"
        return FileProblem(f"{path}:1", problem, "every column once", fix, code="column-ambiguous")
    other = next(
        (mark for mark in ",;\t|" if mark != delimiter and len(header) == 1 and mark in header[0]), None
    )
    if other is not None:
        problem = f"the header is separated by {other!r}"
        expected = f"columns separated by {delimiter!r}"
        fix = {"\t": "rename it to .tsv", ",": "rename it to .csv"}.get(
            other, f"write it again with {delimiter!r} between the columns"
        )
        if not delimiter:  # of a sheet
            expected, fix = "one column per cell", "split the cells into columns"
        return FileProblem(f"{path}:1", problem, expected, fix, code="file-format")
    return None


def _bad_text(where: str, fields: Fields, options: FileOptions) -> Problem | None:
    """Return the problem of the first byte outside the encoding, or None."""
    for field in fields:
        bad = LONE_SURROGATE.search(field)
        if bad:
            raw = field.encode(options.encoding, "surrogateescape")
            place = len(field[: bad.start()].encode(options.encoding, "surrogateescape"))
            in_field = bad_byte(where, raw, place, encoding=options.encoding)
            before = shorten(field[max(0, bad.start() - 20) : bad.start()])
            problem = f"byte 0x{ord(bad.group()) & 0xFF:02x} after {before} is not UTF-8"
            return replace(in_field, problem=problem)
    return None


def read_parquet(path: str, options: FileOptions = PLAIN) -> Iterator[Item]:
    """Yield the rows of a Parquet file in batches, without their nulls."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        problem, expected = "pyarrow is not installed", "pyarrow, which reads Parquet"
        fix = "pip install 'qwen-task-heads[train]', or write JSONL"
        raise error_at(path, problem, expected, fix, code="package-missing") from error
    number = 0
    try:
        # Without these two options, all row groups that have been read stay in memory.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as table:
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                problem, fix = "a column is repeated", "rename one of the two"
                yield path, FileProblem(path, problem, "every column once", fix, code="column-ambiguous")
                return
            if not table.metadata.num_rows:
                yield path, no_rows(path, "the file has no rows")
            bytes_of_row = 1 + sum(
                table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups)
            ) // max(1, table.metadata.num_rows)
            size = max(1, min(BATCH_ROWS, BATCH_BYTES // bytes_of_row))
            for batch in table.iter_batches(batch_size=size):
                first, number = number + 1, number + batch.num_rows
                numbers = range(first, number + 1)
                try:
                    columns = {
                        name: column_values(batch.column(place))
                        for place, name in enumerate(names)
                        if batch.column(place).null_count < batch.num_rows
                    }
                except UnicodeDecodeError:  # Parquet does not check its strings
                    yield from in_batches(_parquet_rows(path, batch, numbers))
                    continue
                yield Batch(columns, numbers, f"{path}:row ")
    # UnicodeDecodeError comes from column names.
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        reason = shorten(str(error).split("\n", 1)[0], 100)
        problem = f"the file is damaged after row {number} ({reason})"
        fix = "copy or write it again"
        yield path, FileProblem(path, problem, "a whole Parquet file", fix, code="file-truncated")


def column_values(column: Any) -> list[Any]:
    """Return the values of an Arrow column, `ABSENT` for its nulls."""
    values: list[Any] = column.to_pylist()
    return [ABSENT if value is None else value for value in values] if column.null_count else values


def _parquet_rows(path: str, batch: Any, numbers: Sequence[int]) -> Iterator[Row]:
    """Yield rows one by one, some of which have strings that are not UTF-8."""
    for place, number in enumerate(numbers):
        where = f"{path}:row {number}"
        try:
            row = batch.slice(place, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield where, bad_byte(where, error.object, error.start)
            continue
        yield where, {name: value for name, value in row.items() if value is not None}


def parquet_class_names(path: str) -> dict[str, tuple[str, ...]]:
    """Return a map of columns to class names if `datasets` wrote the file, else {}."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from datasets import Features
    except ImportError:
        return {}
    try:
        schema = pq.read_schema(path)
        if b"huggingface" not in (schema.metadata or {}):
            return {}
        return names_of_classes(Features.from_arrow_schema(schema))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # a defect of the file is reported when its rows are read
