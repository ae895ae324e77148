"""Find the sites of problems in the source, and apply the fixes that the problems name.

A site is a call in the source that creates a `Problem`. Its name is `module::function::where`, with `where`
as in the source, and `#2` for the second site of that name. A line number would change with every edit.
The place of `row.refuse(...)`, by which a reader rejects a row, is `row`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import qwen_task_heads
from qwen_task_heads.data.text_readers import InputProblem
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.errors_task_heads import TaskHeadError

PACKAGE = Path(qwen_task_heads.__file__).parent
MAKERS = {
    "Problem",
    "FileProblem",
    "InputProblem",
    "RowProblem",
    "TaskHeadError",
    "refuse",
    "refuse_choice",
    "refuse_pairs",
    "not_one_of",
    "error_at",
    "_refusal",
}


@cache
def sites_of(module: str) -> dict[str, tuple[int, int]]:
    """Return first and last line of every site of a module by its name, in the order of the source."""
    calls: list[tuple[str, str, ast.Call]] = []

    def visit(node: ast.AST, scope: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = scope
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inner = f"{scope}.{child.name}".lstrip(".")
            if isinstance(child, ast.Call) and (ast.unparse(child.func) in MAKERS or _is_of_row(child)):
                for where in _wheres(child):
                    calls.append((scope, where, child))
            visit(child, inner)

    visit(ast.parse((PACKAGE / module).read_text(encoding="utf-8")), "")
    found: dict[str, tuple[int, int]] = {}
    for scope, where, call in sorted(calls, key=lambda item: item[2].lineno):
        name = base = f"{module}::{scope}::{where}"
        number = 1
        while name in found:
            number += 1
            name = f"{base}#{number}"
        found[name] = (call.lineno, call.end_lineno or call.lineno)
    return found


def _wheres(call: ast.Call) -> list[str]:
    """Return the place that a call names; for `not_one_of`, which checks several options, all of them."""
    if _is_of_row(call):
        return ["row"]
    if ast.unparse(call.func) == "not_one_of":
        return [_text(item.elts[0]) for item in call.args if isinstance(item, ast.Tuple)]
    return [_text(call.args[0])] if call.args else []


def _is_of_row(call: ast.Call) -> bool:
    """Return whether a call refuses a row, by `refuse` or `refuse_value`, whose place is that of the row."""
    return isinstance(call.func, ast.Attribute) and call.func.attr in ("refuse", "refuse_value")


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


@contextmanager
def made() -> Iterator[list[str]]:
    """Record the sites at which problems are created in the block."""
    found: list[str] = []
    makers = (Problem, InputProblem, TaskHeadError)  # the last two do not call the first
    before = [maker.__init__ for maker in makers]

    def noting(init: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> None:
            found.extend(_sites_on(sys._getframe(1)))
            init(self, *args, **kwargs)

        return call

    for maker, init in zip(makers, before, strict=True):
        maker.__init__ = noting(init)  # type: ignore[method-assign]
    try:
        yield found
    finally:
        for maker, init in zip(makers, before, strict=True):
            maker.__init__ = init  # type: ignore[method-assign]


@contextmanager
def refused(site: str) -> Iterator[list[Any]]:
    """Expect an error that is created at a site; the yielded list contains its problems after the block."""
    problems: list[Any] = []
    with made() as sites, pytest.raises((TaskHeadsError, TaskHeadError)) as caught:
        yield problems
    assert site in sites, f"{site} is none of {sites}"
    error = caught.value
    problems.extend(error.problems if isinstance(error, TaskHeadsError) else [error])


def _sites_on(frame: FrameType | None) -> Iterator[str]:
    """Yield the sites that are active in a stack of calls."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            module = path.relative_to(PACKAGE).as_posix()
            yield from (
                name
                for name, (first, last) in sites_of(module).items()
                if first <= frame.f_lineno <= last and module != "errors.py"
            )
        frame = frame.f_back


Words = list[str]


def changes(problem: Problem, argv: Words, typed: dict[str, Words] | None = None) -> list[Words]:
    """Return the command lines that follow from the fix of a problem, one for each alternative in it.

    Args:
        problem: problem of an option, `--name`.
        argv: the command line with the problem.
        typed: words that replace the option, by the text of an alternative that asks for a value which only
            the user knows.

    Raises:
        AssertionError: an alternative that no rule below converts into a command line.
    """
    option = problem.where
    found: list[Words] = []
    # After a colon follows the reason.
    fix = re.sub(r"^(drop it|drop the option|raise it): .*", r"\1", problem.fix)
    for way in re.split(r",? or (?=drop|give|pass|name|add|choose|see|set)|; ", fix):
        if way in (typed or {}):
            found.append([*without(argv, option), *(typed or {})[way]])
        elif re.match(r"drop (it|one|the option)\b", way):
            found.append(without(argv, option))
        elif match := re.match(r"add (--\w+(?: [\w/]+)?)$", way):
            found.append([*argv, *match[1].split()])
        elif match := re.match(r"(?:give|pass) (--\w+) (.+) instead$", way):
            found.append([*without(argv, option), match[1], *match[2].split()])
        elif match := re.match(r"(?:give|pass) (--\w+(?: [\w./:-]+)*)$", way):
            found.append([*argv, *match[1].split()])
        elif match := re.match(r"set (\w+): (\w+)$", way):  # as in a config file
            found.append([*argv, f"--{match[1]}", match[2]])
        elif match := re.match(r"choose such as ([\w.,:/ -]+)$", way):
            found.append([*without(argv, option), option, *match[1].split()])
        elif way == "raise it":
            match = re.match(r"(\d+) or more", problem.expected)
            assert match, f"no bound is named by: {problem}"
            found.append([*without(argv, option), option, match[1]])
        elif way.startswith(("choose one of them", "choose among them")):
            found.append([*without(argv, option), option, re.split("[, ]", problem.expected)[0]])
        elif match := re.match(r"did you mean (\S+)\?$", way):
            found.append([*without(argv, option), option, match[1]])
        elif way.startswith("see --help"):
            found.append([*argv, "--help"])
        elif way.startswith("correct its name"):
            name = f"--{problem.expected.split(', ')[0]}"
            found.append([name if word == option else word for word in argv])
        else:
            raise AssertionError(f"no rule applies to {way!r}, an alternative of: {problem}")
    assert found, f"no command line follows from: {problem}"
    return found


def without(argv: Words, option: str) -> Words:
    """Return a command line without an option and its values."""
    kept: Words = []
    dropping = False
    for word in argv:
        if word.startswith("--"):
            dropping = word == option
        if not dropping:
            kept.append(word)
    return kept
