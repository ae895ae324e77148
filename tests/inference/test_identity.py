"""Tests of the hash by which a run is resumed: of stored weights, without the rounding of a merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from predicting import predict
from safetensors.torch import load_file, save_file

from qwen_task_heads import LabelMap, Scorer, adapter_config, build, load_tokenizer, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.generators import base_of, load_generator
from qwen_task_heads.inference.identity import model_hash
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.loading import open_scorer
from qwen_task_heads.inference.shards import Shards
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts


@pytest.fixture
def head(bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path: Path) -> Path:
    """A folder with a classifier's adapter."""
    model = build(bases["qwen2"], task="pooled_classifier", labels=["sport", "trade"])
    adapted = shake(get_peft_model(model, adapter_config(model, r=2)))
    return save(adapted, tokenizer=tokenizer, folder=tmp_path / "head")


@pytest.fixture
def writer(bases: dict[str, str], shake: Any, tmp_path: Path) -> Path:
    """A folder with the adapter of a generative classifier."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"])
    shake(get_peft_model(load_generator(bases["qwen2"]), config)).save_pretrained(tmp_path / "writer")
    tokenizer = load_tokenizer(bases["qwen2"])
    tokenizer.save_pretrained(tmp_path / "writer")
    prompts = AnswerPrompts(tokenizer, LabelMap(("sport", "trade")), model_type="qwen2")
    prompts.save(tmp_path / "writer", base=asdict(base_of(bases["qwen2"])))
    return tmp_path / "writer"


def change_adapter(folder: Path) -> None:
    [path] = folder.rglob("adapter_model.safetensors")  # a head's is in a subfolder
    tensors = load_file(path)
    changed = {name: tensor * 1.5 if "lora_B" in name else tensor for name, tensor in tensors.items()}
    save_file(changed, path, metadata={"format": "pt"})
    if (path := folder / "config.json").exists():  # its probe is of the adapter before
        path.write_text(json.dumps({**json.loads(path.read_text()), "probe": None}))


@pytest.mark.parametrize("kind", ["head", "writer"])
def test_the_rounding_of_a_merge_does_not_change_the_hash(request: pytest.FixtureRequest, kind: str) -> None:
    """The last bits of a merge depend on the processor; the test changes all of them."""
    folder = request.getfixturevalue(kind)
    scorer = open_scorer(str(folder))
    assert isinstance(scorer, Scorer if kind == "head" else LabelScorer)
    before = model_hash(scorer)
    with torch.no_grad():
        for weight in scorer.model.parameters():
            weight.data.copy_(weight.nextafter(torch.full_like(weight, torch.inf)))
    assert model_hash(scorer) == model_hash(open_scorer(str(folder))) == before
    change_adapter(folder)
    assert model_hash(open_scorer(str(folder))) != before


@pytest.mark.parametrize("change", [lambda weight: weight.neg_(), lambda weight: weight[0, 0].add_(1e-3)])
def test_other_weights_in_memory_change_the_hash(
    bases: dict[str, str], tokenizer: Any, change: Callable[[torch.Tensor], Any]
) -> None:
    scorer = Scorer(build(bases["qwen2"]), tokenizer=tokenizer)
    before = model_hash(scorer)
    with torch.no_grad():
        change(scorer.model.score.weight)
    assert model_hash(scorer) != before


def test_shards_of_another_adapter_are_refused(
    head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapters have the same config and differ only in their weights."""

    class Stopped(Exception):
        pass

    def stop(self: Shards, block: int, rows: Any) -> None:
        raise Stopped

    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "A late goal"}\n', encoding="utf-8")
    options = {"source": str(source), "output": tmp_path / "out.jsonl"}
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "write", stop)
        with pytest.raises(Stopped):
            predict(str(head), **options)
    change_adapter(head)
    with pytest.raises(TaskHeadsError, match="model was"):
        predict(str(head), **options)
