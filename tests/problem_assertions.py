"""Assertions on the problems of a `TaskHeadsError`: their place and code, not their wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qwen_task_heads.errors import TaskHeadsError


@contextmanager
def raises_problem(
    code: str, where: str | None = None, *, match: str | None = None
) -> Iterator[pytest.ExceptionInfo[TaskHeadsError]]:
    """Expect a `TaskHeadsError` whose first problem has this code and, if given, this place."""
    with pytest.raises(TaskHeadsError, match=match) as caught:
        yield caught
    first = caught.value.problems[0]
    assert first.code == code
    assert where in (None, first.where)
