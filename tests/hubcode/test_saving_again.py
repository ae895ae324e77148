"""A loaded model can be saved again: as an adapter, merged or quantised, without paths of a machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
from equality import assert_same_model, logit_difference
from peft import get_peft_model
from problem_assertions import raises_problem
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from qwen_task_heads import (
    PooledClassifier,
    TaskHeadsError,
    TitleScorer,
    adapter_config,
    build,
    load,
    merge,
    save,
)

IDS = torch.randint(1, 5000, (3, 9), generator=torch.Generator().manual_seed(0))
ADAPTERS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"dora": True}, "head_only": {"head_only": True}}


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture(params=ADAPTERS)
def adapter(
    request: pytest.FixtureRequest, bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path: Path
) -> Path:
    model = build(bases["qwen2"], head="mlp", head_sizes=[8])
    adapted = shake(get_peft_model(model, adapter_config(model, r=2, **ADAPTERS[request.param])))
    return save(adapted, tokenizer=tokenizer, folder=tmp_path / "adapter")


# Adapters


def test_a_loaded_adapter_is_saved_completely_after_training(
    adapter: Path, tokenizer: Any, tmp_path: Path
) -> None:
    model = load(str(adapter))
    before = model.config.probe
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.mul_(1.25)
    model.save_pretrained(tmp_path / "stock")
    save(model, tokenizer=tokenizer, folder=tmp_path / "ours")
    for folder in (tmp_path / "stock", tmp_path / "ours"):
        assert (folder / "modeling_task_heads.py").is_file()
        assert not (folder / "model.safetensors").exists()
        again = load(str(folder))
        assert logit_difference(again.config.probe["logits"], before["logits"]) > 1e-3
        assert_same_model(again, model, input_ids=IDS)
        assert_same_model(AutoModel.from_pretrained(folder), model, input_ids=IDS)
    with pytest.raises(TaskHeadsError, match=r"adapter_config\.json"):
        save(merge(str(adapter)), tokenizer=tokenizer, folder=tmp_path / "ours")


def test_merge_accepts_a_path_and_a_loaded_adapter(adapter: Path, tmp_path: Path) -> None:
    wanted = _logits(load(str(adapter)))
    for merged in (merge(adapter), merge(load(str(adapter)))):
        assert type(merged) is TitleScorer
        assert (_logits(merged) - wanted).abs().max() <= 1e-5
        assert not [name for name in merged.state_dict() if "lora" in name or "modules_to_save" in name]
        merged.save_pretrained(tmp_path / "full")
        assert_same_model(load(str(tmp_path / "full")), merged, input_ids=IDS)
        with raises_problem("model-type", "model"):
            merge(merged)


def just_load(folder: str) -> None:
    """Target of the fork server."""
    load(folder)


def test_no_report_of_missing_keys_is_printed(adapter: Path, tmp_path: Path) -> None:
    """The head is always missing in the base. In a new process, because transformers logs once."""
    printed = launching.join(launching.fork(just_load, str(adapter), log=tmp_path / "log"), tmp_path / "log")
    assert "REPORT" not in printed
    assert "score.weight" not in printed


# Quantised bases


def test_an_adapter_of_a_quantised_base_names_a_plain_one(
    bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path: Path
) -> None:
    """Its base is not quantised on disk, and the probe in 4 bits differs from that in 16 bits."""
    model = build(bases["qwen2"])
    adapted = shake(get_peft_model(model, adapter_config(model, r=2)))
    given = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    model.config.quantization_config = given
    with torch.no_grad():  # the difference of 4-bit weights
        model.model.layers[0].mlp.down_proj.get_base_layer().weight.mul_(1.1)
    folder = save(adapted, tokenizer=tokenizer, folder=tmp_path)
    assert model.config.quantization_config == given
    saved = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in saved
    assert saved["probe"]["dtype"] == "quantized"
    plain = load(str(folder))
    assert "quantization_config" not in plain.config.to_dict()
    plain.config.probe = {**plain.config.probe, "logits": [[float("nan")]] * 4}
    with raises_problem("model-corrupted", "config.json probe"):
        plain.check_probe()


# Other classes, other tensors


def test_a_model_of_another_task_is_an_error(bases: dict[str, str], tmp_path: Path) -> None:
    build(bases["qwen2"], task="pooled_classifier", num_labels=1).save_pretrained(tmp_path / "classifier")
    build(bases["qwen2"]).save_pretrained(tmp_path / "scorer")
    for cls, name in ((TitleScorer, "classifier"), (PooledClassifier, "scorer")):
        with raises_problem("model-type", f"{tmp_path}/{name}/config.json", match=cls.__name__):
            cls.from_pretrained(tmp_path / name)


def test_an_extra_lm_head_is_an_error(bases: dict[str, str], tmp_path: Path) -> None:
    build(bases["qwen2"]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(4, 4)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with raises_problem("model-corrupted", match=r"lm_head\.weight is not part of the model"):
        load(str(tmp_path))


# Paths


@pytest.mark.parametrize("kind", ["full", "merged", "reloaded"])
def test_full_weights_contain_no_path_of_their_base(
    bases: dict[str, str], tokenizer: Any, tmp_path: Path, kind: str
) -> None:
    base = shutil.copytree(bases["qwen2"], tmp_path / "base-of-mine")
    model = build(str(base))
    if kind == "merged":
        model = merge(get_peft_model(model, adapter_config(model, r=2)))
    folder = save(model, tokenizer=tokenizer, folder=tmp_path / "full")
    shutil.rmtree(base)
    if kind == "reloaded":
        folder = save(load(str(folder)), tokenizer=tokenizer, folder=tmp_path / "again")
    for file in folder.glob("*.json"):
        assert "base-of-mine" not in file.read_text(), file.name
        assert str(tmp_path) not in file.read_text(), file.name
    load(str(folder))
