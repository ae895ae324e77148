"""Every example in a docstring runs and gives what it says; every public name is documented."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import qwen_task_heads

PACKAGE = Path(qwen_task_heads.__file__).parent
NAMES = [
    ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
]


def _path(name: str) -> Path:
    return PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")


WITH_EXAMPLES = [name for name in NAMES if ">>>" in _path(name).read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example that writes must not write here
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_public_functions_are_documented_and_typed(name: str) -> None:
    undocumented = []
    for node in ast.parse(_path(name).read_text(encoding="utf-8")).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        functions = [node] if isinstance(node, ast.FunctionDef) else []
        if not ast.get_docstring(node):
            undocumented.append(node.name)
        if isinstance(node, ast.ClassDef):
            functions = [
                n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")
            ]
        for function in functions:
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if untyped or function.returns is None:
                undocumented.append(f"{node.name}.{function.name}: {untyped}")
    assert undocumented == []
