"""Steps that the reports of all recipes share: training, messages, record, card and manifest.

A model is saved before it is measured. A metric or plot that cannot be computed becomes a message.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.export.folders import save
from qwen_task_heads.export.servers import Served
from qwen_task_heads.hubcode.folder_task_heads import write_gitignore
from qwen_task_heads.hubcode.hashes_task_heads import CARD, MANIFEST, hash_files, sha256
from qwen_task_heads.pretrained import hub_id, in_bits, is_folder, is_packaged
from qwen_task_heads.reports.card_lines import picked_what
from qwen_task_heads.reports.eval_results import EVAL_RESULTS, write_eval_results
from qwen_task_heads.reports.markdown import format_value
from qwen_task_heads.reports.model_card import model_card, reported_dataset
from qwen_task_heads.reports.records import METRICS, MODEL, RunRecord, main_metric, write_json
from qwen_task_heads.reports.run_manifest import hash_code, settings_of, versions
from qwen_task_heads.tracking.callbacks import Tracker
from qwen_task_heads.tracking.open_trackers import finish_trackers
from qwen_task_heads.training.arguments import HeadArguments
from qwen_task_heads.training.usage import Usage

T = TypeVar("T")
SMALL = "The embedded backbone demonstrates the workflow; its metrics are not those of a pretrained Qwen."
TOLERANCE = 0.005  # the log has the precision of the training, `metrics.json` fp32


@dataclass(frozen=True, kw_only=True)
class FinishedTraining:
    """A finished training, from which its report is written.

    Args:
        sets: data of training and evaluation, `TitleSets` or `TextSets`.
        settings: from the name of a setting to its value, with the facts that the owner states.
        log_history: of the trainer.
        seconds: training time.
        seed: of the run.
        backbone: as the user named it.
        resumed: `seconds` excludes the time before a checkpoint.
        picked: the checkpoint was selected by its metric on dev; else it is the last one.
        warning: problem of the data, or None.
        truncation: summary of the truncation of long texts.
        speed: line on throughput and padding; "" if it was not measured.
        usage: estimated and used resources.
        trackers: of the run; they receive the metrics.
    """

    sets: Any
    settings: Mapping[str, Any]
    log_history: Sequence[Mapping[str, Any]]
    seconds: float
    seed: int
    backbone: str
    resumed: bool = False
    picked: bool = True
    warning: str | None = None
    truncation: str = ""
    speed: str = ""
    usage: Usage = field(default_factory=Usage)
    trackers: Sequence[Tracker] = ()

    @classmethod
    def of(
        cls,
        trainer: Any,
        *,
        task: Any,
        model_args: Any,
        config: Any,
        adapter: Any = None,
        resumed: bool = False,
        **more: Any,
    ) -> FinishedTraining:
        """Gather a training from the objects of a recipe.

        Args:
            trainer: after training; has a `throughput`.
            task: options of the recipe.
            model_args: `ModelConfig` of the recipe.
            config: of the trained model.
            adapter: its PEFT config, or None.
            resumed: the training resumed from a checkpoint.
            **more: `sets`, and `warning` or `truncation`.
        """
        args, base = trainer.args, model_args.model_name_or_path
        settings = dict(vars(task))
        if isinstance(task, HeadArguments):
            settings |= task.resolved(config)
        settings["base"] = base
        if adapter:
            settings |= {f"lora_{name}": value for name, value in model_args.adapter_options().items()}
        settings["dtype"] = model_args.dtype or "float32"
        return cls(
            settings=settings_of(args, settings),
            log_history=trainer.state.log_history,
            seconds=trainer.throughput.seconds,
            speed=trainer.throughput.result.summary(),
            usage=trainer.throughput.usage,
            seed=args.seed,
            backbone=base,
            resumed=resumed,
            picked=args.load_best_model_at_end,
            trackers=[one for one in trainer.callback_handler.callbacks if isinstance(one, Tracker)],
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Properties of a trained model that its report needs.

    Args:
        config: labels, problem type and lengths; `backbone_revision` is the commit of its base, or None.
        is_adapter: the weights are an adapter.
        is_generative: the model is a generative classifier, without a head of this package.
    """

    config: Any
    is_adapter: bool
    is_generative: bool = False

    @classmethod
    def of(cls, model: Any) -> Trained:
        """Describe a model with a head, or a `PeftModel` around one."""
        from peft import PeftModel

        return cls(config=model.config, is_adapter=isinstance(model, PeftModel))


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


def initial_messages(model: Any, run: FinishedTraining) -> list[str]:
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


def training_facts(run: FinishedTraining) -> dict[str, Any]:
    """Return the entry of `metrics.json` on the time and device of the training."""
    from accelerate import PartialState

    state = PartialState()  # of the finished training, if there was one
    return {
        "seconds": round(run.seconds, 1),
        "resumed": run.resumed,
        "device": device_name(state.device),
        "processes": state.num_processes,
    }


