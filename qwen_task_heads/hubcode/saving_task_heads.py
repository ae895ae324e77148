"""Write the folder of a model, in the same layout for every way to save or push it.

This file is copied into every published model.

| path | content |
|---|---|
| `config.json` | backbone, pooling, head, labels, template, base, and `auto_map` to the code |
| `*_task_heads.py`, `handler.py` | the code that loads it in a process without the package |
| `model.safetensors`, or `adapter/` | all weights, or the adapter on the base that `config.json` names |
| tokenizer files | if the model knows its tokenizer |
| `README.md`, `manifest.json` | model card; SHA-256 of each file |

The adapter is in a subfolder because the Auto classes follow an `adapter_config.json` at the root of a repo
to its base before they read `config.json`. Such a repo loads as the stock class of the base, with a random
head. With the subfolder, a folder loads in the same way after any upload, copy or move.

Source: transformers 5.23, `_BaseAutoModelClass.from_pretrained`; peft 0.21, `PeftModel.save_pretrained`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import CommitInfo
from safetensors.torch import save_file
from transformers import MODEL_MAPPING, PreTrainedModel

from .errors_task_heads import TaskHeadError, refuse
from .folder_task_heads import ADAPTER, complete
from .pushing_task_heads import push

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# In `adapter_config.json` in place of a base. A loader that ignores our config would put the adapter on a
# stock class with another head. A name that no hub accepts stops it, and names the right place.
SEE_CONFIG = "see backbone_name_or_path in ../config.json"
SEE_SAVE = "not a base: save this model with qwen_task_heads.save"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # of a full model
PROBE_ROWS, PROBE_LENGTH = 4, 12
QUANTIZED = "quantized"  # in place of a dtype
# Of `push_to_hub`, for `save_pretrained(..., push_to_hub=True)`.
PUSH_OPTIONS = tuple(inspect.signature(push).parameters)[2:]


class StrictSaving(PreTrainedModel):
    """`save_pretrained` and `push_to_hub` that write complete models. Base of every task-head model.

    Attributes:
        tokenizer: saved with the model if set; the package's trainers and `save` set it.
        evaluations: metrics, each with logits of the weights that they belong to; see `record_evaluation`.
        card_facts: fields of the card's metadata that its owner stated.
        on_plain_base: whether an adapter of this model needs only the backbone that `config` names.
        source: the folder or repo that this model was loaded from, and options of the hub.
        publisher: pushes a saved folder; set by the package, which checks repo and model first.
    """

    tokenizer: Any = None
    evaluations: tuple[tuple[dict[str, float], list[list[float]]], ...] = ()
    card_facts: ClassVar[dict[str, Any]] = {}
    on_plain_base: bool = True
    source: tuple[str, dict[str, Any]] | None = None
    publisher: ClassVar[Any] = None

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save weights (only the adapter, if one is loaded), config, code, card and a new probe.

        Args:
            save_directory: created if absent; files of the same names are replaced.
            is_main_process: whether this process writes.
            state_dict: tensors collected from sharded training (FSDP, ZeRO). No probe is stored then, because
                one process cannot run the model.
            push_to_hub: push the model too, to `repo_id` or a repo named as the folder.
            **kwargs: as in transformers: `max_shard_size`, and for a push those of `push_to_hub`.
        """
        folder = Path(save_directory)
        options = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        if is_main_process:
            self.config.probe = self.make_probe() if state_dict is None else None
        if self._hf_peft_config_loaded:
            if is_main_process:
                self.write_adapter(folder, state_dict=state_dict)
        else:
            _clear_weights(folder, adapter=False)
            # Under the names of our modules, by which Trainer resumes; it does not rename tensors.
            kwargs.setdefault("save_original_format", backbone_names(self.config) is None)
            with portable(self.config, adapter=False):
                super().save_pretrained(
                    folder, is_main_process=is_main_process, state_dict=state_dict, **kwargs
                )
        if is_main_process:
            complete(self, folder)
            if push_to_hub:
                self.push_to_hub(options.pop("repo_id", folder.name), **options)

    def save_around(
        self, peft_model: Any, folder: str | PathLike[str], *, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Save the adapter of a `PeftModel` around this model in the layout of `save_pretrained`."""
        self.config.probe = self.make_probe() if state_dict is None else None
        self.write_adapter(folder, peft_model=peft_model, state_dict=state_dict)
        complete(self, folder)

    def write_adapter(
        self, folder: str | PathLike[str], *, peft_model: Any = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Write `adapter/` and the `config.json` that loads it.

        Args:
            folder: folder of the model.
            peft_model: the `PeftModel` around this model; None for an adapter that this model loaded itself.
            state_dict: as in `save_pretrained`.
        """
        from peft.utils import get_peft_model_state_dict

        if not self.on_plain_base:
            raise TaskHeadError(
                "adapter",
                "its base is a model that is already trained",
                "an adapter on a plain backbone, which others can fetch",
                "merge it (qwen_task_heads.merge) and save the full model",
                code="model-unsupported",
            )
        around = self if peft_model is None else peft_model
        if len(around.peft_config) != 1:
            raise refuse(
                "adapters",
                sorted(around.peft_config),
                "one adapter",
                "merge or delete the others",
                code="model-ambiguous",
            )
        ((name, config),) = around.peft_config.items()
        tensors = get_peft_model_state_dict(
            around, state_dict=state_dict, adapter_name=name, save_embedding_layers=False
        )
        prefix = "base_model.model." if peft_model is None else ""  # names that PEFT's loader expects
        inside = Path(folder, ADAPTER)
        _clear_weights(Path(folder), adapter=True)
        inside.mkdir(parents=True, exist_ok=True)
        save_file(
            {f"{prefix}{key}": value.contiguous() for key, value in tensors.items()},
            inside / ADAPTER_WEIGHTS,
            metadata={"format": "pt"},
        )
        config.save_pretrained(inside)
        _name_no_base(inside / ADAPTER_CONFIG)
        self.config.architectures = [type(self).__name__]
        self.config.dtype = str(self.dtype).split(".")[-1]
        with portable(self.config, adapter=True):
            self.config.save_pretrained(folder)

    def record_evaluation(self, metrics: dict[str, float]) -> None:
        """Store metrics of the current weights, for the card of these weights only."""
        self.evaluations = (*self.evaluations, (metrics, self.make_probe()["logits"]))

    def recorded_evaluation(self) -> dict[str, float] | None:
        """Return the metrics that were recorded for the current weights; None if there are none."""
        if not self.evaluations:
            return None
        now = self.make_probe()["logits"]
        return next((metrics for metrics, logits in reversed(self.evaluations) if logits == now), None)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, max_shard_size: int | str | None = "50GB", **options: Any
    ) -> CommitInfo:
        """Push the model in one commit, as a repo that loads in one line.

        Args:
            repo_id: `owner/name`, or a name without owner for the account of the token.
            max_shard_size: largest file of full weights.
            **options: as in transformers: `commit_message`, `commit_description`, `private`, `token`,
                `revision`, `create_pr`, `tags`; see `push`.

        Raises:
            ValueError: see `push`; nothing was uploaded.
        """

        def save(folder: Path) -> None:
            self.save_pretrained(folder, max_shard_size=max_shard_size)

        return push(self, save, repo_id=repo_id, **options)

    def make_probe(self) -> dict[str, Any]:
        """Return token ids (4 rows of 12, spread over the vocabulary) and their logits, for `config.json`."""
        vocabulary = embedding_rows(self)
        steps = torch.arange(1, PROBE_ROWS * PROBE_LENGTH + 1) * 7919  # a prime: rows share no prefix
        input_ids = (steps % vocabulary).view(PROBE_ROWS, PROBE_LENGTH)
        logits = self.probe_logits(input_ids)
        return {
            "input_ids": input_ids.tolist(),
            "logits": logits.tolist(),
            "dtype": QUANTIZED if is_quantized(self.config) else str(self.dtype).split(".")[-1],
        }

    @torch.no_grad()
    def probe_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, L) of `input_ids` (B, T) in evaluation mode, in fp32 on the CPU."""
        training = self.training
        self.eval()
        input_ids = input_ids.to(self.device)
        mask = torch.ones_like(input_ids)  # pad ids count as tokens here
        logits = self(input_ids=input_ids, attention_mask=mask, use_cache=False).logits.float().cpu()
        self.train(training)
        return logits


def move_adapter(folder: str | PathLike[str]) -> None:
    """Move an adapter that version 0.1 saved at the root of a folder to its subfolder."""
    inside = Path(folder, ADAPTER)
    inside.mkdir(exist_ok=True)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        Path(folder, name).replace(inside / name)
    _name_no_base(inside / ADAPTER_CONFIG)


def _name_no_base(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"base_model_name_or_path": SEE_CONFIG, "revision": None, "inference_mode": True}
    if isinstance(content["target_modules"], list):
        content["target_modules"].sort()  # PEFT writes a set, in another order in every process
    path.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def _clear_weights(folder: Path, *, adapter: bool) -> None:
    """Remove weights that the next save would not replace; raise for weights of the other kind."""
    full = [*(folder / name for name in WEIGHTS), *folder.glob("model-*-of-*.safetensors")]
    adapters = [folder / ADAPTER / ADAPTER_CONFIG, folder / ADAPTER_CONFIG]  # current; version 0.1
    others = [path for path in (full if adapter else adapters) if path.is_file()]
    if others:
        raise refuse(
            str(folder),
            others[0].name,
            f"a folder without {'full weights' if adapter else 'an adapter'}",
            "save to a new folder",
            code="path-exists",
        )
    for path in [folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS] if adapter else full:
        path.unlink(missing_ok=True)


def embedding_rows(model: PreTrainedModel) -> int:
    """Return the number of ids with an embedding, also if an adapter wraps the embeddings."""
    modules = model.get_input_embeddings().modules()
    return next(module for module in modules if isinstance(module, torch.nn.Embedding)).num_embeddings


def is_quantized(config: Any) -> bool:
    """Return whether a config is that of a quantised model."""
    return config.__dict__.get("quantization_config") is not None


def backbone_names(config: Any) -> dict[str, str] | None:
    """Return a mapping to `model` for families with another name of the backbone (GPT-2: `transformer`)."""
    backbone = MODEL_MAPPING.get(type(config.text_config), None)
    prefix = "model" if backbone is None else backbone.base_model_prefix
    return None if prefix == "model" else {rf"^{prefix}\.": "model."}


@contextmanager
def portable(config: Any, *, adapter: bool) -> Iterator[None]:
    """Remove fields that apply only to this process or machine from a config while it is saved."""
    kept, text_name = dict(config.__dict__), config.text_config._name_or_path
    base = config.backbone_name_or_path
    config.text_config._name_or_path = ""
    if adapter:  # only this process quantised the base
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
