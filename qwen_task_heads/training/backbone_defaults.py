"""Default hyper-parameters by backbone and recipe.

Recipes are named after their runs: `titles`, `classifier`, `sft`, `heads`. All backbones other than the
embedded one use the defaults of the dataclasses, which are those of trl and transformers with
`run_defaults.py`.

The embedded backbone has 1.7 million parameters. It trains at learning rates that are too high for a
pretrained model, on short texts. Its options are chosen so that a run takes one to two minutes on two CPU
cores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.pretrained import EMBEDDED_FOLDER

# `full` is the default of transformers. Adapters and heads use higher rates (Biderman et al. 2024,
# https://arxiv.org/abs/2405.09673).
LEARNING_RATES = {
    "classifier": {"full": 5e-5, "lora": 2e-4, "head": 1e-3},
    "sft": {"full": 2e-5, "lora": 1e-4},
}
EMBEDDED_RATES = {
    "classifier": {"full": 2e-3, "lora": 5e-3, "head": 1e-2},
    "sft": {"full": 2e-3, "lora": 5e-3},
}
_SCHEDULE = {"lr_scheduler_type": "linear", "warmup_steps": 0.1, "weight_decay": 0.01, "seed": 0}
_BATCHES = {"per_device_train_batch_size": 32, "per_device_eval_batch_size": 64}
EMBEDDED_OPTIONS: dict[str, dict[str, Any]] = {
    "titles": {
        **_SCHEDULE,
        **_BATCHES,
        "max_length": 64,
        "pooling": "mean",
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
    },
    "classifier": {**_SCHEDULE, **_BATCHES, "pooling": "mean", "num_train_epochs": 5},
    # The instruction does not list the labels: a model of this size cannot use the list, which would be most
    # of the tokens. Larger batches are slower, because the logits of the whole vocabulary are stored per
    # token.
    "sft": {
        **_SCHEDULE,
        **_BATCHES,
        "instruction": "Classify the text.\n\n",
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
    },
    "heads": {"num_train_epochs": 30},  # over cached features: seconds
}

OF_THE_MODEL = ("pooling", "max_length", "instruction")  # a saved model has these options already


def options_for(recipe: str, backbone: str | None) -> dict[str, Any]:
    """Return the options for which a backbone has other defaults; command line and YAML file win.

    Args:
        recipe: `titles`, `classifier`, `sft` or `heads`.
        backbone: id or folder of the command line.

    Example:
        >>> from qwen_task_heads.training.backbone_defaults import options_for
        >>> options_for("titles", "embedded")["pooling"], options_for("titles", "Qwen/Qwen2.5-7B")
        ('mean', {})
    """
    if not _is_embedded(backbone):
        return {}
    options = EMBEDDED_OPTIONS[recipe]
    if backbone == EMBEDDED:
        return dict(options)
    return {name: value for name, value in options.items() if name not in OF_THE_MODEL}


def _is_embedded(backbone: str | None) -> bool:
    """Return whether this is the embedded backbone or a model that was trained on it."""
    if backbone is None or backbone == EMBEDDED:
        return backbone == EMBEDDED
    try:
        config = json.loads(Path(backbone, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("backbone_name_or_path") == str(EMBEDDED_FOLDER)


def rates_for(recipe: str, backbone: str | None) -> Mapping[str, float]:
    """Return the default learning rates by method: `full`, `lora` and `head`.

    Args:
        recipe: `classifier` or `sft`.
        backbone: id or folder of the command line.
    """
    return (EMBEDDED_RATES if _is_embedded(backbone) else LEARNING_RATES)[recipe]
