"""The GRPO recipe: two steps of a tiny model with a trained scorer as its reward, and its errors."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
import yaml
from rendered_card import Rendered
from transformers import AutoModelForCausalLM

from qwen_task_heads import build, load_tokenizer, save
from qwen_task_heads.errors import TaskHeadsError, shorten
from qwen_task_heads.inference.completions import title_of
from qwen_task_heads.pretrained import locate
from qwen_task_heads.runs.title_generator import check_named

RECIPE = launching.RECIPES / "grpo_titles.py"


@pytest.fixture(scope="module")
def scorer(bases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build(bases["qwen2"], pooling="mean")
    torch.nn.init.normal_(model.score.weight, std=3.0)
    constants = {
        "reward_mean": 0.0,
        "reward_std": 2.0,
        "reward_length_mean": 30.0,
        "reward_length_slope": 0.01,
    }
    model.config.update(constants)
    return save(
        model, tokenizer=load_tokenizer(bases["qwen2"]), folder=tmp_path_factory.mktemp("s") / "scorer"
    )


def words(scorer: Path, base: str, folder: Path, **changes: Any) -> list[object]:
    source = folder / "articles.jsonl"
    source.write_text("".join(json.dumps({"text": f"Article {i} on rest."}) + "\n" for i in range(8)))
    options = {
        "model_name_or_path": base,
        "reward_model": scorer,
        "dataset_name": source,
        "output_dir": folder / "run",
        "max_steps": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "with_context": "true",
        "length_penalty": 0.5,
    } | changes
    return [*launching.MACHINE, *(word for name, value in options.items() for word in (f"--{name}", value))]


def test_two_steps_train_the_generator_and_report_its_rewards(scorer, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracked = {"report_to": "tensorboard", "run_name": "hf_" + "datum" * 3 + "Z9" * 15}
    given = words(scorer, "embedded", tmp_path, save_strategy="steps", save_steps=1, **tracked)
    printed = launching.finished(RECIPE, given, tmp_path / "log")
    assert "Trained a title generator for 2 steps on 8 texts in " in printed
    rewards = re.search(r"Mean reward: (\S+) at the first logging step, (\S+) at the last", printed)
    assert all(math.isfinite(float(value)) for value in rewards.groups())
    # the titles of the last step by reward, of which three are printed
    rows = [json.loads(line) for line in (tmp_path / "run" / "titles.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert [row["reward"] for row in rows] == sorted((row["reward"] for row in rows), reverse=True)
    assert all("Article " in row["prompt"] and row["title"] == title_of(row["completion"]) for row in rows)
    assert f"{rows[0]['reward']:6.2f}  {shorten(rows[0]['title'], 90)}" in printed
    # the reward is logged under its own name, with its statistics
    for name in ("rewards/title_reward/mean", "title_characters", "without_title"):
        assert f"'{name}'" in printed
    # the tracker has the rewards and the settings, and neither texts nor secrets
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "runs"))
    events.Reload()
    assert {"train/reward", "train/without_title"} <= set(events.Tags()["scalars"])
    assert "settings/text_summary" in events.Tags()["tensors"]
    held = b"".join(path.read_bytes() for path in (tmp_path / "run" / "runs").iterdir())
    assert tracked["run_name"].encode() not in held
    assert b"Article " not in held
    assert str(tmp_path).encode() not in held
    assert f"Tracked: tensorboard --logdir {tmp_path / 'run' / 'runs'}" in printed
    # the folder has a card with the metrics, and no pickle
    assert (tmp_path / "run" / "checkpoint-1" / "optimizer.pt").is_file()
    assert not list((tmp_path / "run").rglob("training_args.bin"))
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    shown = dict(row for table in Rendered(card).titles["Evaluation"] for row in table)
    first, last = (float(value) for value in rewards.groups())
    ends = re.fullmatch(r"(\S+) at step 1, (\S+) at step 2", shown["mean reward"])
    assert [float(value) for value in ends.groups()] == pytest.approx([first, last], abs=0.006)
    assert shown["preference of readers"] == "not evaluated"
    assert str(tmp_path) not in card
    assert "Article " not in card
    before = AutoModelForCausalLM.from_pretrained(locate("embedded")).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


@pytest.mark.slow
def test_wandb_has_the_tables_of_completions(scorer, tmp_path):
    pytest.importorskip("wandb")
    given = words(scorer, "embedded", tmp_path, report_to="wandb", log_completions="true")
    log = tmp_path / "log"
    launching.join(launching.fork(launching.run, RECIPE, *given, log=log, WANDB_MODE="offline"), log)
    tables = [json.loads(path.read_text()) for path in (tmp_path / "run" / "wandb").rglob("*.table.json")]
    assert {table["data"][0][table["columns"].index("step")] for table in tables} == {1, 2}
    for table in tables:
        assert {"prompt", "completion", "advantage"} <= set(table["columns"])
        assert "Article " in json.dumps(table["data"])


def test_bad_options_and_rows_are_refused_with_a_message(scorer, bases, tmp_path, capfd):
    given = words(scorer, bases["qwen2"], tmp_path, text_column="body")
    message = launching.refused(RECIPE, capfd, *given)
    assert "8 problems:" in message
    assert "articles.jsonl:1: found no text in column 'body'" in message
    assert "--text_column" in message
    given = words(scorer, bases["qwen2"], tmp_path, lenght_penalty=0.5)
    assert "lenght_penalty" in launching.refused(RECIPE, capfd, *given)
    message = launching.refused(RECIPE, capfd, "--reward-model", scorer, "--dataset_name=x")
    assert "2 problems:" in message
    assert "--output_dir: found nothing" in message
    assert "--model_name_or_path: found nothing" in message
    preset = launching.RECIPES / "configs/grpo_titles.yaml"  # names a model
    message = launching.refused(RECIPE, capfd, f"--config={preset}", "--output_dir", tmp_path)
    assert "--model_name_or_path" not in message
    assert "--reward_model: found nothing" in message
    assert "--dataset_name: found nothing" in message
    message = launching.refused(RECIPE, capfd, "--config", tmp_path / "none.yaml")
    assert "--config: found" in message
    given = words(scorer, bases["qwen2"], tmp_path, length_penalty=5)
    assert "--length_penalty: found 5.0" in launching.refused(RECIPE, capfd, *given)


def test_the_scorer_is_checked_before_the_generator(bases, tmp_path, capfd):
    head = build(bases["qwen2"], task="pooled_classifier", labels=["a", "b"])
    folder = save(head, tokenizer=load_tokenizer(bases["qwen2"]), folder=tmp_path / "head")
    given = words(folder, "no/such-generator", tmp_path)
    assert "a title scorer" in launching.refused(RECIPE, capfd, *given)


@pytest.mark.slow
def test_missing_options_are_reported_before_trl_is_imported():
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(RECIPE)!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(RECIPE)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print(end.code, 'trl' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "4 problems:" in done.stderr


def test_help_needs_no_other_option():
    for asked in (["--help"], ["-h"]):
        check_named(asked)
    with pytest.raises(TaskHeadsError) as caught:
        check_named([])
    assert [problem.code for problem in caught.value.problems] == ["option-missing"] * 4


def test_the_preset_names_options_that_exist():
    config = yaml.safe_load((launching.RECIPES / "configs/grpo_titles.yaml").read_text())
    from trl import GRPOConfig, ModelConfig

    known = {*GRPOConfig.__dataclass_fields__, *ModelConfig.__dataclass_fields__, "length_penalty"}
    assert set(config) <= known
    assert config["per_device_train_batch_size"] * config["gradient_accumulation_steps"] % 8 == 0
