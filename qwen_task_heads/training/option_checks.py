"""Options that only the first step, an evaluation or a save would resolve, checked before anything is loaded.

Design decisions:

- transformers is asked: optimizer and schedule are built from the options for one small layer, and the
  optimizer takes a step. What fails there is refused, with a remedy that can be typed.
- What transformers takes and leaves out without a word is refused too: arguments that an optimizer or a
  schedule does not read, and a schedule that follows a metric in the wrong direction.
- All of it is asked of the options of a run that starts here: those of a preset may be meant for a machine
  with other packages and another device.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import Trainer, get_scheduler
from transformers.integrations import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from qwen_task_heads.errors import Problem

SIZE = 256  # of the layer: 8-bit optimizers keep smaller matrices in fp32
USUAL_OPTIMIZER = "adamw_torch"
# Metrics of which less is better; transformers takes those that end in "loss" for such.
LESS_IS_BETTER = ("loss", "mse", "mae", "entropy")
# A value for what a schedule cannot do without.
NEEDED: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 10},
}
# Options that an optimizer may not take, with a value that all take.
NUMBERS = {
    "optim_args": None, "learning_rate": 1e-4, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
}  # fmt: skip
NOT_LISTED = ("azure_ml", "flyte")  # trackers of which transformers does not say whether they are installed
FOLLOW_A_METRIC = ("reduce_lr_on_plateau", "greedy")
STEPS = 100  # of a run, where its length is not known yet
# What optimizers and schedules raise for options that do not fit, or on a machine that they do not run on.
FAILURES = (
    ImportError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError, AssertionError,
    ZeroDivisionError,
)  # fmt: skip


@runtime_checkable
class _HasModes(Protocol):
    """An optimizer without a schedule, which is told when training begins."""

    def train(self) -> None:
        """Begin."""


def metric_problems(args: Any, metrics: Sequence[str], *, where: str = "") -> list[Problem]:
    """Refuse a `--metric_for_best_model` that no evaluation gives, with and without `eval_`.

    Args:
        args: `TrainingArguments`.
        metrics: names that the evaluation gives, without `eval_`; none if there is no evaluation.
        where: what gives them, for the message.

    Example:
        >>> from transformers import TrainingArguments
        >>> from qwen_task_heads.training.option_checks import metric_problems
        >>> args = TrainingArguments("runs/x", metric_for_best_model="f1", use_cpu=True)
        >>> print(metric_problems(args, ("accuracy", "macro_f1"))[0])
        --metric_for_best_model: found 'f1'; accepted: accuracy, macro_f1; choose one of them, or drop it
    """
    name = args.metric_for_best_model
    if name is None or name.removeprefix("eval_") in metrics:
        return []
    accepted = (", ".join(metrics) or "nothing: there is no evaluation") + where
    remedy = "choose one of them, or drop it" if metrics else "drop it"
    return [Problem("--metric_for_best_model", f"found {name!r}", accepted, remedy)]


def prefers_less(metric: str | None) -> bool:
    """Whether a smaller value of a metric is the better one."""
    name = (metric or "").removeprefix("eval_")
    return name in LESS_IS_BETTER or name.endswith("loss")


def option_problems(args: Any) -> list[Problem]:
    """Problems of optimizer, schedule and precision on this machine, all at once.

    Args:
        args: `TrainingArguments`.

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
    """Problems of when and how often to save."""
    problems = []
    if args.save_total_limit is not None and args.save_total_limit < 1:
        none = "--save_strategy no --load_best_model_at_end false"
        remedy = f"give --save_total_limit 1, or {none} to save none"
        problems.append(
            Problem("--save_total_limit", f"found {args.save_total_limit!s}", "1 or more", remedy)
        )
    if args.save_strategy == SaveStrategy.BEST and args.eval_strategy == "no":
        found, accepted = "'best' without an evaluation, so that nothing would be saved", "no, steps, epoch"
        problems.append(Problem("--save_strategy", f"found {found}", accepted, "give --save_strategy epoch"))
    return problems


def _machine_problems(args: Any) -> list[Problem]:
    problems = []
    if args.fp16 and args.device.type == "cpu":
        accepted, remedy = "a GPU, or another precision", "drop it"
        problems.append(Problem("--fp16", "found it on a CPU", accepted, remedy))
    if args.use_liger_kernel and find_spec("liger_kernel") is None:
        accepted, remedy = "installed packages", "pip install liger-kernel, or drop it"
        problems.append(Problem("--use_liger_kernel", "found no liger_kernel", accepted, remedy))
    return problems


