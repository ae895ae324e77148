"""Strict loading, adapter repos and the stored probe. This file is copied into every published model.

transformers initialises missing tensors at random, so a trained head can be lost without an error. Here a
missing, extra or reshaped tensor raises an error. An adapter repo loads the base of its config and then every
tensor of the adapter. A probe in `config.json` (token ids and their logits) is recomputed after the load; it
also finds weights that were swapped under the right names, and a base that changed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import cached_file, logging

from .configuration_task_heads import MODEL_TYPES
from .errors_task_heads import TaskHeadError, refuse
from .folder_task_heads import ADAPTER
from .hashes_task_heads import check_base, models_cache
from .probe_task_heads import probe_difference
from .saving_task_heads import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    SEE_SAVE,
    WEIGHTS,
    StrictSaving,
    backbone_names,
)

HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class StrictLoading(StrictSaving):
    """`from_pretrained` that requires every tensor. Base of every task-head model."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *args: Any,
        config: Any = None,
        adapter_kwargs: dict[str, Any] | None = None,
        verify: bool = True,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a full model, an adapter repo (its base, then the adapter) or a plain backbone.

        Args:
            pretrained_model_name_or_path: repo id or folder. A plain backbone needs `config` and gets a new
                `score`; any other model must have every tensor.
            config: a `TaskHeadConfig`; read from the repo if None.
            adapter_kwargs: set by the Auto classes: the place of the adapter.
            verify: compare a base that is a folder with its stored hashes, and recompute the stored probe
                after the load.
            output_loading_info: also return the dictionary of missing and unexpected keys.
            **kwargs: passed on to transformers (`dtype`, `device_map`, `revision`, ...).

        Raises:
            ValueError: a model of another class, a missing, extra or reshaped tensor, or a probe that
                does not match.
        """
        path = str(pretrained_model_name_or_path)
        repo = str((adapter_kwargs or {}).get("_adapter_model_path") or path)
        hub = {key: kwargs[key] for key in HUB_KEYS if kwargs.get(key) is not None}
        if repo != path and (adapter_kwargs or {}).get("revision"):
            # In a duplicated repo, the commit in `kwargs` belongs to the original repo.
            hub["revision"] = (adapter_kwargs or {})["revision"]
        own, adapter, has_weights = _inspect(cls, repo, hub)
        if config is None:
            config = cls.config_class.from_pretrained(repo, **hub)
        if own and adapter is not None and has_weights:
            raise TaskHeadError(
                repo,
                "found adapter_config.json next to full weights",
                "an adapter or a full model in a folder",
                "keep one of them: their logits differ",
                code="model-ambiguous",
            )
        quantized = kwargs.get("quantization_config") is not None
        kwargs["ignore_mismatched_sizes"] = True  # `_check_keys` raises for them, with their names
        with _without_load_report():  # `_check_keys` checks every key of the report
            if own and adapter is not None:
                place = hub | {"subfolder": adapter} if adapter else hub
                model, info = cls._from_adapter(
                    repo, *args, config=config, hub=place, verify=verify, **kwargs
                )
            else:
                if not own:
                    kwargs.setdefault("key_mapping", backbone_names(config))
                elif not has_weights:  # transformers would look for a pickle
                    raise TaskHeadError(
                        repo,
                        "weights in safetensors are missing",
                        " or ".join(WEIGHTS),
                        "save it again, or fetch all of it",
                        code="model-corrupted",
                    )
                model, info = super().from_pretrained(
                    path, *args, config=config, output_loading_info=True, adapter_kwargs=None, **kwargs
                )
                _check_keys(path, info, plain=None if own else config)
                # transformers 5.23 creates tensors that a checkpoint lacks in the dtype of the others.
                model.score.float()
        model.on_plain_base = not own or adapter is not None
        if own:
            model.source = (repo, _pinned(repo, hub))
        if model.on_plain_base:  # PEFT writes this name into an adapter that it saves by itself
            model.name_or_path = SEE_SAVE
        if own and verify and not quantized and model.device.type != "meta":
            model.check_probe(repo)
        return (model, info) if output_loading_info else model

    @classmethod
    def _from_adapter(
        cls, repo: str, *args: Any, config: Any, hub: dict[str, Any], verify: bool = True, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Load the base named by the config, then the adapter of `repo`; `hub` names its subfolder."""
        base = config.backbone_name_or_path
        if not base:
            raise TaskHeadError(
                f"{repo}/config.json",
                "backbone_name_or_path is missing",
                "the name or folder of the base model",
                "publish the adapter again, or set the field",
                code="config-invalid",
            )
        base = cached_base(base)
        if verify and Path(base).is_dir():
            check_base(base, config.backbone_files)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
        kwargs.setdefault("key_mapping", backbone_names(config))
        if config.backbone_revision and not config.backbone_hub:  # else the newest, verified by the probe
            kwargs["revision"] = config.backbone_revision
        try:
            model, info = super().from_pretrained(
                base, *args, config=config, output_loading_info=True, adapter_kwargs=None, **kwargs
            )
        except OSError as error:
            raise TaskHeadError(
                f"{repo}/config.json",
                f"base {base!r} cannot be loaded ({str(error).splitlines()[0][:200]})",
                "a reachable repo id or an existing folder",
                f"load it with hub={config.backbone_hub!r}, the hub of its base"
                if config.backbone_hub
                else "fetch the base, or set backbone_name_or_path to where it is",
                code="base-changed",
            ) from error
        _check_keys(base, info, plain=config)
        _load_adapter(model, repo, hub)
        return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}

    def check_probe(self, where: str = "config.json") -> None:
        """Recompute the stored probe and compare its logits; a model without a probe passes.

        For a quantised model, or a model trained on a quantised base, the logits must only be finite, because
        the effect of 4 bits depends on the weights.

        Raises:
            ValueError: logits that differ by more than the rounding of the dtypes.
        """
        if not self.config.probe:
            return
        found = self.probe_logits(torch.tensor(self.config.probe["input_ids"]))
        dtype = str(self.dtype).removeprefix("torch.")
        difference, limit = probe_difference(self.config, found, dtype=dtype, where=f"{where} probe")
        if not difference <= limit:  # also true for NaN
            raise TaskHeadError(
                f"{where} probe",
                f"the logits differ from the stored ones by {difference:.2g}, relative to the largest",
                f"at most {limit:.0e} in {dtype}",
                "fetch weights, base and code again, or pass verify=False to load them as they are",
                code="model-corrupted",
            )


