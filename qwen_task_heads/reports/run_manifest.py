"""What was run, on what: versions, seed, settings, and hashes of data, code and files, as `manifest.json`.

`load` holds the files against it, see `qwen_task_heads.files`.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qwen_task_heads import __version__
from qwen_task_heads.data.title_datasets import hash_pairs
from qwen_task_heads.files import hash_files
from qwen_task_heads.hubcode import CODE

__all__ = ["hash_code", "hash_files", "hash_pairs", "settings_of", "versions"]

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
# Settings that say what was trained; paths, tokens and hosts of the machine stay out.
SETTINGS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1",
    "adam_beta2", "max_grad_norm", "optim", "disable_dropout", "bf16",
    "metric_for_best_model", "greater_is_better",
    "max_length", "center_rewards_coefficient", "label_smoothing_factor", "neftune_noise_alpha", "seed",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of the libraries that a result depends on, and of Python."""
    return dict(_installed())


@lru_cache(maxsize=1)  # each is parsed out of a file of metadata
def _installed() -> tuple[tuple[str, str], ...]:
    found = {"qwen-task-heads": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return tuple(found.items())


def hash_code() -> dict[str, str]:
    """SHA-256 of each file that travels with the model."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in CODE}


def settings_of(args: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """The training settings worth telling, and those of the head and the loss."""
    known = args.to_dict()
    chosen = {name: known[name] for name in SETTINGS if known.get(name) is not None}
    # Of the two lengths of a run one holds: max_steps where it is set.
    chosen.pop("num_train_epochs" if chosen.get("max_steps", -1) > 0 else "max_steps", None)
    given = {name: value for name, value in more.items() if value is not None and value != ""}
    # A file or folder is told by its name: the card has no use for the paths of somebody's machine.
    return {**chosen, **{name: _told(value) for name, value in given.items()}}


def _told(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and "/" in value and Path(value).exists() else value
