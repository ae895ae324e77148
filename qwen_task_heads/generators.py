"""Causal language models that answer with a label: the only callers of `from_pretrained` for them.

A generator is a stock model of transformers, plain or with a stock PEFT adapter; nothing of ours travels
with it but `label_prompt.json`, the labels and the words around a text (`AnswerPrompts.save`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import find_adapter_config_file

from qwen_task_heads.backbones import locate
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubs import HUGGINGFACE, MODELSCOPE, fetch_modelscope


def load_generator(
    name: str,
    *,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
    dtype: torch.dtype | str = "auto",
    model_kwargs: dict[str, Any] | None = None,
) -> Any:
    """Load a chat model, or one with an adapter, which is merged.

    Args:
        name: repo id or folder; `"embedded"` for the small backbone in the package.
        revision: branch, tag or commit.
        hub: where ids are looked up, `huggingface` or `modelscope`.
        dtype: of the weights; as they were saved when `auto`.
        model_kwargs: passed on to transformers (`attn_implementation`, ...).

    Raises:
        TaskHeadsError: nothing there, or a model that does not generate.

    Example:
        >>> from qwen_task_heads.generators import load_generator
        >>> load_generator("embedded").config.model_type
        'qwen2'
    """
    path = locate(name)
    if hub == MODELSCOPE and not Path(path).exists():
        path, revision = str(fetch_modelscope(path, revision=revision)[0]), None
    options = {"revision": revision or "main", "dtype": dtype, **(model_kwargs or {})}
    try:
        if find_adapter_config_file(path, revision=revision) is None:
            return AutoModelForCausalLM.from_pretrained(path, **options).eval()
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(path, **options).merge_and_unload().eval()
    except (OSError, ValueError) as error:
        found = f"found no model that generates ({str(error).splitlines()[0][:160]})"
        accepted = "accepted: a repo id or folder of a causal language model, or an adapter of one"
        raise TaskHeadsError(Problem(name, found, accepted, "check the name and the network")) from error
