"""Checks of the optimizer of a run: it is built from the options for one small layer and takes a step.

transformers builds the optimizer. A failure is reported as a problem of the option that causes it.
"""

from __future__ import annotations

import copy
import re
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import Trainer
from transformers.training_args import OptimizerNames

from qwen_task_heads.errors import Problem

SIZE = 256  # of the layer: 8-bit optimizers keep smaller matrices in fp32
USUAL_OPTIMIZER = "adamw_torch"
# Options that an optimizer may refuse, each with a value that all optimizers accept.
NUMBERS = {
    "optim_args": None,
    "learning_rate": 1e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
}
# Exceptions that optimizers and schedules raise for unsuitable options or on an unsupported machine.
FAILURES = (
    ImportError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    OSError,
    AssertionError,
    ZeroDivisionError,
)


@runtime_checkable
class _HasModes(Protocol):
    """A schedule-free optimizer, which has to be switched to training mode."""

    def train(self) -> None:
        """Switch to training mode."""


def make_optimizer(args: Any, layer: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a run for a layer, as `Trainer.create_optimizer` does."""
    made, options = Trainer.get_optimizer_cls_and_kwargs(args, layer)
    if not (isinstance(made, type) and issubclass(made, torch.optim.Optimizer)):
        return made()(layer, **options)  # a factory
    # Layer-wise optimizers and those that take the model have their first argument among the options.
    parameters: Any = layer.parameters()
    for name in ("params", "model", "optimizer_dict"):
        parameters = options.pop(name, parameters)
    return made(parameters, **options)


def step_on_zeros(args: Any, *, dtype: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    """Build the optimizer of a run for one matrix, and take a step with a zero gradient.

    Args:
        args: `TrainingArguments`.
        dtype: of the matrix (`SIZE`, `SIZE`).
    """
    args = copy.copy(args)
    args.learning_rate = args.learning_rate or 1e-4  # a recipe sets its own later
    if args.optim_target_modules is not None:  # modules of the model, which this layer does not have
        args.optim_target_modules = "all-linear"
    layer = nn.Linear(SIZE, SIZE, bias=False, dtype=dtype, device=args.device)
    nn.init.zeros_(layer.weight)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer = make_optimizer(args, nn.Sequential(layer))
    if isinstance(optimizer, _HasModes):
        optimizer.train()
    if args.optim not in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):  # these step in the backward pass
        optimizer.step()
    return optimizer


def try_optimizer(args: Any) -> tuple[torch.optim.Optimizer | None, list[Problem]]:
    """Build the optimizer of the options; return None and the problems if it cannot be built.

    DeepSpeed brings its own optimizer, which is not checked.
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
    if "optim_target_modules" in reason:
        where, expected = "--optim_target_modules", "names of modules, or all-linear"
        fix = "add --optim_target_modules all-linear"
        return Problem(where, f"found none with --optim {name}", expected, fix, code="option-missing")
    for option, usual in NUMBERS.items():
        given, without = vars(args)[option], copy.copy(args)
        setattr(without, option, usual)
        if given not in (None, "", usual) and _runs(without):
            problem = f"found {given!r}: {reason[:200]}"
            return Problem(
                f"--{option}", problem, f"a value that {name} accepts", "drop it", code="option-value"
            )
    return Problem(
        "--optim",
        f"found {name!r}, which fails: {reason[:200]}",
        "an optimizer that runs on this machine",
        _install_command(reason) + f"give --optim {USUAL_OPTIMIZER}",
        code="package-missing" if isinstance(error, ImportError) else "option-unsupported",
    )


def _runs(args: Any) -> bool:
    """Return whether the optimizer runs with these options."""
    try:
        step_on_zeros(args)
    except FAILURES:
        return False
    return True


def _install_command(reason: str) -> str:
    """Return the install command that an error message names, followed by ", or "; "" if it names none."""
    pip = re.search(r"pip install [^`'\";]+", reason)
    return f"{pip[0].strip().rstrip('.')}, or " if pip else ""


def _optimizer_arguments(args: Any) -> list[Problem]:
    """Refuse `--optim_args` that are not pairs, and arguments that the optimizer does not read."""
    if not args.optim_args:
        return []
    where, pairs = "--optim_args", args.optim_args.replace(" ", "").split(",")
    if wrong := [pair for pair in pairs if not re.fullmatch(r"[^=]+=[^=]+", pair)]:
        expected, fix = "name=value pairs, separated by commas", "correct it, or drop it"
        return [Problem(where, f"found {wrong[0]!r}", expected, fix, code="option-value")]
    name, as_given = str(args.optim.value), _built_optimizer(args, args.optim_args)
    if isinstance(as_given, ImportError):
        return []  # its arguments are unknown
    unread = []
    for place, pair in enumerate(pairs):
        rest = pairs[:place] + pairs[place + 1 :]
        key = pair.split("=")[0]
        # If the optimizer reads an argument, some other value of it or its absence changes the result.
        others = [rest, *([*rest, f"{key}={value}"] for value in ("0.5", "7", "true"))]
        if all(str(_built_optimizer(args, ",".join(other) or None)) == str(as_given) for other in others):
            unread.append(key)
    if not unread:
        return []
    kept = ",".join(pair for pair in pairs if pair.split("=")[0] not in unread)
    problem = f"found {', '.join(unread)}, which {name} does not read"
    fix = f"give --optim_args {kept}" if kept else "drop it"
    return [Problem(where, problem, "arguments that it reads", fix, code="option-unsupported")]


def _target_modules(args: Any) -> list[Problem]:
    """Refuse `--optim_target_modules` if the optimizer does not read them."""
    given = args.optim_target_modules
    without = copy.copy(args)
    without.optim_target_modules = None
    built = [_built_optimizer(one, one.optim_args) for one in (args, without)]
    if given is None or isinstance(built[0], Exception) or str(built[0]) != str(built[1]):
        return []
    problem = f"found {given!r}, which {args.optim.value} does not read"
    expected = f"no target modules with {args.optim.value}"
    return [Problem("--optim_target_modules", problem, expected, "drop it", code="option-unsupported")]


def _built_optimizer(args: Any, optim_args: str | None) -> Any:
    """Return the class and arguments that transformers resolves for an optimizer, or its exception."""
    args = copy.copy(args)
    args.optim_args = optim_args
    if args.optim_target_modules is not None:
        args.optim_target_modules = "all-linear"
    layer = nn.Sequential(nn.Linear(2, 2, bias=False, device="meta"))
    try:
        return Trainer.get_optimizer_cls_and_kwargs(args, layer)
    except FAILURES as error:
        return error
