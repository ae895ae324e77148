"""Examples in docstrings run with the stated results, and public names are documented and typed."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest
from sources import MODULES, REPO, name_of, text_of, tree_of

DOCUMENTED = [path for path in MODULES if path.name not in ("__init__.py", "__main__.py")]
WITH_EXAMPLES = [
    ".".join(path.relative_to(REPO).with_suffix("").parts) for path in DOCUMENTED if ">>>" in text_of(path)
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples may write files
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


def test_public_functions_are_documented_and_typed() -> None:
    undocumented = []
    for path in DOCUMENTED:
        for node in tree_of(path).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            where = f"{name_of(path)}:{node.lineno}: {node.name}"
            functions = [node] if isinstance(node, ast.FunctionDef) else []
            if not ast.get_docstring(node):
                undocumented.append(where)
            if isinstance(node, ast.ClassDef):
                functions = [
                    n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")
                ]
            for function in functions:
                arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
                untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
                if untyped or function.returns is None:
                    undocumented.append(f"{where}.{function.name}: {untyped}")
    assert not undocumented, "\n".join(undocumented)
