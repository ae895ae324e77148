"""Arguments of the title recipe: what `arguments.py` has not, and the call that parses all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import RewardConfig

from qwen_task_heads.errors import Problem
from qwen_task_heads.training.arguments import (
    HeadArguments,
    HeadModelConfig,
    not_one_of,
    parse_arguments,
)
from qwen_task_heads.training.group_losses import GROUP_LOSSES
from qwen_task_heads.training.pair_losses import PAIR_LOSSES
from qwen_task_heads.training.run_defaults import RunDefaults


@dataclass
class TitleArguments(HeadArguments):
    """Data, template, head and loss of a title scorer."""

    dataset_name: str = field(
        default="embedded",
        metadata={
            "help": "File, folder or data set id of pairs or arms; 'embedded' for the sample in the package."
        },
    )
    head_dropout: float | None = field(
        default=None, metadata={"help": "Dropout in the head (needs disable_dropout: false)."}
    )
    min_impressions: int = field(default=0, metadata={"help": "Of arms: impressions that both titles need."})
    max_p_value: float = field(
        default=1.0, metadata={"help": "Of arms: drop pairs whose clicks differ less clearly."}
    )
    loss: str = field(default="bradley_terry", metadata={"help": ", ".join([*PAIR_LOSSES, *GROUP_LOSSES])})
    loss_margin: float | None = field(
        default=None, metadata={"help": "Margin of margin_ranking and the like."}
    )
    loss_nu: float | None = field(
        default=None, metadata={"help": "Tie parameter of rao_kupper and davidson."}
    )

    def data_options(self) -> dict[str, Any]:
        """Arguments of `read_title_sets` beside the source."""
        names = (
            "dev_fraction", "test_fraction", "hub", "bad_rows", "min_impressions", "max_p_value", "encoding",
        )  # fmt: skip
        options = {name: self.__dict__[name] for name in names}
        options["columns"] = self.columns or ()
        return {"dev": self.dev_dataset, "test": self.test_dataset, **options}

    def loss_options(self) -> dict[str, float]:
        """Scalar options of the loss that were given."""
        return {
            name: self.__dict__[f"loss_{name}"]
            for name in ("margin", "nu")
            if self.__dict__[f"loss_{name}"] is not None
        }


@dataclass
class TitleConfig(RunDefaults, RewardConfig):
    """trl's `RewardConfig` with defaults for titles; `max_length` cuts texts and drops no pair."""

    RECIPE: ClassVar[str] = "titles"
    TRAINS: ClassVar[str] = "a title scorer"
    SAMPLE: ClassVar[str] = "Upworthy A/B tests"
    METRICS: ClassVar[tuple[str, ...] | None] = (
        "accuracy", "loss", "margin", "mean_reward", "min_reward", "max_reward",
    )  # fmt: skip

    max_length: int | None = field(
        default=128, metadata={"help": "Longest title with prompt and template, in tokens."}
    )
    metric_for_best_model: str | None = field(
        default="eval_accuracy", metadata={"help": "What is best on dev."}
    )


def parse_title_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[TitleArguments, TitleConfig, HeadModelConfig]:
    """Parse the command line and the `--config` YAML; the command line wins.

    Raises:
        TaskHeadsError: a config file that is not there or is no mapping, unknown keys, unusable values.
    """
    return parse_arguments((TitleArguments, TitleConfig, HeadModelConfig), argv, check=check_titles)


def check_titles(title: TitleArguments, training: TitleConfig, model: HeadModelConfig) -> list[Problem]:
    """What is wrong with the options of a run over titles, beside what `parse_arguments` finds."""
    problems = not_one_of(("--loss", title.loss, [*PAIR_LOSSES, *GROUP_LOSSES]))
    if training.trust_remote_code:
        found = "found true: no code of a backbone's repo is run"
        remedy = "drop it: a backbone of transformers needs none"
        problems.append(Problem("--trust_remote_code", found, "false", remedy))
    return problems