def tracker_problems(args: Any) -> list[Problem]:
    """Refuse a `--report_to` that transformers does not know, or whose library is not installed."""
    problems, installed = [], get_available_reporting_integrations()
    for name in args.report_to:
        try:
            get_reporting_integration_callbacks([name])
        except ValueError as error:
            found = f"{name!r}: {error}"
        else:
            if name in installed or name in NOT_LISTED:
                continue
            found = f"{name!r}, not installed"
        install = f"pip install {name}, or " if "installed" in found else ""
        accepted, remedy = "a tracker that is installed", f"{install}give --report_to none"
        problems.append(Problem("--report_to", f"found {found}", accepted, remedy))
    return problems


# --- the optimizer ---


def make_optimizer(args: Any, layer: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a run for a layer, as `Trainer.create_optimizer` does."""
    made, options = Trainer.get_optimizer_cls_and_kwargs(args, layer)
    if not (isinstance(made, type) and issubclass(made, torch.optim.Optimizer)):
        return made()(layer, **options)  # a factory
    # Optimizers of some layers alone, and those that are given the model, bring their own first argument.
    parameters: Any = layer.parameters()
    for name in ("params", "model", "optimizer_dict"):
        parameters = options.pop(name, parameters)
    return made(parameters, **options)


def step_on_zeros(args: Any, *, dtype: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    """Build the optimizer of a run for one matrix, and take a step without a gradient.

    Args:
        args: `TrainingArguments`.
        dtype: of the matrix (`SIZE`, `SIZE`).
    """
    args = copy.copy(args)
    args.learning_rate = args.learning_rate or 1e-4  # a recipe sets its own later
    if args.optim_target_modules is not None:  # names of the model's modules, which it is not
        args.optim_target_modules = "all-linear"
    layer = nn.Linear(SIZE, SIZE, bias=False, dtype=dtype, device=args.device)
    nn.init.zeros_(layer.weight)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer = make_optimizer(args, nn.Sequential(layer))
    if isinstance(optimizer, _HasModes):
        optimizer.train()
    if args.optim not in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):  # which step in the backward pass
        optimizer.step()
    return optimizer


def try_optimizer(args: Any) -> tuple[torch.optim.Optimizer | None, list[Problem]]:
    """Build the optimizer that the options ask for; None and the problem where it cannot be.

    DeepSpeed brings its own, which is not looked at.
    """
    if args.deepspeed_plugin is not None:
        return None, []
    if problems := [*_optimizer_arguments(args), *_target_modules(args)]:
        return None, problems
    try:
        with torch.random.fork_rng(devices=[]):
            return step_on_zeros(args), []
    except FAILURES as error:
        return None, [_optimizer_problem(args, error)]


def _optimizer_problem(args: Any, error: Exception) -> Problem:
    name, reason = str(args.optim.value), " ".join(str(error).split())
    found = f"{name!r}, which fails: {reason[:200]}"
    if "optim_target_modules" in reason:
        accepted, remedy = "names of modules, or all-linear", "add --optim_target_modules all-linear"
        return Problem("--optim_target_modules", f"found none with --optim {name}", accepted, remedy)
    for option, usual in NUMBERS.items():
        given, without = vars(args)[option], copy.copy(args)
        setattr(without, option, usual)
        if given not in (None, "", usual) and _runs(without):
            found, accepted = f"{given!r}: {reason[:200]}", f"values that {name} takes"
            return Problem(f"--{option}", f"found {found}", accepted, "drop it")
    remedy = _install(reason) + f"give --optim {USUAL_OPTIMIZER}"
    return Problem("--optim", f"found {found}", "an optimizer that runs here", remedy)


def _runs(args: Any) -> bool:
    """Whether the optimizer runs with these options."""
    try:
        step_on_zeros(args)
    except FAILURES:
        return False
    return True


def _install(reason: str) -> str:
    """The command of a message that says what to install, up to an alternative; "" where it names none."""
    pip = re.search(r"pip install [^`'\";]+", reason)
    return f"{pip[0].strip().rstrip('.')}, or " if pip else ""


def _optimizer_arguments(args: Any) -> list[Problem]:
    """Refuse `--optim_args` that are no pairs, and those that the optimizer does not read."""
    if not args.optim_args:
        return []
    where, pairs = "--optim_args", args.optim_args.replace(" ", "").split(",")
    if wrong := [pair for pair in pairs if not re.fullmatch(r"[^=]+=[^=]+", pair)]:
        accepted = "name=value, with commas between"
        return [Problem(where, f"found {wrong[0]!r}", accepted, "correct it, or drop it")]
    name, as_given = str(args.optim.value), _outcome(args, args.optim_args)
    if isinstance(as_given, ImportError):
        return []  # nothing is known of its arguments
    unread = []
    for place, pair in enumerate(pairs):
        rest = pairs[:place] + pairs[place + 1 :]
        key = pair.split("=")[0]
        # An argument that is read changes what is built, or fails, for some value or when it is not there.
        others = [rest, *([*rest, f"{key}={value}"] for value in ("0.5", "7", "true"))]
        if all(str(_outcome(args, ",".join(other) or None)) == str(as_given) for other in others):
            unread.append(key)
    if not unread:
        return []
    kept = ",".join(pair for pair in pairs if pair.split("=")[0] not in unread)
    remedy = f"give --optim_args {kept}" if kept else "drop it"
    return [Problem(where, f"found {', '.join(unread)}, which {name} does not read", "what it reads", remedy)]


def _target_modules(args: Any) -> list[Problem]:
    """Refuse `--optim_target_modules` where the optimizer does not read them."""
    given = args.optim_target_modules
    without = copy.copy(args)
    without.optim_target_modules = None
    outcomes = [_outcome(one, one.optim_args) for one in (args, without)]
    if given is None or isinstance(outcomes[0], Exception) or str(outcomes[0]) != str(outcomes[1]):
        return []
    found = f"{given!r}, which {args.optim.value} does not read"
    return [Problem("--optim_target_modules", f"found {found}", "nothing with it", "drop it")]


def _outcome(args: Any, optim_args: str | None) -> Any:
    """What transformers makes of the arguments of an optimizer, or how it fails."""
    args = copy.copy(args)
    args.optim_args = optim_args
    if args.optim_target_modules is not None:
        args.optim_target_modules = "all-linear"
    layer = nn.Sequential(nn.Linear(2, 2, bias=False, device="meta"))
    try:
        return Trainer.get_optimizer_cls_and_kwargs(args, layer)
    except FAILURES as error:
        return error


# --- the schedule of the learning rate ---


def scheduler_problems(
    args: Any, *, optimizer: torch.optim.Optimizer | None = None, steps: int = STEPS
) -> list[Problem]:
    """Problems of `--lr_scheduler_type` and `--lr_scheduler_kwargs`; see `direction_problems` for metrics.

    Args:
        args: `TrainingArguments`.
        optimizer: that it schedules; a plain one if None.
        steps: of the run.
    """
    where, name = "--lr_scheduler_kwargs", str(SchedulerType(args.lr_scheduler_type).value)
    given = args.lr_scheduler_kwargs or {}
    if not isinstance(given, dict):
        accepted = 'a mapping as JSON, such as {"num_cycles": 2}'
        return [Problem(where, f"found {given!r}", accepted, "correct it, or drop it")]
    takes = _schedule_takes(name)
    unknown = [key for key in given if key not in takes]
    known = {key: value for key, value in given.items() if key in takes}
    problems = []
    error = _schedule_error(args, known, optimizer=optimizer, steps=steps)
    usual: dict[str, Any] = NEEDED.get(name, {})
    if error and usual and not _schedule_error(args, {**known, **usual}, optimizer=optimizer, steps=steps):
        known = {**known, **usual}
    elif error and known and not _schedule_error(args, usual, optimizer=optimizer, steps=steps):
        known = usual
    elif error:
        found = f"{name!r}, which fails: {error}"
        return [
            Problem(
                "--lr_scheduler_type", f"found {found}", "one that runs", "give --lr_scheduler_type linear"
            )
        ]
    remedy = f"give {where} '{json.dumps(known)}'" if known else "drop it"
    if error:
        problems.append(Problem(where, f"found {given or 'nothing'}: {error}", f"what {name} needs", remedy))
    if unknown:
        found = f"{', '.join(unknown)}, which {name} does not read"
        problems.append(Problem(where, f"found {found}", ", ".join(takes) or "nothing", remedy))
    return problems


def direction_problems(args: Any) -> list[Problem]:
    """Refuse a schedule that lowers the rate whenever its metric gets better.

    `reduce_lr_on_plateau` and `greedy` take less for better (mode `min`), whatever the metric is.

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
    found = f"mode {mode!r} with {metric}, of which {better} is better"
    remedy = f"give --lr_scheduler_kwargs '{json.dumps({**given, 'mode': right})}'"
    return [Problem("--lr_scheduler_kwargs", f"found {found}", f"mode {right!r}", remedy)]


def _schedule_takes(name: str) -> list[str]:
    """Names of the arguments that a schedule reads."""
    if name in ("constant", "constant_with_warmup"):  # which transformers gives none
        return []
    function: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    parameters = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):  # those of the class that it builds
        parameters = inspect.signature(type(function(_plain_optimizer()))).parameters
    own = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    return [key for key in parameters if key not in own]


def _schedule_error(
    args: Any, given: dict[str, Any], *, optimizer: torch.optim.Optimizer | None, steps: int
) -> str:
    """Why a schedule cannot be built or followed; "" where it can."""
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
