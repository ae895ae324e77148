"""Recipes run for real in tests: in this process, or in a child of a fork server that has imported torch.

A fresh process would spend most of its time on imports. A few true launches are marked slow.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

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
