"""Codes of problems, and the exit of a recipe: its message is the last line, also under `accelerate`.

The launches are real: `accelerate launch` starts a script that only fails.
"""

from __future__ import annotations

import ast
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sources import MODULES, RECIPES, name_of, tree_of

import qwen_task_heads
from qwen_task_heads.data_checks import findings
from qwen_task_heads.errors import CODES, Problem, TaskHeadsError
from qwen_task_heads.hubcode.errors_task_heads import TaskHeadError

PACKAGE = Path(qwen_task_heads.__file__).parent
SINGLE = Path(__file__).parents[1] / "recipes" / "accelerate" / "single.yaml"
LAUNCH = ["-m", "accelerate.commands.accelerate_cli", "launch"]
REFUSED = """
import sys
from errors import Problem, TaskHeadsError, run_recipe

def main():
    raise TaskHeadsError(
        Problem("--option", "a value is missing", "a number", "pass a number", code="option-missing")
    )

sys.exit(run_recipe(main))
"""
INTERRUPTED = """
import os, signal, sys, time
from errors import run_recipe

def main():
    os.killpg(0, signal.SIGINT)  # as in a terminal, the launcher gets it too
    time.sleep(60)

sys.exit(run_recipe(main, interrupted="the same command continues"))
"""
DEFECT = """
import sys
from errors import run_recipe

def main():
    raise RuntimeError("a defect")

sys.exit(run_recipe(main))
"""
FINE = """
import sys
from errors import run_recipe
sys.exit(run_recipe(lambda: print("done")))
"""


def launched(tmp_path: Path, script: str, *words: str, launcher: list[str] = LAUNCH, **environment: str):
    """Launch a script; return the completed process with the output of script and launcher in one text."""
    path = tmp_path / "recipe.py"
    path.write_text(script)
    # Only this module is imported: importing transformers would take most of the time.
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *launcher, *words, str(path), "--an_option", "value"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        start_new_session=True,
        # A background job of a shell and its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, **environment},
    )


def test_the_message_is_the_last_line_of_a_bare_launch(tmp_path):
    done = launched(tmp_path, REFUSED)
    assert done.stdout.splitlines()[-1].startswith("error: --option")
    assert "Traceback" not in done.stdout
    assert done.returncode == -signal.SIGTERM  # 143 in a shell


@pytest.mark.slow
def test_quiet_launchers_exit_by_themselves(tmp_path):
    done = launched(tmp_path, REFUSED, "--quiet", "--config_file", str(SINGLE))
    assert done.stdout.splitlines() == [
        "error: --option: a value is missing. Expected a number. Fix: pass a number."
    ]
    assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [LAUNCH, ["-m", "accelerate.commands.launch"]], ids=lambda one: one[1])
def test_ctrl_c_ends_with_the_way_to_continue(tmp_path, launcher):
    done = launched(tmp_path, INTERRUPTED, "--config_file", str(SINGLE), launcher=launcher)
    assert done.stdout.splitlines() == ["interrupted: the same command continues"]
    assert done.returncode != 0


@pytest.mark.slow
def test_a_defect_keeps_its_own_traceback_alone(tmp_path):
    done = launched(tmp_path, DEFECT, "--config_file", str(SINGLE))
    assert done.stdout.splitlines()[-1] == "RuntimeError: a defect"
    assert done.stdout.count("Traceback") == 1
    assert done.returncode != 0


@pytest.mark.slow
def test_a_successful_launch_is_not_ended(tmp_path):
    done = launched(tmp_path, FINE, "--config_file", str(SINGLE))
    assert (done.stdout.splitlines(), done.returncode) == (["done"], 0)


PARENT = """
import subprocess, sys
done = subprocess.run([sys.executable, *sys.argv[1:{end}]])
print("survived", done.returncode)
"""


