"""How fast a run was and what it did not waste, in one line at its end.

Counted are the tokens of the padded batches, the real ones among them, and those that the backbone
computed: packed rows have no padding, and what rows begin with in common is computed once. Utilisation
holds the multiplications of the computed tokens against the fastest matrix product of this machine in the
run's dtype, measured for a moment at the end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

SIDE = 2048  # of the matrices whose product is the peak


@dataclass
class Throughput:
    """Tokens and seconds of a run on this process.

    Args:
        padded: tokens of the padded batches.
        real: those of them that are no padding.
        computed: tokens that went through the backbone.
        seconds: of the updates, without evaluation and saving.
        flops: floating-point operations of the matrix products with weights.
    """

    padded: int = 0
    real: int = 0
    computed: int = 0
    seconds: float = 0.0
    flops: float = 0.0

    @property
    def avoided(self) -> float:
        """Share of the padded batches' tokens that were not computed."""
        return 1 - self.computed / self.padded if self.padded else 0.0

    def line(self, *, peak: float | None = None) -> str:
        """Say it in one sentence; `peak` is the machine's, in operations a second."""
        if not self.padded or not self.seconds:
            return "speed: nothing was trained"
        used = "" if not peak else f", {self.flops / self.seconds / peak:.0%} of this machine's matrix peak"
        return (
            f"speed: {self.real / self.seconds:,.0f} real tokens a second{used}; {self.avoided:.0%} of the "
            f"padded batches' {self.padded:,} tokens had not to be computed (padding, and beginnings that "
            "rows share)"
        )


class ThroughputCallback(TrainerCallback):
    """Measures the updates of a run, and says beforehand if its rows have to be padded."""

    def __init__(self) -> None:
        self.result = Throughput()
        self._real: list[torch.Tensor] = []  # on the device: asking at once would wait for it
        self.seconds = 0.0  # of the whole training, evaluation and saving included
        self._start = self._begin = 0.0
        self._per_token = 0.0
        self._device, self._dtype = torch.device("cpu"), torch.float32

    def line(self) -> str:
        """Give the line, beside the machine's peak."""
        peak = matrix_peak(self._device, dtype=self._dtype) if self.result.seconds else None
        return self.result.line(peak=peak)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listen to the model."""
        from peft import PeftModel

        self._start = time.monotonic()
        model = kwargs["model"]
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        if model.why_padded and state.is_world_process_zero:
            print(f"note: batches are padded: {model.why_padded}", flush=True)
        # Two operations a weight and token: in the product forwards, in that for the gradient of its input,
        # and, where it is trained, in that for its own.
        weights = [module.weight for module in model.model.modules() if isinstance(module, nn.Linear)]
        self._per_token = sum(2.0 * weight.numel() * (2 + weight.requires_grad) for weight in weights)
        self._device = args.device
        self._dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.model.dtype
        self._hooks = [
            model.register_forward_pre_hook(self._see_batch, with_kwargs=True),
            model.model.register_forward_pre_hook(self._see_tokens, with_kwargs=True),
        ]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop listening."""
        self.seconds = time.monotonic() - self._start
        for hook in self._hooks:
            hook.remove()
        self.result.real += int(sum(int(part) for part in self._real))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock of an update."""
        self._begin = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop it; where there is a GPU, once its work is done."""
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.result.seconds += time.monotonic() - self._begin

    def _see_batch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        if module.training and mask is not None:
            self.result.padded += mask.numel()
            self._real.append(mask.sum())

    def _see_tokens(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        if module.training and ids is not None:
            self.result.computed += ids.numel()
            self.result.flops += self._per_token * ids.numel()


def matrix_peak(device: torch.device, *, dtype: torch.dtype = torch.float32) -> float:
    """The floating-point operations a second of the best of five products of two large matrices."""
    a, b = torch.randn(2, SIDE, SIDE, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        begin = time.monotonic()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.monotonic() - begin)
    return 2 * SIDE**3 / best
