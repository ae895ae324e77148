"""Bound work by the number of function calls or lines, which does not depend on the processor or its load.

A loop that takes quadratic time makes so many calls that the bound stops it at once. Work of C code within
one call is not counted. The inputs are so large that pytest's timeout would stop it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass
class Work:
    """Number of calls of Python and C functions in a block."""

    calls: int = 0


@contextmanager
def at_most(calls: int) -> Iterator[Work]:
    """Fail as soon as this thread has made more calls in the block.

    Args:
        calls: the bound, about twice the current number.

    Yields:
        The count.
    """
    work, before = Work(), sys.getprofile()

    def count(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            work.calls += 1
            if work.calls > calls:
                sys.setprofile(before)
                pytest.fail(f"more than {calls:,} calls")

    sys.setprofile(count)
    try:
        yield work
    finally:
        sys.setprofile(before)


@contextmanager
def at_most_lines(lines: int) -> Iterator[None]:
    """Fail as soon as this thread has executed more lines of Python in the block; sees loops without calls.

    Args:
        lines: the bound, about twice the current number.
    """
    done, before = 0, sys.gettrace()

    def count(frame: Any, event: str, argument: Any) -> Any:
        nonlocal done
        done += event == "line"
        if done > lines:
            sys.settrace(before)
            pytest.fail(f"more than {lines:,} lines")
        return count

    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)
