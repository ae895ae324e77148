"""Registration with transformers and PEFT, each part when the module that it extends is imported.

`import qwen_task_heads` itself imports neither torch nor transformers: a process that only checks options or
prints help starts at once. In a process that has imported transformers' Auto classes the hooks run at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from wrapt import register_post_import_hook

PACKAGE = __name__.rpartition(".")[0]


CONFIGS = f"{PACKAGE}.hubcode.configuration_task_heads"
MODELS = f"{PACKAGE}.hubcode.modeling_task_heads"


def install() -> None:
    """Install the hooks; called once by the package.

    Classes are registered when both transformers' Auto module and ours are imported, whichever comes last:
    each may be the one that imports the other.
    """
    hooks = {
        "transformers.models.auto.configuration_auto": _register_configs,
        "transformers.models.auto.modeling_auto": _register_models,
        "transformers.pipelines": _register_pipeline,
        "peft": _register_adapters,
        CONFIGS: _register_configs,
        MODELS: _register_models,
    }
    for module, hook in hooks.items():
        register_post_import_hook(hook, module)


def _own(module: str, last: str) -> Any:
    """Return a module of ours, imported if need be; None while its import runs, at whose end hooks run."""
    if module not in sys.modules:
        return import_module(module)
    return sys.modules[module] if last in vars(sys.modules[module]) else None


def _register_configs(_: Any) -> None:
    own = _own(CONFIGS, "TitleScorerConfig")
    if own is not None:
        from transformers import AutoConfig

        for config in (own.PooledClassifierConfig, own.TitleScorerConfig):
            AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models(_: Any) -> None:
    own = _own(MODELS, "TitleScorer")
    if own is not None:
        from transformers import AutoModel, AutoModelForSequenceClassification

        own.TaskHeadModel.publisher = Publisher
        for model in (own.PooledClassifier, own.TitleScorer):
            AutoModel.register(model.config_class, model, exist_ok=True)
            AutoModelForSequenceClassification.register(model.config_class, model, exist_ok=True)


def _register_pipeline(pipelines: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    from qwen_task_heads.hubcode.pipeline_task_heads import TitleRankingPipeline

    pipelines.PIPELINE_REGISTRY.register_pipeline(
        "title-ranking", TitleRankingPipeline, pt_model=AutoModelForSequenceClassification, type="text"
    )


def _register_adapters(_: Any) -> None:
    import_module(f"{PACKAGE}.peft_models").register()


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
