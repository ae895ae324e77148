"""Checks of the options of a head sweep: values, and options that a sweep cannot use.

Training options that a sweep cannot use (schedules, checkpoints, adapters) are refused instead of ignored.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.training.argument_checks import not_one_of
from qwen_task_heads.training.arguments import HeadModelConfig
from qwen_task_heads.training.classifier_arguments import check_texts
from qwen_task_heads.training.convex_heads import penalty_problems
from qwen_task_heads.training.features import POOLINGS
from qwen_task_heads.training.head_sweep import parse_head, parse_layers
from qwen_task_heads.training.title_arguments import TitleArguments, check_titles

FEATURE_DTYPES = ("float32", "bfloat16")
SAVED_AS = ("adapter", "full")
# Options that a sweep replaces by a list, with that list, and options that need tokens in every step.
REPLACED = {
    "pooling": "--poolings {pooling}",
    "head": "--heads {head}",
    "head_sizes": "--heads {head}",
    "loss": "--losses {loss}",
    "backbone_layers": "--layers {backbone_layers}",
    **dict.fromkeys(("freeze_backbone", "head_layers", "init_head", "token_dropout"), ""),
    **dict.fromkeys(("early_stopping_patience", "search", "search_space", "search_storage"), ""),
}
# Options that another option sets.
FOLLOWS = {
    "greater_is_better": "metric_for_best_model",
    **dict.fromkeys(("do_eval", "eval_steps", "save_strategy", "save_steps"), "eval_strategy"),
}
USED = (
    "output_dir",
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "weight_decay",
    "warmup_steps",
    "max_grad_norm",
    "label_smoothing_factor",
    "seed",
    "use_cpu",
    "disable_tqdm",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
)


def check_sweep(texts: Any, training: Any, model: HeadModelConfig) -> list[Problem]:
    """Return the problems of the options of a sweep, and the options that it cannot use.

    Args:
        texts: a `SweepOptions` of either task.
        training: options of the training.
        model: options of the model.
    """
    are_titles = isinstance(texts, TitleArguments)
    problems = check_titles(texts, training, model) if are_titles else check_texts(texts, training, model)
    usual = {item.name: item.default for item in fields(texts)}
    expected = "no such option, because a sweep trains heads on features"
    for name, instead in REPLACED.items():
        if name in usual and vars(texts)[name] != usual[name]:
            fix = f"give {instead} instead".format(**_swept(texts)) if instead else "drop it"
            problem = f"found {vars(texts)[name]!r}"
            problems.append(Problem(f"--{name}", problem, expected, fix, code="option-unsupported"))
    plain = type(training)(output_dir=training.output_dir, use_cpu=training.use_cpu)
    changed = {item.name for item in fields(training) if vars(training)[item.name] != vars(plain)[item.name]}
    for item in fields(training):
        # An option that another one sets cannot be dropped: the other one is reported.
        is_set = FOLLOWS.get(item.name) in changed
        used = item.name in USED or (are_titles and item.name == "max_length")
        if not used and item.init and item.name in changed and not is_set:
            problem = f"found {vars(training)[item.name]!r}"
            expected = f"only these training options: {', '.join(USED)}"
            problems.append(
                Problem(f"--{item.name}", problem, expected, "drop it", code="option-unsupported")
            )
    if model.use_peft:
        fix = f"drop it: LoRA comes after, by {texts.TRAINS_ON}.py --init_head"
        problems.append(Problem("--use_peft", "found true", "false", fix, code="option-unsupported"))
    problems += not_one_of(
        ("--save_as", texts.save_as, SAVED_AS), ("--feature_dtype", texts.feature_dtype, FEATURE_DTYPES)
    )
    problems += penalty_problems(texts.penalties)
    for pooling in texts.poolings:
        problems += not_one_of(("--poolings", pooling, POOLINGS))
    for parse, values in ((parse_head, texts.heads), (parse_layers, texts.layers or [])):
        for value in values:
            try:
                parse(value)
            except TaskHeadsError as error:
                problems += error.problems
    if not are_titles and texts.truncation == "windows":
        expected, fix = "head, tail, head_tail", "choose one of them: classify.py trains heads on windows"
        problems.append(Problem("--truncation", "found 'windows'", expected, fix, code="option-unsupported"))
    if not texts.seeds:
        problems.append(
            Problem("--seeds", "found none", "one or more seeds", "give --seeds 0", code="option-missing")
        )
    if training.num_train_epochs > 0 and training.num_train_epochs != int(training.num_train_epochs):
        problem, fix = f"found {training.num_train_epochs}", "give --num_train_epochs 10"
        problems.append(
            Problem("--num_train_epochs", problem, "whole epochs, 1 or more", fix, code="option-value")
        )
    if texts.tolerance < 0:
        problem, fix = f"found {texts.tolerance}", "give --tolerance 0.005"
        problems.append(Problem("--tolerance", problem, "0 or more", fix, code="option-range"))
    return problems


def _swept(texts: Any) -> dict[str, Any]:
    """Return the values of the replaced options, in the form of the lists of a sweep."""
    widths = ",".join(map(str, texts.head_sizes or [256]))
    return {**vars(texts), "head": "linear" if texts.head == "linear" else f"mlp:{widths}"}
