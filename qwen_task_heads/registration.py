"""Registration with transformers' Auto classes and pipelines, and with PEFT."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wrapt import register_post_import_hook

PACKAGE = __name__.rpartition(".")[0]


def install() -> None:
    """Register the configs, models and the pipeline of this package; a second call changes nothing.

    PEFT is registered when it is imported: that takes seconds, and predictions do not need it.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig, TitleScorerConfig
    from qwen_task_heads.hubcode.decision_task_heads import HAS_DECISIONS
    from qwen_task_heads.hubcode.modeling_task_heads import PooledClassifier, TaskHeadModel, TitleScorer
    from qwen_task_heads.hubcode.pipeline_task_heads import TitleRankingPipeline

    for config, model in ((PooledClassifierConfig, PooledClassifier), (TitleScorerConfig, TitleScorer)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForSequenceClassification.register(config, model, exist_ok=True)
    if HAS_DECISIONS:
        from transformers import AutoModelForDecision

        AutoModelForDecision.register(PooledClassifierConfig, PooledClassifier, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline(
        "title-ranking", TitleRankingPipeline, pt_model=AutoModelForSequenceClassification, type="text"
    )
    TaskHeadModel.publisher = Publisher
    register_post_import_hook(lambda _: import_module(f"{PACKAGE}.peft_models").register(), "peft")


class Publisher:
    """Checks and pushes of `publishing.pushing`, which is imported when one is called."""

    @staticmethod
    def check(model: Any, **options: Any) -> str:
        """Check a push before it starts; see `publishing.pushing.check_push`."""
        found: str = import_module(f"{PACKAGE}.publishing.pushing").check_push(model, **options)
        return found

    @staticmethod
    def push(folder: Any, **options: Any) -> Any:
        """Push a saved folder; see `publishing.pushing.push_folder`."""
        return import_module(f"{PACKAGE}.publishing.pushing").push_folder(folder, **options)
