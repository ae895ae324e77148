"""Plots of a run: training curves, and accuracy over the score gap of titles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qwen_task_heads.reports.plots import BLUE, GREY, ORANGE, invalid, new_figure, save_figure, shares_figure

HISTOGRAM_BINS = 30
LEGEND: dict[str, Any] = {"edgecolor": "none", "framealpha": 0.9}  # readable over a line
OUTLIERS = 0.05  # maximum share of values above the loss axis
REST = 0.25  # if the other values fill a smaller share of the axis, the axis is limited
FEW = 8  # number of values below which none is an outlier


def training_curves(
    log_history: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    accuracy_key: str = "eval_accuracy",
    accuracy_label: str = "pairs in the right order (%)",
    loss_label: str = "loss per pair",
    title: str = "Dev accuracy",
    scale: float = 100.0,
    baselines: Mapping[str, float] | None = None,
) -> Path:
    """Plot training and dev loss, and a dev metric, over optimizer steps.

    A few losses far above the others do not determine the scale: they are marked at the upper edge, with the
    largest value in the legend.

    Args:
        log_history: `trainer.state.log_history`: dicts with `step` and some of `loss`, `eval_loss` and
            `accuracy_key`.
        path: file to write; its suffix determines the format (`.png`, `.svg`, `.pdf`).
        accuracy_key: key of the dev accuracy, or of another metric.
        accuracy_label, loss_label: labels of the two axes.
        title: of the second axes.
        scale: factor from the logged value to the axis; 100 for a share in percent.
        baselines: from name to metric; drawn as horizontal lines.

    Returns:
        The path.

    Raises:
        TaskHeadsError: the history has no finite loss or metric.
    """
    series = {key: _series(log_history, key) for key in ("loss", "eval_loss", accuracy_key)}
    if not any(steps for steps, _ in series.values()):
        found = f"found {len(log_history)} log entries without finite values"
        expected = f"entries with step and loss, eval_loss or {accuracy_key}"
        fix = "log at least once: set logging_steps"
        raise invalid("log history", found, expected, fix, code="value-missing")
    has_accuracy = bool(series[accuracy_key][0])
    figure = new_figure(9.0 if has_accuracy else 5.0, 3.6)
    axes = figure.subplots(1, 2 if has_accuracy else 1, squeeze=False, sharex=True)[0]
    _draw_series(axes[0], series["loss"], BLUE, "-", "train")
    _draw_series(axes[0], series["eval_loss"], ORANGE, "--", "dev")
    axes[0].set(xlabel="optimizer step", ylabel=loss_label, title="Loss")
    _limit_outliers(axes[0], [series["loss"], series["eval_loss"]])
    for one in axes:
        one.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if axes[0].lines:
        axes[0].legend(**LEGEND)
    if has_accuracy:
        scaled = [scale * value for value in series[accuracy_key][1]]
        _draw_series(axes[1], (series[accuracy_key][0], scaled), ORANGE, "--", "dev")
        for (name, value), style in zip(
            (baselines or {}).items(), cycle((":", "-.", (0, (1, 4)))), strict=False
        ):
            axes[1].axhline(scale * value, color=GREY, linestyle=style, linewidth=1.5, label=name)
        axes[1].set(xlabel="optimizer step", ylabel=accuracy_label, title=title)
        axes[1].legend(**LEGEND)
    return save_figure(figure, path)


def gap_against_accuracy(gaps: ArrayLike, correct: ArrayLike, path: str | Path, *, bins: int = 8) -> Path:
    """Plot the share of correct pairs over the score gap, with `σ(gap)` and a histogram of the gaps.

    The bins have about the same number of pairs, so that their intervals have about the same width. Points on
    the curve indicate a calibrated P(preferred), points below it an overconfident scorer.

    Args:
        gaps: (B,) score differences of the two titles; the sign is ignored.
        correct: (B,) credit per pair, 1, .5 or 0.
        path: file to write; its suffix determines the format.
        bins: number of bins; fewer if there are too few distinct gaps.

    Returns:
        The path.

    Raises:
        TaskHeadsError: the shapes differ, there are no rows, or a value is not finite.
    """
    size, credit = np.abs(np.asarray(gaps, np.float64)), np.asarray(correct, np.float64)
    if size.ndim != 1 or size.shape != credit.shape or not len(size):
        found = f"found shapes {size.shape} and {credit.shape}"
        raise invalid("gap plot", found, "two arrays of shape (B,) with B ≥ 1", "give one credit per gap")
    if not (np.isfinite(size).all() and np.isfinite(credit).all()):
        found, expected = "found values that are not finite", "finite gaps and credits"
        raise invalid("gap plot", found, expected, "check the scores", code="number-not-finite")
    edges = np.unique(np.quantile(size, np.linspace(0, 1, bins + 1)))
    if len(edges) < 2:  # all gaps equal
        edges = np.array([edges[0] - 0.5, edges[0] + 0.5])
    slot = np.clip(np.searchsorted(edges, size, side="right") - 1, 0, len(edges) - 2)
    x = np.linspace(0, max(float(size.max()), 1e-6), 200)
    line = (x, 100 / (1 + np.exp(-x)), "P(preferred) = σ(gap)")
    figure, top, bottom = shares_figure(size, credit, bins=slot, line=line, points="pairs")
    top.axhline(50, color=GREY, linestyle=":", linewidth=1)
    top.set(ylabel="pairs in the right order (%)", title=f"Score gap against accuracy ({len(size)} pairs)")
    bottom.hist(size, bins=HISTOGRAM_BINS, color=BLUE, alpha=0.45, edgecolor="white")
    bottom.set(xlabel="score gap of the two titles (score units)", ylabel="pairs")
    return save_figure(figure, path)


def _series(log_history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return steps and values of the entries with a finite `key`."""
    logged = [
        (entry["step"], float(entry[key]))
        for entry in log_history
        if "step" in entry and entry.get(key) is not None
    ]
    # A diverged run logs NaN or inf; the rest of its curve is still drawn.
    finite = sorted((step, value) for step, value in logged if math.isfinite(value))
    return [step for step, _ in finite], [value for _, value in finite]


def _draw_series(
    axes: Any, series: tuple[list[float], list[float]], color: str, line: str, label: str
) -> None:
    steps, values = series
    if steps:
        # Markers only for short series, which may be a single point: many markers would overlap.
        marker = "o" if len(steps) <= 30 else ""
        axes.plot(steps, values, color=color, linestyle=line, marker=marker, markersize=4, label=label)


def _limit_outliers(axes: Any, drawn: Sequence[tuple[list[float], list[float]]]) -> None:
    """Limit the axis to the bulk of the values; mark those above it, with the largest in the legend."""
    points = [(step, value) for steps, values in drawn for step, value in zip(steps, values, strict=True)]
    values = np.sort([value for _, value in points])
    if len(values) < FEW:
        return
    cut = max(1, int(OUTLIERS * len(values)))
    low, top, largest = values[0], values[-1 - cut], values[-1]
    if top - low >= REST * (largest - low):
        return
    span = (top - low) or 0.1 * abs(top) or 1.0
    end = top + 0.15 * span
    axes.set_ylim(low - 0.05 * span, end)
    above = [step for step, value in points if value > end]
    label = f"above the axis: {len(above)} (up to {largest:.3g})"
    axes.plot(above, [end] * len(above), "^", color=GREY, markersize=6, clip_on=False, label=label)
