"""Checks of parsed options that every recipe runs: known choices, LoRA options and sizes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from qwen_task_heads.errors import Problem
from qwen_task_heads.hubcode.configuration_task_heads import HEADS, POOLINGS
from qwen_task_heads.metrics.calibration import CALIBRATIONS

LORA_SWITCHES = ("use_dora", "use_rslora", "lora_embeddings", "load_in_4bit", "load_in_8bit")
LORA_VALUES = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save")
BATCH_SIZES = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
# Options with which transformers computes no metrics, or metrics of fewer rows, and their only usable value.
SKIP_ROWS = (
    ("eval_do_concat_batches", True, "metrics are computed on all rows of dev together"),
    ("dataloader_drop_last", False, "rows of training and dev would be left out without a count"),
    ("prediction_loss_only", False, "no metrics would be computed on dev"),
    ("batch_eval_metrics", False, "metrics are computed on all rows of dev together"),
)


def not_one_of(*choices: tuple[str, Any, Sequence[str]]) -> list[Problem]:
    """Return the problems of options whose value is given but not among the known ones.

    Args:
        *choices: tuples of option (`--pooling`), value (None if not given) and known values.

    Example:
        >>> from qwen_task_heads.training.argument_checks import not_one_of
        >>> print(not_one_of(("--pooling", "avg", ["last", "mean"]))[0])
        --pooling: found 'avg'. Expected last, mean. Fix: choose one of them.
    """
    return [
        Problem(option, f"found {value!r}", ", ".join(known), "choose one of them", code="option-value")
        for option, value, known in choices
        if value is not None and value not in known
    ]


def head_problems(task: Any, model: Any) -> list[Problem]:
    """Return the problems of the options of a head."""
    problems = not_one_of(
        ("--pooling", task.pooling, POOLINGS),
        ("--head", task.head, HEADS),
        ("--calibrate", task.calibrate, CALIBRATIONS),
    )
    if task.freeze_backbone and model.use_peft:
        problem = "found it together with --use_peft, which trains the backbone"
        expected, fix = "one of the two", "drop one of them"
        problems.append(Problem("--freeze_backbone", problem, expected, fix, code="option-conflict"))
    return problems


def lora_problems(model: Any, *, head_only: bool) -> list[Problem]:
    """Return the options of LoRA that would be ignored silently.

    Args:
        model: a `HeadModelConfig`.
        head_only: True if the adapter holds the head alone.
    """
    problems = []
    for name in LORA_SWITCHES:
        if vars(model)[name] and not model.use_peft:
            problem = "found it without --use_peft, so that the whole model would be trained"
            fix = "add --use_peft"
            problems.append(Problem(f"--{name}", problem, "--use_peft with it", fix, code="option-missing"))
    if not model.use_peft and not head_only:
        usual = {item.name: item.default for item in fields(model)}
        for name in LORA_VALUES:
            value = vars(model)[name]
            if value != usual[name]:
                problem = f"found {value} without --use_peft, so that the whole model would be trained"
                fix = "add --use_peft, or drop it"
                problems.append(
                    Problem(f"--{name}", problem, "--use_peft with it", fix, code="option-missing")
                )
    if model.lora_target_parameters:
        problem, expected = f"found {model.lora_target_parameters}", "--lora_target_modules"
        fix, code = f"drop it, or name modules by {expected}", "option-unsupported"
        problems.append(Problem("--lora_target_parameters", problem, expected, fix, code=code))
    return problems


def training_problems(training: Any) -> list[Problem]:
    """Return the options that would leave out rows or metrics, and sizes that train nothing."""
    problems = []
    for name, usable, reason in SKIP_ROWS:
        if bool(vars(training)[name]) is not usable:
            found, expected = (str(value).lower() for value in (not usable, usable))
            problem = f"found {found}: {reason}"
            problems.append(Problem(f"--{name}", problem, expected, "drop it", code="option-unsupported"))
    if training.max_steps == 0 or (training.max_steps < 0 and training.num_train_epochs <= 0):
        name = "max_steps" if training.max_steps == 0 else "num_train_epochs"
        problem, fix = f"found {vars(training)[name]:g}", "raise it, or drop it"
        problems.append(Problem(f"--{name}", problem, "1 or more", fix, code="option-range"))
    for name in BATCH_SIZES:
        if vars(training)[name] < 1:
            problem, fix = f"found {vars(training)[name]}", f"give --{name} 16"
            problems.append(Problem(f"--{name}", problem, "1 or more", fix, code="option-range"))
    return problems
