"""Read the rows of a JSONL or JSON file, and define what all file readers share (others: `table_files.py`).

Design:
- A row is `(source, dict)`, or `(source, Problem)` if it cannot be read. The readers raise no exception of
  another library. Line-based files name the line (`train.jsonl:17`), the others the row, counted from 1
  (`train.parquet:row 17`).
- A defect of the whole file (wrong kind, unreadable) is a `FileProblem`: one message instead of one per
  line. `bad_rows="skip"` never skips it.
- Text is UTF-8, with or without a byte order mark, or has the encoding of the options (`file_options.py`).
- A `.json` file may be one document or JSON lines: published data sets use the suffix for both. Its first
  lines decide (`_has_json_lines`), and a defective line is the problem of one row, not of the file.
- A JSON `null` stays `None`; the reader of the column refuses it.
- Memory: a batch of lines for JSONL, the whole file for JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, BinaryIO

from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.sources.batches import BATCH_BYTES, BATCH_ROWS, Item, Row, RowBatch, in_batches
from qwen_task_heads.sources.file_options import PLAIN, FileOptions, bad_byte

MAX_LINE_BYTES = 16 * 2**20  # a file without line ends must not fill the memory
MAX_JSON_BYTES = 2**30  # a JSON document is in memory several times while it is parsed
SYNTAX_FAILURES = 20  # with this many bad lines and no good one, the file is of another kind
SNIFFED_LINES = 20  # of a .json file, to distinguish JSON lines from one document
MAGIC = {
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"PAR1": "a Parquet file",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"SQLite format 3": "an SQLite database",
}
KIND_NAMES = {"parquet": "a Parquet file", "xlsx": "an Excel workbook (.xlsx)", "arrow": "an Arrow file"}
SCAN = json.JSONDecoder(object_pairs_hook=tuple).raw_decode
SCALARS = frozenset({str, int, float, bool, type(None)})
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class FileProblem(Problem):
    """A defect of a whole file; never skipped."""


class _DuplicateKeys(dict[str, Any]):
    """A JSON object with a repeated key; `key` is the first such key."""

    key = ""


def wrong_kind(path: str, kind: str) -> FileProblem | None:
    """Return the problem of a file whose first 4 KiB do not agree with its kind, or None."""
    with open(path, "rb") as stream:
        head = stream.read(4096)
    if not head:
        return no_rows(path, "the file is empty")
    if kind == "xlsx" and head.startswith(b"PK\x03\x04"):
        return None
    expected = KIND_NAMES.get(kind, f"UTF-8 text in {kind.upper()}")
    content = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    if kind == "parquet":
        if content == "a Parquet file":
            return None
        problem = f"found {content}" if content else "the file does not start with 'PAR1'"
        fix = "give the file the suffix of its kind, or convert it"
        return FileProblem(path, problem, expected, fix, code="file-format")
    control = sum(byte < 32 and byte not in b"\t\n\r\f" for byte in head)
    if content is None and control > len(head) // 20:
        content = "binary data"
    if content:
        fix = "unpack or convert it, and keep the suffix of its kind"
        return FileProblem(path, f"found {content}", expected, fix, code="file-format")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    first = text.split(b"\n", 1)[0].strip()
    if kind == "jsonl" and (first in (b"{", b"[", b"[]") or re.match(rb"\[\s*\{", text)):
        problem = "found one JSON document instead of one object per line"
        fix = "rename it to .json, or write one object per line"
        return FileProblem(path, problem, expected, fix, code="file-format")
    if kind in ("csv", "tsv") and first[:1] in (b"{", b"["):  # .json may hold JSON lines too
        return FileProblem(path, "found JSON", expected, "rename it to .json", code="file-format")
    return None


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines with their ends; of a longer line, the first `MAX_LINE_BYTES` + 1 bytes."""
    number, most = 0, MAX_LINE_BYTES + 1
    while line := stream.readline(most):
        number += 1
        if len(line) == most:
            rest = line
            while len(rest) == most and not rest.endswith(b"\n"):
                rest = stream.readline(most)
        yield number, line if number > 1 else line.removeprefix(b"\xef\xbb\xbf")


