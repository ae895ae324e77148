"""Each target of a row -> ids, scores or probabilities by the labels of the run, or a problem."""

from __future__ import annotations

import numpy as np

from qwen_task_heads.data.checks import Finding, ReadReport, examine_texts
from qwen_task_heads.data.datasets import name_of
from qwen_task_heads.data.example_tables import TextTable
from qwen_task_heads.data.label_schemes import (
    CORRECT_LABEL,
    Scheme,
    in_quotes,
    is_soft,
    key_of,
)
from qwen_task_heads.data.question_records import resolve_record
from qwen_task_heads.data.raw_texts import RawTarget, RawTexts, RowProblem
from qwen_task_heads.data.sequences import index
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.labels.label_files import is_whole
from qwen_task_heads.labels.label_map import SHOWN, LabelMap

# Candidates of a row -> (labels among them, whether there are other names). Rows often have equal candidates.
CandidateSets = dict[tuple[str, ...], tuple[tuple[str, ...], bool]]

# (target, soft, candidates) of a `TextExample`.
Resolved = tuple[int | tuple[int, ...] | tuple[float, ...], tuple[float, ...] | None, tuple[str, ...]]


def resolve(raw: RawTarget, scheme: Scheme, *, known: CandidateSets | None = None) -> Resolved | RowProblem:
    """Convert a target to ids, scores or probabilities.

    Args:
        raw: unresolved target.
        scheme: labels of the run.
        known: cache of candidates, which is filled.

    Returns:
        `(target, soft, candidates)` of a `TextExample`, or the problem of the target.
    """
    try:
        target, soft = _resolve_target(raw, scheme)
        _check_candidates(raw, scheme.labels)
    except TaskHeadsError as error:
        return RowProblem(**vars(error.problems[0]))
    return target, soft, _candidates(raw.candidates, scheme.labels, {} if known is None else known)[0]


def _check_candidates(raw: RawTarget, labels: LabelMap) -> None:
    """Refuse two candidates that are spellings of one label; the reader refuses equal candidates."""
    if not labels.aliases or not raw.candidates:
        return
    first: dict[int, str] = {}
    for name in raw.candidates:
        place = labels.spelled.get(name)
        if place is not None and first.setdefault(place, name) != name:
            spellings = f"{shorten(first[place])} and {shorten(name)}"
            problem = f"{spellings} in 'category' are both {labels.names[place]!r}"
            raise error_at(
                raw.where, problem, "each candidate once", "remove one of the two", code="value-conflict"
            )


def _candidates(
    candidates: tuple[str, ...], labels: LabelMap, known: CandidateSets
) -> tuple[tuple[str, ...], bool]:
    """Return the labels among candidates, in the order of the map, and whether there are other names.

    The labels are () if the candidates are all labels, or if the row has no candidates.
    """
    if not candidates:
        return (), False
    if candidates not in known:
        places = {labels.spelled[name] for name in candidates if name in labels.spelled}
        has_others = len(places) < len(candidates) and not labels.spelled.keys() >= set(candidates)
        names = tuple(labels.names[place] for place in sorted(places)) if len(places) < len(labels) else ()
        known[candidates] = names, has_others
    return known[candidates]


