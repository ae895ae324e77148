"""One CSV, TSV or Parquet file -> rows.

Design:
- CSV and TSV are read strictly: a stray quote is refused where it stands, before it swallows the lines below.
  All values stay text (`TextRow`), because only the column knows whether `007` is a number.
- Nulls of Parquet are absent values: a columnar file has no other way to leave a value out.
- Memory: the whole file for CSV and TSV, a batch of rows for Parquet.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

from qwen_task_heads.data.file_options import PLAIN, FileOptions, bad_byte
from qwen_task_heads.data.hub_sets import names_of_classes
from qwen_task_heads.data.parsers import (
    LONE_SURROGATE,
    MAX_LINE_BYTES,
    FileProblem,
    Row,
    TextRow,
    line_too_long,
    numbered_lines,
)
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten


def read_csv(path: str, options: FileOptions = PLAIN) -> Iterator[Row]:
    """Rows of a file with commas, each named by the line it starts on."""
    return iter(_read_table(path, ",", options))


def read_tsv(path: str, options: FileOptions = PLAIN) -> Iterator[Row]:
    """Rows of a file with tabs; quotes mean what they mean in CSV."""
    return iter(_read_table(path, "\t", options))


def _read_table(path: str, delimiter: str, options: FileOptions) -> list[Row]:
    """All rows at once: the field limit of `csv` is global to the process, so it is set and put back."""
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    too_long: set[int] = set()  # physical lines that were cut
    try:
        with open(path, "rb") as stream:
            # Bytes that are no text become lone surrogates, so that their row can be named below.
            lines = (line.decode(options.encoding, "surrogateescape") for _, line in _noted(stream, too_long))
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            return _table_rows(path, reader, delimiter, too_long, options)
    finally:
        csv.field_size_limit(limit)


def _noted(stream: BinaryIO, too_long: set[int]) -> Iterator[tuple[int, bytes]]:
    for number, line in numbered_lines(stream):
        if len(line) > MAX_LINE_BYTES:
            too_long.add(number)
        yield number, line


def _table_rows(
    path: str, reader: Any, delimiter: str, too_long: set[int], options: FileOptions
) -> list[Row]:
    header: list[str] | None = [*options.columns] or None
    rows: list[Row] = []
    while True:
        first_line = reader.line_num + 1
        where = f"{path}:{first_line}"
        problem: Problem | None = None
        fields: list[str] = []
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            remedy = 'close the quotes, and write " inside a quoted field as ""'
            problem = Problem(where, f"malformed row ({error})", "accepted: quoted or plain fields", remedy)
        if too_long and not too_long.isdisjoint(range(first_line, reader.line_num + 1)):
            problem = line_too_long(where)
        if header is None and problem:
            return [(path, FileProblem(where, f"header: {problem.found}", problem.accepted, problem.remedy))]
        if problem:
            rows.append((where, problem))
        elif header is None and fields:
            header = [name.strip() for name in fields]
            problem = bad_header(path, header, delimiter)
            if problem:
                return [(path, problem)]
        elif header is not None and fields:
            rows.append((where, _table_row(where, header, fields, options)))
    if not rows:
        found = "no rows below the header"
        rows.append((path, FileProblem(path, found, "accepted: at least one row", "add rows")))
    return rows


def bad_header(path: str, header: list[str], delimiter: str) -> FileProblem | None:
    """Return the problem of a header with a column twice, or with another delimiter."""
    named = [name for name in header if name]  # pandas writes its index under an empty name
    twice = next((name for name in named if named.count(name) > 1), None) if len(named) < 10_000 else None
    if twice is not None:
        found = f"the column {shorten(twice)} stands twice in the header"
        return FileProblem(f"{path}:1", found, "accepted: every column once", "rename one of the two")
    other = next(
        (mark for mark in ",;\t|" if mark != delimiter and len(header) == 1 and mark in header[0]), None
    )
    if other is not None:
        found = f"the header is separated by {other!r}"
        if not delimiter:  # of a sheet
            accepted, remedy = "accepted: a column in a cell", "split the cells into columns"
            return FileProblem(f"{path}:1", found, accepted, remedy)
        remedy = {"\t": "rename it to .tsv", ",": "rename it to .csv"}.get(
            other, f"write it again with {delimiter!r} between the columns"
        )
        return FileProblem(f"{path}:1", found, f"accepted: columns separated by {delimiter!r}", remedy)
    return None


def _table_row(where: str, header: list[str], fields: list[str], options: FileOptions) -> TextRow | Problem:
    for field in fields:
        bad = LONE_SURROGATE.search(field)
        if bad:
            raw = field.encode(options.encoding, "surrogateescape")
            place = len(field[: bad.start()].encode(options.encoding, "surrogateescape"))
            told = bad_byte(where, raw, place, encoding=options.encoding)
            before = shorten(field[max(0, bad.start() - 20) : bad.start()])
            found = f"byte 0x{ord(bad.group()) & 0xFF:02x} after {before} is not UTF-8"
            return Problem(where, found, told.accepted, told.remedy)
    if len(fields) != len(header):
        found = f"found {len(fields)} fields"
        if options.columns:
            remedy = "name as many columns in --columns"
            return Problem(where, found, f"accepted: {len(header)}, as --columns names", remedy)
        remedy = "quote fields that hold the separator; a cut last line must be written again"
        return Problem(where, found, f"accepted: {len(header)}, as in the header", remedy)
    return TextRow((name, field) for name, field in zip(header, fields, strict=True) if name)


def read_parquet(path: str, options: FileOptions = PLAIN) -> Iterator[Row]:
    """Rows of a Parquet file, batch by batch, without their nulls."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        remedy = "pip install 'qwen-task-heads[train]', or write JSONL"
        raise TaskHeadsError(Problem(path, "pyarrow is not installed", "Parquet needs it", remedy)) from error
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                found = "a column stands twice"
                yield path, FileProblem(path, found, "accepted: every column once", "rename one of the two")
                return
            if not table.metadata.num_rows:
                yield (
                    path,
                    FileProblem(path, "the file holds no rows", "accepted: at least one row", "add rows"),
                )
            for batch in table.iter_batches(batch_size=1024):
                for index in range(batch.num_rows):
                    number += 1
                    where = f"{path}:row {number}"
                    try:
                        row = batch.slice(index, 1).to_pylist()[0]
                    except UnicodeDecodeError as error:  # Parquet does not check its strings
                        yield where, bad_byte(where, error.object, error.start)
                        continue
                    yield where, {name: value for name, value in row.items() if value is not None}
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:  # the last: column names
        reason = shorten(str(error).split("\n", 1)[0], 100)
        found = f"damaged after row {number} ({reason})"
        yield path, FileProblem(path, found, "accepted: a whole Parquet file", "copy or write it again")


def parquet_class_names(path: str) -> dict[str, tuple[str, ...]]:
    """Return column -> names of its classes, where `datasets` wrote the file; {} for all others."""
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
        return {}  # whatever is wrong with the file is told where its rows are read
