"""A model that differs from the saved one in any tensor is an error.

Every tensor of a full model and of an adapter is deleted, renamed and reshaped in turn. Then weights are
changed under their right names, which only the stored probe can find.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_same_model, logit_difference
from peft import get_peft_model
from problem_assertions import raises_problem
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from qwen_task_heads import TitleScorer, adapter_config, build, load, merge

HEAD = {"head": "mlp", "head_sizes": [8], "pooling": "attention"}
ENTRANCES: dict[str, Callable[[str], Any]] = {
    "load": load,
    "AutoModel": AutoModel.from_pretrained,
    "AutoModelForSequenceClassification": AutoModelForSequenceClassification.from_pretrained,
}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tiny_config: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backbone of two layers with a vocabulary of 128, so that hundreds of loads are quick."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config(vocab_size=128)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(base: str, shake: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved full model and a saved adapter, which tests copy."""
    root = tmp_path_factory.mktemp("strict")
    shake(build(base, **HEAD), seed=1).save_pretrained(root / "full")
    model = build(base, **HEAD)
    adapted = shake(
        get_peft_model(model, adapter_config(model, r=4, dora=True, targets=["q_proj", "down_proj"])), seed=2
    )
    adapted.save_pretrained(root / "adapter")
    return {"full": root / "full", "adapter": root / "adapter"}


def _weights(kind: str) -> str:
    return "model.safetensors" if kind == "full" else "adapter/adapter_model.safetensors"


def _copy(folder: Path, target: Path, tensors: Tensors, kind: str) -> str:
    shutil.copytree(folder, target, dirs_exist_ok=True)
    save_file(tensors, target / _weights(kind), metadata={"format": "pt"})
    return str(target)


def _delete(tensors: Tensors, name: str) -> None:
    del tensors[name]


def _rename(tensors: Tensors, name: str) -> None:
    tensors[name.replace(".weight", ".wieght") if ".weight" in name else f"{name}_"] = tensors.pop(name)


def _reshape(tensors: Tensors, name: str) -> None:
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])


def _transpose(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].unsqueeze(-1) if tensors[name].dim() == 1 else tensors[name].mT.contiguous()


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("full", _delete),
        ("adapter", _reshape),
        *(
            pytest.param(kind, damage, marks=pytest.mark.slow)
            for kind, damage in (
                ("full", _rename),
                ("full", _reshape),
                ("full", _transpose),
                ("adapter", _delete),
                ("adapter", _rename),
                ("adapter", _transpose),
            )
        ),
    ],
    ids=lambda value: getattr(value, "__name__", value).removeprefix("_"),
)
def test_every_corrupted_tensor_is_an_error(
    folders: dict[str, Path], tmp_path: Path, kind: str, damage: Callable[[Tensors, str], None]
) -> None:
    tensors = load_file(folders[kind] / _weights(kind))
    accepted = []
    for name, tensor in tensors.items():
        if damage is _transpose and tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]:
            continue  # a transposed square matrix keeps its shape; the probe finds it, see below
        changed = dict(tensors)
        damage(changed, name)
        path = _copy(folders[kind], tmp_path, changed, kind)
        try:
            load(path)
        except (ValueError, RuntimeError):
            continue
        accepted.append(name)
    assert accepted == []


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_missing_head_is_named_by_every_loader(
    folders: dict[str, Path], tmp_path: Path, kind: str, entrance: str
) -> None:
    tensors = load_file(folders[kind] / _weights(kind))
    name = next(key for key in tensors if "score" in key and key.endswith("query"))
    _delete(tensors, name)
    path = _copy(folders[kind], tmp_path, tensors, kind)
    with raises_problem("model-corrupted", match=r"score\.query is missing"):
        ENTRANCES[entrance](path)


def _exchange_layers(tensors: Tensors) -> None:
    endings = ("q_proj.weight", "q_proj.lora_A.weight")
    first, second = (key for key in tensors if key.endswith(endings))
    tensors[first], tensors[second] = tensors[second], tensors[first]


def _scale_one(tensors: Tensors) -> None:
    name = next(
        key for key in tensors if "down_proj" in key and "magnitude" not in key and "lora_A" not in key
    )
    tensors[name] = tensors[name] * 1.1


def _permute_rows(tensors: Tensors) -> None:
    name = next(key for key in tensors if "embed_tokens" in key or ("lora_B" in key and "down_proj" in key))
    tensors[name] = tensors[name].flip(0).contiguous()


def _transpose_square(tensors: Tensors) -> None:
    name = next((key for key in tensors if key.endswith("q_proj.weight")), None)
    if name is None:  # an adapter's factors are not square: exchange the signs of one instead
        name = next(key for key in tensors if "lora_B" in key)
        tensors[name] = -tensors[name]
    else:
        tensors[name] = tensors[name].mT.contiguous()


