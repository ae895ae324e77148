"""The account of a run from what a recipe has at its end, and the reference that proves a publish equal."""

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
    """What the owner of a model states, from the options of a recipe (a `PublishArguments`)."""
    return CardFacts(**{field.name: vars(task)[field.name] for field in fields(CardFacts)})


def record_of(
    trainer: Any, *, task: Any, model_args: Any, config: Any, adapter: Any = None, resumed: bool = False
) -> dict[str, Any]:
    """Arguments of `Run` and `TextRun`, data apart.

    Args:
        trainer: after training; has a `throughput`.
        task: the options of the recipe.
        model_args: its `ModelConfig`.
        config: of the trained model.
        adapter: its PEFT config, or None.
        resumed: the training began at a checkpoint.
    """
    args, base = trainer.args, model_args.model_name_or_path
    lora = {f"lora_{name}": value for name, value in model_args.adapter_options().items()} if adapter else {}
    settled = task.settled(config) if isinstance(task, HeadArguments) else {}
    told = {**vars(task), **settled, "base": base, **lora}
    return {
        "settings": settings_of(args, {**told, "dtype": model_args.dtype or "float32"}),
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
    """Keep what the trained model answers beside it, for the proof before a publish; the manifest lists it.

    Where no way to compute it fits into memory none is kept, and a publish then compares with what strict
    loading opens from the folder.

    Args:
        folder: of the run.
        take: takes the reference.
    """
    Path(folder, REFERENCE).unlink(missing_ok=True)  # of an older run in the same folder
    try:
        path = write_reference(folder, take())
    except torch.OutOfMemoryError:
        print("note: no reference was kept: computing it is over the memory of this machine", flush=True)
        return
    manifest = Path(folder, MANIFEST)
    if manifest.is_file():
        content = json.loads(manifest.read_text(encoding="utf-8"))
        content["files"][REFERENCE] = sha256(path)
        write_json(manifest, content)
