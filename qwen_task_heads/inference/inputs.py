"""Validation of Python arguments: list-like inputs, invalid rows and the device.

Lists, tuples, generators, NumPy and Arrow arrays and Series are supported (`as_list`) without importing their
libraries. All invalid rows are reported in one error. With `on_error="keep"` an invalid row gives an answer
with an error at its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from transformers.utils import logging

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.hubcode.encoding_task_heads import Table, as_list, strip_title
from qwen_task_heads.labels.label_map import LabelMap

logger = logging.get_logger(__name__)

ON_ERROR = RAISE, KEEP = ("raise", "keep")
Answer = TypeVar("Answer")


def rows_of(name: str, values: Any) -> list[Any]:
    """Return the values of a list-like argument.

    Raises:
        TaskHeadsError: a single text, a mapping, a set, a table, or a value that is not list-like.

    Example:
        >>> import numpy
        >>> from qwen_task_heads.inference.inputs import rows_of
        >>> rows_of("texts", numpy.array(["lost card", "age?"]))
        ['lost card', 'age?']
    """
    rows = as_list(values)
    if rows is not None:
        return rows
    if isinstance(values, str):
        problem, fix = "found one text", "put it into a list"
    elif isinstance(values, Table):
        problem = f"found a table ({type(values).__name__})"
        fix = 'pass one column, such as table["text"]'
    else:
        problem = f"found a {type(values).__name__}, {shorten(values)}"
        fix = "put the texts into a list"
    expected = "a list of texts, a tuple, a generator, a Series or an array"
    raise error_at(name, problem, expected, fix, code="argument-type")


def check_rows(
    texts: Sequence[Any],
    others: Sequence[Any] | None,
    *,
    names: tuple[str, str],
    on_error: str | None = None,
    titles: bool = False,
    more: Mapping[int, Problem] | None = None,
) -> dict[int, str]:
    """Validate n rows; return the errors of invalid rows by their index.

    Args:
        texts: n texts, not empty.
        others: n prompts or second texts, "" for none; or None.
        names: names of the two arguments in messages.
        on_error: `raise` raises all invalid rows in one error; `keep` returns them; None raises for callers
            without the option.
        titles: whether texts are titles, of which one with tags only is empty.
        more: problems that the caller found, by row.

    Raises:
        TaskHeadsError: another number of `others`, an unknown `on_error`, or invalid rows that are not kept.
    """
    if on_error is not None and on_error not in ON_ERROR:
        raise error_at(
            "on_error",
            f"found {shorten(on_error)}",
            ", ".join(ON_ERROR),
            "choose one of them",
            code="option-value",
        )
    (name, other), general = names, []
    if others is not None and len(others) != len(texts):
        general.append(
            Problem(
                other,
                f"found {len(others)} {other} for {len(texts)} {name}",
                f"one for each of the {name}",
                'use "" for none',
                code="argument-type",
            )
        )
    found = [
        (place, _text_problem(f"{name}[{place}]", text, other, titles)) for place, text in enumerate(texts)
    ]
    found += [(place, _other_problem(f"{other}[{place}]", text)) for place, text in enumerate(others or ())]
    problems: dict[int, list[Problem]] = {}
    for place, problem in [*found, *(more or {}).items()]:
        if problem:
            problems.setdefault(place, []).append(problem)
    if general or (problems and on_error != KEEP):
        bad = [problem for row in problems.values() for problem in row]
        if on_error == RAISE:
            bad = [replace(problem, fix=f'{problem.fix}, or pass on_error="keep"') for problem in bad]
        raise TaskHeadsError(general + bad)
    return {place: "\n".join(map(str, row)) for place, row in problems.items()}


def _text_problem(where: str, text: Any, other: str, is_title: bool) -> Problem | None:
    if isinstance(text, tuple | list | dict):  # pipelines take pairs in this form
        problem = f"found a {type(text).__name__}, {shorten(text)}"
        fix = f"give {other.replace('text_pairs', 'second texts')} by {other}=[...]"
        return Problem(where, problem, "a text", fix, code="argument-type")
    if not isinstance(text, str) or not (strip_title(text) if is_title else text.strip()):
        code = "text-empty" if isinstance(text, str) else "value-type"
        return Problem(where, f"found {shorten(text)}", "a text that is not empty", "drop it", code=code)
    return _surrogate_problem(where, text)


def _other_problem(where: str, text: Any) -> Problem | None:
    if not isinstance(text, str):
        return Problem(where, f"found {shorten(text)}", "a text", 'use "" for none', code="value-type")
    return _surrogate_problem(where, text)


def _surrogate_problem(where: str, text: str) -> Problem | None:
    """Return the problem of a lone surrogate, which tokenizers cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"found a lone surrogate ({text[error.start]!r} at {error.start:,})"
        expected, fix = "text that UTF-8 can encode", "drop it, or decode its source again"
        return Problem(where, problem, expected, fix, code="file-encoding")
    return None


