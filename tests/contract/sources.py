"""The source of the package and of the recipes, each file parsed once for all rules that are read from it.

A rule is one test over all files. It lists every finding with its file, so that one run shows them all.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import qwen_task_heads

PACKAGE = Path(qwen_task_heads.__file__).parent
REPO = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((REPO / "recipes").glob("*.py"))


def name_of(path: Path) -> str:
    """The path within the repository."""
    return path.relative_to(REPO).as_posix()


@cache
def text_of(path: Path) -> str:
    """The text of a source file."""
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed source of a file. Do not change it: all rules share it."""
    return ast.parse(text_of(path))
