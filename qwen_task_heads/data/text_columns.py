"""Columns of a row -> a text with its unresolved target, or every problem of that row.

Design:
- A target is kept as written (`RawTarget.value`) until all files are read, because the meaning of `3`, `"3"`
  or `"sport"` depends on all rows (`label_values.py`, `text_targets.py`).
- Nothing is coerced: `true` is not a label id. `cells.py` parses the cells of CSV, TSV and class files, in
  which every cell is text, and texts that contain a list or a conversation.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from qwen_task_heads.data.cells import MISSING, looks_like_list, parse_cell, parse_list, parse_number
from qwen_task_heads.data.conversations import MESSAGES, read_messages
from qwen_task_heads.data.question_records import read_group, read_record
from qwen_task_heads.data.raw_texts import RawTarget, RawText
from qwen_task_heads.data.row_reader import MAX_NUMBER, RowReader, blank_defect, code_of, is_number
from qwen_task_heads.data.schema import CONVERSATIONS, STATE
from qwen_task_heads.data.text_layout import TextLayout
from qwen_task_heads.errors import shorten
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS, text_of
from qwen_task_heads.labels.label_files import is_whole


def read_text(row: RowReader, layout: TextLayout) -> RawText | None:
    """Read one row; return None if `row.problems` has any."""
    needed = (*(layout.texts[:1] if layout.are_joined else layout.texts), layout.target)
    complete = row.require(layout, tuple(dict.fromkeys(filter(None, needed))))
    present = [name for name in layout.texts if name in row.values]
    if layout.are_joined:
        present = [name for name in present if name in needed or row.values[name]]
    texts = [_read_content(row, name) for name in present]
    texts = ["\n".join(texts)] if layout.are_joined else texts
    value = _read_target(row, layout) if layout.target in row.values else None
    name = _read_name(row, layout.name) if layout.name else ""
    has_candidates = layout.target == "output" and "category" not in layout.absent
    candidates = read_candidates(row, value) if has_candidates else ()
    weight, group = row.weight(), read_group(row) if layout.kind == QUESTIONS else row.group()
    if row.problems or not complete:
        return None
    cell = row.values.get(layout.target)
    return RawText(
        text=texts[0],
        text_b=texts[1] if len(texts) > 1 else "",
        weight=weight,
        group=group,
        target=RawTarget(
            value=value,
            name=name,
            candidates=candidates,
            where=row.where,
            textual=row.is_textual,
            is_split=isinstance(cell, str) and not looks_like_list(cell),
        ),
    )


def _read_content(row: RowReader, column: str) -> str:
    """Return the stripped text of a column, "" if it is refused."""
    value = row.values[column]
    if column in CONVERSATIONS:
        value = _user_text(row, column)
        if value is None:
            return ""
    if column == STATE and isinstance(value, dict | list) and value:
        value = text_of(value)
    if not isinstance(value, str):
        row.refuse_value(column, value, "text", "write the text as a string", code=code_of(value))
        return ""
    text = value.strip()
    if defect := blank_defect(value, visible=text):
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
    if layout.kind == QUESTIONS:
        return read_record(row)
    value = row.values[layout.target]
    if row.is_textual:
        value = value.strip()
    if layout.kind == "regression":
        value = parse_cell(value) if isinstance(value, str) else value
        return _read_scores(row, layout.target, parse_number(value) if isinstance(value, str) else value)
    if layout.target == "probabilities":
        return _read_probabilities(row, parse_cell(value) if isinstance(value, str) else value)
    if layout.kind == "multi_label_classification":
        return _read_list(row, layout.target, value)
    if isinstance(value, str) and (parsed := parse_list(value)) is not None:
        value = parsed
    elif row.is_textual:
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
        defect = f"from {shorten(role)}" if content.strip() else "empty"
        expected = "the label as the last message of the assistant"
        problem, fix = f"the last message of {column!r} is {defect}", "add it, or a 'label' column"
        row.refuse(problem, expected, fix, code="value-missing")
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
    row.refuse_value(column, value, expected, fix, code=code)
    return False


def _read_list(row: RowReader, column: str, value: Any) -> list[Any] | None:
    """Return the different ids or names of a list, or of text such as `a|b`; [] for a row without labels."""
    expected = "a list of ids or of names, which may be empty, or text such as a|b"
    if isinstance(value, str) and value.strip():
        value = _split_list(value)
    if not isinstance(value, list):
        fix = "rename the column to 'label' for one label in a row, or write a list ([] for none)"
        code = "value-missing" if isinstance(value, str) else code_of(value)
        row.refuse_value(column, value, expected, fix, code=code)
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
        if not is_number(score) or not -MAX_NUMBER <= score <= MAX_NUMBER:
            code = "value-range" if is_number(score) else code_of(score)
            row.refuse_value(column, value, "a number from -1e6 to 1e6", "correct it", code=code)
            return None
    if not scores:
        row.refuse_value(column, [], "at least one score", "write the score", code="value-missing")
        return None
    return tuple(float(score) for score in scores)


def _read_probabilities(row: RowReader, value: Any) -> list[float] | dict[str, float] | None:
    """Return P(label) by id or by name, divided by the sum, which may differ from 1 by 1e-3."""
    expected = "a list of probabilities, or a mapping of names to probabilities, with sum 1"
    numbers = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(numbers, list) or not numbers:
        fix = "write one number per label"
        row.refuse_value("probabilities", value, expected, fix, code=code_of(value))
        return None
    for number in numbers:
        if not is_number(number) or not 0 <= number <= 1:
            code = "value-range" if is_number(number) else "value-type"
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
    if row.is_textual and name.strip() in MISSING - {"None"}:
        return ""
    if not isinstance(name, str) or (column in row.values and not name.strip()):
        code = "value-missing" if isinstance(name, str) else code_of(name)
        fix = "write it as text, or drop it"
        row.refuse_value(column, name, "the name of the label", fix, code=code)
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
        expected = "candidate labels, as a list or separated by commas"
        row.refuse_value(column, value, expected, "write a list of names", code="value-type")
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
        fix = "write one of the candidates"
        row.refuse_value("output", output, "the name of a label", fix, code="value-type")
    return names


def _split_candidates(text: str) -> list[str]:
    """Split `a, b` or `['a', 'b']`; names with a comma need a list that can be parsed."""
    for mark in "，、;；|\n":
        text = text.replace(mark, ",")
    return [part.strip().strip("'\"").strip() for part in text.strip().strip("[]").split(",")]
