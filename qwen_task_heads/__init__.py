"""Task heads for Qwen and other decoders: a plugin for transformers and trl.

Importing this package registers `title_scorer` and `pooled_classifier` with AutoConfig, AutoModel and
AutoModelForSequenceClassification, and `pipeline("title-ranking")`. Saved models then load without
`trust_remote_code`, and code in their folders is not run. Native model types are not changed.
All other names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY
from wrapt import register_post_import_hook

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig, TitleScorerConfig
from qwen_task_heads.hubcode.modeling_task_heads import PooledClassifier, TaskHeadModel, TitleScorer
from qwen_task_heads.hubcode.pipeline_task_heads import TitleRankingPipeline

__version__ = "0.1.0"

for _config, _model in ((PooledClassifierConfig, PooledClassifier), (TitleScorerConfig, TitleScorer)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForSequenceClassification.register(_config, _model, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "title-ranking", TitleRankingPipeline, pt_model=AutoModelForSequenceClassification, type="text"
)


class _Publisher:
    """Proxy of `publishing.pushing`, which is imported on the first call."""

    @staticmethod
    def check(model: Any, **options: Any) -> str:
        return import_module(f"{__name__}.publishing.pushing").check_push(model, **options)

    @staticmethod
    def push(folder: Any, **options: Any) -> Any:
        return import_module(f"{__name__}.publishing.pushing").push_folder(folder, **options)


TaskHeadModel.publisher = _Publisher
# Run when PEFT is imported, which takes seconds and is not needed for predictions.
register_post_import_hook(lambda _: import_module(f"{__name__}.peft_models").register(), "peft")

_LAZY = {
    "build": "models",
    "load": "models",
    "load_tokenizer": "models",
    "merge": "models",
    "adapter_config": "models",
    "LabelMap": "data.labels",
    "Template": "tokenization.templates",
    "bind_template": "tokenization.templates",
    "compile_template": "tokenization.templates",
    "label_template": "tokenization.templates",
    "read_pairs": "data.pair_readers",
    "read_text_sets": "data.text_datasets",
    "read_title_sets": "data.title_datasets",
    "split_by_group": "data.splits",
    "Scorer": "inference.scorer",
    "LabelScorer": "inference.label_scorer",
    "TitleReward": "inference.rewards",
    "ClassifierConfig": "training.classifier_arguments",
    "ClassifierTrainer": "training.classifier_trainer",
    "TitleConfig": "training.title_arguments",
    "TitleTrainer": "training.title_trainer",
    "export_stock": "export.stock",
    "save": "export.folders",
    "metric_path": "evaluate_modules",
}

__all__ = [
    "PooledClassifier",
    "PooledClassifierConfig",
    "TaskHeadsError",
    "TitleScorer",
    "TitleScorerConfig",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(sorted(__all__))}"
        )
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
