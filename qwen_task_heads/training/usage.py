"""What a run is estimated to take, what it used, and the words for both."""

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
    """What a run takes on this machine, for one process.

    Args:
        seconds: of the passes.
        memory: peak in bytes, on the device of the model.
        weights: bytes of the model's weights, part of the memory.
        needed: bytes that the process does not hold yet.
        free: bytes that the device has free now.
        tokens: that are computed, forwards.
        linear: floating-point operations of the linear layers in training, or of the only passes.
        operations: of all passes, attention included.
        peak: operations a second of the fastest matrix product.
        device: type of the device.
        processes: that run alike.
        remedies: options that lower the memory, as they are typed.
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
    remedies: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Say it in one line, and in a second one if the memory is not there."""
        where = "on this machine" if self.processes == 1 else f"on each of {self.processes} processes"
        unsure = "" if self.device == "cpu" else f" (the time on {self.device} is not calibrated)"
        memory = f"{size(self.memory)} of memory ({size(self.weights)} of weights)"
        lines = [
            f"estimate: about {duration(self.seconds)} and {memory} for {count(self.tokens)} tokens"
            f" {where}{unsure}"
        ]
        together = self.processes if self.device == "cpu" else 1  # others have a device of their own
        if self.needed * together > self.free:
            several = "" if self.processes == 1 else f" on each of {self.processes} processes"
            give = f": give {', or '.join(self.remedies)}" if self.remedies else ""
            lines.append(
                f"warning: the run needs about {size(self.needed)} more memory{several}, and"
                f" {size(self.free)} are free{give}"
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For `metrics.json`: seconds, bytes, tokens and operations."""
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
    """An estimate, and what was used of what it covers.

    Attributes:
        estimate: None until one is stated.
        seconds: of training and scoring, or of the features of a sweep.
        memory: peak of the process, in bytes, when training or the features ended.
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
        """Keep an estimate and print it."""
        self.estimate = estimate
        if not quiet:
            print("\n".join(estimate.lines()), flush=True)

    @contextmanager
    def measured(self, device: torch.device | None = None) -> Iterator[None]:
        """Add the seconds of what is done; with a device, note the peak of its memory too."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - begin
            if device is not None:
                self.memory = peak_memory(device)

    def line(self) -> str:
        """Say what was used beside what was estimated; "" without an estimate."""
        if self.estimate is None:
            return ""
        stated = f"{duration(self.estimate.seconds)} and {size(self.estimate.memory)}"
        return f"used: {duration(self.seconds)} and {size(self.memory)} (estimate {stated})"

    def facts(self) -> dict[str, Any]:
        """The part of `metrics.json`: `estimate` and `used`."""
        if self.estimate is None:
            return {}
        used = {"seconds": round(self.seconds, 1), "memory": self.memory}
        return {"estimate": self.estimate.as_dict(), "used": used}


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that the process held at once in its life, on the device of a model."""
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
    """Seconds, minutes or hours, in two digits.

    Example:
        >>> from qwen_task_heads.training.usage import duration
        >>> duration(0.4), duration(42.3), duration(754), duration(11_000)
        ('1 s', '42 s', '13 min', '3.1 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(number: float) -> str:
    """Bytes in GB of ten digits, or in MB below a tenth of one."""
    return f"{number / GB:.1f} GB" if number >= GB / 10 else f"{number / 1e6:.0f} MB"


def count(tokens: int) -> str:
    """Tokens, in thousands or millions."""
    if tokens < 10_000:
        return f"{tokens:,}"
    return f"{tokens / 1e6:.1f} M" if tokens >= 1e6 else f"{tokens / 1e3:.0f} k"
