"""Measure the throughput of a model and the share of tokens that it did not compute.

Three numbers of tokens are counted: of the padded batches, of real tokens, and of tokens that the backbone
computed. Packed rows have no padding, and shared prefixes are computed once. Utilisation compares the
products of the linear layers with the fastest matrix product of this machine. That peak is measured in the
same process, so with the same threads and load, in the same dtype and also in shapes of the model, before and
after the work. Other programs can disturb these measurements. A share above 1 is therefore not reported.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel

SIDE = {"cpu": 1024}  # of the matrices whose product is the peak; other devices need larger ones
REPEATS = 5
SECONDS = 0.5  # limit of a measurement
MAX_PRODUCT = {"cpu": 2**33}  # most operations of a tried product in the model's shape: 0.2 s of a core

PENDING = 256  # counts that are kept on the device before they are added


class Throughput:
    """Tokens and seconds of a model on this process.

    Attributes:
        padded: tokens of the padded batches.
        real: real tokens among them.
        computed: tokens that went through the backbone.
        seconds: duration of the work, set by the caller.
        flops: floating-point operations of the linear layers of the backbone.

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
        self._real: list[torch.Tensor] = []  # on the device, because reading a value synchronises
        self._dtype, self._device = torch.float32, torch.device("cpu")
        self._shapes: set[tuple[int, int]] = set()  # of the backbone's linear layers
        self._peak = 0.0

    @property
    def real(self) -> int:
        """Number of tokens without padding."""
        self._real = [torch.stack(self._real).sum()] if self._real else []
        return int(self._real[0]) if self._real else 0

    @property
    def avoided(self) -> float:
        """Share of the padded batches' tokens that were not computed."""
        return 1 - self.computed / self.padded if self.padded else 0.0

    @contextmanager
    def listening(
        self, model: TaskHeadModel, *, training: bool = False, dtype: torch.dtype | None = None
    ) -> Iterator[None]:
        """Count the tokens and operations of the passes of a model.

        Args:
            model: a model of this library.
            training: count only passes in training mode, with the products of their backward passes.
            dtype: dtype of the products; that of the weights if None.
        """
        self._dtype, self._device = dtype or model.model.dtype, model.device
        linear = linear_layers(model.model)
        self._shapes = linear_shapes(model.model)
        # A last layer may compute only pooled tokens, and training needs other products for each layer. Hooks
        # slow down prediction, so there the operations of all other layers are computed from the tokens.
        last = model.model._modules.get("layers")
        each = linear if training else linear_layers(last[-1]) if isinstance(last, nn.ModuleList) else []
        known = {id(one) for one in each}
        per_token = sum(product_operations(one) for one in linear if id(one) not in known)

        # If a thread removes its hook while another thread calls it, the call has no kwargs.
        def see_batch(module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> None:
            mask = (kwargs or {}).get("attention_mask")
            if mask is not None and module.training == training:
                self.padded += mask.numel()
                self._real.append(mask.sum())
                if len(self._real) >= PENDING:  # a server never reads the sum
                    self._real = [torch.stack(self._real).sum()]

        def see_tokens(module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> None:
            ids = (kwargs or {}).get("input_ids")
            if ids is not None and module.training == training:
                self.computed += ids.numel()
                self.flops += per_token * ids.numel()

        def see_product(module: nn.Module, args: tuple[Any, ...]) -> None:
            if module.training != training or not args:
                return
            # Forward; backward to the input; backward to the weight.
            products = 1
            if torch.is_grad_enabled():
                products += args[0].requires_grad + module.weight.requires_grad
            self.flops += products * product_operations(module) * (args[0].numel() // args[0].shape[-1])

        hooks = [
            model.register_forward_pre_hook(see_batch, with_kwargs=True),
            model.model.register_forward_pre_hook(see_tokens, with_kwargs=True),
            *(one.register_forward_pre_hook(see_product) for one in each),
        ]
        with ExitStack() as open_hooks:
            for hook in hooks:
                open_hooks.callback(hook.remove)
            yield

    def measure_peak(self) -> None:
        """Measure the matrix peak of this machine; the best of all measurements is used."""
        self.note_peak(matrix_peak(self._device, dtype=self._dtype, shapes=self._shapes))

    def note_peak(self, found: float) -> None:
        """Add a measurement of `matrix_peak`, in operations per second."""
        self._peak = max(self._peak, found)

    @property
    def utilization(self) -> float | None:
        """Share of the measured matrix peak; None without a peak or if the measurement was disturbed."""
        if not self.flops or not self.seconds or not self._peak:
            return None
        share = self.flops / self.seconds / self._peak
        return share if share <= 1 else None

    def summary(self) -> str:
        """Describe throughput and avoided work in one sentence; measures the matrix peak again."""
        if not self.padded or not self.seconds:
            return "speed: nothing was computed"
        self.measure_peak()
        share = self.utilization
        of_peak = "" if share is None else f", {share:.0%} of this machine's matrix peak"
        return (
            f"speed: {self.real / self.seconds:,.0f} real tokens per second{of_peak}; {self.avoided:.0%} of"
            f" the {self.padded:,} tokens of the padded batches were not computed (padding and prefixes that"
            " rows share)"
        )


def matrix_peak(
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    shapes: Iterable[tuple[int, int]] = (),
    seconds: float = SECONDS,
) -> float:
    """Return the floating-point operations per second of the fastest of several matrix products.

    Args:
        device: device of the products.
        dtype: dtype of the matrices.
        shapes: inputs and outputs of linear layers, which are tried in addition to square matrices.
        seconds: limit of the measurement; each shape is tried at least once.
    """
    own = torch.Generator(device).manual_seed(0)  # does not change the random state of the caller
    side = SIDE.get(device.type, 4096)
    most = MAX_PRODUCT.get(device.type, float("inf"))
    tried = [(side, side), *sorted(shapes)]
    best = 0.0
    for inputs, outputs in tried:
        operations = 2 * side * inputs * outputs
        if operations > most:
            continue
        start = time.perf_counter()
        a = torch.randn(side, inputs, device=device, generator=own).to(dtype)  # (tokens, inputs)
        b = torch.randn(outputs, inputs, device=device, generator=own).to(dtype)
        for _ in range(REPEATS):
            begin = time.perf_counter()
            nn.functional.linear(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            end = time.perf_counter()
            best = max(best, operations / (end - begin))
            if end - start > seconds / len(tried):
                break
    return best


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """Return the linear layers in a module, including those of adapters."""
    return [one for one in module.modules() if isinstance(one, nn.Linear)]


def linear_shapes(module: nn.Module) -> set[tuple[int, int]]:
    """Return inputs and outputs of the linear layers in a module."""
    return {(one.in_features, one.out_features) for one in linear_layers(module)}


def product_operations(module: Any) -> float:
    """Return the operations of a linear layer per token; a quantised weight has another shape."""
    return 2.0 * module.in_features * module.out_features
