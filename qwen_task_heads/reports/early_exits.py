"""Accuracy against latency: what a head on each layer gets right, and what its answers cost.

One point per layer, its best combination out of a sweep. Its milliseconds are those of a model with that
many layers, as it would be saved, on this machine. As `early_exit.json`, a plot, and lines for the screen.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.hubcode.encoding_task_heads import pad_rows
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.reports.title_plots import BLUE, GREY, ORANGE, new_figure, save_figure
from qwen_task_heads.training.features import token_batches
from qwen_task_heads.training.head_sweep import Combination, Result

TIMED = 64  # rows whose scoring is timed: with a deep backbone more would take as long as the sweep
REPEATS = 3


@torch.no_grad()
def time_scoring(model: TaskHeadModel, rows: Sequence[Sequence[int]], *, batch_tokens: int = 8192) -> float:
    """Milliseconds per row of scoring: the median of three rounds after one, on at most 64 rows.

    Args:
        model: as it would be used, on its device.
        rows: of token ids; evenly spread ones are taken.
        batch_tokens: padded tokens in a batch.
    """
    taken = rows[:: max(1, math.ceil(len(rows) / TIMED))]
    batches = [
        {
            name: tensor.to(model.device)
            for name, tensor in pad_rows([taken[index] for index in batch], pad_id=0).items()
        }
        for batch in token_batches(taken, batch_tokens=batch_tokens)
    ]
    was_training, rounds = model.training, []
    model.eval()
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        for batch in batches:
            model(**batch).logits.sum().item()  # waits for the device
        rounds.append(time.perf_counter() - start)
    model.train(was_training)
    return 1000 * statistics.median(rounds[1:]) / len(taken)


@dataclass(frozen=True, kw_only=True)
class ExitPoint:
    """A point of the curve: the best combination of a layer.

    Args:
        layer: how many layers the model has.
        value: mean dev figure over the seeds.
        spread: its standard deviation over them.
        milliseconds: per text.
        combination: which it is.
    """

    layer: int
    value: float
    spread: float
    milliseconds: float
    combination: Combination


def measure_exits(
    results: Iterable[Result],
    make: Callable[[Combination], TaskHeadModel],
    *,
    rows: Sequence[Sequence[int]],
) -> list[ExitPoint]:
    """Give the curve of accuracy against latency: the best combination of each layer, by layer.

    Args:
        results: best first, from `sweep_heads`.
        make: builds the model of a combination; one at a time is kept.
        rows: of token ids, whose scoring is timed.
    """
    best: dict[int, Result] = {}
    for result in results:
        best.setdefault(result.combination.layer, result)
    return [
        ExitPoint(
            layer=layer,
            value=result.mean,
            spread=result.spread,
            milliseconds=time_scoring(make(result.combination), rows),
            combination=result.combination,
        )
        for layer, result in sorted(best.items())
    ]


def write_exits(
    folder: str | Path,
    points: Sequence[ExitPoint],
    *,
    figure: str,
    chosen: Result,
    results: Sequence[Result],
) -> None:
    """Write the curve as `early_exit.json` and `early_exit.png` into the folder of the model.

    Args:
        folder: of the saved model.
        points: of the curve, one a layer.
        figure: what the values are.
        chosen: the combination that was saved.
        results: of all combinations, kept in the file under `tried`.
    """
    content = {
        "figure": figure,
        "set": "dev",
        "chosen": {**asdict(chosen.combination), "layer": chosen.combination.layer},
        "points": [asdict(point) for point in points],
        "tried": [
            {**asdict(result.combination), "value": result.mean, "spread": result.spread}
            for result in results
        ],
    }
    text = json.dumps(content, indent=2) + "\n"
    Path(folder, "early_exit.json").write_text(text, encoding="utf-8")
    plot_exits(points, Path(folder, "early_exit.png"), figure=figure, chosen=chosen)


def plot_exits(points: Sequence[ExitPoint], path: str | Path, *, figure: str, chosen: Result) -> Path:
    """Dev figure over milliseconds per text, a point per layer, with the spread over the seeds."""
    drawing = new_figure(5.5, 3.6)
    axes = drawing.subplots()
    times, values = [point.milliseconds for point in points], [point.value for point in points]
    axes.errorbar(times, values, [point.spread for point in points], color=BLUE, marker="o", ecolor=GREY)
    for point in points:
        is_chosen = point.layer == chosen.combination.layer
        axes.annotate(
            f"layer {point.layer}{' (saved)' if is_chosen else ''}",
            (point.milliseconds, point.value),
            textcoords="offset points",
            xytext=(6, -12),
            color=ORANGE if is_chosen else GREY,
        )
    axes.margins(x=0.2, y=0.25)
    axes.set(xlabel="milliseconds per text", ylabel=f"{figure} on dev", title="Early exit")
    return save_figure(drawing, path)


def sweep_table(
    results: Sequence[Result],
    *,
    chosen: Result,
    points: Sequence[ExitPoint],
    figure: str,
    baseline: Mapping[str, Any] | None = None,
    top: int = 10,
) -> list[str]:
    """The best combinations, and then the best of each layer with its latency, as lines of text.

    Args:
        results: best first.
        chosen: the one that was saved.
        points: of the curve.
        figure: what the values are.
        baseline: figures of TF-IDF on the same rows, or None.
        top: how many combinations to show.
    """
    shown = list(results[:top])
    if chosen not in shown:
        shown.append(chosen)
    rows = [["", "layers", "pooling", "head", "loss", f"{figure} on dev", "spread"]]
    rows += [
        [
            "->" if result is chosen else "",
            *(result.combination.read, result.combination.pooling),
            *(result.combination.head, result.combination.loss),
            *(f"{result.mean:.3f}", f"{result.spread:.3f}" if len(result.values) > 1 else ""),
        ]
        for result in shown
    ]
    exits = [["", "layers", f"{figure} on dev", "ms per text", "of the deepest"]]
    exits += [
        [
            "->" if point.layer == chosen.combination.layer else "",
            *(str(point.layer), f"{point.value:.3f}", f"{point.milliseconds:.2f}"),
            f"{100 * point.milliseconds / points[-1].milliseconds:.0f}%",
        ]
        for point in points
    ]
    if baseline is not None and baseline[figure]["value"] is not None:
        rows.append(["", "", "", "TF-IDF, linear", "", f"{baseline[figure]['value']:.3f}", ""])
    last = "The best of each layer (a model with so many layers; -> is the one that was saved):"
    return [f"{_tried(results)}; the best on dev:", "", *aligned(rows), "", last, "", *aligned(exits)]


def _tried(results: Sequence[Result]) -> str:
    """How many heads of each kind were fitted, and how."""
    trained = [result for result in results if result.combination.head_sizes]
    linear, parts = len(results) - len(trained), []
    if linear:
        parts.append(f"{linear} linear head{'s' if linear > 1 else ''}, solved once")
    if trained:
        seeds = len(trained[0].values)
        heads = f"{len(trained)} MLP{'s' if len(trained) > 1 else ''}"
        parts.append(f"{heads}, trained with {seeds} seed{'s' if seeds > 1 else ''}")
    return "; ".join(parts)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table for the screen, two blanks in, their columns one under the other.

    Example:
        >>> from qwen_task_heads.reports.early_exits import aligned
        >>> aligned([["a", "1"], ["bcd", "20"]])
        ['  a    1', '  bcd  20']
    """
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
