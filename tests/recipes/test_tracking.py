"""`--report_to` on every recipe that trains a model of ours: what was measured is in the event file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import launching
import pytest

pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
HEADS = ["--poolings", "last", "--heads", "linear", "--seeds", "0", "--layers", "1"]
STEPS = [
    "--max_steps",
    "2",
    "--eval_strategy",
    "no",
    "--load_best_model_at_end",
    "false",
    "--save_strategy",
    "no",
]
RECIPES = {
    "reward_titles": [*STEPS, "--logging_steps", "1"],
    "classify": [*STEPS, "--logging_steps", "1"],
    "sft_classify": [*STEPS, "--logging_steps", "1"],
    "sweep_heads": [*HEADS, "--num_train_epochs", "1"],
}
SECRET = "hf_" + "datum" * 3 + "Z9" * 15


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of titles and of texts; a token stands in each row."""
    root = tmp_path_factory.mktemp("tracked")
    for split, count in (("train", 32), ("dev", 12)):
        titles, texts = [], []
        for number in range(count):
            titles.append(
                {"chosen": f"{split} {number} wins {SECRET}", "rejected": f"{split} {number} loses"}
            )
            texts.append({"text": f"{split} {number} {SECRET}", "label": ["sport", "trade"][number % 2]})
        for name, rows in (("titles", titles), ("texts", texts)):
            (root / name).mkdir(exist_ok=True)
            content = "".join(json.dumps(row) + "\n" for row in rows)
            (root / name / f"{split}.jsonl").write_text(content, encoding="utf-8")
    return root


def tracked(recipe: str, data: Path, base: str, folder: Path) -> str:
    """Run a recipe; give what it printed."""
    kind = "titles" if recipe == "reward_titles" else "texts"
    words = [*launching.MACHINE, "--report_to", "tensorboard", "--model_name_or_path", base]
    words += ["--dataset_name", data / kind, "--output_dir", folder, "--learning_rate", "1e-3"]
    return launching.finished(
        launching.RECIPES / f"{recipe}.py", [*words, *RECIPES[recipe]], folder.with_suffix(".log")
    )


SLOW = [
    pytest.param(recipe, marks=pytest.mark.slow)
    for recipe in ("reward_titles", "sft_classify", "sweep_heads")
]


@pytest.mark.parametrize("recipe", ["classify", *SLOW])
def test_figures_and_examples_are_tracked_and_no_secret_is(
    recipe: str, data: Path, bases: Any, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    printed = tracked(recipe, data, bases["qwen2"], folder)
    assert f"Tracked: tensorboard --logdir {folder / 'runs'}" in printed
    events = EventAccumulator(str(folder / "runs"))
    events.Reload()
    tags = events.Tags()
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    main = "pair_accuracy" if recipe == "reward_titles" else "accuracy"
    for scorer, figures in metrics["dev"].items():  # the model and the baselines
        name = scorer.replace(",", "").replace(" ", "_")
        (logged,) = events.Scalars(f"final/dev/{name}/{main}")
        assert logged.value == pytest.approx(figures[main]["value"])
    assert ("train/loss" in tags["scalars"]) is (recipe != "sweep_heads")
    (examples,) = events.Tensors("predictions/dev/text_summary")
    lines = examples.tensor_proto.string_val[0].decode().splitlines()
    assert len(lines) == 10
    assert all("***" in line and "probability: " in line for line in lines)
    held = b"".join(path.read_bytes() for path in (folder / "runs").iterdir())
    assert SECRET.encode() not in held
    assert str(tmp_path).encode() not in held


def test_a_tracker_that_is_not_there_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    words = [*launching.MACHINE, "--report_to", "comet_ml", "--dataset_name", tmp_path / "none"]
    words += ["--output_dir", tmp_path / "run"]
    process = launching.start(launching.RECIPES / "classify.py", words, tmp_path / "log")
    process.join()
    assert process.exitcode == 2
    said = (tmp_path / "log").read_text()
    assert "--report_to: found 'comet_ml'. Expected none, swanlab, tensorboard, trackio, wandb" in said
    assert not (tmp_path / "run").exists()
