"""What a run will do, held against its length and its disk, once model and data are there and before a step.

The steps at which dev is looked at and checkpoints are saved are those of transformers' own flow, which is
played through without training. A run whose best checkpoint could not be picked is refused, and so is one
whose checkpoints the disk has no room for: after hours it would end with the last weights, or with an error.
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
from transformers import DefaultFlowCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, check_target_module_exists

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.training.option_checks import (
    FAILURES,
    FOLLOW_A_METRIC,
    SIZE,
    scheduler_problems,
    step_on_zeros,
)

FP32_MOMENTS = 8.0  # bytes of AdamW's state for a parameter


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The steps of a run, from 1.

    Args:
        steps: how many there are.
        looks: steps after which dev is evaluated.
        saves: steps after which a checkpoint is saved; of `save_strategy best`, those at which one may be.
        steps_of_epoch: of one epoch.
    """

    steps: int
    looks: tuple[int, ...]
    saves: tuple[int, ...]
    steps_of_epoch: int


def flow_of(args: Any, *, steps: int, steps_of_epoch: int) -> Flow:
    """Play transformers' flow through, without training.

    Args:
        args: `TrainingArguments`.
        steps: optimizer steps of the run.
        steps_of_epoch: of one epoch.

    Example:
        >>> from transformers import TrainingArguments
        >>> from qwen_task_heads.training.run_checks import flow_of
        >>> args = TrainingArguments("runs/x", eval_strategy="steps", eval_steps=4, use_cpu=True)
        >>> flow_of(args, steps=8, steps_of_epoch=3).looks
        (4, 8)
    """
    callback, state = DefaultFlowCallback(), TrainerState(max_steps=steps)
    state.compute_steps(args, steps)
    looks, saves = [], []
    for step in range(1, steps + 1):
        state.global_step, state.epoch = step, step / steps_of_epoch
        control = callback.on_step_end(args, state, TrainerControl())
        if step % steps_of_epoch == 0 or step == steps:
            control = callback.on_epoch_end(args, state, control)
        looks += [step] * control.should_evaluate
        saves += [step] * (
            control.should_save or (args.save_strategy == SaveStrategy.BEST and step in looks[-1:])
        )
    return Flow(steps=steps, looks=tuple(looks), saves=tuple(saves), steps_of_epoch=steps_of_epoch)


def check_run(trainer: Any, *, save_total_limit: int | None = None, loader: Any = None) -> Flow:
    """Refuse a run that could not end as its options say; on every process alike.

    Args:
        trainer: ready to train.
        save_total_limit: newest checkpoints that are kept; None keeps all.
        loader: of the training set, if its length is not that of the rows.

    Returns:
        The steps that it will take.

    Raises:
        TaskHeadsError: no evaluation where one is needed, no checkpoint that was evaluated, modules that the
            optimizer does not find, a schedule that fails at this length, or too little room on the disk.
    """
    args = trainer.args
    if loader is None:  # the trainer's own would be prepared twice
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
    """Raise the first process's problems on all: a process that fails alone leaves the others waiting."""
    box = [problems]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    if box[0]:
        raise TaskHeadsError(box[0])


