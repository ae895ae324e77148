"""Options of the title recipe, and the function that parses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from trl import RewardConfig

from qwen_task_heads.errors import Problem
from qwen_task_heads.losses.registry import TITLE_LOSSES, given_options, with_loss_options
from qwen_task_heads.training.argument_checks import not_one_of
from qwen_task_heads.training.arguments import HeadArguments, HeadModelConfig, parse_arguments
from qwen_task_heads.training.run_defaults import RunDefaults
from qwen_task_heads.training.search_options import SearchOptions


@dataclass
@with_loss_options("pairs", "groups")
class TitleArguments(SearchOptions, HeadArguments):
    """Options of data, template, head and loss of a title scorer."""

    DATA_OPTIONS: ClassVar[tuple[str, ...]] = (*HeadArguments.DATA_OPTIONS, "min_impressions", "max_p_value")

    dataset_name: str = field(
        default="embedded",
        metadata={
            "help": "File, folder or data set id of pairs or arms; 'embedded' for the sample in the package."
        },
    )
    head_dropout: float | None = field(
        default=None, metadata={"help": "Dropout in the head (needs disable_dropout: false)."}
    )
    min_impressions: int = field(
        default=0, metadata={"help": "For arms: minimum impressions of both titles."}
    )
    max_p_value: float = field(
        default=1.0, metadata={"help": "For arms: drop pairs whose click rates differ with a larger p-value."}
    )
    loss: str = field(default="bradley_terry", metadata={"help": ", ".join(TITLE_LOSSES)})

    def loss_options(self) -> dict[str, float]:
        """Return the options of the loss that are given."""
        return given_options(self, ("pairs", "groups"))


@dataclass
class TitleConfig(RunDefaults, RewardConfig):
    """trl's `RewardConfig` with defaults for titles; `max_length` truncates texts and drops no pair."""

    RECIPE: ClassVar[str] = "titles"
    TRAINS: ClassVar[str] = "a title scorer"
    SAMPLE: ClassVar[str] = "Upworthy A/B tests"
    METRICS: ClassVar[tuple[str, ...] | None] = (
        "accuracy",
        "loss",
        "margin",
        "mean_reward",
        "min_reward",
        "max_reward",
    )

    max_length: int | None = field(
        default=128, metadata={"help": "Longest title with prompt and template, in tokens."}
    )
    metric_for_best_model: str | None = field(
        default="eval_accuracy", metadata={"help": "Metric that selects the best checkpoint."}
    )


def parse_title_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[TitleArguments, TitleConfig, HeadModelConfig]:
    """Parse the command line and the `--config` YAML, as `arguments.parse_arguments` does."""
    return parse_arguments((TitleArguments, TitleConfig, HeadModelConfig), argv, check=check_titles)


def check_titles(title: TitleArguments, training: TitleConfig, model: HeadModelConfig) -> list[Problem]:
    """Return the problems of the options that only title scorers have."""
    problems = not_one_of(("--loss", title.loss, [*TITLE_LOSSES]))
    if training.trust_remote_code:
        problem = "found true, but code of a backbone's repo is never run"
        fix = "drop it: backbones of transformers need no such code"
        problems.append(Problem("--trust_remote_code", problem, "false", fix, code="code-untrusted"))
    return problems
