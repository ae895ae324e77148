"""Columns of a row -> a text with its unresolved target, or every problem of that row.

Design:
- A target is kept as written (`RawTarget.value`) until all files are read, because the meaning of `3`, `"3"`
  or `"sport"` depends on all rows (`label_values.py`, `text_targets.py`).
- Nothing is coerced: `true` is not a label id. `cells.py` parses the cells of CSV, TSV and class files, in
  which every cell is text, and texts that contain a list or a conversation.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from typing import Any

from qwen_task_heads.data.batches import TextRow
from qwen_task_heads.data.cells import MISSING, looks_like_list, parse_cell, parse_list, parse_number
from qwen_task_heads.data.conversations import CONVERSATIONS, MESSAGES, read_messages
from qwen_task_heads.data.label_files import is_whole
from qwen_task_heads.data.pair_columns import MAX_NUMBER, MIN_WEIGHT, RowReader, require
from qwen_task_heads.data.raw_texts import RawTarget, RawText
from qwen_task_heads.data.text_layout import ALPACA, TextLayout
from qwen_task_heads.errors import shorten


def read_text(row: RowReader, layout: TextLayout) -> RawText | None:
    """Read one row; return None if `row.problems` has any."""
    is_alpaca = layout.texts[:1] == (ALPACA,)
    needed = dict.fromkeys((*(layout.texts[:1] if is_alpaca else layout.texts), layout.target))
    complete = require(row, layout, tuple(name for name in needed if name))
    texts = [
        read_content(row, name)
        for name in layout.texts
        if name in row.values and not _is_empty_input(row, name)
    ]
    texts = ["\n".join(texts)] if is_alpaca else texts
    value = _read_target(row, layout) if layout.target in row.values else None
    name = _read_name(row, layout.name) if layout.name else ""
    has_candidates = layout.target == "output" and "category" not in layout.absent
    candidates = read_candidates(row, value) if has_candidates else ()
    weight = row.number("weight", low=MIN_WEIGHT, high=MAX_NUMBER, expected="a number from 1e-6 to 1e6")
    group = row.group()
    if row.problems or not complete:
        return None
    cell = row.values.get(layout.target)
    return RawText(
        text=texts[0],
        text_b=texts[1] if len(texts) > 1 else "",
        weight=1.0 if weight is None else weight,
        group=group,
        target=RawTarget(
            value=value,
            name=name,
            candidates=candidates,
            where=row.where,
            textual=isinstance(row.values, TextRow),
            is_split=isinstance(cell, str) and not looks_like_list(cell),
        ),
    )


def _is_empty_input(row: RowReader, column: str) -> bool:
    """Return whether a column is the `input` of an Alpaca row whose instruction is the whole text."""
    return column == "input" and not row.values[column]


def read_content(row: RowReader, column: str) -> str:
    """Return the stripped text of a column, "" if it is refused.

    The text of a conversation is that of the user's messages, joined by newlines.
    """
    value = row.values[column]
    if column in CONVERSATIONS:
        value = _user_text(row, column)
        if value is None:
            return ""
    if not isinstance(value, str):
        code = "value-missing" if value is None else "value-type"
        row.refuse(f"{column!r} is {shorten(value)}", "text", "write the text as a string", code=code)
        return ""
    text = value.strip()
    # `all` stops at the first visible character; strip() alone keeps zero-width and control characters.
    if all(unicodedata.category(char) in ("Zs", "Zl", "Zp", "Cc", "Cf") for char in text):
        defect = "empty" if not value else "white space only" if not text else "without any visible text"
        fix = "fill in the text or remove the row"
        row.refuse(f"{column!r} is {defect}", "a text with visible characters", fix, code="text-empty")
        return ""
    return text


def _user_text(row: RowReader, column: str) -> str | None:
    """Return the contents of the user's messages, without those of system and assistant."""
    messages = read_messages(row, column)
    if messages is None:
        return None
    contents = [content for role, content in messages if role == "user"]
    if not contents:
        problem = f"{column!r} has no message of the user"
        row.refuse(problem, MESSAGES, "add the text as a message of the user", code="value-missing")
        return None
    return "\n".join(contents)


