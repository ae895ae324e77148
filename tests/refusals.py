"""Expect an error by its code and its place; the wording of messages may change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qwen_task_heads.errors import CODES, TaskHeadsError
from qwen_task_heads.hubcode.errors_task_heads import TaskHeadError


@contextmanager
def raises_problem(code: str, where: str = "", *, match: str = "") -> Iterator[list[Any]]:
    """Expect an error whose first problem has a code.

    Args:
        code: of `CODES`.
        where: end of the place, such as a file name or an option.
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
    assert problems[0].where.endswith(where), error
    assert re.search(match, str(error), re.DOTALL), error
