"""Build the record of a run from the objects of a recipe, and keep the reference for verification."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.files import MANIFEST
from qwen_task_heads.hubcode.hashes_task_heads import sha256
from qwen_task_heads.reports.card_facts import CardFacts
from qwen_task_heads.reports.finishing import write_json
from qwen_task_heads.reports.run_manifest import settings_of
from qwen_task_heads.tracking.callbacks import Tracker
from qwen_task_heads.training.arguments import HeadArguments
from qwen_task_heads.verification.reference import REFERENCE, Reference, write_reference


def card_facts(task: Any) -> CardFacts:
    """Return the facts that the owner of a model states in the options of a recipe (`PublishArguments`)."""
    return CardFacts(**{field.name: vars(task)[field.name] for field in fields(CardFacts)})


def record_of(
    trainer: Any, *, task: Any, model_args: Any, config: Any, adapter: Any = None, resumed: bool = False
) -> dict[str, Any]:
    """Return the arguments of `Run` and `TextRun`, except for the data.

    Args:
        trainer: after training; has a `throughput`.
        task: options of the recipe.
        model_args: `ModelConfig` of the recipe.
        config: of the trained model.
        adapter: its PEFT config, or None.
        resumed: the training resumed from a checkpoint.
    """
    args, base = trainer.args, model_args.model_name_or_path
    settings = dict(vars(task))
    if isinstance(task, HeadArguments):
        settings |= task.resolved(config)
    settings["base"] = base
    if adapter:
        settings |= {f"lora_{name}": value for name, value in model_args.adapter_options().items()}
    settings["dtype"] = model_args.dtype or "float32"
    return {
        "settings": settings_of(args, settings),
        "log_history": trainer.state.log_history,
        "seconds": trainer.throughput.seconds,
        "speed": trainer.throughput.result.summary(),
        "usage": trainer.throughput.usage,
        "seed": args.seed,
        "backbone": base,
        "resumed": resumed,
        "picked": args.load_best_model_at_end,
        "card": card_facts(task),
        "trackers": [one for one in trainer.callback_handler.callbacks if isinstance(one, Tracker)],
    }


def keep_reference(folder: Path, *, take: Callable[[], Reference]) -> None:
    """Write the reference answers of the trained model, for the verification before publishing.

    The manifest lists the file. If the memory does not suffice to compute the answers, no file is written;
    publishing then compares with the model that strict loading reads from the folder.

    Args:
        folder: of the run.
        take: computes the reference.
    """
    Path(folder, REFERENCE).unlink(missing_ok=True)  # of an earlier run in the same folder
    try:
        path = write_reference(folder, take())
    except torch.OutOfMemoryError:
        print("note: no reference was kept: computing it exceeds the memory of this machine", flush=True)
        return
    manifest = Path(folder, MANIFEST)
    if manifest.is_file():
        content = json.loads(manifest.read_text(encoding="utf-8"))
        content["files"][REFERENCE] = sha256(path)
        write_json(manifest, content)
