"""The sweep recipe, run for real: its folder is a model like any other, and LoRA goes on from its head."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path

import launching
import pytest
import torch
import yaml
from launching import MACHINE
from safetensors.torch import load_file

from qwen_task_heads import Scorer, load
from qwen_task_heads.training.sweep_arguments import parse_sweep_arguments

ROOT = Path(__file__).parents[2]
RECIPE, CLASSIFY = ROOT / "recipes" / "sweep_heads.py", ROOT / "recipes" / "classify.py"
TITLES = ROOT / "recipes" / "reward_titles.py"
WORDS = {"sport": "goal match team", "money": "bank price tax", "health": "doctor sleep diet"}
refused = partial(launching.refused, RECIPE)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Texts whose words tell their labels."""
    folder = tmp_path_factory.mktemp("texts")
    for split, count in (("train", 90), ("dev", 36), ("test", 30)):
        rows = []
        for number in range(count):
            label = list(WORDS)[number % 3]
            word = WORDS[label].split()[(number // 3) % 3]
            rows.append({"text": f"{split} {number} {'very ' * (number % 5)}{word} today", "label": label})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def words(data: Path, base: str, output: Path, **changes: object) -> list[object]:
    """The words of a small sweep."""
    options = {
        "model_name_or_path": base, "dataset_name": data, "output_dir": output, "max_seq_length": 32,
        "poolings": ["last", "mean"], "heads": ["linear", "mlp:8"], "seeds": [0, 1], "learning_rate": 1e-2,
        "num_train_epochs": 4, "per_device_train_batch_size": 16, "instruction": "Topic? ",
    } | changes  # fmt: skip
    found: list[object] = [*MACHINE]
    for name, value in options.items():
        found += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return found


@pytest.fixture(scope="module")
def swept(data, bases, tmp_path_factory) -> tuple[Path, str]:
    """Folder and output of a sweep that had to take layer 1."""
    root = tmp_path_factory.mktemp("sweep")
    options = words(data, bases["qwen3"], root / "head", feature_cache=root / "cache", tolerance=1.0)
    printed = launching.finished(RECIPE, options, root / "log")
    return root / "head", printed


def test_the_folder_is_a_model_like_any_other(swept, bases) -> None:
    folder, _ = swept
    model = load(str(folder))
    assert len(model.model.layers) == model.config.backbone_layers == 1
    assert model.config.backbone_name_or_path == bases["qwen3"]
    names = list(load_file(folder / "adapter/adapter_model.safetensors"))
    assert names
    assert all(name.startswith("base_model.model.score.") for name in names)
    metrics = json.loads((folder / "metrics.json").read_text())
    curve = json.loads((folder / "early_exit.json").read_text())
    assert curve["figure"] == "accuracy"
    assert [point["layer"] for point in curve["points"]] == [1, 2]
    assert curve["chosen"]["layer"] == 1
    found = metrics["dev"]["this model"]["accuracy"]["value"]
    assert found >= curve["points"][0]["value"] - 1e-9  # the best seed is at least the mean of them
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"early_exit.json", "early_exit.png", "README.md"} <= set(manifest["files"])
    assert manifest["settings"]["loss"] == "cross_entropy"
    answers = Scorer(str(folder)).predict(["a goal today"])
    assert answers[0].label in WORDS


def test_it_says_what_was_tried_and_what_to_type(swept) -> None:
    folder, printed = swept
    assert "8 heads with 2 seeds each; the best on dev" in printed
    assert "TF-IDF, linear" in printed
    assert "ms per text" in printed
    command = shlex.split(printed.strip().splitlines()[-1])
    assert command[:4] == ["accelerate", "launch", "recipes/classify.py", "--model_name_or_path"]
    assert command[command.index("--init_head") + 1] == str(folder)
    assert command[command.index("--instruction") + 1] == "Topic? "


@pytest.mark.slow
def test_the_command_of_the_readme_is_enough(swept, data, bases, tmp_path) -> None:
    """`--use_peft --init_head runs/head` on a sweep that chose one layer of two, and a template."""
    folder, _ = swept
    options = {"model_name_or_path": bases["qwen3"], "dataset_name": data, "output_dir": tmp_path / "lora"}
    options |= {"init_head": folder, "max_steps": 1, "eval_strategy": "epoch", "lora_r": 4}
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    launching.finished(
        CLASSIFY, ["--use_peft", *given, *MACHINE, "--eval_on_start", "true"], tmp_path / "log"
    )
    entries = json.loads((tmp_path / "lora" / "checkpoint-1" / "trainer_state.json").read_text())[
        "log_history"
    ]
    won = json.loads((folder / "metrics.json").read_text())["dev"]["this model"]
    assert entries[0]["eval_accuracy"] == pytest.approx(won["accuracy"]["value"])
    model = load(str(tmp_path / "lora"))
    assert model.config.backbone_layers == load(str(folder)).config.backbone_layers == 1


@pytest.mark.slow
def test_lora_starts_where_the_sweep_ended(swept, tmp_path) -> None:
    """The command that the sweep prints, with a few steps: its first look at dev is the sweep's last."""
    folder, printed = swept
    command = shlex.split(printed.strip().splitlines()[-1])[3:]
    command[command.index("--output_dir") + 1] = str(tmp_path / "lora")
    few = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "per_device_train_batch_size": 8, "lora_r": 4}
    more = [word for name, value in few.items() for word in (f"--{name}", value)]
    strategy = ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_on_start", "true"]
    launching.finished(CLASSIFY, [*command, *MACHINE, *more, *strategy], tmp_path / "log")
    state = json.loads((tmp_path / "lora" / "checkpoint-2" / "trainer_state.json").read_text())
    first = next(entry for entry in state["log_history"] if "eval_loss" in entry)
    won = json.loads((folder / "metrics.json").read_text())["dev"]["this model"]
    assert first["step"] == 0
    assert first["eval_accuracy"] == pytest.approx(won["accuracy"]["value"])
    assert first["eval_loss"] == pytest.approx(won["log_loss"]["value"], abs=1e-6)
    tuned, base = load(str(tmp_path / "lora")), load(str(folder))
    assert tuned.config.backbone_layers == 1
    ids = torch.arange(5, 15)[None]
    assert not torch.equal(tuned(ids).logits, base(ids).logits)