@pytest.mark.parametrize(
    ("name", "end"),
    [("tool.py", None), ("accelerate", 2)],
    ids=["another program with the same words", "the same program with other words"],
)
def test_no_other_parent_is_ended(tmp_path, name, end):
    parent = tmp_path / name
    parent.write_text(PARENT.format(end=end))
    done = launched(tmp_path, REFUSED, launcher=[str(parent)], ACCELERATE_MIXED_PRECISION="no")
    assert done.stdout.splitlines()[-1] == "survived 2"


@pytest.mark.slow
def test_workers_of_several_processes_leave_their_launcher_alone(tmp_path):
    done = launched(tmp_path, REFUSED, "--config_file", str(SINGLE), TORCHELASTIC_RUN_ID="one")
    assert done.returncode == 1
    assert "CalledProcessError" in done.stdout.splitlines()[-1]


# Codes

SOURCE = [path for path in [*MODULES, *RECIPES] if path.name != "errors.py"]


def code_literals(tree: ast.Module) -> list[tuple[int, str]]:
    """Return (line, text) of every text that is passed, assigned or defaulted as `code`."""
    values: list[ast.expr] = []
    for node in ast.walk(tree):
        is_argument = isinstance(node, ast.keyword) and node.arg == "code"
        if is_argument or (isinstance(node, ast.Assign) and "code" in map(ast.unparse, node.targets)):
            values.append(node.value)
        elif isinstance(node, ast.arguments):
            names = [*node.posonlyargs, *node.args]
            defaults = [*zip(names[len(names) - len(node.defaults) :], node.defaults, strict=True)]
            defaults += zip(node.kwonlyargs, node.kw_defaults, strict=True)
            values += [value for name, value in defaults if name.arg == "code" and value is not None]
    # A value may be `a if condition else b`: its branches are codes, its condition is not.
    return [(text.lineno, text.value) for value in values for text in branches(value)]


def branches(value: ast.expr) -> list[ast.Constant]:
    """Return the texts that an expression can evaluate to, as far as it states them."""
    if isinstance(value, ast.IfExp):
        return [*branches(value.body), *branches(value.orelse)]
    return [value] if isinstance(value, ast.Constant) and isinstance(value.value, str) else []


def test_codes_are_kebab_case() -> None:
    assert [code for code in CODES if not re.fullmatch(r"[a-z]+(-[a-z]+)+", code)] == []


def test_every_code_in_the_source_is_in_the_table() -> None:
    found = [(name_of(path), *literal) for path in SOURCE for literal in code_literals(tree_of(path))]
    known = {*CODES, *findings.CODES}  # data checks have findings with codes of their own
    assert [(name, line, code) for name, line, code in found if code not in known] == []
    assert len(found) > 100


def test_every_code_of_the_table_is_used() -> None:
    """Holds for the whole package: a branch in which some packages have no codes yet may fail this test."""
    texts = {
        node.value
        for path in SOURCE
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert sorted(CODES.keys() - texts) == []


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("Problem('a', 'b', 'c', 'd', code='x-y')", ["x-y"]),
        ("Problem('a', 'b', 'c', 'd', code='x-y' if kind == 'z' else 'v-w')", ["x-y", "v-w"]),
        ("def f(a, code='x-y'): pass", ["x-y"]),
        ("def f(a, *, code='x-y'): pass", ["x-y"]),
        ("code = 'x-y'", ["x-y"]),
        ("replace(problem, code=other.code)", []),
    ],
)
def test_literals_of_codes_are_found(line: str, codes: list[str]) -> None:
    assert [code for _, code in code_literals(ast.parse(line))] == codes


def test_errors_survive_pickling() -> None:
    problem = Problem("a", "found b", "c", "do d", code="option-value")
    error = pickle.loads(pickle.dumps(TaskHeadsError([problem, problem])))
    assert error.problems == (problem, problem)
    inner = pickle.loads(pickle.dumps(TaskHeadError("a", "found b", "c", "do d", code="option-value")))
    assert (inner.where, inner.code) == ("a", "option-value")
    assert str(inner) == "a: found b. Expected c. Fix: do d."
