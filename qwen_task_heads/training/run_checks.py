"""Checks of a run before its first step, once model and data are loaded: its length, its disk, its resuming.

The steps of evaluations and checkpoints come from transformers' own control flow, which is simulated without
training. A run is refused if its best checkpoint could not be selected or its checkpoints do not fit on the
disk. Without the checks such a run ends after hours with the last weights or with an error.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from transformers import DefaultFlowCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, check_target_module_exists

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.training.optimizer_checks import FAILURES, SIZE, step_on_zeros
from qwen_task_heads.training.option_checks import FOLLOW_A_METRIC, scheduler_problems

FP32_MOMENTS = 8.0  # bytes per parameter of the state of AdamW


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Steps of a run, counted from 1, after which it evaluates and saves.

    Args:
        steps: number of optimizer steps.
        evaluations: steps after which dev is evaluated.
        saves: steps after which a checkpoint is saved; for `save_strategy best`, steps at which it may be.
        steps_of_epoch: optimizer steps of one epoch.
    """

    steps: int
    evaluations: tuple[int, ...]
    saves: tuple[int, ...]
    steps_of_epoch: int


def flow_of(args: Any, *, steps: int, steps_of_epoch: int) -> Flow:
    """Simulate the control flow of transformers without training.

    Args:
        args: `TrainingArguments`.
        steps: optimizer steps of the run.
        steps_of_epoch: optimizer steps of one epoch.

    Example:
        >>> from transformers import TrainingArguments
        >>> from qwen_task_heads.training.run_checks import flow_of
        >>> args = TrainingArguments("runs/x", eval_strategy="steps", eval_steps=4, use_cpu=True)
        >>> flow_of(args, steps=8, steps_of_epoch=3).evaluations
        (4, 8)
    """
    callback, state = DefaultFlowCallback(), TrainerState(max_steps=steps)
    state.compute_steps(args, steps)
    evaluations, saves = [], []
    for step in range(1, steps + 1):
        state.global_step, state.epoch = step, step / steps_of_epoch
        control = callback.on_step_end(args, state, TrainerControl())
        if step % steps_of_epoch == 0 or step == steps:
            control = callback.on_epoch_end(args, state, control)
        if control.should_evaluate:
            evaluations.append(step)
        if control.should_save or (args.save_strategy == SaveStrategy.BEST and step in evaluations[-1:]):
            saves.append(step)
    return Flow(
        steps=steps, evaluations=tuple(evaluations), saves=tuple(saves), steps_of_epoch=steps_of_epoch
    )


def check_run(trainer: Any, *, save_total_limit: int | None = None, loader: Any = None) -> Flow:
    """Refuse a run that cannot end as its options state, on every process.

    Args:
        trainer: ready to train.
        save_total_limit: number of newest checkpoints that are kept; None keeps all.
        loader: of the training set, if its length is not that of the rows.

    Returns:
        The steps of the run.

    Raises:
        TaskHeadsError: a required evaluation is missing, no evaluated checkpoint is saved, the optimizer
            finds none of its modules, the schedule fails at this length, or the disk is too small.
    """
    args = trainer.args
    if loader is None:  # that of the trainer would be prepared twice
        loader = DataLoader(trainer.train_dataset, batch_size=args.train_batch_size * args.world_size)
    values = trainer.set_initial_training_values(args, loader)
    flow = flow_of(args, steps=values[-1], steps_of_epoch=values[1])
    problems = [*_length_problems(args, flow, trainer.eval_dataset), *_module_problems(args, trainer.model)]
    if args.deepspeed_plugin is None:
        problems += scheduler_problems(args, steps=flow.steps)
    if args.process_index == 0:
        problems += _disk_problems(trainer, flow, limit=save_total_limit)
    raise_everywhere(problems)
    return flow


def raise_everywhere(problems: list[Problem]) -> None:
    """Raise the problems of the first process on all processes.

    A process that fails alone leaves the others waiting.

    Args:
        problems: of this process; an empty list raises nothing.
    """
    box = [problems]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    if box[0]:
        raise TaskHeadsError(box[0])


