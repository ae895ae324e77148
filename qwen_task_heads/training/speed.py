"""The speed of a training run: its updates are measured, and nothing else of it."""

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
    """Measures the updates of a run, and says beforehand if its batches have to be padded.

    Attributes:
        result: a `Throughput`, complete when the training has ended.
        seconds: of the whole training, evaluation and saving included.
        usage: the estimate of the run, if one was stated, and what was used.
    """

    def __init__(self) -> None:
        self.result, self.usage = Throughput(), Usage()
        self.seconds = 0.0
        self._start = self._begin = 0.0
        self._open = ExitStack()

    def announce(self, trainer: Any, flow: Flow, *, done: int = 0, scored: int = 0) -> None:
        """State what a run will take; arguments as of `estimate_run`."""
        estimate = estimate_run(trainer, flow, done=done, scored=scored)
        if estimate is not None:
            self.usage.state(estimate, quiet=not trainer.is_world_process_zero())
            self.result.note_peak(estimate.peak)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listen to the model."""
        from peft import PeftModel

        self._open.close()  # of a run that broke off, such as one with too large batches
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
        """Stop listening."""
        self._open.close()
        self.seconds = time.monotonic() - self._start
        self.usage.seconds, self.usage.memory = self.seconds, peak_memory(args.device)

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
