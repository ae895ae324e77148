"""Options of `recipes/predict.py` and `recipes/compare.py`, as dataclasses for trl's `TrlParser`.

`qth COMMAND --help`, the check of names in `qth` and the reference pages are made from the same fields
(`option_catalog.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.inference.engine_options import EngineSpec, PromptOptions, parse_engines
from qwen_task_heads.tokenization.label_prompts import MAX_LENGTH
from qwen_task_heads.training.command_lines import parse_groups

Options = TypeVar("Options", bound="CommandLineOptions")
COUNTS = ("max_rows", "shots", "max_length", "latency_rows", "batch_tokens")  # 1 or more


@dataclass(kw_only=True)
class CommandLineOptions:
    """Options that are parsed from a command line and its `--config` file."""

    @classmethod
    def from_command_line(cls: type[Options], argv: Sequence[str] | None = None) -> Options:
        r"""Parse a command line; its words override those of a `--config` YAML file.

        Args:
            argv: words of the command line; None for those of this process. A typed `\n` in `--instruction`
                is a line break.

        Raises:
            TaskHeadsError: unknown options or keys, all in one error; or a file that cannot be read.
            SystemExit: a missing or malformed value, with a message of argparse.

        Example:
            >>> from qwen_task_heads import PredictArguments
            >>> words = ["--model", "runs/news", "--input", "in.csv", "--output", "out.jsonl", "--top_k=3"]
            >>> PredictArguments.from_command_line(words).top_k
            3
        """
        (options,) = parse_groups([cls], argv)
        return options


@dataclass(kw_only=True)
class AnswerArguments(CommandLineOptions):
    """Options of the answers of a model, for texts of a file or of the command line."""

    hub: str = field(default=HUGGINGFACE, metadata={"help": "Hub to load from.", "choices": list(HUBS)})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    candidates: str | None = field(
        default=None,
        metadata={
            "help": "Column with the candidate labels of a row, all labels if empty; for texts on the "
            "command line the labels themselves, separated by commas."
        },
    )
    top_k: int | None = field(
        default=None,
        metadata={
            "help": "Number of labels with probabilities; all in a file, 3 on the command line if None."
        },
    )
    threshold: float | None = field(
        default=None, metadata={"help": "Multi-label: predict labels at or above it; the model's if None."}
    )
    abstain: float | None = field(
        default=None,
        metadata={"help": "Single-label, ordinal: no label if the best probability is below it."},
    )
    max_error: float | None = field(
        default=None,
        metadata={"help": "No label if more than this share of such predictions on dev was wrong."},
    )


@dataclass(kw_only=True)
class QueryArguments(AnswerArguments):
    """Options for texts on the command line."""

    prompt: str | None = field(
        default=None, metadata={"help": "Title scorer: context that all titles share."}
    )
    text_pair: str | None = field(
        default=None, metadata={"help": "Classifier of pairs: second text of all pairs."}
    )


@dataclass(kw_only=True)
class PredictArguments(AnswerArguments):
    """Options of `predict_file`; those of another problem type are refused once the model is loaded.

    Example:
        >>> from qwen_task_heads import PredictArguments
        >>> PredictArguments(model="runs/news", input="big.parquet", output="answers.csv").block_rows
        2048
    """

    model: str = field(
        metadata={"help": "Folder or repo id of a classifier, title scorer or generative classifier."}
    )
    input: str = field(
        metadata={"help": "JSONL, JSON, CSV, TSV or Parquet file, a folder of them, or a data set id."}
    )
    output: str = field(metadata={"help": "New file: .jsonl, .csv or .tsv."})
    split: str | None = field(default=None, metadata={"help": "Split of a folder or data set."})
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files, such as gb18030."})
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the columns of CSV and TSV without a header, such as label,title,text."},
    )
    bad_rows: Literal["raise", "skip"] = field(
        default="raise",
        metadata={"help": "raise: refuse the file; skip: defective rows get an 'error' in the output."},
    )
    prefix: str = field(default="predicted_", metadata={"help": "Prefix of the names of the added columns."})
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens per batch; 8192 with a head, 32768 with a generative classifier if None."},
    )
    block_rows: int = field(default=2048, metadata={"help": "Rows predicted and saved at a time."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Type of the weights; auto: as saved."}
    )
    int8: bool = field(
        default=False,
        metadata={"help": "On a CPU: multiply in int8; predictions may change slightly."},
    )


@dataclass(kw_only=True)
class ComparisonArguments(CommandLineOptions):
    """Options of `run_comparison`.

    Example:
        >>> from qwen_task_heads import ComparisonArguments
        >>> words = {"engines": ["head=runs/news", "zero_shot=embedded"], "dataset_name": "news"}
        >>> [spec.kind for spec in ComparisonArguments(**words, output_dir="runs/which").parse_engines()]
        ['head', 'zero_shot']
    """

    engines: list[str] = field(
        metadata={
            "help": "KIND=folder or repo id, with the kinds head, sft, scorer, zero_shot, few_shot and "
            "embeddings."
        }
    )
    dataset_name: str = field(metadata={"help": "Texts as of classify, or pairs as of titles."})
    task: Literal["texts", "titles"] | None = field(
        default=None, metadata={"help": "Inferred from the engines or the columns if None."}
    )
    dev_dataset: str | None = field(default=None, metadata={"help": "Dev set, used if there is no test set."})
    test_dataset: str | None = field(default=None, metadata={"help": "Test set."})
    test_fraction: float | None = field(
        default=None, metadata={"help": "As in training, if the test set was split off one file."}
    )
    labels: str | None = field(
        default=None, metadata={"help": "labels.yaml or class file; inferred from the data if None."}
    )
    output_dir: str = field(metadata={"help": "Folder for comparison.md, .json, .png and answers.jsonl."})
    max_rows: int | None = field(
        default=None, metadata={"help": "Use about this many rows, as random whole groups; all if None."}
    )
    figure: Literal["accuracy", "macro_f1"] = field(
        default="accuracy", metadata={"help": "Metric of the advice."}
    )
    shots: int = field(default=8, metadata={"help": "few_shot: examples in a prompt."})
    shots_by: Literal["balance", "similarity"] = field(
        default="balance",
        metadata={"help": "few_shot: the same examples for all texts, or the nearest ones."},
    )
    instruction: str | None = field(
        default=None,
        metadata={"help": "zero_shot, few_shot: may contain {labels}, {descriptions} and {examples}."},
    )
    max_length: int = field(
        default=MAX_LENGTH, metadata={"help": "zero_shot, few_shot: maximum tokens of a prompt."}
    )
    calibrate: bool = field(
        default=False,
        metadata={"help": "zero_shot, few_shot: calibrate by predictions on texts without content."},
    )
    length_normalized: bool = field(
        default=False, metadata={"help": "Score a label by the mean over its tokens."}
    )
    latency_rows: int = field(default=32, metadata={"help": "Rows timed one by one."})
    batch_tokens: int = field(default=8192, metadata={"help": "Tokens per batch."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Type of the weights; auto: as saved."}
    )
    device: str = field(default="auto", metadata={"help": "auto: cuda if there is a GPU, else cpu."})
    hub: str = field(default=HUGGINGFACE, metadata={"help": "Hub to load from.", "choices": list(HUBS)})
    seed: int = field(default=0, metadata={"help": "Seed of the examples and of --max_rows."})

    def __post_init__(self) -> None:
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def prompt_options(self) -> PromptOptions:
        """Return the options of prompted models, without few-shot examples."""
        return PromptOptions(
            instruction=self.instruction,
            shared=self.shots_by == "balance",
            max_length=self.max_length,
            length_normalized=self.length_normalized,
            calibrate=self.calibrate,
            hub=self.hub,
            dtype=self.dtype,
            device=self.device,
            batch_tokens=self.batch_tokens,
        )

    def parse_engines(self) -> list[EngineSpec]:
        """Return the engines.

        Raises:
            TaskHeadsError: invalid engines, or options that do not fit them; see `engine_options`.
        """
        counts = {f"--{name}": vars(self)[name] for name in COUNTS}
        return parse_engines(self.engines, asking=self.prompt_options(), counts=counts)


@dataclass(kw_only=True)
class ScoreArguments(CommandLineOptions):
    """Options of `recipes/score_ray.py`."""

    model: str = field(metadata={"help": "Folder or repo id of a model."})
    input: str = field(metadata={"help": "Parquet file, or folder of Parquet files."})
    output: str = field(metadata={"help": "Folder of the answers."})
    actors: int = field(default=1, metadata={"help": "Models that are loaded and work at once."})
    cpus: float = field(default=1, metadata={"help": "Cores per actor."})
    gpus: float = field(default=0, metadata={"help": "GPUs per actor."})
    text: str = field(default="text", metadata={"help": "Column of texts."})
    title: str = field(default="title", metadata={"help": "Column of titles, for a title scorer."})
    prompt: str | None = field(default=None, metadata={"help": "Column of prompts, for a title scorer."})
    batch_rows: int = field(default=1024, metadata={"help": "Rows read and scored at a time."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    rescore: bool = field(
        default=False, metadata={"help": "Score files again whose answers are of another model."}
    )

    def __post_init__(self) -> None:
        least = {"actors": (self.actors >= 1, "1 or more"), "batch_rows": (self.batch_rows >= 1, "1 or more")}
        least |= {"cpus": (self.cpus > 0, "more than 0"), "gpus": (self.gpus >= 0, "0 or more")}
        problems = [
            Problem(f"--{name}", f"found {vars(self)[name]:g}", expected, "raise it", code="option-range")
            for name, (fits, expected) in least.items()
            if not fits
        ]
        if problems:
            raise TaskHeadsError(problems)