def _length_problems(args: Any, flow: Flow, dev: Any) -> list[Problem]:
    """Return the evaluations and checkpoints that the options need and that the run does not have."""
    schedule = args.lr_scheduler_type
    reasons = [
        option
        for option, needs_evaluation in (
            ("--load_best_model_at_end", args.load_best_model_at_end),
            ("--save_strategy best", args.save_strategy == SaveStrategy.BEST),
            (f"--lr_scheduler_type {schedule.value}", schedule in FOLLOW_A_METRIC),
        )
        if needs_evaluation
    ]
    if not reasons:
        return []
    run = f"a run of {flow.steps:,} step{'' if flow.steps == 1 else 's'}"
    needed_by = f"which {', '.join(reasons)} need{'s' * (len(reasons) == 1)}"
    at_most = f"at most {flow.steps:,}"
    if dev is None or (isinstance(dev, dict) and not dev):
        problem, fix = f"found no dev set, {needed_by}", "give --load_best_model_at_end false"
        return [Problem("--eval_strategy", problem, "a dev set", fix, code="split-missing")]
    if not flow.evaluations:
        problem = f"found {args.eval_delay:g} for {run}: no evaluation, {needed_by}"
        fix = "give --eval_delay 0"
        return [Problem("--eval_delay", problem, "less than the run", fix, code="option-range")]
    in_steps = args.eval_strategy == IntervalStrategy.STEPS
    if in_steps and args.eval_steps > flow.steps:
        # Dev is evaluated at the last step in any case, which is no choice between checkpoints.
        problem = f"found {args.eval_steps:g} for {run}: only the last step is evaluated, {needed_by}"
        every = max(1, flow.steps // 4)
        fix = f"give --eval_steps {every}"
        if args.save_strategy == SaveStrategy.STEPS:
            fix += f" --save_steps {every}"
        return [Problem("--eval_steps", problem, at_most, fix, code="option-range")]
    if (
        args.load_best_model_at_end
        and args.save_strategy == SaveStrategy.STEPS
        and args.save_steps > flow.steps
    ):
        problem = f"found {args.save_steps:g} for {run}: only the last step is saved, not the best one"
        every = int(args.eval_steps) if args.eval_steps >= 1 else args.eval_steps
        fix = f"give --save_steps {every:g}"
        return [Problem("--save_steps", problem, at_most, fix, code="option-range")]
    return []


def _module_problems(args: Any, model: nn.Module) -> list[Problem]:
    """Refuse module names of the optimizer that match no linear layer of the model."""
    names = args.optim_target_modules
    if names is None or (isinstance(names, str) and names.replace("_", "-") == "all-linear"):
        return []
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if any(check_target_module_exists(names, name) for name in linear):
        return []
    expected = ", ".join(["all-linear", *sorted({name.split(".")[-1] for name in linear})])
    fix = "give --optim_target_modules all-linear"
    return [Problem("--optim_target_modules", f"found {names!r}", expected, fix, code="option-value")]


# --- resuming ---


def resume_hazards(args: TrainingArguments, *, early_stopping: bool = False) -> list[Problem]:
    """Return the settings with which a resumed run ends with other weights than an uninterrupted one.

    Args:
        args: the training arguments.
        early_stopping: True if the run has an `EarlyStoppingCallback`.

    Returns:
        One problem per setting; empty for the defaults. The recipes print them.
    """
    loader = args.accelerator_config
    hazards = [
        (args.save_only_model, "--save_only_model", "no optimizer, scheduler and RNG state is saved"),
        (args.ignore_data_skip, "--ignore_data_skip", "rows already used in the epoch are used again"),
        (
            args.train_sampling_strategy == "group_by_length",
            "--train_sampling_strategy",
            "group_by_length orders the rows by the global RNG, which is restored after the order is drawn",
        ),
        (
            isinstance(loader, AcceleratorConfig) and not loader.use_seedable_sampler,
            "accelerator_config.use_seedable_sampler",
            "the order of rows is drawn from the global RNG, which is restored only afterwards",
        ),
        (
            args.eval_strategy == "epoch" and args.save_strategy == "steps",
            "--eval_strategy",
            "epoch, with save_strategy steps: the last step of an epoch is saved before its evaluation, "
            "which a run resumed there skips",
        ),
        (
            early_stopping and not args.restore_callback_states_from_checkpoint,
            "--restore_callback_states_from_checkpoint",
            "false with early stopping: the patience counter starts at zero again",
        ),
    ]
    expected, fix = "a setting that resumes exactly", "change it, or accept other weights on resume"
    return [
        Problem(where, problem, expected, fix, code="option-unsupported")
        for is_present, where, problem in hazards
        if is_present
    ]


# --- the disk ---


def _disk_problems(trainer: Any, flow: Flow, *, limit: int | None) -> list[Problem]:
    """Refuse a run whose checkpoints and model need more bytes than the disk has free."""
    args = trainer.args
    weights, state = checkpoint_bytes(trainer.model, args)
    each, output = weights + state, Path(args.output_dir)
    free = shutil.disk_usage(
        next(place for place in (output, *output.absolute().parents) if place.is_dir())
    ).free
    # A resumed run has checkpoints already.
    present = sum(file.stat().st_size for file in output.glob("checkpoint-*/**/*") if file.is_file())
    tracks_best = bool(flow.evaluations) and args.metric_for_best_model is not None

    def kept(newest: int | None) -> int:
        # A new one is written before the oldest is deleted, and the best one is kept.
        return len(flow.saves) if newest is None else min(len(flow.saves), newest + 1 + tracks_best)

    def needed(checkpoints: int) -> int:
        return max(0, checkpoints * each + weights - present)

    if needed(kept(limit)) <= free:
        return []
    fixes = []
    lower = [one for one in range(1, limit or len(flow.saves)) if needed(kept(one)) <= free]
    if lower:
        fixes.append(f"give --save_total_limit {max(lower)}")
    elif flow.saves and needed(0) <= free:
        fixes.append("give --save_strategy no --load_best_model_at_end false")
    total = f"{needed(kept(limit)):,} bytes"
    fixes.append(f"name an --output_dir on a disk with {total} free")
    problem = (
        f"found {free:,} bytes free for {kept(limit):,} checkpoints of {each:,} bytes (weights {weights:,}, "
        f"optimizer {state:,}) and the model"
    )
    return [Problem(str(args.output_dir), problem, total, ", or ".join(fixes), code="disk-full")]


def checkpoint_bytes(model: nn.Module, args: Any) -> tuple[int, int]:
    """Return the bytes of the weights and of the optimizer state in a checkpoint.

    Args:
        model: in training; a `PeftModel` saves only its adapter.
        args: `TrainingArguments`, with the optimizer.
    """
    from peft import PeftModel

    adapted = isinstance(model, PeftModel)
    saved = [one for one in model.parameters() if one.requires_grad or not adapted]
    weights = sum(one.numel() * one.element_size() for one in saved)
    return weights, 0 if args.save_only_model else optimizer_bytes(model, args)


def optimizer_bytes(model: nn.Module, args: Any) -> int:
    """Return the bytes of the optimizer state of the trained parameters."""
    own = [one for one in model.parameters() if one.requires_grad]
    moments = {dtype: _state_bytes(args, dtype) for dtype in {one.dtype for one in own}}
    return math.ceil(sum(one.numel() * moments[one.dtype] for one in own))


def _state_bytes(args: Any, dtype: torch.dtype) -> float:
    """Return the bytes of the optimizer state per parameter, measured on a matrix, else those of AdamW."""
    if args.deepspeed_plugin is not None:
        return FP32_MOMENTS
    try:
        with torch.random.fork_rng(devices=[]):
            state = step_on_zeros(args, dtype=dtype).state
    except FAILURES:
        return FP32_MOMENTS
    tensors = [
        value for entry in state.values() for value in entry.values() if isinstance(value, torch.Tensor)
    ]
    return sum(value.numel() * value.element_size() for value in tensors) / SIZE**2