def _read_target(row: RowReader, layout: TextLayout) -> Any:
    """Return the value of the target column, checked for its type only."""
    if layout.target in CONVERSATIONS:
        return _last_answer(row, layout.target)
    value = row.values[layout.target]
    if isinstance(row.values, TextRow):
        value = value.strip()
    if layout.kind == "regression":
        value = parse_cell(value) if isinstance(value, str) else value
        return _read_scores(row, layout.target, parse_number(value) if isinstance(value, str) else value)
    if layout.target == "probabilities":
        return _read_probabilities(row, parse_cell(value) if isinstance(value, str) else value)
    if layout.kind == "multi_label_classification":
        return _read_list(row, layout.target, value)
    if isinstance(value, str) and looks_like_list(value) and parse_list(value) is not None:
        value = parse_list(value)
    elif isinstance(row.values, TextRow):
        # pandas writes "nan" for a missing label; it is not a name.
        value = math.nan if value.lower() == "nan" else _parse_whole(value)
    # pandas writes whole numbers as floats if any cell of the column is missing.
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    return value if _is_label(row, layout.target, number) else None


def _last_answer(row: RowReader, column: str) -> str | None:
    """Return the label of a conversation without a target column: the last message of the assistant."""
    messages = read_messages(row, column)
    if not messages:
        return None
    role, content = messages[-1]
    if role != "assistant" or not content.strip():
        problem = f"the last message of {column!r} is from {shorten(role)}"
        if not content.strip():
            problem = f"the last message of {column!r} is empty"
        expected = "the label as the last message of the assistant"
        row.refuse(problem, expected, "add it, or a 'label' column", code="value-missing")
        return None
    return content.strip()


def _parse_whole(text: str) -> int | str:
    """Parse a number in the notation of Python; `007` is a name."""
    return int(text) if is_whole(text) and len(text) < 19 and str(int(text)) == text else text


def _is_label(row: RowReader, column: str, value: Any) -> bool:
    """Return whether a value can be an id or a name; if not, the row is refused."""
    if isinstance(value, str) and value.strip():
        return True
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_integer and 0 <= value < 10**9:
        return True
    code, expected = "value-type", "the id of a label, or its name"
    fix = "write the label as in the other rows"
    if isinstance(value, list):
        fix = "rename the column to 'labels' for several labels in a row"
    elif isinstance(value, float) and math.isfinite(value):
        fix = "write whole numbers, or train on scores: --problem_type regression"
    elif is_integer:
        code, expected = "value-range", "ids from 0"
        fix = "correct the id, or remove the row (-100 and -1 mark unlabeled rows)"
    elif value is None or isinstance(value, str | float):  # an empty text, NaN or infinity
        code = "value-missing"
    row.refuse(f"{column!r} is {shorten(value)}", expected, fix, code=code)
    return False


def _read_list(row: RowReader, column: str, value: Any) -> list[Any] | None:
    """Return the different ids or names of a list, or of text such as `a|b`; [] for a row without labels."""
    expected = "a list of ids or of names, which may be empty, or text such as a|b"
    if isinstance(value, str) and value.strip():
        value = _split_list(value)
    if not isinstance(value, list):
        fix = "rename the column to 'label' for one label in a row, or write a list ([] for none)"
        code = "value-missing" if value is None or isinstance(value, str) else "value-type"
        row.refuse(f"{column!r} is {shorten(value)}", expected, fix, code=code)
        return None
    if not all(_is_label(row, column, item) for item in value):
        return None
    if len({type(item) for item in value}) > 1:
        fix = "write all of them in one form"
        row.refuse(f"{column!r} mixes ids and names", expected, fix, code="value-type")
        return None
    labels = [item.strip() if isinstance(item, str) else item for item in value]
    if len(set(labels)) < len(labels):
        fix = "write each label once (the ids of the labels, not a row of zeros and ones)"
        problem = f"{column!r} names a label twice: {shorten(value)}"
        row.refuse(problem, expected, fix, code="value-conflict")
        return None
    return labels


def _split_list(text: str) -> list[Any] | str:
    """Split a text into labels: a list, or parts between `|`; `label_values` finds other separators."""
    if looks_like_list(text):
        parsed = parse_list(text)
        return text if parsed is None else parsed
    parts = [part.strip() for part in text.split("|")]
    numbers = [_parse_whole(part) for part in parts]
    return numbers if all(isinstance(part, int) for part in numbers) else parts


