"""Options of `recipes/sft_classify.py`: a chat model that is fine-tuned to generate labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import SFTConfig

from qwen_task_heads.errors import Problem
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.tokenization.label_prompts import MAX_LENGTH, instruction_for
from qwen_task_heads.training.argument_checks import not_one_of
from qwen_task_heads.training.arguments import HeadModelConfig, parse_arguments, set_default_rate
from qwen_task_heads.training.run_defaults import RunDefaults
from qwen_task_heads.training.text_arguments import TextArguments

ENDS = ("head", "tail")
ROWS = "rows are token ids, and the loss is computed on the answer alone"
TEMPLATE = "prompts use the chat template of the saved tokenizer; choose a model with that template"
TIED = "the output layer of a language model may share its embeddings"
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
class SftArguments(TextArguments):
    """Options of data, labels and prompt of a generative classifier."""

    instruction: str | None = field(
        default=None,
        metadata={"help": "Prompt before the text; may contain {labels}, {descriptions} and {examples}."},
    )
    truncation: str = field(default="head", metadata={"help": "Part of a long text to keep: head or tail."})
    length_normalized: bool = field(
        default=False, metadata={"help": "Score a label by the mean over its tokens instead of the sum."}
    )

    def prompt_options(self, labels: LabelMap, max_length: int | None) -> dict[str, Any]:
        """Return the arguments of `AnswerPrompts`; the default instruction describes the labels."""
        instruction = instruction_for(labels) if self.instruction is None else self.instruction
        return {"instruction": instruction, "max_length": max_length, "truncation": self.truncation}


@dataclass
class SftModelConfig(HeadModelConfig):
    """trl's `ModelConfig` with LoRA for a language model, which has no task head."""

    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "CAUSAL_LM."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to adapt; all linear layers if None."}
    )


@dataclass
class SftClassifyConfig(RunDefaults, SFTConfig):
    """trl's `SFTConfig`; `max_length` truncates the text and never the answer."""

    RECIPE: ClassVar[str] = "sft"
    TRAINS: ClassVar[str] = "a generative classifier"
    SAMPLE: ClassVar[str] = "BANKING77, ten intents"
    METRICS: ClassVar[tuple[str, ...] | None] = ("accuracy", "loss", "mean_token_accuracy", "entropy")

    max_length: int | None = field(
        default=MAX_LENGTH, metadata={"help": "Longest row in tokens, prompt and answer together."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "2e-5; with LoRA 1e-4; more on the embedded backbone."}
    )
    metric_for_best_model: str | None = field(
        default="eval_accuracy", metadata={"help": "Metric that selects the best checkpoint."}
    )
    packing: bool = field(
        default=False,
        metadata={"help": "trl's packing: several rows in one sequence, separated by their positions."},
    )


def parse_sft_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[SftArguments, SftClassifyConfig, SftModelConfig]:
    """Parse the command line and the `--config` YAML, as `arguments.parse_arguments` does."""
    texts, training, model = parse_arguments(
        (SftArguments, SftClassifyConfig, SftModelConfig), argv, check=_check
    )
    if model.use_peft and model.lora_target_modules is None:  # the default of PEFT is q and v alone
        model.lora_target_modules = "all-linear"  # type: ignore[assignment]
    set_default_rate(training, model, "sft")
    return texts, training, model


def _check(texts: SftArguments, training: SftClassifyConfig, model: SftModelConfig) -> list[Problem]:
    problems = not_one_of(("--truncation", texts.truncation, ENDS))
    if training.max_length is None:
        fix = "give --max_length 1024"
        problems.append(Problem("--max_length", "found none", "a length", fix, code="option-missing"))
    if model.lora_task_type != "CAUSAL_LM":
        problem = f"found {model.lora_task_type!r}"
        problems.append(Problem("--lora_task_type", problem, "CAUSAL_LM", "drop it", code="option-value"))
    # trl would ignore these options, or train on other prompts than those that are scored afterwards.
    given, usual = {**vars(training), **vars(model)}, SftClassifyConfig.__dataclass_fields__
    for name, reason in UNUSED.items():
        value = given[name]
        if value and value != (usual[name].default if name in usual else None):
            problem, fix = f"found {value!r}", f"drop it: {reason}"
            problems.append(Problem(f"--{name}", problem, "the default", fix, code="option-unsupported"))
    if training.completion_only_loss is False:
        fix, code = "drop it: the loss is computed on the answer alone", "option-unsupported"
        problems.append(Problem("--completion_only_loss", "found false", "true", fix, code=code))
    return problems
