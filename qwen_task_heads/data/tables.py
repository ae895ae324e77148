"""One CSV, TSV, Parquet or tab-separated class file -> rows.

Design:
- CSV and TSV are read strictly: a stray quote is refused where it stands, before it swallows the lines below.
  All values stay text (`TextRow`), because only the column knows whether `007` is a number.
- Nulls of Parquet are absent values: a columnar file has no other way to leave a value out.
- A class file (`train.txt`) has no header and no quotes: a text, a tab and its label in each line. Without a
  tab, a line is a text without a label, as in a file for prediction.
- Memory: the whole file for CSV and TSV, a batch of rows for Parquet, a line for class files.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

from qwen_task_heads.data.parsers import (
    LONE_SURROGATE,
    MAX_LINE_BYTES,
    FileProblem,
    Row,
    TextRow,
    bad_byte,
    line_too_long,
    numbered_lines,
)
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten


def read_csv(path: str) -> Iterator[Row]:
    """Rows of a file with commas, each named by the line it starts on."""
    return iter(_read_table(path, ","))


def read_tsv(path: str) -> Iterator[Row]:
    """Rows of a file with tabs; quotes mean what they mean in CSV."""
    return iter(_read_table(path, "\t"))


def _read_table(path: str, delimiter: str) -> list[Row]:
    """All rows at once: the field limit of `csv` is global to the process, so it is set and put back."""
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    too_long: set[int] = set()  # physical lines that were cut
    try:
        with open(path, "rb") as stream:
            # Bytes that are no UTF-8 become lone surrogates, so that their row can be named below.
            lines = (line.decode("utf-8", "surrogateescape") for _, line in _noted(stream, too_long))
            return _table_rows(path, csv.reader(lines, delimiter=delimiter, strict=True), delimiter, too_long)
    finally:
        csv.field_size_limit(limit)


def _noted(stream: BinaryIO, too_long: set[int]) -> Iterator[tuple[int, bytes]]:
    for number, line in numbered_lines(stream):
        if len(line) > MAX_LINE_BYTES:
            too_long.add(number)
        yield number, line


def _table_rows(path: str, reader: Any, delimiter: str, too_long: set[int]) -> list[Row]:
    header: list[str] | None = None
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
            problem = _bad_header(path, header, delimiter)
            if problem:
                return [(path, problem)]
        elif header is not None and fields:
            rows.append((where, _table_row(where, header, fields)))
    if not rows:
        found = "no rows below the header"
        rows.append((path, FileProblem(path, found, "accepted: at least one row", "add rows")))
    return rows


def _bad_header(path: str, header: list[str], delimiter: str) -> FileProblem | None:
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
        remedy = {"\t": "rename it to .tsv", ",": "rename it to .csv"}.get(other, "convert it")
        return FileProblem(f"{path}:1", found, f"accepted: columns separated by {delimiter!r}", remedy)
    return None


def _table_row(where: str, header: list[str], fields: list[str]) -> TextRow | Problem:
    for field in fields:
        bad = LONE_SURROGATE.search(field)
        if bad:
            byte = ord(bad.group()) & 0xFF
            before = shorten(field[max(0, bad.start() - 20) : bad.start()])
            found = f"byte 0x{byte:02x} after {before} is not UTF-8"
            return Problem(where, found, "accepted: UTF-8", "save the file as UTF-8")
    if len(fields) != len(header):
        found = f"found {len(fields)} fields"
        remedy = "quote fields that hold the separator; a cut last line must be written again"
        return Problem(where, found, f"accepted: {len(header)}, as in the header", remedy)
    return TextRow((name, field) for name, field in zip(header, fields, strict=True) if name)


def read_class_lines(path: str) -> Iterator[Row]:
    """Rows of a file of `text<TAB>label` lines; blank lines are passed over."""
    empty = True
    with open(path, "rb") as stream:
        for number, line in numbered_lines(stream):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            empty = False
            if len(line) > MAX_LINE_BYTES:
                yield where, line_too_long(where)
                continue
            try:
                fields = line.decode("utf-8").rstrip("\r\n").split("\t")
            except UnicodeDecodeError as error:
                yield where, bad_byte(where, line[error.start], error.start + 1)
                continue
            if len(fields) > 2:
                found, accepted = f"found {len(fields) - 1} tabs", "accepted: a text, a tab and its label"
                yield where, Problem(where, found, accepted, "remove the tabs of the text, or write JSONL")
                continue
            yield where, TextRow(zip(("text", "label"), fields, strict=False))
    if empty:
        found = "the file holds no rows"
        yield path, FileProblem(path, found, "accepted: at least one row", "check what wrote it")


def read_parquet(path: str) -> Iterator[Row]:
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
                        yield where, bad_byte(where, error.object[error.start], error.start + 1)
                        continue
                    yield where, {name: value for name, value in row.items() if value is not None}
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:  # the last: column names
        reason = shorten(str(error).split("\n", 1)[0], 100)
        found = f"damaged after row {number} ({reason})"
        yield path, FileProblem(path, found, "accepted: a whole Parquet file", "copy or write it again")
