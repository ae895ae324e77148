"""Define tables of texts, pairs and experiments, which are stored in columns.

A selection of a table (a split, a shuffle) has the same columns with other row numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.data.sequences import Table, hashes_at, spans
from qwen_task_heads.data.stores import Numbers, Places, Texts
from qwen_task_heads.sources.keys import KEYS, Hashes

Target = Any  # of a `TextExample`


@dataclass(frozen=True, eq=False, repr=False)
class TextTable(Table[TextExample]):
    """Labelled texts.

    Args:
        text, text_b, group: columns of a store.
        weights: of the rows of the store.
        scores: of the rows of the store, if their target is one score; NaN for other rows; None without any.
        codes: of the rows of the store: the index in `targets` of each row.
        targets: distinct `(target, soft, candidates)` of examples.
        places: of the rows of the store.
        rows: row numbers of the table in the store; None for all rows, in their order.
    """

    text: Texts
    text_b: Texts
    group: Texts
    weights: NDArray[np.float64]
    scores: NDArray[np.float64] | None
    codes: NDArray[np.int32]
    targets: Sequence[tuple[Target, tuple[float, ...] | None, tuple[str, ...]]]
    places: Places
    rows: Numbers | None

    def __len__(self) -> int:
        return len(self.codes) if self.rows is None else len(self.rows)

    def examples(self, rows: Numbers) -> list[TextExample]:
        """Return the examples of some rows, in their order."""
        stored = self.stored(rows)
        scores = repeat(math.nan, len(stored)) if self.scores is None else self.scores[stored].tolist()
        result = []
        for text, text_b, group, weight, score, code, place in zip(
            self.text.take(stored),
            self.text_b.take(stored),
            self.group.take(stored),
            self.weights[stored].tolist(),
            scores,
            self.codes[stored].tolist(),
            stored.tolist(),
            strict=True,
        ):
            target, soft, candidates = self.targets[code]
            target = target if math.isnan(score) else (score,)
            result.append(
                TextExample(
                    text=text,
                    text_b=text_b,
                    target=target,
                    soft=soft,
                    candidates=candidates,
                    weight=weight,
                    group=group,
                    source=self.places[place],
                )
            )
        return result

    def pick(self, rows: Numbers) -> TextTable:
        """Return a table of some rows, in their order."""
        return replace(self, rows=self.stored(rows))

    def source(self, row: int) -> str:
        """Return the place of a row in the data."""
        return self.places[row if self.rows is None else int(self.rows[row])]

    def stored(self, rows: Numbers) -> Numbers:
        """Return the rows of the store for some rows of the table."""
        return rows if self.rows is None else self.rows[rows]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return the `weight` of each row."""
        values = {"weight": self.weights}[name]
        return values if self.rows is None else values[self.rows]

    def row_codes(self) -> NDArray[np.int32]:
        """Return the code of each row of the table."""
        return self.codes if self.rows is None else self.codes[self.rows]

    def hashes(self, name: str) -> Hashes:
        """Return 64 bits per row of a column, equal for texts of equal `text_key`."""
        return hashes_at(vars(self)[name], self.rows)


