"""The error of bad input. This file is copied into every published model; it imports nothing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any


class TaskHeadError(ValueError):
    """Bad input, reported by code that is copied into repos: `where: problem. Expected X. Fix: Y.`

    A separate type, so that the package can tell bad input from a defect and print it without a traceback.

    Args:
        where: field, argument, file or tensor name.
        problem: what is wrong, as a short clause.
        expected: what would have been accepted.
        fix: what the user can do next, in the imperative.
        code: a key of `CODES` in the package's `errors.py`, which copied code cannot import.
    """

    def __init__(self, where: str, problem: str, expected: object, fix: str, *, code: str) -> None:
        self.where, self.problem, self.expected = where, problem, f"{expected}"
        self.fix, self.code = fix, code
        super().__init__(f"{where}: {problem}. Expected {expected}. Fix: {fix}.")

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle makes the error of, as processes send it to each other."""
        fields = (self.where, self.problem, self.expected, self.fix)
        return partial(type(self), code=self.code), fields


def refuse(where: str, found: object, expected: object, fix: str, *, code: str) -> TaskHeadError:
    """Return the error of a value that is not accepted; its problem is `found <value>`."""
    return TaskHeadError(where, f"found {found!r}", expected, fix, code=code)


def refuse_pairs(truncation: str) -> TaskHeadError:
    """Return the error of a truncation that cannot cut a pair of texts."""
    expected = "head or tail for pairs of texts"
    return refuse("truncation", truncation, expected, "choose one of them", code="option-conflict")


def refuse_choice(where: str, found: object, choices: Iterable[str]) -> TaskHeadError:
    """Return the error of a value that is not among its choices."""
    return refuse(where, found, ", ".join(choices), "choose one of them", code="option-value")