def resolve_all(raw: RawTexts, scheme: Scheme, *, place: str) -> tuple[TextTable, ReadReport]:
    """Resolve all targets of a source; return its examples and the report on its rows.

    Args:
        raw: all rows of a source.
        scheme: labels of the run.
        place: file, folder or dataset id, as the user named it.
    """
    known = CandidateSets()
    targets: list[Resolved] = []
    refused = dict(raw.refused_targets)
    with_others = []  # codes of targets with candidates that are not labels
    for code, target in enumerate(raw.targets):
        resolved = refused.get(code) or resolve(target, scheme, known=known)
        if isinstance(resolved, Problem):
            refused[code] = resolved
            targets.append((-1, None, ()))
            continue
        targets.append(resolved)
        if _candidates(target.candidates, scheme.labels, known)[1]:
            with_others.append(code)
    codes = raw.codes
    examples = TextTable(
        **raw.rows.texts,
        weights=raw.rows.values("weight"),
        codes=codes,
        scores=None if raw.rows.is_constant("score") else raw.rows.values("score"),
        targets=targets,
        places=raw.rows.places,
        rows=index(~np.isin(codes, [*refused])) if refused else None,
    )
    strange = tuple(raw.rows.places[row] for row in np.flatnonzero(np.isin(codes, with_others)).tolist())
    findings = examine_texts(examples, spoken=raw.spoken)
    findings += (Finding("strange", strange),) if strange else ()
    report = ReadReport(
        source=name_of(place),
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
    if scheme.questions:
        return resolve_record(raw, scheme.questions), None
    if scheme.problem_type == "regression":
        if len(raw.value) != len(scheme.labels):
            problem, expected = f"found {len(raw.value):,} scores", f"{len(scheme.labels):,}, as in train"
            raise error_at(raw.where, problem, expected, "correct the row", code="dataset-mismatch")
        return raw.value, None
    if isinstance(raw.value, dict) or (isinstance(raw.value, list) and is_soft(raw.value)):
        soft = _resolve_soft(raw, scheme)
        return max(range(len(soft)), key=soft.__getitem__), soft
    if isinstance(raw.value, list):
        ids = sorted(_resolve_label(raw, label, scheme) for label in raw.value)
        if len(set(ids)) < len(ids):  # two spellings of one label
            problem = f"found a label twice: {shorten(raw.value)}"
            raise error_at(raw.where, problem, "each label once", "remove one", code="value-conflict")
        return tuple(ids), None
    return _resolve_label(raw, raw.value, scheme), None


def _resolve_soft(raw: RawTarget, scheme: Scheme) -> tuple[float, ...]:
    if isinstance(raw.value, list):
        if len(raw.value) != len(scheme.labels):
            problem = f"found {len(raw.value):,} probabilities"
            expected = f"{len(scheme.labels):,}, one per label"
            raise error_at(raw.where, problem, expected, "correct the row", code="dataset-mismatch")
        return tuple(raw.value)
    soft = [0.0] * len(scheme.labels)
    for name, share in raw.value.items():
        soft[_resolve_label(raw, key_of(name), scheme)] += share
    return tuple(soft)


def _resolve_label(raw: RawTarget, value: int | str, scheme: Scheme) -> int:
    """Return the id of one label of a row."""
    labels = scheme.labels
    place = _place_of_id(raw, value, scheme) if isinstance(value, int) else _place_of_name(raw, value, scheme)
    if raw.name and labels.spelled.get(raw.name) != place:
        name = shorten(labels.names[place])
        problem = f"label {shorten(value)} is {name}, and 'label_name' is {shorten(raw.name)}"
        expected = f"names by {scheme.origin}"
        raise error_at(raw.where, problem, expected, "correct one of the two", code="label-conflict")
    return place


def _place_of_id(raw: RawTarget, value: int, scheme: Scheme) -> int:
    labels = scheme.labels
    if not scheme.has_ids:
        if raw.name in labels.spelled:
            return labels.spelled[raw.name]
        problem = f"label {value} is an id, and the ids of the {len(labels):,} labels are not known"
        expected = f"names, as in train ({scheme.origin})"
        fix = (
            "write the name, or name the labels in their order in labels.yaml (--labels), or add 'label_name'"
        )
        raise error_at(raw.where, problem, expected, fix, code="label-unknown")
    if scheme.codes:
        place = scheme.codes.get(value)
    elif scheme.by_name and not raw.name:
        place = labels.label2id.get(str(value))
    else:
        place = value if 0 <= value < len(labels) else None
    if place is None:
        are_named = scheme.by_name or scheme.codes
        expected = shorten(labels.names[:SHOWN]) if are_named else f"0 to {len(labels) - 1:,}"
        problem = f"label {value} is none of the {len(labels):,} labels ({scheme.origin})"
        raise error_at(raw.where, problem, expected, CORRECT_LABEL, code="label-unknown")
    return place


def _place_of_name(raw: RawTarget, value: str, scheme: Scheme) -> int:
    labels, name = scheme.labels, value.strip()
    by_code, by_name = scheme.codes.get(name), labels.spelled.get(name)
    if by_code is not None and by_name not in (None, by_code):
        problem = f"{shorten(value)} is the code of one label and the name of another"
        expected = "codes that are not names of other labels"
        raise error_at(raw.where, problem, expected, "rename the label", code="label-conflict")
    place = by_name if by_code is None else by_code
    numbered = not labels.are_numbers and all(map(is_whole, labels.names))
    if is_whole(name) and (place is None or numbered):
        raise TaskHeadsError(in_quotes(raw, value))
    if place is None:
        near = labels.near(name)
        fix = CORRECT_LABEL if near is None else f"write {shorten(near)}"
        problem = f"{shorten(value)} is none of the {len(labels):,} labels ({scheme.origin})"
        expected = shorten(labels.names[:SHOWN], 120)
        raise error_at(raw.where, problem, expected, fix, code="label-unknown")
    return place