def _length_problems(args: Any, flow: Flow, dev: Any) -> list[Problem]:
    """Evaluations and checkpoints that the options count on, and that the run would not have."""
    why = [
        option
        for option, counts in (
            ("--load_best_model_at_end", args.load_best_model_at_end),
            ("--save_strategy best", args.save_strategy == SaveStrategy.BEST),
            (
                f"--lr_scheduler_type {args.lr_scheduler_type.value}",
                args.lr_scheduler_type in FOLLOW_A_METRIC,
            ),
        )
        if counts
    ]
    if not why:
        return []
    run = f"a run of {flow.steps:,} step{'' if flow.steps == 1 else 's'}"
    counts_on = f"which {', '.join(why)} count{'s' * (len(why) == 1)} on"
    if dev is None or (isinstance(dev, dict) and not dev):
        found = f"no dev set, {counts_on}"
        return [
            Problem("--eval_strategy", f"found {found}", "a dev set", "give --load_best_model_at_end false")
        ]
    if not flow.looks:
        found = f"{args.eval_delay:g} for {run}: no evaluation, {counts_on}"
        return [Problem("--eval_delay", f"found {found}", "less than the run", "give --eval_delay 0")]
    in_steps = args.eval_strategy == IntervalStrategy.STEPS
    if in_steps and args.eval_steps > flow.steps:
        # The last step is looked at in any case: one look, and nothing to choose from.
        found = f"{args.eval_steps:g} for {run}: dev would be looked at after the last alone, {counts_on}"
        every = max(1, flow.steps // 4)
        remedy = f"give --eval_steps {every}"
        if args.save_strategy == SaveStrategy.STEPS:
            remedy += f" --save_steps {every}"
        return [Problem("--eval_steps", f"found {found}", f"at most {flow.steps:,}", remedy)]
    if (
        args.load_best_model_at_end
        and args.save_strategy == SaveStrategy.STEPS
        and args.save_steps > flow.steps
    ):
        found = f"{args.save_steps:g} for {run}: only the last step would be saved, and not the best"
        every = int(args.eval_steps) if args.eval_steps >= 1 else args.eval_steps
        return [
            Problem(
                "--save_steps", f"found {found}", f"at most {flow.steps:,}", f"give --save_steps {every:g}"
            )
        ]
    return []


def _module_problems(args: Any, model: nn.Module) -> list[Problem]:
    """Names of modules for the optimizer, of which the model has no linear layer."""
    names = args.optim_target_modules
    if names is None or (isinstance(names, str) and names.replace("_", "-") == "all-linear"):
        return []
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if any(check_target_module_exists(names, name) for name in linear):
        return []
    ends = sorted({name.split(".")[-1] for name in linear})
    remedy = "give --optim_target_modules all-linear"
    return [Problem("--optim_target_modules", f"found {names!r}", f"all-linear, {', '.join(ends)}", remedy)]


# --- the disk ---


def _disk_problems(trainer: Any, flow: Flow, *, limit: int | None) -> list[Problem]:
    """Refuse a run whose checkpoints and model take more bytes than the disk has."""
    args = trainer.args
    weights, state = checkpoint_bytes(trainer.model, args)
    each, output = weights + state, Path(args.output_dir)
    free = shutil.disk_usage(
        next(place for place in (output, *output.absolute().parents) if place.is_dir())
    ).free
    there = sum(
        file.stat().st_size for file in output.glob("checkpoint-*/**/*") if file.is_file()
    )  # of a run that is resumed
    tracks_best = bool(flow.looks) and args.metric_for_best_model is not None

    def kept(newest: int | None) -> int:
        # A new one is written before the oldest goes, and the best one stays.
        return len(flow.saves) if newest is None else min(len(flow.saves), newest + 1 + tracks_best)

    def needed(checkpoints: int) -> int:
        return max(0, checkpoints * each + weights - there)

    if needed(kept(limit)) <= free:
        return []
    remedies = []
    lower = [one for one in range(1, limit or len(flow.saves)) if needed(kept(one)) <= free]
    if lower:
        remedies.append(f"give --save_total_limit {max(lower)}")
    elif flow.saves and needed(0) <= free:
        remedies.append("give --save_strategy no --load_best_model_at_end false")
    remedies.append(f"name an --output_dir on a disk with {needed(kept(limit)):,} bytes free")
    found = (
        f"{free:,} bytes free for {kept(limit):,} checkpoints of {each:,} bytes (weights {weights:,}, "
        f"optimizer {state:,}) and the model"
    )
    accepted = f"{needed(kept(limit)):,} bytes"
    return [Problem(str(args.output_dir), f"found {found}", accepted, ", or ".join(remedies))]


def checkpoint_bytes(model: nn.Module, args: Any) -> tuple[int, int]:
    """Bytes of the weights and of the optimizer's state in a checkpoint; of an adapter its own weights alone.

    Args:
        model: in training.
        args: `TrainingArguments`, with the optimizer.
    """
    from peft import PeftModel

    adapted = isinstance(model, PeftModel)
    saved = [one for one in model.parameters() if one.requires_grad or not adapted]
    weights = sum(one.numel() * one.element_size() for one in saved)
    return weights, 0 if args.save_only_model else optimizer_bytes(model, args)


def optimizer_bytes(model: nn.Module, args: Any) -> int:
    """Bytes of the optimizer's state of what is trained.

    Args:
        model: in training.
        args: `TrainingArguments`, with the optimizer.
    """
    own = [one for one in model.parameters() if one.requires_grad]
    moments = {dtype: _state_bytes(args, dtype) for dtype in {one.dtype for one in own}}
    return math.ceil(sum(one.numel() * moments[one.dtype] for one in own))


def _state_bytes(args: Any, dtype: torch.dtype) -> float:
    """Bytes of the optimizer's state for a parameter, measured on a matrix; else those of AdamW."""
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
