"""Labelled texts with unresolved targets: columns of texts, and every different target once.

The meaning of a label value depends on the whole column, and a file of 500,000 rows may have four different
targets. Each different target is therefore stored once, with its first place; a row stores its index.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.scanning import RawRows
from qwen_task_heads.data.stores import Numbers, Rows
from qwen_task_heads.errors import Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class RawTarget:
    """An unresolved target of one or more rows.

    Args:
        value: id or name; list of these; tuple of scores; list or mapping of probabilities; by the kind.
        name: the `label_name` of an id, "" without one.
        candidates: candidate labels of the row (`category`), () without.
        where: file and line of the first row with this target.
        textual: whether the row is from CSV, TSV or a class file, in which `3` is the `"3"` of JSON.
        is_split: whether several labels were one text, which separators other than `|` may split further.
    """

    value: Any = None
    name: str = ""
    candidates: tuple[str, ...] = ()
    where: str = ""
    textual: bool = False
    is_split: bool = False

    @property
    def file(self) -> str:
        """The file of the first row with this target."""
        return self.where.rsplit(":", 1)[0]


class RowProblem(Problem):
    """A problem of a target, and so of every row that has it.

    `where` is `RawTarget.where`, by which `RawTexts.of_rows` finds the rows.
    """


@dataclass(frozen=True, kw_only=True)
class RawText:
    """A row of texts with its unresolved target.

    Args:
        text: stripped, not empty.
        text_b: the second text of a pair, "" for single texts.
        weight: weight of the row, positive.
        group: key of the rows that stay in one split, "" without one.
        target: the target, with the place of the row.
    """

    text: str
    text_b: str = ""
    weight: float = 1.0
    group: str = ""
    target: RawTarget = RawTarget()


@dataclass(kw_only=True)
class RawTexts(RawRows):
    """All rows of a source, with unresolved targets; `rows_read == len(self) + refused`.

    Args:
        rows: the texts, groups, weights and scores; NaN for rows whose target is not one score.
        targets: each different target of each file, in the order of their first rows.
        kind: problem type of the target column, "" if unknown.
        target: the target column of the first file.
        class_names: class names that the schema of a hub dataset declares for the target, () without.
        spoken: rows with messages of other roles than user, which are left out of the text.
        unlabeled: rows with label -1, by which benchmarks mark unpublished labels of a test split.
        messages: messages on how the files were read.
        cut_at: `max_samples`, if it left rows unread.
        refused_targets: index in `targets` -> the problem of that target.
    """

    rows: Rows = field(
        default_factory=lambda: Rows(("text", "text_b", "group"), {"weight": 1.0, "score": math.nan})
    )
    targets: list[RawTarget] = field(default_factory=list)
    kind: str = ""
    target: str = ""
    class_names: tuple[str, ...] = ()
    spoken: list[str] = field(default_factory=list)
    unlabeled: int = 0
    messages: list[str] = field(default_factory=list)
    cut_at: int | None = None
    refused_targets: dict[int, Problem] = field(default_factory=dict)
    _codes: array[int] = field(default_factory=lambda: array("i"))  # per row, the index of its target
    _code_of: dict[bytes, int] = field(default_factory=dict)
    _score_codes: list[int] = field(default_factory=list)  # of the first score, and of all other scores

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[RawText]:
        weights, scores = self.rows.values("weight").tolist(), self.rows.values("score").tolist()
        for row, (code, weight, score) in enumerate(zip(self._codes, weights, scores, strict=True)):
            target = replace(self.targets[code], where=self.rows.places[row])
            target = target if math.isnan(score) else replace(target, value=(score,))
            texts = {name: column[row] for name, column in self.rows.texts.items()}
            yield RawText(**texts, weight=weight, target=target)

    @property
    def codes(self) -> NDArray[np.int32]:
        """Per row, the index of its target in `targets`."""
        return np.frombuffer(self._codes, np.int32)

    def code_of(self, target: RawTarget) -> int:
        """Return the index of a target, which is added if it is new."""
        fields = (target.value, target.name, target.candidates, target.file, target.textual, target.is_split)
        key = blake2b(repr(fields).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        code = self._code_of.setdefault(key, len(self.targets))
        if code == len(self.targets):
            self.targets.append(target)
        return code

    def code_of_score(self, target: RawTarget) -> int:
        """Return the index of a target that is one score: one index for the first score, one for all others.

        `scores` has the score of each row. The targets only show whether all scores are equal.
        """
        for code in self._score_codes:
            if self.targets[code].value == target.value:
                return code
        if len(self._score_codes) < 2:
            self._score_codes.append(self.code_of(target))
        return self._score_codes[-1]

    def extend(
        self,
        columns: Mapping[str, Sequence[Any]],
        codes: Sequence[int],
        *,
        source: str,
        numbers: Sequence[int],
    ) -> None:
        """Add rows of one file with their targets; `source` and `numbers` are fields of a `Batch`."""
        self.rows.extend(columns, source=source, numbers=numbers)
        self._codes.extend(codes)

    @property
    def stated(self) -> list[RawTarget]:
        """The targets that are not refused."""
        return [target for code, target in enumerate(self.targets) if code not in self.refused_targets]

    def change(self, make: Callable[[RawTarget], RawTarget | RowProblem]) -> None:
        """Replace each target that is not refused by `make(target)`, or refuse it with that problem."""
        for code, target in enumerate(self.targets):
            if code in self.refused_targets:
                continue
            result = make(target)
            if isinstance(result, Problem):
                self.refused_targets[code] = result
            else:
                self.targets[code] = result

    def rows_with(self, code: int) -> Numbers:
        """Return the indices of the rows that have a target."""
        return np.flatnonzero(self.codes == code)

    def of_rows(self, problems: Iterable[Problem]) -> list[Problem]:
        """Repeat each problem of a target for every row that has the target."""
        first = {target.where: code for code, target in enumerate(self.targets)}
        result: list[Problem] = []
        for problem in problems:
            code = first.get(problem.where) if isinstance(problem, RowProblem) else None
            if code is None:
                result.append(problem)
                continue
            for row in self.rows_with(code).tolist():
                result.append(Problem(**{**vars(problem), "where": self.rows.places[row]}))
        return result

    def row_problems(self) -> list[Problem]:
        """Return the problems of all rows: first those of reading, then those of the targets."""
        return self.problems + self.of_rows(self.refused_targets.values())
