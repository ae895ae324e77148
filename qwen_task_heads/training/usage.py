"""Estimated and measured time and memory of a run, and their text."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time and memory of a run on this machine, for one process.

    Args:
        seconds: of all passes.
        memory: peak in bytes, on the device of the model.
        weights: bytes of the weights of the model, part of the memory.
        needed: bytes that the process has not allocated yet.
        free: bytes that are free on the device now.
        tokens: tokens of the forward passes.
        linear: floating-point operations of the linear layers in training, or of the only passes.
        operations: floating-point operations of all passes, attention included.
        peak: operations per second of the fastest matrix product.
        device: type of the device.
        processes: number of equal processes.
        memory_options: options that reduce the memory, as they can be typed.
    """

    seconds: float
    memory: int
    weights: int
    needed: int
    free: int
    tokens: int
    linear: float
    operations: float
    peak: float
    device: str
    processes: int = 1
    memory_options: tuple[str, ...] = ()

    def messages(self) -> list[str]:
        """Return a line with the estimate, and a warning if the memory is not available."""
        where = "on this machine" if self.processes == 1 else f"on each of {self.processes} processes"
        unsure = "" if self.device == "cpu" else f" (the time on {self.device} is not calibrated)"
        memory = f"{size(self.memory)} of memory ({size(self.weights)} of weights)"
        messages = [
            f"estimate: about {duration(self.seconds)} and {memory} for {count(self.tokens)} tokens"
            f" {where}{unsure}"
        ]
        together = self.processes if self.device == "cpu" else 1  # other processes have a device of their own
        if self.needed * together > self.free:
            several = "" if self.processes == 1 else f" on each of {self.processes} processes"
            give = f": give {', or '.join(self.memory_options)}" if self.memory_options else ""
            messages.append(
                f"warning: the run needs about {size(self.needed)} more memory{several}, and"
                f" {size(self.free)} are free{give}"
            )
        return messages

    def as_dict(self) -> dict[str, Any]:
        """Return seconds, bytes, tokens and operations for `metrics.json`."""
        return {
            "seconds": round(self.seconds, 1),
            "memory": self.memory,
            "weights": self.weights,
            "tokens": self.tokens,
            "operations": self.operations,
            "peak": self.peak,
            "calibrated": self.device == "cpu",
        }


class Usage:
    """An estimate, and the measured time and memory of the same work.

    Attributes:
        estimate: None until `state` is called.
        seconds: of training and scoring, or of the features of a sweep.
        memory: peak of the process in bytes, at the end of training or of the features.
        scored: rows of token ids that are scored at the end of a sweep.

    Example:
        >>> import torch
        >>> from qwen_task_heads.training.usage import Usage
        >>> usage = Usage()
        >>> with usage.measured(torch.device("cpu")):
        ...     product = torch.ones(8, 8) @ torch.ones(8, 8)
        >>> usage.seconds > 0, usage.memory > 0, usage.line()
        (True, True, '')
    """

    def __init__(self) -> None:
        self.estimate: Estimate | None = None
        self.seconds = 0.0
        self.memory = self.scored = 0

    def state(self, estimate: Estimate, *, quiet: bool = False) -> None:
        """Store an estimate and print it.

        Args:
            estimate: of the run.
            quiet: True prints nothing.
        """
        self.estimate = estimate
        if not quiet:
            print("\n".join(estimate.messages()), flush=True)

    @contextmanager
    def measured(self, device: torch.device | None = None) -> Iterator[None]:
        """Add the seconds of the block; with a device, store the peak of its memory as well."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - begin
            if device is not None:
                self.memory = peak_memory(device)

    def line(self) -> str:
        """Return a line with the measured and the estimated values; "" without an estimate."""
        if self.estimate is None:
            return ""
        stated = f"{duration(self.estimate.seconds)} and {size(self.estimate.memory)}"
        return f"used: {duration(self.seconds)} and {size(self.memory)} (estimate {stated})"

    def facts(self) -> dict[str, Any]:
        """Return the entries `estimate` and `used` of `metrics.json`; {} without an estimate."""
        if self.estimate is None:
            return {}
        used = {"seconds": round(self.seconds, 1), "memory": self.memory}
        return {"estimate": self.estimate.as_dict(), "used": used}


def peak_memory(device: torch.device) -> int:
    """Return the peak of the memory of the process in bytes, on the device of a model."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours with about two digits.

    Example:
        >>> from qwen_task_heads.training.usage import duration
        >>> duration(0.4), duration(42.3), duration(754), duration(11_000)
        ('1 s', '42 s', '13 min', '3.1 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(number: float) -> str:
    """Return bytes as text: GB with one decimal, or MB below 0.1 GB."""
    return f"{number / GB:.1f} GB" if number >= GB / 10 else f"{number / 1e6:.0f} MB"


def count(tokens: int) -> str:
    """Return a number of tokens as text, in thousands or millions."""
    if tokens < 10_000:
        return f"{tokens:,}"
    return f"{tokens / 1e6:.1f} M" if tokens >= 1e6 else f"{tokens / 1e3:.0f} k"
