"""Throughput of a training run, measured over its updates alone."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from qwen_task_heads.throughput import Throughput
from qwen_task_heads.training.estimates import estimate_run
from qwen_task_heads.training.usage import Usage, peak_memory

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from qwen_task_heads.training.run_checks import Flow


class ThroughputCallback(TrainerCallback):
    """Measure the updates of a run, and print a note if its batches are not packed.

    Attributes:
        result: a `Throughput`, complete at the end of training.
        seconds: of the whole training, evaluation and saving included.
        usage: the estimate of the run, if there is one, and the measured time and memory.
    """

    def __init__(self) -> None:
        self.result, self.usage = Throughput(), Usage()
        self.seconds = 0.0
        self._start = self._begin = 0.0
        self._open = ExitStack()

    def announce(self, trainer: Any, flow: Flow, *, done: int = 0, scored: int = 0) -> None:
        """Print the estimate of a run; arguments as of `estimate_run`."""
        estimate = estimate_run(trainer, flow, done=done, scored=scored)
        if estimate is not None:
            self.usage.state(estimate, quiet=not trainer.is_world_process_zero())
            self.result.note_peak(estimate.peak)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start counting the operations of the model."""
        from peft import PeftModel

        self._open.close()  # of a previous run that failed, e.g. with too large batches
        self._start = time.monotonic()
        model = kwargs["model"]
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        if model.fallback_reason and state.is_world_process_zero:
            print(f"note: batches are not packed: {model.fallback_reason}", flush=True)
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self._open.enter_context(self.result.listening(model, training=True, dtype=dtype))
        if self.usage.estimate is None:
            self.result.measure_peak()  # again at the end, by `line`: the load may have changed

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop counting."""
        self._open.close()
        self.seconds = time.monotonic() - self._start
        self.usage.seconds, self.usage.memory = self.seconds, peak_memory(args.device)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the timer of an update."""
        self._begin = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the timer, on a GPU after synchronization."""
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.result.seconds += time.monotonic() - self._begin
