"""Strict loading, adapter repos and the stored probe. This file travels with every published model.

transformers loads what it finds and initialises the rest at random; for a task head that is how a
trained head silently vanishes. Here a missing, extra or reshaped tensor is an error, an adapter repo
loads its true base and then every tensor of the adapter, and a probe stored in `config.json` (token
ids and the logits they must give) is recomputed after the load, which also finds weights that were
swapped under the right names or a base that changed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import cached_file, logging

from .configuration_task_heads import MODEL_TYPES, refuse
from .trust_task_heads import check_base

HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PROBE_ROWS, PROBE_LENGTH = 4, 12
QUANTIZED = "quantized"  # in place of a dtype
# Largest difference, relative to the largest stored logit, that is rounding: one kernel against
# another in fp32, and half precision against anything. Relative, because a fresh MLP head gives 1e-4.
PROBE_TOLERANCE = {torch.float32: 2e-4, torch.float64: 2e-4, torch.bfloat16: 8e-2, torch.float16: 3e-2}


class StrictLoading(PreTrainedModel):
    """`from_pretrained` and `save_pretrained` that lose nothing silently. Base of every task-head model."""

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
            pretrained_model_name_or_path: repo id or folder. A plain backbone needs `config`, and gets
                a fresh `score`; everything else must bring every tensor.
            config: a `TaskHeadConfig`; read from the repo when None.
            adapter_kwargs: set by the Auto classes; where the adapter of this load was found.
            verify: hold a base that is a folder against its stored hashes, and recompute the stored probe
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
            # A duplicated repo: the commit in `kwargs` is one of the repo it was duplicated from.
            hub["revision"] = (adapter_kwargs or {})["revision"]
        own, has_adapter, has_weights = _inspect(cls, repo, hub)
        if config is None:
            config = cls.config_class.from_pretrained(repo, **hub)
        if own and has_adapter and has_weights:
            raise refuse(
                repo,
                "adapter_config.json beside full weights",
                "an adapter or a full model in a folder",
                "keep one of them: their logits differ",
            )
        quantized = kwargs.get("quantization_config") is not None
        with _without_load_report():  # every key of it is checked here
            if own and has_adapter:
                model, info = cls._from_adapter(repo, *args, config=config, hub=hub, verify=verify, **kwargs)
            else:
                if not own:
                    kwargs.setdefault("key_mapping", _backbone_names(config))
                elif not has_weights:  # transformers would look for a pickle
                    accepted = " or ".join(WEIGHTS)
                    raise refuse(
                        repo, "no weights in safetensors", accepted, "save it again, or fetch all of it"
                    )
                model, info = super().from_pretrained(
                    path, *args, config=config, output_loading_info=True, adapter_kwargs=None, **kwargs
                )
                _check_keys(path, info, fresh_head=not own, keep=config.backbone_layers)
                # transformers 5.23 makes what a checkpoint lacks in the dtype of the rest.
                model.score.float()
        if own and verify and not quantized and model.device.type != "meta":
            model.check_probe(repo)
        return (model, info) if output_loading_info else model

    @classmethod
    def _from_adapter(
        cls, repo: str, *args: Any, config: Any, hub: dict[str, Any], verify: bool = True, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Load the true base named by the config, then the adapter at the root of `repo`."""
        base = config.backbone_name_or_path
        if not base:
            raise refuse(
                f"{repo}/config.json",
                "no backbone_name_or_path",
                "the name or folder of the base model",
                "publish the adapter again, or set the field",
            )
        if verify and Path(base).is_dir():
            check_base(base, config.backbone_files)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
        kwargs.setdefault("key_mapping", _backbone_names(config))
        if config.backbone_revision and not config.backbone_hub:  # else the newest, which the probe checks
            kwargs["revision"] = config.backbone_revision
        try:
            model, info = super().from_pretrained(
                base, *args, config=config, output_loading_info=True, adapter_kwargs=None, **kwargs
            )
        except OSError as error:
            raise refuse(
                f"{repo}/config.json",
                f"base {base!r}, which cannot be loaded ({str(error).splitlines()[0][:200]})",
                "a reachable repo id or an existing folder",
                "load it with hub='modelscope', where its base is from"
                if config.backbone_hub
                else "fetch the base, or set backbone_name_or_path to where it is",
            ) from error
        _check_keys(base, info, fresh_head=True, keep=config.backbone_layers)
        _load_adapter(model, repo, hub)
        return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save weights (of a loaded adapter, those of the adapter), config, code and a fresh probe.

        A given `state_dict` means sharded training (FSDP, ZeRO), where one process cannot run the
        model: then no probe is stored rather than a stale one.
        """
        if is_main_process:
            self.config.probe = self.make_probe() if state_dict is None else None
        if self._hf_peft_config_loaded:
            return self._save_adapter(save_directory, state_dict) if is_main_process else None
        # Under the names of our modules: Trainer resumes by them, and knows of no renaming.
        kwargs.setdefault("save_original_format", _backbone_names(self.config) is None)
        with _portable(self.config, adapter=False):
            result = super().save_pretrained(
                save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs
            )
        if is_main_process:
            _copy_pipeline(save_directory)
        return result

    def _save_adapter(self, folder: str | PathLike[str], state_dict: dict[str, Any] | None) -> None:
        """Save the loaded adapter. transformers 5.23 leaves the config out, and fails on a head alone."""
        from peft.utils import get_peft_model_state_dict

        Path(folder).mkdir(parents=True, exist_ok=True)
        name, adapter = next(iter(self.peft_config.items()))
        tensors = get_peft_model_state_dict(self, state_dict=state_dict, adapter_name=name)
        tensors = {f"base_model.model.{key}": value.contiguous() for key, value in tensors.items()}
        save_file(tensors, Path(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
        adapter.save_pretrained(folder)
        custom_object_save(self, folder, config=self.config)
        _copy_pipeline(folder)
        self.save_adapter_config(folder)

    def save_adapter_config(self, folder: str | PathLike[str], *, repo_id: str | None = None) -> None:
        """Write `config.json` beside an adapter, and into `adapter_config.json` where its base is.

        Args:
            folder: holds an `adapter_config.json`.
            repo_id: the hub repo that the folder becomes. There the Auto classes open what
                `adapter_config.json` names as base, so it names the repo itself, whose code then loads
                the true base of `config.json`. Without it the true base is named, as PEFT does.
        """
        path = Path(folder, "adapter_config.json")
        adapter = json.loads(path.read_text(encoding="utf-8"))
        adapter["base_model_name_or_path"] = repo_id or self.config.backbone_name_or_path
        elsewhere = repo_id or self.config.backbone_hub
        adapter["revision"] = None if elsewhere else self.config.backbone_revision
        if isinstance(adapter["target_modules"], list):
            adapter["target_modules"].sort()  # PEFT writes a set, in another order in every process
        path.write_text(json.dumps(adapter, indent=2, sort_keys=True), encoding="utf-8")
        self.config.architectures = [type(self).__name__]
        self.config.dtype = str(self.dtype).split(".")[-1]
        with _portable(self.config, adapter=True):
            self.config.save_pretrained(folder)

    def make_probe(self) -> dict[str, Any]:
        """Token ids (4 rows of 12, spread over the vocabulary) and their logits, for `config.json`."""
        vocabulary = embedding_rows(self)
        steps = torch.arange(1, PROBE_ROWS * PROBE_LENGTH + 1) * 7919  # a prime: rows share no prefix
        input_ids = (steps % vocabulary).view(PROBE_ROWS, PROBE_LENGTH)
        logits = self._probe_logits(input_ids)
        return {
            "input_ids": input_ids.tolist(),
            "logits": logits.tolist(),
            "dtype": QUANTIZED if _is_quantized(self.config) else str(self.dtype).split(".")[-1],
        }

    def check_probe(self, where: str = "config.json") -> None:
        """Recompute the stored probe; a model without one passes.

        Of a quantised model, or one trained on a quantised base, only that its logits are finite is held
        against it: how much 4 bits move them depends on the weights.

        Raises:
            ValueError: the logits differ by more than rounding allows at the dtypes involved.
        """
        probe = self.config.probe
        if not probe:
            return
        expected = torch.tensor(probe["logits"], dtype=torch.float64)
        found = self._probe_logits(torch.tensor(probe["input_ids"])).double()
        if found.shape != expected.shape:
            raise refuse(
                f"{where} probe",
                f"logits {tuple(found.shape)}",
                f"{tuple(expected.shape)}",
                "restore the saved config",
            )
        by_name = {str(dtype).split(".")[-1]: limit for dtype, limit in PROBE_TOLERANCE.items()}
        dtypes = (str(self.dtype).split(".")[-1], str(probe.get("dtype")))
        tolerance = max(by_name.get(name, 8e-2) for name in dtypes)
        if _is_quantized(self.config) or QUANTIZED in dtypes:
            tolerance = torch.finfo(torch.float64).max
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not difference <= tolerance:  # also true for NaN
            raise refuse(
                f"{where} probe",
                f"a relative difference of {difference:.2g}",
                f"at most {tolerance:.0e} in {self.dtype}",
                "weights, base or code are not those that were saved: fetch them again, or pass verify=False",
            )

    @torch.no_grad()
    def _probe_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        training = self.training
        self.eval()
        logits = self(input_ids=input_ids.to(self.device), use_cache=False).logits.float().cpu()
        self.train(training)
        return logits


def embedding_rows(model: PreTrainedModel) -> int:
    """How many ids a model has an embedding for, also below an adapter on the embeddings."""
    modules = model.get_input_embeddings().modules()
    return next(module for module in modules if isinstance(module, torch.nn.Embedding)).num_embeddings


def _inspect(cls: Any, repo: str, hub: dict[str, Any]) -> tuple[bool, bool, bool]:
    """Tell whether `repo` is one of ours, has an adapter at its root, has full weights."""

    def exists(name: str) -> bool:
        return cached_file(repo, name, **hub, _raise_exceptions_for_missing_entries=False) is not None

    if not exists("config.json"):
        return False, False, False
    model_type = cls.config_class.get_config_dict(repo, **hub)[0].get("model_type")
    own = model_type == cls.config_class.model_type
    if model_type in MODEL_TYPES and not own:
        raise refuse(
            f"{repo}/config.json",
            model_type,
            cls.config_class.model_type,
            f"{cls.__name__} cannot open it: use load(), or an Auto class of transformers",
        )
    # Weights and adapter are looked for in our repos only: a plain backbone takes the stock path.
    return own, own and exists("adapter_config.json"), own and any(exists(name) for name in WEIGHTS)


def _copy_pipeline(folder: str | PathLike[str]) -> None:
    """Transformers copies what the model file imports; the pipeline that the config names is not among it."""
    pipeline = Path(__file__).with_name("pipeline_task_heads.py")
    if pipeline.is_file():
        shutil.copyfile(pipeline, Path(folder, pipeline.name))


def _is_quantized(config: Any) -> bool:
    return config.__dict__.get("quantization_config") is not None


@contextmanager
def _portable(config: Any, *, adapter: bool) -> Iterator[None]:
    """Leave out of a config, while it is saved, what is true of this process or this machine alone."""
    kept, text_name = dict(config.__dict__), config.text_config._name_or_path
    base = config.backbone_name_or_path
    config.text_config._name_or_path = ""
    if adapter:  # its base is not quantised; this process had it so
        config.__dict__.pop("quantization_config", None)
    elif base and (Path(base).is_absolute() or Path(base).is_dir()):  # full weights need no base
        config.backbone_name_or_path = config.backbone_files = None
    try:
        yield
    finally:
        config.text_config._name_or_path, config.backbone_name_or_path = text_name, base
        config.backbone_files = kept["backbone_files"]
        if "quantization_config" in kept:
            config.quantization_config = kept["quantization_config"]


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep transformers' table of missing keys off the screen."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _backbone_names(config: Any) -> dict[str, str] | None:
    """Rename the tensors of families that call their backbone otherwise (GPT-2: `transformer`) to `model`."""
    backbone = MODEL_MAPPING.get(type(config.text_config), None)
    prefix = "model" if backbone is None else backbone.base_model_prefix
    return None if prefix == "model" else {rf"^{prefix}\.": "model."}


def _check_keys(where: str, info: dict[str, Any], *, fresh_head: bool, keep: int | None = None) -> None:
    """Refuse a load that left a tensor out. A plain backbone may lack `score`, and bring its `lm_head`.

    It may also bring layers from number `keep` on, where the model is an early exit of so many.
    """
    missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if fresh_head:
        missing = [key for key in missing if not key.startswith("score.")]
        extra = [key for key in extra if not key.startswith("lm_head.") and not _is_above(key, keep)]
    problems = [f"{key} is missing" for key in missing]
    problems += [f"{key} is not part of the model" for key in extra]
    problems += [f"{key} has another shape" for key in sorted(map(str, info.get("mismatched_keys") or []))]
    if problems:
        shown = ", ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise refuse(
            where, shown, "exactly the tensors of the config's model", "save or fetch the model again"
        )


def _is_above(key: str, keep: int | None) -> bool:
    """Whether a tensor belongs to a layer that an early exit does not have."""
    layer = re.match(r"(?:model\.)?layers\.(\d+)\.", key)
    return keep is not None and layer is not None and int(layer[1]) >= keep


def _load_adapter(model: Any, repo: str, hub: dict[str, Any]) -> None:
    """Inject the adapter of `repo` and set every one of its tensors, by name, shape and value."""
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    path = cached_file(repo, "adapter_model.safetensors", **hub)
    saved = load_file(path)
    if not any("score." in key for key in saved):
        raise refuse(
            path, "no score.* tensor", "an adapter with its head", "train it with modules_to_save: score"
        )
    if bad := [key for key, tensor in saved.items() if not bool(tensor.isfinite().all())]:
        raise refuse(path, f"{bad[0]} with NaN or inf", "finite weights", "fetch or train the adapter again")
    names = model._weight_conversions
    model.load_adapter(repo, adapter_kwargs=hub)
    model._weight_conversions = names  # those of the adapter would rename the tensors of a merged model
    expected = get_peft_model_state_dict(model)
    saved = {key.removeprefix("base_model.model."): tensor for key, tensor in saved.items()}
    info = {
        "missing_keys": expected.keys() - saved.keys(),
        "unexpected_keys": saved.keys() - expected.keys(),
        "mismatched_keys": {
            key for key in expected.keys() & saved.keys() if expected[key].shape != saved[key].shape
        },
    }
    _check_keys(path, info, fresh_head=False)
    # transformers 5.23 casts the adapter to the base's dtype and leaves DoRA's magnitudes at their
    # initial values. Training had it in fp32, and PEFT's own loader sets every tensor.
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name or ".lora_" in name:
            parameter.data = parameter.data.float()
    set_peft_model_state_dict(model, saved)
    loaded = get_peft_model_state_dict(model)
    if wrong := [
        key for key in saved if not torch.equal(loaded[key].cpu(), saved[key].to(loaded[key].dtype))
    ]:
        raise refuse(path, f"{wrong[0]} was not loaded", "an adapter that PEFT can load", "upgrade peft")
