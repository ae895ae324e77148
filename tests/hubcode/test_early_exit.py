"""Early exit: a head on layer k, saved with k layers or on its base, loaded without the package."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_same_model
from peft import get_peft_model
from problem_assertions import raises_problem
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, Gemma2Config, Qwen2Config

from qwen_task_heads import TitleScorer, adapter_config, build, load, merge, save
from qwen_task_heads.export.stock import export_stock
from qwen_task_heads.hubcode.early_exit_task_heads import cut_layers

FAMILIES = ("qwen2", "qwen3", "llama")
KINDS = ("full", "lora", "head_only", "merged")
NAMES = [f"{family}-{kind}" for family in FAMILIES for kind in KINDS]

CHILD = r"""
import json, sys
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

root, *names = sys.argv[1:]
expected, batch = load_file(f"{root}/expected.safetensors"), load_file(f"{root}/batch.safetensors")
answer = {}
for name in names:
    for auto in (AutoModel, AutoModelForSequenceClassification):
        model = auto.from_pretrained(f"{root}/{name}", trust_remote_code=True)
        with torch.no_grad():
            found = model(**batch).logits
        difference = float((found - expected[name]).abs().max())
        answer[name] = [len(model.model.layers), max(answer.get(name, [0, 0.0])[1], difference)]