@pytest.mark.parametrize(
    "swap",
    [_exchange_layers, _scale_one, _permute_rows, _transpose_square],
    ids=lambda f: f.__name__[1:],
)
@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_the_probe_finds_other_weights_under_the_right_names(
    folders: dict[str, Path], tmp_path: Path, kind: str, swap: Callable[[Tensors], None]
) -> None:
    tensors = load_file(folders[kind] / _weights(kind))
    swap(tensors)
    path = _copy(folders[kind], tmp_path, tensors, kind)
    with raises_problem("model-corrupted", f"{path} probe"):
        load(path)
    assert isinstance(TitleScorer.from_pretrained(path, verify=False), TitleScorer)


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_weights_with_nan_are_an_error(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    tensors = load_file(folders[kind] / _weights(kind))
    name = next(key for key in tensors if "down_proj" in key)
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    with pytest.raises(ValueError, match=r"probe|NaN or inf"):
        load(_copy(folders[kind], tmp_path, tensors, kind))


def test_exchanged_matrices_of_two_layers_are_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    """Norms of a new backbone are all ones and are not exchanged, because the result would be equal."""
    tensors = load_file(folders["full"] / _weights("full"))
    accepted = []
    for first in [key for key in tensors if ".layers.0." in key and key.endswith("_proj.weight")]:
        second = first.replace(".layers.0.", ".layers.1.")
        changed = {**tensors, first: tensors[second], second: tensors[first]}
        path = _copy(folders["full"], tmp_path, changed, "full")
        try:
            load(path)
        except ValueError:
            continue
        accepted.append(first)
    assert accepted == []


def test_a_changed_base_of_an_adapter_is_an_error(
    folders: dict[str, Path], base: str, tmp_path: Path
) -> None:
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    adapter = tmp_path / "adapter"
    shutil.copytree(folders["adapter"], adapter)
    config = json.loads((adapter / "config.json").read_text())
    config["backbone_name_or_path"] = str(moved)
    (adapter / "config.json").write_text(json.dumps(config))
    load(str(adapter))  # a copy of the base is accepted
    tensors = load_file(moved / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1.05
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    with raises_problem("base-changed", match=r"model\.safetensors has changed"):
        load(str(adapter))
    config["backbone_files"] = None  # as for a base on a hub, which only the probe verifies
    (adapter / "config.json").write_text(json.dumps(config))
    with raises_problem("model-corrupted", f"{adapter} probe"):
        load(str(adapter))


def test_a_missing_base_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(folders["adapter"], adapter)
    config = json.loads((adapter / "config.json").read_text())
    for base, code in ((str(tmp_path / "gone"), "base-changed"), (None, "config-invalid")):
        (adapter / "config.json").write_text(json.dumps({**config, "backbone_name_or_path": base}))
        with raises_problem(code, f"{adapter}/config.json", match=Path(base or "").name):
            load(str(adapter))


def test_an_adapter_next_to_full_weights_is_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["adapter"], tmp_path, dirs_exist_ok=True)
    shutil.copy(folders["full"] / "model.safetensors", tmp_path)
    for entrance in ENTRANCES.values():
        with raises_problem("model-ambiguous", str(tmp_path)):
            entrance(str(tmp_path))


def test_an_adapter_without_its_head_is_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["adapter"] / _weights("adapter"))
    path = _copy(
        folders["adapter"], tmp_path, {k: v for k, v in tensors.items() if "score" not in k}, "adapter"
    )
    with raises_problem("model-corrupted", match=r"score\.\*"):
        load(path)


def test_a_plain_backbone_may_lack_only_the_head(base: str, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    accepted = []
    for name in tensors:
        if name == "lm_head.weight":
            continue  # replaced by the task head
        save_file(
            {k: v for k, v in tensors.items() if k != name},
            tmp_path / "model.safetensors",
            metadata={"format": "pt"},
        )
        try:
            build(str(tmp_path))
        except ValueError:
            continue
        accepted.append(name)
    assert accepted == []


def test_saving_with_a_given_state_dict_drops_the_probe(folders: dict[str, Path], tmp_path: Path) -> None:
    """Sharded training gathers its weights; a probe of the weights before training would be stale."""
    model = load(str(folders["full"]))
    assert model.config.probe is not None
    state = {name: tensor * 1.5 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    again = load(str(tmp_path))
    assert again.config.probe is None
    assert torch.equal(again.score.query, state["score.query"])


def test_a_model_is_trained_with_plain_torch_and_saved_again(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load(str(folders["full"])).train()
    before = model.config.probe
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(24).view(4, 6)
    model(input_ids=ids, labels=torch.tensor([1.0, 0.0, 2.0, -1.0])).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    again = load(str(tmp_path))
    assert logit_difference(again.config.probe["logits"], before["logits"]) > 1e-3
    assert_same_model(again, model.eval(), input_ids=ids)
    assert model.train().training  # computing the probe does not change the mode


def test_the_probe_tolerates_only_rounding(folders: dict[str, Path]) -> None:
    """bf16 and fp32 loads of an fp32 model pass; in fp32 a thousandth does not."""
    path = str(folders["full"])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        load(path, dtype=dtype)
    model = load(path)
    rows = torch.tensor(model.config.probe["logits"])
    model.config.probe = {**model.config.probe, "logits": (rows + rows.abs().max() * 1e-3).tolist()}
    with raises_problem("model-corrupted", "config.json probe", match=r"0\.001"):
        model.check_probe()
    model.config.probe = {**model.config.probe, "logits": rows[:2].tolist()}
    with raises_problem("config-invalid", "config.json probe"):
        model.check_probe()


def test_loading_info_is_returned_on_request(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        model, info = TitleScorer.from_pretrained(folder, output_loading_info=True)
        assert isinstance(model, TitleScorer)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]


def test_merging_removes_the_probe_of_the_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    merged = merge(str(folders["adapter"]))
    merged.save_pretrained(tmp_path)
    ids = torch.arange(12).view(2, 6)
    adapter = load(str(folders["adapter"]))
    assert (load(str(tmp_path))(input_ids=ids).logits - adapter(input_ids=ids).logits).abs().max() <= 1e-5