def device_name(device: torch.device) -> str:
    """Return the name of a device, with the number of threads of a CPU.

    Example:
        >>> import torch
        >>> from qwen_task_heads.reports.finishing import device_name
        >>> device_name(torch.device("cpu")).startswith("CPU (")
        True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type.upper()
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'' if threads == 1 else 's'})"


def split_facts(
    run: FinishedTraining, digest: Callable[[Any], str], counted: str
) -> dict[str, dict[str, Any]]:
    """Return the entry of `metrics.json` on the data: size and SHA-256 of each split, and its origin.

    Args:
        run: the training, with its data.
        digest: from examples to their SHA-256.
        counted: key of the sizes.
    """
    splits = {"train": run.sets.train, "dev": run.sets.dev, "test": run.sets.test}
    return {
        name: {counted: len(rows), "sha256": digest(rows), "cut": name in run.sets.were_cut}
        for name, rows in splits.items()
    }


def describe_run(
    model: Trained, run: FinishedTraining, *, name: str, metrics: Mapping[str, Any], plots: Mapping[str, str]
) -> RunRecord:
    """Return the record of a finished run.

    Args:
        model: config and kind of the model.
        run: the training.
        name: of the folder.
        metrics: content of `metrics.json`.
        plots: from title to file name.
    """
    config, base = model.config, hub_id(run.backbone)
    is_classifier = "problem_type" in metrics
    of_texts: dict[str, Any] = {}
    if is_classifier:
        of_texts["descriptions"] = list(run.sets.labels.descriptions)
        of_texts["lengths"] = {
            "limit": config.max_seq_length,
            "policy": config.truncation,
            "overlap": config.window_overlap,
            "aggregation": config.window_aggregation,
            "cut": run.truncation,
        }
    has_pairs = any(example.text_b if is_classifier else example.prompt for example in run.sets.train)
    return RunRecord(
        name=name,
        task=config.model_type,
        base=base or Path(run.backbone).name,
        base_note=in_bits(run.backbone),
        base_on_hub=base is not None,
        base_commit=config.backbone_revision,
        is_embedded=run.backbone == EMBEDDED,
        is_adapter=model.is_adapter,
        is_generative=model.is_generative,
        picked=run.picked,
        selected=_selected(run, metrics, main=main_metric(config.model_type, metrics)),
        lines=without_rows(run.sets.lines),
        test_seen=run.sets.test_seen,
        has_pairs=has_pairs,
        plots=dict(plots),
        versions=versions(),
        seed=run.seed,
        settings=dict(run.settings),
        metrics=metrics,
        **of_texts,
    )


def without_rows(lines: Sequence[str]) -> list[str]:
    """Remove the lines of a report that quote rows of the data; they are indented by two spaces.

    Example:
        >>> from qwen_task_heads.reports.finishing import without_rows
        >>> without_rows(["train: 9 pairs read", "train:   a.jsonl:3: found 'My secret'; …"])
        ['train: 9 pairs read']
    """
    return [line for line in lines if not re.match(r"(\w+: )? {2}", line)]


def _selected(run: FinishedTraining, metrics: Mapping[str, Any], *, main: str) -> dict[str, float]:
    """Return step or penalty of the selection on dev, from the log of the trainer.

    It is known if the logged metric of that step equals the dev metric of the finished model.
    """
    key = str(run.settings.get("metric_for_best_model") or "")
    key = key if key.startswith("eval_") else f"eval_{key}"
    if key.removeprefix("eval_") not in (main, main.removeprefix("pair_")) or MODEL not in metrics.get(
        "dev", ()
    ):
        return {}
    evaluations = [entry for entry in run.log_history if entry.get(key) is not None]
    value = metrics["dev"][MODEL][main]["value"]
    if not evaluations or value is None:
        return {}
    best = max(evaluations, key=lambda entry: float(entry[key]))  # the first of equals, as the trainer does
    if abs(float(best[key]) - value) > TOLERANCE:
        return {}
    return {"penalty": best["penalty"]} if "penalty" in best else {"step": best["step"]}


def write_record(folder: Path, record: RunRecord, *, run: FinishedTraining) -> None:
    """Write `metrics.json`, the card, `.eval_results/` and the manifest, and notify the trackers.

    The manifest is written after all other files of the folder, because it lists them.

    Args:
        folder: of the finished run, with plots and predictions.
        record: of the run.
        run: the training.
    """
    write_gitignore(folder)
    record.metrics["train"].update(run.usage.facts())
    write_json(folder / METRICS, record.metrics)
    (folder / CARD).write_text(model_card(record, served=Served.find(folder)), encoding="utf-8")
    main, dataset = record.main_metric, reported_dataset(record)
    entry = record.ours[main]
    if dataset and entry["value"] is not None:
        interval = ""
        if entry["low"] is not None:
            interval = f", 95% interval {format_value(entry['low'])} to {format_value(entry['high'])}"
        notes = f"{main.replace('_', ' ')} on {record.reported}{interval}; measured by qwen-task-heads"
        write_eval_results(folder, dataset_id=dataset, value=round(entry["value"], 4), notes=notes)
    results = {path.relative_to(folder).as_posix(): sha256(path) for path in folder.glob(EVAL_RESULTS)}
    content = {**record.manifest(), "code": hash_code(), "files": hash_files(folder) | results}
    write_json(folder / MANIFEST, content)
    finish_trackers(
        run.trackers,
        folder=folder,
        metrics=record.metrics,
        settings=run.settings,
        reported=record.reported,
    )


def picked_note(run: FinishedTraining, reported: str, noun: str) -> str:
    """Return a note for metrics on dev, if dev also selected the checkpoint or head; else ""."""
    picked = reported == "dev" and run.picked
    return f" (the {picked_what(run.settings)} was chosen on the same {noun})" if picked else ""


def trained_line(what: str, run: FinishedTraining) -> str:
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
