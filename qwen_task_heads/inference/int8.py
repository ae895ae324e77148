"""Scoring in int8 on a CPU: the backbone's matrices per channel, activations per call.

This is torch's dynamic quantization, with its kernels (oneDNN, FBGEMM). The head stays in fp32. All
activations of a call have one scale, so the score of a text depends slightly on the other texts of its batch.
`agreement` measures how often the predictions are equal; it is meaningful for trained weights only.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from qwen_task_heads.errors import error_at

# Raised by torch 2.13 inside `quantize_dynamic`. Its successor is torchao, whose kernels need torch.compile.
_DEPRECATED = (
    (r"torch\.ao\.quantization is deprecated", DeprecationWarning),
    (r"torch\.quantize_per_tensor, torch\.quantize_per_channel", UserWarning),
)


def to_int8(model: Any) -> Any:
    """Return a copy of a model whose backbone multiplies in int8, for scoring on a CPU.

    Args:
        model: a model of this library, without an adapter, in fp32, on a CPU.

    Raises:
        TaskHeadsError: a model on another device, in another dtype or with an adapter.

    Source: https://docs.pytorch.org/docs/stable/quantization.html (dynamic quantization).
    """
    backbone = model.model
    problem = None
    if model.device.type != "cpu":
        problem = f"found a model on {model.device.type}"
    elif backbone.dtype != torch.float32:
        problem = f"found weights in {str(backbone.dtype).removeprefix('torch.')}"
    elif model._hf_peft_config_loaded:
        problem = "found an adapter that is not merged"
    if problem:
        raise error_at(
            "int8",
            problem,
            "a full model in float32 on the CPU",
            "load the model in that way, or drop int8",
            code="option-unsupported",
        )
    quantized = copy.deepcopy(model).eval()
    with warnings.catch_warnings():
        for message, category in _DEPRECATED:
            warnings.filterwarnings("ignore", message=message, category=category)
        torch.ao.quantization.quantize_dynamic(
            quantized.model,
            {torch.nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig},
            inplace=True,
        )
    return quantized


def agreement(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Return the share of rows, 0 to 1, with the same best label; for scores, of pairs in the same order.

    Args:
        ours: (n, L) logits.
        theirs: (n, L) logits of the same texts.

    Example:
        >>> from qwen_task_heads.inference.int8 import agreement
        >>> agreement([[0.1, 0.9], [0.6, 0.4]], [[0.2, 0.8], [0.4, 0.6]])
        0.5
    """
    a, b = (torch.as_tensor(logits, dtype=torch.float32) for logits in (ours, theirs))
    if a.shape[1] > 1:
        return float((a.argmax(1) == b.argmax(1)).float().mean())
    first, second = torch.triu_indices(len(a), len(a), offset=1)
    return float((torch.sign(a[first] - a[second]) == torch.sign(b[first] - b[second])).float().mean())
