"""Read class files: a text and its label in a line, without a header.

| layout | line |
|---|---|
| THUCNews and others | `text<TAB>label` |
| cnews | `label<TAB>text`, recognised in the first lines, because labels repeat and texts do not |
| fastText | `__label__sport text`, or several labels: `__label__sport __label__news text` |

A line without a label is a text, as in a file for prediction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice

from qwen_task_heads.errors import Problem
from qwen_task_heads.sources.batches import Row, TextRow
from qwen_task_heads.sources.file_options import PLAIN, FileOptions
from qwen_task_heads.sources.json_files import (
    MAX_LINE_BYTES,
    line_too_long,
    no_rows,
    numbered_lines,
)

FASTTEXT = re.compile(r"__label__(\S+)\s*")
SNIFFED = 2000  # lines that decide the layout
FEWEST = 6  # with fewer lines, the label is the second column


def read_class_lines(path: str, options: FileOptions = PLAIN) -> Iterator[Row]:
    """Yield the rows of a file of texts and labels; blank lines are skipped."""
    several, first = _layout(path, options)
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
            text = options.decode(line, where)
            if isinstance(text, Problem):
                yield where, text
                continue
            yield where, _row(where, text.rstrip("\r\n"), several=several, label_first=first)
    if empty:
        yield path, no_rows(path, "the file has no rows")


def is_label_first(path: str, options: FileOptions = PLAIN) -> bool:
    """Return whether the lines of a class file begin with the label, as in cnews."""
    return _layout(path, options)[1]


def _row(where: str, line: str, *, several: bool, label_first: bool) -> TextRow | Problem:
    if line.startswith("__label__"):
        labels, place = [], 0
        while match := FASTTEXT.match(line, place):
            labels.append(match[1])
            place = match.end()
        if several:
            return TextRow(text=line[place:], labels=json.dumps(labels, ensure_ascii=False))
        if len(labels) > 1:
            problem, expected = f"found {len(labels)} labels", "one label, as in the lines above"
            fix = "write JSONL with a column 'labels'"
            return Problem(where, problem, expected, fix, code="value-conflict")
        return TextRow(text=line[place:], label=labels[0])
    fields = line.split("\t")
    if len(fields) > 2:
        problem, fix = f"found {len(fields) - 1} tabs", "remove the tabs of the text, or write JSONL"
        return Problem(where, problem, "a text, a tab and its label", fix, code="file-format")
    if label_first and len(fields) == 2:
        fields.reverse()
    return TextRow(zip(("text", "label"), fields, strict=False))


def _layout(path: str, options: FileOptions) -> tuple[bool, bool]:
    """Return whether fastText lines have several labels, and tab-separated lines begin with the label."""
    with open(path, "rb") as stream:
        decoded = (options.decode(line, "") for _, line in islice(numbered_lines(stream), SNIFFED))
        lines = [line.rstrip("\r\n") for line in decoded if isinstance(line, str)]
    several = any(line.startswith("__label__") and len(FASTTEXT.findall(line[:1000])) > 1 for line in lines)
    pairs = [fields for fields in (line.split("\t") for line in lines) if len(fields) == 2]
    first, second = ({fields[place].strip() for fields in pairs} for place in (0, 1))
    label_first = len(pairs) >= FEWEST and 2 * len(first) < len(second) and len(second) > 0.8 * len(pairs)
    return several, label_first
