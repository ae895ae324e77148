"""One JSONL or JSON file -> rows, and what all kinds of files share (`tables.py` has the others).

Design:
- A row is `(source, dict)`, or `(source, Problem)` where it cannot be read; nothing else comes out of
  here and no foreign exception leaves it. Line-based files name the line (`train.jsonl:17`), the others
  the row, counted from 1 (`train.parquet:row 17`).
- A defect of the whole file (wrong kind, unreadable) is a `FileProblem`: one message, not one per line,
  and `bad_rows="skip"` never passes over it.
- Text is UTF-8, with or without a byte order mark, or of the encoding that is named (`file_options.py`).
- A `.json` file may hold one document or JSON lines: published data sets use the suffix for both. Its first
  lines decide (`_holds_json_lines`), and a defective line is one row's problem, not the whole file's.
- A JSON `null` stays `None` and is refused where it is used.
- Memory: a batch of lines for JSONL, the whole file for JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

from qwen_task_heads.data.batches import BATCH_BYTES, BATCH_ROWS, Item, Row, RowBatch, in_batches
from qwen_task_heads.data.file_options import PLAIN, FileOptions, bad_byte
from qwen_task_heads.errors import Problem, shorten

MAX_LINE_BYTES = 16 * 2**20  # no title is longer; a line without an end must not fill the memory
MAX_JSON_BYTES = 2**30  # a JSON document is held whole, several times over
SYNTAX_FAILURES = 20  # so many bad lines and not one good: the file is of another kind
SNIFFED_LINES = 20  # of a .json file, to tell JSON lines from one document
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
    """A JSON object in which a key stood twice; `key` is the first such key."""

    key = ""


def wrong_kind(path: str, kind: str) -> FileProblem | None:
    """Look at the first 4 KiB, so that a file of another kind is named once and not line by line."""
    with open(path, "rb") as stream:
        head = stream.read(4096)
    if not head:
        return FileProblem(path, "the file is empty", "at least one row", "add rows")
    if kind == "xlsx" and head.startswith(b"PK\x03\x04"):
        return None
    accepted = "" + KIND_NAMES.get(kind, f"UTF-8 text in {kind.upper()}")
    found = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    if kind == "parquet":
        if found == "a Parquet file":
            return None
        found = found or "no Parquet file (it does not start with 'PAR1')"
        return FileProblem(
            path, f"found {found}", accepted, "give the file the suffix of its kind, or convert it"
        )
    control = sum(byte < 32 and byte not in b"\t\n\r\f" for byte in head)
    if found is None and control > len(head) // 20:
        found = "binary data"
    if found:
        return FileProblem(
            path, f"found {found}", accepted, "unpack or convert it, and keep the suffix of its kind"
        )
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    first = text.split(b"\n", 1)[0].strip()
    if kind == "jsonl" and (first in (b"{", b"[", b"[]") or re.match(rb"\[\s*\{", text)):
        found = "one JSON document over the whole file, not one object per line"
        return FileProblem(
            path, f"found {found}", accepted, "rename it to .json, or write one object per line"
        )
    if kind in ("csv", "tsv") and first[:1] in (b"{", b"["):
        return FileProblem(path, "found JSON", accepted, "rename it to .json")  # which takes JSON lines too
    return None


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their ends; of a line over the limit, the first `MAX_LINE_BYTES` + 1 bytes."""
    number, most = 0, MAX_LINE_BYTES + 1
    while line := stream.readline(most):
        number += 1
        if len(line) == most:
            rest = line
            while len(rest) == most and not rest.endswith(b"\n"):
                rest = stream.readline(most)
        yield number, line if number > 1 else line.removeprefix(b"\xef\xbb\xbf")


def line_too_long(where: str) -> Problem:
    """The problem of a line over the limit."""
    limit = f"at most {MAX_LINE_BYTES:,} bytes in a line"
    return Problem(where, "the line is too long", limit, "cut the text, or check for missing line ends")


