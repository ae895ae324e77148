"""Batches of preferences -> columns. Plain rows are read column by column, other rows one by one.

A pair is plain if both titles are texts without marks of tags, lists or conversations, and its numbers are
numbers. An arm is plain if its title is such a text, and its counts are whole numbers with at most as many
clicks as impressions. `pair_rows` reads all other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

import numpy as np

from qwen_task_heads.data.click_pairs import exact_products
from qwen_task_heads.data.click_rates import preferences_from_clicks
from qwen_task_heads.data.pair_layout import PairLayout
from qwen_task_heads.data.pair_rows import read_arm, read_pair
from qwen_task_heads.data.plain_columns import (
    MARKS,
    plain_counts,
    plain_groups,
    plain_numbers,
    plain_titles,
    plain_weights,
)
from qwen_task_heads.data.raw_pairs import RawPairs
from qwen_task_heads.data.row_reader import MAX_NUMBER, RowReader, collapse
from qwen_task_heads.data.schema import CLICKS, CONVERSATIONS, HEADLINE, VOTES
from qwen_task_heads.sources.batches import ABSENT, Batch


class PairScan:
    """Reads the rows of one file into `raw`.

    Args:
        raw: takes the rows.
        layout: layout of the file.
    """

    def __init__(self, raw: RawPairs, layout: PairLayout) -> None:
        self._raw, self.layout = raw, layout
        special = {*CONVERSATIONS} & {*layout.titles, *layout.prompt}
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
            "margin": plain_numbers(batch, "margin", low=-MAX_NUMBER, high=MAX_NUMBER, absent=nan),
            "preference": preferences,
            "weight": plain_weights(batch),
        }
        rows: dict[int, list[dict[str, Any]]] = {}  # index of a row that is not plain -> its pairs
        for place, (one, two, *others) in enumerate(zip(*columns.values(), strict=True)):
            if not self._is_plain or not one or not two or None in others or _may_be_equal(one, two):
                rows[place] = self._read_pair(batch, place)
            elif (preference := others[3]) == preference:
                self._raw.with_signals += 1
                self._raw.swapped += [batch.where(place)] if swapped[place] else []
        columns, numbers = _merged(columns, batch.numbers, rows)
        self._raw.pairs.extend(columns, source=batch.source, numbers=numbers)

    def _read_pair(self, batch: Batch, place: int) -> list[dict[str, Any]]:
        """Return the pairs of one row."""
        row = RowReader(batch.where(place), batch.row(place))
        pair = read_pair(row, self.layout)
        if pair is None:
            self._raw.reject(row)
            return []
        self._raw.several += len(pair.texts.rejected) - 1
        self._raw.with_signals += pair.swapped is not None
        self._raw.swapped += [row.where] if pair.swapped else []
        self._raw.conversations += [row.where] if pair.texts.from_messages else []
        return pair.pairs()

    def _add_arms(self, batch: Batch) -> None:
        names = [name for name in HEADLINE if name in batch.names]
        clicks, impressions = (plain_counts(batch, name) for name in ("clicks", "impressions"))
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
                rows[place] = [] if arm is None else [arm]
                if arm is None:
                    self._raw.reject(row)
        columns, numbers = _merged(columns, batch.numbers, rows)
        self._raw.arms.extend(columns, source=batch.source, numbers=numbers)

    def _plain_prompts(self, batch: Batch) -> list[str | None]:
        """Return the prompt of each row, None for a row that is not plain."""
        if not self.layout.prompt:
            return [""] * len(batch)
        values = batch.column(self.layout.prompt[0])
        stripped = (
            "" if value is ABSENT else value.strip() if type(value) is str else None for value in values
        )
        return [None if text is None or text[:1] in MARKS else text for text in stripped]


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


def _may_be_equal(one: str, other: str) -> bool:
    """Return whether two titles are equal up to white space; such rows are read one by one."""
    return one[0] == other[0] and one[-1] == other[-1] and collapse(one) == collapse(other)


def _plain_signals(batch: Batch) -> tuple[list[float | None], Sequence[bool]]:
    """Return P(chosen preferred) of each row, None if it is not plain, and whether the row looks swapped."""
    known = [names for names in (("preference",), CLICKS) if not {*names}.isdisjoint(batch.names)]
    if not {*VOTES, "votes_skip"}.isdisjoint(batch.names) or len(known) > 1:
        return [None] * len(batch), [False] * len(batch)
    if known != [CLICKS]:
        stated = plain_numbers(batch, "preference", low=0, high=1, absent=nan)
        return stated, [value is not None and value < 0.5 for value in stated]
    counts = [*zip(*(plain_counts(batch, name) for name in CLICKS), strict=True)]
    plain = [None not in row and row[0] <= row[1] and row[2] <= row[3] for row in counts]  # type: ignore[operator]
    columns = np.array(
        [row if ok else (0, 0, 0, 0) for row, ok in zip(counts, plain, strict=True)], np.int64
    ).T
    preferences = preferences_from_clicks(*columns).tolist()
    # Raw rates decide whether a row is swapped, as in `read_signals`.
    swapped = exact_products(columns[0], columns[3]) < exact_products(columns[2], columns[1])
    return [value if ok else None for value, ok in zip(preferences, plain, strict=True)], swapped.tolist()