@pytest.mark.slow
def test_a_full_model_of_all_layers_from_a_second_sweep_over_kept_features(
    data, bases, swept, tmp_path
) -> None:
    cache = swept[0].parent / "cache"
    kept = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(kept) == 4
    options = {"feature_cache": cache, "save_as": "full", "layers": [2], "losses": ["focal", "cross_entropy"]}
    options |= {"focal_gamma": 1.0, "label_smoothing_factor": 0.1}
    launching.finished(RECIPE, words(data, bases["qwen3"], tmp_path / "full", **options), tmp_path / "log")
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == kept
    model = load(str(tmp_path / "full"))
    assert len(model.model.layers) == 2
    assert not (tmp_path / "full" / "adapter/adapter_config.json").exists()


def test_the_preset_is_read() -> None:
    path = ROOT / "recipes" / "configs" / "sweep.yaml"
    texts, training, _ = parse_sweep_arguments(
        ["--config", str(path), "--dataset_name", "x", "--output_dir", "y", "--use_cpu", "true"]
    )
    content = yaml.safe_load(path.read_text())
    assert texts.heads == content["heads"]
    assert training.head_training().warmup == 0.1
    assert training.learning_rate == 1e-2  # of the head, on the embedded backbone


def test_all_that_a_sweep_has_no_use_for_is_refused_at_once(data, tmp_path, capfd) -> None:
    options = words(data, "embedded", tmp_path / "out", poolings=["attention"], heads=["mlp"], seeds=[0])
    more = {
        "pooling": "mean", "loss": "focal", "init_head": "x", "token_dropout": 0.1, "max_steps": 3,
        "lr_scheduler_type": "cosine", "truncation": "windows", "save_as": "both", "tolerance": -1,
        "num_train_epochs": 1.5,
    }  # fmt: skip
    flags = [word for name, value in more.items() for word in (f"--{name}", value)]
    message = refused(capfd, *options, *flags, "--use_peft")
    assert "--pooling: found 'mean'; accepted: nothing" in message
    assert "give --poolings" in message
    for name in ("poolings", "heads", "use_peft", *more):
        assert f"--{name}: found" in message


def test_a_loss_of_another_problem_and_a_model_with_a_head(data, swept, tmp_path, capfd) -> None:
    given = words(data, "embedded", tmp_path / "out", losses=["bce"])
    assert "--losses: found 'bce' for single_label" in refused(capfd, *given)
    given = words(data, "embedded", tmp_path / "out")
    assert "--focal_gamma: found it with cross_entropy" in refused(capfd, *given, "--focal_gamma", 1)
    given = words(data, str(swept[0]), tmp_path / "out")
    assert "a model of ours, which has a head" in refused(capfd, *given)
    given = words(data, "embedded", tmp_path / "out", layers=[1, 7])
    assert "--layers: found [7]; accepted: 1 to 2" in refused(capfd, *given)


def test_the_title_recipe_takes_heads_too(swept, bases, tmp_path, capfd) -> None:
    options = [
        "--model_name_or_path",
        bases["qwen3"],
        "--init_head",
        swept[0],
        "--output_dir",
        tmp_path / "t",
    ]
    message = launching.refused(TITLES, capfd, *options, *MACHINE)
    assert "--init_head: found a 'pooled_classifier' model" in message


@pytest.mark.slow
def test_titles_go_on_from_a_head_too(bases, tmp_path) -> None:
    pairs = [{"chosen": f"A good title {i}", "rejected": f"A bad one {i}", "group_id": i} for i in range(40)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    options = {"max_length": 32, "pooling": "mean", "backbone_layers": 1, "eval_on_start": "true"}
    first = launching.short(data, bases["llama"], tmp_path / "one", freeze_backbone="true", **options)
    launching.finished(TITLES, first, tmp_path / "log1")
    options["init_head"] = tmp_path / "one"
    second = launching.short(data, bases["llama"], tmp_path / "two", **options)
    launching.finished(TITLES, [*second, "--use_peft"], tmp_path / "log2")
    state = json.loads((tmp_path / "two" / "checkpoint-2" / "trainer_state.json").read_text())
    start = next(entry for entry in state["log_history"] if "eval_loss" in entry)
    won = json.loads((tmp_path / "one" / "metrics.json").read_text())["dev"]["this model"]
    assert start["eval_loss"] == pytest.approx(won["log_loss"]["value"], abs=1e-6)


def test_a_frozen_loop_says_that_a_sweep_is_faster() -> None:
    from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments

    given = ["--dataset_name", "x", "--output_dir", "y", "--use_cpu", "true"]
    assert "sweep_heads.py" in parse_classifier_arguments([*given, "--freeze_backbone", "true"])[0].notes()[0]
    assert parse_classifier_arguments(given)[0].notes() == []
