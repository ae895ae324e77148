"""How a ratio is taken: both sides in one process, in turn, and what each computed held against the other.

- A ratio is the median over turns of `time of the peer / time of ours`, A B A B: what slows the machine for a
  while slows both. At least five turns after a warm-up; more where they disagree.
- On a CPU with one thread the clock is the CPU time of the process, which leaves out what other processes
  took; with more threads, and on a GPU, it is the wall clock.
- `Result` is one line of the JSON file. Seconds are kept there for GPUs; on a CPU only ratios are claims.
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
AGREE = 0.1  # relative spread (middle half of the turns) at which more turns are taken


@dataclass(frozen=True)
class Bench:
    """What every row is given.

    Args:
        device: `cpu` or `cuda`.
        data_dir: folder of the real data, for lengths and texts.
        full: all rows and sizes; otherwise those of minutes.
        turns: of each comparison, at least.
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
        """Whether ratios, and not seconds, are what counts."""
        return self.device == "cpu"

    def clock(self) -> float:
        """Seconds, once the device has done what it was asked for."""
        if not self.on_cpu:
            torch.cuda.synchronize()
        return time.process_time() if self.clock_name == "cpu" else time.perf_counter()

    @property
    def clock_name(self) -> str:
        """`cpu` for the CPU time of this process, `wall` otherwise."""
        return "cpu" if self.on_cpu and torch.get_num_threads() == 1 else "wall"


@dataclass
class Result:
    """A measured row.

    Args:
        workload: what is done.
        peer: against whom.
        ratio: how much faster ours is; of rows without a peer, the figure itself.
        settings: sizes and options of both sides.
        target: of `PERFORMANCE.md`, or None.
        limit: computed: tokens that the peer computes over those that are needed, or None.
        difference: largest absolute difference between the two sides' results, or None.
        compared: what the difference is of.
        spread: middle half of the turns, relative to the median.
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
        """Of each turn."""
        return [peer / ours for peer, ours in zip(self.peer, self.ours, strict=True)]

    def figures(self) -> dict[str, Any]:
        """The fields of a `Result` that are timed."""
        seconds = {"peer": statistics.median(self.peer), "ours": statistics.median(self.ours)}
        return {"ratio": statistics.median(self.ratios), "spread": spread(self.ratios), "seconds": seconds}


def spread(values: list[float]) -> float:
    """Middle half of values, relative to their median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


def compare(bench: Bench, *, peer: Callable[[], Any], ours: Callable[[], Any]) -> Timing:
    """Time two calls in turn, after one call of each that is not counted."""
    peer()
    ours()
    return take_turns(bench, peer=lambda: clocked(bench, peer), ours=lambda: clocked(bench, ours))


def take_turns(bench: Bench, *, peer: Callable[[], float], ours: Callable[[], float]) -> Timing:
    """Collect the seconds that two calls report, in turn, until the ratios agree."""
    timing = Timing([], [])
    gc.collect()
    while len(timing.peer) < bench.turns or (len(timing.peer) < MOST_TURNS and spread(timing.ratios) > AGREE):
        timing.peer.append(peer())
        timing.ours.append(ours())
    return timing


def clocked(bench: Bench, call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = bench.clock()
    call()
    return bench.clock() - start


def largest_difference(first: Iterable[torch.Tensor | None], second: Iterable[torch.Tensor | None]) -> float:
    """Largest absolute difference between two rows of tensors of equal shapes."""
    largest = 0.0
    for one, other in zip(first, second, strict=True):
        if one is None or other is None:
            if one is not other:
                return float("inf")
            continue
        found = float((one.detach().float() - other.detach().float()).abs().max())
        if found != found:  # NaN, which `max` would pass over
            return float("inf")
        largest = max(largest, found)
    return largest


def matmul_peak(device: str, *, dtype: torch.dtype = torch.float32) -> float:
    """Fastest of some matrix products on this machine, in floating point operations a second."""
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
    """Slope of log(seconds) over log(size): 1 is linear, 2 quadratic."""
    xs, ys = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, seconds))
    xs, ys = xs - xs.mean(), ys - ys.mean()
    return float((xs * ys).sum() / (xs * xs).sum())
