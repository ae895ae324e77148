"""Assertions on the problems of an error: their place and code, not their wording."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qwen_task_heads.errors import CODES, TaskHeadsError
from qwen_task_heads.hubcode.errors_task_heads import TaskHeadError


@contextmanager
def raises_problem(code: str, where: str | None = None, *, match: str = "") -> Iterator[list[Any]]:
    """Expect an error whose first problem has this code and, if given, this place.

    Args:
        code: of `CODES`.
        where: the place: a file, an option, an argument or a tensor.
        match: regular expression of a value that the user must see in the message.

    Yields:
        A list, which contains the problems after the block.
    """
    problems: list[Any] = []
    with pytest.raises((TaskHeadsError, TaskHeadError)) as caught:
        yield problems
    error = caught.value
    problems.extend(error.problems if isinstance(error, TaskHeadsError) else [error])
    assert code in CODES
    assert problems[0].code == code, error
    assert where in (None, problems[0].where), error
    assert re.search(match, str(error), re.DOTALL), error
