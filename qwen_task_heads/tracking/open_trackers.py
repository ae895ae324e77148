"""Open the trackers of a run from its options, and finish them with the final record."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.tracking.callbacks import TRACKERS, Tracker
from qwen_task_heads.tracking.libraries import failures_of
from qwen_task_heads.tracking.payload import final_record

NOT_OURS = ("kubeflow",)  # added by transformers inside such a job; logs progress only


def track(args: Any, *, task: Any) -> list[Tracker]:
    """Return the trackers of a run, as callbacks for its trainer.

    Nothing is started or written before training starts. `args.report_to` is emptied, so that transformers
    does not add its own callbacks.

    Args:
        args: `TrainingArguments` of the run.
        task: the options of a recipe (a `DataArguments`) with `log_predictions`.

    Raises:
        TaskHeadsError: all trackers that are unknown or not installed.

    Example:
        >>> from transformers import TrainingArguments
        >>> from qwen_task_heads.tracking.open_trackers import track
        >>> from qwen_task_heads.training.arguments import DataArguments
        >>> track(TrainingArguments("runs/x", report_to="none", use_cpu=True), task=DataArguments())
        []
    """
    names = [name for name in args.report_to if name not in NOT_OURS]
    known = [name for name in names if name in TRACKERS]
    missing = [name for name in known if find_spec(TRACKERS[name].module) is None]
    where, fix, problems = "--report_to", "choose one of them", []
    for name in (name for name in names if name not in TRACKERS):
        expected = "none, " + ", ".join(TRACKERS)
        problems.append(Problem(where, f"found {name!r}", expected, fix, code="option-value"))
    if missing:
        problem, expected = f"{', '.join(missing)} not installed", "installed trackers"
        fix = f'pip install "qwen-task-heads[track]", or pip install {" ".join(missing)}'
        problems.append(Problem(where, problem, expected, fix, code="package-missing"))
    for variable, required in (item for name in known for item in TRACKERS[name].required_env.items()):
        if (value := os.environ.get(variable, required)) != required:
            fix = "unset it; --push_to_hub publishes the model instead"
            problem = f"found {value!r}"
            problems.append(Problem(variable, problem, required, fix, code="option-unsupported"))
    if problems:
        raise TaskHeadsError(problems)
    args.report_to = [name for name in args.report_to if name in NOT_OURS]
    options: dict[str, Any] = {"predictions": task.log_predictions, "places": [*vars(task).values()]}
    return [TRACKERS[name](args, **options) for name in dict.fromkeys(known)]


def name_for_texts(args: Any, trackers: Sequence[Tracker]) -> list[str]:
    """Name in `args.report_to` the trackers that may have texts of the data, which trl reads before it logs.

    trl logs tables of texts by itself to the trackers in `report_to`, which `track` has emptied. Call it
    after the trainer is created: transformers would add its own callbacks for the names.

    Args:
        args: `TrainingArguments` of the trainer.
        trackers: from `track`.

    Returns:
        The names of the trackers that get no texts, since they send them elsewhere.

    Source: `GRPOTrainer.log` of trl 1.16.

    Example:
        >>> from transformers import TrainingArguments
        >>> from qwen_task_heads.tracking.open_trackers import name_for_texts, track
        >>> from qwen_task_heads.training.arguments import DataArguments
        >>> args = TrainingArguments("runs/x", report_to="none", use_cpu=True)
        >>> name_for_texts(args, track(args, task=DataArguments())), args.report_to
        ([], [])
    """
    args.report_to += [tracker.module for tracker in trackers if tracker.predictions]
    return [tracker.module for tracker in trackers if not tracker.predictions]


def finish_trackers(
    trackers: Sequence[Tracker],
    *,
    folder: Path,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
    reported: str | None,
) -> None:
    """Log the final record of a run to its trackers, end them, and print where to view them.

    A tracker that fails does not end the run: the failure is printed with its reason.

    Args:
        trackers: from `track`.
        folder: output folder of the run, with `predictions.jsonl` and plots.
        metrics: content of `metrics.json`.
        settings: settings in `manifest.json`.
        reported: the split of the predictions; None for a run without any.
    """
    records = [
        final_record(
            folder=folder,
            metrics=metrics,
            settings=settings,
            reported=reported,
            predictions=tracker.predictions,
            clean=tracker.clean,
        )
        for tracker in trackers
    ]
    for tracker, record in zip(trackers, records, strict=True):
        failures = failures_of(tracker.module)
        try:
            if not tracker.is_started:  # a sweep has no `Trainer`
                tracker.on_train_begin(tracker.args, TrainerState(), TrainerControl())
            tracker.record(record)
            print(f"Tracked: {tracker.location()}", flush=True)
        except failures as error:
            _print_failure(tracker, error)
        try:
            tracker.close()
        except failures as error:
            _print_failure(tracker, error)


def _print_failure(tracker: Tracker, error: Exception) -> None:
    reason = " ".join(tracker.clean.text(f"{type(error).__name__}: {error}").split())
    print(f"Not tracked: {tracker.module} failed at the end ({reason[:300]})", flush=True)
