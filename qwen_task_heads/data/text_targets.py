"""Targets of all rows -> the labels of a run; then each target -> ids, scores or probabilities.

Design: where no file or model gives the labels, they come from the training rows as a set, by the first rule
that applies, so that no order of rows and no dev or test file changes them:

1. the class names that a hub's column declares;
2. `label_name` beside ids, which must be one name per id and one id per name;
3. whole numbers, which must be 0 to K-1 without a gap, each named by itself;
4. names, sorted by code point; for `ordinal` refused, because sorting is no scale.

A dev or test row with another label is refused. Where given names are numbers (stars `1` to `5`), a number
in a row means the name if the training rows fit the names and not the ids, and the other way round; where
both fit, nothing is guessed. Rows may use the aliases of given labels wherever they may use names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from qwen_task_heads.data.doctor import Finding, ReadReport, examine_texts
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.label_files import is_whole
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.text_columns import RawText
from qwen_task_heads.data.text_readers import RawTexts
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

SHOWN = 8
ANOTHER = "correct it, or name a label file that has it with --labels"


@dataclass(frozen=True)
class Scheme:
    """The labels of a run, and how rows state them.

    Args:
        problem_type: what is trained.
        labels: names in their order.
        origin: where the labels come from, in plain words.
        by_name: whole numbers in the rows are names of labels, and not ids.
    """

    problem_type: str
    labels: LabelMap
    origin: str
    by_name: bool = False


def derive_scheme(
    rows: Sequence[RawText],
    *,
    problem_type: str,
    source: str,
    given: LabelMap | None = None,
    given_by: str = "given labels",
    class_names: tuple[str, ...] = (),
) -> Scheme:
    """Tell the labels of a run from its training rows, or from what is given.

    Args:
        rows: all training rows.
        problem_type: one of `PROBLEM_TYPES`.
        source: name of the training set, for messages.
        given: labels that are stated already; they win over everything else.
        given_by: what states them, for messages.
        class_names: names that a hub declares for the target column.

    Raises:
        TaskHeadsError: the rows do not say which labels there are; all problems at once.
    """
    if problem_type == "regression":
        return _scores_scheme(rows, source=source, given=given, given_by=given_by)
    if given is not None and class_names and [*map(given.spelled.get, class_names)] != [*given.id2label]:
        found = f"{given_by} says {shorten(given.names)}, and the data set {shorten(class_names)}"
        raise _error(source, found, "the labels of the data set", "remove the label file, or correct it")
    if given is None and class_names:
        return _checked(Scheme(problem_type, LabelMap(class_names), "declared by the data set"), source)
    if given is not None:
        by_name = given.are_numbers and _numbers_are_names(rows, given, source=source)
        return _checked(Scheme(problem_type, given, given_by, by_name), source)
    lengths = {len(raw.value): raw.where for raw in rows if isinstance(raw.value, list) and _soft(raw.value)}
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
    stated = names.keys() - set(filter(is_whole, names))  # numbers in quotes are refused row by row
    if any(raw.name and isinstance(raw.value, int) for raw in rows):
        return _checked(_bijection(rows, problem_type, source), source)
    if ids and stated:
        name = min(stated)
        found = f"labels are numbers ({next(iter(ids.values()))}) and names ({names[name]})"
        raise _error(source, found, "one of the two", "write all labels in one form, or give labels.yaml")
    if ids:
        labels = _from_ids(ids, source)
        return _checked(Scheme(problem_type, labels, "the whole numbers in train"), source)
    if stated and problem_type == "ordinal":
        found = f"the names {shorten(sorted(stated)[:SHOWN])} without an order"
        raise _error(source, found, "whole numbers from 0, or names in the order of labels.yaml", "state it")
    if not stated and names:
        first_of_row = [(raw, next(chain(labels_of(raw), raw.candidates), None)) for raw in rows]
        raise TaskHeadsError([_quoted(raw, value) for raw, value in first_of_row if value is not None])
    if not stated:
        found = "no label in any row"
        raise _error(source, found, "at least two labels", "check the label column")
    return _checked(
        Scheme(problem_type, LabelMap(tuple(sorted(stated))), "the names in train, sorted"), source
    )


def _error(where: str, found: str, accepted: str, remedy: str) -> TaskHeadsError:
    return TaskHeadsError(Problem(where, found, f"accepted: {accepted}", remedy))


def _quoted(raw: RawText, value: int | str) -> Problem:
    found = f"the label {shorten(value)} is a number in quotes"
    accepted = "accepted: a number, or the name of a label"
    return Problem(raw.where, found, accepted, "write it without quotes")


def _soft(value: list[object]) -> bool:
    return bool(value) and isinstance(value[0], float)


def labels_of(raw: RawText) -> Iterator[int | str]:
    """Every id or name that a row states, beside its candidates."""
    if isinstance(raw.value, list | dict):
        for label in raw.value:
            yield _key(label) if isinstance(raw.value, dict) else label
    elif isinstance(raw.value, str):
        yield raw.value.strip()
    elif isinstance(raw.value, int):
        yield raw.value


def states_ids(rows: Sequence[RawText]) -> bool:
    """Whether any row states its label by an id, or its probabilities in the order of ids."""
    return any(isinstance(label, int | float) for raw in rows for label in labels_of(raw))


def _key(name: str) -> int | str:
    """A key of a mapping; JSON has no numbers there, so that `"3"` is an id."""
    name = name.strip()
    return int(name) if is_whole(name) and len(name) < 10 else name


def _checked(scheme: Scheme, source: str) -> Scheme:
    if len(scheme.labels) < 2 and scheme.problem_type != "multi_label_classification":
        found = f"only one label, {shorten(scheme.labels.names[0])} ({scheme.origin})"
        raise _error(source, found, "at least two", "check the label column, or add the other rows")
    return scheme


def _numbers_are_names(rows: Sequence[RawText], given: LabelMap, *, source: str) -> bool:
    """Whether the numbers of the training rows are names of `given`, and not its ids."""
    numbers = {label for raw in rows if not raw.name for label in labels_of(raw) if isinstance(label, int)}
    as_names = all(str(number) in given.label2id for number in numbers)
    as_ids = all(number in given.id2label for number in numbers)
    if numbers and as_names and as_ids:
        found = f"labels called by numbers, {shorten(given.names[:SHOWN])}, and all rows also fit their ids"
        raise _error(source, found, "names that are no numbers", "rename them, as in '1 star'")
    return as_names and bool(numbers)


def _bijection(rows: Sequence[RawText], problem_type: str, source: str) -> Scheme:
    names: dict[int, tuple[str, str]] = {}  # id -> (name, where)
    ids: dict[str, tuple[int, str]] = {}
    unnamed: dict[int, str] = {}
    problems = []
    accepted = "accepted: one name per id, and one id per name"
    for raw in rows:
        if not isinstance(raw.value, int):
            continue
        if not raw.name:
            unnamed.setdefault(raw.value, raw.where)
            continue
        name, first = names.setdefault(raw.value, (raw.name, raw.where))
        if name != raw.name:
            found = f"label {raw.value} is called {shorten(raw.name)} here, and {shorten(name)} at {first}"
            problems.append(Problem(raw.where, found, accepted, "correct one of the two"))
            continue
        label, first = ids.setdefault(raw.name, (raw.value, raw.where))
        if label != raw.value:
            found = f"{shorten(raw.name)} is label {raw.value} here, and {label} at {first}"
            problems.append(Problem(raw.where, found, accepted, "correct one of the two"))
    for label, where in unnamed.items():
        if label not in names:
            problems.append(
                Problem(where, f"label {label} has no 'label_name' in any row", accepted, "add its name")
            )
    if problems:
        raise TaskHeadsError(problems)
    _from_ids({label: where for label, (_, where) in names.items()}, source)
    ordered = tuple(names[label][0] for label in range(len(names)))
    return Scheme(problem_type, LabelMap(ordered), "'label_name' in train")


def _from_ids(ids: dict[int, str], source: str) -> LabelMap:
    """Labels 0 to K-1, each called by its number."""
    largest = max(ids)
    if largest + 1 != len(ids):
        missing = []
        for label in range(largest):
            if label not in ids:
                missing.append(str(label))
            if len(missing) > SHOWN:
                break
        gap = ", ".join(missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        found = f"labels up to {largest:,} ({ids[largest]}) without {gap}"
        remedy = "number them from 0, or name all of them in class.txt or labels.yaml"
        raise _error(source, found, "0 to K-1 without a gap", remedy)
    return LabelMap(tuple(str(label) for label in range(len(ids))))


def _soft_scheme(rows: Sequence[RawText], lengths: dict[int, str], problem_type: str, source: str) -> Scheme:
    """Labels of lists of probabilities; mappings go by their names like any other."""
    if len(lengths) > 1 or any(isinstance(raw.value, dict) for raw in rows):
        found = f"probabilities in several forms ({', '.join(list(lengths.values())[:2])})"
        raise _error(source, found, "lists of one length, or mappings", "write them in one form")
    names = tuple(str(label) for label in range(next(iter(lengths))))
    return Scheme(problem_type, LabelMap(names), "the probabilities in train")


def _scores_scheme(rows: Sequence[RawText], *, source: str, given: LabelMap | None, given_by: str) -> Scheme:
    lengths = {len(raw.value): raw.where for raw in rows}
    if len(lengths) > 1:
        places = ", ".join(f"{length} at {where}" for length, where in sorted(lengths.items())[:2])
        raise _error(source, f"rows of different numbers of scores ({places})", "one number", "correct them")
    length = next(iter(lengths), 1)
    if given is not None and len(given) != length:
        found = f"{len(given):,} labels ({given_by}) and {length:,} scores in a row"
        raise _error(source, found, "one label per score", "remove the label file, or correct it")
    if len(rows) > 1 and len({raw.value for raw in rows}) == 1:
        found = f"every row has the score {shorten(rows[0].value)}"
        raise _error(source, found, "at least two different scores", "check the column")
    names = ("score",) if length == 1 else tuple(f"score_{place}" for place in range(length))
    origin = given_by if given is not None else "the numbers in train"
    return Scheme("regression", given or LabelMap(names), origin)


Offers = dict[tuple[str, ...], tuple[tuple[str, ...], bool]]  # rows offer the same, maybe 100,000


def resolve(raw: RawText, scheme: Scheme, *, offers: Offers | None = None) -> TextExample | Problem:
    """A row with its target as ids, scores or probabilities, or what is wrong with it.

    Args:
        raw: the row.
        scheme: labels of the run.
        offers: what is known of candidates; filled.
    """
    try:
        target, soft = _resolve_target(raw, scheme)
        _check_offered(raw, scheme.labels)
    except TaskHeadsError as error:
        return error.problems[0]
    return TextExample(
        text=raw.text,
        text_b=raw.text_b,
        target=target,
        soft=soft,
        candidates=_offered(raw.candidates, scheme.labels, {} if offers is None else offers)[0],
        weight=raw.weight,
        group=raw.group,
        source=raw.where,
    )


def _check_offered(raw: RawText, labels: LabelMap) -> None:
    """Refuse candidates of which two spell one label; that none stands twice the reader has seen."""
    if not labels.aliases or not raw.candidates:
        return
    first: dict[int, str] = {}
    for name in raw.candidates:
        place = labels.spelled.get(name)
        if place is not None and first.setdefault(place, name) != name:
            found = f"{shorten(first[place])} and {shorten(name)} in 'category', both {labels.names[place]!r}"
            raise _error(raw.where, found, "each candidate once", "remove one of the two")


def _offered(candidates: tuple[str, ...], labels: LabelMap, offers: Offers) -> tuple[tuple[str, ...], bool]:
    """The labels among candidates, in the order of the map, and whether there are others among them.

    The first are () where they are all the labels, or a row has none.
    """
    if candidates and candidates not in offers:
        offers[candidates] = _ordered(candidates, labels)
    return offers.get(candidates, ((), False))


def _ordered(candidates: tuple[str, ...], labels: LabelMap) -> tuple[tuple[str, ...], bool]:
    places = {labels.spelled[name] for name in candidates if name in labels.spelled}
    strange = len(places) < len(candidates) and not labels.spelled.keys() >= set(candidates)
    if len(places) == len(labels):
        return (), strange
    return tuple(labels.names[place] for place in sorted(places)), strange


def resolve_all(raw: RawTexts, scheme: Scheme, *, place: str) -> tuple[list[TextExample], ReadReport]:
    """The examples of a set, and the account of its rows.

    Args:
        raw: all rows of a source.
        scheme: labels of the run.
        place: what was read, as the user named it.
    """
    examples: list[TextExample] = []
    refusals, offers = list(raw.problems), Offers()
    for row in raw.rows:
        example = resolve(row, scheme, offers=offers)
        if isinstance(example, Problem):
            refusals.append(example)
        else:
            examples.append(example)
    strange = _strangers(raw.rows, scheme.labels, offers)
    report = ReadReport(
        # The card shows this: a file's name, not the folders of somebody's machine.
        source=Path(place).name if Path(place).exists() else place,
        rows_read=raw.rows_read,
        used=len(examples),
        refused=raw.rows_read - len(examples),
        texts=len(examples),
        refusals=tuple(refusals),
        findings=(*examine_texts(examples, spoken=raw.spoken), *([strange] if strange.count else [])),
    )
    return examples, report


def _strangers(rows: Iterable[RawText], labels: LabelMap, offers: Offers) -> Finding:
    """The rows whose candidates are not all labels, where labels are given: a finding for the account."""
    sources = (row.where for row in rows if _offered(row.candidates, labels, offers)[1])
    return Finding("strange", tuple(sources))


def _resolve_target(
    raw: RawText, scheme: Scheme
) -> tuple[int | tuple[int, ...] | tuple[float, ...], tuple[float, ...] | None]:
    if scheme.problem_type == "regression":
        if len(raw.value) != len(scheme.labels):
            found = f"{len(raw.value):,} scores"
            raise _error(raw.where, found, f"{len(scheme.labels):,}, as in train", "correct the row")
        return raw.value, None
    if isinstance(raw.value, dict) or (isinstance(raw.value, list) and _soft(raw.value)):
        soft = _resolve_soft(raw, scheme)
        return max(range(len(soft)), key=soft.__getitem__), soft
    if isinstance(raw.value, list):
        ids = sorted(_resolve_label(raw, label, scheme) for label in raw.value)
        if len(set(ids)) < len(ids):  # an id and its name
            raise _error(raw.where, f"a label twice: {shorten(raw.value)}", "each label once", "remove one")
        return tuple(ids), None
    return _resolve_label(raw, raw.value, scheme), None


def _resolve_soft(raw: RawText, scheme: Scheme) -> tuple[float, ...]:
    if isinstance(raw.value, list):
        if len(raw.value) != len(scheme.labels):
            found = f"{len(raw.value):,} probabilities"
            raise _error(raw.where, found, f"{len(scheme.labels):,}, one per label", "correct the row")
        return tuple(raw.value)
    soft = [0.0] * len(scheme.labels)
    for name, share in raw.value.items():
        soft[_resolve_label(raw, _key(name), scheme)] += share
    return tuple(soft)


def _resolve_label(raw: RawText, value: int | str, scheme: Scheme) -> int:
    """The id of one label of a row."""
    labels = scheme.labels
    if isinstance(value, int):
        place = labels.label2id.get(str(value)) if scheme.by_name and not raw.name else value
        if place is None or not 0 <= place < len(labels):
            accepted = shorten(labels.names[:SHOWN]) if scheme.by_name else f"0 to {len(labels) - 1:,}"
            found = f"label {value} is none of the {len(labels):,} labels ({scheme.origin})"
            raise _error(raw.where, found, accepted, ANOTHER)
    else:
        name = value.strip()
        place = labels.spelled.get(name)
        if is_whole(name) and not labels.are_numbers:
            raise TaskHeadsError(_quoted(raw, value))
        if place is None:
            near = labels.near(name)
            remedy = ANOTHER if near is None else f"did you mean {shorten(near)}?"
            found = f"{shorten(value)} is none of the {len(labels):,} labels ({scheme.origin})"
            raise _error(raw.where, found, shorten(labels.names[:SHOWN], 120), remedy)
    if raw.name and labels.spelled.get(raw.name) != place:
        found = (
            f"label {shorten(value)} is {shorten(labels.names[place])}, and 'label_name' {shorten(raw.name)}"
        )
        raise _error(raw.where, found, f"names by {scheme.origin}", "correct one of the two")
    return place
