"""What callers in Python pass: list-like inputs, bad rows and the device.

Lists, tuples, generators, NumPy and Arrow arrays and Series are read alike (`as_list`); none of their
libraries is imported. All bad rows are named in one error. With `on_error="keep"` each keeps its place as an
answer that carries its error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from transformers.utils import logging

from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.encoding_task_heads import Table, as_list, strip_title

logger = logging.get_logger(__name__)

ON_ERROR = RAISE, KEEP = ("raise", "keep")
Answer = TypeVar("Answer")


def rows_of(name: str, values: Any) -> list[Any]:
    """Return the values of a list-like argument.

    Raises:
        TaskHeadsError: one text, a mapping, a set, a table, or what has no values.

    Example:
        >>> import numpy
        >>> from qwen_task_heads.inference.inputs import rows_of
        >>> rows_of("texts", numpy.array(["lost card", "age?"]))
        ['lost card', 'age?']
    """
    rows = as_list(values)
    if rows is not None:
        return rows
    accepted = "a list of texts, a tuple, a generator, a Series or an array"
    if isinstance(values, str):
        raise TaskHeadsError(Problem(name, "found one text", accepted, "put it into a list"))
    if isinstance(values, Table):
        found, remedy = f"a table ({type(values).__name__})", 'pass one column, such as table["text"]'
        raise TaskHeadsError(Problem(name, f"found {found}", accepted, remedy))
    found = f"a {type(values).__name__}, {shorten(values)}"
    raise TaskHeadsError(Problem(name, f"found {found}", accepted, "put the texts into a list"))


def check_rows(
    texts: Sequence[Any],
    others: Sequence[Any] | None,
    *,
    names: tuple[str, str],
    on_error: str | None = None,
    titles: bool = False,
    more: Mapping[int, Problem] | None = None,
) -> dict[int, str]:
    """Check n rows; return the errors of the bad ones by their place.

    Args:
        texts: n texts, not empty.
        others: n prompts or second texts, "" for none; or None.
        names: what the caller calls the two.
        on_error: `raise` names all bad rows in one error; `keep` returns them; None raises where the caller
            does not offer `keep`.
        titles: a text of tags alone is empty.
        more: problems of rows that the caller found.

    Raises:
        TaskHeadsError: another number of `others`, an unknown `on_error`, or bad rows that are not kept.
    """
    if on_error is not None and on_error not in ON_ERROR:
        raise TaskHeadsError(
            Problem("on_error", f"found {shorten(on_error)}", ", ".join(ON_ERROR), "choose one of them")
        )
    (name, other), general = names, []
    if others is not None and len(others) != len(texts):
        found = f"{len(others)} {other} for {len(texts)} {name}"
        general.append(Problem(other, f"found {found}", "one each", 'use "" where there is none'))
    problems: dict[int, list[Problem]] = {}
    for place, text in enumerate(texts):
        if problem := _text_problem(f"{name}[{place}]", text, other=other, title=titles):
            problems.setdefault(place, []).append(problem)
    for place, text in enumerate(others or ()):
        if problem := _other_problem(f"{other}[{place}]", text):
            problems.setdefault(place, []).append(problem)
    for place, problem in (more or {}).items():
        problems.setdefault(place, []).append(problem)
    if general or (problems and on_error != KEEP):
        bad = [problem for found in problems.values() for problem in found]
        if on_error == RAISE:
            bad = [replace(problem, fix=f'{problem.fix}, or pass on_error="keep"') for problem in bad]
        raise TaskHeadsError(general + bad)
    return {place: "\n".join(map(str, found)) for place, found in problems.items()}


def _text_problem(where: str, text: Any, *, other: str, title: bool) -> Problem | None:
    if isinstance(text, tuple | list | dict):  # as pipelines take pairs
        what = other.replace("text_pairs", "second texts")
        found = f"a {type(text).__name__}, {shorten(text)}"
        return Problem(where, f"found {found}", "a text", f"give {what} by {other}=[...]")
    if not isinstance(text, str) or not (strip_title(text) if title else text.strip()):
        return Problem(where, f"found {shorten(text)}", "a text that is not empty", "drop it")
    return _surrogate_problem(where, text)


def _other_problem(where: str, text: Any) -> Problem | None:
    if not isinstance(text, str):
        return Problem(where, f"found {shorten(text)}", "a text", 'use "" for none')
    return _surrogate_problem(where, text)


def _surrogate_problem(where: str, text: str) -> Problem | None:
    """Half of a surrogate pair, which no tokenizer encodes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"half of a character ({text[error.start]!r} at {error.start:,})"
        return Problem(
            where, f"found {found}", "text that UTF-8 can hold", "drop it, or decode its source again"
        )
    return None


