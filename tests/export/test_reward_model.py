"""Tests of the layout of vLLM's `Qwen2ForRewardModel`, and of the commands that serve exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_process import CleanProcess
from equality import assert_same_logits
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from qwen_task_heads import TaskHeadsError, adapter_config, build, load_tokenizer, save
from qwen_task_heads.export import reward_model
from qwen_task_heads.export.reward_model import export_reward_model, reference_logits
from qwen_task_heads.export.stock import export_stock
from qwen_task_heads.hubcode.encoding_task_heads import encode, pad_rows
from qwen_task_heads.tokenization.templates import Template, bind_template, compile_template

TEXTS = ["A plain title", "短い題", "?", "word " * 100, "Rest<|im_end|>\n<|im_start|>assistant\n"]
WIDTH, LIMIT = 32, 40

# The computation of vLLM's class from the files alone: values per token, of which the last one is the score.
CHILD = r"""
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, Qwen2Model

root = sys.argv[1]
tensors = load_file(f"{root}/model.safetensors")
config = AutoConfig.from_pretrained(root)
score = torch.nn.Sequential(
    torch.nn.Linear(config.hidden_size, config.hidden_size),
    torch.nn.ReLU(),
    torch.nn.Linear(config.hidden_size, config.num_labels),
)
score.load_state_dict({name[6:]: tensors.pop(name) for name in list(tensors) if name.startswith("score.")})
model = Qwen2Model(config).eval()
model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items()})
tokenizer = AutoTokenizer.from_pretrained(root)
with torch.no_grad():
    answers = []
    for text in json.loads(sys.argv[2]):
        batch = tokenizer(text, truncation=True, return_tensors="pt")
        answers.append(score(model(**batch).last_hidden_state)[0, -1].item())
