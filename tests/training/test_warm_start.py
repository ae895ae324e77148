"""A head is taken over exactly, from any folder of ours, or refused with all that differs."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from qwen_task_heads import LabelMap, adapter_config, bind_template, build, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.hubcode.encoding_task_heads import TEMPLATE_KEY
from qwen_task_heads.tokenization.templates import Template
from qwen_task_heads.training.classifier_arguments import ClassifierArguments
from qwen_task_heads.training.warm_start import head_options_of, load_head, read_head, take_template

LABELS = ("sport", "money", "health")
HEAD = {"head": "mlp", "head_sizes": [8], "pooling": "mean", "backbone_layers": 1}


def fresh(base: str, tokenizer: Any, *, labels: Any = LABELS, before: str = "About: ", **head: Any) -> Any:
    """Return a new model and a tokenizer with the template."""
    options = {**HEAD, "task": "pooled_classifier", "labels": labels, **head}
    model, words = build(base, **options), copy.deepcopy(tokenizer)
    bind_template(words, model.config, template=Template(before=before))
    return model, words


@pytest.fixture(scope="module")
def folders(bases, tokenizer, shake, tmp_path_factory) -> dict[str, Path]:
    """Save the same head in each format."""
    root = tmp_path_factory.mktemp("heads")
    for kind in ("full", "head_only", "lora", "sharded"):
        model, words = fresh(bases["qwen2"], tokenizer)
        if kind in ("head_only", "lora"):
            model = get_peft_model(model, adapter_config(model, r=4, head_only=kind == "head_only"))
        save(shake(model, seed=len(kind)), tokenizer=words, folder=root / kind)
    model, _ = fresh(bases["qwen2"], tokenizer)
    shake(model, seed=7).save_pretrained(root / "sharded", max_shard_size="100KB")
    (root / "sharded" / "model.safetensors").unlink(missing_ok=True)
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("kind", ["full", "head_only", "lora", "sharded"])
def test_the_head_is_the_saved_one(bases, tokenizer, folders, kind) -> None:
    model, words = fresh(bases["qwen2"], tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_head(model, str(folders[kind]), tokenizer=words)
    tensors: dict[str, torch.Tensor] = {}
    for file in folders[kind].rglob("*.safetensors"):
        tensors |= load_file(file)
    for name, tensor in model.state_dict().items():
        if name.startswith("score."):
            [saved] = [tensors[key] for key in tensors if key.endswith(name)]
            assert torch.equal(tensor, saved)
            assert not torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("kind", ["full", "head_only", "lora", "sharded"])
def test_options_that_are_not_given_are_those_of_the_head(bases, tokenizer, folders, kind) -> None:
    """`--init_head` alone sets the number of layers, the pooling and the template."""
    folder = str(folders[kind])
    arguments = ClassifierArguments(dataset_name="x", init_head=folder)
    options = arguments.head_options()
    assert HEAD.items() <= options.items()
    model = build(bases["qwen2"], task="pooled_classifier", labels=LABELS, **options)
    assert len(model.model.layers) == 1
    words = copy.deepcopy(tokenizer)
    take_template(words, folder)
    bind_template(words, model.config, template=arguments.template_for(LabelMap(LABELS)))
    load_head(model, folder, tokenizer=words)
    tensors = {
        name: tensor
        for file in folders[kind].rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    for name, tensor in model.score.state_dict().items():
        [saved] = [tensors[key] for key in tensors if key.endswith(f"score.{name}")]
        assert torch.equal(tensor, saved)
    given = ClassifierArguments(dataset_name="x", init_head=folder, backbone_layers=2, pooling="max")
    assert given.head_options() == options | {
        "backbone_layers": 2,
        "pooling": "max",
    }  # refused by `load_head`


def test_a_missing_or_foreign_head_has_no_options(bases, tmp_path) -> None:
    assert head_options_of(str(tmp_path / "nowhere"), ("pooling",)) == {}
    assert head_options_of(bases["qwen2"], ("pooling",)) == {}


def test_a_template_of_another_vocabulary_is_not_copied(tokenizer, folders) -> None:
    words = copy.deepcopy(tokenizer)
    take_template(words, None)
    assert TEMPLATE_KEY not in words.init_kwargs
    words.add_tokens(["another"])
    take_template(words, str(folders["full"]))
    assert TEMPLATE_KEY not in words.init_kwargs


def test_without_init_head_nothing_changes(bases, tokenizer) -> None:
    model, words = fresh(bases["qwen2"], tokenizer)
    before = copy.deepcopy(model.score.state_dict())
    assert load_head(model, None, tokenizer=words) is model
    assert all(torch.equal(before[name], tensor) for name, tensor in model.score.state_dict().items())


def test_layers_that_are_given_win_over_those_of_the_head(bases, tokenizer, shake, tmp_path) -> None:
    several = {"backbone_layers": None, "head_layers": [1, 2]}
    model, words = fresh(bases["qwen2"], tokenizer, **several)
    folder = str(save(shake(model), tokenizer=words, folder=tmp_path / "several"))
    alone = ClassifierArguments(dataset_name="x", init_head=folder).head_options()
    assert (alone["head_layers"], alone["backbone_layers"]) == ([1, 2], 2)
    task = {"task": "pooled_classifier", "labels": LABELS}
    for given in ({"backbone_layers": 1}, {"head_layers": [1]}, {"head_layers": [2]}):
        options = ClassifierArguments(dataset_name="x", init_head=folder, **given).head_options()
        model, words = build(bases["qwen2"], **task, **options), copy.deepcopy(tokenizer)
        bind_template(words, model.config, template=Template(before="About: "))
        where = "--head_layers" if given == {"head_layers": [2]} else "--backbone_layers"
        with pytest.raises(TaskHeadsError) as caught:
            load_head(model, folder, tokenizer=words)
        assert [problem.where for problem in caught.value.problems] == [where]
    model, words = fresh(bases["qwen2"], tokenizer, **several)
    load_head(model, folder, tokenizer=words)
    for name, tensor in read_head(folder).items():
        assert torch.equal(model.score.state_dict()[name], tensor)


def test_the_last_layer_by_either_option(bases, tokenizer, folders) -> None:
    model, words = fresh(bases["qwen2"], tokenizer, backbone_layers=None, head_layers=[1])
    assert load_head(model, str(folders["full"]), tokenizer=words) is model


DIFFERENT = {
    "--pooling": {"pooling": "max"},
    "--head_sizes": {"head_sizes": [16]},
    "--head_activation": {"head_activation": "gelu"},
    "--backbone_layers": {"backbone_layers": 2},
    "--labels": {"labels": ("money", "sport", "health")},
    "--problem_type": {"problem_type": "multi_label_classification"},
    "--init_head": {"before": "Of: "},
}


@pytest.mark.parametrize("option", DIFFERENT)
def test_a_head_with_other_settings_is_refused(bases, tokenizer, folders, option) -> None:
    model, words = fresh(bases["qwen2"], tokenizer, **DIFFERENT[option])
    before = copy.deepcopy(model.score.state_dict())
    with pytest.raises(TaskHeadsError) as caught:
        load_head(model, str(folders["full"]), tokenizer=words)
    assert [problem.where for problem in caught.value.problems] == [option]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.score.state_dict().items())


@pytest.mark.parametrize("kind", ["full", "head_only", "lora", "sharded"])
def test_added_labels_keep_the_rows_of_the_others(bases, tokenizer, folders, kind) -> None:
    wider, messages = ("art", "health", "sport", "cars", "money"), []
    model, words = fresh(bases["qwen2"], tokenizer, labels=wider)
    load_head(model, str(folders[kind]), tokenizer=words, messages=messages)
    state = read_head(str(folders[kind]))
    for name, tensor in model.score.state_dict().items():
        saved = state[name]
        if name.startswith("3."):  # the last layer of the MLP
            for place, label in enumerate(wider):
                own = saved[LABELS.index(label)] if label in LABELS else saved.mean(0)
                assert torch.equal(tensor[place], own), (name, label)
        else:
            assert torch.equal(tensor, saved)
    assert len(messages) == 1
    assert all(repr(label) in messages[0] for label in wider)


@pytest.mark.parametrize("labels", [("sport", "money"), ("sport", "money", "art", "cars"), ("a", "b")])
def test_labels_without_all_of_the_head_are_refused(bases, tokenizer, folders, labels) -> None:
    model, words = fresh(bases["qwen2"], tokenizer, labels=labels)
    with pytest.raises(TaskHeadsError) as caught:
        load_head(model, str(folders["full"]), tokenizer=words)
    assert [problem.where for problem in caught.value.problems] == ["--labels"]


def test_an_ordinal_head_takes_no_further_label(bases, tokenizer, shake, tmp_path) -> None:
    model, words = fresh(bases["qwen2"], tokenizer, problem_type="ordinal")
    folder = str(save(shake(model), tokenizer=words, folder=tmp_path))
    model, words = fresh(bases["qwen2"], tokenizer, problem_type="ordinal", labels=(*LABELS, "art"))
    with pytest.raises(TaskHeadsError) as caught:
        load_head(model, folder, tokenizer=words)
    assert [problem.where for problem in caught.value.problems] == ["--labels"]


def test_all_differences_are_in_one_error(bases, tokenizer, folders) -> None:
    model, words = fresh(bases["qwen2"], tokenizer, pooling="max", labels=("a", "b"), before="Of: ")
    with pytest.raises(TaskHeadsError) as caught:
        load_head(model, str(folders["full"]), tokenizer=words)
    assert {problem.where for problem in caught.value.problems} == {"--pooling", "--labels", "--init_head"}


def test_another_backbone_is_refused_if_the_model_names_one(bases, tokenizer, folders) -> None:
    model, words = fresh(bases["llama"], tokenizer)
    with pytest.raises(TaskHeadsError, match="--model_name_or_path"):
        load_head(model, str(folders["head_only"]), tokenizer=words)


def test_the_head_of_another_task_is_refused(bases, tokenizer, folders) -> None:
    with pytest.raises(TaskHeadsError, match="title_scorer") as caught:
        load_head(build(bases["qwen2"]), str(folders["full"]), tokenizer=tokenizer)
    assert [(one.where, one.code) for one in caught.value.problems] == [("--init_head", "model-type")]


def test_a_trained_model_keeps_its_own_head(tokenizer, folders) -> None:
    folder = str(folders["full"])
    model, words = build(folder, task="pooled_classifier"), copy.deepcopy(tokenizer)
    bind_template(words, model.config, template=Template(before="About: "))
    with pytest.raises(TaskHeadsError) as caught:
        load_head(model, folder, tokenizer=words)
    assert {(one.where, one.code) for one in caught.value.problems} == {("--init_head", "option-conflict")}


@pytest.mark.parametrize("damage", ["shape", "name", "nan", "gone"])
def test_corrupted_tensors_are_refused(bases, tokenizer, folders, tmp_path, damage) -> None:
    folder = tmp_path / "corrupted"
    shutil.copytree(folders["head_only"], folder)
    path = folder / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    key = next(name for name in tensors if name.endswith("score.0.weight"))
    if damage == "shape":
        tensors[key] = tensors[key][:4].clone()
    elif damage == "name":
        tensors[f"{key}s"] = tensors.pop(key)
    elif damage == "nan":
        tensors[key][0, 0] = torch.nan
    save_file(tensors, path)
    if damage == "gone":
        path.unlink()
    model, words = fresh(bases["qwen2"], tokenizer)
    before = copy.deepcopy(model.score.state_dict())
    with pytest.raises(TaskHeadsError) as caught:
        load_head(model, str(folder), tokenizer=words)
    codes = {"nan": "number-not-finite", "gone": "model-not-found"}
    expected = ("--init_head", codes.get(damage, "model-corrupted"))
    assert [(one.where, one.code) for one in caught.value.problems] == [expected]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.score.state_dict().items())


def test_a_missing_folder_is_refused(bases, tokenizer, tmp_path) -> None:
    model, words = fresh(bases["qwen2"], tokenizer)
    with pytest.raises(TaskHeadsError, match="nowhere"):
        load_head(model, str(tmp_path / "nowhere"), tokenizer=words)
    with pytest.raises(TaskHeadsError) as caught:
        read_head(str(tmp_path))
    assert [(one.where, one.code) for one in caught.value.problems] == [("--init_head", "model-not-found")]
