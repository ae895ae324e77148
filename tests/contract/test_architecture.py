"""The rules of the house, read from the source: imports, size, and what code must never do."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from sources import MODULES, PACKAGE, RECIPES, name_of, text_of, tree_of

# A room imports from rooms of a lower number, and from itself. Rooms of one number do not know each other.
LEVELS = {
    "errors": 0,
    "hubcode": 1,
    "backbones": 1,
    "modelscope": 1,
    "gguf_weights": 2,
    "files": 2,
    "dtypes": 2,
    "loading_errors": 2,
    "redaction": 2,
    "pretrained": 3,
    "repo_checks": 3,
    "throughput": 3,
    "data": 4,
    "tokenization": 5,
    "peft_models": 2,
    "adapters": 6,
    "head_rows": 6,
    "models": 7,
    "generators": 7,
    "metrics": 8,
    "training": 9,
    "inference": 10,
    "verification": 11,
    "export": 12,
    "tracking": 12,
    "reports": 13,
    "publishing": 14,
    "evaluate_modules": 14,
    "__init__": 15,
    "__main__": 16,
}
# transformers itself loads weights with safetensors, adapters with peft, and reaches hubs by huggingface_hub.
# peft is heavy, so it is imported where an adapter is loaded, and nowhere else.
TRAVELS_WITH = {"torch", "transformers", "safetensors", "huggingface_hub"}
TRAVELS_WITH_LAZILY = {"peft"}


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


def test_every_room_has_a_level() -> None:
    assert {_room(path) for path in MODULES} <= LEVELS.keys()


def test_the_rules_are_read_from_all_of_the_source() -> None:
    names = {name_of(path) for path in [*MODULES, *RECIPES]}
    assert {"qwen_task_heads/hubcode/handler.py", "recipes/classify.py"} <= names
    assert len(names) > 100


def test_imports_go_one_way() -> None:
    wrong = []
    for path in MODULES:
        room = _room(path)
        for name, line, _ in _imports(path):
            parts = name.split(".")
            if parts[0] == "recipes":
                wrong.append(f"{name_of(path)}:{line}: recipes are imported by nothing")
            # the version is a plain string, no room and no code
            if parts[0] != PACKAGE.name or parts[1] in (room, "__version__"):
                continue
            # `from qwen_task_heads import x` is a room, or a public name, which only the top may use
            target = parts[1] if parts[1] in LEVELS else "__init__"
            if LEVELS[target] >= LEVELS[room]:
                wrong.append(f"{name_of(path)}:{line}: {room} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_code_that_travels_stands_alone() -> None:
    """transformers copies siblings that are named by `from .x import y`, and nothing else."""
    hubcode = sorted((PACKAGE / "hubcode").glob("*.py"))
    siblings = {path.stem for path in hubcode if path.stem.endswith("_task_heads")}
    # Inference Endpoints know their handler by its name; nothing else imports it.
    assert {path.stem for path in hubcode} - siblings == {"__init__", "handler"}
    wrong = []
    for path in hubcode:
        for name, line, at_top in _imports(path):
            parts = name.split(".")
            if parts[0] == PACKAGE.name:
                if parts[1] != "hubcode" or len(parts) != 4 or parts[2] not in siblings:
                    wrong.append(f"{path.name}:{line}: {name}")
            elif parts[0] in TRAVELS_WITH_LAZILY:
                if at_top:
                    wrong.append(f"{path.name}:{line}: {name} at module level")
            elif parts[0] not in TRAVELS_WITH | set(sys.stdlib_module_names):
                wrong.append(f"{path.name}:{line}: {name}")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and PACKAGE.name in (node.module or ""):
                wrong.append(f"{path.name}:{node.lineno}: the package by its name")
    assert not wrong, "\n".join(wrong)


def test_every_module_states_its_decisions() -> None:
    found = [name_of(path) for path in MODULES if not ast.get_docstring(tree_of(path))]
    assert not found, "\n".join(found)


def test_no_probing_for_attributes() -> None:
    """`getattr` and `hasattr` hide a wrong type; the lazy names of the package are the one exception."""
    found = [
        f"{name_of(path)}:{call.lineno}: {function}"
        for path in MODULES
        for function, call in _calls(path)
        if function == "hasattr" or (function == "getattr" and path != PACKAGE / "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_no_paths_of_a_machine() -> None:
    places = [f"/{top}/" for top in ("work", "home", "root", "Users")]
    found = [
        f"{name_of(path)}: {place}"
        for path in [*MODULES, *RECIPES]
        for place in places
        if place in text_of(path)
    ]
    assert not found, "\n".join(found)
