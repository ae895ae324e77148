"""Options of `recipes/grpo_titles.py`: a title generator, its texts and the scorer that rewards it.

Importing trl takes seconds, so the run reports missing options first (`runs.title_generator.check_named`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers.trainer_utils import IntervalStrategy
from trl import GRPOConfig, ModelConfig

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.training.command_lines import parse_groups
from qwen_task_heads.training.option_checks import metric_problems, option_problems, saving_problems


@dataclass
class TitleGeneratorArguments:
    """Texts to write titles for, and the scorer that rewards them; trl has the other options."""

    reward_model: str = field(metadata={"help": "Folder or repo id of a title scorer."})
    dataset_name: str = field(metadata={"help": "File, folder or data set id with a text in each row."})
    text_column: str = field(default="text", metadata={"help": "Column of the text."})
    instruction: str = field(
        default="Write one title for this text, inside <title> and </title>.\n\n{text}",
        metadata={"help": "Prompt of the generator; {text} is replaced by the text."},
    )
    with_context: bool = field(
        default=False, metadata={"help": "Pass the text to the scorer together with a title."}
    )
    length_penalty: float = field(
        default=0.0, metadata={"help": "Share of the scorer's preference for long titles to remove, 0 to 1."}
    )
    log_predictions: bool | None = field(
        default=None,
        metadata={
            "help": "Log the tables of --log_completions, which have your texts, to wandb and trackio; by "
            "default only where they stay on this machine."
        },
    )


@dataclass
class TitleGeneratorConfig(GRPOConfig):
    """trl's `GRPOConfig` with defaults for short titles; bf16 only on a GPU."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder of the run."})
    max_completion_length: int | None = field(default=64, metadata={"help": "Tokens of a completion."})
    bf16: bool | None = field(default=None, metadata={"help": "bf16 autocast; on a GPU by default."})
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Old name of activation_checkpointing."}
    )
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints: no, steps, epoch."})

    def __post_init__(self) -> None:
        if self.push_to_hub or self.hub_token:  # titles.jsonl contains training texts
            option = "--push_to_hub" if self.push_to_hub else "--hub_token"
            fix = "drop it: upload the folder later, without titles.jsonl and checkpoints"
            raise TaskHeadsError(
                Problem(option, "found it", "no upload of a title generator", fix, code="option-unsupported")
            )
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and not self.use_cpu
        super().__post_init__()


def parse_title_generator_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[TitleGeneratorArguments, TitleGeneratorConfig, ModelConfig]:
    """Parse the command line and the `--config` YAML; the command line wins.

    Raises:
        TaskHeadsError: the config file is missing, a key is unknown, or a value is not usable; includes
            values that fail only at the first step or a save (`option_checks.py`).
    """
    groups = (TitleGeneratorArguments, TitleGeneratorConfig, ModelConfig)
    task, args, model_args = parse_groups(groups, argv)
    problems = [*_evaluation_problems(args), *saving_problems(args)]
    if argv is None:  # only the run of this process trains here
        problems += option_problems(args)
    if not 0 <= task.length_penalty <= 1:
        problem, fix = f"found {task.length_penalty}", "give --length_penalty 0.5"
        problems.append(Problem("--length_penalty", problem, "0 to 1", fix, code="option-range"))
    if problems:
        raise TaskHeadsError(problems)
    return task, args, model_args


def _evaluation_problems(args: TitleGeneratorConfig) -> list[Problem]:
    """Refuse options that need an evaluation: title generators have no dev set."""
    expected = "no evaluation, because a title generator has no dev set"
    problems = [
        Problem(f"--{name}", f"found {value!s}", expected, "drop it", code="option-unsupported")
        for name, value, is_given in (
            ("eval_strategy", args.eval_strategy.value, args.eval_strategy != IntervalStrategy.NO),
            ("load_best_model_at_end", "true", args.load_best_model_at_end),
        )
        if is_given
    ]
    # `load_best_model_at_end` sets it as well, and is reported above.
    if args.metric_for_best_model is not None and not args.load_best_model_at_end:
        problems += metric_problems(args, ())
    return problems
