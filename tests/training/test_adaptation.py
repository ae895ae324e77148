"""Domain adaptation: perplexity falls, the folder is a plain decoder, and bad input is named."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from problem_assertions import raises_problem
from transformers import AutoModelForCausalLM

from qwen_task_heads import AdaptationArguments, TaskHeadsError, adapt, build, load_tokenizer
from qwen_task_heads.training.adaptation import blocks_of


@pytest.fixture
def texts(tmp_path: Path) -> str:
    draw, path = random.Random(0), tmp_path / "texts.jsonl"
    words = ["transfer", "card", "declined", "account", "balance", "fee", "top-up", "cash"]
    rows = [{"text": " ".join(draw.choices(words, k=12))} for _ in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def options(source: str, folder: Path, **more: Any) -> AdaptationArguments:
    more = {"learning_rate": 1e-3, "block_size": 64, "use_cpu": True, **more}
    return AdaptationArguments(dataset_name=source, output_dir=str(folder), **more)


@pytest.mark.parametrize("lora", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_perplexity_falls_and_the_folder_is_a_decoder(texts: str, tmp_path: Path, lora: bool) -> None:
    folder = tmp_path / "adapted"
    report = adapt(options(texts, folder, use_peft=lora, num_train_epochs=2.0))
    assert report.after < 0.8 * report.before
    assert report.held_out == 10
    assert not (folder / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 6, 7]])
    states = model.model(ids).last_hidden_state
    headed = build(str(folder))
    torch.testing.assert_close(headed.model(ids).last_hidden_state, states)


def test_blocks_have_every_token_and_the_end_between_texts() -> None:
    tokenizer = load_tokenizer("embedded")
    blocks = blocks_of(["one text", "another <|im_end|> text"], tokenizer, size=4)
    joined = torch.cat([block["input_ids"] for block in blocks]).tolist()
    ids = [
        tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for text in ("one text", "another <|im_end|> text")
    ]
    expected = [*ids[0], tokenizer.eos_token_id, *ids[1], tokenizer.eos_token_id]
    assert joined == expected[: len(joined)]
    assert len(expected) - len(joined) < 4


def test_bad_input_is_named(texts: str, tmp_path: Path) -> None:
    with pytest.raises(TaskHeadsError) as caught:
        adapt(options(texts, tmp_path / "a", block_size=1, num_train_epochs=0.0))
    assert [one.where for one in caught.value.problems] == ["--block_size", "--num_train_epochs"]
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "only one"}\n', encoding="utf-8")
    with raises_problem("rows-too-few", str(few)):
        adapt(options(str(few), tmp_path / "b"))
    with raises_problem("path-exists", str(tmp_path)):
        adapt(options(texts, tmp_path))