print(json.dumps(answers))
"""


def prepared(base: str, shake: Any, *, lora: bool = False, **options: Any) -> tuple[Any, Any]:
    """A shaken title scorer with a two-layer head, and its tokenizer."""
    head = {"head": "mlp", "head_sizes": [WIDTH], **options}
    model, tokenizer = build(base, **head), load_tokenizer(base)
    template = Template(before="<|im_start|>Rate: ")
    compile_template(tokenizer, template=template, model_type="qwen2", max_length=LIMIT)
    if lora:
        model = get_peft_model(model, adapter_config(model, r=2))
    return shake(model, seed=1), tokenizer


@torch.no_grad()
def scores_of(model: Any, tokenizer: Any) -> torch.Tensor:
    """Scores with the ids and padding of this library."""
    return model.eval()(**pad_rows(encode(tokenizer, TEXTS).input_ids, pad_id=0)).logits


@pytest.mark.parametrize("kind", ["model", "folder"])
def test_the_files_alone_give_the_scores(
    bases: dict[str, str], shake: Any, clean: CleanProcess, tmp_path: Path, kind: str
) -> None:
    model, tokenizer = prepared(bases["qwen2"], shake, lora=True, head_dropout=0.1)
    wanted = scores_of(model, tokenizer)
    folder = tmp_path / "out"
    if kind == "folder":
        saved = save(model, tokenizer=tokenizer, folder=tmp_path / "saved")
        assert export_reward_model(saved, folder=folder) == folder
    else:
        assert export_reward_model(model, tokenizer=tokenizer, folder=folder) == folder
    found = json.loads(clean.run(CHILD, folder, json.dumps(TEXTS), folder=tmp_path).splitlines()[-1])
    assert (torch.tensor(found) - wanted[:, 0]).abs().max() <= 1e-6
    assert wanted.std() > 0.05  # else the figure would say nothing
    padded = pad_rows(encode(tokenizer, TEXTS).input_ids, pad_id=7)
    assert (reference_logits(folder, **padded) - wanted).abs().max() <= 1e-6


def test_the_layout(bases: dict[str, str], shake: Any, tmp_path: Path) -> None:
    model, tokenizer = prepared(bases["qwen2"], shake, dtype=torch.bfloat16)
    folder = export_reward_model(model, tokenizer=tokenizer, folder=tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForRewardModel"]
    assert (config["model_type"], config["dtype"]) == ("qwen2", "bfloat16")
    assert config["pad_token_id"] == tokenizer.pad_token_id
    assert config["id2label"] == {"0": "score"}
    assert not {"auto_map", "text_config", "custom_pipelines", "_name_or_path"} & set(config)
    tensors = load_file(folder / "model.safetensors")
    head = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("score.")}
    assert head == {
        "score.0.weight": (WIDTH, WIDTH),
        "score.0.bias": (WIDTH,),
        "score.2.weight": (1, WIDTH),
        "score.2.bias": (1,),
    }
    assert all(name.startswith(("model.", "score.")) for name in tensors)
    types = {name.startswith("score."): tensor.dtype for name, tensor in tensors.items()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    assert not [path.name for path in folder.iterdir() if path.suffix == ".py"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head": "linear", "head_sizes": None}, ("head", "found 'linear'")),
        ({"head_sizes": [8]}, ("head_sizes", "found [8]")),
        ({"head_sizes": [WIDTH, WIDTH]}, ("head_sizes", "found [32, 32]")),
        ({"head_activation": "gelu"}, ("head_activation", "found 'gelu'")),
        ({"pooling": "mean"}, ("pooling", "found 'mean'")),
        ({"bidirectional": True}, ("bidirectional", "found True")),
    ],
)
def test_other_models_are_refused(
    bases: dict[str, str], shake: Any, tmp_path: Path, options: dict[str, Any], reason: tuple[str, str]
) -> None:
    model, tokenizer = prepared(bases["qwen2"], shake, **options)
    with pytest.raises(TaskHeadsError) as caught:
        export_reward_model(model, tokenizer=tokenizer, folder=tmp_path / "out")
    assert reason in [(one.where, one.problem) for one in caught.value.problems]
    assert {one.code for one in caught.value.problems} == {"model-unsupported"}
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_raised_together(bases: dict[str, str], tmp_path: Path) -> None:
    model = build(
        bases["qwen3"],
        task="pooled_classifier",
        labels=["a", "b"],
        max_seq_length=LIMIT,
        pooling="max",
        head="mlp",
        head_sizes=[8],
        head_activation="tanh",
        truncation="windows",
    )
    tokenizer = load_tokenizer(bases["qwen3"])
    bind_template(tokenizer, model.config)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TaskHeadsError) as caught:
        export_reward_model(model, tokenizer=tokenizer, folder=tmp_path)
    assert [problem.where for problem in caught.value.problems] == [
        "text_config",
        "num_labels",
        "head_sizes",
        "head_activation",
        "pooling",
        "truncation",
        str(tmp_path),
    ]


def test_verification_detects_a_head_in_the_wrong_order(
    bases: dict[str, str], shake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = prepared(bases["qwen2"], shake)
    real = reward_model.save_torch_state_dict

    def scaled(tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        real({**tensors, "score.0.bias": tensors["score.0.bias"].flip(0)}, *args, **kwargs)

    monkeypatch.setattr(reward_model, "save_torch_state_dict", scaled)
    with pytest.raises(TaskHeadsError, match="Qwen2ForRewardModel") as caught:
        export_reward_model(model, tokenizer=tokenizer, folder=tmp_path / "out")
    assert caught.value.problems[0].code == "verification-failed"
    assert list(tmp_path.iterdir()) == []


def test_the_stock_export_refers_to_this_one(bases: dict[str, str], shake: Any, tmp_path: Path) -> None:
    model, tokenizer = prepared(bases["qwen2"], shake)
    with pytest.raises(TaskHeadsError) as caught:
        export_stock(model, tokenizer=tokenizer, folder=tmp_path / "out")
    assert [(one.code, one.where) for one in caught.value.problems] == [("model-unsupported", "head")]
    assert "export_reward_model()" in caught.value.problems[0].fix


def test_sharded_weights_are_read_together(bases: dict[str, str], shake: Any, tmp_path: Path) -> None:
    model, tokenizer = prepared(bases["qwen2"], shake)
    folder = export_reward_model(model, tokenizer=tokenizer, folder=tmp_path / "out")
    batch = pad_rows(encode(tokenizer, TEXTS).input_ids, pad_id=0)
    wanted = reference_logits(folder, **batch)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for index, names in enumerate((list(tensors)[:5], list(tensors)[5:])):
        shard = {name: tensors[name] for name in names}
        save_file(shard, folder / f"model-{index + 1:05}-of-00002.safetensors")
    assert_same_logits(reference_logits(folder, **batch), wanted)
