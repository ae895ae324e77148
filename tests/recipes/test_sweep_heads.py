"""The sweep recipe: its folder loads as a model, and LoRA continues from its head."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import launching
import pytest
import torch
import yaml
from launching import MACHINE
from safetensors.torch import load_file

from qwen_task_heads import Scorer, load
from qwen_task_heads.training.head_sweep import Combination, parse_layers
from qwen_task_heads.training.sweep_arguments import (
    TitleSweepArguments,
    parse_sweep_arguments,
)
from qwen_task_heads.training.sweep_commands import warm_start_command

ROOT = Path(__file__).parents[2]
RECIPE, CLASSIFY = ROOT / "recipes" / "sweep_heads.py", ROOT / "recipes" / "classify.py"
TITLES = ROOT / "recipes" / "reward_titles.py"
WORDS = {"sport": "goal match team", "money": "bank price tax", "health": "doctor sleep diet"}
refused = partial(launching.refused, RECIPE)


def next_command(printed: str) -> tuple[list[str], list[str]]:
    """Return the command of the last printed line: its two words (`qth classify`) and its options."""
    words = shlex.split(printed.strip().splitlines()[-1])
    return words[:2], words[2:]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Texts whose words determine their labels."""
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
    """Return the words of a small sweep."""
    options = {
        "model_name_or_path": base,
        "dataset_name": data,
        "output_dir": output,
        "max_seq_length": 32,
        "poolings": ["last", "mean"],
        "heads": ["linear", "mlp:8"],
        "seeds": [0, 1],
        "learning_rate": 1e-2,
        "num_train_epochs": 4,
        "per_device_train_batch_size": 16,
        "instruction": "Topic? ",
    } | changes
    found: list[object] = [*MACHINE]
    for name, value in options.items():
        found += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return found


@pytest.fixture(scope="module")
def swept(data, bases, tmp_path_factory) -> tuple[Path, str]:
    """Return folder and output of a sweep with layer 1 alone."""
    root = tmp_path_factory.mktemp("sweep")
    options = words(data, bases["qwen3"], root / "head", feature_cache=root / "cache", tolerance=1.0)
    printed = launching.finished(RECIPE, options, root / "log")
    return root / "head", printed


def test_the_folder_of_a_sweep_loads_as_a_model(swept, bases) -> None:
    folder, printed = swept
    model = load(str(folder))
    assert len(model.model.layers) == model.config.backbone_layers == 1
    assert model.config.backbone_name_or_path == bases["qwen3"]
    names = list(load_file(folder / "adapter/adapter_model.safetensors"))
    assert names
    assert all(name.startswith("base_model.model.score.") for name in names)
    metrics = json.loads((folder / "metrics.json").read_text())
    launching.estimated(metrics["train"], printed)
    curve = json.loads((folder / "early_exit.json").read_text())
    assert curve["figure"] == "accuracy"
    assert [point["layer"] for point in curve["points"]] == [1, 2]
    assert (curve["chosen"]["layer"], curve["chosen"]["layers"]) == (1, [1])
    assert [point["combination"]["layers"] for point in curve["points"]] == [[1], [2]]
    found = metrics["dev"]["this model"]["accuracy"]["value"]
    # Of an MLP the best seed is at least the mean of them; a linear head has one value.
    assert found >= curve["points"][0]["value"] - 1e-9
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"early_exit.json", "early_exit.png", "README.md"} <= set(manifest["files"])
    assert manifest["settings"]["loss"] == "cross_entropy"
    answers = Scorer(str(folder)).predict(["a goal today"])
    assert answers[0].label in WORDS


def test_the_output_lists_the_results_and_the_next_command(swept) -> None:
    folder, printed = swept
    assert "4 linear heads, solved once; 4 MLPs, trained with 2 seeds; the best on dev" in printed
    assert "TF-IDF, linear" in printed
    assert "ms per text" in printed
    start, command = next_command(printed)
    assert start == ["qth", "classify"]
    assert command[command.index("--init_head") + 1] == str(folder)
    assert command[command.index("--instruction") + 1] == "Topic? "