def no_rows(where: str, problem: str) -> FileProblem:
    """Return the problem of a file without rows."""
    return FileProblem(where, problem, "at least one row", "add rows", code="file-empty")


def line_too_long(where: str) -> Problem:
    """Return the problem of a line over the limit."""
    limit = f"at most {MAX_LINE_BYTES:,} bytes in a line"
    fix = "cut the text, or check for missing line ends"
    return Problem(where, "the line is too long", limit, fix, code="text-too-long")


def read_jsonl(path: str, options: FileOptions = PLAIN) -> Iterator[Item]:
    """Yield the rows of a file with one JSON object per line; blank lines are skipped."""
    # Problems before the first good line are held back: the file may be of another kind.
    held: list[tuple[str, Problem]] = []
    good = False
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    size = 0
    with open(path, "rb") as stream:
        for number, line in numbered_lines(stream):
            row: dict[str, Any] | Problem | None = _plain_object(line, options.encoding)
            if row is None:
                if not line.strip():
                    continue
                row = _json_line(f"{path}:{number}", line, options)
            if isinstance(row, Problem):
                if rows:
                    yield RowBatch(rows, numbers, f"{path}:")
                    rows, numbers = [], []
                if good:
                    yield row.where, row
                else:
                    held.append((row.where, row))
                continue
            if not good:
                good = True
                yield from held
                held.clear()
            rows.append(row)
            numbers.append(number)
            size += len(line)
            if len(rows) == BATCH_ROWS or size > BATCH_BYTES:
                yield RowBatch(rows, numbers, f"{path}:")
                rows, numbers, size = [], [], 0
    if rows:
        yield RowBatch(rows, numbers, f"{path}:")
    if not good and not held:
        yield path, no_rows(path, "the file has no rows")
    if len(held) < SYNTAX_FAILURES:
        yield from held
        return
    where, first = held[0]
    problem = f"none of {len(held):,} lines is a JSON object (the first: {first.problem})"
    expected, code = "one JSON object per line", "file-format"
    fix = "give the file the suffix of its kind, or convert it"
    if "--encoding" in first.fix:
        expected, fix, code = first.expected, first.fix, first.code
    yield where, FileProblem(where, problem, expected, fix, code=code)


def _plain_object(line: bytes, encoding: str) -> dict[str, Any] | None:
    """Return the object of a line without nested objects; None for lines that `_json_line` must parse.

    This takes one pass of C code. Objects come as tuples of pairs, which shows repeated keys.
    """
    try:
        text = line.decode(encoding) if len(line) <= MAX_LINE_BYTES else ""
        value, end = SCAN(text, 0)
    except (ValueError, RecursionError):
        return None
    if type(value) is not tuple or text[end:] not in ("\n", "", "\r\n"):
        return None
    row = dict(value)
    plain = len(row) == len(value) and all(
        type(item) in SCALARS or (type(item) is list and SCALARS.issuperset(map(type, item)))
        for item in row.values()
    )
    return row if plain and not ("\\u" in text and ESCAPED_SURROGATE.search(text)) else None


def _json_line(where: str, line: bytes, options: FileOptions) -> dict[str, Any] | Problem:
    if len(line) > MAX_LINE_BYTES:
        return line_too_long(where)
    text = options.decode(line, where)
    if isinstance(text, Problem):
        return text
    value = _parse_json(where, text)
    if isinstance(value, Problem) and not line.endswith(b"\n"):
        problem = f"the last line is cut off or malformed: {value.problem}"
        return replace(value, problem=problem, code="file-truncated")
    return value if isinstance(value, Problem) else check_object(where, value)


