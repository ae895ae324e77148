"""Targets of the training rows -> the labels of a run, and how the rows refer to them.

Design: unless a file or a model gives the labels, they are derived from the set of training rows, by the
first rule that applies. They do not depend on the order of rows, or on dev and test files.

1. The class names that the schema of a column declares.
2. `label_name` (`label_text`, `label_desc`) of codes, one name per code and one code per name, in the order
   of the codes.
3. Whole numbers, which must be 0 to K-1 or 1 to K without a gap; the name is the number.
4. Names, sorted by code point. They are refused for `ordinal`, because sorted names are not a scale.

A dev or test row with another label is refused. A row with an id is refused if train has only names. If given
names are numbers (stars `1` to `5`), a number in a row is a name if the training rows fit the names and not
the ids, and an id in the opposite case; if the rows fit both, they are refused. Rows may use aliases in place
of names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from qwen_task_heads.data.label_values import are_codes
from qwen_task_heads.data.raw_texts import RawTarget, RowProblem
from qwen_task_heads.data.schema import ANSWERS
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.labels.label_files import is_whole
from qwen_task_heads.labels.label_map import SHOWN, LabelMap

FREE_ROWS = 20  # minimum number of rows to refuse labels that are nearly as many as the rows
CORRECT_NAME = "correct one of the two, or drop the column of names"
CORRECT_LABEL = "correct it, or name a label file that has it with --labels"
GIVEN = "the given labels"  # origin of labels that no file gives, such as those of a saved model


@dataclass(frozen=True)
class Scheme:
    """The labels of a run, and how the rows refer to them.

    Args:
        problem_type: the problem type.
        labels: names in their order.
        origin: origin of the labels, for messages.
        by_name: whether whole numbers in the rows are names of labels instead of ids.
        has_ids: whether the ids of the labels are known, so that rows may use ids.
        codes: code -> id, if rows use codes with names; {} if the codes are the ids.
        questions: of records, in the order of their outputs, which are the labels; () for all others.
    """

    problem_type: str
    labels: LabelMap
    origin: str
    by_name: bool = False
    has_ids: bool = True
    codes: Mapping[int | str, int] = field(default_factory=dict)
    questions: tuple[Mapping[str, Any], ...] = ()


def derive_scheme(
    rows: Sequence[RawTarget],
    *,
    problem_type: str,
    source: str,
    count: int,
    given: LabelMap | None = None,
    given_by: str = "given labels",
    class_names: tuple[str, ...] = (),
) -> Scheme:
    """Derive the labels of a run from its training rows, or from given labels.

    Args:
        rows: each different target of the training rows.
        problem_type: one of `PROBLEM_TYPES`.
        source: name of the training set, for messages.
        count: number of training rows.
        given: labels of a file or a model, which take precedence over all others.
        given_by: origin of `given`, for messages.
        class_names: names that the schema of a hub dataset declares for the target column.

    Raises:
        TaskHeadsError: the labels cannot be derived from the rows; the error names all problems.
    """
    if problem_type == "regression":
        return _scores_scheme(rows, source=source, count=count, given=given, given_by=given_by)
    if given is not None and class_names and [*map(given.spelled.get, class_names)] != [*given.id2label]:
        own, declared = shorten(given.names), shorten(class_names)
        problem = f"found the labels {own} ({given_by}) and {declared} (the dataset)"
        fix = _fix_labels("write names in place of the ids", given_by)
        raise error_at(source, problem, "the labels of the dataset", fix, code="label-conflict")
    if given is None and class_names:
        scheme = Scheme(problem_type, LabelMap(class_names), "the class names of the dataset")
        return _checked(scheme, source)
    if given is not None:
        by_name = given.are_numbers and _numbers_are_names(rows, given, source=source)
        return _checked(Scheme(problem_type, given, given_by, by_name), source)
    soft = (raw for raw in rows if isinstance(raw.value, list) and is_soft(raw.value))
    lengths = {len(raw.value): raw.where for raw in soft}
    if lengths:
        return _checked(_soft_scheme(rows, lengths, problem_type, source), source)
    ids: dict[int, str] = {}  # label -> its first place
    names: dict[str, str] = {}
    candidates: tuple[str, ...] = ()
    for raw in rows:
        for label in labels_of(raw):
            (ids if isinstance(label, int) else names).setdefault(label, raw.where)  # type: ignore[arg-type]
        if raw.candidates != candidates:  # consecutive rows often have equal candidates, up to 100,000
            candidates = raw.candidates
            names.update({label: raw.where for label in candidates if label not in names})
    # Numbers in quotes are refused row by row, unless the other labels are codes too.
    named = set(names) if are_codes(names) else names.keys() - set(filter(is_whole, names))
    if any(raw.name and raw.name != raw.value for raw in rows):
        return _checked(_named_codes_scheme(rows, problem_type, source), source)
    if ids and named:
        problem = f"labels are numbers ({next(iter(ids.values()))}) and names ({names[min(named)]})"
        fix = "write all labels in one form, or name them in labels.yaml (--labels)"
        raise error_at(source, problem, "numbers or names", fix, code="label-conflict")
    if ids:
        labels = _from_ids(ids, source)
        numbers = Scheme(problem_type, labels, "the whole numbers in train", by_name=labels.are_numbers)
        return _checked(numbers, source)
    if named and problem_type == "ordinal":
        problem = f"the names {shorten(sorted(named)[:SHOWN])} have no order"
        expected = "whole numbers from 0, or names in the order of labels.yaml"
        fix = "name them in their order in labels.yaml (--labels)"
        raise error_at(source, problem, expected, fix, code="label-invalid")
    if not named and names:
        first_of_row = [(raw, next(chain(labels_of(raw), raw.candidates), None)) for raw in rows]
        raise TaskHeadsError([in_quotes(raw, value) for raw, value in first_of_row if value is not None])
    if not named:
        problem, fix = "no row has a label", "write the labels into the rows"
        raise error_at(source, problem, "at least two labels", fix, code="rows-too-few")
    if count >= FREE_ROWS and 2 * len(named) > count and problem_type in ANSWERS:
        problem = f"found {len(named):,} different labels in {count:,} rows, which look like texts"
        fix = "rename the column of the labels to 'label', or name them in labels.yaml (--labels)"
        raise error_at(source, problem, "labels of several rows each", fix, code="label-invalid")
    labels = LabelMap(tuple(sorted(named)))
    return _checked(Scheme(problem_type, labels, "the names in train, sorted", has_ids=False), source)


def in_quotes(raw: RawTarget, value: int | str) -> Problem:
    """Return the problem of a number in quotes among plain numbers or words."""
    problem = f"the label {shorten(value)} is a number in quotes"
    expected = "a number, or the name of a label"
    return RowProblem(raw.where, problem, expected, "write it without quotes", code="value-type")


def _fix_labels(fix: str, given_by: str) -> str:
    """Add to a fix of rows a fix of the labels, which a file or a saved model gives."""
    new_model = "train a new model: give a plain backbone as --model_name_or_path"
    of_model = given_by.startswith((GIVEN, "the model"))
    return f"{fix}, or {new_model if of_model else 'correct the label file'}"


def is_soft(value: list[object]) -> bool:
    """Return whether a list contains probabilities instead of labels."""
    return bool(value) and isinstance(value[0], float)


def labels_of(raw: RawTarget) -> Iterator[int | str]:
    """Yield every id or name of a target, without its candidates."""
    if isinstance(raw.value, list | dict):
        for label in raw.value:
            yield key_of(label) if isinstance(raw.value, dict) else label
    elif isinstance(raw.value, str):
        yield raw.value.strip()
    elif isinstance(raw.value, int):
        yield raw.value


def states_ids(rows: Sequence[RawTarget]) -> bool:
    """Return whether any row has a label id, or probabilities in the order of ids."""
    return any(isinstance(label, int | float) for raw in rows for label in labels_of(raw))


def key_of(name: str) -> int | str:
    """Convert a key of a mapping to an id or name; `"3"` is an id, because JSON keys are strings."""
    name = name.strip()
    return int(name) if is_whole(name) and len(name) < 10 else name


def _checked(scheme: Scheme, source: str) -> Scheme:
    if len(scheme.labels) < 2 and scheme.problem_type != "multi_label_classification":
        problem = f"found only one label, {shorten(scheme.labels.names[0])} ({scheme.origin})"
        derived = scheme.origin.endswith(("in train", "in train, sorted"))
        fix = "add rows of other labels" if derived else "name the other labels there"
        raise error_at(source, problem, "at least two labels", fix, code="rows-too-few")
    return scheme


def _numbers_are_names(rows: Sequence[RawTarget], given: LabelMap, *, source: str) -> bool:
    """Return whether the numbers of the training rows are names of `given` instead of ids."""
    numbers = {label for raw in rows if not raw.name for label in labels_of(raw) if isinstance(label, int)}
    as_names = all(str(number) in given.label2id for number in numbers)
    as_ids = all(number in given.id2label for number in numbers)
    if numbers and as_names and as_ids:
        problem = f"the names {shorten(given.names[:SHOWN])} are numbers, and all rows also fit their ids"
        fix = "rename them, as in '1 star'"
        raise error_at(source, problem, "names that are not numbers", fix, code="label-invalid")
    return as_names and bool(numbers)


def _named_codes_scheme(rows: Sequence[RawTarget], problem_type: str, source: str) -> Scheme:
    """Derive the labels from codes with names, one name per code and one code per name."""
    names: dict[int | str, tuple[str, str]] = {}  # code -> (name, where)
    codes: dict[str, tuple[int | str, str]] = {}
    unnamed: dict[int | str, str] = {}
    problems: list[Problem] = []
    expected = "one name per id, and one id per name"
    for raw in rows:
        if not raw.name:
            unnamed.setdefault(raw.value, raw.where)
            continue
        name, first = names.setdefault(raw.value, (raw.name, raw.where))
        if name != raw.name:
            problem = f"label {raw.value} is {shorten(raw.name)} here, and {shorten(name)} at {first}"
            problems.append(RowProblem(raw.where, problem, expected, CORRECT_NAME, code="label-conflict"))
            continue
        code, first = codes.setdefault(raw.name, (raw.value, raw.where))
        if code != raw.value:
            problem = f"{shorten(raw.name)} is label {raw.value} here, and {code} at {first}"
            problems.append(RowProblem(raw.where, problem, expected, CORRECT_NAME, code="label-conflict"))
    for code, where in unnamed.items():
        if code not in names and code not in codes:
            problem = f"label {code} has no 'label_name' in any row"
            problems.append(Problem(where, problem, expected, "add its name", code="value-missing"))
    if problems:
        raise TaskHeadsError(problems)
    ordered = sorted(names, key=lambda code: (isinstance(code, str), code))
    places = {code: place for place, code in enumerate(ordered)}
    labels = LabelMap(tuple(names[code][0] for code in ordered))
    are_ids = all(code == place for code, place in places.items())
    return Scheme(problem_type, labels, "'label_name' in train", codes={} if are_ids else places)


def _from_ids(ids: dict[int, str], source: str) -> LabelMap:
    """Return labels 0 to K-1, or 1 to K, named by their numbers."""
    largest, least = max(ids), min(ids)
    if largest + 1 - min(least, 1) != len(ids):
        missing = []
        for label in range(min(least, 1), largest):
            if label not in ids:
                missing.append(str(label))
            if len(missing) > SHOWN:
                break
        gap = ", ".join(missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        problem = f"found labels up to {largest:,} ({ids[largest]}) without {gap}"
        fix = "number them from 0, or name all of them in class.txt or labels.yaml"
        raise error_at(source, problem, "0 to K-1 without a gap", fix, code="label-invalid")
    return LabelMap(tuple(str(label) for label in range(least, largest + 1)))


def _soft_scheme(
    rows: Sequence[RawTarget], lengths: dict[int, str], problem_type: str, source: str
) -> Scheme:
    """Return the labels of lists of probabilities, named by their ids."""
    if len(lengths) > 1 or any(isinstance(raw.value, dict) for raw in rows):
        problem = f"found probabilities in several forms ({', '.join(list(lengths.values())[:2])})"
        expected = "lists of one length, or mappings"
        raise error_at(source, problem, expected, "write them in one form", code="rows-conflict")
    names = tuple(str(label) for label in range(next(iter(lengths))))
    return Scheme(problem_type, LabelMap(names), "the probabilities in train")


def _scores_scheme(
    rows: Sequence[RawTarget], *, source: str, count: int, given: LabelMap | None, given_by: str
) -> Scheme:
    lengths = {len(raw.value): raw.where for raw in rows}
    if len(lengths) > 1:
        places = ", ".join(f"{length} at {where}" for length, where in sorted(lengths.items())[:2])
        problem = f"found rows with different numbers of scores ({places})"
        expected = "the same number of scores in every row"
        raise error_at(source, problem, expected, "write as many scores in every row", code="rows-conflict")
    length = next(iter(lengths), 1)
    if given is not None and len(given) != length:
        problem = f"found {len(given):,} labels ({given_by}) and {length:,} scores in a row"
        fix = _fix_labels(f"write {len(given):,} scores in every row", given_by)
        raise error_at(source, problem, "one label per score", fix, code="dataset-mismatch")
    if count > 1 and len({raw.value for raw in rows}) == 1:
        problem = f"every row has the score {shorten(rows[0].value)}"
        expected = "at least two different scores"
        raise error_at(source, problem, expected, "add rows of other scores", code="rows-too-few")
    names = ("score",) if length == 1 else tuple(f"score_{place}" for place in range(length))
    origin = given_by if given is not None else "the numbers in train"
    return Scheme("regression", given or LabelMap(names), origin)
