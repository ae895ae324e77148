"""Defaults by backbone: those of the quick start for the embedded one, under whatever a user states."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.pretrained import locate
from qwen_task_heads.training.backbone_defaults import (
    EMBEDDED_OPTIONS,
    EMBEDDED_RATES,
    LEARNING_RATES,
    options_for,
    rates_for,
)
from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments
from qwen_task_heads.training.sft_arguments import parse_sft_arguments
from qwen_task_heads.training.sweep_arguments import parse_sweep_arguments
from qwen_task_heads.training.title_arguments import parse_title_arguments

QUICK_START = Path(__file__).parents[2] / "recipes" / "configs" / "quick_start_embedded.yaml"
CPU = ["--use_cpu", "true"]
PARSERS = {
    "titles": parse_title_arguments,
    "classifier": parse_classifier_arguments,
    "sft": parse_sft_arguments,
    "heads": parse_sweep_arguments,
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def parsed(recipe: str, *words: str) -> dict:
    """Return all options of the three groups by name."""
    return {name: value for group in PARSERS[recipe](words) for name, value in vars(group).items()}


def test_a_launch_without_options_is_the_quick_start():
    bare = [asdict(group) for group in parse_title_arguments(CPU)]
    file = [asdict(group) for group in parse_title_arguments(["--config", str(QUICK_START), *CPU])]
    assert bare == file


@pytest.mark.parametrize("recipe", PARSERS)
def test_every_recipe_uses_the_embedded_data_and_backbone_by_default(recipe):
    options = parsed(recipe, *CPU)
    assert (options["dataset_name"], options["model_name_or_path"]) == ("embedded", "embedded")
    assert options["output_dir"] == f"runs/{recipe}"
    assert {name: options[name] for name in EMBEDDED_OPTIONS[recipe]} == EMBEDDED_OPTIONS[recipe]
    assert options["learning_rate"] > 5e-4  # a backbone of 1.7 M parameters learns nothing at the usual rates


@pytest.mark.parametrize("recipe", PARSERS)
def test_other_backbones_keep_the_defaults_of_the_dataclasses(recipe):
    options = parsed(recipe, "--model_name_or_path", "Qwen/Qwen2.5-0.5B", *CPU)
    usual = {"heads": 10.0}.get(recipe, 3.0)
    assert (options["num_train_epochs"], options.get("pooling"), options["seed"]) == (usual, None, 42)


def test_other_data_keeps_the_defaults_of_the_backbone():
    assert parsed("titles", "--dataset_name", "clicks.jsonl", *CPU)["pooling"] == "mean"


def test_given_options_win(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("pooling: last\nseed: 5\n")
    options = parsed("titles", "--config", str(file), "--seed", "7", "--learning_rate", "3e-4", *CPU)
    assert (options["pooling"], options["seed"], options["learning_rate"]) == ("last", 7, 3e-4)
    assert options["max_length"] == EMBEDDED_OPTIONS["titles"]["max_length"]


@pytest.mark.parametrize("words", [["--model-name-or-path", "X/y"], ["--model_name_or_path=X/y"]])
def test_a_backbone_is_recognised_in_every_form_of_the_option(words):
    assert parsed("titles", *words, *CPU)["pooling"] is None


def test_a_backbone_of_the_config_is_used_unless_the_command_line_names_one(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("model_name_or_path: X/y\n")
    words = ["--config", str(file), *CPU]
    assert parsed("titles", *words)["pooling"] is None
    assert parsed("titles", *words, "--model_name_or_path", "embedded")["pooling"] == "mean"


def test_the_first_line_names_model_data_and_options(capfd):
    titles, training, model = parse_title_arguments(CPU)
    training.announce(titles, model)
    line = capfd.readouterr().out
    assert line.count("\n") == 1
    assert all(word in line for word in ("title scorer", "runs/titles", "--dataset_name", "--help"))
    words = ["--model_name_or_path", "X/y", "--dataset_name", "mine.jsonl", "--output_dir", "there", *CPU]
    titles, training, model = parse_title_arguments(words)
    training.announce(titles, model)
    line = capfd.readouterr().out
    assert all(word in line for word in ("X/y", "mine.jsonl", "there"))
    assert "embedded" not in line


@pytest.mark.parametrize("base", [EMBEDDED, "another"])
def test_a_model_trained_on_the_embedded_backbone_keeps_its_learning_rates(tmp_path, base):
    (tmp_path / "config.json").write_text(json.dumps({"backbone_name_or_path": locate(base)}))
    options = options_for("classifier", str(tmp_path))
    if base != EMBEDDED:
        assert (options, rates_for("classifier", str(tmp_path))) == ({}, LEARNING_RATES["classifier"])
        return
    assert rates_for("classifier", str(tmp_path)) == EMBEDDED_RATES["classifier"]
    assert options["warmup_steps"] == EMBEDDED_OPTIONS["classifier"]["warmup_steps"]
    assert "pooling" not in options  # that of the model
