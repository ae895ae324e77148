"""Accuracy against latency of a head on each layer: `early_exit.json`, a plot and a printed table.

Each point is the best combination of a layer in a sweep. Its latency is that of a model with that number of
layers, as it would be saved, on this machine.
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
from qwen_task_heads.reports.plots import BLUE, GREY, ORANGE, new_figure, save_figure
from qwen_task_heads.training.features import token_batches
from qwen_task_heads.training.head_sweep import Combination, Result

TIMED = 64  # rows that are timed; with a deep backbone more rows would take as long as the sweep
REPEATS = 3


@torch.no_grad()
def time_scoring(model: TaskHeadModel, rows: Sequence[Sequence[int]], *, batch_tokens: int = 8192) -> float:
    """Return milliseconds per row: the median of three passes after a warm-up, on at most 64 rows.

    Args:
        model: on the device that is timed.
        rows: of token ids; an evenly spaced sample is timed.
        batch_tokens: padded tokens in a batch.
    """
    sample = rows[:: max(1, math.ceil(len(rows) / TIMED))]
    batches = [
        {
            name: tensor.to(model.device)
            for name, tensor in pad_rows([sample[index] for index in batch], pad_id=0).items()
        }
        for batch in token_batches(sample, batch_tokens=batch_tokens)
    ]
    was_training, passes = model.training, []
    model.eval()
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        for batch in batches:
            model(**batch).logits.sum().item()  # waits for the device
        passes.append(time.perf_counter() - start)
    model.train(was_training)
    return 1000 * statistics.median(passes[1:]) / len(sample)


@dataclass(frozen=True, kw_only=True)
class ExitPoint:
    """A point of the curve: the best combination of a layer.

    Args:
        layer: number of layers of the model.
        value: mean dev metric over the seeds.
        spread: standard deviation over the seeds.
        milliseconds: latency per text.
        combination: the combination.
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
    """Return the curve of accuracy against latency: the best combination of each layer, by layer.

    Args:
        results: best first, from `sweep_heads`.
        make: builds the model of a combination; one model is in memory at a time.
        rows: of token ids, to time the model.
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
    metric: str,
    chosen: Result,
    results: Sequence[Result],
) -> None:
    """Write the curve as `early_exit.json` and `early_exit.png` into the folder of the model.

    Args:
        folder: of the saved model.
        points: of the curve, one per layer.
        metric: name of the metric of the values.
        chosen: result of the saved combination.
        results: of all combinations, written under `tried`.
    """
    content = {
        "figure": metric,
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
    plot_exits(points, Path(folder, "early_exit.png"), metric=metric, chosen=chosen)


def plot_exits(points: Sequence[ExitPoint], path: str | Path, *, metric: str, chosen: Result) -> Path:
    """Plot the dev metric over milliseconds per text, a point per layer, with the spread over the seeds."""
    figure = new_figure(5.5, 3.6)
    axes = figure.subplots()
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
    axes.set(xlabel="milliseconds per text", ylabel=f"{metric} on dev", title="Early exit")
    return save_figure(figure, path)


def sweep_table(
    results: Sequence[Result],
    *,
    chosen: Result,
    points: Sequence[ExitPoint],
    metric: str,
    baseline: Mapping[str, Any] | None = None,
    top: int = 10,
) -> list[str]:
    """Return a table of the best combinations, and a table of the best of each layer with its latency.

    Args:
        results: best first.
        chosen: result of the saved combination.
        points: of the curve.
        metric: name of the metric of the values.
        baseline: metrics of TF-IDF on the same rows, or None.
        top: number of combinations in the table.
    """
    listed = list(results[:top])
    if chosen not in listed:
        listed.append(chosen)
    rows = [["", "layers", "pooling", "head", "loss", f"{metric} on dev", "spread"]]
    for result in listed:
        combination = result.combination
        rows.append(
            [
                "->" if result is chosen else "",
                combination.read,
                combination.pooling,
                combination.head,
                combination.loss,
                f"{result.mean:.3f}",
                f"{result.spread:.3f}" if len(result.values) > 1 else "",
            ]
        )
    exits = [["", "layers", f"{metric} on dev", "ms per text", "of the deepest"]]
    for point in points:
        exits.append(
            [
                "->" if point.layer == chosen.combination.layer else "",
                str(point.layer),
                f"{point.value:.3f}",
                f"{point.milliseconds:.2f}",
                f"{100 * point.milliseconds / points[-1].milliseconds:.0f}%",
            ]
        )
    if baseline is not None and baseline[metric]["value"] is not None:
        rows.append(["", "", "", "TF-IDF, linear", "", f"{baseline[metric]['value']:.3f}", ""])
    last = "The best of each layer (a model with that number of layers; -> marks the saved one):"
    return [f"{_tried(results)}; the best on dev:", "", *aligned(rows), "", last, "", *aligned(exits)]


def _tried(results: Sequence[Result]) -> str:
    """Return the number of heads of each kind, and how they were fitted."""
    trained = [result for result in results if result.combination.head_sizes]
    linear = len(results) - len(trained)
    counts = []
    if linear:
        counts.append(f"{linear} linear head{'s' if linear > 1 else ''}, solved once")
    if trained:
        seeds = len(trained[0].values)
        heads = f"{len(trained)} MLP{'s' if len(trained) > 1 else ''}"
        counts.append(f"{heads}, trained with {seeds} seed{'s' if seeds > 1 else ''}")
    return "; ".join(counts)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table with aligned columns, indented by two spaces.

    Example:
        >>> from qwen_task_heads.reports.early_exits import aligned
        >>> aligned([["a", "1"], ["bcd", "20"]])
        ['  a    1', '  bcd  20']
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