def _inspect(cls: Any, repo: str, hub: dict[str, Any]) -> tuple[bool, str | None, bool]:
    """Return whether `repo` is a model of `cls`, the subfolder of its adapter, whether it has weights."""
    if not _exists(repo, "config.json", hub):
        return False, None, False
    model_type = cls.config_class.get_config_dict(repo, **hub)[0].get("model_type")
    own = model_type == cls.config_class.model_type
    if model_type in MODEL_TYPES and not own:
        raise refuse(
            f"{repo}/config.json",
            model_type,
            f"{cls.config_class.model_type}, the type of {cls.__name__}",
            "use load(), or an Auto class of transformers",
            code="model-type",
        )
    # Weights and adapter are checked in repos of this library only; plain backbones load as in transformers.
    if not own:
        return False, None, False
    return True, find_adapter(repo, **hub), any(_exists(repo, name, hub) for name in WEIGHTS)


def cached_base(name: str) -> str:
    """Return the folder of a base that qwen-task-heads caches by name; any other name unchanged."""
    folder = models_cache() / name
    is_name = re.fullmatch(r"[\w.-]+", name) is not None and not Path(name).is_dir()
    return str(folder) if is_name and folder.is_dir() else name


def find_adapter(repo: str, **hub: Any) -> str | None:
    """Return the subfolder of the adapter in a model of this library; None without an adapter.

    It is "" for an adapter at the root, where version 0.1 saved it.

    Args:
        repo: folder or repo id.
        **hub: options of transformers such as `revision` and `subfolder`, which contains that of the adapter.

    Example:
        >>> from qwen_task_heads.hubcode.loading_task_heads import find_adapter
        >>> find_adapter(".") is None
        True
    """
    outer = hub.get("subfolder") or ""
    for inner in (ADAPTER, ""):
        subfolder = "/".join(part for part in (outer, inner) if part)
        if _exists(repo, ADAPTER_CONFIG, {**hub, "subfolder": subfolder}):
            return subfolder
    return None


