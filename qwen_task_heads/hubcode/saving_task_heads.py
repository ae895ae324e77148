"""Write the folder of a model, the same for every way to save or push it. This file travels.

| path | content |
|---|---|
| `config.json` | backbone, pooling, head, labels, template, true base, and `auto_map` to the code beside it |
| `*_task_heads.py`, `handler.py` | the code that opens it in a process without the package |
| `model.safetensors`, or `adapter/` | all weights, or what was trained on the base that `config.json` names |
| tokenizer files | if the model knows its tokenizer |
| `README.md`, `manifest.json` | model card; SHA-256 of each file |

The adapter is in a subfolder because the Auto classes follow an `adapter_config.json` at the root of a repo
to its base before they read `config.json`: such a repo opens as the stock class of the base, with a random
head. With the subfolder a folder opens in the same way after any upload, copy or move.

Source: transformers 5.23, `_BaseAutoModelClass.from_pretrained`; peft 0.21, `PeftModel.save_pretrained`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import CommitInfo
from safetensors.torch import save_file
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.utils import cached_file, logging

from .card_task_heads import basic_card
from .configuration_task_heads import refuse
from .pushing_task_heads import CARD, REFERENCE, ROWS, push
from .trust_task_heads import DRAFT, MANIFEST, hash_files, read_manifest, write_manifest

logger = logging.get_logger(__name__)

ADAPTER = "adapter"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# In `adapter_config.json` in place of a base. A loader that follows it without our config would put the
# adapter on a stock class with another head; a name that no hub takes stops it, and says where to look.
SEE_CONFIG = "see backbone_name_or_path in ../config.json"
SEE_SAVE = "not a base: save this model with qwen_task_heads.save"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
# What describes certain weights, and is wrong of any others.
DESCRIBES = (CARD, REFERENCE, "metrics.json", "parity.json", "*.png", ".eval_results/*.yaml")
# A server with an older transformers installs these before it runs the code; torch is the server's own.
REQUIREMENTS = "transformers>=5.3,<6\n"
ADAPTER_REQUIREMENTS = REQUIREMENTS + "peft>=0.18\n"
PROBE_ROWS, PROBE_LENGTH = 4, 12
QUANTIZED = "quantized"  # in place of a dtype


class StrictSaving(PreTrainedModel):
    """`save_pretrained` and `push_to_hub` that leave nothing out. Base of every task-head model.

    Attributes:
        tokenizer: saved with the model if set; the package's trainers and `save` set it.
        evaluation: metrics, and logits of the weights that they belong to; see `record_evaluation`.
        publisher: pushes a saved folder; set by the package, which checks repo and model first.
    """

    tokenizer: Any = None
    evaluation: tuple[dict[str, float], list[list[float]]] | None = None
    publisher: ClassVar[Any] = None
    _source: tuple[str, dict[str, Any]] | None = None  # where this model was loaded from, and its hub options

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save weights (of a loaded adapter, those of the adapter), config, code, card and a fresh probe.

        Args:
            save_directory: created if absent; files of the same names are replaced.
            is_main_process: whether this process writes.
            state_dict: tensors collected from sharded training (FSDP, ZeRO), where one process cannot run the
                model. No probe is stored then, because it could not be computed.
            push_to_hub: push the model too, to `repo_id` or a repo named as the folder.
            **kwargs: as in transformers: `max_shard_size`, and for a push `repo_id`, `private`, `token`,
                `commit_message`, `revision`, `create_pr`.
        """
        folder = Path(save_directory)
        names = ("repo_id", "private", "token", "commit_message", "revision", "create_pr")
        push = {name: kwargs.pop(name) for name in names if name in kwargs}
        if is_main_process:
            self.config.probe = self.make_probe() if state_dict is None else None
        if self._hf_peft_config_loaded:
            if is_main_process:
                self.write_adapter(folder, state_dict=state_dict)
        else:
            # Under the names of our modules: Trainer resumes by them, and knows of no renaming.
            kwargs.setdefault("save_original_format", backbone_names(self.config) is None)
            with portable(self.config, adapter=False):
                super().save_pretrained(
                    folder, is_main_process=is_main_process, state_dict=state_dict, **kwargs
                )
        if is_main_process:
            self.complete(folder)
            if push_to_hub:
                self.push_to_hub(push.pop("repo_id", folder.name), **push)

    def save_around(
        self, peft_model: Any, folder: str | PathLike[str], *, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Save the adapter of a `PeftModel` around this model, as `save_pretrained` saves a loaded one."""
        self.config.probe = self.make_probe() if state_dict is None else None
        self.write_adapter(folder, peft_model=peft_model, state_dict=state_dict)
        self.complete(folder)

    def write_adapter(
        self, folder: str | PathLike[str], *, peft_model: Any = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Write `adapter/` and the `config.json` that opens it.

        Args:
            folder: of the model.
            peft_model: the `PeftModel` around this model; None for an adapter that this model loaded itself.
            state_dict: as of `save_pretrained`.
        """
        from peft.utils import get_peft_model_state_dict

        around = self if peft_model is None else peft_model
        if len(around.peft_config) != 1:
            raise refuse("adapters", sorted(around.peft_config), "one adapter", "merge or delete the others")
        ((name, config),) = around.peft_config.items()
        tensors = get_peft_model_state_dict(
            around, state_dict=state_dict, adapter_name=name, save_embedding_layers=False
        )
        prefix = "base_model.model." if peft_model is None else ""  # PEFT's loader wants its own names
        inside = Path(folder, ADAPTER)
        inside.mkdir(parents=True, exist_ok=True)
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):  # the layout of version 0.1
            Path(folder, name).unlink(missing_ok=True)
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

    def complete(self, folder: str | PathLike[str]) -> None:
        """Write what belongs to saved weights: code, tokenizer, card and manifest.

        A card, metrics and plots of exactly these weights are kept, or copied from where the model was
        loaded. Those of other weights are removed, unless the folder's manifest shows that they were edited.

        Args:
            folder: with the weights.
        """
        folder = Path(folder)
        is_adapter = (folder / ADAPTER).is_dir()
        for file in sorted(Path(__file__).parent.glob("*.py")):
            if file.stem != "__init__":
                shutil.copyfile(file, folder / file.name)
        needed = ADAPTER_REQUIREMENTS if is_adapter else REQUIREMENTS
        (folder / "requirements.txt").write_text(needed, encoding="utf-8")
        if is_checkpoint(folder):  # of a Trainer, which wants back what it wrote
            return
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        earlier = read_manifest(folder)
        listed, found = earlier.get("files", {}), hash_files(folder)
        weights = {name: digest for name, digest in found.items() if name.endswith(".safetensors")}
        if not weights.items() <= listed.items():
            for name, digest in found.items():
                if listed.get(name) == digest and matches_any(name, (*DESCRIBES, *ROWS)):
                    (folder / name).unlink()
            earlier = self._carry(folder, weights) or {DRAFT: True}
        write_manifest(folder, earlier)
        if not (folder / CARD).is_file():
            self.write_card(folder)

    def record_evaluation(self, metrics: dict[str, float] | None) -> None:
        """Keep metrics of the weights as they are now, for the card of these weights and no others.

        Args:
            metrics: name to value; None forgets them.
        """
        self.evaluation = None if metrics is None else (metrics, self.make_probe()["logits"])

    def write_card(self, folder: str | PathLike[str], *, facts: dict[str, Any] | None = None) -> None:
        """Write a card from the config and what was recorded of these weights; keep that of an evaluated run.

        Args:
            folder: of the model.
            facts: fields of the metadata, such as `license`, `language` and `tags`.
        """
        folder, manifest = Path(folder), read_manifest(folder)
        if manifest and not manifest.get(DRAFT):
            return
        is_adapter = self._hf_peft_config_loaded or (folder / ADAPTER).is_dir()
        metrics, logits = self.evaluation or (None, None)
        if metrics is not None and logits != self.make_probe()["logits"]:  # trained on since
            metrics = None
        text = basic_card(self.config, is_adapter=is_adapter, evaluation=metrics, facts=facts)
        (folder / CARD).write_text(text, encoding="utf-8")
        if manifest:
            write_manifest(folder, manifest)

    def _carry(self, folder: Path, weights: dict[str, str]) -> dict[str, Any]:
        """Copy what is missing from where this model was loaded; give the manifest from there.

        The tokenizer is copied always, what describes weights only if they are the same to the byte.
        """
        if self._source is None:
            return {}
        repo, hub = self._source

        def find(name: str) -> Path | None:
            path = cached_file(repo, name, **hub, _raise_exceptions_for_missing_entries=False)
            return None if path is None else Path(path)

        there = find(MANIFEST)
        manifest = {} if there is None else read_manifest(there.parent)
        listed = manifest.get("files", {})
        same = weights.items() <= listed.items()
        names = [name for name in listed if same and matches_any(name, DESCRIBES)]
        for name in (*TOKENIZER, *names):
            if not (folder / name).exists() and (path := find(name)) is not None:
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, folder / name)
        return manifest if same else {}

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "50GB",
        tags: list[str] | None = None,
    ) -> CommitInfo:
        """Push the model as a repo that opens in one line, in one commit.

        Args:
            repo_id: `owner/name`, or a name of your own.
            commit_message, commit_description, private, token, revision, create_pr: as in transformers.
            max_shard_size: largest file of full weights.
            tags: added to the card.

        Raises:
            ValueError: no login, no right to write there, a repo that holds another model, or an adapter of a
                base that nobody else has; nothing was sent.
        """
        return push(
            lambda folder: self.save_pretrained(folder, max_shard_size=max_shard_size),
            repo_id=repo_id,
            publisher=self.publisher,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            tags=tags,
        )

    def make_probe(self) -> dict[str, Any]:
        """Token ids (4 rows of 12, spread over the vocabulary) and their logits, for `config.json`."""
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
        logits = self(input_ids=input_ids.to(self.device), use_cache=False).logits.float().cpu()
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


def is_checkpoint(folder: str | PathLike[str]) -> bool:
    """Return whether a Trainer gave a folder its name, as one of its own checkpoints."""
    return re.fullmatch(r"checkpoint-\d+", Path(folder).name) is not None


def matches_any(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a path relative to the folder matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def embedding_rows(model: PreTrainedModel) -> int:
    """Return how many ids a model has an embedding for, also below an adapter on the embeddings."""
    modules = model.get_input_embeddings().modules()
    return next(module for module in modules if isinstance(module, torch.nn.Embedding)).num_embeddings


def is_quantized(config: Any) -> bool:
    """Return whether a config is that of a quantised model."""
    return config.__dict__.get("quantization_config") is not None


def backbone_names(config: Any) -> dict[str, str] | None:
    """Map tensors of families that name their backbone otherwise (GPT-2: `transformer`) to `model`."""
    backbone = MODEL_MAPPING.get(type(config.text_config), None)
    prefix = "model" if backbone is None else backbone.base_model_prefix
    return None if prefix == "model" else {rf"^{prefix}\.": "model."}


@contextmanager
def portable(config: Any, *, adapter: bool) -> Iterator[None]:
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
