"""One meaning of a label value over all files of a run.

A class is `3` in JSON, `"3"` where the column went through text, `3.0` where pandas saw a gap, and `3` in
CSV, where a name is written in the same way. What such a value means is told from all training rows together:

1. Values of given labels that are all spelled by these labels are names.
2. Texts that are all whole numbers are numbers: `11`, `"11"` and `11.0` are one, in the order of numbers.
3. Numbers with a fraction are a question: scores, or names of classes?
4. Whole numbers among codes such as `2.1`, `V15` or `01` are codes too; beside words they are ids among
   names, and refused.

A number in quotes or with a point among plain numbers of the same file is a defect of that row. Where a label
file names K labels by words and the ids in the rows are 1 to K, these count from 1.

Several labels in a text are separated by `|`; by `;` or `,` where the parts are labels of other rows too, so
that `Food, drink` is not torn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from qwen_task_heads.data.cells import MISSING, is_decimal, whole_number
from qwen_task_heads.data.label_files import is_whole
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.raw_texts import RawTarget, RawTexts, RowProblem
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

SEPARATORS = {";": re.compile("[;；]"), ",": re.compile("[,，、]")}
DIGIT = re.compile(r"\d")
CLEAR = 0.8  # share of parts that are labels of other rows, from which a mark is a separator
MULTI = "multi_label_classification"


def resolve_labels(
    train: RawTexts,
    others: Sequence[RawTexts],
    labels: LabelMap | None,
    *,
    mixed: Sequence[RawTexts] = (),
    by_file: bool = False,
    is_class: bool = False,
) -> str:
    """Give the values of the target column one form in all sets, in place: ids as int, names as str.

    Args:
        train: the training rows, which decide.
        others: dev and test of the same run.
        mixed: other training sets, whose ids may have another meaning; their texts are read the same way.
        labels: names of a label file or of a model; None if nothing gives them.
        by_file: whether a label file gives them.
        is_class: whether the problem type was asked for, so that numbers with a fraction are no question.

    Returns:
        What is to be said of the ids, such as `", ids in quotes"`; "" for nothing.

    Raises:
        TaskHeadsError: numbers with a fraction, rows of zeros and ones, or a separator that may be part of
            the names; once per run.

    Example:
        >>> targets = [RawTarget(value="1"), RawTarget(value="0")]
        >>> raw = RawTexts(source="train.json", targets=targets, kind="single_label_classification")
        >>> resolve_labels(raw, [], LabelMap(("sport", "trade"))), [target.value for target in raw.targets]
        (', ids in quotes', [1, 0])
    """
    if train.kind == "regression" or train.target == "probabilities":
        return ""
    sets = [train, *others, *mixed]
    for raw in sets:
        _resolve_floats(raw)
        _refuse_missing(raw, labels)
    if train.kind == MULTI:
        _split_labels(sets, labels)
        _refuse_zeros_and_ones(train)
    said = ""
    if convert := _conversion(train, labels, is_class=is_class):
        before = [row.value for row in train.stated if not row.textual]
        for raw in sets:
            _convert(raw, convert)
        quoted = convert is _as_number and before != [row.value for row in train.stated if not row.textual]
        said = ", ids in quotes" if quoted and labels is not None else ""
    own = [train, *others]
    if by_file and labels is not None and _count_from_one(own, labels):
        said += ", ids from 1"
        made: dict[Any, Any] = {}
        for raw in own:
            raw.change(lambda row: _mapped(row, _one_less, made))
    return said


def are_codes(names: Iterable[str]) -> bool:
    """Return whether whole numbers among these names are codes as the others are, and no ids among words.

    Example:
        >>> are_codes(["2", "2.1", "V15"]), are_codes(["2", "sport"]), are_codes(["1", "2"])
        (True, False, False)
    """
    others = [name for name in names if whole_number(name) is None]
    return bool(others) and all(DIGIT.search(name) for name in others)


def _labels(row: RawTarget) -> Sequence[int | str]:
    """Every id or name of a row, names stripped; a list holds ids or names, and may hold 100,000."""
    if isinstance(row.value, list | dict):
        return [*row.value]
    return [row.value.strip()] if isinstance(row.value, str) else [row.value]


def _resolve_floats(raw: RawTexts) -> None:
    """Whole numbers that pandas wrote as floats become numbers; among plain numbers they are refused."""
    plain = _files_with_numbers(raw)

    def settled(row: RawTarget) -> RawTarget | RowProblem:
        if not isinstance(row.value, float):
            return row
        if row.file not in plain:
            return replace(row, value=int(row.value))
        found, accepted = f"{raw.target!r} is {row.value}", "whole numbers, as in the other rows"
        return RowProblem(row.where, found, accepted, "write all labels in one form")

    raw.change(settled)


def _refuse_missing(raw: RawTexts, labels: LabelMap | None) -> None:
    """Refuse rows whose label is a word for a value that is not there, unless it is the name of a label."""
    words = MISSING if labels is None else MISSING - labels.spelled.keys()

    def checked(row: RawTarget) -> RawTarget | RowProblem:
        if row.candidates or words.isdisjoint(_labels(row)):
            return row
        word = next(label for label in _labels(row) if label in words)
        shown = word if str(word).lower() == "nan" else repr(word)
        remedy = "fill it in or remove the row; a label of this name must be in labels.yaml (--labels)"
        found = f"{raw.target!r} is {shown}, which says that the value is missing"
        return RowProblem(row.where, found, "the id of a label, or its name", remedy)

    raw.change(checked)


# Numbers and names


def _conversion(train: RawTexts, labels: LabelMap | None, *, is_class: bool) -> Callable[[Any], Any] | None:
    """How the texts of the target column are to be read, or None to leave them as they are."""
    texts: dict[str, str] = {}  # spelling -> where it is first
    plain, textual = _files_with_numbers(train), any(row.textual for row in train.stated)
    for row in train.stated:
        if row.textual or row.file not in plain:
            texts.update({str(label): row.where for label in {*_labels(row)} if str(label) not in texts})
    if not texts:
        return _as_number
    if labels is not None and texts.keys() <= labels.spelled.keys():
        # In a table nothing tells the name 1 from the id 1; in JSON the quotes do.
        numbered = all(whole_number(name) is not None for name in labels.names)
        return None if textual and numbered else partial(_as_spelled, labels.spelled.keys())
    if all(whole_number(text) is not None for text in texts):
        return _as_number
    if labels is not None:
        return None
    if all(map(is_decimal, texts)):
        if is_class:
            return _as_name
        text = next(text for text in texts if whole_number(text) is None)
        found = f"numbers that are no whole numbers in {train.target!r}, such as {text}"
        remedy = (
            "--problem_type regression for scores; for classes --problem_type single_label_classification, "
            "or name them in labels.yaml (--labels)"
        )
        raise TaskHeadsError(
            Problem(texts[text], f"found {found}", "ids or names of labels, or scores", remedy)
        )
    return _as_name if are_codes(texts) else None


def _as_number(label: Any) -> Any:
    number = whole_number(label.strip()) if isinstance(label, str) else None
    return label if number is None else number


def _as_spelled(known: Collection[str], label: Any) -> Any:
    """A name of the given labels; what is none of them may be an id."""
    return str(label) if str(label).strip() in known else _as_number(label)


def _one_less(label: Any) -> Any:
    return label - 1 if isinstance(label, int) else label


def _as_name(label: Any) -> Any:
    return str(label) if isinstance(label, int) else label


def _files_with_numbers(raw: RawTexts) -> set[str]:
    """Files that state plain numbers: a number in quotes there is a defect of its row."""
    return {
        row.file for row in raw.stated if not row.textual and isinstance(next(iter(_labels(row)), ""), int)
    }


def _convert(raw: RawTexts, convert: Callable[[Any], Any]) -> None:
    plain = _files_with_numbers(raw)
    made: dict[Any, Any] = {}

    def converted(row: RawTarget) -> RawTarget:
        # Plain numbers are no text, and so never names; in quotes beside them, a defect.
        is_text = row.textual or (row.file not in plain and not row.candidates)
        return _mapped(row, convert, made) if is_text else row

    raw.change(converted)


def _mapped(row: RawTarget, change: Callable[[Any], Any], made: dict[Any, Any]) -> RawTarget:
    """A row with its labels changed; `made` holds what was changed before."""
    if isinstance(row.value, dict):  # probabilities by name, whose keys are read as JSON writes them
        return row
    labels = row.value if isinstance(row.value, list) else [row.value]
    made.update({label: change(label) for label in {*labels} - made.keys()})
    changed = [made[label] for label in labels]
    if changed == labels:
        return row
    return replace(row, value=changed if isinstance(row.value, list) else changed[0])


def _count_from_one(sets: Sequence[RawTexts], labels: LabelMap) -> bool:
    """Whether ids are 1 to K of a file with K names that are words."""
    if any(map(is_whole, labels.names)):
        return False
    wanted = set(range(1, len(labels) + 1))
    ids = [
        {label for row in raw.stated if not row.name for label in _labels(row) if isinstance(label, int)}
        for raw in sets
    ]
    return ids[0] == wanted and all(found <= wanted for found in ids)


# Several labels in a text


def _split_labels(sets: Sequence[RawTexts], labels: LabelMap | None) -> None:
    """Split names at `;` or `,` if these separate labels, in all sets alike."""
    known = set() if labels is None else labels.spelled.keys()
    for mark, pattern in SEPARATORS.items():
        held = {  # names with the mark that no label is spelled by -> where
            name: row.where
            for raw in sets
            for row in reversed(raw.stated)
            if row.is_split
            for name in _labels(row)
            if isinstance(name, str) and name not in known and pattern.search(name)
        }
        if not held:
            continue
        rows = [row for raw in sets for row in raw.stated]
        uses_bar = any(row.is_split and len(_labels(row)) > 1 for row in rows)
        cells: dict[str, set[str]] = {}  # part -> the texts that it is in
        for name in {name for row in rows for name in _labels(row) if isinstance(name, str)}:
            for part in map(str.strip, pattern.split(name)):
                cells.setdefault(part, set()).add(name)
        parts = {part.strip() for name in held for part in pattern.split(name)}
        stated = {part for part in parts if part in known or len(cells[part]) > 1}
        if known and not parts <= known:
            stated = set()
        each = all(stated & {*map(str.strip, pattern.split(name))} for name in held)
        clear = each and len(stated) >= CLEAR * len(parts) and not uses_bar
        if clear or all(whole_number(part) is not None for part in parts):
            for raw in sets:
                raw.change(partial(_split_row, pattern=pattern, known=known))
        elif stated or not uses_bar:
            name, where = min(held.items(), key=lambda item: item[1])
            found = f"{shorten(name)}, in which {mark!r} may separate labels or be part of a name"
            remedy = "write a|b or a list for several labels; or name all labels in labels.yaml (--labels)"
            raise TaskHeadsError(
                Problem(where, f"found {found}", "labels separated by '|', or a list", remedy)
            )


def _split_row(row: RawTarget, *, pattern: re.Pattern[str], known: Iterable[str]) -> RawTarget:
    if not row.is_split or not isinstance(row.value, list):
        return row
    parts: dict[Any, None] = {}
    for name in row.value:
        whole = not isinstance(name, str) or name.strip() in known
        pieces = [name] if whole else [part.strip() for part in pattern.split(name)]
        parts.update(dict.fromkeys(piece for piece in pieces if piece != ""))
    return replace(row, value=list(parts))


def _refuse_zeros_and_ones(train: RawTexts) -> None:
    """Refuse lists of two zeros and ones: read as ids they would be other labels. Longer ones are no ids."""
    lists = [row.value for row in train.stated]
    if lists and all(len(value) == 2 and set(value) == {0, 1} for value in lists):
        found = f"a 0 and a 1 in {train.target!r} of every row, as of a row of zeros and ones"
        remedy = "write the ids that hold, such as [1] for [0, 1]"
        accepted = "the ids or names of the labels that hold"
        raise TaskHeadsError(Problem(train.stated[0].where, f"found {found}", accepted, remedy))
