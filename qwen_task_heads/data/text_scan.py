"""Batches of labelled texts -> columns. Plain rows are read column by column; all others by `text_columns`.

A row is plain if its texts begin with something visible, and its target has been seen before. What a row
means is decided in one place: a target is read by `text_columns.read_text` when it is new, and looked up from
then on.
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

MAX_KNOWN = 100_000  # targets that are looked up
SCORE = -1  # in the place of a code until it is known which rows are kept
MAX_CELL = 200  # characters of one that is: a long list hardly comes again


class TextScan:
    """The rows of one file, added to `raw`.

    Args:
        raw: where they go.
        layout: of the file.
        class_names: names of the classes of its target, () without.
    """

    def __init__(self, raw: RawTexts, layout: TextLayout, class_names: tuple[str, ...]) -> None:
        self._raw, self.layout, self.class_names = raw, layout, class_names
        self._known: dict[Any, int] = {}  # cells of the target -> its code
        special = {ALPACA, *CONVERSATIONS}
        self._is_plain = special.isdisjoint((*layout.texts, layout.target)) and bool(layout.texts)
        beside = ("category",) if layout.target == "output" else ()
        self._cells = tuple(name for name in (layout.target, layout.name, *beside) if name)

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
        odd = [
            place
            for place, found in enumerate(zip(texts, codes, groups, weights, strict=True))
            if not found[0] or None in found
        ]
        if len(columns) > 1:
            odd = sorted({*odd, *(place for place, text in enumerate(texts_b) if not text)})
        refused = set()
        for place in odd:
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
        """The score of each row, NaN where there is none, or the row has to be read by itself."""
        if self.layout.kind != "regression" or not self._is_plain:
            return [math.nan] * len(batch)
        return [
            float(cell) if type(cell) in (int, float) and -MAX_NUMBER <= cell <= MAX_NUMBER else math.nan
            for cell in batch.column(self.layout.target)
        ]

    def _keys(self, batch: Batch) -> list[Any]:
        """The cells of the target of each row; texts as they are, others with their type."""
        columns = [
            [cell if type(cell) is str else (repr(cell),) for cell in batch.column(name)]
            for name in self._cells
        ]
        return columns[0] if len(columns) == 1 else [*zip(*columns, strict=True)] or [()] * len(batch)

    def _read(self, batch: Batch, place: int) -> RawText | None:
        """A row by itself, None with its problems noted."""
        raw, layout = self._raw, self.layout
        reader = RowReader(batch.where(place), batch.row(place))
        row = read_text(reader, layout)
        if row is None:
            raw.refused += 1
            raw.problems += reader.problems
            raw.hidden += reader.values.get(layout.target) in (-1, "-1")
            return None
        if layout.texts[0] in CONVERSATIONS and _others_speak(reader, layout):
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


def _others_speak(row: RowReader, layout: TextLayout) -> bool:
    messages = read_messages(row, layout.texts[0]) or []
    spoken = messages[:-1] if layout.target == layout.texts[0] else messages  # without the label
    return any(role != "user" for role, _ in spoken)


def plain_texts(batch: Batch, column: str) -> list[str]:
    """Return the texts of a column, stripped; "" where a row has to be read by itself."""
    values = batch.column(column)
    stripped = [value.strip() if type(value) is str else "" for value in values]
    return [text if text[:1].isprintable() else "" for text in stripped]


def plain_groups(batch: Batch) -> list[str | None]:
    """Return the group of each row; None where a row has to be read by itself."""
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
    """Return the weight of each row; None where a row has to be read by itself."""
    return plain_numbers(batch, "weight", low=MIN_WEIGHT, high=MAX_NUMBER, absent=1.0)


def plain_numbers(batch: Batch, name: str, *, low: float, high: float, absent: float) -> list[float | None]:
    """Return the numbers of a column; None where a row has to be read by itself."""
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
