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

from qwen_task_heads.data.evidence import preference_from_clicks, preference_from_votes
from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.layout import CLICKS, GROUP, VOTES, Layout
from qwen_task_heads.data.parsers import TextRow
from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.hubcode.encoding_task_heads import CLOSING, OPENING, strip_title

MAX_COUNT = 10**12
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
        self.problems.append(Problem(self.where, found, f"accepted: {accepted}", remedy))

    def title(self, column: str) -> str:
        """A title without tags; refused where nothing is left of it."""
        value = self.values[column]
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

    def prompt(self) -> str:
        """The prompt, "" where there is none."""
        value = self.values.get("prompt", "")
        if not isinstance(value, str):
            self.refuse(f"'prompt' is {shorten(value)}", "text", "write a string, or leave the key out")
            return ""
        return value.strip()

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
            try:
                return kind(value) if value.isascii() and "_" not in value else value
            except ValueError:
                return value  # refused by the caller, as any other text
        if value is None:
            self.refuse(f"{column!r} is null", "a number", "write the number, or leave the key out")
        return value

    def group(self) -> str:
        """The key of the group, "" where there is none."""
        column = next((name for name in GROUP if name in self.values), None)
        value = "" if column is None else self.values[column]
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

    def conversation(self, column: str) -> tuple[str, str]:
        """(earlier content joined by line ends, the last assistant content) of a list of messages."""
        messages = self.values[column]
        accepted = 'messages such as {"role": "assistant", "content": "A title"}'
        contents = []
        for place, message in enumerate(messages):
            content = message.get("content") if isinstance(message, dict) else None
            role = message.get("role") if isinstance(message, dict) else None
            if not isinstance(content, str) or not isinstance(role, str):
                self.refuse(
                    f"message {place + 1} of {column!r} is {shorten(message)}",
                    accepted,
                    "correct the message",
                )
                return "", ""
            contents.append((role, content))
        if column == "prompt":
            return "\n".join(content for _, content in contents), ""
        if not contents or contents[-1][0] != "assistant":
            found = (
                f"the last message of {column!r} is from {shorten(contents[-1][0])}"
                if contents
                else "no message"
            )
            self.refuse(f"{found} in {column!r}" if not contents else found, accepted, "end with the title")
            return "", ""
        title = contents[-1][1]
        if is_blank(title):
            self.refuse(f"the title in {column!r} is empty", "a title with text", "fill in the title")
            return "", ""
        return "\n".join(content for _, content in contents[:-1]), strip_title(title)


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
    """White space runs as one blank: how two titles are compared for equality."""
    return " ".join(text.split())


def read_pair(row: RowReader, layout: Layout) -> tuple[PairExample | None, bool | None]:
    """One row of a pair file.

    Returns:
        `(pair, swapped)`: the pair, or None with `row.problems` filled; and whether the row's own votes
        or clicks prefer the rejected title, None where it has no such evidence.
    """
    refuse_misspelt(row, layout, ("chosen", "rejected"))
    prompt = chosen = rejected = ""
    if require(row, layout, ("chosen", "rejected")):
        prompt, chosen, rejected = _read_texts(row)
    margin = row.number(
        "margin", low=-MAX_NUMBER, high=MAX_NUMBER, accepted="a finite number to 1e6 either way"
    )
    weight = row.number("weight", low=1e-6, high=MAX_NUMBER, accepted="a number over 0, to 1e6")
    preference, swapped = _read_evidence(row, layout)
    group = row.group()
    if row.problems or not chosen:
        return None, None
    pair = PairExample(
        chosen=chosen,
        rejected=rejected,
        prompt=prompt,
        margin=margin,
        preference=preference,
        weight=1.0 if weight is None else weight,
        group=group,
        source=row.where,
    )
    return pair, swapped


def _read_texts(row: RowReader) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) from strings, or from messages with the prompt apart or in front."""
    lists = [name for name in ("chosen", "rejected") if isinstance(row.values[name], list)]
    if len(lists) == 1:
        row.refuse(f"only {lists[0]!r} is a list of messages", "both or neither", "write both in one form")
        return "", "", ""
    messages = isinstance(row.values.get("prompt"), list)
    prompt = row.conversation("prompt")[0] if messages else row.prompt()
    if lists:
        before, chosen = row.conversation("chosen")
        before_rejected, rejected = row.conversation("rejected")
        if chosen and rejected and before != before_rejected:
            found = "'chosen' and 'rejected' answer different conversations"
            row.refuse(found, "the same messages before the title", "correct or remove the row")
        prompt = "\n".join(part for part in (prompt, before) if part).strip()
    else:
        chosen, rejected = row.title("chosen"), row.title("rejected")
    if chosen and rejected and collapse(chosen) == collapse(rejected):
        row.refuse(f"'chosen' and 'rejected' are equal ({shorten(chosen)})", "two titles", "remove the row")
    return prompt, chosen, rejected


def _read_evidence(row: RowReader, layout: Layout) -> tuple[float | None, bool | None]:
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