@pytest.mark.slow
def test_the_command_of_the_readme_runs(swept, data, bases, tmp_path) -> None:
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
def test_lora_starts_with_the_metrics_of_the_sweep(swept, tmp_path) -> None:
    """The first evaluation of the printed command has the metrics of the sweep."""
    folder, printed = swept
    _, command = next_command(printed)
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


# --- titles ---


@pytest.fixture(scope="module")
def titles(tmp_path_factory) -> dict[str, Path]:
    """Write pairs, and arms of experiments with clicks, whose first word determines the quality."""
    folder = tmp_path_factory.mktemp("titles")
    numbers = range(80)
    rows = {
        "pairs": [
            {"chosen": f"A good title {i % 7}", "rejected": f"A bad one {i % 5}", "group_id": i}
            for i in numbers
        ],
        "arms": [
            {"headline": f"{word} title {i}", "clicks": base + 7 * i % 11, "impressions": 300, "test_id": i}
            for i in numbers
            for word, base in (("Good", 60), ("Plain", 40), ("Bad", 20))
        ],
    }
    for name, found in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.jsonl" for name in rows}


def title_words(data: Path, base: str, output: Path, **changes: object) -> list[object]:
    """Return the words of a small sweep over titles."""
    options = {
        "task": "titles", "model_name_or_path": base, "dataset_name": data, "output_dir": output,
        "max_length": 32, "layers": [1, 2, "1+2"], "poolings": ["mean"], "heads": ["linear", "mlp:8"],
        "seeds": [0, 1], "num_train_epochs": 2, "per_device_train_batch_size": 16,
        "penalties": [1, 0.1, 0.01], "instruction": "Title: ", "dev_fraction": 0.25,
    } | changes  # fmt: skip
    found: list[object] = [*MACHINE]
    for name, value in options.items():
        found += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return found


@pytest.fixture(scope="module", params=["pairs", "arms"])
def title_sweep(request, titles, bases, tmp_path_factory) -> tuple[Path, str, str]:
    """Return folder, output and data of a sweep over titles."""
    root = tmp_path_factory.mktemp(f"sweep-{request.param}")
    more = {"losses": ["soft", "plackett_luce"]} if request.param == "arms" else {}
    options = title_words(titles[request.param], bases["qwen3"], root / "head", **more)
    return root / "head", launching.finished(RECIPE, options, root / "log"), request.param


def test_a_sweep_over_titles_saves_a_scorer(title_sweep, bases) -> None:
    folder, printed, kind = title_sweep
    losses = 2 if kind == "arms" else 1
    linear, mlps = (f"{3 * losses} {name}" for name in ("linear heads", "MLPs"))
    assert f"{linear}, solved once; {mlps}, trained with 2 seeds; the best on dev" in printed
    assert "1+2" in printed
    assert "TF-IDF" in printed
    curve = json.loads((folder / "early_exit.json").read_text())
    assert curve["figure"] == "pair_accuracy"
    assert [point["layer"] for point in curve["points"]] == [1, 2]
    chosen, metrics = curve["chosen"], json.loads((folder / "metrics.json").read_text())["dev"]
    assert chosen["layer"] == max(chosen["layers"])
    assert metrics["this model"]["pair_accuracy"]["value"] == 1.0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"early_exit.json", "early_exit.png", "README.md"} <= set(manifest["files"])
    assert manifest["settings"]["loss"] == chosen["loss"]
    model = load(str(folder))
    assert model.config.backbone_name_or_path == bases["qwen3"]
    assert len(model.model.layers) == chosen["layer"]
    word = ("A good title 3", "A bad one 3") if kind == "pairs" else ("Good title 99", "Bad title 99")
    good, bad = Scorer(str(folder)).score([*word])
    assert good > bad


