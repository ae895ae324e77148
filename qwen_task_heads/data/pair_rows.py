"""A row of preferences -> pairs or an arm, or every problem of that row."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import Any

from qwen_task_heads.data.click_rates import preference_from_clicks
from qwen_task_heads.data.pair_layout import PairLayout
from qwen_task_heads.data.pair_texts import PairTexts, read_prompt, read_texts, read_title
from qwen_task_heads.data.preferences import preference_from_votes
from qwen_task_heads.data.row_reader import MAX_NUMBER, RowReader
from qwen_task_heads.data.schema import GROUP, HEADLINE, SIGNALS, VOTES, first_of

NO_MORE_CLICKS = "at most as many clicks as impressions"


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """A row of pairs.

    Args:
        texts: the prompt and the titles; the rejected titles may be several.
        margin, preference, weight, group: as in `PairExample`.
        swapped: whether the preference signals prefer the rejected title, None without signals.
    """

    texts: PairTexts
    margin: float | None
    preference: float | None
    weight: float
    group: str
    swapped: bool | None

    def pairs(self) -> list[dict[str, Any]]:
        """Return the columns of each pair, NaN for None."""
        shared = {
            "chosen": self.texts.chosen,
            "prompt": self.texts.prompt,
            "group": self.group,
            "margin": nan if self.margin is None else self.margin,
            "preference": nan if self.preference is None else self.preference,
            "weight": self.weight,
        }
        return [{**shared, "rejected": rejected} for rejected in self.texts.rejected]


def read_pair(row: RowReader, layout: PairLayout) -> PairRow | None:
    """Read a row of pairs, with one or more rejected titles; return None if `row.problems` has any."""
    row.refuse_misspelt(layout, layout.titles)
    texts = read_texts(row, layout) if row.require(layout, layout.titles) else None
    margin = row.number("margin", low=-MAX_NUMBER, high=MAX_NUMBER, expected="a number from -1e6 to 1e6")
    weight = row.weight()
    preference, swapped = _read_signals(row, layout)
    group = row.group()
    if texts is not None and len(texts.rejected) > 1 and preference is not None:
        problem = f"found votes, clicks or a preference for {len(texts.rejected):,} rejected titles"
        expected = "preference signals of one pair"
        row.refuse(problem, expected, "write one pair per row", code="value-conflict")
    if row.problems or texts is None:
        return None
    return PairRow(
        texts=texts, margin=margin, preference=preference, weight=weight, group=group, swapped=swapped
    )


def read_arm(row: RowReader, layout: PairLayout) -> dict[str, Any] | None:
    """Read the columns of an arm; return None if `row.problems` has any."""
    headline, group = (_column_of(row, layout, names) for names in (HEADLINE, GROUP))
    needed = (headline, "impressions", "clicks", group)
    row.refuse_misspelt(layout, needed)
    complete = row.require(layout, needed)
    title = read_title(row, headline, row.values[headline]) if headline in row.values else ""
    clicks, impressions = row.count("clicks"), row.count("impressions")
    prompt, key = "\n".join(read_prompt(row, layout)[0]).strip(), row.group()
    for column, value in (("clicks", clicks), ("impressions", impressions)):
        if column in row.values and value is None and not row.problems:
            problem = f"{column!r} is empty"
            row.refuse(problem, "a whole number from 0", "fill in the count", code="value-missing")
    if group in row.values and not key and not row.problems:
        problem, expected = f"{group!r} is empty", "the key of the experiment"
        row.refuse(problem, expected, "fill in the key", code="value-missing")
    if clicks is not None and impressions is not None and clicks > impressions:
        problem = f"found {clicks:,} clicks of {impressions:,} impressions"
        row.refuse(problem, NO_MORE_CLICKS, "correct the counts", code="value-conflict")
    if row.problems or not complete:
        return None
    return {"title": title, "prompt": prompt, "group": key, "clicks": clicks, "impressions": impressions}


def _column_of(row: RowReader, layout: PairLayout, names: tuple[str, ...]) -> str:
    """Return the first of some columns that the row has, or else that any row has."""
    return first_of(names, row.values) or next(
        (name for name in names if name not in layout.absent), names[0]
    )


def _read_signals(row: RowReader, layout: PairLayout) -> tuple[float | None, bool | None]:
    """Read the preference signals of a row: votes, clicks or a probability.

    Returns:
        P(chosen preferred), and whether the signals prefer the rejected title; None without signals.
    """
    present = [names for names in SIGNALS if any(map(row.has, names))]
    if len(present) > 1:
        problem = "found preference signals of several kinds (" + ", ".join(kind[0] for kind in present) + ")"
        row.refuse(problem, "votes, clicks or a preference", "keep one of them", code="column-ambiguous")
        return None, None
    if present == [("preference",)]:
        value = row.number("preference", low=0, high=1, expected="a probability from 0 to 1")
        return value, None if value is None else value < 0.5
    row.count("votes_skip")
    if not present:
        return None, None
    counts = [row.count(name) for name in present[0]]
    missing = [name for name in present[0] if not row.has(name) and name not in layout.absent]
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
            row.refuse(problem, NO_MORE_CLICKS, "correct the counts", code="value-conflict")
            return None, None
    # Raw rates decide whether a row is swapped: the prior would break the tie of equal rates.
    return preference_from_clicks(*known), known[0] * known[3] < known[2] * known[1]
