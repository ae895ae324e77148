"""Batches of labelled texts -> columns. Plain rows are read column by column, other rows one by one.

A row is plain if its texts begin with a visible character and its target has occurred before.
`text_columns.read_text` reads each new target once; equal targets are looked up.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from qwen_task_heads.data.batches import ABSENT, Batch
from qwen_task_heads.data.cells import MISSING
from qwen_task_heads.data.conversations import CONVERSATIONS, read_messages
from qwen_task_heads.data.pair_columns import MAX_NUMBER, MIN_WEIGHT, RowReader
from qwen_task_heads.data.pair_layout import GROUP
from qwen_task_heads.data.raw_texts import RawTarget, RawText, RawTexts
from qwen_task_heads.data.text_columns import read_text
from qwen_task_heads.data.text_layout import ALPACA, TextLayout

MAX_KNOWN = 100_000  # targets kept for look-up
MAX_CELL = 200  # characters of a target kept for look-up; longer lists seldom repeat
SCORE = -1  # code of a score, until the kept rows are known


class TextScan:
    """Reads the rows of one file into `raw`.

    Args:
        raw: takes the rows.
        layout: layout of the file.
        class_names: names of the classes of its target, () without.
    """

    def __init__(self, raw: RawTexts, layout: TextLayout, class_names: tuple[str, ...]) -> None:
        self._raw, self.layout, self.class_names = raw, layout, class_names
        self._known: dict[Any, int] = {}  # cells of the target -> its code
        special = {ALPACA, *CONVERSATIONS}
        self._is_plain = special.isdisjoint((*layout.texts, layout.target)) and bool(layout.texts)
        candidates = ("category",) if layout.target == "output" else ()
        self._cells = tuple(name for name in (layout.target, layout.name, *candidates) if name)

    def add(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        raw, layout = self._raw, self.layout
        if layout.problems:
            raw.refused += len(batch)
            return
        keys = self._keys(batch)
        scores = self._plain_scores(batch)
        codes: list[int | None] = [
            self._known.get(key) if score != score else SCORE for key, score in zip(keys, scores, strict=True)
        ]
        columns = [plain_texts(batch, name) for name in layout.texts]
        texts = columns[0] if self._is_plain else [""] * len(batch)
        texts_b = columns[1] if len(columns) > 1 else [""] * len(batch)
        groups, weights = plain_groups(batch), plain_weights(batch)
        remaining = [  # rows that are not plain
            place
            for place, cells in enumerate(zip(texts, codes, groups, weights, strict=True))
            if not cells[0] or None in cells
        ]
        if len(columns) > 1:
            remaining = sorted({*remaining, *(place for place, text in enumerate(texts_b) if not text)})
        refused = set()
        for place in remaining:
            row = self._read(batch, place)
            if row is None:
                refused.add(place)
                continue
            value = row.target.value
            if isinstance(value, tuple) and len(value) == 1:
                scores[place], code = value[0], SCORE
            else:
                code = raw.code_of(row.target)
                if len(self._known) < MAX_KNOWN and len(str(keys[place])) < MAX_CELL:
                    self._known[keys[place]] = code
            texts[place], texts_b[place], groups[place] = row.text, row.text_b, row.group
            weights[place], codes[place] = row.weight, code
        kept: list[Any] = [texts, texts_b, groups, weights, scores, codes, batch.numbers]
        if refused:
            places = [place for place in range(len(batch)) if place not in refused]
            kept = [[values[place] for place in places] for values in kept]
        for place, score in enumerate(kept[4]):
            if score == score:
                target = RawTarget(value=(score,), where=f"{batch.source}{kept[6][place]}")
                kept[5][place] = raw.code_of_score(target)
        raw.extend(
            *kept[:3], weights=kept[3], scores=kept[4], codes=kept[5], source=batch.source, numbers=kept[6]
        )

    def _plain_scores(self, batch: Batch) -> list[float]:
        """Return the score of each row, NaN without a score or for a row that is not plain."""
        if self.layout.kind != "regression" or not self._is_plain:
            return [math.nan] * len(batch)
        return [
            float(cell) if type(cell) in (int, float) and -MAX_NUMBER <= cell <= MAX_NUMBER else math.nan
            for cell in batch.column(self.layout.target)
        ]

    def _keys(self, batch: Batch) -> list[Any]:
        """Return the cells of the target of each row; texts as they are, others with their type."""
        columns = [
            [cell if type(cell) is str else (repr(cell),) for cell in batch.column(name)]
            for name in self._cells
        ]
        return columns[0] if len(columns) == 1 else [*zip(*columns, strict=True)] or [()] * len(batch)

    def _read(self, batch: Batch, place: int) -> RawText | None:
        """Read one row; return None and collect its problems if it is refused."""
        raw, layout = self._raw, self.layout
        reader = RowReader(batch.where(place), batch.row(place))
        row = read_text(reader, layout)
        if row is None:
            raw.refused += 1
            raw.problems += reader.problems
            raw.unlabeled += reader.values.get(layout.target) in (-1, "-1")
            return None
        if layout.texts[0] in CONVERSATIONS and _has_other_roles(reader, layout):
            raw.spoken.append(reader.where)
        value = row.target.value
        if (
            self.class_names
            and isinstance(value, int)
            and not row.target.name
            and value < len(self.class_names)
        ):
            return replace(row, target=replace(row.target, name=self.class_names[value]))
        return row


def _has_other_roles(row: RowReader, layout: TextLayout) -> bool:
    """Return whether a conversation has messages of other roles than user, except the label."""
    messages = read_messages(row, layout.texts[0]) or []
    if layout.target == layout.texts[0]:
        messages = messages[:-1]  # the last message is the label
    return any(role != "user" for role, _ in messages)


def plain_texts(batch: Batch, column: str) -> list[str]:
    """Return the stripped texts of a column, "" for a row that is not plain."""
    values = batch.column(column)
    stripped = [value.strip() if type(value) is str else "" for value in values]
    return [text if text[:1].isprintable() else "" for text in stripped]


def plain_groups(batch: Batch) -> list[str | None]:
    """Return the group of each row, None for a row that is not plain."""
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
    """Return the weight of each row, None for a row that is not plain."""
    return plain_numbers(batch, "weight", low=MIN_WEIGHT, high=MAX_NUMBER, absent=1.0)


def plain_numbers(batch: Batch, name: str, *, low: float, high: float, absent: float) -> list[float | None]:
    """Return the numbers of a column, `absent` for a missing cell, None for a row that is not plain."""
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
