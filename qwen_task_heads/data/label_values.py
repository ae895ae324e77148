"""One meaning of a label value over all files of a run.

A class is `3` in JSON, `"3"` if the column was text, and `3.0` if pandas found a missing cell. In CSV, the id
`3` and the name `3` are written the same way. All training rows together determine the meaning of a value:

1. If labels are given and all values are names or aliases of them, the values are names.
2. If all texts are whole numbers, they are numbers: `11`, `"11"` and `11.0` are equal, in numeric order.
3. Numbers with a fraction may be scores or names of classes; the problem type or a label file decides.
4. Whole numbers among codes such as `2.1`, `V15` or `01` are codes too; among words they are refused as ids.

A number in quotes or with a decimal point among plain numbers of the same file is a defect of that row. If a
label file names K labels by words and the ids in the rows are 1 to K, the ids count from 1.

The separator of several labels in a text is `|`. It is also `;` or `,` if the parts are labels of other rows,
so that a name such as `Food, drink` is not split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from qwen_task_heads.data.cells import MISSING, is_decimal, whole_number
from qwen_task_heads.data.raw_texts import RawTarget, RawTexts, RowProblem
from qwen_task_heads.errors import error_at, shorten
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.labels.label_files import is_whole
from qwen_task_heads.labels.label_map import LabelMap

SEPARATORS = {";": re.compile("[;；]"), ",": re.compile("[,，、]")}
DIGIT = re.compile(r"\d")
CLEAR = 0.8  # minimum share of parts that are labels of other rows, for a mark to be a separator
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
    """Convert the values of the target column in all splits, in place: ids to int, names to str.

    Args:
        train: the training rows, which determine the meaning of the values.
        others: dev and test of the same run.
        mixed: other training sets, whose ids may have another meaning; their texts are read the same way.
        labels: names of a label file or of a model; None without either.
        by_file: whether the labels are from a label file.
        is_class: whether the user set the problem type, so that numbers with a fraction are names of classes.

    Returns:
        A note on the ids for the origin of the labels, such as `", ids in quotes"`; "" without one.

    Raises:
        TaskHeadsError: numbers with a fraction, rows of zeros and ones, or a separator that may be part of
            the names; once per run.

    Example:
        >>> targets = [RawTarget(value="1"), RawTarget(value="0")]
        >>> raw = RawTexts(source="train.json", targets=targets, kind="single_label_classification")
        >>> resolve_labels(raw, [], LabelMap(("sport", "trade"))), [target.value for target in raw.targets]
        (', ids in quotes', [1, 0])
    """
    if train.kind in ("regression", QUESTIONS):
        return ""
    datasets = [train, *others, *mixed]
    for raw in datasets:
        _resolve_floats(raw)
    if train.target == "probabilities":
        return ""
    for raw in datasets:
        _refuse_missing(raw, labels)
    if train.kind == MULTI:
        _split_labels(datasets, labels)
        _refuse_zeros_and_ones(train)
    note = ""
    if convert := _conversion(train, labels, is_class=is_class):
        before = [row.value for row in train.stated if not row.textual]
        for raw in datasets:
            _convert(raw, convert)
        quoted = convert is _as_number and before != [row.value for row in train.stated if not row.textual]
        note = ", ids in quotes" if quoted and labels is not None else ""
    own = [train, *others]
    if by_file and labels is not None and _count_from_one(own, labels):
        note += ", ids from 1"
        converted: dict[Any, Any] = {}
        for raw in own:
            raw.change(lambda row: _mapped(row, _one_less, converted))
    return note


def are_codes(names: Iterable[str]) -> bool:
    """Return whether all names other than whole numbers contain digits, so that whole numbers are codes too.

    Example:
        >>> are_codes(["2", "2.1", "V15"]), are_codes(["2", "sport"]), are_codes(["1", "2"])
        (True, False, False)
    """
    others = [name for name in names if whole_number(name) is None]
    return bool(others) and all(DIGIT.search(name) for name in others)


def _labels(row: RawTarget) -> Sequence[int | str]:
    """Return every id or name of a row, names stripped; there may be 100,000."""
    if isinstance(row.value, list | dict):
        return [*row.value]
    return [row.value.strip()] if isinstance(row.value, str) else [row.value]


def _resolve_floats(raw: RawTexts) -> None:
    """Convert whole numbers that pandas wrote as floats; refuse them among plain whole numbers."""
    plain = _files_with_numbers(raw)

    def resolved(row: RawTarget) -> RawTarget | RowProblem:
        if not isinstance(row.value, float):
            return row
        if row.file not in plain:
            return replace(row, value=int(row.value))
        problem, expected = f"{raw.target!r} is {row.value}", "whole numbers, as in the other rows"
        return RowProblem(row.where, problem, expected, "write all labels in one form", code="value-type")

    raw.change(resolved)


def _refuse_missing(raw: RawTexts, labels: LabelMap | None) -> None:
    """Refuse rows whose label is a word for a missing value, unless it is the name of a label."""
    words = MISSING if labels is None else MISSING - labels.spelled.keys()

    def checked(row: RawTarget) -> RawTarget | RowProblem:
        if row.candidates or words.isdisjoint(_labels(row)):
            return row
        word = next(label for label in _labels(row) if label in words)
        text = word if str(word).lower() == "nan" else repr(word)
        problem = f"{raw.target!r} is {text}, a word for a missing value"
        expected = "the id of a label, or its name"
        fix = "fill it in or remove the row; or name the label in labels.yaml (--labels)"
        return RowProblem(row.where, problem, expected, fix, code="value-missing")

    raw.change(checked)


# Numbers and names


def _conversion(train: RawTexts, labels: LabelMap | None, *, is_class: bool) -> Callable[[Any], Any] | None:
    """Return the conversion of the texts of the target column, or None to keep them."""
    texts: dict[str, str] = {}  # spelling -> its first place
    plain, textual = _files_with_numbers(train), any(row.textual for row in train.stated)
    for row in train.stated:
        if row.textual or row.file not in plain:
            texts.update({str(label): row.where for label in {*_labels(row)} if str(label) not in texts})
    if not texts:
        return _as_number
    if labels is not None and texts.keys() <= labels.spelled.keys():
        # In a table, the name 1 and the id 1 are written the same way; in JSON, names have quotes.
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
        problem = f"found numbers with a fraction in {train.target!r}, such as {text}"
        expected = "ids or names of labels, or scores"
        fix = (
            "pass --problem_type regression for scores; for classes, pass --problem_type "
            "single_label_classification, or name them in labels.yaml (--labels)"
        )
        raise error_at(texts[text], problem, expected, fix, code="value-type")
    return _as_name if are_codes(texts) else None


def _as_number(label: Any) -> Any:
    number = whole_number(label.strip()) if isinstance(label, str) else None
    return label if number is None else number


def _as_spelled(known: Collection[str], label: Any) -> Any:
    """Keep a name or alias of the given labels; convert any other whole number to an id."""
    return str(label) if str(label).strip() in known else _as_number(label)


def _one_less(label: Any) -> Any:
    return label - 1 if isinstance(label, int) else label


def _as_name(label: Any) -> Any:
    return str(label) if isinstance(label, int) else label


def _files_with_numbers(raw: RawTexts) -> set[str]:
    """Return the files that have plain numbers, in which a number in quotes is a defect of its row."""
    return {
        row.file for row in raw.stated if not row.textual and isinstance(next(iter(_labels(row)), ""), int)
    }


def _convert(raw: RawTexts, convert: Callable[[Any], Any]) -> None:
    plain = _files_with_numbers(raw)
    known: dict[Any, Any] = {}

    def converted(row: RawTarget) -> RawTarget:
        # Plain numbers are ids; a number in quotes in the same file is a defect and is refused later.
        is_text = row.textual or (row.file not in plain and not row.candidates)
        return _mapped(row, convert, known) if is_text else row

    raw.change(converted)


def _mapped(row: RawTarget, change: Callable[[Any], Any], known: dict[Any, Any]) -> RawTarget:
    """Apply `change` to the labels of a row; `known` caches its results."""
    if isinstance(row.value, dict):  # probabilities by name; `key_of` reads the keys
        return row
    labels = row.value if isinstance(row.value, list) else [row.value]
    known.update({label: change(label) for label in {*labels} - known.keys()})
    changed = [known[label] for label in labels]
    if changed == labels:
        return row
    return replace(row, value=changed if isinstance(row.value, list) else changed[0])


def _count_from_one(datasets: Sequence[RawTexts], labels: LabelMap) -> bool:
    """Return whether the ids are 1 to K, for a label file of K words."""
    if any(map(is_whole, labels.names)):
        return False
    wanted = set(range(1, len(labels) + 1))
    ids = [
        {label for row in raw.stated if not row.name for label in _labels(row) if isinstance(label, int)}
        for raw in datasets
    ]
    return ids[0] == wanted and all(own <= wanted for own in ids)


# Several labels in a text


def _split_labels(datasets: Sequence[RawTexts], labels: LabelMap | None) -> None:
    """Split names at `;` or `,` in all splits if these marks separate labels."""
    known = set() if labels is None else labels.spelled.keys()
    for mark, pattern in SEPARATORS.items():
        marked = {  # name with the mark that is not a spelling of a label -> place
            name: row.where
            for raw in datasets
            for row in reversed(raw.stated)
            if row.is_split
            for name in _labels(row)
            if isinstance(name, str) and name not in known and pattern.search(name)
        }
        if not marked:
            continue
        rows = [row for raw in datasets for row in raw.stated]
        uses_bar = any(row.is_split and len(_labels(row)) > 1 for row in rows)
        cells: dict[str, set[str]] = {}  # part -> the texts that contain it
        for name in {name for row in rows for name in _labels(row) if isinstance(name, str)}:
            for part in map(str.strip, pattern.split(name)):
                cells.setdefault(part, set()).add(name)
        parts = {part.strip() for name in marked for part in pattern.split(name)}
        repeated = {part for part in parts if part in known or len(cells[part]) > 1}
        if known and not parts <= known:
            repeated = set()
        each = all(repeated & {*map(str.strip, pattern.split(name))} for name in marked)
        clear = each and len(repeated) >= CLEAR * len(parts) and not uses_bar
        if clear or all(whole_number(part) is not None for part in parts):
            for raw in datasets:
                raw.change(partial(_split_row, pattern=pattern, known=known))
        elif repeated or not uses_bar:
            name, where = min(marked.items(), key=lambda item: item[1])
            problem = f"found {shorten(name)}, in which {mark!r} may separate labels or be part of a name"
            expected = "labels separated by '|', or a list"
            fix = "write a|b or a list for several labels; or name all labels in labels.yaml (--labels)"
            raise error_at(where, problem, expected, fix, code="label-invalid")


def _split_row(row: RawTarget, *, pattern: re.Pattern[str], known: Iterable[str]) -> RawTarget:
    if not row.is_split or not isinstance(row.value, list):
        return row
    parts: dict[Any, None] = {}
    for name in row.value:
        is_label = not isinstance(name, str) or name.strip() in known
        pieces = [name] if is_label else [part.strip() for part in pattern.split(name)]
        parts.update(dict.fromkeys(piece for piece in pieces if piece != ""))
    return replace(row, value=list(parts))


def _refuse_zeros_and_ones(train: RawTexts) -> None:
    """Refuse `[0, 1]` and `[1, 0]` in all rows, which as ids would be other labels.

    Longer rows of zeros and ones repeat an id, which the reader refuses.
    """
    lists = [row.value for row in train.stated]
    if lists and all(len(value) == 2 and set(value) == {0, 1} for value in lists):
        problem = f"found rows of zeros and ones in {train.target!r}"
        expected = "the ids or names of the labels of each row"
        fix = "write the ids of the labels, such as [1] for [0, 1]"
        raise error_at(train.stated[0].where, problem, expected, fix, code="label-invalid")
