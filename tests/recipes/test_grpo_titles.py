"""The GRPO recipe takes two steps on a tiny model with a real scorer as its reward, and refuses in words."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from qwen_task_heads import build, load_tokenizer, save

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
        "model_name_or_path": base, "reward_model": scorer, "dataset_name": source,
        "output_dir": folder / "run", "max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 4,
        "max_completion_length": 8, "learning_rate": 1e-3, "logging_steps": 1,
        "with_context": "true", "length_penalty": 0.5,
    } | changes  # fmt: skip
    return [*launching.MACHINE, *(word for name, value in options.items() for word in (f"--{name}", value))]


def test_two_steps_move_the_writer_and_say_what_it_was_paid(scorer, bases, tmp_path):
    printed = launching.finished(RECIPE, words(scorer, bases["qwen2"], tmp_path), tmp_path / "log")
    assert "Trained a title writer for 2 steps on 8 texts in " in printed
    paid = re.search(r"Mean reward: (\S+) at the first look, (\S+) at the last", printed)
    assert all(math.isfinite(float(value)) for value in paid.groups())
    # the reward is logged under its own name, with what it counts
    for name in ("rewards/title_reward/mean", "title_characters", "without_title"):
        assert f"'{name}'" in printed
    before = AutoModelForCausalLM.from_pretrained(bases["qwen2"]).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


def test_wrong_words_and_rows_are_refused_in_words(scorer, bases, tmp_path, capfd):
    given = words(scorer, bases["qwen2"], tmp_path, text_column="body")
    message = launching.refused(RECIPE, capfd, *given)
    assert "8 problems:" in message
    assert (
        "articles.jsonl:1: found no text in column 'body'; columns: text; name it by --text_column" in message
    )
    given = words(scorer, bases["qwen2"], tmp_path, lenght_penalty=0.5)
    assert "lenght_penalty" in launching.refused(RECIPE, capfd, *given)
    message = launching.refused(RECIPE, capfd, "--reward_model", scorer, "--dataset_name", "x")
    assert "--output_dir: found nothing" in message
    short = ("--reward_model", scorer, "--dataset_name", "x", "--output_dir", tmp_path, "--use_cpu", "true")
    assert "--model_name_or_path: found nothing" in launching.refused(RECIPE, capfd, *short)


def test_the_preset_names_options_that_exist():
    config = yaml.safe_load((launching.RECIPES / "configs/grpo_titles.yaml").read_text())
    from trl import GRPOConfig, ModelConfig

    known = {*GRPOConfig.__dataclass_fields__, *ModelConfig.__dataclass_fields__, "length_penalty"}
    assert set(config) <= known
    assert config["per_device_train_batch_size"] * config["gradient_accumulation_steps"] % 8 == 0
