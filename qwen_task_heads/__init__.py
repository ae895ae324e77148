"""Task heads for Qwen and other decoders: a plugin for transformers and trl.

Importing this package registers `title_scorer` and `pooled_classifier` with AutoConfig, AutoModel and
AutoModelForSequenceClassification, and `pipeline("title-ranking")`, so that saved models load without
`trust_remote_code` and the code in their folders is not run. Native model types are left alone.
Everything else is imported on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from qwen_task_heads import registration
from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe

if TYPE_CHECKING:
    from qwen_task_heads.data.labels import LabelMap
    from qwen_task_heads.data.pair_readers import read_pairs
    from qwen_task_heads.data.splits import split_by_group
    from qwen_task_heads.data.text_datasets import read_text_sets
    from qwen_task_heads.data.title_datasets import read_title_sets
    from qwen_task_heads.evaluate_modules import metric_path
    from qwen_task_heads.export.folders import save
    from qwen_task_heads.export.stock import export_stock
    from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig, TitleScorerConfig
    from qwen_task_heads.hubcode.modeling_task_heads import PooledClassifier, TitleScorer
    from qwen_task_heads.inference.label_scorer import LabelScorer
    from qwen_task_heads.inference.rewards import TitleReward
    from qwen_task_heads.inference.scorer import Scorer
    from qwen_task_heads.models import adapter_config, build, load, load_tokenizer, merge
    from qwen_task_heads.publishing.options import PublishOptions
    from qwen_task_heads.publishing.publish import publish
    from qwen_task_heads.runs.generative import GenerativeRun
    from qwen_task_heads.runs.texts import ClassifierRun
    from qwen_task_heads.runs.titles import TitleRun
    from qwen_task_heads.tokenization.templates import (
        Template,
        bind_template,
        compile_template,
        label_template,
    )
    from qwen_task_heads.training.classifier_arguments import ClassifierConfig
    from qwen_task_heads.training.classifier_trainer import ClassifierTrainer
    from qwen_task_heads.training.sft_trainer import AnswerTrainer
    from qwen_task_heads.training.title_arguments import TitleConfig
    from qwen_task_heads.training.title_trainer import TitleTrainer

__version__ = "0.1.0"

__all__ = [
    "AnswerTrainer",
    "ClassifierConfig",
    "ClassifierRun",
    "ClassifierTrainer",
    "GenerativeRun",
    "LabelMap",
    "LabelScorer",
    "PooledClassifier",
    "PooledClassifierConfig",
    "Problem",
    "PublishOptions",
    "Scorer",
    "TaskHeadsError",
    "Template",
    "TitleConfig",
    "TitleReward",
    "TitleRun",
    "TitleScorer",
    "TitleScorerConfig",
    "TitleTrainer",
    "adapter_config",
    "bind_template",
    "build",
    "compile_template",
    "export_stock",
    "label_template",
    "load",
    "load_tokenizer",
    "merge",
    "metric_path",
    "publish",
    "read_pairs",
    "read_text_sets",
    "read_title_sets",
    "run_recipe",
    "save",
    "split_by_group",
]

# The module of each name above that is imported on first use.
_MODULES = {
    "AnswerTrainer": "training.sft_trainer",
    "ClassifierConfig": "training.classifier_arguments",
    "ClassifierRun": "runs.texts",
    "GenerativeRun": "runs.generative",
    "ClassifierTrainer": "training.classifier_trainer",
    "LabelMap": "data.labels",
    "LabelScorer": "inference.label_scorer",
    "PooledClassifier": "hubcode.modeling_task_heads",
    "PooledClassifierConfig": "hubcode.configuration_task_heads",
    "PublishOptions": "publishing.options",
    "Scorer": "inference.scorer",
    "Template": "tokenization.templates",
    "TitleConfig": "training.title_arguments",
    "TitleReward": "inference.rewards",
    "TitleRun": "runs.titles",
    "TitleScorer": "hubcode.modeling_task_heads",
    "TitleScorerConfig": "hubcode.configuration_task_heads",
    "TitleTrainer": "training.title_trainer",
    "adapter_config": "models",
    "bind_template": "tokenization.templates",
    "build": "models",
    "compile_template": "tokenization.templates",
    "export_stock": "export.stock",
    "label_template": "tokenization.templates",
    "load": "models",
    "load_tokenizer": "models",
    "merge": "models",
    "metric_path": "evaluate_modules",
    "publish": "publishing.publish",
    "read_pairs": "data.pair_readers",
    "read_text_sets": "data.text_datasets",
    "read_title_sets": "data.title_datasets",
    "save": "export.folders",
    "split_by_group": "data.splits",
}

if "qth" not in sys.modules:  # the console script registers after it has checked its options
    registration.install()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(sorted(__all__))}"
        )
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
