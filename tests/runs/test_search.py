"""`--search`: trials in processes of their own, killed and continued, and the best one trained again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_task_heads.runs.search import open_study, searched, suggest, without
from qwen_task_heads.training.search_options import TRIAL, Range

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "classify.py")
STEPS = ["--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps"]
STEPS += ["--save_steps", "2", "--use_cpu", "true", "--per_device_train_batch_size", "8"]


def start(output: Path, space: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, RECIPE, "--output_dir", str(output), "--search_space", str(space)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *STEPS, *more], env=environment, start_new_session=True, **pipes)


def trials(output: Path) -> list[dict[str, Any]]:
    return json.loads((Path(f"{output}-search") / "trials.json").read_text(encoding="utf-8"))


def test_options_are_left_out_with_their_values() -> None:
    words = ["--search", "3", "--columns", "a", "b", "--lora-r=8", "--use_peft", "--no_bf16"]
    assert without(words, ["search", "columns", "lora_r"]) == ["--use_peft", "--no_bf16"]
    assert without(words, ["bf16", "use_peft"]) == words[:6]


def test_a_study_is_opened_again_with_its_trials(tmp_path: Path) -> None:
    place = str(tmp_path / "trials.log")
    study = open_study(place, "run", seed=0)
    trial = study.ask()
    value = suggest(trial, "learning_rate", Range(low=1e-5, high=1e-3, log=True))
    assert 1e-5 <= value <= 1e-3
    again = open_study(place, "run", seed=0)
    assert [one.number for one in again.trials] == [0]
    assert again.trials[0].params == {"learning_rate": value}
    study.tell(trial, 0.5)
    assert again.best_value == 0.5


def test_a_trial_whose_config_names_the_search_does_not_search(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = (SimpleNamespace(search=3), None, None)
    monkeypatch.setenv(TRIAL, "trials.log\nrun\n0")
    assert searched(lambda _: parsed, []) is parsed


@pytest.mark.slow
def test_a_killed_search_loses_no_trial_and_trains_the_best_options(tmp_path: Path) -> None:
    output, space = tmp_path / "run", tmp_path / "space.yaml"
    space.write_text("learning_rate: [0.001, 0.00001]\n", encoding="utf-8")
    process = start(output, space, "--search", "3", "--learning_rate", "0.001")
    deadline = time.monotonic() + 600
    table, second = Path(f"{output}-search") / "trials.json", Path(f"{output}-search") / "trial-1"
    while not (table.exists() and second.exists()) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    first = trials(output)
    assert [(one["trial"], one["options"]) for one in first] == [(0, {"learning_rate": 0.001})]
    process = start(output, space, "--search", "3", "--learning_rate", "0.001")
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed[-3000:]
    done = trials(output)
    assert done[0] == first[0]
    assert [one["trial"] for one in done] == [0, 1, 2]
    assert {one["state"] for one in done} <= {"complete", "pruned"}
    assert (output / "metrics.json").is_file()
    assert not list(Path(f"{output}-search").glob("trial-*/"))
    assert (Path(f"{output}-search") / "trials.png").stat().st_size > 1000
    values = {one["trial"]: one["value"] for one in done if one["value"] is not None}
    best = [done[trial]["options"] for trial, value in values.items() if value == max(values.values())]
    shown = next(line for line in printed.splitlines() if line.startswith("search: best"))
    assert any(f"learning_rate {options['learning_rate']:g}" in shown for options in best)


@pytest.mark.slow
def test_a_failed_trial_is_kept_and_a_wrong_space_is_refused(tmp_path: Path) -> None:
    output, space = tmp_path / "run", tmp_path / "space.yaml"
    space.write_text("head: [mlp]\n", encoding="utf-8")  # without --head_sizes
    process = start(output, space, "--search", "1")
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 2, printed[-3000:]
    assert [one["state"] for one in trials(output)] == ["fail"]
    space.write_text("learning_rat: [1]\n", encoding="utf-8")
    process = start(tmp_path / "other", space, "--search", "1")
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 2
    assert "learning_rate" in printed