def test_the_command_for_titles_names_their_recipe(title_sweep) -> None:
    folder, printed, _ = title_sweep
    start, command = next_command(printed)
    assert start == ["qth", "titles"]
    assert command[command.index("--init_head") + 1] == str(folder)
    assert command[command.index("--instruction") + 1] == "Title: "
    assert command[command.index("--max_length") + 1] == "32"
    assert "--task" not in command


@pytest.mark.parametrize("task", ["texts", "titles"])
def test_the_command_loads_the_backbone_as_the_sweep_did(task) -> None:
    given = ["--task", task, "--output_dir", "runs/head", "--use_cpu", "true"]
    loading = ["--model_revision", "abc123", "--dtype", "bfloat16", "--attn_implementation", "eager"]
    parsed = parse_sweep_arguments([*given, *loading])
    chosen = Combination(layers=(1, 2), pooling="mean", head_sizes=(), loss="bradley_terry")
    command = warm_start_command(*parsed, folder="runs/head", chosen=chosen)
    for option, value in zip(loading[::2], loading[1::2], strict=True):
        assert command[command.index(option) + 1] == value
    assert command[command.index("--head_layers") + 1 :][:2] == ["1", "2"]
    plain = warm_start_command(*parse_sweep_arguments(given), folder="runs/head", chosen=chosen)
    assert not set(loading[::2]) & set(plain)


def first_look(command: list[str], folder: Path) -> dict[str, float]:
    """Return the first evaluation of the command that a sweep prints, with one step."""
    command[command.index("--output_dir") + 1] = str(folder / "lora")
    few = ["--max_steps", "1", "--per_device_train_batch_size", "8", "--lora_r", "4"]
    looks = ["--eval_strategy", "epoch", "--eval_on_start", "true"]
    launching.finished(TITLES, [*command, *MACHINE, *few, *looks], folder / "log")
    state = json.loads((folder / "lora" / "checkpoint-1" / "trainer_state.json").read_text())
    return next(entry for entry in state["log_history"] if "eval_loss" in entry)


@pytest.mark.slow
def test_lora_on_titles_starts_with_the_metrics_of_the_sweep(title_sweep, tmp_path) -> None:
    folder, printed, _ = title_sweep
    first = first_look(next_command(printed)[1], tmp_path)
    won = json.loads((folder / "metrics.json").read_text())["dev"]["this model"]
    chosen = json.loads((folder / "early_exit.json").read_text())["chosen"]
    assert first["step"] == 0
    assert first["eval_accuracy"] == pytest.approx(won["pair_accuracy"]["value"])
    if chosen["loss"] == "bradley_terry":
        assert first["eval_loss"] == pytest.approx(won["log_loss"]["value"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "mlp:8"])
def test_lora_on_titles_starts_from_a_head_of_two_layers(titles, bases, tmp_path, head) -> None:
    options = title_words(titles["pairs"], bases["llama"], tmp_path / "head", layers=["1+2"], heads=[head])
    printed = launching.finished(RECIPE, options, tmp_path / "log1")
    assert load(str(tmp_path / "head")).config.head_layers == [1, 2]
    first = first_look(next_command(printed)[1], tmp_path)
    won = json.loads((tmp_path / "head" / "metrics.json").read_text())["dev"]["this model"]
    assert first["eval_loss"] == pytest.approx(won["log_loss"]["value"], abs=1e-6)
    assert load(str(tmp_path / "lora")).config.head_layers == [1, 2]


def test_an_unknown_task_and_data_of_the_other_task_are_refused(titles, data, bases, tmp_path, capfd) -> None:
    given = title_words(titles["pairs"], bases["qwen3"], tmp_path / "out")
    assert "--task: found 'titel'" in refused(capfd, *given, "--task", "titel")
    message = refused(capfd, *title_words(data, bases["qwen3"], tmp_path / "out"))
    assert "--task: found 'titles'" in message
    assert "give --task texts" in message
    for name in titles:
        message = refused(capfd, *words(titles[name], bases["qwen3"], tmp_path / "out"))
        assert "give --task titles" in message


