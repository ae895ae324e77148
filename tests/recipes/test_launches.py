"""Launches without options: each training recipe runs on what is embedded, into a folder of its own.

The quick variants run in this process for two steps; those marked slow are real launches to the end.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import launching
import pytest
from launching import MACHINE, RECIPES

from qwen_task_heads import cli
from qwen_task_heads.training.title_arguments import parse_title_arguments

LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
NAMES = {"reward_titles": "titles", "classify": "classifier", "sft_classify": "sft", "sweep_heads": "heads"}
SHORT = {
    "classify": ["--max_steps", 2, "--max_samples", 64],
    "sweep_heads": ["--max_samples", 64, "--num_train_epochs", 1, "--seeds", 0],
}
ROOT = RECIPES.parent


def launch(recipe: str, *words: object, cwd: Path) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Start a recipe by `accelerate launch`, and return its lines on standard output."""
    done = subprocess.run(
        [*LAUNCH, str(RECIPES / f"{recipe}.py"), *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    return done.stdout.splitlines(), done


@pytest.mark.parametrize("recipe", ["classify", pytest.param("sweep_heads", marks=pytest.mark.slow)])
def test_a_recipe_runs_with_its_defaults(recipe, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    assert launching.run(RECIPES / f"{recipe}.py", *MACHINE, *SHORT[recipe]) == 0
    printed = capfd.readouterr().out.splitlines()
    folder = f"runs/{NAMES[recipe]}"
    assert printed[0].startswith("Train ")
    assert folder in printed[0]
    assert json.loads((tmp_path / folder / "metrics.json").read_text())["data"]["test"]["rows"] == 200
    card = (tmp_path / folder / "README.md").read_text()
    assert "BANKING77" in card
    assert "Upworthy A/B" not in card


@pytest.mark.slow
def test_a_second_run_gets_a_folder_of_its_own_and_a_third_resumes_it(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = [*MACHINE, *SHORT["classify"], "--eval_strategy", "steps", "--eval_steps", 1]
    for number in (1, 2):
        assert launching.run(RECIPES / "classify.py", *words, "--learning_rate", number * 1e-3) == 0
    assert sorted(os.listdir("runs")) == ["classifier", "classifier-2"]
    capfd.readouterr()
    again = [*words, "--learning_rate", 2e-3, "--resume_from_checkpoint", "true"]
    assert launching.run(RECIPES / "classify.py", *again) == 0
    assert "runs/classifier-2" in capfd.readouterr().out.splitlines()[0]
    assert sorted(os.listdir("runs")) == ["classifier", "classifier-2"]
    # the newest folder is that of another run: named, and left as it is
    message = launching.refused(
        RECIPES / "classify.py", capfd, *words, "--learning_rate", 1e-3, "--resume_from_checkpoint", "true"
    )
    assert "classifier-2" in message
    assert "learning_rate" in message


# A model that writes labels learns slowly on a CPU: one epoch of three shows as much.
TO_THE_END = {
    "reward_titles": [],
    "classify": [],
    "sft_classify": ["--num_train_epochs", 1],
    "sweep_heads": [],
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", TO_THE_END)
def test_a_launch_without_options_ends_with_a_result(recipe, tmp_path):
    lines, done = launch(recipe, *TO_THE_END[recipe], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    titles = recipe == "reward_titles"
    metric = "pair_accuracy" if titles else "accuracy"
    assert lines[0].startswith("Train a title scorer" if titles else "Train ")
    assert titles or any(line.split()[:1] == ["accuracy"] for line in lines)
    metrics = json.loads((tmp_path / "runs" / NAMES[recipe] / "metrics.json").read_text())
    [ours] = [figures for name, figures in metrics["test"].items() if name == "this model"]
    assert ours[metric]["value"] > 0.5  # of two titles, or ten labels


def test_a_launch_without_options_equals_make_titles(tmp_path, monkeypatch):
    """Both parse to equal options if the pretrained weights are not available."""
    monkeypatch.chdir(tmp_path)
    *_, command = (ROOT / "Makefile").read_text().split("/qth titles ")
    words = shlex.split(command.split("; fi")[0])
    assert words[:2] == ["--config", "quick_start_embedded"]
    assert words.pop() == "$(OUTPUT)"  # empty unless RUN is given
    words[1] = str(cli.presets()[words[1]])
    parsed = []
    for given in (words, []):
        titles, training, model = parse_title_arguments([*given, *MACHINE])
        parsed.append([vars(titles), training.to_dict(), vars(model)])
    left = [{name for name in made if made[name] != bare[name]} for made, bare in zip(*parsed, strict=True)]
    assert left == [set(), set(), set()]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", NAMES)
def test_an_error_message_is_the_last_line(recipe, tmp_path):
    """One recipe runs under `accelerate launch`, the others in a child process."""
    words = ["--no_such_option", "1", "--output_dir", tmp_path / "runs"]
    if recipe == "classify":
        _, done = launch(recipe, *words, cwd=tmp_path)
        code, printed = done.returncode, done.stderr
    else:
        process = launching.start(RECIPES / f"{recipe}.py", [*words, *MACHINE], tmp_path / "log")
        process.join()
        code, printed = process.exitcode, (tmp_path / "log").read_text()
    assert code != 0
    assert printed.splitlines()[-1].startswith("error: --no_such_option")
    assert not (tmp_path / "runs").exists()
