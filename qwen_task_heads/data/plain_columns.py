"""Read the columns of a batch at once, for rows that need no further parsing ("plain" rows).

Each function returns a value per row. A row that `RowReader` must read has "" for a text, else None.
"""

from __future__ import annotations

from typing import Any

from qwen_task_heads.data.cells import MISSING
from qwen_task_heads.data.row_reader import MAX_COUNT, MAX_NUMBER, MIN_WEIGHT
from qwen_task_heads.data.schema import GROUP
from qwen_task_heads.sources.batches import ABSENT, Batch

MARKS = frozenset("[{(<")  # first characters of a list, messages or a tag


def plain_texts(batch: Batch, column: str) -> list[str]:
    """Return the stripped texts of a column."""
    values = batch.column(column)
    stripped = [value.strip() if type(value) is str else "" for value in values]
    return [text if text[:1].isprintable() else "" for text in stripped]


def plain_titles(batch: Batch, column: str) -> list[str]:
    """Return the titles of a column, which have no marks of tags, lists or conversations."""
    return [
        "" if text[:1] in MARKS or text[-1:] == ">" or text.startswith("Human:") else text
        for text in plain_texts(batch, column)
    ]


def plain_groups(batch: Batch) -> list[str | None]:
    """Return the group of each row."""
    names = [name for name in GROUP if name in batch.names]
    if not names:
        return [""] * len(batch)
    absent = "" if len(names) == 1 else None
    return [_plain_group(value, absent, textual=batch.textual) for value in batch.column(names[0])]


def _plain_group(value: Any, absent: str | None, *, textual: bool) -> str | None:
    if type(value) is str and len(value) <= 1000:
        text = value.strip()
        return "" if textual and text in MISSING else text
    if type(value) is int and abs(value) < 10**18:
        return f"{value:d}"
    return absent if value is ABSENT else None


def plain_weights(batch: Batch) -> list[float | None]:
    """Return the weight of each row."""
    return plain_numbers(batch, "weight", low=MIN_WEIGHT, high=MAX_NUMBER, absent=1.0)


def plain_numbers(batch: Batch, name: str, *, low: float, high: float, absent: float) -> list[float | None]:
    """Return the numbers of a column in [low, high], `absent` for a missing cell."""
    if name not in batch.names:
        return [absent] * len(batch)
    return [
        absent
        if value is ABSENT
        else float(value)
        if type(value) in (int, float) and low <= value <= high
        else None
        for value in batch.column(name)
    ]


def plain_counts(batch: Batch, name: str) -> list[int | None]:
    """Return the whole numbers of a column, in text as digits."""
    values = batch.column(name)
    if not batch.textual:
        return [value if type(value) is int and 0 <= value <= MAX_COUNT else None for value in values]
    digits = (value if type(value) is str and value.isascii() and value.isdigit() else "" for value in values)
    return [
        int(text) if text and (text == "0" or text[0] != "0") and len(text) < 13 else None for text in digits
    ]
