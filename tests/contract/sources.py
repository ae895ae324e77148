"""The source of the package and of the recipes; each file is parsed once for all rules.

A rule is one test over all files. It lists every finding with its file, so that one run shows all of them.
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
    """Return the path within the repository."""
    return path.relative_to(REPO).as_posix()


@cache
def text_of(path: Path) -> str:
    """Return the text of a source file."""
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the parsed source of a file, which all rules share and must not change."""
    return ast.parse(text_of(path))
