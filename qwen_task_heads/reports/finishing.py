"""What the ends of all recipes share: the account of a run, its notes, its card's facts, its last words.

A model is saved before it is measured: what cannot be computed or drawn is said and loses nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.export.folders import save
from qwen_task_heads.hubcode.folder_task_heads import write_gitignore
from qwen_task_heads.hubcode.hashes_task_heads import MANIFEST, sha256
from qwen_task_heads.pretrained import is_folder, is_packaged
from qwen_task_heads.reports.card_facts import NOTHING_STATED, CardFacts, reported_dataset
from qwen_task_heads.reports.cards import figure
from qwen_task_heads.reports.eval_results import write_eval_results
from qwen_task_heads.reports.run_manifest import hash_code, hash_files, versions
from qwen_task_heads.tracking.callbacks import Tracker, finish_trackers
from qwen_task_heads.training.usage import Usage

T = TypeVar("T")
MODEL = "this model"
EVAL_RESULTS = ".eval_results/*.yaml"
SMALL = "The embedded backbone shows the workflow, not what a pretrained Qwen can do."


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What the end of any run needs to know of it.

    Args:
        settings: what was trained, name to value.
        log_history: of the trainer.
        seconds: training time.
        seed: of the run.
        backbone: as the user named it.
        resumed: `seconds` is the part after a checkpoint only.
        picked: the checkpoint was picked by its figures on dev; else it is the last one.
        warning: what the run found wrong with its data, or None.
        speed: a line on how fast it was and what it did not waste; "" if nobody measured.
        usage: what was estimated of it, if anything, and used.
        card: what its owner states of the model.
        trackers: of the run; they hear what was measured.
    """

    settings: Mapping[str, Any]
    log_history: Sequence[Mapping[str, Any]]
    seconds: float
    seed: int
    backbone: str
    resumed: bool = False
    picked: bool = True
    warning: str | None = None
    speed: str = ""
    usage: Usage = field(default_factory=Usage)
    card: CardFacts = NOTHING_STATED
    trackers: Sequence[Tracker] = ()


def attempt(make: Callable[[], T], what: str, notes: list[str]) -> T | None:
    """Compute something the run can do without; note the reason where it cannot be."""
    try:
        return make()
    except TaskHeadsError as error:
        notes.append(f"{what}: {error}")
        return None


def save_first(model: Any, *, tokenizer: Any, folder: str | Path) -> Path:
    """Save the model of a run, before it is measured; arguments as of `export.save`.

    The manifest of the run is written last of all: without one the run was interrupted.
    """
    folder = save(model, tokenizer=tokenizer, folder=folder)
    (folder / MANIFEST).unlink()
    return folder


def first_notes(model: Any, run: RunRecord) -> list[str]:
    """The run's own warning, and what to know of an adapter whose base is a folder."""
    from peft import PeftModel

    from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel

    notes = [run.warning] if run.warning else []
    if isinstance(model, PeftModel) and is_folder(run.backbone):
        has_head = isinstance(model.get_base_model(), TaskHeadModel)
        how = "merge it (qwen_task_heads.merge) and save the full model" if has_head else "publish it merged"
        by_name = is_packaged(run.backbone) and run.backbone != EMBEDDED
        where = "which this package opens by name" if by_name else "a folder of this machine"
        notes.append(f"this adapter needs its base, {where}: to hand it on, {how}")
    return notes


def training_facts(run: RunRecord) -> dict[str, Any]:
    """The part of `metrics.json` on time and device, as this process trained."""
    import torch
    from accelerate import PartialState

    state = PartialState()  # that of the finished training, if there was one
    kind, threads = state.device.type, torch.get_num_threads()
    name = {
        "cpu": lambda: f"CPU ({threads} thread{'' if threads == 1 else 's'})",
        "cuda": lambda: torch.cuda.get_device_name(state.device),
    }.get(kind, kind.upper)()
    return {
        "seconds": round(run.seconds, 1),
        "resumed": run.resumed,
        "device": name,
        "processes": state.num_processes,
    }


def set_facts(
    sets: Mapping[str, Sequence[Any]], cut: Collection[str], digest: Callable[[Any], str], counted: str
) -> dict[str, dict[str, Any]]:
    """The part of `metrics.json` on the data: size and SHA-256 of each set, and whether it was cut.

    Args:
        sets: name to examples; `train`, `dev`, `test`.
        cut: names of the sets that were cut from the training data.
        digest: from examples to their SHA-256.
        counted: what the sizes are called.
    """
    found = {name: {counted: len(rows), "sha256": digest(rows)} for name, rows in sets.items()}
    return {name: {**entry, "cut": name in cut} for name, entry in found.items()}


def write_record(
    folder: Path, run: RunRecord, *, metrics: Mapping[str, Any], card: str, reported: str, main: str
) -> None:
    """Write `metrics.json`, the card, `.eval_results/` and the manifest; tell the trackers.

    Args:
        folder: of the finished run, with plots and predictions.
        run: its account.
        metrics: what was measured; `data` holds rows and hashes of the sets.
        card: as Markdown.
        reported: the split that the card reports.
        main: the figure that stands for the model.
    """
    write_gitignore(folder)
    metrics["train"].update(run.usage.facts())
    write_json(folder / "metrics.json", metrics)
    (folder / "README.md").write_text(card, encoding="utf-8")
    entry, dataset = metrics[reported][MODEL][main], reported_dataset(run, reported, metrics)
    if dataset and entry["value"] is not None:
        between = f", 95% interval {figure(entry['low'])} to {figure(entry['high'])}" * (
            entry["low"] is not None
        )
        notes = f"{main.replace('_', ' ')} on {reported}{between}; measured by qwen-task-heads"
        write_eval_results(folder, dataset_id=dataset, value=round(entry["value"], 4), notes=notes)
    write_manifest(folder, run, data=metrics["data"])
    finish_trackers(run.trackers, folder=folder, metrics=metrics, settings=run.settings, reported=reported)


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people read: indented, in UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_manifest(folder: Path, run: RunRecord, *, data: Mapping[str, Any]) -> None:
    """Write `manifest.json`, last of all: it lists the files beside it."""
    results = {path.relative_to(folder).as_posix(): sha256(path) for path in folder.glob(EVAL_RESULTS)}
    content = {
        "versions": versions(),
        "seed": run.seed,
        "settings": dict(run.settings),
        "data": dict(data),
        "code": hash_code(),
        "files": hash_files(folder) | results,
    }
    write_json(folder / "manifest.json", content)


def trained_line(what: str, run: RunRecord) -> str:
    """First lines on the screen: what was trained on what, in how long, how fast, and what it used."""
    since = " since the checkpoint it resumed from" if run.resumed else ""
    first = f"Trained {what} in {run.seconds:.0f} s{since} (seed {run.seed})."
    return "\n".join(line for line in (first, run.speed, run.usage.line()) if line)


def python_command() -> str:
    """This interpreter as a user would type it here: `.venv/bin/python`, or just `python`."""
    here = Path(sys.executable)
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else "python"