def candidate_rows(candidates: Iterable[Any] | None, *, count: int) -> list[Any]:
    """Return the candidates per text as lists; None, or NaN of a Series, stands for all labels.

    Raises:
        TaskHeadsError: what is no list, or another number than of texts.
    """
    rows = [None] * count if candidates is None else rows_of("candidates", candidates)
    if len(rows) != count:
        found, accepted = f"{len(rows):,} for {count:,} texts", "one list of names per text, or None"
        raise TaskHeadsError(Problem("candidates", f"found {found}", accepted, "pass one for each"))
    missing = [isinstance(row, float) and row != row for row in rows]
    rows = [None if nothing else row for nothing, row in zip(missing, rows, strict=True)]
    return [row if (names := as_list(row)) is None else names for row in rows]


def candidate_problems(candidates: Sequence[Any], *, labels: LabelMap) -> dict[int, Problem]:
    """Return problems of rows of candidates: one text, an unknown label, or a label twice."""
    accepted, problems = "a list of different names of labels", {}
    for place, names in enumerate(candidates):
        where = f"candidates[{place}]"
        if names is None:
            continue
        if not isinstance(names, list):
            problems[place] = Problem(where, f"found {shorten(names)}", accepted, "put it in a list")
        elif not names:
            remedy = "name some, or pass None for all labels"
            problems[place] = Problem(where, "found none", accepted, remedy)
        elif unknown := [name for name in names if not isinstance(name, str) or name not in labels.label2id]:
            found, remedy = ", ".join(map(shorten, unknown)), "give names as in labels.names, and no aliases"
            problems[place] = Problem(where, f"found {found}", accepted, remedy)
        elif len(set(names)) < len(names):
            found = f"{shorten(Counter(names).most_common(1)[0][0])} twice"
            problems[place] = Problem(where, f"found {found}", accepted, "name each label once")
    return problems


def without(rows: Sequence[Any], bad: Mapping[int, str]) -> list[Any]:
    """Return the rows that are not bad."""
    return [row for place, row in enumerate(rows) if place not in bad] if bad else list(rows)


def in_place(answers: Sequence[Answer], bad: Mapping[int, Answer]) -> list[Answer]:
    """Put the answers of bad rows between those of the others, at their places."""
    rest, count = iter(answers), len(answers) + len(bad)
    return [bad[place] if place in bad else next(rest) for place in range(count)]


def device_of(device: str | torch.device | None) -> torch.device | None:
    """Return the device that is meant; `auto` is the GPU if there is one, else the CPU.

    Raises:
        TaskHeadsError: a name that torch does not know, or `cuda` without a GPU.

    Example:
        >>> from qwen_task_heads.inference.inputs import device_of
        >>> device_of("cpu"), device_of(None)
        (device(type='cpu'), None)
    """
    if device is None:
        return None
    there = torch.cuda.is_available()
    if device == "auto":
        if not there:
            return torch.device("cpu")
        logger.warning_once(f'device="auto": runs on the GPU {torch.cuda.get_device_name()}')
        return torch.device("cuda")
    accepted, remedy = 'auto, cpu, or a GPU that is there, such as "cuda"', 'pass device="auto"'
    try:
        named = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TaskHeadsError(Problem("device", f"found {shorten(device)}", accepted, remedy)) from error
    if named.type == "cuda" and not there:
        raise TaskHeadsError(
            Problem("device", f"found {shorten(str(device))} on a machine without", accepted, remedy)
        )
    return named
