"""Rows of other sets, mixed into the training set at a ratio.

Practitioners report that similar data mixed in, two own rows to one other, helps a fine-tuned classifier. It
is an option whose effect is to be measured, by a run with it and a run without.

Design:
- Which rows are taken hangs on a hash of each row and a seed, never on the order of files.
- Other rows only train. One whose text stands in dev or test is left out, because it would be measured on;
  one that stands in train is left out, because it adds nothing, or a contradiction.
- For the same reason a text that several other rows hold counts once, and not at all where their labels
  contradict each other. Here the two texts of a pair stand in their order: turned round they may say another
  thing.
- Labels go by name or alias. An id means another label in another set, unless that set names its ids too:
  ids without names are taken only where the own rows state ids as well, and this is said.
- A model can tell two sets apart by their lengths. Where these differ by more than a factor of two, it may
  learn "long means label x" from the mixture; that is said with both medians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from qwen_task_heads.data.example_columns import hashed, joined
from qwen_task_heads.data.example_tables import TextTable
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.hub_datasets import NoSuchSplit
from qwen_task_heads.data.keys import Hashes, combine, within
from qwen_task_heads.data.label_files import find_label_file
from qwen_task_heads.data.label_schemes import Scheme, labels_of, states_ids
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.raw_texts import RawTarget, RawTexts
from qwen_task_heads.data.sequences import pick
from qwen_task_heads.data.splits import hash_rows
from qwen_task_heads.data.text_targets import resolve_all
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

RATIO = 2.0  # own rows for one other
APART = 2.0  # factor between median lengths from which they are told to differ


def mix_in(
    train: Sequence[TextExample],
    others: Sequence[TextExample],
    *,
    ratio: float = RATIO,
    seed: int = 0,
    apart: Sequence[TextExample] = (),
    name: str = "the other set",
) -> tuple[Sequence[TextExample], list[str]]:
    """Add rows of another set to a training set.

    Args:
        train: own rows.
        others: rows of the other set, their labels resolved by the same map.
        ratio: own rows for one of the others, over 0; where there are too few others, all of them are taken.
        seed: another one takes other rows.
        apart: rows of dev and test; others with an equal text (up to case, width and spacing; two texts in
            either order) are left out.
        name: of the other set, for the lines.

    Returns:
        `(rows, lines)`: all own rows in their order, then the others by their hash; and what was done, in
        plain words.

    Raises:
        TaskHeadsError: a ratio that is no positive number, or no row that could be added.

    Rows with an equal text (up to case, width and spacing) are added once; not at all where they differ in
    target or probabilities.

    Example:
        >>> from qwen_task_heads.data.mixing import mix_in
        >>> own = [TextExample(text=f"own {n}", target=0) for n in range(10)]
        >>> others = [TextExample(text=f"new {n}", target=1) for n in range(90)]
        >>> rows, lines = mix_in(own, others, apart=[TextExample(text="New  5", target=1)])
        >>> len(rows), lines[0]
        (15, 'mix: 5 of 90 rows of the other set added to 10 own rows (2:1)')
    """
    check_ratio(ratio)
    keys = _keys(others)
    measured, own = (within(keys, np.unique(_keys(rows))) for rows in (apart, train))
    new = pick(others, np.flatnonzero(~measured & ~own))
    seen = int(measured.sum())
    usable, repeated, contradicted = _once(new, seed=seed)
    if new and not usable:
        found, accepted = "no text without contradictory labels", "one label for one text"
        raise TaskHeadsError(
            Problem(name, found, accepted, "correct the labels, or name another set with --mix")
        )
    if not usable:
        found = "no row that is not already in train, dev or test" if others else "no usable row"
        accepted = "a set with rows of its own"
        raise TaskHeadsError(Problem(name, found, accepted, "name another set with --mix, or drop it"))
    wanted = max(1, round(len(train) / ratio))
    chosen = np.sort(usable[:wanted])
    there = dict(zip(chosen.tolist(), pick(new, chosen), strict=True))  # read in the order of the file
    taken = [there[place] for place in usable[:wanted]]
    got = f"{len(train) / len(taken):.3g}:1"
    asked = "" if len(taken) == wanted else f", where {ratio:g}:1 was asked: there are no more"
    added = f"{len(taken):,} of {len(others):,} rows of {name} added to {len(train):,} own rows"
    lines = [f"mix: {added} ({got}{asked})"]
    left_out = (
        (seen, "whose text stands in dev or test", "whose texts stand in dev or test"),
        (len(others) - seen - len(new), "whose text stands in train", "whose texts stand in train"),
        (repeated, "that repeats another of them", "that repeat others of them"),
        (contradicted, "", "whose texts have several labels among them"),  # never one row alone
    )
    for count, one, several in left_out:
        if count:
            row = f"row left out, {one}" if count == 1 else f"rows left out, {several}"
            lines.append(f"mix: {count:,} {row}")
    return joined([train, taken]), [*lines, _length_line(train, taken, name)]


def check_ratio(ratio: float) -> None:
    """Refuse a ratio that is no positive number."""
    if not (math.isfinite(ratio) and ratio > 0):
        accepted, remedy = "a number over 0", "choose such as 2: two own rows to one other"
        raise TaskHeadsError(Problem("mix_ratio", f"found {ratio}", accepted, remedy))


def _keys(rows: Sequence[TextExample]) -> Hashes:
    """Equal for rows of equal texts, in either order."""
    one, other = hashed(rows, "text"), hashed(rows, "text_b")
    return combine(np.minimum(one, other), np.maximum(one, other))


def _once(rows: Sequence[TextExample], *, seed: int) -> tuple[list[int], int, int]:
    """The place of one row of each text, ordered by hash; how many repeat one, and how many contradict."""
    keys = combine(hashed(rows, "text"), hashed(rows, "text_b")).tolist()
    same: dict[int, list[tuple[str, float, int]]] = {}  # text -> hash, weight and place of its rows
    stated: dict[int, set[object]] = {}
    for place, (key, row) in enumerate(zip(keys, rows, strict=True)):
        digest = hash_rows([(seed, row.text, row.text_b, row.target, row.soft)])
        same.setdefault(key, []).append((digest, row.weight, place))
        stated.setdefault(key, set()).add((row.target, row.soft))
    agreed = {key: min(found) for key, found in same.items() if len(stated[key]) == 1}
    repeated = sum(len(same[key]) - 1 for key in agreed)
    places = [place for *_, place in sorted(agreed.values())]
    return places, repeated, len(rows) - len(agreed) - repeated


def _length_line(train: Sequence[TextExample], taken: Sequence[TextExample], name: str) -> str:
    own, other = (median(len(row.text) + len(row.text_b) for row in rows) for rows in (train, taken))
    line = f"mix: median length {own:,.0f} characters in train, {other:,.0f} in {name}"
    if max(own, other) <= APART * min(own, other):
        return line
    return (
        f"{line}: more than a factor of two apart, so that the model may learn the length instead of the "
        "label; mix in texts of similar length, or compare with a run without them"
    )


# What is read and resolved before


def read_others(
    places: Sequence[str], *, read: Callable[[str, str | None], RawTexts]
) -> tuple[dict[str, RawTexts], list[Problem]]:
    """Read the training split of other sets, or the only one: `(place -> rows, all problems)`."""
    found: dict[str, RawTexts] = {}
    problems: list[Problem] = []
    for place in places:
        try:
            try:
                found[place] = read(place, None if Path(place).is_file() else "train")
            except NoSuchSplit:
                found[place] = read(place, None)
            problems += found[place].file_problems
        except TaskHeadsError as error:
            problems += error.problems
    return found, problems


def names_of(places: Iterable[str]) -> str:
    """Names of sets for a line that stands on the card too: without folders."""
    return " and ".join(Path(place).name if Path(place).exists() else place for place in places)


def resolve_others(
    others: dict[str, RawTexts], scheme: Scheme, *, source: str, own: Sequence[RawTarget], skip: bool
) -> tuple[Sequence[TextExample], list[str], list[Problem]]:
    """Give the rows of other sets the labels of the run.

    Args:
        others: what `read_others` found.
        scheme: labels of the run.
        source: the training set as the user named it.
        own: its targets.
        skip: leave refused rows out and count them, however many: a set may have labels that the run has not.

    Returns:
        `(rows, lines, problems)`. A label that the map lacks is one problem, with its first row and their
        number.
    """
    tables: list[TextTable] = []
    lines: list[str] = []
    problems: list[Problem] = []
    for place, raw in others.items():
        try:
            named, note = _named(raw, scheme, place=place, source=source, own=own)
        except TaskHeadsError as error:
            problems += error.problems
            continue
        found, report = resolve_all(named, scheme, place=place)
        tables.append(found)
        lines += [f"mix: {line}" for line in (*report.lines(), *note)]
        if not skip:
            unknown, where = _unknown(named, scheme)
            problems += unknown + [problem for problem in report.refusals if problem.where not in where]
    return joined(tables), lines, problems


def _named(
    raw: RawTexts, scheme: Scheme, *, place: str, source: str, own: Sequence[RawTarget]
) -> tuple[RawTexts, list[str]]:
    """The rows with names for ids, and a line where ids stay ids."""
    if not states_ids(raw.stated):
        return raw, []
    beside = find_label_file(place)
    names = raw.class_names
    if not names and beside is not None and beside != find_label_file(source):
        names = LabelMap.read(beside).names
    if names == scheme.labels.names and scheme.has_ids:
        return raw, []
    named = raw.with_targets([_with_names(row, names) for row in raw.targets])
    if not states_ids(named.stated):
        return named, []
    if names or not states_ids(own):
        first = next(row.where for row in named.stated if states_ids([row]))
        found = "a label by its id, which may be another in this set"
        accepted = "names or aliases of the labels, or ids with their names"
        remedy = "write 'label_name' beside the ids, or put class.txt or labels.yaml next to the file"
        raise TaskHeadsError(Problem(first, found, accepted, remedy))
    return named, [f"the ids of {names_of([place])} are read as those of train: it does not name them"]


def _with_names(row: RawTarget, names: Sequence[str]) -> RawTarget:
    """A row that says names where it says ids, as far as these are known."""
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
    """One problem per name that is no label, and the places of all rows that say one."""
    places: dict[str, list[str]] = {}
    for code, target in enumerate(raw.targets):
        for label in labels_of(target) if code not in raw.refused_targets else ():
            if isinstance(label, str) and label not in scheme.labels.spelled:
                stand = [raw.places[row] for row in raw.rows_with(code).tolist()]
                places.setdefault(label, []).extend(stand)
    accepted = f"{shorten(scheme.labels.names[:8], 120)}"
    remedy = "make it an alias in labels.yaml, or leave these rows out with --bad_rows skip"
    problems = []
    for label, where in places.items():
        found = f"{shorten(label)} is none of the {len(scheme.labels):,} labels ({scheme.origin})"
        found += f", in {len(where):,} row{'' if len(where) == 1 else 's'}"
        problems.append(Problem(where[0], found, accepted, remedy))
    return problems, {place for where in places.values() for place in where}
