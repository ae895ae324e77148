"""Options of the head sweep: lists where the training recipes take one value."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.families_task_heads import family_of
from qwen_task_heads.losses.registry import (
    GROUP_LOSSES,
    PAIR_LOSSES,
    TEXT_LOSSES,
    TITLE_LOSSES,
    unused_options,
)
from qwen_task_heads.losses.rows import Loss
from qwen_task_heads.training.argument_checks import not_one_of
from qwen_task_heads.training.arguments import HeadModelConfig, parse_arguments, set_default_rate
from qwen_task_heads.training.classifier_arguments import (
    ClassifierArguments,
    ClassifierConfig,
)
from qwen_task_heads.training.command_lines import stated_value
from qwen_task_heads.training.convex_heads import PENALTIES
from qwen_task_heads.training.features import POOLINGS
from qwen_task_heads.training.frozen_heads import HeadTraining
from qwen_task_heads.training.head_sweep import parse_layers
from qwen_task_heads.training.sweep_checks import check_sweep
from qwen_task_heads.training.title_arguments import TitleArguments, TitleConfig

# From this depth on, heads on several layers together are tried by default. On SmolLM2-135M they beat every
# single layer on dev: .903 against .887 on BANKING77, .732 against .710 on Upworthy (real_weights.md).
DEEP = 12


@dataclass
class SweepOptions:
    """Options of what a sweep tries and how it saves the result."""

    TRAINS_ON: ClassVar[str]  # the recipe that continues from a head

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
        dtype = torch.float32 if self.feature_dtype == "float32" else torch.bfloat16
        return {"poolings": self.poolings, "cache_dir": self.feature_cache, "dtype": dtype}


@dataclass
class SweepArguments(SweepOptions, ClassifierArguments):
    """Options of the classification recipe for data and template, and options of the sweep."""

    TRAINS_ON: ClassVar[str] = "classify"

    def options_of(self, loss: str, *, problem_type: str, label_smoothing: float = 0.0) -> dict[str, Any]:
        """Return the given options that a loss takes."""
        given = {**self.loss_options(), "label_smoothing": label_smoothing or None}
        row = TEXT_LOSSES[problem_type][loss]
        return {name: value for name, value in given.items() if row.takes(name) and value is not None}

    def losses_for(self, problem_type: str) -> list[str]:
        """Return the names of the losses to try.

        Raises:
            TaskHeadsError: the problem type does not have a loss, or no loss takes one of the options.
        """
        return _choose_losses(self, TEXT_LOSSES[problem_type])


@dataclass
class TitleSweepArguments(SweepOptions, TitleArguments):
    """Options of the title recipe for data and template, and options of the sweep."""

    TRAINS_ON: ClassVar[str] = "reward_titles"

    def options_of(self, loss: Loss) -> dict[str, float]:
        """Return the given options that a loss takes."""
        return {name: value for name, value in self.loss_options().items() if loss.takes(name)}

    def losses_for(self, *, has_groups: bool) -> list[str]:
        """Return the names of the losses to try; losses over groups need arms of experiments.

        Args:
            has_groups: True if the data have groups of arms.

        Raises:
            TaskHeadsError: a loss is unknown or needs groups that the data do not have, or no loss takes one
                of the options.
        """
        without = {} if has_groups else dict.fromkeys(GROUP_LOSSES, "without groups of several titles")
        return _choose_losses(self, TITLE_LOSSES if has_groups else PAIR_LOSSES, unsupported=without)


def _choose_losses(
    options: Any, known: Mapping[str, Loss], *, unsupported: Mapping[str, str] | None = None
) -> list[str]:
    """Return the names of the losses to try, the first known one if none is given.

    Args:
        options: of the sweep.
        known: losses that the data allow.
        unsupported: further losses, with the reason why the data do not allow them.

    Raises:
        TaskHeadsError: a loss is not known, or no loss takes one of the options.
    """
    names, reasons = list(dict.fromkeys(options.losses or [next(iter(known))])), unsupported or {}
    problems = []
    for name in names:
        if name not in known:
            problem = " ".join([f"found {name!r}", *([reasons[name]] if name in reasons else [])])
            code = "option-unsupported" if name in reasons else "option-value"
            expected, fix = ", ".join(known), "choose one of them"
            problems.append(Problem("--losses", problem, expected, fix, code=code))
    chosen = [known[name] for name in names if name in known]
    problems += unused_options(options.loss_options(), chosen, known=known.values(), where="--losses")
    if problems:
        raise TaskHeadsError(problems)
    return names


@dataclass
class HeadTrainings:
    """Mixin of training options that apply to a head on features; more epochs than for a whole model."""

    RECIPE: ClassVar[str] = "heads"

    learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of an MLP head; 1e-3 if None, 1e-2 if embedded."}
    )
    num_train_epochs: float = field(
        default=10.0, metadata={"help": "Epochs of an MLP head over the features."}
    )
    per_device_train_batch_size: int = field(
        default=64, metadata={"help": "Rows or pairs per step of an MLP head."}
    )

    def head_training(self) -> HeadTraining:
        """Return these options as the settings of `fit_head`."""
        options: Any = self
        return HeadTraining(
            epochs=int(self.num_train_epochs),
            batch_size=self.per_device_train_batch_size,
            learning_rate=self.learning_rate or 0.0,
            warmup=options.warmup_steps or 0.0,
            weight_decay=options.weight_decay,
            max_grad_norm=options.max_grad_norm,
        )


@dataclass
class SweepConfig(HeadTrainings, ClassifierConfig):
    """Training options of a sweep over texts."""

    TRAINS: ClassVar[str] = "heads on a frozen backbone"


@dataclass
class TitleSweepConfig(HeadTrainings, TitleConfig):
    """Training options of a sweep over titles."""

    FOLDER: ClassVar[str | None] = "titles"
    TRAINS: ClassVar[str] = "title scorers on a frozen backbone"


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
    options, training, model = parse_arguments((*TASKS[task], HeadModelConfig), argv, check=check_sweep)
    set_default_rate(training, model, "classifier", head_only=True)
    return options, training, model
