"""Checks of options that otherwise fail at the first step, at an evaluation or at a save.

Design decisions:

- Optimizer and schedule are built by transformers for one small layer, and the optimizer takes a step. An
  option that fails there is refused, with a fix that can be typed.
- Options that transformers accepts and ignores silently are refused as well: arguments that an optimizer or
  a schedule does not read, and a schedule that follows a metric in the wrong direction.
- The checks apply to runs that train in this process. The options of a preset may be written for a machine
  with other packages and another device.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SaveStrategy, SchedulerType

from qwen_task_heads.errors import Problem
from qwen_task_heads.training.optimizer_checks import FAILURES, try_optimizer

# Metrics that improve when they decrease; transformers assumes so only for names that end in "loss".
LESS_IS_BETTER = ("loss", "mse", "mae", "entropy")
# Arguments that a schedule requires, each with a usable value.
NEEDED: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 10},
}
FOLLOW_A_METRIC = ("reduce_lr_on_plateau", "greedy")
STEPS = 100  # length of a run that is not known yet


def metric_problems(args: Any, metrics: Sequence[str], *, where: str = "") -> list[Problem]:
    """Refuse a `--metric_for_best_model` that no evaluation computes, with or without `eval_`.

    Args:
        args: `TrainingArguments`.
        metrics: names that the evaluation computes, without `eval_`; empty if there is no evaluation.
        where: source of the metrics, appended to the expected names in the message.

    Example:
        >>> from transformers import TrainingArguments
        >>> from qwen_task_heads.training.option_checks import metric_problems
        >>> args = TrainingArguments("runs/x", metric_for_best_model="f1", use_cpu=True)
        >>> print(metric_problems(args, ("accuracy", "macro_f1"))[0])
        --metric_for_best_model: found 'f1'. Expected accuracy, macro_f1. Fix: choose one of them, or drop it.
    """
    name = args.metric_for_best_model
    if name is None or name.removeprefix("eval_") in metrics:
        return []
    expected = (", ".join(metrics) or "no metric, because there is no evaluation") + where
    fix = "choose one of them, or drop it" if metrics else "drop it"
    return [Problem("--metric_for_best_model", f"found {name!r}", expected, fix, code="option-value")]


def prefers_less(metric: str | None) -> bool:
    """Return whether a smaller value of a metric is the better one."""
    name = (metric or "").removeprefix("eval_")
    return name in LESS_IS_BETTER or name.endswith("loss")


def option_problems(args: Any) -> list[Problem]:
    """Return all problems of optimizer, schedule and precision on this machine.

    Example:
        >>> from transformers import TrainingArguments
        >>> from qwen_task_heads.training.option_checks import option_problems
        >>> args = TrainingArguments("runs/x", optim="sgd", optim_args="momentum=0.9,foo=1", use_cpu=True)
        >>> [problem.fix for problem in option_problems(args)]
        ['give --optim_args momentum=0.9']
    """
    optimizer, problems = try_optimizer(args)
    return [*_machine_problems(args), *problems, *scheduler_problems(args, optimizer=optimizer)]


def saving_problems(args: Any) -> list[Problem]:
    """Return the problems of the options that control when and how often to save."""
    problems = []
    if args.save_total_limit is not None and args.save_total_limit < 1:
        problem = f"found {args.save_total_limit!s}"
        fix = "give --save_total_limit 1, or give --save_strategy no --load_best_model_at_end false"
        problems.append(Problem("--save_total_limit", problem, "1 or more", fix, code="option-range"))
    if args.save_strategy == SaveStrategy.BEST and args.eval_strategy == "no":
        where, problem = "--save_strategy", "found 'best' without an evaluation, which saves nothing"
        fix = "give --save_strategy epoch"
        problems.append(Problem(where, problem, "no, steps or epoch", fix, code="option-conflict"))
    return problems


def _machine_problems(args: Any) -> list[Problem]:
    problems = []
    if args.fp16 and args.device.type == "cpu":
        where, expected = "--fp16", "a GPU or another precision"
        problems.append(Problem(where, "found it on a CPU", expected, "drop it", code="device-unavailable"))
    if args.use_liger_kernel and find_spec("liger_kernel") is None:
        where, problem = "--use_liger_kernel", "package liger_kernel is not installed"
        fix = "pip install liger-kernel, or drop it"
        problems.append(Problem(where, problem, "an installed package", fix, code="package-missing"))
    return problems


# --- the schedule of the learning rate ---


def scheduler_problems(
    args: Any, *, optimizer: torch.optim.Optimizer | None = None, steps: int = STEPS
) -> list[Problem]:
    """Return the problems of `--lr_scheduler_type` and `--lr_scheduler_kwargs`.

    `direction_problems` checks schedules that follow a metric.

    Args:
        args: `TrainingArguments`.
        optimizer: whose rate is scheduled; a plain one if None.
        steps: optimizer steps of the run.
    """
    where, name = "--lr_scheduler_kwargs", str(SchedulerType(args.lr_scheduler_type).value)
    given = args.lr_scheduler_kwargs or {}
    if not isinstance(given, dict):
        expected = 'a mapping as JSON, such as {"num_cycles": 2}'
        return [Problem(where, f"found {given!r}", expected, "correct it, or drop it", code="option-value")]
    readable = _schedule_arguments(name)
    unknown = [key for key in given if key not in readable]
    known = {key: value for key, value in given.items() if key in readable}
    problems = []
    error = _schedule_error(args, known, optimizer=optimizer, steps=steps)
    usual: dict[str, Any] = NEEDED.get(name, {})
    if error and usual and not _schedule_error(args, {**known, **usual}, optimizer=optimizer, steps=steps):
        known = {**known, **usual}
    elif error and known and not _schedule_error(args, usual, optimizer=optimizer, steps=steps):
        known = usual
    elif error:
        return [
            Problem(
                "--lr_scheduler_type",
                f"found {name!r}, which fails: {error}",
                "a schedule that runs",
                "give --lr_scheduler_type linear",
                code="option-unsupported",
            )
        ]
    fix = f"give {where} '{json.dumps(known)}'" if known else "drop it"
    if error:
        problem = f"found {given or 'nothing'}: {error}"
        code = "option-value" if given else "option-missing"
        problems.append(Problem(where, problem, f"the arguments that {name} needs", fix, code=code))
    if unknown:
        problem = f"found {', '.join(unknown)}, which {name} does not read"
        expected = ", ".join(readable) or "no arguments"
        problems.append(Problem(where, problem, expected, fix, code="option-unsupported"))
    return problems


def direction_problems(args: Any) -> list[Problem]:
    """Refuse a schedule that lowers the learning rate whenever its metric improves.

    `reduce_lr_on_plateau` and `greedy` minimise (mode `min`) by default, whatever the metric is.

    Args:
        args: `TrainingArguments`, with the metric of the run.
    """
    name = str(SchedulerType(args.lr_scheduler_type).value)
    given = args.lr_scheduler_kwargs or {}
    if name not in FOLLOW_A_METRIC or not isinstance(given, dict) or args.greater_is_better is None:
        return []
    mode, right = given.get("mode", "min"), "max" if args.greater_is_better else "min"
    if mode == right:
        return []
    metric, better = args.metric_for_best_model, "more" if args.greater_is_better else "less"
    problem = f"found mode {mode!r} with {metric}, of which {better} is better"
    fix = f"give --lr_scheduler_kwargs '{json.dumps({**given, 'mode': right})}'"
    return [Problem("--lr_scheduler_kwargs", problem, f"mode {right!r}", fix, code="option-conflict")]


def _schedule_arguments(name: str) -> list[str]:
    """Return the names of the arguments that a schedule reads."""
    if name in ("constant", "constant_with_warmup"):  # transformers passes no arguments to these
        return []
    function: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    parameters = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):  # passed on to the class it builds
        parameters = inspect.signature(type(function(_plain_optimizer()))).parameters
    own = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    return [key for key in parameters if key not in own]


def _schedule_error(
    args: Any, given: dict[str, Any], *, optimizer: torch.optim.Optimizer | None, steps: int
) -> str:
    """Return the reason why a schedule cannot be built or followed; "" if it can."""
    try:
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer or _plain_optimizer(args.learning_rate),
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=given,
        )
        if isinstance(schedule, LambdaLR):
            rates = [rate(step) for rate in schedule.lr_lambdas for step in {0, 1, steps // 2, steps - 1}]
            if not all(math.isfinite(rate) for rate in rates):
                return "its learning rate is not finite"
        elif isinstance(schedule, ReduceLROnPlateau):
            schedule.step(0.0)
    except FAILURES as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def _plain_optimizer(rate: float | None = None) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate if rate and rate > 0 else 1e-4)
