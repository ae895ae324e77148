"""Arguments of the sweep over heads: lists where the training recipes take one value.

What a training would take and a sweep has no use for (schedulers, checkpoints, adapters ...) is refused: an
option that changes nothing is one that somebody relies on.
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
from qwen_task_heads.hubcode.configuration_task_heads import CAN_EXIT
from qwen_task_heads.tokenization.templates import SHELL_TEXTS, for_shell
from qwen_task_heads.training.arguments import HeadModelConfig, not_one_of, parse_arguments
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
# One value of what is swept, and what needs tokens in every step.
REPLACED = {
    "pooling": "--poolings {pooling}", "head": "--heads {head}", "head_sizes": "--heads {head}",
    "loss": "--losses {loss}", "backbone_layers": "--layers {backbone_layers}", "freeze_backbone": "",
    "head_layers": "", "init_head": "", "token_dropout": "", "early_stopping_patience": "",
}  # fmt: skip
FOLLOWS = {
    "greater_is_better": "metric_for_best_model", "do_eval": "eval_strategy", "eval_steps": "eval_strategy",
    "save_strategy": "eval_strategy", "save_steps": "eval_strategy",
}  # fmt: skip
USED = (
    "output_dir", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "weight_decay",
    "warmup_steps", "max_grad_norm", "label_smoothing_factor", "seed", "use_cpu", "disable_tqdm",
    "report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision",
)  # fmt: skip


@dataclass
class SweepOptions:
    """What a sweep tries and how it saves: lists where a training takes one value."""

    TRAINS_ON: ClassVar[str]  # the recipe that goes on from a head, and its arguments
    PARENT: ClassVar[type]

    task: str = field(
        default="texts",
        metadata={"help": "texts with labels, or titles: pairs, votes, clicks or arms of tests."},
    )
    layers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Layers to put heads on, several at once as 15+20; a quarter, half, three quarters and "
            "all if None."
        },
    )
    poolings: list[str] = field(
        default_factory=lambda: list(POOLINGS), metadata={"help": ", ".join(POOLINGS)}
    )
    heads: list[str] = field(
        default_factory=lambda: ["linear", "mlp:256"], metadata={"help": "linear, mlp:256, mlp:1024,512, ..."}
    )
    losses: list[str] | None = field(
        default=None, metadata={"help": "Those of --loss of the training recipe; its first one if None."}
    )
    penalties: list[float] = field(
        default_factory=lambda: list(PENALTIES),
        metadata={"help": "L2 penalties of linear heads, on features of unit variance; dev picks one."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Each MLP head is trained with each of them."}
    )
    tolerance: float = field(
        default=0.0,
        metadata={"help": "Take the shallowest layer whose dev metric is at most this far from the best."},
    )
    save_as: str = field(
        default="adapter", metadata={"help": "adapter: the head alone, over its base; full: all weights."}
    )
    feature_cache: str | None = field(
        default=None, metadata={"help": "Folder that keeps the features for the next sweep; none if None."}
    )
    feature_dtype: str = field(
        default="float32", metadata={"help": "float32; bfloat16 halves memory and runs under autocast."}
    )

    def layers_of(self, backbone: PreTrainedConfig) -> list[tuple[int, ...]]:
        """Layers to try on a backbone; of a family without early exit, the last one."""
        depth = backbone.num_hidden_layers
        if self.layers is not None:
            return list(dict.fromkeys(parse_layers(text) for text in self.layers))
        if backbone.model_type not in CAN_EXIT:
            return [(depth,)]
        return [(layer,) for layer in sorted({max(1, round(depth * part / 4)) for part in (1, 2, 3, 4)})]

    def feature_options(self) -> dict[str, Any]:
        """Arguments of `extract_features`, the layers apart."""
        dtype = DTYPES[self.feature_dtype]
        return {"poolings": self.poolings, "cache_dir": self.feature_cache, "dtype": dtype}


@dataclass
class SweepArguments(SweepOptions, ClassifierArguments):
    """Data, labels and template as of the classification recipe, and what to try."""

    TRAINS_ON: ClassVar[str] = "recipes/classify.py"
    PARENT: ClassVar[type] = ClassifierArguments

    def options_of(self, loss: str, *, problem_type: str, label_smoothing: float = 0.0) -> dict[str, Any]:
        """The options of the losses that one of them takes."""
        given = {**self.loss_options(), "label_smoothing": label_smoothing or None}
        takes = TEXT_LOSSES[problem_type][loss].options
        return {name: value for name, value in given.items() if name in takes and value is not None}

    def losses_for(self, problem_type: str) -> list[str]:
        """Names of the losses to try.

        Raises:
            TaskHeadsError: one that the problem type does not have, or an option that none of them takes.
        """
        known = TEXT_LOSSES[problem_type]
        names = list(dict.fromkeys(self.losses or [next(iter(known))]))
        accepted = f"{', '.join(known)}"
        problems = [
            Problem("--losses", f"found {name!r} for {problem_type}", accepted, "choose among them")
            for name in names
            if name not in known
        ]
        taken = {option for name in names if name in known for option in known[name].options}
        asked, accepted = f"found it with {', '.join(names)}", "with a loss that takes it"
        problems += [
            Problem(FLAGS[name], asked, accepted, "drop it")
            for name in self.loss_options()
            if name not in taken
        ]
        if problems:
            raise TaskHeadsError(problems)
        return names


@dataclass
class TitleSweepArguments(SweepOptions, TitleArguments):
    """Data and template as of the title recipe, and what to try."""

    TRAINS_ON: ClassVar[str] = "recipes/reward_titles.py"
    PARENT: ClassVar[type] = TitleArguments

    def losses_for(self, *, has_groups: bool) -> list[str]:
        """Names of the losses to try; those over groups need arms of tests.

        Raises:
            TaskHeadsError: an unknown loss, one over groups where there are pairs only, or an option that
                none of them takes.
        """
        names = list(dict.fromkeys(self.losses or [next(iter(PAIR_LOSSES))]))
        known = [*PAIR_LOSSES, *(GROUP_LOSSES if has_groups else ())]
        problems = []
        for name in names:
            if name not in known:
                found = f"{name!r}, and no tests of several titles" if name in GROUP_LOSSES else repr(name)
                problems.append(Problem("--losses", f"found {found}", ", ".join(known), "choose among them"))
        pairwise = [PAIR_LOSSES[name] for name in names if name in PAIR_LOSSES]
        problems += [
            Problem(
                f"--loss_{name}", f"found it with {', '.join(names)}", "with a loss that takes it", "drop it"
            )
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
    """The words of a LoRA run that starts from the head of a sweep.

    Args:
        texts: the options of the sweep; those of data, labels and template are the same there.
        training: has the length of titles.
        model: names the backbone and how it is loaded.
        folder: of the sweep's model.
        chosen: the combination that was saved.
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
    """Options of a dataclass that have not their usual value."""
    return {
        item.name: group.__dict__[item.name]
        for item in fields(group)
        if item.init and item.name not in without and group.__dict__[item.name] not in (item.default, [])
    }


