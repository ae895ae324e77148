"""Steps that the reports of all recipes share: run record, messages, metrics, manifest.

A model is saved before it is measured. A metric or plot that cannot be computed becomes a message.
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
from qwen_task_heads.reports.eval_results import write_eval_results
from qwen_task_heads.reports.markdown import format_value
from qwen_task_heads.reports.run_manifest import hash_code, hash_files, versions
from qwen_task_heads.tracking.callbacks import Tracker
from qwen_task_heads.tracking.open_trackers import finish_trackers
from qwen_task_heads.training.usage import Usage

T = TypeVar("T")
MODEL = "this model"
EVAL_RESULTS = ".eval_results/*.yaml"
SMALL = "The embedded backbone demonstrates the workflow; its metrics are not those of a pretrained Qwen."


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Record of a run, from which its report is written.

    Args:
        settings: from the name of a setting to its value.
        log_history: of the trainer.
        seconds: training time.
        seed: of the run.
        backbone: as the user named it.
        resumed: `seconds` excludes the time before a checkpoint.
        picked: the checkpoint was selected by its metric on dev; else it is the last one.
        warning: problem of the data, or None.
        speed: line on throughput and padding; "" if it was not measured.
        usage: estimated and used resources.
        card: facts that the owner of the model states.
        trackers: of the run; they receive the metrics.
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


def attempt(make: Callable[[], T], failure: str, messages: list[str]) -> T | None:
    """Compute an optional part of a report; on an error append a message and return None."""
    try:
        return make()
    except TaskHeadsError as error:
        messages.append(f"{failure}: {error}")
        return None


def save_first(model: Any, *, tokenizer: Any, folder: str | Path) -> Path:
    """Save the model of a run before it is measured; for the arguments see `export.save`.

    The manifest of a run is written last. A folder without one is that of an interrupted run.
    """
    folder = save(model, tokenizer=tokenizer, folder=folder)
    (folder / MANIFEST).unlink()
    return folder


def initial_messages(model: Any, run: RunRecord) -> list[str]:
    """Return the warning of the run, and a message on an adapter whose base is a folder."""
    from peft import PeftModel

    from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel

    messages = [run.warning] if run.warning else []
    if isinstance(model, PeftModel) and is_folder(run.backbone):
        has_head = isinstance(model.get_base_model(), TaskHeadModel)
        fix = "merge it (qwen_task_heads.merge) and save the full model" if has_head else "publish it merged"
        by_name = is_packaged(run.backbone) and run.backbone != EMBEDDED
        base = "which this package loads by name" if by_name else "a folder of this machine"
        messages.append(f"this adapter needs its base, {base}: to share it, {fix}")
    return messages


def training_facts(run: RunRecord) -> dict[str, Any]:
    """Return the entry of `metrics.json` on the time and device of the training."""
    import torch
    from accelerate import PartialState

    state = PartialState()  # of the finished training, if there was one
    device = state.device.type.upper()
    if state.device.type == "cpu":
        threads = torch.get_num_threads()
        device = f"CPU ({threads} thread{'' if threads == 1 else 's'})"
    elif state.device.type == "cuda":
        device = torch.cuda.get_device_name(state.device)
    return {
        "seconds": round(run.seconds, 1),
        "resumed": run.resumed,
        "device": device,
        "processes": state.num_processes,
    }


def split_facts(
    splits: Mapping[str, Sequence[Any]], cut: Collection[str], digest: Callable[[Any], str], counted: str
) -> dict[str, dict[str, Any]]:
    """Return the entry of `metrics.json` on the data: size and SHA-256 of each split, and its origin.

    Args:
        splits: from `train`, `dev` and `test` to examples.
        cut: splits that were cut from the training data.
        digest: from examples to their SHA-256.
        counted: key of the sizes.
    """
    return {
        name: {counted: len(rows), "sha256": digest(rows), "cut": name in cut}
        for name, rows in splits.items()
    }


def write_record(
    folder: Path, run: RunRecord, *, metrics: Mapping[str, Any], card: str, reported: str, main: str
) -> None:
    """Write `metrics.json`, the card, `.eval_results/` and the manifest, and notify the trackers.

    Args:
        folder: of the finished run, with plots and predictions.
        run: record of the run.
        metrics: content of `metrics.json`; `data` has sizes and hashes of the splits.
        card: as Markdown.
        reported: split that the card reports.
        main: main metric of the model.
    """
    write_gitignore(folder)
    metrics["train"].update(run.usage.facts())
    write_json(folder / "metrics.json", metrics)
    (folder / "README.md").write_text(card, encoding="utf-8")
    entry, dataset = metrics[reported][MODEL][main], reported_dataset(run, reported, metrics)
    if dataset and entry["value"] is not None:
        interval = ""
        if entry["low"] is not None:
            interval = f", 95% interval {format_value(entry['low'])} to {format_value(entry['high'])}"
        notes = f"{main.replace('_', ' ')} on {reported}{interval}; measured by qwen-task-heads"
        write_eval_results(folder, dataset_id=dataset, value=round(entry["value"], 4), notes=notes)
    write_manifest(folder, run, data=metrics["data"])
    finish_trackers(run.trackers, folder=folder, metrics=metrics, settings=run.settings, reported=reported)


def write_json(path: Path, content: Any) -> None:
    """Write JSON indented and in UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_manifest(folder: Path, run: RunRecord, *, data: Mapping[str, Any]) -> None:
    """Write `manifest.json`, after all other files of the folder, because it lists them."""
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
    """Return the first lines of a summary: model and data, time, throughput and used resources."""
    since = " since the checkpoint from which it resumed" if run.resumed else ""
    first = f"Trained {what} in {run.seconds:.0f} s{since} (seed {run.seed})."
    return "\n".join(line for line in (first, run.speed, run.usage.line()) if line)


def python_command() -> str:
    """Return the command of this interpreter in the current folder: `.venv/bin/python`, or `python`."""
    executable = Path(sys.executable)
    if executable.is_relative_to(Path.cwd()):
        return str(executable.relative_to(Path.cwd()))
    return "python"