def candidate_rows(candidates: Iterable[Any] | None, *, count: int) -> list[Any]:
    """Return the candidates per text as lists; None, or NaN of a Series, means all labels.

    Raises:
        TaskHeadsError: a value that is not list-like, or another number of lists than of texts.
    """
    rows = [None] * count if candidates is None else rows_of("candidates", candidates)
    if len(rows) != count:
        raise error_at(
            "candidates",
            f"found {len(rows):,} for {count:,} texts",
            "one list of names per text, or None",
            "pass one for each",
            code="argument-type",
        )
    missing = [isinstance(row, float) and row != row for row in rows]
    rows = [None if nothing else row for nothing, row in zip(missing, rows, strict=True)]
    return [row if (names := as_list(row)) is None else names for row in rows]


def candidate_problems(candidates: Sequence[Any], *, labels: LabelMap) -> dict[int, Problem]:
    """Return the problems of candidates by row: not a list, empty, an unknown label, or a repeated label."""
    problems = {}
    for place, names in enumerate(candidates):
        if names is None:
            continue
        if not isinstance(names, list):
            problem, fix, code = f"found {shorten(names)}", "put it in a list", "argument-type"
        elif not names:
            problem, fix = "found an empty list", "name some, or pass None for all labels"
            code = "value-missing"
        elif unknown := [name for name in names if not isinstance(name, str) or name not in labels.label2id]:
            problem = f"found {', '.join(map(shorten, unknown))}"
            fix, code = "give names as in labels.names, without aliases", "label-unknown"
        elif len(set(names)) < len(names):
            problem = f"found {shorten(Counter(names).most_common(1)[0][0])} twice"
            fix, code = "name each label once", "label-conflict"
        else:
            continue
        expected = "a list of different names of labels"
        problems[place] = Problem(f"candidates[{place}]", problem, expected, fix, code=code)
    return problems


def without(rows: Sequence[Any], bad: Mapping[int, str]) -> list[Any]:
    """Return the valid rows."""
    return [row for place, row in enumerate(rows) if place not in bad] if bad else list(rows)


def in_place(answers: Sequence[Answer], bad: Mapping[int, Answer]) -> list[Answer]:
    """Insert the answers of invalid rows at their indices."""
    rest, count = iter(answers), len(answers) + len(bad)
    return [bad[place] if place in bad else next(rest) for place in range(count)]


def check_count(name: str, value: int, *, example: int) -> None:
    """Raise a problem of an option that must be 1 or more."""
    if value < 1:
        fix = f"choose such as {example}"
        raise error_at(name, f"found {value}", "1 or more", fix, code="option-range")


def batches_by_length(
    sizes: Sequence[int], *, limit: int, extra: int = 0, max_rows: int | None = None
) -> list[list[int]]:
    """Return batches of the indices of rows of similar length, shortest first.

    Args:
        sizes: tokens of each row.
        limit: tokens of a batch, as its number of rows times its longest row; a longer row is alone.
        extra: tokens that are added to each row.
        max_rows: rows of a batch.

    Example:
        >>> from qwen_task_heads.inference.inputs import batches_by_length
        >>> batches_by_length([3, 1, 2], limit=4)
        [[1, 2], [0]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda index: sizes[index]):
        count = len(batches[-1]) if batches else 0
        # Sorted, so the new row is the longest of its batch.
        if not count or (count + 1) * (sizes[index] + extra) > limit or count == max_rows:
            batches.append([])
        batches[-1].append(index)
    return batches


def with_progress(batches: list[list[int]], *, rows: int, shown: bool, name: str) -> Iterable[list[int]]:
    """Return the batches, with a progress bar for more than a thousand rows."""
    if not shown or rows <= 1000:
        return batches
    from tqdm.auto import tqdm

    return tqdm(batches, desc=name, unit="batch")


def device_of(device: str | torch.device | None) -> torch.device | None:
    """Return the named device; `auto` is the GPU if there is one, else the CPU.

    Raises:
        TaskHeadsError: an unknown device, or `cuda` without a GPU.

    Example:
        >>> from qwen_task_heads.inference.inputs import device_of
        >>> device_of("cpu"), device_of(None)
        (device(type='cpu'), None)
    """
    if device is None:
        return None
    has_gpu = torch.cuda.is_available()
    if device == "auto":
        if not has_gpu:
            return torch.device("cpu")
        logger.warning_once(f'device="auto": runs on the GPU {torch.cuda.get_device_name()}')
        return torch.device("cuda")
    expected, fix = 'auto, cpu, or an available GPU, such as "cuda"', 'pass device="auto"'
    try:
        named = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise error_at("device", f"found {shorten(device)}", expected, fix, code="option-value") from error
    if named.type == "cuda" and not has_gpu:
        raise error_at(
            "device",
            f"found {shorten(str(device))} on a machine without a GPU",
            expected,
            fix,
            code="device-unavailable",
        )
    return named
