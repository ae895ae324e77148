"""How fast a model worked and what it did not waste.

Counted are the tokens of the padded batches, the real ones among them, and those that the backbone
computed: packed rows have no padding, and what rows begin with in common is computed once. Utilisation
holds the multiplications of the computed tokens with the weights of the linear layers against the fastest
matrix product of this machine in the same dtype, measured for a moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel

SIDE = {"cpu": 1024}  # of the matrices whose product is the peak; others need larger ones to be busy


class Throughput:
    """Tokens and seconds of a model on this process.

    Attributes:
        padded: tokens of the padded batches.
        real: those of them that are no padding.
        computed: tokens that went through the backbone.
        seconds: of the work, as its caller measures it.
        flops: floating-point operations of the linear layers.

    Example:
        >>> import torch
        >>> from qwen_task_heads import build
        >>> from qwen_task_heads.throughput import Throughput
        >>> model, speed = build("embedded"), Throughput()
        >>> mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        >>> with speed.listening(model):
        ...     logits = model(input_ids=mask, attention_mask=mask).logits
        >>> speed.padded, speed.real, speed.computed, speed.avoided
        (8, 6, 6, 0.25)
    """

    def __init__(self) -> None:
        self.padded = self.computed = 0
        self.seconds = self.flops = 0.0
        self._real: list[torch.Tensor] = []  # on the device: asking at once would wait for it
        self._dtype, self._device = torch.float32, torch.device("cpu")

    @property
    def real(self) -> int:
        """Tokens that are no padding."""
        self._real = [torch.stack(self._real).sum()] if self._real else []
        return int(self._real[0]) if self._real else 0

    @property
    def avoided(self) -> float:
        """Share of the padded batches' tokens that had not to be computed."""
        return 1 - self.computed / self.padded if self.padded else 0.0

    @contextmanager
    def listening(
        self, model: TaskHeadModel, *, training: bool = False, dtype: torch.dtype | None = None
    ) -> Iterator[None]:
        """Count what passes through a model.

        Args:
            model: of this library.
            training: count passes in training mode alone, and the products of their backward passes.
            dtype: of the products; that of the weights if None.
        """
        self._dtype, self._device = dtype or model.model.dtype, model.device
        # Two operations a weight and token: in the product forwards, in that for the gradient of its input,
        # and, where it is trained, in that for its own.
        weights = [module.weight for module in model.model.modules() if isinstance(module, nn.Linear)]
        products = [1 + training * (1 + weight.requires_grad) for weight in weights]
        per_token = sum(2.0 * w.numel() * n for w, n in zip(weights, products, strict=True))

        # A thread that takes its hook away while another one calls it leaves that call without kwargs.
        def see_batch(module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> None:
            mask = (kwargs or {}).get("attention_mask")
            if mask is not None and module.training == training:
                self.padded += mask.numel()
                self._real.append(mask.sum())

        def see_tokens(module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> None:
            ids = (kwargs or {}).get("input_ids")
            if ids is not None and module.training == training:
                self.computed += ids.numel()
                self.flops += per_token * ids.numel()

        hooks = [
            model.register_forward_pre_hook(see_batch, with_kwargs=True),
            model.model.register_forward_pre_hook(see_tokens, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def line(self, *, peak: float | None = None) -> str:
        """Say it in one sentence.

        Args:
            peak: operations a second that this machine can do; measured if None.
        """
        if not self.padded or not self.seconds:
            return "speed: nothing was computed"
        peak = peak or matrix_peak(self._device, dtype=self._dtype)
        return (
            f"speed: {self.real / self.seconds:,.0f} real tokens a second, "
            f"{self.flops / self.seconds / peak:.0%} of this machine's matrix peak; {self.avoided:.0%} of the"
            f" padded batches' {self.padded:,} tokens had not to be computed (padding, and beginnings that"
            " rows share)"
        )


def matrix_peak(device: torch.device, *, dtype: torch.dtype = torch.float32) -> float:
    """The floating-point operations a second of the best of five products of two large matrices."""
    own = torch.Generator(device).manual_seed(0)  # looking at the speed must move no draw of the caller's
    side = SIDE.get(device.type, 4096)
    a, b = torch.randn(2, side, side, device=device, generator=own).to(dtype)
    best = float("inf")
    for _ in range(5):
        begin = time.monotonic()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.monotonic() - begin)
    return 2 * side**3 / best
