"""Content of `manifest.json`: versions, seed, settings, and hashes of data, code and files.

`load` verifies the files of a folder with it, see `qwen_task_heads.files`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qwen_task_heads import __version__
from qwen_task_heads.hubcode import CODE
from qwen_task_heads.hubcode.hashes_task_heads import sha256
from qwen_task_heads.reports.card_facts import STATED

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
# Settings of the training; paths, tokens and host names are excluded.
SETTINGS = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "optim",
    "disable_dropout",
    "bf16",
    "metric_for_best_model",
    "greater_is_better",
    "max_length",
    "center_rewards_coefficient",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "seed",
)


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that a result depends on, and of Python."""
    return dict(_installed())


@lru_cache(maxsize=1)  # each version is parsed from a file of metadata
def _installed() -> tuple[tuple[str, str], ...]:
    installed = {"qwen-task-heads": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return tuple(installed.items())


def hash_code() -> dict[str, str]:
    """Return the SHA-256 of each code file that is published with a model."""
    return {file.name: sha256(file) for file in CODE}


def settings_of(args: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training, and further ones such as those of the head and the loss.

    Args:
        args: `TrainingArguments`, of which `SETTINGS` are kept.
        more: further settings by name; None and "" are omitted.
    """
    known = args.to_dict()
    settings = {name: known[name] for name in SETTINGS if known.get(name) is not None}
    # max_steps overrides num_train_epochs if it is positive.
    settings.pop("num_train_epochs" if settings.get("max_steps", -1) > 0 else "max_steps", None)
    for name, value in more.items():
        if value is not None and value != "":
            settings[name] = value if name in STATED else _without_folder(value)
    return settings


def _without_folder(value: Any) -> Any:
    """Return only the name of an existing path, so that cards contain no local folders."""
    return Path(value).name if isinstance(value, str) and "/" in value and Path(value).exists() else value
