"""LoRA, DoRA and head-only configurations in which the head is always trained and saved.

With another task or other `modules_to_save`, PEFT leaves a head out without a warning; here this is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from qwen_task_heads.errors import error_at
from qwen_task_heads.hubcode.families_task_heads import NO_TARGETS, family_of
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel


def adapter_config(
    model: TaskHeadModel,
    *,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.05,
    targets: Sequence[str] | str | None = None,
    dora: bool = False,
    rslora: bool = False,
    head_only: bool = False,
    embeddings: bool = False,
    modules_to_save: Sequence[str] | None = None,
    task_type: str = "SEQ_CLS",
) -> Any:
    """Return the `LoraConfig` of a task head.

    Args:
        model: the model to adapt, whose family determines the names of modules.
        r: rank (LoRA, https://arxiv.org/abs/2106.09685).
        alpha: scale; updates are multiplied by alpha / r, or alpha / sqrt(r) with `rslora`.
        dropout: dropout of the adapter's input.
        targets: module names, `"attention"` (query and value), `"all-linear"` (all projections), or
            None for `all-linear`.
        dora: weight-decomposed updates (DoRA, https://arxiv.org/abs/2402.09353).
        rslora: rank-stabilised scale (https://arxiv.org/abs/2312.03732).
        head_only: adapt no layer; only the head is trained and saved.
        embeddings: adapt the token embeddings too. Two low-rank matrices are saved, not the embeddings.
        modules_to_save: fully trained modules; None for only the head.
        task_type: PEFT's task; any other than `SEQ_CLS` leaves the head out.

    Raises:
        TaskHeadsError: a configuration that would leave the head untrained, or targets that the model lacks.
    """
    from peft import LoraConfig

    saved = list(modules_to_save or ["score"])
    if not model.on_plain_base:  # an adapter names only its base
        option = "--freeze_backbone" if head_only else "--use_peft"
        raise error_at(
            option,
            f"the base is a {model.config.model_type} that is already trained",
            "a plain backbone",
            "drop it (the model, its own adapter merged, is trained in full), or start from its backbone",
            code="option-unsupported",
        )
    if task_type != "SEQ_CLS":
        raise error_at(
            "--lora_task_type",
            f"found {task_type!r}",
            "SEQ_CLS",
            "drop it: the head would be neither trained nor saved",
            code="option-value",
        )
    if "score" not in saved:
        raise error_at(
            "--lora_modules_to_save",
            f"found {saved!r}",
            "a list with 'score', the head, which would otherwise not be trained",
            "choose such as score",
            code="option-value",
        )
    family = family_of(model.model.config.model_type)
    if head_only:
        chosen: Any = NO_TARGETS
    elif targets in (None, [], "all-linear", ["all-linear"]):
        chosen = family.all_linear
    elif targets in ("attention", ["attention"]):
        chosen = family.attention
    else:  # trl turns a list of one into its item
        chosen = [targets] if isinstance(targets, str) else targets
    if not isinstance(chosen, str):
        chosen = list(chosen)
        names = {name.rsplit(".", 1)[-1] for name, _ in model.model.named_modules()}
        if unknown := sorted(target for target in chosen if target.rsplit(".", 1)[-1] not in names):
            raise error_at(
                "--lora_target_modules",
                f"found {unknown!r}",
                ", ".join(_linear_names(model)),
                "choose among them",
                code="option-value",
            )
    if embeddings:
        chosen = _with_embeddings(model, [] if chosen == NO_TARGETS else chosen)
    return LoraConfig(
        task_type=task_type,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=chosen,
        use_dora=dora,
        use_rslora=rslora,
        modules_to_save=saved,
    )


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence a warning that PEFT 0.21 causes in transformers 5.23 by the old name of a property.

    User code neither causes the warning nor can prevent it.

    Example:
        >>> import warnings
        >>> from qwen_task_heads.adapters import quiet_peft
        >>> with quiet_peft():
        ...     warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning)
    """
    with warnings.catch_warnings():
        message = "`is_gradient_checkpointing` is deprecated"
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)
        yield


def with_adapter(model: Any, config: Any, **options: Any) -> Any:
    """Add an adapter to a model by PEFT's `get_peft_model`, without its deprecation warning.

    Args:
        model: a model of transformers, changed in place.
        config: a config of PEFT, such as that of `adapter_config`.
        **options: options of `get_peft_model`.

    Returns:
        A `PeftModel`.

    Example:
        >>> from qwen_task_heads import adapter_config, build
        >>> from qwen_task_heads.adapters import with_adapter
        >>> model = build("embedded")
        >>> type(with_adapter(model, adapter_config(model, r=4))).__name__
        'TaskHeadPeftModel'
    """
    from peft import get_peft_model

    with quiet_peft():
        return get_peft_model(model, config, **options)


def fold_adapter(model: Any) -> Any:
    """Merge and unload an adapter that transformers loaded, as PEFT's `merge_and_unload` does.

    Args:
        model: a model with a loaded adapter, changed in place.

    Returns:
        The model without the adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    for adapter in list(model.peft_config):
        del model.peft_config[adapter]
    model._hf_peft_config_loaded = False
    return model


def _with_embeddings(model: TaskHeadModel, chosen: list[str] | str) -> list[str]:
    """Add the token embeddings to the targets of an adapter.

    They are named by their path, because PEFT saves the whole matrix of a target called `embed_tokens`.
    """
    embedding = model.get_input_embeddings()
    path = next(name for name, module in model.named_modules() if module is embedding)
    if isinstance(chosen, str):  # PEFT expands all-linear only if it is the only target
        chosen = _linear_names(model)
    return [*chosen, path]


def _linear_names(model: TaskHeadModel) -> list[str]:
    """Return the names of the backbone's linear layers in their parents."""
    linear = [name for name, module in model.model.named_modules() if isinstance(module, torch.nn.Linear)]
    return sorted({name.rsplit(".", 1)[-1] for name in linear})
