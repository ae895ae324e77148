"""Hostile repos. Each is a `TaskHeadsError` within bounded work, and none of their code runs.

Any code of a repo would create a canary. The Auto classes of transformers are tested too, because they load
safely with the package installed. Work is counted in calls; pytest's timeout stops a hang within one call.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from problem_assertions import raises_problem
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from work import at_most

from qwen_task_heads import adapter_config, build, load, load_tokenizer, merge, save

Attack = Callable[[Path, Path], None]
CALLS = 1_000_000


@pytest.fixture(scope="module")
def honest(bases: dict[str, str], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("honest")
    model = build(bases["qwen2"])
    save(model, tokenizer=tokenizer, folder=root / "full")
    fresh = build(bases["qwen2"])
    adapted = get_peft_model(fresh, adapter_config(fresh, r=2))
    save(adapted, tokenizer=tokenizer, folder=root / "adapter")
    for kind in ("full", "adapter"):  # what is warm then is not counted below
        load(str(root / kind))
        load_tokenizer(str(root / kind))
    return root


@pytest.fixture(autouse=True)
def _counted(honest: Path) -> Iterator[None]:
    with at_most(CALLS):  # the files are made too
        yield


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def _edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def _code(folder: Path, canary: Path) -> str:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\nclass Evil: pass\n")
    return "evil.Evil"


def pickle_weights(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"score.weight": _Bomb(canary)}))


def foreign_code(folder: Path, canary: Path) -> None:
    _code(folder, canary)
    autos = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    _edit(folder, "config.json", auto_map=dict.fromkeys(autos, "evil.Evil"))


def code_of_another_repo(folder: Path, canary: Path) -> None:
    name = "somebody/else--modeling_task_heads.TitleScorer"
    _edit(folder, "config.json", auto_map={"AutoModelForSequenceClassification": name})


def foreign_pipeline(folder: Path, canary: Path) -> None:
    entry = {"impl": _code(folder, canary), "pt": ["AutoModelForSequenceClassification"], "type": "text"}
    _edit(folder, "config.json", custom_pipelines={"title-ranking": entry})


def kernel_of_a_hub(folder: Path, canary: Path) -> None:
    _edit(folder, "config.json", _attn_implementation="somebody/kernels:attention")


def kernel_below(folder: Path, canary: Path) -> None:
    inner = json.loads((folder / "config.json").read_text())["text_config"]
    _edit(folder, "config.json", text_config={**inner, "attn_implementation": "somebody/kernels"})


def link_out_of_the_folder(folder: Path, canary: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "elsewhere")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


def names_out_of_the_folder(folder: Path, canary: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "up.safetensors")
    weight_map = {"score.weight": "../up.safetensors"}
    _edit(folder, "model.safetensors.index.json", metadata={}, weight_map=weight_map)


def huge_json(folder: Path, canary: Path) -> None:
    os.truncate(folder / "config.json", 100_000_001)


def nested_json(folder: Path, canary: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 200_000 + "1" + "}" * 200_000)


def huge_header(folder: Path, canary: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + content[8:])


def tensor_beyond_the_file(folder: Path, canary: Path) -> None:
    header = {"score.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def adapter_beside_weights(folder: Path, canary: Path) -> None:
    (folder / "adapter").mkdir()
    for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors"):
        shutil.copy(folder.parent / "adapter" / name, folder / name)


def layers_without_end(folder: Path, canary: Path) -> None:
    inner = json.loads((folder / "config.json").read_text())["text_config"]
    _edit(folder, "config.json", text_config={**inner, "num_hidden_layers": 10**9, "layer_types": None})


def labels_without_end(folder: Path, canary: Path) -> None:
    _edit(folder, "config.json", num_labels=10**9)


def probe_without_end(folder: Path, canary: Path) -> None:
    _edit(folder, "config.json", probe={"input_ids": [[1] * 500] * 500, "logits": [[0.0]] * 500})


def pattern_without_end(folder: Path, canary: Path) -> None:
    _edit(folder, "adapter/adapter_config.json", target_modules=r"(([a-z._0-9])+.?)+$")


def pattern_of_ranks(folder: Path, canary: Path) -> None:
    _edit(folder, "adapter/adapter_config.json", rank_pattern={r"(([a-z._0-9])+.?)+!": 4})


def model_of_somebody(folder: Path, canary: Path) -> None:
    mapping = {"base_model_class": "Evil", "parent_library": "evil"}
    _edit(folder, "adapter/adapter_config.json", auto_mapping=mapping)


def other_kind_of_adapter(folder: Path, canary: Path) -> None:
    _edit(folder, "adapter/adapter_config.json", peft_type="PROMPT_TUNING")


def pickled_adapter(folder: Path, canary: Path) -> None:
    (folder / "adapter/adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"score.weight": _Bomb(canary)}))


def tokenizer_with_code(folder: Path, canary: Path) -> None:
    auto_map = {"AutoTokenizer": [None, _code(folder, canary)]}
    _edit(folder, "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Evil")


def huge_tokenizer(folder: Path, canary: Path) -> None:
    os.truncate(folder / "tokenizer.json", 100_000_001)


# attack: kind of folder, loader, code of the error, and the value that it names
ATTACKS: dict[Attack, tuple[str, Callable[[str], Any], str, str]] = {
    pickle_weights: ("full", load, "model-corrupted", "safetensors"),
    foreign_code: ("full", load, "code-untrusted", r"auto_map AutoConfig 'evil\.Evil'"),
    code_of_another_repo: ("adapter", load, "code-untrusted", "auto_map .*'somebody/else--"),
    foreign_pipeline: ("full", load, "code-untrusted", r"custom_pipelines title-ranking 'evil\.Evil'"),
    kernel_of_a_hub: ("full", load, "code-untrusted", "_attn_implementation 'somebody/kernels:attention'"),
    kernel_below: ("adapter", load, "code-untrusted", "attn_implementation 'somebody/kernels'"),
    link_out_of_the_folder: ("full", load, "code-untrusted", "model.safetensors: .*link"),
    names_out_of_the_folder: ("full", load, "code-untrusted", r"index\.json: .*'\.\./up\.safetensors'"),
    huge_json: ("full", load, "file-format", r"config\.json: .*100,000,001 bytes"),
    nested_json: ("full", load, "file-format", r"config\.json: .*RecursionError"),
    huge_header: ("full", load, "model-corrupted", "safetensors"),
    tensor_beyond_the_file: ("full", load, "model-corrupted", "safetensors"),
    adapter_beside_weights: ("full", load, "model-ambiguous", "adapter_config.json"),
    layers_without_end: ("full", load, "config-invalid", "num_hidden_layers 1000000000"),
    labels_without_end: ("full", load, "config-invalid", "num_labels 1000000000"),
    probe_without_end: ("full", load, "config-invalid", "probe"),
    pattern_without_end: ("adapter", load, "config-invalid", "target_modules '"),
    pattern_of_ranks: ("adapter", merge, "config-invalid", "rank_pattern '"),
    model_of_somebody: ("adapter", build, "code-untrusted", "auto_mapping {'base_model_class'"),
    other_kind_of_adapter: ("adapter", load, "config-invalid", "peft_type 'PROMPT_TUNING'"),
    pickled_adapter: ("adapter", load, "model-not-found", r"adapter_model\.safetensors"),
    tokenizer_with_code: ("full", load_tokenizer, "code-untrusted", "auto_map"),
    huge_tokenizer: ("full", load_tokenizer, "file-format", r"tokenizer\.json: .*100,000,001 bytes"),
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_repo_is_an_error(honest: Path, tmp_path: Path, attack: Attack) -> None:
    kind, entrance, code, named = ATTACKS[attack]
    for name in ("full", "adapter"):
        shutil.copytree(honest / name, tmp_path / name)
    canary = tmp_path / "canary"
    attack(tmp_path / kind, canary)
    with raises_problem(code, match=named):
        entrance(str(tmp_path / kind))
    assert not canary.exists()


WRONG_KINDS: dict[str, Any] = {
    "probe": [1],
    "probe.input_ids": 5,
    "probe.logits": "x",
    "text_config": [1],
    "id2label": [1],
    "model_type": ["a"],
    "text_config.num_hidden_layers": "9" * 40,
    "text_config.layer_types": 5,
    "max_seq_length": "x",
    "template": [1],
}


@pytest.mark.parametrize("field", WRONG_KINDS)
def test_a_field_of_another_type_is_named(honest: Path, tmp_path: Path, field: str) -> None:
    folder = tmp_path / "full"
    shutil.copytree(honest / "full", folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    *outer, name = field.split(".")
    (config[outer[0]] if outer else config)[name] = WRONG_KINDS[field]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with raises_problem("config-invalid", f"{folder}/config.json", match=name):
        load(str(folder), verify=False)


CARRY_CODE = (pickle_weights, foreign_code, foreign_pipeline, pickled_adapter, tokenizer_with_code)


@pytest.mark.parametrize("attack", CARRY_CODE, ids=lambda attack: attack.__name__)
def test_the_auto_classes_do_not_run_its_code_either(honest: Path, tmp_path: Path, attack: Attack) -> None:
    kind, *_ = ATTACKS[attack]
    shutil.copytree(honest / kind, tmp_path / kind)
    canary = tmp_path / "canary"
    attack(tmp_path / kind, canary)
    for auto in (AutoModel, AutoModelForSequenceClassification, AutoTokenizer):
        try:
            auto.from_pretrained(str(tmp_path / kind), trust_remote_code=False)
        except (OSError, ValueError, pickle.UnpicklingError):
            continue
    assert not canary.exists()


def test_an_endless_template_is_not_rendered(honest: Path, tmp_path: Path) -> None:
    """Loading a tokenizer and scoring a text do not render the chat template."""
    shutil.copytree(honest / "full", tmp_path / "it")
    bomb = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    (tmp_path / "it" / "chat_template.jinja").write_text(bomb)
    tokenizer = load_tokenizer(str(tmp_path / "it"))
    model = load(str(tmp_path / "it"))
    answer = pipeline("text-classification", model=model, tokenizer=tokenizer)("A title")
    assert tokenizer.chat_template == bomb
    assert answer[0]["label"] == "score"


def test_pickles_next_to_the_weights_are_not_read(honest: Path, tmp_path: Path) -> None:
    """`training_args.bin` and other pickles are never loaded."""
    shutil.copytree(honest / "full", tmp_path / "it")
    for name in ("training_args.bin", "pytorch_model.bin", "optimizer.pt"):
        (tmp_path / "it" / name).write_bytes(pickle.dumps(_Bomb(tmp_path / "canary")))
    model = load(str(tmp_path / "it"))
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 2]])).logits).all()
    assert not (tmp_path / "canary").exists()


def test_a_plain_base_has_fewer_checks_but_runs_no_code(bases: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(bases["qwen2"], tmp_path / "base")
    _edit(tmp_path / "base", "config.json", auto_map={"AutoModel": "evil.Evil"})  # ignored: no trust
    build(str(tmp_path / "base"))
    _edit(tmp_path / "base", "config.json", _attn_implementation="somebody/kernels")
    names_out_of_the_folder(tmp_path / "base", tmp_path)
    with raises_problem("code-untrusted", match="2 problems"):
        build(str(tmp_path / "base"))