def _parse_json(where: str, text: str) -> Any:
    """Return the value, or a Problem; duplicate keys are only marked, because their row is not known yet."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"column {error.colno:,}" if error.lineno == 1 else f"line {error.lineno:,}"
        problem = f"this is not JSON at {place}: {error.msg}"
        return Problem(where, problem, "valid JSON", "correct the syntax", code="file-format")
    except RecursionError:
        problem, fix = "the JSON is nested too deeply", "write plain rows of columns"
        return Problem(where, problem, "valid JSON", fix, code="file-format")
    except ValueError:  # the only other cause is an integer of more than 4,300 digits
        problem, fix = "found a number with too many digits", "correct the number"
        return Problem(where, problem, "valid JSON", fix, code="value-range")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    marked = _DuplicateKeys(result)
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            marked.key = key
            break
        seen.add(key)
    return marked


def check_object(where: str, value: Any) -> dict[str, Any] | Problem:
    """Refuse values other than objects, and duplicate keys and lone surrogates at any depth."""
    if not isinstance(value, dict):
        problem = f"found {shorten(value)}" if not isinstance(value, list) else "found a JSON array"
        fix = "write each row as an object"
        return Problem(where, problem, "a JSON object of columns", fix, code="value-type")
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, _DuplicateKeys):
            problem = f"the key {shorten(item.key)} is repeated"
            return Problem(where, problem, "every key once", "keep one of the two", code="column-ambiguous")
        if isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list) and set(map(type, item)) == {str}:
            stack.append("".join(item))  # one search instead of one for each of up to 100,000 labels
        elif isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, str) and LONE_SURROGATE.search(item):
            surrogate = ord(LONE_SURROGATE.search(item).group())  # type: ignore[union-attr]
            problem = f"found a lone surrogate (\\u{surrogate:04x}), which is not a character"
            fix = "write the text again from its origin"
            return Problem(where, problem, "whole characters", fix, code="file-encoding")
    return value


def _has_json_lines(path: str) -> bool:
    """Return whether the first lines of a `.json` file are one object each.

    At least half of them must be whole objects, so that some may be defective. A file of one line is a
    document, and so is a file whose first line ends with an opening bracket.
    """
    with open(path, "rb") as stream:
        lines = (line for _, line in numbered_lines(stream) if line.strip())
        head = list(islice(lines, SNIFFED_LINES))
    opens = bool(head) and head[0].rstrip().endswith((b"[", b"{"))
    return len(head) > 1 and not opens and 2 * sum(map(_is_object, head)) >= len(head)


def _is_object(line: bytes) -> bool:
    if len(line) > MAX_LINE_BYTES or not line.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def read_json(path: str, options: FileOptions = PLAIN) -> Iterator[Item]:
    """Yield the rows of a file that is one JSON array, or one object with an array; numbered from 1.

    JSON lines under this suffix are read by `read_jsonl`, and keep their line numbers.
    """
    if _has_json_lines(path):
        yield from read_jsonl(path, options)
        return
    yield from in_batches(_read_document(path, options))


def _read_document(path: str, options: FileOptions) -> Iterator[Row]:
    expected = "an array of objects, an object with one such array, or an object per line"
    if os.path.getsize(path) > MAX_JSON_BYTES:
        problem = f"the file has over {MAX_JSON_BYTES:,} bytes"
        fix = "write JSONL, which is read line by line"
        yield path, FileProblem(path, problem, expected, fix, code="file-format")
        return
    with open(path, "rb") as stream:
        content = stream.read().removeprefix(b"\xef\xbb\xbf")
    try:
        text = content.decode(options.encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start)
        begin = content.rfind(b"\n", 0, error.start) + 1
        end = content.find(b"\n", error.start)
        around = content[begin : end if end >= 0 else len(content)][:MAX_LINE_BYTES]
        bad = bad_byte(f"{path}:{line + 1}", around, error.start - begin, encoding=options.encoding)
        yield path, FileProblem(**vars(bad))
        return
    value = _parse_json(path, text)
    if isinstance(value, Problem):
        yield path, FileProblem(path, value.problem, expected, "correct the syntax", code=value.code)
        return
    if isinstance(value, dict) and not isinstance(value, _DuplicateKeys):
        arrays = [item for item in value.values() if isinstance(item, list)]
        value = arrays[0] if len(arrays) == 1 else value
    if not isinstance(value, list):
        problem = "found an object" if isinstance(value, dict) else f"found {shorten(value)}"
        fix = "write the rows as one array, or as JSONL"
        yield path, FileProblem(path, problem, expected, fix, code="file-format")
        return
    for number, item in enumerate(value, start=1):
        where = f"{path}:row {number}"
        yield where, check_object(where, item)
