"""Columns of a row -> a text and what is said of it, or every problem of that row.

Design:
- A target stays as it was written (`RawTarget.value`) until all files are read, because the meaning of `3`,
  `"3"` or `"sport"` is a matter of all rows (`label_values.py`, `text_targets.py`).
- Nothing is coerced: `true` is no label id. CSV, TSV and class files, where all is text, have their cells
  parsed, and so have texts that hold a list or a conversation (`cells.py`).
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
    """One row; None with `row.problems` filled."""
    is_alpaca = layout.texts[:1] == (ALPACA,)
    needed = dict.fromkeys((*(layout.texts[:1] if is_alpaca else layout.texts), layout.target))
    complete = require(row, layout, tuple(name for name in needed if name))
    texts = [
        read_content(row, name) for name in layout.texts if name in row.values and not _is_void(row, name)
    ]
    texts = ["\n".join(texts)] if is_alpaca else texts
    value = _read_target(row, layout) if layout.target in row.values else None
    name = _read_name(row, layout.name) if layout.name else ""
    offers = layout.target == "output" and "category" not in layout.absent
    candidates = read_candidates(row, value) if offers else ()
    weight = row.number("weight", low=MIN_WEIGHT, high=MAX_NUMBER, accepted="a number over 0, to 1e6")
    group = row.group()
    if row.problems or not complete:
        return None
    stated = row.values.get(layout.target)
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
            is_split=isinstance(stated, str) and not looks_like_list(stated),
        ),
    )


def _is_void(row: RowReader, column: str) -> bool:
    """Whether this is the `input` of an Alpaca row whose instruction is the whole text."""
    return column == "input" and not row.values[column]


def read_content(row: RowReader, column: str) -> str:
    """A text, stripped; of a conversation what the user said, joined by line ends. "" if it is refused."""
    value = row.values[column]
    if column in CONVERSATIONS:
        value = _user_text(row, column)
        if value is None:
            return ""
    if not isinstance(value, str):
        row.refuse(f"{column!r} is {shorten(value)}", "text", "write the text as a string")
        return ""
    text = value.strip()
    # Stops at the first visible character; strip() alone leaves zero-width and control characters.
    if all(unicodedata.category(char) in ("Zs", "Zl", "Zp", "Cc", "Cf") for char in text):
        what = "empty" if not value else "white space only" if not text else "without any visible text"
        row.refuse(f"{column!r} is {what}", "a text", "fill in the text or remove the row")
        return ""
    return text


def _user_text(row: RowReader, column: str) -> str | None:
    """The contents of the user's messages; what system and assistant say is no part of the text."""
    messages = read_messages(row, column)
    if messages is None:
        return None
    contents = [content for role, content in messages if role == "user"]
    if not contents:
        row.refuse("no message of the user", MESSAGES, "add the text as a message of the user")
        return None
    return "\n".join(contents)


def _read_target(row: RowReader, layout: TextLayout) -> Any:
    """The value of the target column, checked for its type only."""
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
        # What pandas writes for a label that is missing is no name.
        value = math.nan if value.lower() == "nan" else _parse_whole(value)
    number = int(value) if isinstance(value, float) and value.is_integer() else value  # as pandas beside gaps
    return value if _is_label(row, layout.target, number) else None


def _last_answer(row: RowReader, column: str) -> str | None:
    """The label of a conversation without a target column: what the assistant says last."""
    messages = read_messages(row, column)
    if not messages:
        return None
    role, content = messages[-1]
    if role != "assistant" or not content.strip():
        found = f"the last message of {column!r} is from {shorten(role)}" if content.strip() else "no answer"
        row.refuse(found, "the label as the last message of the assistant", "add it, or a 'label' column")
        return None
    return content.strip()


def _parse_whole(text: str) -> int | str:
    """A number that is written as Python writes it; `007` is a name."""
    return int(text) if is_whole(text) and len(text) < 19 and str(int(text)) == text else text


def _is_label(row: RowReader, column: str, value: Any) -> bool:
    """Whether a value can be an id or a name; refused if not."""
    if isinstance(value, str) and value.strip():
        return True
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and 0 <= value < 10**9:
        return True
    accepted = "the id of a label, or its name"
    remedy = "write the label as in the other rows"
    if isinstance(value, list):
        remedy = "rename the column to 'labels' for several labels in a row"
    elif isinstance(value, float) and math.isfinite(value):
        remedy = "write whole numbers, or train on scores: --problem_type regression"
    elif whole:
        accepted, remedy = "ids from 0", "correct the id, or remove the row (-100 and -1 mark hidden labels)"
    row.refuse(f"{column!r} is {shorten(value)}", accepted, remedy)
    return False


