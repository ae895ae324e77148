"""Recipes run for real in tests: in this process, or in a child of a fork server that has imported torch.

A fresh process would spend most of its time on imports, so there are few: what needs a machine without
the package is opened by one process per file, in one go. True launches are marked slow.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

RECIPES = Path(__file__).parents[1] / "recipes"
MACHINE = ["--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true"]
PRELOADED = [
    "launching",
    "qwen_task_heads.training.trainers",
    "qwen_task_heads.training.classifier_trainer",
    "qwen_task_heads.publishing.outcome",
    "qwen_task_heads.publishing.text_outcome",
]
# Put before code that must do without us; it ends the process where that would show nothing.
GUARD = r"""
import importlib.abc, json, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "qwen_task_heads":
            raise ImportError("this process does not have the package")

sys.meta_path.insert(0, Block())
try:
    import qwen_task_heads
except ImportError:
    pass
else:
    raise SystemExit("the package is there: this would show nothing")
import torch
torch.set_num_threads(1)
"""


def run(recipe: Path, *argv: object) -> int:
    """Run a recipe in this process, as the command line would; give its exit code."""
    words, before = [str(word) for word in argv], sys.argv
    sys.argv = [str(recipe), *words]
    try:
        runpy.run_path(str(recipe), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def child(recipe: Path, words: list[str], log: str, environment: dict[str, str]) -> None:
    """Target of the fork server: the recipe with its output in a file."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    code = run(recipe, *words)
    sys.stdout.flush()
    os._exit(code)


def start(recipe: Path, words: list[object], log: Path, **environment: str) -> Any:
    """Start a recipe in a child; its output goes to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(
        target=child, args=(recipe, [str(word) for word in words], str(log), environment), daemon=True
    )
    process.start()
    return process


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def short(data: Path, base: str, output: Path, **changes: object) -> list[object]:
    """The words of a run of a few steps; later words win, as on any command line."""
    options = {
        "model_name_or_path": base, "dataset_name": data, "output_dir": output, "max_steps": 4,
        "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1,
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "seed": 0,
    } | changes  # fmt: skip
    words: list[object] = [*MACHINE]
    for name, value in options.items():
        words += [f"--{name}", *value] if isinstance(value, (list, tuple)) else [f"--{name}", value]
    return words


def finished(recipe: Path, words: list[object], log: Path) -> str:
    """Run in a child that must end well; give what it printed."""
    process = start(recipe, words, log)
    process.join(150)
    assert process.exitcode == 0, log.read_text()[-3000:]
    return log.read_text()


def refused(recipe: Path, capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """The message of a refused run: exit code 2, one message, no traceback."""
    capfd.readouterr()
    assert run(recipe, *words) == 2
    message = capfd.readouterr().err
    assert "error: " in message
    assert "Traceback" not in message
    return message


def without_the_package(
    code: str, *words: object, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in `folder`, in a new process that cannot import the package and has its own cache of code."""
    return subprocess.run(
        [sys.executable, "-I", "-c", GUARD + code, *map(str, words)],
        env={**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), **environment},
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
