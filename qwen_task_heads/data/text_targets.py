"""Each target of a row -> ids, scores or probabilities by the labels of the run, or what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qwen_task_heads.data.checks import Finding, ReadReport, examine_texts
from qwen_task_heads.data.example_tables import TextTable
from qwen_task_heads.data.label_files import is_whole
from qwen_task_heads.data.label_schemes import ANOTHER, SHOWN, Scheme, error_at, in_quotes, is_soft, key_of
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.raw_texts import RawTarget, RawTexts, RowProblem
from qwen_task_heads.data.sequences import index
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

CandidateSets = dict[tuple[str, ...], tuple[tuple[str, ...], bool]]  # rows offer the same, maybe 100,000


Resolved = tuple[int | tuple[int, ...] | tuple[float, ...], tuple[float, ...] | None, tuple[str, ...]]


def resolve(raw: RawTarget, scheme: Scheme, *, offers: CandidateSets | None = None) -> Resolved | RowProblem:
    """A target as ids, scores or probabilities, or what is wrong with it.

    Args:
        raw: what a row says.
        scheme: labels of the run.
        offers: what is known of candidates; filled.

    Returns:
        `(target, soft, candidates)` of a `TextExample`.
    """
    try:
        target, soft = _resolve_target(raw, scheme)
        _check_offered(raw, scheme.labels)
    except TaskHeadsError as error:
        problem = error.problems[0]
        return RowProblem(problem.where, problem.problem, problem.expected, problem.fix)
    return target, soft, _offered(raw.candidates, scheme.labels, {} if offers is None else offers)[0]


def _check_offered(raw: RawTarget, labels: LabelMap) -> None:
    """Refuse candidates of which two spell one label; that none stands twice the reader has seen."""
    if not labels.aliases or not raw.candidates:
        return
    first: dict[int, str] = {}
    for name in raw.candidates:
        place = labels.spelled.get(name)
        if place is not None and first.setdefault(place, name) != name:
            found = f"{shorten(first[place])} and {shorten(name)} in 'category', both {labels.names[place]!r}"
            raise error_at(raw.where, found, "each candidate once", "remove one of the two")


def _offered(
    candidates: tuple[str, ...], labels: LabelMap, offers: CandidateSets
) -> tuple[tuple[str, ...], bool]:
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


def resolve_all(raw: RawTexts, scheme: Scheme, *, place: str) -> tuple[TextTable, ReadReport]:
    """The examples of a set, and the account of its rows.

    Args:
        raw: all rows of a source.
        scheme: labels of the run.
        place: what was read, as the user named it.
    """
    offers = CandidateSets()
    targets: list[Resolved] = []
    refused = dict(raw.refused_targets)
    strange = []
    for code, stated in enumerate(raw.targets):
        made = refused.get(code) or resolve(stated, scheme, offers=offers)
        if isinstance(made, Problem):
            refused[code] = made
            targets.append((-1, None, ()))
            continue
        targets.append(made)
        if _offered(stated.candidates, scheme.labels, offers)[1]:
            strange.append(code)
    codes = raw.codes
    examples = TextTable(
        text=raw.text, text_b=raw.text_b, group=raw.group, weights=raw.weights.values(), codes=codes,
        scores=None if raw.scores.is_constant else raw.scores.values(),
        targets=targets, places=raw.places, rows=index(~np.isin(codes, [*refused])) if refused else None,
    )  # fmt: skip
    odd = tuple(raw.places[row] for row in np.flatnonzero(np.isin(codes, strange)).tolist())
    findings = (*examine_texts(examples, spoken=raw.spoken), *([Finding("strange", odd)] if odd else []))
    report = ReadReport(
        # The card shows this: a file's name, not the folders of somebody's machine.
        source=Path(place).name if Path(place).exists() else place,
        rows_read=raw.rows_read,
        used=len(examples),
        refused=raw.rows_read - len(examples),
        texts=len(examples),
        refusals=(*raw.problems, *raw.of_rows(refused.values())),
        findings=findings,
    )
    return examples, report


def _resolve_target(
    raw: RawTarget, scheme: Scheme
) -> tuple[int | tuple[int, ...] | tuple[float, ...], tuple[float, ...] | None]:
    if scheme.problem_type == "regression":
        if len(raw.value) != len(scheme.labels):
            found = f"{len(raw.value):,} scores"
            raise error_at(raw.where, found, f"{len(scheme.labels):,}, as in train", "correct the row")
        return raw.value, None
    if isinstance(raw.value, dict) or (isinstance(raw.value, list) and is_soft(raw.value)):
        soft = _resolve_soft(raw, scheme)
        return max(range(len(soft)), key=soft.__getitem__), soft
    if isinstance(raw.value, list):
        ids = sorted(_resolve_label(raw, label, scheme) for label in raw.value)
        if len(set(ids)) < len(ids):  # an id and its name
            raise error_at(raw.where, f"a label twice: {shorten(raw.value)}", "each label once", "remove one")
        return tuple(ids), None
    return _resolve_label(raw, raw.value, scheme), None


def _resolve_soft(raw: RawTarget, scheme: Scheme) -> tuple[float, ...]:
    if isinstance(raw.value, list):
        if len(raw.value) != len(scheme.labels):
            found = f"{len(raw.value):,} probabilities"
            raise error_at(raw.where, found, f"{len(scheme.labels):,}, one per label", "correct the row")
        return tuple(raw.value)
    soft = [0.0] * len(scheme.labels)
    for name, share in raw.value.items():
        soft[_resolve_label(raw, key_of(name), scheme)] += share
    return tuple(soft)


def _resolve_label(raw: RawTarget, value: int | str, scheme: Scheme) -> int:
    """The id of one label of a row."""
    labels = scheme.labels
    place = _place_of_id(raw, value, scheme) if isinstance(value, int) else _place_of_name(raw, value, scheme)
    if raw.name and labels.spelled.get(raw.name) != place:
        found = (
            f"label {shorten(value)} is {shorten(labels.names[place])}, and 'label_name' {shorten(raw.name)}"
        )
        raise error_at(raw.where, found, f"names by {scheme.origin}", "correct one of the two")
    return place


def _place_of_id(raw: RawTarget, value: int, scheme: Scheme) -> int:
    labels = scheme.labels
    if not scheme.has_ids:
        if raw.name in labels.spelled:
            return labels.spelled[raw.name]
        found = f"label {value} is an id, and nothing says which of the {len(labels):,} labels has it"
        remedy = (
            "write the name, or name the labels in their order in labels.yaml (--labels), or add 'label_name'"
        )
        raise error_at(raw.where, found, f"names, as in train ({scheme.origin})", remedy)
    if scheme.codes:
        place = scheme.codes.get(value)
    elif scheme.by_name and not raw.name:
        place = labels.label2id.get(str(value))
    else:
        place = value if 0 <= value < len(labels) else None
    if place is None:
        named = scheme.by_name or scheme.codes
        accepted = shorten(labels.names[:SHOWN]) if named else f"0 to {len(labels) - 1:,}"
        found = f"label {value} is none of the {len(labels):,} labels ({scheme.origin})"
        raise error_at(raw.where, found, accepted, ANOTHER)
    return place


def _place_of_name(raw: RawTarget, value: str, scheme: Scheme) -> int:
    labels, name = scheme.labels, value.strip()
    by_code, by_name = scheme.codes.get(name), labels.spelled.get(name)
    if by_code is not None and by_name not in (None, by_code):
        found = f"{shorten(value)}, the code of one label and the name of another"
        raise error_at(raw.where, found, "codes that are no names of other labels", "rename the label")
    place = by_name if by_code is None else by_code
    numbered = not labels.are_numbers and all(map(is_whole, labels.names))
    if is_whole(name) and (place is None or numbered):
        raise TaskHeadsError(in_quotes(raw, value))
    if place is None:
        near = labels.near(name)
        remedy = ANOTHER if near is None else f"did you mean {shorten(near)}?"
        found = f"{shorten(value)} is none of the {len(labels):,} labels ({scheme.origin})"
        raise error_at(raw.where, found, shorten(labels.names[:SHOWN], 120), remedy)
    return place
