"""Comparison of logits with the stored probe of a model. This file is copied into every published model."""

from __future__ import annotations

import sys
from typing import Any

import torch

from .errors_task_heads import TaskHeadError
from .saving_task_heads import QUANTIZED, is_quantized

# Largest difference, relative to the largest stored logit, that rounding can cause: between kernels in fp32,
# and between half precision and any dtype. Relative, because a new MLP head gives logits of 1e-4.
TOLERANCE = {"float32": 2e-4, "float64": 2e-4, "bfloat16": 8e-2, "float16": 3e-2}


def probe_difference(config: Any, found: torch.Tensor, *, dtype: str, where: str) -> tuple[float, float]:
    """Return the difference of logits from the stored probe, and the largest one that rounding can cause.

    For a quantised model, or a model trained on a quantised base, the limit is the largest float, because the
    effect of 4 bits depends on the weights. Infinity and NaN are refused by `not difference <= limit`.

    Args:
        config: config with a `probe`.
        found: logits (B, L) of the probe's ids.
        dtype: dtype in which they were computed, such as `bfloat16`.
        where: place in the error.

    Returns:
        The largest difference and its limit, both relative to the largest stored logit.

    Raises:
        ValueError: logits of another shape.

    Example:
        >>> import torch
        >>> from qwen_task_heads import PooledClassifierConfig
        >>> from qwen_task_heads.hubcode.probe_task_heads import probe_difference
        >>> config = PooledClassifierConfig(probe={"logits": [[0.0, 2.0]], "dtype": "float32"})
        >>> probe_difference(config, torch.tensor([[0.0, 1.5]]), dtype="float32", where="probe")
        (0.25, 0.0002)
    """
    expected = torch.tensor(config.probe["logits"], dtype=torch.float64)
    if found.shape != expected.shape:
        raise TaskHeadError(
            where,
            f"found logits of shape {tuple(found.shape)}",
            f"{tuple(expected.shape)}",
            "restore the saved config",
            code="config-invalid",
        )
    dtypes = (dtype, str(config.probe.get("dtype")))
    limit = max(TOLERANCE.get(name, 8e-2) for name in dtypes)
    if is_quantized(config) or QUANTIZED in dtypes:
        limit = sys.float_info.max
    scale = expected.abs().max().clamp(min=1e-6)
    return float((found.double() - expected).abs().max() / scale), limit
