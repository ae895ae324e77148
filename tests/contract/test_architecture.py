"""The rules of the house, read from the source: imports, size, and what code must never do."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qwen_task_heads

PACKAGE = Path(qwen_task_heads.__file__).parent
REPO = PACKAGE.parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
RECIPES = sorted((REPO / "recipes").glob("*.py"))
# A room imports from rooms of a lower number, and from itself. Rooms of one number do not know each other.
LEVELS = {
    "errors": 0,
    "backbones": 1,
    "hubs": 1,
    "hubcode": 1,
    "manifests": 2,
    "repos": 2,
    "data": 2,
    "dtypes": 2,
    "peft_models": 2,
    "adapters": 3,
    "head_rows": 3,
    "throughput": 3,
    "batching": 3,
    "models": 4,
    "generators": 4,
    "training": 5,
    "inference": 5,
    "publishing": 6,
    "evaluate_modules": 6,
    "__init__": 7,
    "__main__": 8,
}
MAX_MODULE, MAX_RECIPE = 400, 120
# transformers itself loads weights with safetensors, adapters with peft, and reaches hubs by huggingface_hub.
# peft is heavy, so it is imported where an adapter is loaded, and nowhere else.
TRAVELS_WITH = {"torch", "transformers", "safetensors", "huggingface_hub"}
TRAVELS_WITH_LAZILY = {"peft"}


def _name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (absolute dotted name, line, at module level) of every import, also below TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
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
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_every_room_has_a_level() -> None:
    assert {_room(path) for path in MODULES} <= LEVELS.keys()


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_go_one_way(path: Path) -> None:
    room = _room(path)
    wrong = []
    for name, line, _ in _imports(path):
        parts = name.split(".")
        if parts[0] == "recipes":
            wrong.append(f"line {line}: recipes are imported by nothing")
        # the version is a plain string, no room and no code
        if parts[0] != PACKAGE.name or parts[1] in (room, "__version__"):
            continue
        # `from qwen_task_heads import x` is a room, or a public name, which only the top may use
        target = parts[1] if parts[1] in LEVELS else "__init__"
        if LEVELS[target] >= LEVELS[room]:
            wrong.append(f"line {line}: {room} imports {target}")
    assert wrong == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "hubcode").glob("*.py")), ids=_name)
def test_code_that_travels_stands_alone(path: Path) -> None:
    """transformers copies siblings that are named by `from .x import y`, and nothing else."""
    siblings = {sibling.stem for sibling in path.parent.glob("*_task_heads.py")}
    # Inference Endpoints know their handler by its name; nothing else imports it.
    assert path.stem in ("__init__", "handler") or path.stem.endswith("_task_heads")
    wrong = []
    for name, line, at_top in _imports(path):
        parts = name.split(".")
        if parts[0] == PACKAGE.name:
            if parts[1] != "hubcode" or len(parts) != 4 or parts[2] not in siblings:
                wrong.append(f"line {line}: {name}")
        elif parts[0] in TRAVELS_WITH_LAZILY:
            if at_top:
                wrong.append(f"line {line}: {name} at module level")
        elif parts[0] not in TRAVELS_WITH | set(sys.stdlib_module_names):
            wrong.append(f"line {line}: {name}")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and PACKAGE.name in (node.module or ""):
            wrong.append(f"line {node.lineno}: the package by its name")
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_recipes_fit_on_two_screens(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_RECIPE


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_module_states_its_decisions(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_probing_for_attributes(path: Path) -> None:
    """`getattr` and `hasattr` hide a wrong type; the lazy names of the package are the one exception."""
    allowed = {"getattr"} if path == PACKAGE / "__init__.py" else set()
    found = {function for function, _ in _calls(path)} & {"getattr", "hasattr"}
    assert found <= allowed


@pytest.mark.parametrize("path", [*MODULES, *RECIPES], ids=_name)
def test_no_paths_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [word for word in (f"/{top}/" for top in ("work", "home", "root", "Users")) if word in text]
