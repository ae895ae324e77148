"""The command of a LoRA run that starts from the head of a sweep, with the options of the sweep."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from qwen_task_heads.commands import words_of
from qwen_task_heads.tokenization.templates import SHELL_TEXTS, for_shell
from qwen_task_heads.training.arguments import HeadModelConfig
from qwen_task_heads.training.head_sweep import Combination
from qwen_task_heads.training.sweep_arguments import (
    SweepArguments,
    SweepConfig,
    SweepOptions,
    TitleSweepArguments,
    TitleSweepConfig,
)


def warm_start_command(
    texts: SweepArguments | TitleSweepArguments,
    training: SweepConfig | TitleSweepConfig,
    model: HeadModelConfig,
    *,
    folder: str,
    chosen: Combination,
) -> list[str]:
    """Return the command of a LoRA run that starts from the head of a sweep.

    Args:
        texts: options of the sweep; those of data, labels and template are passed on.
        training: options of the training; the length of titles is passed on.
        model: options of the backbone.
        folder: folder of the saved model of the sweep.
        chosen: the combination that was saved.

    Returns:
        The words of the command line.
    """
    own = {item.name for item in fields(SweepOptions)}
    given = _given(model, without={"model_name_or_path", "gguf_file", "use_peft"}) | _given(
        texts, without=own
    )
    if isinstance(training, TitleSweepConfig):
        given["max_length"] = training.max_length
    given |= {
        **chosen.head_options(),
        "loss": chosen.loss,
        "init_head": folder,
        "output_dir": f"{folder.rstrip('/')}-lora",
    }
    words = words_of(texts.TRAINS_ON)
    words += ["--model_name_or_path", str(model.model_name_or_path), "--use_peft"]
    for name, value in given.items():
        values = value if isinstance(value, list) else ["true" if value is True else value]
        values = [for_shell(value)] if name in SHELL_TEXTS else values
        words += [f"--{name}", *map(str, values)]
    return words


def _given(group: Any, *, without: set[str]) -> dict[str, Any]:
    """Return the options of a dataclass that differ from their defaults."""
    return {
        item.name: vars(group)[item.name]
        for item in fields(group)
        if item.init and item.name not in without and vars(group)[item.name] not in (item.default, [])
    }
