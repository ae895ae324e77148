"""Columns of a row -> a validated example, or every problem of that row.

Design:
- `layout.py` has told what kind of file it is; here each row is held against that.
- Problems are collected, not raised: a row with three defects names all three.
- Nothing is coerced: `true`, `"1"` and `null` are not numbers, 3 is not a title. Only CSV and TSV, where
  all is text, have their numbers parsed.
"""

from __future__ import annotations

import math
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
MAX_NUMBER = 1e6  # margins and weights beyond this overflow a loss in half precision, and are mistakes


def is_blank(text: str) -> bool:
    """Whether nothing would be seen: white space, control and zero-width characters, and title tags only."""
    if "<" in text:
        text = text.lower().replace(OPENING, "").replace(CLOSING, "")
    return all(unicodedata.category(char) in ("Zs", "Zl", "Zp", "Cc", "Cf") for char in text)


class RowReader:
    """Typed access to the columns of one row; problems are collected, so that a row names all of them."""

    def __init__(self, where: str, values: dict[str, Any]) -> None:
        self.where = where
        self.values = values
        self.problems: list[Problem] = []

    def refuse(self, found: str, accepted: str, remedy: str) -> None:
        """Note a problem of this row."""
        self.problems.append(Problem(self.where, found, f"{accepted}", remedy))

    def title(self, column: str) -> str:
        """A title without tags; refused where nothing is left of it."""
        return self.one_title(column, self.values[column])

    def one_title(self, column: str, value: Any) -> str:
        """One of the titles of a column, without tags; refused where nothing is left of it."""
        if not isinstance(value, str):
            self.refuse(f"{column!r} is {shorten(value)}", "text", "write the title as a string")
            return ""
        if is_blank(value):
            what = (
                "empty"
                if not value
                else "white space only"
                if not value.strip()
                else "without any visible text"
            )
            self.refuse(f"{column!r} is {what}", "a title with text", "fill in the title or remove the row")
            return ""
        return strip_title(value)

    def number(self, column: str, *, low: float, high: float, accepted: str) -> float | None:
        """A finite number in [low, high], None where the row has none."""
        value = self._parsed(column, float)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(f"{column!r} is {shorten(self.values[column])}", accepted, "correct the number")
            return None
        return float(value)

    def count(self, column: str) -> int | None:
        """A whole number from 0, None where the row has none."""
        value = self._parsed(column, int)
        if value is None:
            return None
        whole = isinstance(value, int) or (
            isinstance(value, float) and math.isfinite(value) and value.is_integer()
        )
        if isinstance(value, bool) or not whole or not 0 <= value <= MAX_COUNT:
            self.refuse(
                f"{column!r} is {shorten(self.values[column])}", "a whole number from 0", "correct the count"
            )
            return None
        return int(value)

    def _parsed(self, column: str, kind: type[int] | type[float]) -> Any:
        """The value, parsed in a text row; None where it is absent, refused (once) where it is null."""
        if column not in self.values:
            return None
        value = self.values[column]
        if isinstance(self.values, TextRow):
            if not value.strip():
                return None
            whole = whole_number(value.strip())  # pandas has whole numbers beside gaps as floats
            return whole if kind is int and whole is not None else parse_number(value)
        if value is None:
            self.refuse(f"{column!r} is null", "a number", "write the number, or leave the key out")
        return value

    def group(self) -> str:
        """The key of the group, "" where there is none."""
        column = next((name for name in GROUP if name in self.values), None)
        value = "" if column is None else self.values[column]
        if isinstance(self.values, TextRow) and value.strip() in MISSING:
            return ""
        if (
            isinstance(value, bool)
            or not isinstance(value, str | int)
            or (isinstance(value, str) and len(value) > 1000)
        ):
            self.refuse(
                f"{column!r} is {shorten(value)}", "text or a whole number", "write the key as a string"
            )
            return ""
        return (
            value.strip() if isinstance(value, str) else f"{value:d}" if abs(value) < 10**18 else f"{value:x}"
        )


def require(row: RowReader, layout: Layout, columns: tuple[str, ...]) -> bool:
    """Refuse a row that lacks one of the columns, and name the column that may be meant."""
    for column in columns:
        if column not in row.values and column not in layout.absent:
            hint = next((name for name in row.values if layout.near.get(name) == column), None)
            remedy = (
                f"did you mean {column!r} by {hint!r}? rename it"
                if hint
                else "add the column or remove the row"
            )
            row.refuse(f"no {column!r}", "a row with " + " and ".join(map(repr, columns)), remedy)
    return all(column in row.values for column in columns)


def refuse_misspelt(row: RowReader, layout: Layout, required: tuple[str, ...]) -> None:
    """Refuse an optional column that is misspelt in this row and well spelt in others."""
    for name, target in layout.near.items():
        spelt = target in layout.absent or target in required or target in row.values
        if name in row.values and not spelt:
            row.refuse(
                f"unknown column {name!r}", f"{target!r}", f"did you mean {target!r}? rename it, or drop it"
            )


def collapse(text: str) -> str:
    """White space runs as one blank: how two titles are compared for equality.

    Example:
        >>> collapse(" Ten  ways to rest ")
        'Ten ways to rest'
    """
    return " ".join(text.split())


def read_evidence(row: RowReader, layout: Layout) -> tuple[float | None, bool | None]:
    """(P(chosen preferred), whether the evidence prefers the rejected title) from the columns of the row."""
    present = [
        names for names in (VOTES, CLICKS, ("preference",)) if any(_filled(row, name) for name in names)
    ]
    if len(present) > 1:
        found = "evidence of several kinds (" + ", ".join(names[0] for names in present) + ")"
        row.refuse(found, "votes, clicks or a preference", "keep one of them")
        return None, None
    if not present:
        row.count("votes_skip")
        return None, None
    if present[0] == ("preference",):
        value = row.number("preference", low=0, high=1, accepted="a probability from 0 to 1")
        return value, None if value is None else value < 0.5
    row.count("votes_skip")
    counts = [row.count(name) for name in present[0]]
    lacking = [name for name in present[0] if not _filled(row, name) and name not in layout.absent]
    if lacking:
        row.refuse(
            f"no {lacking[0]!r}", " and ".join(map(repr, present[0])), "add it, or leave all of them out"
        )
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None, None
    if present[0] == VOTES:
        return preference_from_votes(*known), known[0] < known[1]
    for name, clicks, impressions in (("chosen", known[0], known[1]), ("rejected", known[2], known[3])):
        if clicks > impressions:
            found = f"{clicks:,} clicks of {impressions:,} impressions ({name!r})"
            row.refuse(found, "clicks up to the impressions", "correct the counts")
            return None, None
    # Raw rates decide what is called swapped: the prior would tip equal rates of unequal counts.
    return preference_from_clicks(*known), known[0] * known[3] < known[2] * known[1]


def _filled(row: RowReader, column: str) -> bool:
    """Whether the row states the column; an empty cell of a table states nothing."""
    if column not in row.values:
        return False
    return not isinstance(row.values, TextRow) or bool(row.values[column].strip())
