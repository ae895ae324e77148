"""Columns of a row -> validated values, or every problem of that row.

Design:
- `pair_layout.py` determines the kind of a file; this module validates each row against it.
- Problems are collected, not raised: a row with three defects reports all three.
- Nothing is coerced: `true`, `"1"` and `null` are not numbers, 3 is not a title. Numbers are parsed only in
  CSV and TSV, where every cell is text.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from qwen_task_heads.data.batches import TextRow
from qwen_task_heads.data.cells import MISSING, parse_number, whole_number
from qwen_task_heads.data.pair_layout import CLICKS, GROUP, VOTES, Layout
from qwen_task_heads.data.preferences import preference_from_clicks, preference_from_votes
from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.hubcode.encoding_task_heads import CLOSING, OPENING, strip_title

MAX_COUNT = 10**12
MIN_WEIGHT = 1e-6
MAX_NUMBER = 1e6  # larger margins and weights overflow a loss in half precision


def is_blank(text: str) -> bool:
    """Return whether a text has only white space, control or zero-width characters, and title tags."""
    if "<" in text:
        text = text.lower().replace(OPENING, "").replace(CLOSING, "")
    return all(unicodedata.category(char) in ("Zs", "Zl", "Zp", "Cc", "Cf") for char in text)


class RowReader:
    """Read typed values from the columns of one row, and collect the problems of the row in `problems`.

    Args:
        where: file and line of the row.
        values: column -> value.
    """

    def __init__(self, where: str, values: dict[str, Any]) -> None:
        self.where = where
        self.values = values
        self.problems: list[Problem] = []

    def refuse(self, problem: str, expected: str, fix: str, *, code: str = "value-type") -> None:
        """Add a problem of this row."""
        self.problems.append(Problem(self.where, problem, expected, fix, code=code))

    def title(self, column: str) -> str:
        """Return the title of a column without tags; "" with a problem if it has no visible text."""
        return self.one_title(column, self.values[column])

    def one_title(self, column: str, value: Any) -> str:
        """Return a title of a column without tags; "" with a problem if it has no visible text."""
        if not isinstance(value, str):
            problem = f"{column!r} is {shorten(value)}"
            self.refuse(problem, "text", "write the title as a string", code="value-type")
            return ""
        if is_blank(value):
            if not value:
                defect = "empty"
            else:
                defect = "without any visible text" if value.strip() else "white space only"
            fix = "fill in the title or remove the row"
            self.refuse(f"{column!r} is {defect}", "a title with text", fix, code="text-empty")
            return ""
        return strip_title(value)

    def number(self, column: str, *, low: float, high: float, expected: str) -> float | None:
        """Return a finite number in [low, high], None if the row has none."""
        value = self._parsed(column, float)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            problem = f"{column!r} is {shorten(self.values[column])}"
            code = "value-range" if is_number else "value-type"
            self.refuse(problem, expected, "correct the number", code=code)
            return None
        return float(value)

    def count(self, column: str) -> int | None:
        """Return a whole number from 0, None if the row has none."""
        value = self._parsed(column, int)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_whole = not isinstance(value, float) or value.is_integer()  # False for infinity and NaN
        if not is_number or not is_whole or not 0 <= value <= MAX_COUNT:
            problem = f"{column!r} is {shorten(self.values[column])}"
            code = "value-range" if is_number else "value-type"
            self.refuse(problem, "a whole number from 0", "correct the count", code=code)
            return None
        return int(value)

    def _parsed(self, column: str, kind: type[int] | type[float]) -> Any:
        """Return the value, parsed in a row of text; None if it is absent, with a problem if it is null."""
        if column not in self.values:
            return None
        value = self.values[column]
        if isinstance(self.values, TextRow):
            if not value.strip():
                return None
            whole = whole_number(value.strip())  # pandas writes whole numbers as floats if a cell is missing
            return whole if kind is int and whole is not None else parse_number(value)
        if value is None:
            fix = "write the number, or leave the key out"
            self.refuse(f"{column!r} is null", "a number", fix, code="value-missing")
        return value

    def group(self) -> str:
        """Return the key of the group, "" if there is none."""
        column = next((name for name in GROUP if name in self.values), None)
        value = "" if column is None else self.values[column]
        if isinstance(self.values, TextRow) and value.strip() in MISSING:
            return ""
        is_key = isinstance(value, str | int) and not isinstance(value, bool)
        if not is_key or (isinstance(value, str) and len(value) > 1000):
            code = "value-range" if is_key else "value-missing" if value is None else "value-type"
            problem = f"{column!r} is {shorten(value)}"
            expected = "text of at most 1,000 characters, or a whole number"
            self.refuse(problem, expected, "write the key as a string", code=code)
            return ""
        if isinstance(value, str):
            return value.strip()
        return f"{value:d}" if abs(value) < 10**18 else f"{value:x}"


def require(row: RowReader, layout: Layout, columns: tuple[str, ...]) -> bool:
    """Return whether a row has all columns; each absent one becomes a problem that names a similar column."""
    for column in columns:
        if column not in row.values and column not in layout.absent:
            similar = next((name for name in row.values if layout.near.get(name) == column), None)
            expected = "a row with " + " and ".join(map(repr, columns))
            fix = f"rename {similar!r} to {column!r}" if similar else "add the column or remove the row"
            row.refuse(f"column {column!r} is missing", expected, fix, code="column-missing")
    return all(column in row.values for column in columns)


def refuse_misspelt(row: RowReader, layout: Layout, required: tuple[str, ...]) -> None:
    """Refuse an optional column that is misspelt in this row and correct in other rows."""
    for name, target in layout.near.items():
        is_correct = target in layout.absent or target in required or target in row.values
        if name in row.values and not is_correct:
            fix = f"rename it to {target!r}, or drop it"
            row.refuse(f"found the unknown column {name!r}", repr(target), fix, code="column-unknown")


def collapse(text: str) -> str:
    """Replace each run of white space by one blank; equality of titles is defined on the result.

    Example:
        >>> collapse(" Ten  ways to rest ")
        'Ten ways to rest'
    """
    return " ".join(text.split())


def read_signals(row: RowReader, layout: Layout) -> tuple[float | None, bool | None]:
    """Read the preference signals of a row: votes, clicks or a probability.

    Returns:
        P(chosen preferred), and whether the signals prefer the rejected title; None without signals.
    """
    present = [
        names for names in (VOTES, CLICKS, ("preference",)) if any(_filled(row, name) for name in names)
    ]
    if len(present) > 1:
        problem = "found preference signals of several kinds (" + ", ".join(kind[0] for kind in present) + ")"
        row.refuse(problem, "votes, clicks or a preference", "keep one of them", code="column-ambiguous")
        return None, None
    if not present:
        row.count("votes_skip")
        return None, None
    if present[0] == ("preference",):
        value = row.number("preference", low=0, high=1, expected="a probability from 0 to 1")
        return value, None if value is None else value < 0.5
    row.count("votes_skip")
    counts = [row.count(name) for name in present[0]]
    missing = [name for name in present[0] if not _filled(row, name) and name not in layout.absent]
    if missing:
        expected = " and ".join(map(repr, present[0]))
        fix = "add it, or leave all of them out"
        row.refuse(f"{missing[0]!r} is missing", expected, fix, code="value-missing")
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None, None
    if present[0] == VOTES:
        return preference_from_votes(*known), known[0] < known[1]
    for name, clicks, impressions in (("chosen", known[0], known[1]), ("rejected", known[2], known[3])):
        if clicks > impressions:
            problem = f"found {clicks:,} clicks of {impressions:,} impressions ({name!r})"
            expected = "at most as many clicks as impressions"
            row.refuse(problem, expected, "correct the counts", code="value-conflict")
            return None, None
    # Raw rates decide whether a row is swapped: the prior would break the tie of equal rates.
    return preference_from_clicks(*known), known[0] * known[3] < known[2] * known[1]


def _filled(row: RowReader, column: str) -> bool:
    """Return whether the row has a value of the column; an empty cell of a table is no value."""
    if column not in row.values:
        return False
    return not isinstance(row.values, TextRow) or bool(row.values[column].strip())
