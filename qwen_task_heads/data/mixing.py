"""Mix rows of other data sets into the training set at a ratio.

Practitioners report that similar data, one row to two own rows, improves a fine-tuned classifier. Measure the
effect of this option by a run with it and a run without it.

Design:
- The selection of rows depends on a hash of each row and a seed, never on the order of files.
- Rows of other data sets are used for training only. A row whose text is in dev or test is left out, because
  it would leak. A row whose text is in train is left out, because it adds nothing, or a contradiction.
- For the same reason, a text of several other rows counts once, and is left out if their labels contradict
  each other. Here the order of the two texts of a pair counts, because the swapped pair may mean something
  else.
- Labels are matched by name or alias. An id may mean another label in another data set, unless that data set
  names its ids. Ids without names are accepted only if the own rows have ids as well, with a message.
- A model can distinguish two data sets by their lengths. If the median lengths differ by more than a factor
  of two, the model may learn "long means label x" from the mixture; a message gives both medians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from qwen_task_heads.data.datasets import name_of, read_split
from qwen_task_heads.data.example_columns import hashed, joined
from qwen_task_heads.data.example_tables import TextTable
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.label_schemes import Scheme, labels_of, states_ids
from qwen_task_heads.data.raw_texts import RawTarget, RawTexts
from qwen_task_heads.data.sequences import pick
from qwen_task_heads.data.splits import hash_rows
from qwen_task_heads.data.text_targets import resolve_all
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.labels.label_files import find_label_file
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.sources.keys import Hashes, combine, within

RATIO = 2.0  # own rows per row of another data set
APART = 2.0  # a larger factor between median lengths gives a message


def mix_in(
    train: Sequence[TextExample],
    others: Sequence[TextExample],
    *,
    ratio: float = RATIO,
    seed: int = 0,
    apart: Sequence[TextExample] = (),
    name: str = "the other data set",
) -> tuple[Sequence[TextExample], list[str]]:
    """Add rows of another data set to a training set.

    Rows with an equal text (up to case, width and spacing) are added once, or left out if they differ in
    target or probabilities.

    Args:
        train: own rows.
        others: rows of the other data set, with labels resolved by the same map.
        ratio: own rows per other row, over 0; if there are too few other rows, all of them are added.
        seed: of the selection of rows.
        apart: rows of dev and test; other rows with an equal text (up to case, width and spacing; two texts
            in either order) are left out.
        name: of the other data set, for messages.

    Returns:
        `(rows, messages)`: all own rows in their order, then the others by their hash; and a summary.

    Raises:
        TaskHeadsError: the ratio is not a positive number, or no row can be added.

    Example:
        >>> own = [TextExample(text=f"own {n}", target=0) for n in range(10)]
        >>> others = [TextExample(text=f"new {n}", target=1) for n in range(90)]
        >>> rows, messages = mix_in(own, others, apart=[TextExample(text="New  5", target=1)])
        >>> len(rows), messages[0]
        (15, 'mix: 5 of 90 rows of the other data set added to 10 own rows (2:1)')
    """
    check_ratio(ratio)
    keys = _keys(others)
    measured, own = (within(keys, np.unique(_keys(rows))) for rows in (apart, train))
    new = pick(others, np.flatnonzero(~measured & ~own))
    seen = int(measured.sum())
    usable, repeated, contradicted = _once(new, seed=seed)
    if new and not usable:
        problem, expected = "every text has contradictory labels", "one label for one text"
        fix = "correct the labels, or name another data set with --mix"
        raise error_at(name, problem, expected, fix, code="rows-conflict")
    if not usable:
        problem = "all rows are already in train, dev or test" if others else "found no usable row"
        fix = "name another data set with --mix, or drop it"
        raise error_at(name, problem, "a data set with rows of its own", fix, code="rows-too-few")
    wanted = max(1, round(len(train) / ratio))
    chosen = np.sort(usable[:wanted])
    rows_at = dict(zip(chosen.tolist(), pick(new, chosen), strict=True))  # read in the order of the file
    added = [rows_at[place] for place in usable[:wanted]]
    got = f"{len(train) / len(added):.3g}:1"
    requested = "" if len(added) == wanted else f", but {ratio:g}:1 was requested: there are no more rows"
    counts = f"{len(added):,} of {len(others):,} rows of {name} added to {len(train):,} own rows"
    messages = [f"mix: {counts} ({got}{requested})"]
    left_out = (
        (seen, "whose text is in dev or test", "whose texts are in dev or test"),
        (len(others) - seen - len(new), "whose text is in train", "whose texts are in train"),
        (repeated, "that repeats another of them", "that repeat others of them"),
        (contradicted, "", "whose texts have several labels"),  # never a single row
    )
    for count, one, several in left_out:
        if count:
            row = f"row left out, {one}" if count == 1 else f"rows left out, {several}"
            messages.append(f"mix: {count:,} {row}")
    return joined([train, added]), [*messages, _length_message(train, added, name)]


def check_ratio(ratio: float) -> None:
    """Refuse a ratio that is not a positive number."""
    if not (math.isfinite(ratio) and ratio > 0):
        fix = "choose such as 2: two own rows to one other"
        raise error_at("mix_ratio", f"found {ratio}", "a number over 0", fix, code="option-range")


def _keys(rows: Sequence[TextExample]) -> Hashes:
    """Return keys that are equal for rows with equal texts, in either order."""
    one, other = hashed(rows, "text"), hashed(rows, "text_b")
    return combine(np.minimum(one, other), np.maximum(one, other))


def _once(rows: Sequence[TextExample], *, seed: int) -> tuple[list[int], int, int]:
    """Return one row of each text, ordered by hash, and the numbers of repeated and contradictory rows."""
    keys = combine(hashed(rows, "text"), hashed(rows, "text_b")).tolist()
    same: dict[int, list[tuple[str, float, int]]] = {}  # text -> hash, weight and place of its rows
    stated: dict[int, set[object]] = {}
    for place, (key, row) in enumerate(zip(keys, rows, strict=True)):
        digest = hash_rows([(seed, row.text, row.text_b, row.target, row.soft)])
        same.setdefault(key, []).append((digest, row.weight, place))
        stated.setdefault(key, set()).add((row.target, row.soft))
    agreed = {key: min(rows_of_text) for key, rows_of_text in same.items() if len(stated[key]) == 1}
    repeated = sum(len(same[key]) - 1 for key in agreed)
    places = [place for *_, place in sorted(agreed.values())]
    return places, repeated, len(rows) - len(agreed) - repeated


def _length_message(train: Sequence[TextExample], added: Sequence[TextExample], name: str) -> str:
    own, other = (median(len(row.text) + len(row.text_b) for row in rows) for rows in (train, added))
    message = f"mix: median length {own:,.0f} characters in train, {other:,.0f} in {name}"
    if max(own, other) <= APART * min(own, other):
        return message
    return (
        f"{message}: more than a factor of two apart, so that the model may learn the length instead of the "
        "label; mix in texts of similar length, or compare with a run without them"
    )


# Reading the other data sets and resolving their labels


def read_others(
    places: Sequence[str], *, read: Callable[[str, str | None], RawTexts]
) -> tuple[dict[str, RawTexts], list[Problem]]:
    """Read the training split of other data sets, or their only split: `(place -> rows, all problems)`."""
    others: dict[str, RawTexts] = {}
    problems: list[Problem] = []
    for place in places:
        try:
            others[place] = read_split("train", place, read=read)
            problems += others[place].file_problems
        except TaskHeadsError as error:
            problems += error.problems
    return others, problems


def names_of(places: Iterable[str]) -> str:
    """Return the names of data sets without folders, because the model card has the messages too."""
    return " and ".join(map(name_of, places))


def resolve_others(
    others: dict[str, RawTexts], scheme: Scheme, *, source: str, own: Sequence[RawTarget], skip: bool
) -> tuple[Sequence[TextExample], list[str], list[Problem]]:
    """Resolve the labels of other data sets with the label map of the run.

    Args:
        others: result of `read_others`.
        scheme: labels of the run.
        source: the training set as the user named it.
        own: its targets.
        skip: leave out and count all refused rows, because a data set may have labels that the run lacks.

    Returns:
        `(rows, messages, problems)`. A label that the map lacks is one problem, with its first row and the
        number of rows.
    """
    tables: list[TextTable] = []
    messages: list[str] = []
    problems: list[Problem] = []
    for place, raw in others.items():
        try:
            named, ids_messages = _named(raw, scheme, place=place, source=source, own=own)
        except TaskHeadsError as error:
            problems += error.problems
            continue
        table, report = resolve_all(named, scheme, place=place)
        tables.append(table)
        messages += [f"mix: {message}" for message in (*report.lines(), *ids_messages)]
        if not skip:
            unknown, where = _unknown(named, scheme)
            problems += unknown + [problem for problem in report.refusals if problem.where not in where]
    return joined(tables), messages, problems


def _named(
    raw: RawTexts, scheme: Scheme, *, place: str, source: str, own: Sequence[RawTarget]
) -> tuple[RawTexts, list[str]]:
    """Return the rows with names instead of ids, and a message if ids remain."""
    if not states_ids(raw.stated):
        return raw, []
    label_file = find_label_file(place)
    names = raw.class_names
    if not names and label_file is not None and label_file != find_label_file(source):
        names = LabelMap.read(label_file).names
    if names == scheme.labels.names and scheme.has_ids:
        return raw, []
    named = replace(raw, targets=[_with_names(row, names) for row in raw.targets])
    if not states_ids(named.stated):
        return named, []
    if names or not states_ids(own):
        first = next(row.where for row in named.stated if states_ids([row]))
        problem = "found a label id, which may mean another label in this data set"
        expected = "names or aliases of the labels, or ids with their names"
        fix = "write 'label_name' next to the ids, or put class.txt or labels.yaml next to the file"
        raise error_at(first, problem, expected, fix, code="label-conflict")
    return named, [f"the ids of {names_of([place])} are read as those of train: it does not name them"]


def _with_names(row: RawTarget, names: Sequence[str]) -> RawTarget:
    """Return a row with names instead of ids, as far as these are known."""
    if row.name and isinstance(row.value, int):
        return replace(row, value=row.name, name="")
    if isinstance(row.value, int) and row.value < len(names):
        return replace(row, value=names[row.value])
    if not isinstance(row.value, list) or not names:
        return row
    if all(isinstance(label, int) and label < len(names) for label in row.value):
        return replace(row, value=[names[label] for label in row.value])
    if len(row.value) == len(names) and all(isinstance(share, float) for share in row.value):
        return replace(row, value=dict(zip(names, row.value, strict=True)))
    return row


def _unknown(raw: RawTexts, scheme: Scheme) -> tuple[list[Problem], set[str]]:
    """Return one problem per unknown label name, and the places of all rows with such a name."""
    places: dict[str, list[str]] = {}
    for code, target in enumerate(raw.targets):
        for label in labels_of(target) if code not in raw.refused_targets else ():
            if isinstance(label, str) and label not in scheme.labels.spelled:
                rows = [raw.rows.places[row] for row in raw.rows_with(code).tolist()]
                places.setdefault(label, []).extend(rows)
    expected = shorten(scheme.labels.names[:8], 120)
    fix = "make it an alias in labels.yaml, or leave these rows out with --bad_rows skip"
    problems = []
    for label, where in places.items():
        problem = f"{shorten(label)} is none of the {len(scheme.labels):,} labels ({scheme.origin})"
        problem += f", in {len(where):,} row{'' if len(where) == 1 else 's'}"
        problems.append(Problem(where[0], problem, expected, fix, code="label-unknown"))
    return problems, {place for where in places.values() for place in where}
