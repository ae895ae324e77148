"""Batches of labelled texts -> columns. Plain rows are read column by column, other rows one by one.

A row is plain if its texts begin with a visible character and its target has occurred before.
`text_columns.read_text` reads each new target once; equal targets are looked up.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from qwen_task_heads.data.conversations import read_messages
from qwen_task_heads.data.plain_columns import plain_groups, plain_texts, plain_weights
from qwen_task_heads.data.raw_texts import RawTarget, RawText, RawTexts
from qwen_task_heads.data.row_reader import MAX_NUMBER, RowReader
from qwen_task_heads.data.schema import CONVERSATIONS, RECORDS
from qwen_task_heads.data.text_columns import read_text
from qwen_task_heads.data.text_layout import TextLayout
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.sources.batches import Batch

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
        self._is_plain = bool(layout.texts) and not layout.are_joined and layout.kind != QUESTIONS
        self._is_plain = self._is_plain and {*CONVERSATIONS}.isdisjoint(layout.texts)
        more = {"output": ("category",), QUESTIONS: RECORDS}.get(layout.target, ())
        self._cells = tuple(name for name in (layout.target, layout.name, *more) if name)

    def add(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        raw, layout = self._raw, self.layout
        if layout.problems:
            raw.refused += len(batch)
            return
        keys, scores = self._keys(batch), self._plain_scores(batch)
        codes: list[Any] = [
            self._known.get(key) if score != score else SCORE for key, score in zip(keys, scores, strict=True)
        ]
        texts, *seconds = [plain_texts(batch, name) for name in layout.texts]
        if not self._is_plain:
            texts = [""] * len(batch)
        columns: dict[str, list[Any]] = {
            "text": texts,
            "text_b": seconds[0] if seconds else [""] * len(batch),
            "group": plain_groups(batch),
            "weight": plain_weights(batch),
            "score": scores,
        }
        remaining = [  # rows that are not plain
            place
            for place, (text, text_b, *others) in enumerate(zip(*columns.values(), codes, strict=True))
            if not text or (seconds and not text_b) or None in others
        ]
        refused = set()
        for place in remaining:
            row = self._read(batch, place)
            if row is None:
                refused.add(place)
                continue
            value = row.target.value
            if isinstance(value, tuple) and len(value) == 1:
                scores[place], codes[place] = value[0], SCORE
            else:
                codes[place] = raw.code_of(row.target)
                if len(self._known) < MAX_KNOWN and len(str(keys[place])) < MAX_CELL:
                    self._known[keys[place]] = raw.code_of(row.target)
            for name in ("text", "text_b", "group", "weight"):
                columns[name][place] = vars(row)[name]
        kept = [place for place in range(len(batch)) if place not in refused]
        numbers = [batch.numbers[place] for place in kept] if refused else batch.numbers
        if refused:
            columns = {name: [values[place] for place in kept] for name, values in columns.items()}
        known: list[int] = []
        for place, number, score in zip(kept, numbers, columns["score"], strict=True):
            if score == score:
                target = RawTarget(value=(score,), where=f"{batch.source}{number}")
                codes[place] = raw.code_of_score(target)
            known.append(codes[place])
        raw.extend(columns, known, source=batch.source, numbers=numbers)

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
            raw.reject(reader)
            raw.unlabeled += reader.values.get(layout.target) in (-1, "-1")
            return None
        if layout.texts[0] in CONVERSATIONS and _has_other_roles(reader, layout):
            raw.spoken.append(reader.where)
        value, names = row.target.value, self.class_names
        if isinstance(value, int) and value < len(names) and not row.target.name:
            return replace(row, target=replace(row.target, name=names[value]))
        return row


def _has_other_roles(row: RowReader, layout: TextLayout) -> bool:
    """Return whether a conversation has messages of other roles than user, except the label."""
    messages = read_messages(row, layout.texts[0]) or []
    if layout.target == layout.texts[0]:
        messages = messages[:-1]  # the last message is the label
    return any(role != "user" for role, _ in messages)
