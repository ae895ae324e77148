"""Arguments of `recipes/sft_classify.py`: a chat model that learns to write the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import SFTConfig

from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.errors import Problem
from qwen_task_heads.tokenization.label_prompts import MAX_LENGTH, instruction_for
from qwen_task_heads.training.arguments import DataArguments, HeadModelConfig, not_one_of, parse_arguments
from qwen_task_heads.training.backbone_defaults import rates_for
from qwen_task_heads.training.run_defaults import RunDefaults

ENDS = ("head", "tail")
ROWS = "rows come as token ids, with the loss on the answer alone"
TEMPLATE = "prompts are those of the tokenizer that is saved; give a model whose template it is"
TIED = "a language model's embeddings are also what it answers with"
UNUSED = {
    "assistant_only_loss": ROWS,
    "padding_free": ROWS,
    "dataset_text_field": ROWS,
    "chat_template_path": TEMPLATE,
    "eos_token": TEMPLATE,
    "freeze_embeddings": TIED,
    "lora_embeddings": TIED,
}


@dataclass
class SftArguments(DataArguments):
    """Data, labels and prompt of a generative classifier."""

    dataset_name: str = field(
        default="embedded",
        metadata={
            "help": "File, folder or data set id of labelled texts; 'embedded' for the sample in the package."
        },
    )
    labels: str | None = field(
        default=None,
        metadata={"help": "labels.yaml (names, descriptions, examples, aliases) or class.txt."},
    )
    max_samples: int | None = field(default=None, metadata={"help": "Read that many training rows at most."})
    instruction: str | None = field(
        default=None,
        metadata={
            "help": "What the user says before the text; may hold {labels}, {descriptions} and {examples}."
        },
    )
    truncation: str = field(
        default="head", metadata={"help": "Which end of a long text is kept: head, tail."}
    )
    mix: str | None = field(
        default=None, metadata={"help": "Further labelled texts to mix into the training set."}
    )
    mix_ratio: float = field(default=2.0, metadata={"help": "Own rows for each row that is mixed in."})
    length_normalized: bool = field(
        default=False, metadata={"help": "Score a label by the mean over its tokens, not the sum."}
    )

    def data_options(self) -> dict[str, Any]:
        """Arguments of `read_text_sets` that were given, beside the source."""
        names = (
            "labels", "dev_fraction", "test_fraction", "hub", "bad_rows", "max_samples", "mix", "mix_ratio",
            "encoding", "columns",
        )  # fmt: skip
        options = {name: self.__dict__[name] for name in names}
        options |= {"dev": self.dev_dataset, "test": self.test_dataset}
        return {name: value for name, value in options.items() if value is not None}

    def prompt_options(self, labels: LabelMap, max_length: int | None) -> dict[str, Any]:
        """Arguments of `AnswerPrompts` for labels, whose descriptions the default instruction holds."""
        words = instruction_for(labels) if self.instruction is None else self.instruction
        return {"instruction": words, "max_length": max_length, "truncation": self.truncation}


@dataclass
class SftModelConfig(HeadModelConfig):
    """trl's `ModelConfig`; LoRA of a language model, whose head is its own."""

    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "CAUSAL_LM."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to adapt; all linear layers if None."}
    )


@dataclass
class SftClassifyConfig(RunDefaults, SFTConfig):
    """trl's `SFTConfig`; `max_length` cuts the text and never the answer."""

    RECIPE: ClassVar[str] = "sft"
    TRAINS: ClassVar[str] = "a model that writes the label of a text"
    SAMPLE: ClassVar[str] = "BANKING77, ten intents"
    METRICS: ClassVar[tuple[str, ...] | None] = ("accuracy", "loss", "mean_token_accuracy", "entropy")

    max_length: int | None = field(
        default=MAX_LENGTH, metadata={"help": "Longest row in tokens, prompt and answer together."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "2e-5; with LoRA 1e-4; on the embedded backbone far more."}
    )
    metric_for_best_model: str | None = field(
        default="eval_accuracy", metadata={"help": "What is best on dev."}
    )
    packing: bool = field(
        default=False,
        metadata={
            "help": "trl's own packing of rows: several in one sequence, kept apart by their positions."
        },
    )


def parse_sft_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[SftArguments, SftClassifyConfig, SftModelConfig]:
    """Parse the command line and the `--config` YAML; the command line wins.

    Raises:
        TaskHeadsError: a config file that is not there or is no mapping, unknown keys, unusable values.
    """
    texts, training, model = parse_arguments(
        (SftArguments, SftClassifyConfig, SftModelConfig), argv, check=_check
    )
    if model.use_peft and model.lora_target_modules is None:  # PEFT would take q and v alone
        model.lora_target_modules = "all-linear"  # type: ignore[assignment]
    if training.learning_rate is None:
        kind = "lora" if model.use_peft else "full"
        training.learning_rate = rates_for("sft", model.model_name_or_path)[kind]
    return texts, training, model


def _check(texts: SftArguments, training: SftClassifyConfig, model: SftModelConfig) -> list[Problem]:
    problems = not_one_of(("--truncation", texts.truncation, ENDS))
    if training.max_length is None:
        problems.append(Problem("--max_length", "found none", "a length", "choose such as 1024"))
    if model.lora_task_type != "CAUSAL_LM":
        found = f"found {model.lora_task_type!r}"
        problems.append(Problem("--lora_task_type", found, "CAUSAL_LM", "drop it"))
    # What trl or a classifier would do with these: nothing here, or other prompts than are scored afterwards.
    given, usual = {**training.__dict__, **model.__dict__}, SftClassifyConfig.__dataclass_fields__
    for name, reason in UNUSED.items():
        value = given[name]
        if value and value != (usual[name].default if name in usual else None):
            problems.append(Problem(f"--{name}", f"found {value!r}", "nothing", f"drop it: {reason}"))
    if training.completion_only_loss is False:
        reason = "drop it: the loss is on the answer alone"
        problems.append(Problem("--completion_only_loss", "found false", "true", reason))
    return problems