leaked = [name for name in sys.modules if name.split(".")[0] == "qwen_task_heads"]
print(json.dumps({"answer": answer, "leaked": leaked}))
"""


@pytest.fixture(scope="module")
def loaded(bases, tokenizer, shake, clean, tmp_path_factory):
    """Return `loaded()`: folder, layers and largest difference of every kind, from one clean process."""
    root = tmp_path_factory.mktemp("exits")
    ids = torch.randint(0, 5000, (5, 14), generator=torch.Generator().manual_seed(7))
    mask = (torch.arange(14)[None] < torch.tensor([14, 9, 1, 12, 5])[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask}

    def make(name: str) -> Any:
        family, kind = name.split("-")
        torch.manual_seed(3)
        model = build(bases[family], backbone_layers=1, pooling="mean")
        if kind == "full":
            return shake(model)
        adapted = shake(
            get_peft_model(model, adapter_config(model, r=4, head_only=kind == "head_only")), seed=1
        )
        return merge(adapted) if kind == "merged" else adapted

    @cache
    def run() -> dict[str, Any]:
        expected = {}
        for name in NAMES:
            model = make(name)
            save(model, tokenizer=tokenizer, folder=root / name)
            with torch.no_grad():
                expected[name] = model.eval()(**batch).logits.float()
        save_file(expected, root / "expected.safetensors")
        save_file(batch, root / "batch.safetensors")
        found = json.loads(clean.run(CHILD, root, *NAMES, folder=root).splitlines()[-1])
        assert found["leaked"] == []
        return {"root": root, "answer": found["answer"]}

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_loads_without_the_package(loaded, name) -> None:
    layers, difference = loaded()["answer"][name]
    assert layers == 1
    assert difference <= 1e-6
    assert len(load(str(loaded()["root"] / name)).model.layers) == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_contains_the_layers_that_are_used(loaded, family) -> None:
    root: Path = loaded()["root"]
    for kind in KINDS:
        config = json.loads((root / f"{family}-{kind}" / "config.json").read_text())
        assert config["backbone_layers"] == config["text_config"]["num_hidden_layers"] == 1
        assert len(config["text_config"].get("layer_types") or [1]) == 1
    for kind in ("full", "merged"):
        names = load_file(root / f"{family}-{kind}" / "model.safetensors")
        assert any(name.startswith("model.layers.0.") for name in names)
        assert not any(name.startswith("model.layers.1.") for name in names)
    head = load_file(root / f"{family}-head_only" / "adapter/adapter_model.safetensors")
    assert [name.removeprefix("base_model.model.") for name in head] == ["score.weight"]


def test_the_head_reads_layer_k_after_the_final_norm(bases) -> None:
    ids = torch.arange(5, 17)[None]
    torch.manual_seed(0)
    early, whole = build(bases["qwen3"], backbone_layers=1).eval(), build(bases["qwen3"]).eval()
    with torch.no_grad():
        states = whole(ids, output_hidden_states=True).hidden_states
        wanted = early.score(whole.model.norm(states[1])[:, -1])
        assert float((early(ids).logits - wanted).abs().max()) <= 1e-6
        assert float((early(ids).logits - early.score(states[2][:, -1])).abs().max()) > 1e-2


def test_all_layers_equal_the_model_without_the_option(bases) -> None:
    torch.manual_seed(0)
    one = build(bases["qwen2"]).eval()
    torch.manual_seed(0)
    two = build(bases["qwen2"], backbone_layers=2).eval()
    assert_same_model(one, two, input_ids=torch.arange(5, 17).view(2, 6))


def test_the_stock_class_loads_an_early_exit(bases, tokenizer, tmp_path) -> None:
    from transformers import Qwen2ForSequenceClassification

    model = build(bases["qwen2"], task="pooled_classifier", num_labels=3, backbone_layers=1).eval()
    folder = export_stock(model, tokenizer=tokenizer, folder=tmp_path / "stock")
    stock = Qwen2ForSequenceClassification.from_pretrained(folder)
    ids = torch.arange(5, 17)[None]
    assert len(stock.model.layers) == 1
    assert float((stock(ids).logits - model(ids).logits).detach().abs().max()) <= 1e-6


@pytest.mark.parametrize("layers", [0, 3, -1, True])
def test_missing_layers_are_an_error(bases, layers) -> None:
    with raises_problem("option-range", "--backbone_layers", match="1 to 2"):
        build(bases["qwen2"], backbone_layers=layers)


def test_families_that_cannot_exit_early() -> None:
    bloom = BloomConfig(n_layer=3)
    assert cut_layers(bloom, keep=3) is bloom
    for config in (bloom, Gemma2Config(num_hidden_layers=3)):
        with raises_problem("option-unsupported", "backbone_layers"):
            cut_layers(config, keep=2)


def test_layer_types_are_cut_too() -> None:
    config = Qwen2Config(num_hidden_layers=4, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    cut = cut_layers(config, keep=3)
    assert cut.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert (config.num_hidden_layers, len(config.layer_types)) == (4, 4)


# --- strict loading ---


@pytest.mark.slow
def test_an_extra_layer_in_a_full_folder_is_an_error(loaded, tmp_path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    for file in (loaded()["root"] / "qwen2-full").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    extra = {name.replace("layers.0", "layers.1"): tensor.clone() for name, tensor in tensors.items()}
    save_file({**extra, **tensors}, folder / "model.safetensors", metadata={"format": "pt"})
    with raises_problem("model-corrupted", match="layers.1.*is not part of the model"):
        load(str(folder))


def test_a_base_with_too_few_layers_is_an_error(bases) -> None:
    config = TitleScorer.config_class.from_dict(build(bases["qwen2"], backbone_layers=1).config.to_dict())
    config.backbone_layers = 3
    config.text_config.num_hidden_layers, config.text_config.layer_types = 3, ["full_attention"] * 3
    with raises_problem("model-corrupted", match=r"layers\.2\.\S+ is missing"):
        TitleScorer.from_pretrained(bases["qwen2"], config=config)


@pytest.mark.parametrize("name", ["model.layers.0.surplus.weight", "model.surplus.layers.1.weight"])
def test_a_base_may_have_only_the_layers_above(bases, tmp_path, name) -> None:
    for file in Path(bases["qwen2"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, name: torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with raises_problem("model-corrupted", match=f"{name} is not part of the model"):
        build(str(tmp_path), backbone_layers=1)


@pytest.mark.slow
def test_a_saved_model_keeps_its_depth(loaded) -> None:
    folder = str(loaded()["root"] / "llama-full")
    assert build(folder, backbone_layers=1).config.backbone_layers == 1
    with raises_problem("option-conflict", "--backbone_layers"):
        build(folder, backbone_layers=2)
