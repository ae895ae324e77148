"""Rules of the package layout, checked in the source: imports between packages, and forbidden calls."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from sources import MODULES, PACKAGE, RECIPES, REPO, name_of, text_of, tree_of

# Published code may import only dependencies of transformers. peft is imported only to load an adapter,
# because its import takes seconds.
HUBCODE_IMPORTS = {"torch", "transformers", "safetensors", "huggingface_hub"}
HUBCODE_LAZY_IMPORTS = {"peft"}


def _imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (absolute dotted name, line, at module level) of every import, also below TYPE_CHECKING."""
    tree = tree_of(path)
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno, id(node) not in inside


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield (dotted name of the function, call) for every call by name."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_rules_apply_to_the_whole_source() -> None:
    names = {name_of(path) for path in [*MODULES, *RECIPES]}
    assert {"qwen_task_heads/hubcode/handler.py", "recipes/classify.py"} <= names
    assert len(names) > 100


def test_published_code_imports_only_its_siblings() -> None:
    """transformers copies only siblings that are named by `from .x import y`."""
    hubcode = sorted((PACKAGE / "hubcode").glob("*.py"))
    siblings = {path.stem for path in hubcode if path.stem.endswith("_task_heads")}
    # Inference Endpoints find their handler by its name; no module imports it.
    assert {path.stem for path in hubcode} - siblings == {"__init__", "handler"}
    wrong = []
    for path in hubcode:
        for name, line, at_top in _imports(path):
            parts = name.split(".")
            if parts[0] == PACKAGE.name:
                if parts[1] != "hubcode" or len(parts) != 4 or parts[2] not in siblings:
                    wrong.append(f"{path.name}:{line}: {name}")
            elif parts[0] in HUBCODE_LAZY_IMPORTS:
                if at_top:
                    wrong.append(f"{path.name}:{line}: {name} at module level")
            elif parts[0] not in HUBCODE_IMPORTS | set(sys.stdlib_module_names):
                wrong.append(f"{path.name}:{line}: {name}")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and PACKAGE.name in (node.module or ""):
                wrong.append(f"{path.name}:{node.lineno}: the package by its name")
    assert not wrong, "\n".join(wrong)


def test_no_getattr_and_hasattr() -> None:
    """`getattr` and `hasattr` hide a wrong type; only the lazy names of the package need them."""
    found = [
        f"{name_of(path)}:{call.lineno}: {function}"
        for path in MODULES
        for function, call in _calls(path)
        if function == "hasattr" or (function == "getattr" and path != PACKAGE / "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_no_absolute_paths() -> None:
    places = [f"/{top}/" for top in ("work", "home", "root", "Users")]
    found = [
        f"{name_of(path)}: {place}"
        for path in [*MODULES, *RECIPES]
        for place in places
        if place in text_of(path)
    ]
    assert not found, "\n".join(found)


def test_no_module_has_more_than_400_lines() -> None:
    """A longer module has more than one role; tests are exempt, since they mirror the package."""
    scripts = [path for folder in ("benchmarks", "tools") for path in sorted((REPO / folder).glob("*.py"))]
    counts = {path: text_of(path).count("\n") for path in [*MODULES, *RECIPES, *scripts]}
    assert len(scripts) > 20
    assert {name_of(path): lines for path, lines in counts.items() if lines > 400} == {}