def _pinned(repo: str, hub: dict[str, Any]) -> dict[str, Any]:
    """Return hub options that pin the commit that was loaded, even if its branch moves later."""
    kept: dict[str, Any] = {
        key: hub[key] for key in ("cache_dir", "token", "revision", "subfolder") if key in hub
    }
    path = cached_file(
        repo,
        "config.json",
        **kept,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    found = re.search(r"/snapshots/([0-9a-f]{40})/", Path(path or "").as_posix())
    return {**kept, "revision": found[1]} if found else kept


def _exists(repo: str, name: str, hub: dict[str, Any]) -> bool:
    return cached_file(repo, name, **hub, _raise_exceptions_for_missing_entries=False) is not None


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Silence transformers' report of missing keys."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _check_keys(where: str, info: dict[str, Any], *, plain: Any = None) -> None:
    """Raise for missing, extra and reshaped tensors.

    A plain backbone, loaded with the config `plain`, may lack `score` and may have its output layer and the
    layers above an early exit.
    """
    missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if plain is not None:
        missing = [key for key in missing if not key.startswith("score.")]
        extra = [key for key in extra if not _is_above(key, plain.backbone_layers)]
        extra = _without_output_layer(extra, plain.text_config) if extra else []
    problems = [f"{key} is missing" for key in missing]
    problems += [f"{key} is not part of the model" for key in extra]
    shapes = info.get("mismatched_keys") or []  # names; from transformers, tuples with both shapes
    problems += [f"{key if isinstance(key, str) else key[0]} has another shape" for key in sorted(shapes)]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise TaskHeadError(
            where,
            ", ".join(problems[:5]) + more,
            "exactly the tensors of the config's model",
            "save or fetch the model again",
            code="model-corrupted",
        )


def _without_output_layer(keys: list[str], text_config: Any) -> list[str]:
    """Return the keys that are not in the output layer of the family's causal language model.

    Names of output layers differ by class (GPT-NeoX: `embed_out`, RWKV: `head`); old names that transformers
    renames are known too.
    """
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text_config), None)
    if family is None:
        return [key for key in keys if not key.startswith("lm_head.")]
    with torch.device("meta"):
        causal = family(copy.deepcopy(text_config))
    inside = tuple(f"{name}." for name, part in causal.named_children() if isinstance(part, PreTrainedModel))
    tensors = [name for name in causal.state_dict() if not name.startswith(inside)]
    modules = tuple({name[: name.rfind(".") + 1] or name for name in tensors})
    ignored = [*(family._keys_to_ignore_on_load_unexpected or ())]
    renamings = [
        transform
        for transform in get_model_conversion_mapping(causal)
        if isinstance(transform, WeightRenaming)
    ]

    def is_known(key: str) -> bool:
        names = {key, *(transform.rename_source_key(key)[0] for transform in renamings)}
        return any(name.startswith(modules) for name in names) or any(re.search(p, key) for p in ignored)

    return [key for key in keys if not is_known(key)]


def _is_above(key: str, keep: int | None) -> bool:
    """Return whether a tensor belongs to a layer above an early exit."""
    layer = re.match(r"(?:model\.)?layers\.(\d+)\.", key)
    return keep is not None and layer is not None and int(layer[1]) >= keep


def _load_adapter(model: Any, repo: str, hub: dict[str, Any]) -> None:
    """Inject the adapter of `repo`, set all of its tensors, and verify their names, shapes and values."""
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    path = cached_file(repo, ADAPTER_WEIGHTS, **hub)
    saved = load_file(path)
    if not any("score." in key for key in saved):
        raise TaskHeadError(
            path,
            "tensors score.* of the head are missing",
            "an adapter with its head",
            "train it with modules_to_save: score",
            code="model-corrupted",
        )
    if bad := [key for key, tensor in saved.items() if not bool(tensor.isfinite().all())]:
        raise TaskHeadError(
            path,
            f"{bad[0]} contains NaN or inf",
            "finite weights",
            "fetch or train the adapter again",
            code="number-not-finite",
        )
    names = model._weight_conversions
    model.load_adapter(repo, adapter_kwargs=hub)
    model._weight_conversions = names  # those of the adapter would rename the tensors of a merged model
    # Embeddings only if they were trained: by default PEFT asks the hub for the vocabulary of the base.
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    saved = {key.removeprefix("base_model.model."): tensor for key, tensor in saved.items()}
    info = {
        "missing_keys": expected.keys() - saved.keys(),
        "unexpected_keys": saved.keys() - expected.keys(),
        "mismatched_keys": {
            key for key in expected.keys() & saved.keys() if expected[key].shape != saved[key].shape
        },
    }
    _check_keys(path, info)
    # transformers 5.23 casts the adapter to the base's dtype and leaves DoRA's magnitudes at their
    # initial values. Training had it in fp32, and PEFT's own loader sets every tensor.
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name or ".lora_" in name:
            parameter.data = parameter.data.float()
    set_peft_model_state_dict(model, saved)
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    if wrong := [
        key for key in saved if not torch.equal(loaded[key].cpu(), saved[key].to(loaded[key].dtype))
    ]:
        raise TaskHeadError(
            path,
            f"{wrong[0]} was not loaded",
            "an adapter that PEFT can load",
            "upgrade peft",
            code="package-version",
        )
