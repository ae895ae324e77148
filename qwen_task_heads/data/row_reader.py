"""Columns of a row -> validated values, or every problem of that row; what the readers of all tasks share.

Design:
- A `Layout` states the meaning of the columns of a file; this module validates each row against it.
- Problems are collected, not raised: a row with three defects reports all three.
- Nothing is coerced: `true`, `"1"` and `null` are not numbers. Numbers are parsed only in CSV and TSV, where
  every cell is text.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from qwen_task_heads.data.cells import MISSING, parse_number, whole_number
from qwen_task_heads.data.schema import GROUP, Layout, first_of
from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.sources.batches import TextRow

MAX_COUNT = 10**12
MIN_WEIGHT = 1e-6
MAX_NUMBER = 1e6  # larger margins and weights overflow a loss in half precision


class RowReader:
    """Read typed values from the columns of one row, and collect the problems of the row in `problems`.

    Args:
        where: file and line of the row.
        values: column -> value.
    """

    def __init__(self, where: str, values: dict[str, Any]) -> None:
        self.where = where
        self.values = values
        self.is_textual = isinstance(values, TextRow)
        self.problems: list[Problem] = []

    def refuse(self, problem: str, expected: str, fix: str, *, code: str) -> None:
        """Add a problem of this row."""
        self.problems.append(Problem(self.where, problem, expected, fix, code=code))

    def refuse_value(self, column: str, value: Any, expected: str, fix: str, *, code: str) -> None:
        """Add a problem that states the value of a column."""
        self.refuse(f"{column!r} is {shorten(value)}", expected, fix, code=code)

    def has(self, column: str) -> bool:
        """Return whether the row has a value of the column; an empty cell of a table is no value."""
        return column in self.values and not (self.is_textual and not self.values[column].strip())

    def number(self, column: str, *, low: float, high: float, expected: str) -> float | None:
        """Return a finite number in [low, high], None if the row has none."""
        value = self._filled(column)
        if self.is_textual and value is not None:
            value = parse_number(value)
        if value is None:
            return None
        if not is_number(value) or not low <= value <= high:
            code = "value-range" if is_number(value) else "value-type"
            self.refuse_value(column, self.values[column], expected, "correct the number", code=code)
            return None
        return float(value)

    def weight(self) -> float:
        """Return the weight of the row, 1 if the row has none."""
        expected = "a number from 1e-6 to 1e6"
        weight = self.number("weight", low=MIN_WEIGHT, high=MAX_NUMBER, expected=expected)
        return 1.0 if weight is None else weight

    def count(self, column: str) -> int | None:
        """Return a whole number from 0, None if the row has none."""
        value = self._filled(column)
        if self.is_textual and value is not None:
            whole = whole_number(value.strip())  # pandas writes whole numbers as floats if a cell is missing
            value = parse_number(value) if whole is None else whole
        if value is None:
            return None
        is_whole = not isinstance(value, float) or value.is_integer()  # False for infinity and NaN
        if not is_number(value) or not is_whole or not 0 <= value <= MAX_COUNT:
            code = "value-range" if is_number(value) else "value-type"
            expected, fix = "a whole number from 0", "correct the count"
            self.refuse_value(column, self.values[column], expected, fix, code=code)
            return None
        return int(value)

    def _filled(self, column: str) -> Any:
        """Return the value of a number, None if it is absent, with a problem if it is null."""
        if not self.has(column):
            return None
        if self.values[column] is None:
            fix = "write the number, or leave the key out"
            self.refuse(f"{column!r} is null", "a number", fix, code="value-missing")
        return self.values[column]

    def group(self) -> str:
        """Return the key of the group, "" if there is none."""
        column = first_of(GROUP, self.values)
        value = self.values[column] if column else ""
        if self.is_textual and value.strip() in MISSING:
            return ""
        is_key = isinstance(value, str | int) and not isinstance(value, bool)
        if not is_key or (isinstance(value, str) and len(value) > 1000):
            code = "value-range" if is_key else code_of(value)
            expected = "text of at most 1,000 characters, or a whole number"
            self.refuse_value(column, value, expected, "write the key as a string", code=code)
            return ""
        if isinstance(value, str):
            return value.strip()
        return f"{value:d}" if abs(value) < 10**18 else f"{value:x}"

    def require(self, layout: Layout, columns: tuple[str, ...]) -> bool:
        """Return whether the row has all columns; refuse it with a similar column for each absent one."""
        for column in columns:
            if column not in self.values and column not in layout.absent:
                similar = next((name for name in self.values if layout.near.get(name) == column), None)
                expected = "a row with " + " and ".join(map(repr, columns))
                fix = f"rename {similar!r} to {column!r}" if similar else "add the column or remove the row"
                self.refuse(f"column {column!r} is missing", expected, fix, code="column-missing")
        return all(column in self.values for column in columns)

    def refuse_misspelt(self, layout: Layout, required: tuple[str, ...]) -> None:
        """Refuse an optional column that is misspelt in this row and correct in other rows."""
        for name, meant in layout.near.items():
            is_correct = meant in layout.absent or meant in required or meant in self.values
            if name in self.values and not is_correct:
                problem, fix = f"found the unknown column {name!r}", f"rename it to {meant!r}, or drop it"
                self.refuse(problem, repr(meant), fix, code="column-unknown")


def is_number(value: Any) -> bool:
    """Return whether a value is a number and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def code_of(value: Any) -> str:
    """Return the code of a value that is refused for its type."""
    return "value-missing" if value is None else "value-type"


def blank_defect(text: str, *, visible: str) -> str:
    """Return the defect of a text without any visible character, "" for other texts.

    Args:
        text: as it is in the row.
        visible: the part of it that is read, such as the text without tags.
    """
    # `all` stops at the first visible character; strip() alone keeps zero-width and control characters.
    if not all(unicodedata.category(char) in ("Zs", "Zl", "Zp", "Cc", "Cf") for char in visible):
        return ""
    if not text:
        return "empty"
    return "without any visible text" if text.strip() else "white space only"


def collapse(text: str) -> str:
    """Replace each run of white space by one blank; equality of titles is defined on the result.

    Example:
        >>> collapse(" Ten  ways to rest ")
        'Ten ways to rest'
    """
    return " ".join(text.split())