def _read_list(row: RowReader, column: str, value: Any) -> list[Any] | None:
    """Ids or names, none twice; an empty list states that no label holds. A text holds a list, or `a|b`."""
    accepted = "a list of ids or of names, perhaps empty, or text such as a|b"
    if isinstance(value, str) and value.strip():
        value = _split_list(value)
    if not isinstance(value, list):
        remedy = "rename the column to 'label' for one label in a row, or write a list ([] for none)"
        row.refuse(f"{column!r} is {shorten(value)}", accepted, remedy)
        return None
    if not all(_is_label(row, column, item) for item in value):
        return None
    if len({type(item) for item in value}) > 1:
        row.refuse(f"{column!r} mixes ids and names", accepted, "write all of them in one form")
        return None
    keys = [item.strip() if isinstance(item, str) else item for item in value]
    if len(set(keys)) < len(keys):
        remedy = "write each label once (the ids that hold, no row of zeros and ones)"
        row.refuse(f"{column!r} names a label twice: {shorten(value)}", accepted, remedy)
        return None
    return keys


def _split_list(text: str) -> list[Any] | str:
    """The labels of a text: a list, or parts between `|`; other separators are told from all rows."""
    if looks_like_list(text):
        found = parse_list(text)
        return text if found is None else found
    parts = [part.strip() for part in text.split("|")]
    whole = [_parse_whole(part) for part in parts]
    return whole if all(isinstance(part, int) for part in whole) else parts


def _read_scores(row: RowReader, column: str, value: Any) -> tuple[float, ...] | None:
    """One score, or a list of them."""
    scores = value if isinstance(value, list) else [value]
    for score in scores:
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if not number or not -MAX_NUMBER <= score <= MAX_NUMBER:
            row.refuse(f"{column!r} is {shorten(value)}", "a finite number to 1e6 either way", "correct it")
            return None
    if not scores:
        row.refuse(f"{column!r} is []", "at least one score", "write the score")
        return None
    return tuple(float(score) for score in scores)


def _read_probabilities(row: RowReader, value: Any) -> list[float] | dict[str, float] | None:
    """P(label) by id or by name; made to sum to 1 exactly where it nearly does."""
    accepted = "a list of probabilities, or a mapping of names to them, that sum to 1"
    numbers = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(numbers, list) or not numbers:
        row.refuse(f"'probabilities' is {shorten(value)}", accepted, "write one number per label")
        return None
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
            row.refuse(f"'probabilities' holds {shorten(number)}", accepted, "correct the number")
            return None
    total = math.fsum(numbers)
    if abs(total - 1) > 1e-3:  # rounding to three digits is common; more is a mistake
        row.refuse(f"'probabilities' sum to {total:.6g}", accepted, "divide them by their sum")
        return None
    if isinstance(value, dict):
        return {name: number / total for name, number in value.items()}
    return [number / total for number in value]


def _read_name(row: RowReader, column: str) -> str:
    """The name beside an id, "" where there is none."""
    name = row.values.get(column, "")
    if isinstance(row.values, TextRow) and name.strip() in MISSING - {"None"}:
        return ""
    if not isinstance(name, str) or (column in row.values and not name.strip()):
        row.refuse(f"{column!r} is {shorten(name)}", "the name of the label", "write it as text, or drop it")
        return ""
    return name.strip()


def read_candidates(row: RowReader, output: Any, *, column: str = "category") -> tuple[str, ...]:
    """The candidate labels of a column: a list, or a text of them separated by commas and the like.

    Args:
        row: where problems go.
        output: the candidate that is right; None where nobody says.
        column: which one.
    """
    value = row.values.get(column, "")
    accepted = "candidate labels, as a list or separated by commas"
    if isinstance(value, str):
        parsed = parse_list(value)
        value = _split_candidates(value) if parsed is None else parsed
    # A row may offer 100,000 candidates: one pass of C code for each question.
    texts = isinstance(value, list) and set(map(type, value)) == {str}
    names = tuple(map(str.strip, value)) if texts else ()
    if not names or not all(names):
        row.refuse(f"{column!r} is {shorten(value)}", accepted, "write a list of names")
        return ()
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        row.refuse(f"{column!r} names {shorten(twice)} twice", "each candidate once", "write it once")
    if isinstance(output, str) and output.strip() not in names:
        found = f"'output' is {shorten(output)}, which is no candidate of {column!r} ({shorten(names)})"
        row.refuse(found, "one of the candidates", f"correct 'output', or add it to {column!r}")
    elif output is not None and not isinstance(output, str):
        row.refuse(f"'output' is {shorten(output)}", "the name of a label", "write one of the candidates")
    return names


def _split_candidates(text: str) -> list[str]:
    """`a, b` and `['a', 'b']` alike; a name that holds a comma needs a real list."""
    for mark in "，、;；|\n":
        text = text.replace(mark, ",")
    return [part.strip().strip("'\"").strip() for part in text.strip().strip("[]").split(",")]
