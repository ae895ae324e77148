"""Dtypes of weights by name, and conversion of the dtype of a backbone."""

from __future__ import annotations

import torch

from qwen_task_heads.errors import error_at
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def store_in(model: TaskHeadModel, *, dtype: torch.dtype | str) -> TaskHeadModel:
    """Change the dtype of the backbone in place; the head stays in fp32.

    Args:
        model: a model without an adapter.
        dtype: `float32`, `bfloat16` or `float16`.

    Returns:
        The model.

    Raises:
        TaskHeadsError: another dtype.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise error_at(
            "dtype", f"found {name!r}", ", ".join(DTYPES), "choose one of them", code="option-value"
        )
    for parameter in model.model.parameters():  # buffers, such as those of rotary embeddings, are kept
        parameter.data = parameter.data.to(DTYPES[name])
    return model
