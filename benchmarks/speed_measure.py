"""Measurement of ratios: both sides run in one process, in alternating turns, and their results are compared.

- A ratio is the median over turns of `time of the peer / time of ours`, A B A B, so that a temporary slowdown
  of the machine affects both sides. There are at least five turns after a warm-up, and more if they disagree.
- On a CPU with one thread the clock is the CPU time of the process, which excludes other processes. With more
  threads, and on a GPU, it is the wall clock.
- `Result` is one line of the JSON file. It contains seconds for GPUs; on a CPU only ratios are reported.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

TURNS, MOST_TURNS = 5, 7
AGREE = 0.1  # relative spread (interquartile range of the turns) above which more turns are taken


@dataclass(frozen=True)
class Bench:
    """Settings of the benchmarks.

    Args:
        device: `cpu` or `cuda`.
        data_dir: folder of the real data, for lengths and texts.
        full: measure all rows and sizes; otherwise those that take minutes.
        turns: minimum number of turns of each comparison.
        scratch: a folder for models and runs.
        qwen: folder of real weights of Qwen2.5-0.5B, or None.
    """

    device: str
    data_dir: Path
    full: bool
    turns: int
    scratch: Path
    qwen: Path | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether the device is a CPU, on which only ratios are reported."""
        return self.device == "cpu"

    def clock(self) -> float:
        """Return seconds after the device has finished its work."""
        if not self.on_cpu:
            torch.cuda.synchronize()
        return time.process_time() if self.clock_name == "cpu" else time.perf_counter()

    @property
    def clock_name(self) -> str:
        """Return `cpu` for the CPU time of this process, `wall` otherwise."""
        return "cpu" if self.on_cpu and torch.get_num_threads() == 1 else "wall"


@dataclass
class Result:
    """A measured row.

    Args:
        workload: description of the work.
        peer: name of the other side.
        ratio: time of the peer over ours; the metric itself for rows without a peer.
        settings: sizes and options of both sides.
        target: of `PERFORMANCE.md`, or None.
        limit: computed ratio of the tokens of the peer to the required tokens, or None.
        difference: largest absolute difference between the results of both sides, or None.
        compared: the compared quantity.
        spread: interquartile range of the turns, relative to the median.
        seconds: per call, of the peer and of ours.
    """

    workload: str
    peer: str
    ratio: float
    settings: dict[str, Any] = field(default_factory=dict)
    target: float | None = None
    limit: float | None = None
    difference: float | None = None
    compared: str = ""
    spread: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass
class Timing:
    """Seconds of both sides, turn after turn."""

    peer: list[float]
    ours: list[float]

    @property
    def ratios(self) -> list[float]:
        """Return the ratio of each turn."""
        return [peer / ours for peer, ours in zip(self.peer, self.ours, strict=True)]

    def result_fields(self) -> dict[str, Any]:
        """Return the timed fields of a `Result`."""
        seconds = {"peer": statistics.median(self.peer), "ours": statistics.median(self.ours)}
        return {"ratio": statistics.median(self.ratios), "spread": spread(self.ratios), "seconds": seconds}


def spread(values: list[float]) -> float:
    """Return the interquartile range of values, relative to their median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


def compare(bench: Bench, *, peer: Callable[[], Any], ours: Callable[[], Any]) -> Timing:
    """Time two calls in alternating turns, after one warm-up call of each."""
    peer()
    ours()
    return take_turns(bench, peer=lambda: clocked(bench, peer), ours=lambda: clocked(bench, ours))


def take_turns(bench: Bench, *, peer: Callable[[], float], ours: Callable[[], float]) -> Timing:
    """Collect the seconds that two calls return in alternating turns, until the ratios agree."""
    timing = Timing([], [])
    gc.collect()
    while len(timing.peer) < bench.turns or (len(timing.peer) < MOST_TURNS and spread(timing.ratios) > AGREE):
        timing.peer.append(peer())
        timing.ours.append(ours())
    return timing


def clocked(bench: Bench, call: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    start = bench.clock()
    call()
    return bench.clock() - start


def largest_difference(first: Iterable[torch.Tensor | None], second: Iterable[torch.Tensor | None]) -> float:
    """Return the largest absolute difference between two sequences of tensors of equal shapes."""
    largest = 0.0
    for one, other in zip(first, second, strict=True):
        if one is None or other is None:
            if one is not other:
                return float("inf")
            continue
        difference = float((one.detach().float() - other.detach().float()).abs().max())
        if difference != difference:  # NaN, which `max` ignores
            return float("inf")
        largest = max(largest, difference)
    return largest


def matmul_peak(device: str, *, dtype: torch.dtype = torch.float32) -> float:
    """Return the speed of the fastest of several matrix products, in floating point operations a second."""
    bench = Bench(device, Path(), False, 1, Path())
    best = 0.0
    for rows, inner, columns in ((1024, 1024, 1024), (2048, 2048, 2048), (1024, 896, 4864), (2048, 256, 704)):
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(columns, inner, device=device, dtype=dtype)
        for _ in range(4):
            times = 2 if device == "cpu" else 50
            start = bench.clock()
            for _ in range(times):
                torch.nn.functional.linear(left, right)
            best = max(best, times * 2 * rows * inner * columns / (bench.clock() - start))
    return best


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Return the slope of log(seconds) over log(size): 1 is linear, 2 quadratic."""
    xs, ys = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, seconds))
    xs, ys = xs - xs.mean(), ys - ys.mean()
    return float((xs * ys).sum() / (xs * xs).sum())