@dataclass(frozen=True, eq=False, repr=False)
class PairTable(Table[PairExample]):
    """Preferences, each from two rows of a store: two arms of an experiment, or twice the row of a pair.

    Args:
        chosen, rejected, prompt, group: columns; `prompt` and `group` are read in the rows of `chosen`.
        chosen_rows, rejected_rows: row numbers in the store, one of each per pair.
        margins, preferences: per pair, NaN for None.
        weights: per pair.
        places: of the rows of the store; a pair of two rows has both places.
    """

    chosen: Texts
    rejected: Texts
    prompt: Texts
    group: Texts
    chosen_rows: Numbers
    rejected_rows: Numbers
    margins: NDArray[np.float64]
    preferences: NDArray[np.float64]
    weights: NDArray[np.float64]
    places: Places

    def __len__(self) -> int:
        return len(self.chosen_rows)

    def examples(self, rows: Numbers) -> list[PairExample]:
        """Return the examples of some rows, in their order."""
        one, two = self.chosen_rows[rows], self.rejected_rows[rows]
        result = []
        for chosen, rejected, prompt, group, margin, preference, weight, first, second in zip(
            self.chosen.take(one),
            self.rejected.take(two),
            self.prompt.take(one),
            self.group.take(one),
            self.margins[rows].tolist(),
            self.preferences[rows].tolist(),
            self.weights[rows].tolist(),
            one.tolist(),
            two.tolist(),
            strict=True,
        ):
            result.append(
                PairExample(
                    chosen=chosen,
                    rejected=rejected,
                    prompt=prompt,
                    margin=None if margin != margin else margin,
                    preference=None if preference != preference else preference,
                    weight=weight,
                    group=group,
                    source=self._source(first, second),
                )
            )
        return result

    def pick(self, rows: Numbers) -> PairTable:
        """Return a table of some rows, in their order."""
        return replace(
            self,
            chosen_rows=self.chosen_rows[rows],
            rejected_rows=self.rejected_rows[rows],
            margins=self.margins[rows],
            preferences=self.preferences[rows],
            weights=self.weights[rows],
        )

    def hashes(self, name: str) -> Hashes:
        """Return 64 bits per row of a column, equal for texts of equal `text_key`."""
        rows = self.rejected_rows if name == "rejected" else self.chosen_rows
        return hashes_at(vars(self)[name], rows)

    def source(self, row: int) -> str:
        """Return the place of a pair in the data, or the places of both arms of an experiment."""
        return self._source(int(self.chosen_rows[row]), int(self.rejected_rows[row]))

    def _source(self, first: int, second: int) -> str:
        source = self.places[first]
        return source if first == second else f"{source} + {self.places[second]}"

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return `margin`, `preference` or `weight` of each pair, NaN for None."""
        return {"margin": self.margins, "preference": self.preferences, "weight": self.weights}[name]

    def with_groups(self, groups: Mapping[int, str]) -> PairTable:
        """Return the same pairs, with new groups for some rows."""
        names = self.group.take(np.arange(len(self.places)))
        for row, group in groups.items():
            names[self.chosen_rows[row]] = group
        column = Texts(KEYS["group"])
        column.extend(names)
        return replace(self, group=column)


@dataclass(frozen=True, eq=False, repr=False)
class GroupTable(Table[GroupExample]):
    """Experiments with their arms.

    Args:
        title, prompt, group: columns of a store of arms; prompt and group are those of the first arm.
        clicks, impressions: of the rows of the store.
        places: of the rows of the store.
        order: rows of the store, with consecutive arms of each experiment.
        starts, ends: of each experiment in `order`.
    """

    title: Texts
    prompt: Texts
    group: Texts
    clicks: NDArray[np.int64]
    impressions: NDArray[np.int64]
    places: Places
    order: Numbers
    starts: Numbers
    ends: Numbers

    def __len__(self) -> int:
        return len(self.starts)

    def examples(self, rows: Numbers) -> list[GroupExample]:
        """Return the examples of some experiments, in their order."""
        sizes = (self.ends[rows] - self.starts[rows]).tolist()
        arms = self.order[spans(self.starts[rows], self.ends[rows])]
        titles, numbers = self.title.take(arms), arms.tolist()
        clicks, impressions = self.clicks[arms].tolist(), self.impressions[arms].tolist()
        first = self.order[self.starts[rows]]
        result, start = [], 0
        for size, prompt, group in zip(sizes, self.prompt.take(first), self.group.take(first), strict=True):
            end = start + size
            result.append(
                GroupExample(
                    titles=tuple(titles[start:end]),
                    clicks=tuple(clicks[start:end]),
                    impressions=tuple(impressions[start:end]),
                    prompt=prompt,
                    group=group,
                    sources=tuple(self.places[row] for row in numbers[start:end]),
                )
            )
            start = end
        return result

    def pick(self, rows: Numbers) -> GroupTable:
        """Return a table of some experiments, in their order."""
        return replace(self, starts=self.starts[rows], ends=self.ends[rows])

    def source(self, row: int) -> str:
        """Return the place of the first arm of an experiment in the data."""
        return self.places[int(self.order[self.starts[row]])]

    def arms(self) -> tuple[Numbers, Numbers]:
        """Return `(rows, experiments)` of all arms: row in the store, and number of the experiment."""
        return self.order[spans(self.starts, self.ends)], np.repeat(
            np.arange(len(self)), self.ends - self.starts
        )

    def with_arms(self, kept: NDArray[np.bool_]) -> GroupTable:
        """Return the same experiments with some of their arms; `kept` has one flag per arm of the table."""
        rows, experiments = self.arms()
        sizes = np.bincount(experiments[kept], minlength=len(self))
        ends = np.cumsum(sizes)
        return replace(self, order=rows[kept], starts=ends - sizes, ends=ends)

    def pairs(self, better: Numbers, worse: Numbers, preferences: NDArray[np.float64]) -> PairTable:
        """Return pairs of arms, which are numbered as in `arms`."""
        rows, _ = self.arms()
        return PairTable(
            chosen=self.title,
            rejected=self.title,
            prompt=self.prompt,
            group=self.group,
            chosen_rows=rows[better],
            rejected_rows=rows[worse],
            margins=np.broadcast_to(np.nan, len(better)),
            preferences=preferences,
            weights=np.broadcast_to(1.0, len(better)),
            places=self.places,
        )

    def hashes(self, name: str) -> Hashes:
        """Return 64 bits per experiment, for its group or its prompt."""
        return hashes_at(vars(self)[name], self.order[self.starts])


def have_second(examples: Sequence[TextExample]) -> bool:
    """Return whether any example is a pair of texts."""
    if isinstance(examples, TextTable) and examples.text_b.are_empty:
        return False
    return any(example.text_b for example in examples)
