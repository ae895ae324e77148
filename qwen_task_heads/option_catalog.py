"""The options of every command as data: for `--help`, for typing errors, and for the documentation.

The dataclasses of the options import torch, transformers and trl, which takes seconds. The console script
reads `assets/options.json` instead. A test compares the file with the dataclasses;
`python -m qwen_task_heads.option_catalog` writes it again.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from enum import Enum
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "assets" / "options.json"
PACKAGE = Path(__file__).parent.name
OTHERS = "transformers and trl"  # group of the options that are inherited

# Group of the options that a class adds, in the order of the help.
GROUPS = {
    "DataArguments": "Data",
    "HeadArguments": "Template and head",
    "ClassifierArguments": "Texts and labels",
    "TextArguments": "Texts and labels",
    "TitleArguments": "Titles",
    "SftArguments": "Texts and labels",
    "SearchOptions": "Search",
    "SweepOptions": "Sweep",
    "SweepArguments": "Sweep",
    "TitleSweepArguments": "Sweep",
    "TitleGeneratorArguments": "Titles",
    "HeadModelConfig": "Model",
    "PublishOptions": "Publishing",
    "PublishArguments": "Publishing",
    "CardArguments": "Model card",
    "RunDefaults": "Run",
    "DataCheckArguments": "Data",
    "AuditArguments": "Audit",
    "PoolArguments": "Data",
    "SelectionArguments": "Selection",
    "PseudoLabelArguments": "Pseudo-labels",
    "DistillationArguments": "Distillation",
    "AdaptationArguments": "Adaptation",
    "PredictArguments": "File",
    "AnswerArguments": "Model and answers",
    "QueryArguments": "Texts on the command line",
    "ComparisonArguments": "Comparison",
    "ServeArguments": "Server",
    "DemoArguments": "Demo",
    "ScoreArguments": "Files",
}

# Inherited options that most runs use, with the group that lists them.
COMMON = {
    **dict.fromkeys(
        (
            "learning_rate",
            "num_train_epochs",
            "max_steps",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "warmup_steps",
            "lr_scheduler_type",
            "weight_decay",
            "label_smoothing_factor",
            "eval_steps",
            "seed",
            "resume_from_checkpoint",
            "report_to",
            "use_cpu",
            "disable_tqdm",
        ),
        "Training",
    ),
    **dict.fromkeys(
        (
            "dtype",
            "use_peft",
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "use_dora",
            "use_rslora",
            "load_in_4bit",
            "model_revision",
            "attn_implementation",
        ),
        "Model",
    ),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_private_repo"), "Publishing"),
}


def read() -> dict[str, list[dict[str, Any]]]:
    """Return the options of each command from `assets/options.json`.

    Returns:
        Command -> options, each with `name`, `help`, `default`, `choices`, `type`, `group`, and `required`
        if it has no default.

    Example:
        >>> from qwen_task_heads.option_catalog import read
        >>> next(one["default"] for one in read()["titles"] if one["name"] == "dataset_name")
        'embedded'
    """
    content: dict[str, list[dict[str, Any]]] = json.loads(PATH.read_text(encoding="utf-8"))
    return content


def build() -> dict[str, list[dict[str, Any]]]:
    """Return the same from the dataclasses; this imports transformers and trl."""
    from qwen_task_heads.data_checks.arguments import DataCheckArguments
    from qwen_task_heads.demo.arguments import DemoArguments
    from qwen_task_heads.inference.arguments import (
        ComparisonArguments,
        PredictArguments,
        QueryArguments,
        ScoreArguments,
    )
    from qwen_task_heads.labeling.audits import AuditArguments
    from qwen_task_heads.labeling.distillation import DistillationArguments
    from qwen_task_heads.labeling.pseudo_labels import PseudoLabelArguments
    from qwen_task_heads.labeling.selection import SelectionArguments
    from qwen_task_heads.publishing.options import PublishOptions
    from qwen_task_heads.serving.arguments import ServeArguments
    from qwen_task_heads.training import (
        arguments,
        classifier_arguments,
        grpo_arguments,
        sft_arguments,
        sweep_arguments,
        title_arguments,
    )
    from qwen_task_heads.training.adaptation import AdaptationArguments

    model = arguments.HeadModelConfig
    texts, titles = (sweep_arguments.TASKS[task] for task in ("texts", "titles"))
    groups = {
        "data": (DataCheckArguments,),
        "audit": (AuditArguments,),
        "select": (SelectionArguments,),
        "pseudo": (PseudoLabelArguments,),
        "distill": (DistillationArguments,),
        "adapt": (AdaptationArguments,),
        "titles": (title_arguments.TitleArguments, title_arguments.TitleConfig, model),
        "classify": (classifier_arguments.ClassifierArguments, classifier_arguments.ClassifierConfig, model),
        "label": (
            sft_arguments.SftArguments,
            sft_arguments.SftClassifyConfig,
            sft_arguments.SftModelConfig,
        ),
        "sweep": (*texts, *titles, model),
        "grpo": (
            grpo_arguments.TitleGeneratorArguments,
            grpo_arguments.TitleGeneratorConfig,
            grpo_arguments.ModelConfig,
        ),
        "predict": (PredictArguments, QueryArguments),
        "compare": (ComparisonArguments,),
        "publish": (PublishOptions,),
        "serve": (ServeArguments,),
        "demo": (DemoArguments,),
        "score": (ScoreArguments,),
    }
    return {command: options_of(classes) for command, classes in groups.items()}


def options_of(classes: tuple[type, ...]) -> list[dict[str, Any]]:
    """Return the options of dataclasses, those of this package first."""
    found: dict[str, dict[str, Any]] = {}
    for one in classes:
        hints = typing.get_type_hints(one)
        for item in dataclasses.fields(one):
            if item.init and item.name not in found:
                found[item.name] = _option(item, hints[item.name], _group(one, item.name))
    order = [*dict.fromkeys(GROUPS.values()), "Training", OTHERS]
    return sorted(found.values(), key=lambda option: order.index(option["group"]))


def _group(one: type, name: str) -> str:
    """Return the group of an option by the class that defines it first in the order of resolution."""
    owner = next(base for base in one.__mro__ if name in inspect.get_annotations(base))
    if not owner.__module__.startswith(PACKAGE):
        return COMMON.get(name, OTHERS)
    return GROUPS.get(owner.__name__, "Training")


def _option(item: dataclasses.Field[Any], hint: Any, group: str) -> dict[str, Any]:
    default, made = item.default, item.default_factory
    required = default is dataclasses.MISSING and made is dataclasses.MISSING
    if default is dataclasses.MISSING:
        default = None if made is dataclasses.MISSING else made()
    default = default.value if isinstance(default, Enum) else default
    if not isinstance(default, str | int | float | bool | list | None):
        default = str(default)
    texts = " ".join(str(item.metadata.get("help", "")).split())
    return {
        "name": item.name,
        "type": _type(hint),
        "default": default,
        "choices": list(item.metadata.get("choices", ())) or _choices(hint),
        "help": texts,
        "group": group,
        **({"required": True} if required else {}),
    }


def _members(hint: Any) -> list[Any]:
    """Return the types of a union without None, or the type itself."""
    parts = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else ()
    return [part for part in parts if part is not type(None)] if parts else [hint]


def _choices(hint: Any) -> list[Any] | None:
    for part in _members(hint):
        if typing.get_origin(part) is typing.Literal:
            return list(typing.get_args(part))
        if isinstance(part, type) and issubclass(part, Enum):
            return [one.value for one in part]
    return None


def _type(hint: Any) -> str:
    """Return `VALUE`, `N`, `X`, `true|false`, or several of them."""
    if typing.get_origin(hint) is list:
        return f"{_type(typing.get_args(hint)[0])} ..."
    names = {bool: "true|false", int: "N", float: "X", str: "TEXT"}
    for part in _members(hint):
        if typing.get_origin(part) is list:
            return f"{_type(typing.get_args(part)[0])} ..."
        if part in names:
            return names[part]
    return "VALUE"


if __name__ == "__main__":
    PATH.write_text(json.dumps(build(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