def test_losses_are_refused_before_the_backbone_runs(titles, bases, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(
        "qwen_task_heads.training.features.extract_features", lambda *_, **__: pytest.fail("it ran")
    )
    given = title_words(titles["pairs"], bases["qwen3"], tmp_path / "out")
    assert "--losses: found 'plackett_luce'" in refused(capfd, *given, "--losses", "plackett_luce")
    message = refused(capfd, *given, "--losses", "bradley_terry", "soft")
    assert "--losses: " in message
    assert "'soft'" in message
    assert "preference" in message


# --- presets and refusals ---


def test_the_preset_of_the_quick_start_is_read() -> None:
    path = ROOT / "recipes" / "configs" / "quick_start.yaml"
    given = ["--config", str(path), "--output_dir", "y", "--use_cpu", "true"]
    options, training, model = parse_sweep_arguments(given)
    content = yaml.safe_load(path.read_text())
    assert isinstance(options, TitleSweepArguments)
    assert (options.heads, model.model_name_or_path) == (content["heads"], content["model_name_or_path"])
    assert (options.losses, training.max_length) == (content["losses"], content["max_length"])
    depth = SimpleNamespace(num_hidden_layers=30, model_type="llama")
    assert options.layers_of(depth) == [parse_layers(layer) for layer in content["layers"]]
    assert isinstance(parse_sweep_arguments([*given, "--task", "titles"])[0], TitleSweepArguments)


def test_the_preset_is_read() -> None:
    path = ROOT / "recipes" / "configs" / "sweep.yaml"
    texts, training, _ = parse_sweep_arguments(
        ["--config", str(path), "--dataset_name", "x", "--output_dir", "y", "--use_cpu", "true"]
    )
    content = yaml.safe_load(path.read_text())
    assert texts.heads == content["heads"]
    assert training.head_training().warmup == 0.1
    assert training.learning_rate == 1e-2  # of the head, on the embedded backbone


def test_options_that_a_sweep_cannot_use_are_refused_in_one_error(data, tmp_path, capfd) -> None:
    options = words(data, "embedded", tmp_path / "out", poolings=["attention"], heads=["mlp"], seeds=[0])
    more = {
        "pooling": "mean",
        "loss": "focal",
        "init_head": "x",
        "token_dropout": 0.1,
        "max_steps": 3,
        "lr_scheduler_type": "cosine",
        "truncation": "windows",
        "save_as": "both",
        "tolerance": -1,
        "num_train_epochs": 1.5,
    }
    flags = [word for name, value in more.items() for word in (f"--{name}", value)]
    message = refused(capfd, *options, *flags, "--use_peft")
    assert "--pooling: found 'mean'" in message
    assert "give --poolings" in message
    for name in ("poolings", "heads", "use_peft", *more):
        assert f"--{name}: found" in message


def test_a_loss_of_another_problem_type_and_a_model_with_a_head(data, swept, tmp_path, capfd) -> None:
    given = words(data, "embedded", tmp_path / "out", losses=["bce"])
    assert "--losses: found 'bce'" in refused(capfd, *given)
    given = words(data, "embedded", tmp_path / "out")
    assert "--focal_gamma: " in refused(capfd, *given, "--focal_gamma", 1)
    given = words(data, str(swept[0]), tmp_path / "out")
    assert "--model_name_or_path: " in refused(capfd, *given)
    given = words(data, "embedded", tmp_path / "out", layers=[1, 7])
    assert "--layers: found [7]" in refused(capfd, *given)


def test_the_title_recipe_refuses_the_head_of_a_classifier(swept, bases, tmp_path, capfd) -> None:
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
def test_titles_continue_from_a_head(bases, tmp_path) -> None:
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


def test_a_frozen_backbone_suggests_a_sweep() -> None:
    from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments

    given = ["--dataset_name", "x", "--output_dir", "y", "--use_cpu", "true"]
    assert (
        "sweep_heads.py" in parse_classifier_arguments([*given, "--freeze_backbone", "true"])[0].messages()[0]
    )
    assert parse_classifier_arguments(given)[0].messages() == []