class HeadTrainings:
    """Of the training options, those that hold for a head on features."""

    def head_training(self) -> HeadTraining:
        """Give the same to `fit_head`."""
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
    """The training options of a sweep over texts; more epochs than of a whole model."""

    RECIPE: ClassVar[str] = "heads"
    TRAINS: ClassVar[str] = "heads on a frozen backbone"

    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes of an MLP over the features."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows a step of an MLP."})


@dataclass
class TitleSweepConfig(HeadTrainings, TitleConfig):
    """The training options of a sweep over titles."""

    RECIPE: ClassVar[str] = "heads"
    FOLDER: ClassVar[str | None] = "titles"
    TRAINS: ClassVar[str] = "title scorers on a frozen backbone"

    learning_rate: float | None = field(default=None, metadata={"help": "Of an MLP; 1e-3 if None."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes of an MLP over the features."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pairs a step of an MLP."})


TASKS: dict[str, tuple[type, type]] = {
    "texts": (SweepArguments, SweepConfig),
    "titles": (TitleSweepArguments, TitleSweepConfig),
}


def parse_sweep_arguments(argv: Sequence[str] | None = None) -> tuple[Any, Any, HeadModelConfig]:
    """Parse the command line and the `--config` YAML; the command line wins. `--task` tells which options.

    Returns:
        `SweepArguments` and `SweepConfig`, or `TitleSweepArguments` and `TitleSweepConfig`; the model's.

    Raises:
        TaskHeadsError: unknown keys, unusable values, or options that a sweep has no use for.
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
    for name, instead in REPLACED.items():
        if name in usual and texts.__dict__[name] != usual[name]:
            remedy = f"give {instead} instead".format(**_swept(texts)) if instead else "drop it"
            found = f"found {texts.__dict__[name]!r}"
            problems.append(Problem(f"--{name}", found, "nothing; a sweep tries heads on features", remedy))
    plain = type(training)(output_dir=training.output_dir, use_cpu=training.use_cpu)
    changed = {item.name for item in fields(training) if vars(training)[item.name] != vars(plain)[item.name]}
    for item in fields(training):
        value = training.__dict__[item.name]
        # What another option sets cannot be dropped: that option is named.
        is_set = FOLLOWS.get(item.name) in changed
        used = item.name in USED or (are_titles and item.name == "max_length")
        if not used and item.init and item.name in changed and not is_set:
            found, accepted = f"found {value!r}", f"accepted of the training options: {', '.join(USED)}"
            problems.append(Problem(f"--{item.name}", found, accepted, "drop it"))
    if model.use_peft:
        remedy = f"drop it: LoRA comes after, by {Path(texts.TRAINS_ON).name} --init_head"
        problems.append(Problem("--use_peft", "found true", "false", remedy))
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
        accepted = "head, tail, head_tail"
        remedy = "choose one of them: a head on windows is trained by classify.py"
        problems.append(Problem("--truncation", "found 'windows'", accepted, remedy))
    if not texts.seeds:
        problems.append(Problem("--seeds", "found none", "one or more", "choose such as 0"))
    if training.num_train_epochs > 0 and training.num_train_epochs != int(training.num_train_epochs):
        found = f"found {training.num_train_epochs}"
        problems.append(Problem("--num_train_epochs", found, "whole epochs, 1 or more", "choose such as 10"))
    if texts.tolerance < 0:
        found = f"found {texts.tolerance}"
        problems.append(Problem("--tolerance", found, "0 or more", "choose such as 0.005"))
    return problems


def _swept(texts: Any) -> dict[str, Any]:
    """Values of the options that take one, as those of a sweep take them."""
    widths = ",".join(map(str, texts.head_sizes or [256]))
    return {**vars(texts), "head": "linear" if texts.head == "linear" else f"mlp:{widths}"}