def read_jsonl(path: str, options: FileOptions = PLAIN) -> Iterator[Item]:
    """Rows of a file with one JSON object per line; blank lines are passed over."""
    held: list[tuple[str, Problem]] = []  # errors before the first good line: maybe a file of another kind
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
        problem = FileProblem(path, "the file holds no rows", "at least one row", "add rows")
        yield path, problem
    if len(held) < SYNTAX_FAILURES:
        yield from held
        return
    where, first = held[0]
    found = f"not one of {len(held):,} lines is a JSON object (the first: {first.problem})"
    accepted, remedy = (
        "one JSON object per line",
        "give the file the suffix of its kind, or convert it",
    )
    if "--encoding" in first.fix:
        accepted, remedy = first.expected, first.fix
    yield where, FileProblem(where, found, accepted, remedy)


def _plain_object(line: bytes, encoding: str) -> dict[str, Any] | None:
    """The object of a line that holds no other one; None where `_json_line` must look.

    One pass of C code: objects come as tuples of pairs, which tells a key that stands twice.
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
        return Problem(
            where, f"the last line is cut off or malformed: {value.problem}", value.expected, value.fix
        )
    return value if isinstance(value, Problem) else check_object(where, value)


def _parse_json(where: str, text: str) -> Any:
    """The value, or a Problem; duplicate keys are only marked here, because their row is not known yet."""
    accepted = "valid JSON"
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"column {error.colno:,}" if error.lineno == 1 else f"line {error.lineno:,}"
        return Problem(where, f"not JSON at {place}: {error.msg}", accepted, "correct the syntax")
    except RecursionError:
        return Problem(where, "JSON nested too deeply", accepted, "write plain rows of columns")
    except ValueError:  # the only one left: an integer of more than 4,300 digits
        return Problem(where, "a number with too many digits", accepted, "correct the number")


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
    """Refuse what is no object, duplicate keys and lone surrogates, at any depth."""
    if not isinstance(value, dict):
        found = f"found {shorten(value)}" if not isinstance(value, list) else "found a JSON array"
        return Problem(where, found, "a JSON object of columns", "write each row as an object")
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, _DuplicateKeys):
            found = f"the key {shorten(item.key)} stands twice"
            return Problem(where, found, "every key once", "keep one of the two")
        if isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list) and set(map(type, item)) == {str}:
            stack.append("".join(item))  # 100,000 labels in a row are one search
        elif isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, str) and LONE_SURROGATE.search(item):
            surrogate = ord(LONE_SURROGATE.search(item).group())  # type: ignore[union-attr]
            found = f"a lone surrogate (\\u{surrogate:04x}), which is no character"
            return Problem(where, found, "whole characters", "write the text again from its origin")
    return value


def _holds_json_lines(path: str) -> bool:
    """Return whether a `.json` file holds one object per line, told from its first lines.

    At least half of them are whole objects, which leaves room for defective lines. A file of one line is a
    document, and so is one whose first line ends with the bracket that it opens.
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
    """Rows of a file that is one JSON array, or one object around an array; numbered from 1.

    JSON lines under this suffix are read as `read_jsonl` reads them, and keep their line numbers.
    """
    if _holds_json_lines(path):
        yield from read_jsonl(path, options)
        return
    yield from in_batches(_read_document(path, options))


def _read_document(path: str, options: FileOptions) -> Iterator[Row]:
    accepted = "an array of objects, an object with one such array, or an object per line"
    if os.path.getsize(path) > MAX_JSON_BYTES:
        yield (
            path,
            FileProblem(path, f"over {MAX_JSON_BYTES:,} bytes", accepted, "write JSONL, read line by line"),
        )
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
        yield path, FileProblem(bad.where, bad.problem, bad.expected, bad.fix)
        return
    value = _parse_json(path, text)
    if isinstance(value, Problem):
        remedy = "correct the syntax"
        yield path, FileProblem(path, value.problem, accepted, remedy)
        return
    if isinstance(value, dict) and not isinstance(value, _DuplicateKeys):
        arrays = [item for item in value.values() if isinstance(item, list)]
        value = arrays[0] if len(arrays) == 1 else value
    if not isinstance(value, list):
        found = "found an object" if isinstance(value, dict) else f"found {shorten(value)}"
        yield path, FileProblem(path, found, accepted, "write the rows as one array, or as JSONL")
        return
    for number, item in enumerate(value, start=1):
        where = f"{path}:row {number}"
        yield where, check_object(where, item)
