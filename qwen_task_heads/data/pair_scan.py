"""Batches of preferences -> columns. Plain rows are read column by column, other rows one by one.

A pair is plain if both titles are texts without marks of tags, lists or conversations, and its numbers are
numbers. An arm is plain if its title is such a text, and its counts are whole numbers with at most as many
clicks as impressions. `pair_rows` reads all other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from qwen_task_heads.data.batches import ABSENT, Batch
from qwen_task_heads.data.click_pairs import exact_products
from qwen_task_heads.data.click_rates import preferences_from_clicks
from qwen_task_heads.data.pair_columns import MAX_COUNT, MAX_NUMBER, RowReader, collapse
from qwen_task_heads.data.pair_layout import CLICKS, HEADLINE, HISTORY, VOTES, Layout
from qwen_task_heads.data.pair_rows import PairRow, read_arm, read_pair
from qwen_task_heads.data.raw_pairs import ArmColumns, PairColumns
from qwen_task_heads.data.text_scan import plain_groups, plain_numbers, plain_texts, plain_weights
from qwen_task_heads.errors import Problem

NAN = float("nan")
MARKS = frozenset("[{(<")  # first characters of a list, messages or a tag


class Collected(Protocol):
    """The columns that take the rows, and the counts of these rows."""

    pairs: PairColumns
    arms: ArmColumns
    refused: int
    problems: list[Problem]
    swapped: list[str]
    with_signals: int
    conversations: list[str]
    several: int


class PairScan:
    """Reads the rows of one file into `collected`.

    Args:
        collected: takes the rows and counts them.
        layout: layout of the file.
    """

    def __init__(self, collected: Collected, layout: Layout) -> None:
        self.collected, self.layout = collected, layout
        special = {*HISTORY} & {*layout.titles, *layout.prompt}
        self._is_plain = not layout.near and not special and len(layout.prompt) < 2

    def add(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        if self.layout.kind == "pairs":
            self._add_pairs(batch)
        elif self.layout.kind == "arms":
            self._add_arms(batch)

    def _add_pairs(self, batch: Batch) -> None:
        chosen, rejected = (plain_titles(batch, name) for name in self.layout.titles)
        preferences, swapped = _plain_signals(batch)
        columns: dict[str, Sequence[Any]] = {
            "chosen": chosen,
            "rejected": rejected,
            "prompt": self._plain_prompts(batch),
            "group": plain_groups(batch),
            "margin": _plain(batch, "margin", -MAX_NUMBER, MAX_NUMBER),
            "preference": preferences,
            "weight": plain_weights(batch),
        }
        rows: dict[int, list[dict[str, Any]]] = {}  # index of a row that is not plain -> its pairs
        for place, (one, two, *others) in enumerate(zip(*columns.values(), strict=True)):
            if not self._is_plain or not one or not two or None in others or _may_be_equal(one, two):
                rows[place] = self._read_pair(batch, place)
            elif (preference := others[3]) == preference:
                self.collected.with_signals += 1
                self.collected.swapped += [batch.where(place)] if swapped[place] else []
        columns, numbers = _merged(columns, batch.numbers, rows)
        self.collected.pairs.extend(columns, source=batch.source, numbers=numbers)

    def _read_pair(self, batch: Batch, place: int) -> list[dict[str, Any]]:
        """Return the pairs of one row."""
        row = RowReader(batch.where(place), batch.row(place))
        pair = read_pair(row, self.layout)
        if pair is None:
            self._refuse(row)
            return []
        self.collected.several += len(pair.texts.rejected) - 1
        self.collected.with_signals += pair.swapped is not None
        self.collected.swapped += [row.where] if pair.swapped else []
        self.collected.conversations += [row.where] if pair.texts.from_messages else []
        return _pairs_of(pair)

    def _add_arms(self, batch: Batch) -> None:
        names = [name for name in HEADLINE if name in batch.names]
        clicks, impressions = (_plain_counts(batch, name) for name in ("clicks", "impressions"))
        columns: dict[str, Sequence[Any]] = {
            "title": plain_titles(batch, names[0]) if len(names) == 1 else [""] * len(batch),
            "prompt": self._plain_prompts(batch),
            "group": plain_groups(batch),
            "clicks": clicks,
            "impressions": impressions,
        }
        rows: dict[int, list[dict[str, Any]]] = {}
        for place, (title, prompt, group, clicked, seen) in enumerate(zip(*columns.values(), strict=True)):
            complete = title and group and prompt is not None and clicked is not None and seen is not None
            if not self._is_plain or not complete or clicked > seen:
                row = RowReader(batch.where(place), batch.row(place))
                arm = read_arm(row, self.layout)
                rows[place] = [] if arm is None else [vars(arm)]
                if arm is None:
                    self._refuse(row)
        columns, numbers = _merged(columns, batch.numbers, rows)
        self.collected.arms.extend(columns, source=batch.source, numbers=numbers)

    def _refuse(self, row: RowReader) -> None:
        self.collected.refused += 1
        self.collected.problems += row.problems

    def _plain_prompts(self, batch: Batch) -> list[str | None]:
        """Return the prompt of each row, None for a row that is not plain."""
        if not self.layout.prompt:
            return [""] * len(batch)
        values = batch.column(self.layout.prompt[0])
        stripped = (
            "" if value is ABSENT else value.strip() if type(value) is str else None for value in values
        )
        return [None if text is None or text[:1] in MARKS else text for text in stripped]


def _pairs_of(pair: PairRow) -> list[dict[str, Any]]:
    return [
        {
            "chosen": pair.texts.chosen,
            "rejected": rejected,
            "prompt": pair.texts.prompt,
            "group": pair.group,
            "margin": NAN if pair.margin is None else pair.margin,
            "preference": NAN if pair.preference is None else pair.preference,
            "weight": pair.weight,
        }
        for rejected in pair.texts.rejected
    ]


def _merged(
    columns: dict[str, Sequence[Any]], numbers: Sequence[int], rows: dict[int, list[dict[str, Any]]]
) -> tuple[dict[str, Sequence[Any]], Sequence[int]]:
    """Replace the rows at some indices by the rows in `rows`: none, one or several for each index."""
    if not rows:
        return columns, numbers
    merged: dict[str, list[Any]] = {name: [] for name in columns}
    places: list[int] = []
    for place, number in enumerate(numbers):
        plain = [{name: values[place] for name, values in columns.items()}] if place not in rows else []
        for row in rows.get(place, plain):
            places.append(number)
            for name, values in merged.items():
                values.append(row[name])
    return dict(merged), places


def plain_titles(batch: Batch, column: str) -> list[str]:
    """Return the titles of a column, "" for a row that is not plain."""
    return [
        "" if text[:1] in MARKS or text[-1:] == ">" or text.startswith("Human:") else text
        for text in plain_texts(batch, column)
    ]


def _may_be_equal(one: str, other: str) -> bool:
    """Return whether two titles are equal up to white space; such rows are read one by one."""
    return one[0] == other[0] and one[-1] == other[-1] and collapse(one) == collapse(other)


def _plain(batch: Batch, name: str, low: float, high: float) -> list[float | None]:
    return plain_numbers(batch, name, low=low, high=high, absent=NAN)


def _plain_signals(batch: Batch) -> tuple[list[float | None], Sequence[bool]]:
    """Return P(chosen preferred) of each row, None if it is not plain, and whether the row looks swapped."""
    known = [names for names in (("preference",), CLICKS) if not {*names}.isdisjoint(batch.names)]
    if not {*VOTES, "votes_skip"}.isdisjoint(batch.names) or len(known) > 1:
        return [None] * len(batch), [False] * len(batch)
    if known != [CLICKS]:
        stated = _plain(batch, "preference", 0, 1)
        return stated, [value is not None and value < 0.5 for value in stated]
    counts = [*zip(*(_plain_counts(batch, name) for name in CLICKS), strict=True)]
    plain = [None not in row and row[0] <= row[1] and row[2] <= row[3] for row in counts]  # type: ignore[operator]
    columns = np.array(
        [row if ok else (0, 0, 0, 0) for row, ok in zip(counts, plain, strict=True)], np.int64
    ).T
    preferences = preferences_from_clicks(*columns).tolist()
    # Raw rates decide whether a row is swapped, as in `read_signals`.
    swapped = exact_products(columns[0], columns[3]) < exact_products(columns[2], columns[1])
    return [value if ok else None for value, ok in zip(preferences, plain, strict=True)], swapped.tolist()


def _plain_counts(batch: Batch, name: str) -> list[int | None]:
    """Return the whole numbers of a column, in text as digits; None for a row that is not plain."""
    values = batch.column(name)
    if batch.textual:
        digits = (
            value if type(value) is str and value.isascii() and value.isdigit() else "" for value in values
        )
        counts = [
            int(text) if text and (text == "0" or text[0] != "0") and len(text) < 13 else None
            for text in digits
        ]
    else:
        counts = [value if type(value) is int and 0 <= value <= MAX_COUNT else None for value in values]
    return counts
