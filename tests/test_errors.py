"""How a recipe ends: its message comes last, also under accelerate's launcher, and the exit code says so.

Launches are real: `accelerate launch` starts a script that does nothing but fail.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import qwen_task_heads

PACKAGE = Path(qwen_task_heads.__file__).parent
SINGLE = Path(__file__).parents[1] / "recipes" / "accelerate" / "single.yaml"
LAUNCH = ["-m", "accelerate.commands.accelerate_cli", "launch"]
REFUSED = """
import sys
from errors import TaskHeadsError, run_recipe

def main():
    raise TaskHeadsError.of("--option", "nothing", "something", "give it")

sys.exit(run_recipe(main))
"""
INTERRUPTED = """
import os, signal, sys, time
from errors import run_recipe

def main():
    os.killpg(0, signal.SIGINT)  # as a terminal does: the launcher gets it too
    time.sleep(60)

sys.exit(run_recipe(main, interrupted="the same command goes on"))
"""
DEFECT = """
import sys
from errors import run_recipe

def main():
    raise RuntimeError("a defect of ours")

sys.exit(run_recipe(main))
"""
FINE = """
import sys
from errors import run_recipe
sys.exit(run_recipe(lambda: print("done")))
"""


def launched(tmp_path: Path, script: str, *words: str, launcher: list[str] = LAUNCH, **environment: str):
    """Launch a script; give what ended, with all that it and the launcher printed in one text."""
    path = tmp_path / "recipe.py"
    path.write_text(script)
    # The module alone imports nothing: transformers would take most of the time.
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *launcher, *words, str(path), "--an_option", "value"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        start_new_session=True,
        # A job of a shell in the background ignores Ctrl-C, and so would all its children.
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
    assert done.stdout.splitlines() == ["error: --option: found nothing; accepted: something; give it"]
    assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [LAUNCH, ["-m", "accelerate.commands.launch"]], ids=lambda one: one[1])
def test_ctrl_c_ends_with_how_to_go_on(tmp_path, launcher):
    done = launched(tmp_path, INTERRUPTED, "--config_file", str(SINGLE), launcher=launcher)
    assert done.stdout.splitlines() == ["interrupted: the same command goes on"]
    assert done.returncode != 0


@pytest.mark.slow
def test_a_defect_keeps_its_own_traceback_alone(tmp_path):
    done = launched(tmp_path, DEFECT, "--config_file", str(SINGLE))
    assert done.stdout.splitlines()[-1] == "RuntimeError: a defect of ours"
    assert done.stdout.count("Traceback") == 1
    assert done.returncode != 0


@pytest.mark.slow
def test_a_launch_that_ends_well_is_left_alone(tmp_path):
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
    ids=["the words of the launch, by another program", "its name, and other words"],
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