def _read_scores(row: RowReader, column: str, value: Any) -> tuple[float, ...] | None:
    """Return one score, or a list of scores."""
    scores = value if isinstance(value, list) else [value]
    for score in scores:
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        if not is_number or not -MAX_NUMBER <= score <= MAX_NUMBER:
            code = "value-range" if is_number else "value-missing" if score is None else "value-type"
            problem = f"{column!r} is {shorten(value)}"
            row.refuse(problem, "a number from -1e6 to 1e6", "correct it", code=code)
            return None
    if not scores:
        row.refuse(f"{column!r} is []", "at least one score", "write the score", code="value-missing")
        return None
    return tuple(float(score) for score in scores)


def _read_probabilities(row: RowReader, value: Any) -> list[float] | dict[str, float] | None:
    """Return P(label) by id or by name, divided by the sum, which may differ from 1 by 1e-3."""
    expected = "a list of probabilities, or a mapping of names to probabilities, with sum 1"
    numbers = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(numbers, list) or not numbers:
        code = "value-missing" if value is None else "value-type"
        problem = f"'probabilities' is {shorten(value)}"
        row.refuse(problem, expected, "write one number per label", code=code)
        return None
    for number in numbers:
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not 0 <= number <= 1:
            code = "value-range" if is_number else "value-type"
            problem = f"found {shorten(number)} in 'probabilities'"
            row.refuse(problem, expected, "correct the number", code=code)
            return None
    total = math.fsum(numbers)
    if abs(total - 1) > 1e-3:  # numbers may be rounded to three digits
        problem = f"the sum of 'probabilities' is {total:.6g}"
        row.refuse(problem, expected, "divide them by their sum", code="value-range")
        return None
    if isinstance(value, dict):
        return {name: number / total for name, number in value.items()}
    return [number / total for number in value]


def _read_name(row: RowReader, column: str) -> str:
    """Return the name of the label id, "" if there is none."""
    name = row.values.get(column, "")
    if isinstance(row.values, TextRow) and name.strip() in MISSING - {"None"}:
        return ""
    if not isinstance(name, str) or (column in row.values and not name.strip()):
        code = "value-missing" if name is None or isinstance(name, str) else "value-type"
        problem, fix = f"{column!r} is {shorten(name)}", "write it as text, or drop it"
        row.refuse(problem, "the name of the label", fix, code=code)
        return ""
    return name.strip()


def read_candidates(row: RowReader, output: Any, *, column: str = "category") -> tuple[str, ...]:
    """Return the candidate labels of a column: a list, or a text with separators such as commas.

    Args:
        row: the row, which collects the problems.
        output: the correct candidate, None if unknown.
        column: the column of candidates.
    """
    value = row.values.get(column, "")
    if isinstance(value, str):
        parsed = parse_list(value)
        value = _split_candidates(value) if parsed is None else parsed
    # A row may have 100,000 candidates, so each check is one pass of C code.
    are_texts = isinstance(value, list) and set(map(type, value)) == {str}
    names = tuple(map(str.strip, value)) if are_texts else ()
    if not names or not all(names):
        problem = f"{column!r} is {shorten(value)}"
        expected = "candidate labels, as a list or separated by commas"
        row.refuse(problem, expected, "write a list of names", code="value-type")
        return ()
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        problem = f"{column!r} names {shorten(twice)} twice"
        row.refuse(problem, "each candidate once", "write it once", code="value-conflict")
    if isinstance(output, str) and output.strip() not in names:
        problem = f"'output' is {shorten(output)}, which is not a candidate in {column!r} ({shorten(names)})"
        fix = f"correct 'output', or add it to {column!r}"
        row.refuse(problem, "one of the candidates", fix, code="value-conflict")
    elif output is not None and not isinstance(output, str):
        problem = f"'output' is {shorten(output)}"
        row.refuse(problem, "the name of a label", "write one of the candidates", code="value-type")
    return names


def _split_candidates(text: str) -> list[str]:
    """Split `a, b` or `['a', 'b']`; names with a comma need a list that can be parsed."""
    for mark in "，、;；|\n":
        text = text.replace(mark, ",")
    return [part.strip().strip("'\"").strip() for part in text.strip().strip("[]").split(",")]
