"""A trained head as the start of another run, so that LoRA adapts a backbone to a head that already works.

With a new head, the first updates of an adapter follow random directions and distort the features of the
backbone. Training the head on the frozen backbone first avoids that (Kumar et al. 2022,
https://arxiv.org/abs/2202.10054). Options of the head and the template that are not given are those of the
saved head, because a sweep may have chosen fewer layers. Only the tensors of `score` are read, and only if
they have the same meaning: same backbone, layer, pooling, head and template. The run may add labels to those
of the saved head, whose rows are then copied by name (`head_rows`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import cached_file

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.head_rows import added_summary, check_added, rows_by_name
from qwen_task_heads.hubcode.configuration_task_heads import TaskHeadConfig
from qwen_task_heads.hubcode.encoding_task_heads import TEMPLATE_KEY, template_of
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubs import HUGGINGFACE, resolve
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.models import TASKS, load_tokenizer

FILES = (
    "adapter/adapter_model.safetensors",
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
)
# Fields of the config that determine the meaning of a head.
FIELDS = (
    "pooling",
    "head",
    "head_sizes",
    "head_activation",
    "bidirectional",
    "problem_type",
    "backbone_name_or_path",
    "backbone_revision",
)
OPTIONS = {"backbone_name_or_path": "--model_name_or_path", "backbone_revision": "--model_revision"}


def head_options_of(repo: str, names: Sequence[str], *, hub: str = HUGGINGFACE) -> dict[str, Any]:
    """Return the options of a saved head, so that a run with only `--init_head` builds the same head.

    Args:
        repo: folder or id of a model of this library.
        names: fields of the config.
        hub: hub of an id.

    Returns:
        Name to value of the fields that are set; {} for other models, which `load_head` refuses.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import build, load_tokenizer, save
        >>> from qwen_task_heads.training.warm_start import head_options_of
        >>> model = build("embedded", pooling="mean", backbone_layers=1)
        >>> folder = save(model, tokenizer=load_tokenizer("embedded"), folder=tempfile.mkdtemp())
        >>> head_options_of(str(folder), ("pooling", "backbone_layers", "bidirectional"))
        {'pooling': 'mean', 'backbone_layers': 1}
    """
    try:
        fields, _ = TaskHeadConfig.get_config_dict(resolve(repo, hub=hub)[0])
    except OSError:
        return {}
    if fields.get("model_type") not in TASKS:
        return {}
    return {name: fields[name] for name in names if fields.get(name)}


def take_template(tokenizer: Any, repo: str | None, *, hub: str = HUGGINGFACE) -> None:
    """Copy the template of a saved head to a plain tokenizer, before the template is compiled.

    Args:
        tokenizer: of the backbone, changed in place.
        repo: folder or id of a model of this library; without one, or if its vocabulary differs, the
            tokenizer is not changed.
        hub: hub of an id.

    Raises:
        TaskHeadsError: the model does not exist.
    """
    if repo is None:
        return
    saved = load_tokenizer(repo, hub=hub)
    if saved.get_vocab() == tokenizer.get_vocab() and TEMPLATE_KEY in saved.init_kwargs:
        tokenizer.init_kwargs[TEMPLATE_KEY] = saved.init_kwargs[TEMPLATE_KEY]


def load_head(
    model: TaskHeadModel,
    repo: str | None,
    *,
    tokenizer: Any,
    hub: str = HUGGINGFACE,
    messages: list[str] | None = None,
) -> TaskHeadModel:
    """Copy the head of a saved model to a new model.

    Args:
        model: from `build` on a plain backbone, before an adapter is added.
        repo: folder or id of a model of this library, full or adapter; None leaves the model unchanged.
        tokenizer: with the template of this run.
        hub: hub of an id.
        messages: of the report of the run; the labels that are added to those of the head are appended.

    Returns:
        The model.

    Raises:
        TaskHeadsError: the repo has no model of this library, or its head was trained with other settings,
            all of which are named.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import build, load_tokenizer, save
        >>> from qwen_task_heads.training.warm_start import load_head
        >>> tokenizer = load_tokenizer("embedded")
        >>> folder = save(build("embedded"), tokenizer=tokenizer, folder=tempfile.mkdtemp())
        >>> load_head(build("embedded"), str(folder), tokenizer=tokenizer).config.model_type
        'title_scorer'
    """
    if repo is None:
        return model
    saved_tokenizer = load_tokenizer(repo, hub=hub)
    path, _ = resolve(repo, hub=hub)
    fields, _ = type(model.config).get_config_dict(path)
    if fields.get("model_type") != model.config.model_type:
        problem = f"found a {fields.get('model_type')!r} model in {repo}"
        expected = f"a {model.config.model_type}"
        fix = "name a model of this kind"
        raise TaskHeadsError(Problem("--init_head", problem, expected, fix, code="model-type"))
    saved = type(model.config).from_dict(fields)
    problems = _differences(model.config, saved)
    if template_of(tokenizer) != template_of(saved_tokenizer):
        problem, expected = f"found another template than that of {repo}", "the same template"
        fix = "give the --instruction, --between and --boundary it was trained with"
        problems.append(Problem("--init_head", problem, expected, fix, code="option-conflict"))
    if not model.on_plain_base:
        problem = "found it with a model that already has a head"
        fix = "drop one of the two"
        problems.append(Problem("--init_head", problem, "a plain backbone", fix, code="option-conflict"))
    if problems:
        raise TaskHeadsError(problems)
    own, state = model.score.state_dict(), read_head(path)
    if model.config.id2label != saved.id2label:
        labels, before = LabelMap.of_config(model.config), LabelMap.of_config(saved)
        state = rows_by_name(state, model.score, saved=before, labels=labels)
        if messages is not None:
            messages.append(added_summary(labels, before, name="--init_head"))
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if {name: tuple(tensor.shape) for name, tensor in state.items()} != shapes:
        problem = f"found tensors {sorted(state)} of other names or shapes in {repo}"
        fix = "name a model on this backbone"
        problems.append(Problem("--init_head", problem, f"{shapes}", fix, code="model-corrupted"))
    if bad := [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]:
        problem, fix = f"found NaN or inf in score.{bad[0]} of {repo}", "train it again"
        problems.append(Problem("--init_head", problem, "finite numbers", fix, code="number-not-finite"))
    if problems:
        raise TaskHeadsError(problems)
    model.score.load_state_dict(state)
    return model


def read_head(repo: str) -> dict[str, torch.Tensor]:
    """Read only the tensors of `score` of a saved model, by their names in that module.

    Args:
        repo: folder or id of a model of this library.

    Raises:
        TaskHeadsError: a folder or repo without weights.
    """
    paths = {name: _file(repo, name) for name in FILES}
    if all(path is None for path in paths.values()):
        problem, expected = f"found no weights in {repo}", f"one of {', '.join(FILES)}"
        fix = "name the folder of a finished run"
        raise TaskHeadsError(Problem("--init_head", problem, expected, fix, code="model-not-found"))
    name = next(name for name in FILES if paths[name] is not None)
    names = {name}
    if name.endswith(".index.json"):
        content = json.loads(Path(paths[name] or "").read_text(encoding="utf-8"))
        names = {file for key, file in content["weight_map"].items() if key.startswith("score.")}
    state = {}
    for file in sorted(names):
        with safe_open(_file(repo, file), framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                short = key.removeprefix("base_model.model.")
                if short.startswith("score."):
                    state[short.removeprefix("score.")] = tensors.get_tensor(key).float()
    return state


def _file(repo: str, name: str) -> str | None:
    return cached_file(
        repo, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_gated_repo=False
    )


def _differences(config: Any, saved: Any) -> list[Problem]:
    """Return the options that differ between this run and the run of the head."""
    problems = []
    values = {name: (config.__dict__[name], saved.__dict__[name]) for name in FIELDS}
    for name in ("backbone_name_or_path", "backbone_revision"):
        if None in values[name]:  # a full model on a local backbone does not name it
            del values[name]
    layers = config.text_config.num_hidden_layers, saved.text_config.num_hidden_layers
    values |= {"backbone_layers": layers}
    if layers[0] == layers[1]:  # otherwise the difference is already reported
        values["head_layers"] = config.head_layers or [layers[0]], saved.head_layers or [layers[0]]
    for name, (own, theirs) in values.items():
        if own != theirs:
            option = OPTIONS.get(name, f"--{name}")
            expected = f"{theirs!r}, with which the head of --init_head was trained"
            fix = f"give {option} as in that run"
            problems.append(Problem(option, f"found {own!r}", expected, fix, code="option-conflict"))
    try:
        labels, before = LabelMap.of_config(config), LabelMap.of_config(saved)
        check_added(labels, before, problem_type=saved.problem_type, kept=False)
    except TaskHeadsError as error:
        problems += error.problems
    return problems
