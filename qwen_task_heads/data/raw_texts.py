"""Labelled texts as they were read: columns of texts, and every different target once.

What the values of labels mean is a matter of the whole column, and not of its rows: a file of 500,000 rows
may have four different targets. So each target stands once, with its first place, and rows carry its number.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.keys import KEYS
from qwen_task_heads.data.stores import CHUNK, Column, Numbers, Places, Texts
from qwen_task_heads.errors import Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class RawTarget:
    """What some rows say of their labels, not resolved yet.

    Args:
        value: id or name; list of these; tuple of scores; list or mapping of probabilities; by the kind.
        name: the `label_name` beside an id, "" without one.
        candidates: names that the row offers (`category`), () without.
        where: file and line of the first row that says it.
        textual: the row is one of CSV, TSV or a class file: `3` there is what `"3"` is in JSON.
        is_split: several labels came as one text, which other separators than `|` may part further.
    """

    value: Any = None
    name: str = ""
    candidates: tuple[str, ...] = ()
    where: str = ""
    textual: bool = False
    is_split: bool = False

    @property
    def file(self) -> str:
        """The file that says it."""
        return self.where.rsplit(":", 1)[0]


class RowProblem(Problem):
    """What is wrong with a target, and so with every row that has it.

    `where` is `RawTarget.where`: `RawTexts.of_rows` finds the rows by it.
    """


@dataclass(frozen=True, kw_only=True)
class RawText:
    """One row.

    Args:
        text: stripped, not empty.
        text_b: the second text of a pair, "" for single texts.
        weight: of the row, positive.
        group: key of what belongs together, "" without one.
        target: what it says of its labels, with the place of the row.
    """

    text: str
    text_b: str = ""
    weight: float = 1.0
    group: str = ""
    target: RawTarget = RawTarget()


@dataclass(kw_only=True)
class RawTexts:
    """All rows of a source, their targets not resolved yet.

    Args:
        source: what was read, as the user named it.
        targets: each different target of each file, in the order of their first rows.
        kind: problem type that the target column serves, "" where no file says.
        target: the target column of the first file.
        class_names: names that a hub's columns declare for the target, () without.
        rows_read: rows of data, good or not; `rows_read == len(self) + refused`.
        refused: rows with a problem.
        problems: of rows; one row may have several.
        file_problems: of whole files, which are never skipped.
        spoken: rows in which others than the user speak; what they say is no part of the text.
        hidden: rows whose label is -1, as benchmarks mark a test set whose labels they keep.
        unread: columns that mean nothing here, in order of appearance.
        notes: what else to know of how the files were read.
        cut_at: `max_samples`, where it left rows unread.
    """

    source: str
    targets: list[RawTarget] = field(default_factory=list)
    kind: str = ""
    target: str = ""
    class_names: tuple[str, ...] = ()
    rows_read: int = 0
    refused: int = 0
    problems: list[Problem] = field(default_factory=list)
    file_problems: list[Problem] = field(default_factory=list)
    spoken: list[str] = field(default_factory=list)
    hidden: int = 0
    unread: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cut_at: int | None = None
    refused_targets: dict[int, Problem] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.text, self.text_b = Texts(KEYS["text"]), Texts(KEYS["text_b"])
        self.group, self.weights, self.places = Texts(KEYS["group"]), Column("d", 1.0), Places()
        self.scores = Column("d", np.nan)  # of targets that are one score
        self._score_codes: list[int] = []  # of the first score, and of all others
        self._codes = array("i")  # per row, its place in `targets`
        self._code_of: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[RawText]:
        for start in range(0, len(self), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(self)))
            columns = (column.take(rows) for column in (self.text, self.text_b, self.group))
            weights = self.weights.values()[rows].tolist()
            for row, weight, text, text_b, group in zip(rows.tolist(), weights, *columns, strict=True):
                target = replace(self.targets[self.codes[row]], where=self.places[row])
                if (score := self.scores.values()[row]) == score:
                    target = replace(target, value=(float(score),))
                yield RawText(text=text, text_b=text_b, group=group, weight=weight, target=target)

    @property
    def codes(self) -> NDArray[np.int32]:
        """Per row, the place of its target in `targets`."""
        return np.frombuffer(self._codes, np.int32)

    def code_of(self, target: RawTarget) -> int:
        """Return the place of a target, which is added where it is a new one."""
        parts = (
            target.value, target.name, target.candidates, target.file, target.textual, target.is_split
        )  # fmt: skip
        key = blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        code = self._code_of.setdefault(key, len(self.targets))
        if code == len(self.targets):
            self.targets.append(target)
        return code

    def code_of_score(self, target: RawTarget) -> int:
        """Return the place of a target that is one score: the first score, or one for all others.

        Each row has its own score in `scores`; of the targets it is only asked whether they differ.
        """
        for code in self._score_codes:
            if self.targets[code].value == target.value:
                return code
        if len(self._score_codes) < 2:
            self._score_codes.append(self.code_of(target))
        return self._score_codes[-1]

    def extend(
        self,
        texts: Sequence[str],
        texts_b: Sequence[str],
        groups: Sequence[str],
        *,
        weights: Sequence[float],
        scores: Sequence[float],
        codes: Sequence[int],
        source: str,
        numbers: Sequence[int],
    ) -> None:
        """Add rows of one file; `source` and `numbers` are those of a `Batch`."""
        self.text.extend(texts)
        self.text_b.extend(texts_b)
        self.group.extend(groups)
        self.weights.extend(weights)
        self.scores.extend(scores)
        self._codes.extend(codes)
        self.places.extend(source, numbers)

    @property
    def stated(self) -> list[RawTarget]:
        """The targets that are not refused."""
        return [target for code, target in enumerate(self.targets) if code not in self.refused_targets]

    def change(self, make: Callable[[RawTarget], RawTarget | RowProblem]) -> None:
        """Put another target, or what is wrong with it, in the place of each that is not refused."""
        for code, target in enumerate(self.targets):
            if code in self.refused_targets:
                continue
            made = make(target)
            if isinstance(made, Problem):
                self.refused_targets[code] = made
            else:
                self.targets[code] = made

    def with_targets(self, targets: Sequence[RawTarget]) -> RawTexts:
        """Return the same rows with other targets, one for each."""
        other = replace(self, targets=[*targets])
        vars(other).update({name: vars(self)[name] for name in (*COLUMNS, "_codes")})
        return other

    def rows_with(self, code: int) -> Numbers:
        """Return the numbers of the rows that have a target."""
        return np.flatnonzero(self.codes == code)

    def of_rows(self, problems: Iterable[Problem]) -> list[Problem]:
        """Return problems, each of a target once for every row that has it."""
        first = {target.where: code for code, target in enumerate(self.targets)}
        result: list[Problem] = []
        for problem in problems:
            code = first.get(problem.where) if isinstance(problem, RowProblem) else None
            if code is None:
                result.append(problem)
                continue
            for row in self.rows_with(code).tolist():
                where = self.places[row]
                result.append(Problem(where, problem.problem, problem.expected, problem.fix))
        return result

    def row_problems(self) -> list[Problem]:
        """Return the problems of all rows: those found while they were read, then those of their targets."""
        return self.problems + self.of_rows(self.refused_targets.values())


COLUMNS = ("text", "text_b", "group", "weights", "scores", "places")
