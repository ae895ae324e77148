"""Arguments of `recipes/grpo_titles.py`: a title writer, the texts it writes for and the scorer that pays.

trl takes seconds to import, so what a command leaves out is asked for before (`check_named`, in the recipe).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from trl import GRPOConfig, ModelConfig, TrlParser

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.training.arguments import with_line_breaks


@dataclass
class WriterArguments:
    """Texts to write titles for, and the scorer that pays; the rest is trl's."""

    reward_model: str = field(metadata={"help": "Folder or repo id of a title scorer."})
    dataset_name: str = field(metadata={"help": "File, folder or data set id with a text in each row."})
    text_column: str = field(default="text", metadata={"help": "Column of the text."})
    instruction: str = field(
        default="Write one title for this text, inside <title> and </title>.\n\n{text}",
        metadata={"help": "What the writer is asked; {text} stands for the text."},
    )
    with_context: bool = field(default=False, metadata={"help": "The scorer reads the text beside a title."})
    length_penalty: float = field(default=0.0, metadata={"help": "0 to 1: of the scorer's taste for length."})


@dataclass
class WriterConfig(GRPOConfig):
    """trl's `GRPOConfig` with defaults for titles, which are short; bf16 only where there is a GPU."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder of the run."})
    max_completion_length: int | None = field(default=64, metadata={"help": "Tokens of a completion."})
    bf16: bool | None = field(default=None, metadata={"help": "bf16 autocast; on where there is a GPU."})
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "--activation_checkpointing"})
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints: no, steps, epoch."})

    def __post_init__(self) -> None:
        if self.push_to_hub or self.hub_token:  # titles.jsonl holds texts of the training
            remedy = "read its titles first; then upload the folder without titles.jsonl and checkpoints"
            raise TaskHeadsError.of("--push_to_hub", "it", "no upload of a writer", remedy)
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and not self.use_cpu
        super().__post_init__()


def parse_writer_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[WriterArguments, WriterConfig, ModelConfig]:
    """Parse the command line and the `--config` YAML; the command line wins.

    Raises:
        TaskHeadsError: a config file that is not there, unknown keys, unusable values.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # trl looks for the word --config alone
    words = [
        part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])
    ]
    words = with_line_breaks(words)
    try:
        task, args, model_args = TrlParser(
            (WriterArguments, WriterConfig, ModelConfig)
        ).parse_args_and_config(words)
    except TaskHeadsError:
        raise
    except (ValueError, OSError) as error:
        raise TaskHeadsError(
            Problem("arguments", str(error), "accepted: values as in --help", "correct them")
        ) from error
    if not 0 <= task.length_penalty <= 1:
        raise TaskHeadsError.of("--length_penalty", str(task.length_penalty), "0 to 1", "choose such as 0.5")
    return task, args, model_args
