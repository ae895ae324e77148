"""Targets of the training rows -> the labels of a run, and how rows state them.

Design: where no file or model gives the labels, they come from the training rows as a set, by the first rule
that applies, so that no order of rows and no dev or test file changes them:

1. the class names that the schema of a column declares;
2. `label_name` (`label_text`, `label_desc`) beside codes, one name per code and one code per name, in the
   order of the codes;
3. whole numbers, which must be 0 to K-1 or 1 to K without a gap, each named by itself;
4. names, sorted by code point; for `ordinal` refused, because sorting is no scale.

A dev or test row with another label is refused, and so is one that states an id where nothing says which
label has it: names in train and ids in test have no common meaning. Where given names are numbers (stars `1`
to `5`), a number in a row means the name if the training rows fit the names and not the ids, and the other
way round; where both fit, nothing is guessed. Rows may use aliases wherever they may use names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from qwen_task_heads.data.label_files import is_whole
from qwen_task_heads.data.label_values import are_codes
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.raw_texts import RawTarget, RowProblem
from qwen_task_heads.data.text_layout import ANSWERS
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

SHOWN = 8
FREE_ROWS = 20  # rows from which as many labels as texts are a mistake
MEND_NAMES = "correct one of the two, or drop the column of names"
GIVEN = "the given labels"  # of a map that no file states, as that of a saved model
ANOTHER = "correct it, or name a label file that has it with --labels"


@dataclass(frozen=True)
class Scheme:
    """The labels of a run, and how rows state them.

    Args:
        problem_type: what is trained.
        labels: names in their order.
        origin: where the labels come from, in plain words.
        by_name: whole numbers in the rows are names of labels, and not ids.
        has_ids: something says which id a label has, so that rows may state ids.
        codes: code -> id, where rows state codes beside names; {} where the codes are the ids.
    """

    problem_type: str
    labels: LabelMap
    origin: str
    by_name: bool = False
    has_ids: bool = True
    codes: Mapping[int | str, int] = field(default_factory=dict)


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
    """Tell the labels of a run from its training rows, or from what is given.

    Args:
        rows: each different target of the training rows.
        problem_type: one of `PROBLEM_TYPES`.
        source: name of the training set, for messages.
        count: number of training rows.
        given: labels that are stated already; they win over everything else.
        given_by: what states them, for messages.
        class_names: names that a hub declares for the target column.

    Raises:
        TaskHeadsError: the rows do not say which labels there are; all problems at once.
    """
    if problem_type == "regression":
        return _scores_scheme(rows, source=source, count=count, given=given, given_by=given_by)
    if given is not None and class_names and [*map(given.spelled.get, class_names)] != [*given.id2label]:
        found = f"{given_by} says {shorten(given.names)}, and the data set {shorten(class_names)}"
        raise error_at(
            source,
            found,
            "the labels of the data set",
            _of_labels("write names in place of the ids", given_by),
        )
    if given is None and class_names:
        return _checked(
            Scheme(problem_type, LabelMap(class_names), "the class names of the data set"), source
        )
    if given is not None:
        by_name = given.are_numbers and _numbers_are_names(rows, given, source=source)
        return _checked(Scheme(problem_type, given, given_by, by_name), source)
    soft = (raw for raw in rows if isinstance(raw.value, list) and is_soft(raw.value))
    lengths = {len(raw.value): raw.where for raw in soft}
    if lengths:
        return _checked(_soft_scheme(rows, lengths, problem_type, source), source)
    ids: dict[int, str] = {}  # label -> where it stands first
    names: dict[str, str] = {}
    offered: tuple[str, ...] = ()
    for raw in rows:
        for label in labels_of(raw):
            (ids if isinstance(label, int) else names).setdefault(label, raw.where)  # type: ignore[arg-type]
        if raw.candidates != offered:  # most rows offer the same, and may offer 100,000
            offered = raw.candidates
            names.update({label: raw.where for label in offered if label not in names})
    # Numbers in quotes are refused row by row, unless the other labels are codes too.
    stated = set(names) if are_codes(names) else names.keys() - set(filter(is_whole, names))
    if any(raw.name and raw.name != raw.value for raw in rows):
        return _checked(_bijection(rows, problem_type, source), source)
    if ids and stated:
        name = min(stated)
        found = f"labels are numbers ({next(iter(ids.values()))}) and names ({names[name]})"
        raise error_at(
            source,
            found,
            "one of the two",
            "write all labels in one form, or name them in labels.yaml (--labels)",
        )
    if ids:
        labels = _from_ids(ids, source)
        numbers = Scheme(problem_type, labels, "the whole numbers in train", by_name=labels.are_numbers)
        return _checked(numbers, source)
    if stated and problem_type == "ordinal":
        found = f"the names {shorten(sorted(stated)[:SHOWN])} without an order"
        accepted = "whole numbers from 0, or names in the order of labels.yaml"
        raise error_at(source, found, accepted, "name them in their order in labels.yaml (--labels)")
    if not stated and names:
        first_of_row = [(raw, next(chain(labels_of(raw), raw.candidates), None)) for raw in rows]
        raise TaskHeadsError([in_quotes(raw, value) for raw, value in first_of_row if value is not None])
    if not stated:
        found = "no label in any row"
        raise error_at(source, found, "at least two labels", "write the labels into the rows")
    if count >= FREE_ROWS and 2 * len(stated) > count and problem_type in ANSWERS:
        found = f"{len(stated):,} different labels in {count:,} rows, which look like texts"
        remedy = "rename the column of the labels to 'label', or name them in labels.yaml (--labels)"
        raise error_at(source, found, "labels that several rows have", remedy)
    labels = LabelMap(tuple(sorted(stated)))
    return _checked(Scheme(problem_type, labels, "the names in train, sorted", has_ids=False), source)


def error_at(where: str, found: str, accepted: str, remedy: str) -> TaskHeadsError:
    """One problem as an error."""
    return TaskHeadsError(Problem(where, found, f"{accepted}", remedy))


def in_quotes(raw: RawTarget, value: int | str) -> Problem:
    """The problem of a number in quotes among plain numbers or words."""
    found = f"the label {shorten(value)} is a number in quotes"
    accepted = "a number, or the name of a label"
    return RowProblem(raw.where, found, accepted, "write it without quotes")


def _of_labels(remedy: str, given_by: str) -> str:
    """A remedy of rows, or another one for the labels that are given by a file or by a saved model."""
    other = "train a new model: give a plain backbone as --model_name_or_path"
    of_model = given_by.startswith((GIVEN, "the model"))
    return f"{remedy}, or {other if of_model else 'correct the label file'}"


def is_soft(value: list[object]) -> bool:
    """Whether a list holds probabilities, and no labels."""
    return bool(value) and isinstance(value[0], float)


def labels_of(raw: RawTarget) -> Iterator[int | str]:
    """Every id or name that a row states, beside its candidates."""
    if isinstance(raw.value, list | dict):
        for label in raw.value:
            yield key_of(label) if isinstance(raw.value, dict) else label
    elif isinstance(raw.value, str):
        yield raw.value.strip()
    elif isinstance(raw.value, int):
        yield raw.value


def states_ids(rows: Sequence[RawTarget]) -> bool:
    """Whether any row states its label by an id, or its probabilities in the order of ids."""
    return any(isinstance(label, int | float) for raw in rows for label in labels_of(raw))


def key_of(name: str) -> int | str:
    """A key of a mapping; JSON has no numbers there, so that `"3"` is an id."""
    name = name.strip()
    return int(name) if is_whole(name) and len(name) < 10 else name


def _checked(scheme: Scheme, source: str) -> Scheme:
    if len(scheme.labels) < 2 and scheme.problem_type != "multi_label_classification":
        found = f"only one label, {shorten(scheme.labels.names[0])} ({scheme.origin})"
        derived = scheme.origin.endswith(("in train", "in train, sorted"))
        remedy = "add rows of other labels" if derived else "name the other labels there"
        raise error_at(source, found, "at least two", remedy)
    return scheme


def _numbers_are_names(rows: Sequence[RawTarget], given: LabelMap, *, source: str) -> bool:
    """Whether the numbers of the training rows are names of `given`, and not its ids."""
    numbers = {label for raw in rows if not raw.name for label in labels_of(raw) if isinstance(label, int)}
    as_names = all(str(number) in given.label2id for number in numbers)
    as_ids = all(number in given.id2label for number in numbers)
    if numbers and as_names and as_ids:
        found = f"labels called by numbers, {shorten(given.names[:SHOWN])}, and all rows also fit their ids"
        raise error_at(source, found, "names that are no numbers", "rename them, as in '1 star'")
    return as_names and bool(numbers)


def _bijection(rows: Sequence[RawTarget], problem_type: str, source: str) -> Scheme:
    names: dict[int | str, tuple[str, str]] = {}  # code -> (name, where)
    codes: dict[str, tuple[int | str, str]] = {}
    unnamed: dict[int | str, str] = {}
    problems: list[Problem] = []
    accepted = "one name per id, and one id per name"
    for raw in rows:
        if not raw.name:
            unnamed.setdefault(raw.value, raw.where)
            continue
        name, first = names.setdefault(raw.value, (raw.name, raw.where))
        if name != raw.name:
            found = f"label {raw.value} is called {shorten(raw.name)} here, and {shorten(name)} at {first}"
            problems.append(RowProblem(raw.where, found, accepted, MEND_NAMES))
            continue
        code, first = codes.setdefault(raw.name, (raw.value, raw.where))
        if code != raw.value:
            found = f"{shorten(raw.name)} is label {raw.value} here, and {code} at {first}"
            problems.append(RowProblem(raw.where, found, accepted, MEND_NAMES))
    for code, where in unnamed.items():
        if code not in names and code not in codes:
            found = f"label {code} has no 'label_name' in any row"
            problems.append(Problem(where, found, accepted, "add its name"))
    if problems:
        raise TaskHeadsError(problems)
    ordered = sorted(names, key=lambda code: (isinstance(code, str), code))
    places = {code: place for place, code in enumerate(ordered)}
    labels = LabelMap(tuple(names[code][0] for code in ordered))
    are_ids = all(code == place for code, place in places.items())
    return Scheme(problem_type, labels, "'label_name' in train", codes={} if are_ids else places)


def _from_ids(ids: dict[int, str], source: str) -> LabelMap:
    """Labels 0 to K-1, or 1 to K, each called by its number."""
    largest, least = max(ids), min(ids)
    if largest + 1 - min(least, 1) != len(ids):
        missing = []
        for label in range(min(least, 1), largest):
            if label not in ids:
                missing.append(str(label))
            if len(missing) > SHOWN:
                break
        gap = ", ".join(missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        found = f"labels up to {largest:,} ({ids[largest]}) without {gap}"
        remedy = "number them from 0, or name all of them in class.txt or labels.yaml"
        raise error_at(source, found, "0 to K-1 without a gap", remedy)
    return LabelMap(tuple(str(label) for label in range(least, largest + 1)))


def _soft_scheme(
    rows: Sequence[RawTarget], lengths: dict[int, str], problem_type: str, source: str
) -> Scheme:
    """Labels of lists of probabilities; mappings go by their names like any other."""
    if len(lengths) > 1 or any(isinstance(raw.value, dict) for raw in rows):
        found = f"probabilities in several forms ({', '.join(list(lengths.values())[:2])})"
        raise error_at(source, found, "lists of one length, or mappings", "write them in one form")
    names = tuple(str(label) for label in range(next(iter(lengths))))
    return Scheme(problem_type, LabelMap(names), "the probabilities in train")


def _scores_scheme(
    rows: Sequence[RawTarget], *, source: str, count: int, given: LabelMap | None, given_by: str
) -> Scheme:
    lengths = {len(raw.value): raw.where for raw in rows}
    if len(lengths) > 1:
        places = ", ".join(f"{length} at {where}" for length, where in sorted(lengths.items())[:2])
        found = f"rows of different numbers of scores ({places})"
        raise error_at(source, found, "one number", "write as many scores in every row")
    length = next(iter(lengths), 1)
    if given is not None and len(given) != length:
        found = f"{len(given):,} labels ({given_by}) and {length:,} scores in a row"
        remedy = _of_labels(f"write {len(given):,} scores in every row", given_by)
        raise error_at(source, found, "one label per score", remedy)
    if count > 1 and len({raw.value for raw in rows}) == 1:
        found = f"every row has the score {shorten(rows[0].value)}"
        raise error_at(source, found, "at least two different scores", "add rows of other scores")
    names = ("score",) if length == 1 else tuple(f"score_{place}" for place in range(length))
    origin = given_by if given is not None else "the numbers in train"
    return Scheme("regression", given or LabelMap(names), origin)
