"""Options of the data that all recipes on labelled texts share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from qwen_task_heads.training.arguments import DataArguments


@dataclass
class TextArguments(DataArguments):
    """Options of labelled texts, which classifiers with a head and generative classifiers take."""

    DATA_OPTIONS: ClassVar[tuple[str, ...]] = (
        *DataArguments.DATA_OPTIONS,
        "labels",
        "max_samples",
        "mix",
        "mix_ratio",
    )

    dataset_name: str = field(
        default="embedded",
        metadata={
            "help": "File, folder or data set id of labelled texts; 'embedded' for the sample in the package."
        },
    )
    labels: str | None = field(
        default=None,
        metadata={
            "help": "labels.yaml (names, descriptions, examples, aliases) or class.txt: the order of the ids."
        },
    )
    max_samples: int | None = field(default=None, metadata={"help": "Read that many training rows at most."})
    mix: str | None = field(default=None, metadata={"help": "Labelled texts to mix into the training set."})
    mix_ratio: float = field(
        default=2.0, metadata={"help": "Rows of the training set per row that is mixed in."}
    )
