"""Options of the head sweep: lists where the training recipes take one value.

Training options that a sweep cannot use (schedules, checkpoints, adapters) are refused instead of ignored.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.families_task_heads import family_of
from qwen_task_heads.tokenization.templates import SHELL_TEXTS, for_shell
from qwen_task_heads.training.argument_checks import not_one_of
from qwen_task_heads.training.arguments import HeadModelConfig, parse_arguments
from qwen_task_heads.training.backbone_defaults import rates_for
from qwen_task_heads.training.classifier_arguments import (
    ClassifierArguments,
    ClassifierConfig,
    check_texts,
)
from qwen_task_heads.training.command_lines import stated_value
from qwen_task_heads.training.convex_heads import PENALTIES, penalty_problems
from qwen_task_heads.training.features import POOLINGS
from qwen_task_heads.training.frozen_heads import HeadTraining
from qwen_task_heads.training.group_losses import GROUP_LOSSES
from qwen_task_heads.training.head_sweep import Combination, parse_head, parse_layers
from qwen_task_heads.training.pair_losses import PAIR_LOSSES
from qwen_task_heads.training.text_losses import FLAGS, TEXT_LOSSES
from qwen_task_heads.training.title_arguments import TitleArguments, TitleConfig, check_titles

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAVED_AS = ("adapter", "full")
# Options that a sweep replaces by a list, with that list, and options that need tokens in every step.
REPLACED = {
    "pooling": "--poolings {pooling}",
    "head": "--heads {head}",
    "head_sizes": "--heads {head}",
    "loss": "--losses {loss}",
    "backbone_layers": "--layers {backbone_layers}",
    **dict.fromkeys(("freeze_backbone", "head_layers", "init_head", "token_dropout"), ""),
    "early_stopping_patience": "",
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

# From this depth on, heads on several layers together are tried by default. On SmolLM2-135M they beat every
# single layer on dev: .903 against .887 on BANKING77, .732 against .710 on Upworthy (real_weights.md).
DEEP = 12


@dataclass
class SweepOptions:
    """Options of what a sweep tries and how it saves the result."""

    TRAINS_ON: ClassVar[str]  # the recipe that continues from a head
    PARENT: ClassVar[type]  # its options

    task: str = field(
        default="texts",
        metadata={"help": "texts with labels, or titles: pairs, votes, clicks or arms of experiments."},
    )
    layers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Layers to train heads on, several together as 15+20; a quarter, half, three "
            "quarters and all of the depth if None, and the first three together from 12 layers on."
        },
    )
    poolings: list[str] = field(
        default_factory=lambda: list(POOLINGS), metadata={"help": ", ".join(POOLINGS)}
    )
    heads: list[str] = field(
        default_factory=lambda: ["linear", "mlp:256"], metadata={"help": "linear, mlp:256, mlp:1024,512, ..."}
    )
    losses: list[str] | None = field(
        default=None, metadata={"help": "Losses as of --loss of the training recipe; its first one if None."}
    )
    penalties: list[float] = field(
        default_factory=lambda: list(PENALTIES),
        metadata={"help": "L2 penalties of linear heads, for features of unit variance; dev selects one."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds with which each MLP head is trained."}
    )
    tolerance: float = field(
        default=0.0,
        metadata={"help": "Choose the shallowest layer whose dev metric is at most this far from the best."},
    )
    save_as: str = field(
        default="adapter", metadata={"help": "adapter: the head alone, for its base; full: all weights."}
    )
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "Folder that caches the features for the next sweep; no cache if None."},
    )
    feature_dtype: str = field(
        default="float32",
        metadata={"help": "float32, or bfloat16, which halves the memory and runs under autocast."},
    )

    def layers_of(self, backbone: PreTrainedConfig) -> list[tuple[int, ...]]:
        """Return the layers to try on a backbone; only the last one for families without early exit."""
        depth = backbone.num_hidden_layers
        if self.layers is not None:
            return list(dict.fromkeys(parse_layers(text) for text in self.layers))
        if not family_of(backbone.model_type).early_exit:
            return [(depth,)]
        quarters = sorted({max(1, round(depth * part / 4)) for part in (1, 2, 3, 4)})
        alone: list[tuple[int, ...]] = [(layer,) for layer in quarters]
        if depth < DEEP:
            return alone
        first, half, third, _ = quarters
        return [*alone, (first, third), (first, half, third)]

    def feature_options(self) -> dict[str, Any]:
        """Return the arguments of `extract_features` other than the layers."""
        dtype = DTYPES[self.feature_dtype]
        return {"poolings": self.poolings, "cache_dir": self.feature_cache, "dtype": dtype}


@dataclass
class SweepArguments(SweepOptions, ClassifierArguments):
    """Options of the classification recipe for data and template, and options of the sweep."""

    TRAINS_ON: ClassVar[str] = "recipes/classify.py"
    PARENT: ClassVar[type] = ClassifierArguments

    def options_of(self, loss: str, *, problem_type: str, label_smoothing: float = 0.0) -> dict[str, Any]:
        """Return the given options that a loss takes."""
        given = {**self.loss_options(), "label_smoothing": label_smoothing or None}
        takes = TEXT_LOSSES[problem_type][loss].options
        return {name: value for name, value in given.items() if name in takes and value is not None}

    def losses_for(self, problem_type: str) -> list[str]:
        """Return the names of the losses to try.

        Raises:
            TaskHeadsError: the problem type does not have a loss, or no loss takes one of the options.
        """
        known = TEXT_LOSSES[problem_type]
        names = list(dict.fromkeys(self.losses or [next(iter(known))]))
        problems = []
        for name in names:
            if name not in known:
                problem, fix = f"found {name!r} for {problem_type}", "choose one of them"
                problems.append(Problem("--losses", problem, ", ".join(known), fix, code="option-value"))
        taken = {option for name in names if name in known for option in known[name].options}
        problem, expected = f"found it with {', '.join(names)}", "a loss that takes it"
        problems += [
            Problem(FLAGS[name], problem, expected, "drop it", code="option-conflict")
            for name in self.loss_options()
            if name not in taken
        ]
        if problems:
            raise TaskHeadsError(problems)
        return names


@dataclass
class TitleSweepArguments(SweepOptions, TitleArguments):
    """Options of the title recipe for data and template, and options of the sweep."""

    TRAINS_ON: ClassVar[str] = "recipes/reward_titles.py"
    PARENT: ClassVar[type] = TitleArguments

    def losses_for(self, *, has_groups: bool) -> list[str]:
        """Return the names of the losses to try; losses over groups need arms of experiments.

        Args:
            has_groups: True if the data have groups of arms.

        Raises:
            TaskHeadsError: a loss is unknown or needs groups that the data do not have, or no loss takes one
                of the options.
        """
        names = list(dict.fromkeys(self.losses or [next(iter(PAIR_LOSSES))]))
        known = [*PAIR_LOSSES, *(GROUP_LOSSES if has_groups else ())]
        problems = []
        for name in names:
            if name not in known:
                problem, code = f"found {name!r}", "option-value"
                if name in GROUP_LOSSES:
                    problem, code = f"{problem} without groups of several titles", "option-unsupported"
                problems.append(
                    Problem("--losses", problem, ", ".join(known), "choose one of them", code=code)
                )
        pairwise = [PAIR_LOSSES[name] for name in names if name in PAIR_LOSSES]
        problem, expected = f"found it with {', '.join(names)}", "a loss that takes it"
        problems += [
            Problem(f"--loss_{name}", problem, expected, "drop it", code="option-conflict")
            for name in self.loss_options()
            if not any(name in (*loss.options, *loss.uses) for loss in pairwise)
        ]
        if problems:
            raise TaskHeadsError(problems)
        return names


def warm_start_command(
    texts: SweepArguments | TitleSweepArguments,
    training: SweepConfig | TitleSweepConfig,
    model: HeadModelConfig,
    *,
    folder: str,
    chosen: Combination,
) -> list[str]:
    """Return the command of a LoRA run that starts from the head of a sweep.

    Args:
        texts: options of the sweep; those of data, labels and template are passed on.
        training: options of the training; the length of titles is passed on.
        model: options of the backbone.
        folder: folder of the saved model of the sweep.
        chosen: the combination that was saved.

    Returns:
        The words of the command line.
    """
    own = {item.name for item in fields(SweepOptions)}
    given = _given(model, without={"model_name_or_path", "gguf_file", "use_peft"}) | _given(
        texts, without=own
    )
    if isinstance(training, TitleSweepConfig):
        given["max_length"] = training.max_length
    given |= {
        **chosen.head_options(),
        "loss": chosen.loss,
        "init_head": folder,
        "output_dir": f"{folder.rstrip('/')}-lora",
    }
    words = ["accelerate", "launch", texts.TRAINS_ON]
    words += ["--model_name_or_path", str(model.model_name_or_path), "--use_peft"]
    for name, value in given.items():
        values = value if isinstance(value, list) else ["true" if value is True else value]
        values = [for_shell(value)] if name in SHELL_TEXTS else values
        words += [f"--{name}", *map(str, values)]
    return words


def _given(group: Any, *, without: set[str]) -> dict[str, Any]:
    """Return the options of a dataclass that differ from their defaults."""
    return {
        item.name: vars(group)[item.name]
        for item in fields(group)
        if item.init and item.name not in without and vars(group)[item.name] not in (item.default, [])
    }


class HeadTrainings:
    """Mixin of training options that apply to a head on features."""

    def head_training(self) -> HeadTraining:
        """Return these options as the settings of `fit_head`."""
        options: Any = self
        return HeadTraining(
            epochs=int(options.num_train_epochs),
            batch_size=options.per_device_train_batch_size,
            learning_rate=options.learning_rate or 0.0,
            warmup=options.warmup_steps or 0.0,
            weight_decay=options.weight_decay,
            max_grad_norm=options.max_grad_norm,
        )


@dataclass
class SweepConfig(HeadTrainings, ClassifierConfig):
    """Training options of a sweep over texts, with more epochs than a whole model needs."""

    RECIPE: ClassVar[str] = "heads"
    TRAINS: ClassVar[str] = "heads on a frozen backbone"

    num_train_epochs: float = field(
        default=10.0, metadata={"help": "Epochs of an MLP head over the features."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows per step of an MLP head."})


@dataclass
class TitleSweepConfig(HeadTrainings, TitleConfig):
    """Training options of a sweep over titles."""

    RECIPE: ClassVar[str] = "heads"
    FOLDER: ClassVar[str | None] = "titles"
    TRAINS: ClassVar[str] = "title scorers on a frozen backbone"

    learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of an MLP head; 1e-3 if None."}
    )
    num_train_epochs: float = field(
        default=10.0, metadata={"help": "Epochs of an MLP head over the features."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pairs per step of an MLP head."})


TASKS: dict[str, tuple[type, type]] = {
    "texts": (SweepArguments, SweepConfig),
    "titles": (TitleSweepArguments, TitleSweepConfig),
}


def parse_sweep_arguments(argv: Sequence[str] | None = None) -> tuple[Any, Any, HeadModelConfig]:
    """Parse the command line and the `--config` YAML; the command line wins. `--task` selects the options.

    Returns:
        `SweepArguments` and `SweepConfig`, or `TitleSweepArguments` and `TitleSweepConfig`; and the options
        of the model.

    Raises:
        TaskHeadsError: a key is unknown, a value is not usable, or a sweep cannot use an option.
    """
    task = stated_value("task", sys.argv[1:] if argv is None else argv) or "texts"
    if problems := not_one_of(("--task", task, list(TASKS))):
        raise TaskHeadsError(problems)
    options, training, model = parse_arguments((*TASKS[task], HeadModelConfig), argv, check=_check)
    if training.learning_rate is None:
        training.learning_rate = rates_for("classifier", model.model_name_or_path)["head"]
    return options, training, model


def _check(texts: Any, training: Any, model: HeadModelConfig) -> list[Problem]:
    are_titles = isinstance(texts, TitleSweepArguments)
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
        fix = f"drop it: LoRA comes after, by {Path(texts.TRAINS_ON).name} --init_head"
        problems.append(Problem("--use_peft", "found true", "false", fix, code="option-unsupported"))
    problems += not_one_of(
        ("--save_as", texts.save_as, SAVED_AS), ("--feature_dtype", texts.feature_dtype, list(DTYPES))
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
