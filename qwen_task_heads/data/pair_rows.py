"""A row of preferences -> a pair or an arm, or every problem of that row."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_task_heads.data.pair_columns import (
    MAX_NUMBER,
    MIN_WEIGHT,
    RowReader,
    read_signals,
    refuse_misspelt,
    require,
)
from qwen_task_heads.data.pair_layout import GROUP, HEADLINE, Layout
from qwen_task_heads.data.pair_texts import PairTexts, read_prompt, read_texts


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


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """A row of arms: a title of an experiment, with its counts."""

    title: str
    prompt: str
    group: str
    clicks: int
    impressions: int


def read_pair(row: RowReader, layout: Layout) -> PairRow | None:
    """Read a row of pairs, with one or more rejected titles; return None if `row.problems` has any."""
    refuse_misspelt(row, layout, layout.titles)
    texts = read_texts(row, layout) if require(row, layout, layout.titles) else None
    margin = row.number("margin", low=-MAX_NUMBER, high=MAX_NUMBER, expected="a number from -1e6 to 1e6")
    weight = row.number("weight", low=MIN_WEIGHT, high=MAX_NUMBER, expected="a number from 1e-6 to 1e6")
    preference, swapped = read_signals(row, layout)
    group = row.group()
    if texts is not None and len(texts.rejected) > 1 and preference is not None:
        problem = f"found votes, clicks or a preference for {len(texts.rejected):,} rejected titles"
        expected = "preference signals of one pair"
        row.refuse(problem, expected, "write one pair per row", code="value-conflict")
    if row.problems or texts is None:
        return None
    return PairRow(
        texts=texts,
        margin=margin,
        preference=preference,
        weight=1.0 if weight is None else weight,
        group=group,
        swapped=swapped,
    )


def read_arm(row: RowReader, layout: Layout) -> ArmRow | None:
    """Read an arm; return None if `row.problems` has any."""
    headline = next((name for name in HEADLINE if name in row.values), _first_present(HEADLINE, layout))
    group = next((name for name in GROUP if name in row.values), _first_present(GROUP, layout))
    needed = (headline, "impressions", "clicks", group)
    refuse_misspelt(row, layout, needed)
    complete = require(row, layout, needed)
    title = row.title(headline) if headline in row.values else ""
    clicks, impressions = row.count("clicks"), row.count("impressions")
    prompt, key = "\n".join(read_prompt(row, layout)[0]).strip(), row.group()
    for column, value in (("clicks", clicks), ("impressions", impressions)):
        if column in row.values and value is None and not row.problems:
            problem = f"{column!r} is empty"
            row.refuse(problem, "a whole number from 0", "fill in the count", code="value-missing")
    if group in row.values and not key and not row.problems:
        row.refuse(
            f"{group!r} is empty", "the key of the experiment", "fill in the key", code="value-missing"
        )
    if clicks is not None and impressions is not None and clicks > impressions:
        problem = f"found {clicks:,} clicks of {impressions:,} impressions"
        expected = "at most as many clicks as impressions"
        row.refuse(problem, expected, "correct the counts", code="value-conflict")
    if row.problems or not complete or clicks is None or impressions is None:
        return None
    return ArmRow(title=title, prompt=prompt, group=key, clicks=clicks, impressions=impressions)


def _first_present(names: tuple[str, ...], layout: Layout) -> str:
    return next((name for name in names if name not in layout.absent), names[0])
