"""Plots of a classifier or regressor: what is taken for what, how far a probability can be trusted.

Design decisions:

- Rows of the confusion matrix are shares of the true label, so that rare labels can be read; counts are
  written into the cells of up to 20 labels. Of more than 60 labels only those in most errors are drawn, and
  a column for all others: a name at an axis must be readable.
- Names are drawn in fonts of this machine that have their characters (`fonts.py`). Without such fonts ids
  stand at the axes, and the axis names the file with the names: never a box for a character.
- The bins of the reliability diagram are as wide as those of `ece`, with intervals, over a histogram.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.metrics.ranking import wilson_interval
from qwen_task_heads.metrics.weighted import ECE_BINS
from qwen_task_heads.reports.fonts import DEFAULT, families_for
from qwen_task_heads.reports.title_plots import BLUE, GREY, new_figure, save_figure

MAX_NUMBERS = 20  # labels up to which counts fit into the cells
MAX_NAMES = 60  # labels up to which all are drawn
MOST_CONFUSED = 30  # labels that are drawn of more
MAX_NAME = 24  # characters of a name at an axis
OTHERS = "(all others)"  # the column of the labels that are not drawn


def confusion_plot(matrix: ArrayLike, path: str | Path, *, labels: Sequence[str]) -> Path:
    """Confusion matrix as an image: rows are truths and sum to one, columns are predictions.

    Of more than `MAX_NAMES` labels, the `MOST_CONFUSED` in most errors, as truth or as prediction.

    Args:
        matrix: counts (L, L) of `confusion_matrix`.
        path: file to write; its suffix gives the format.
        labels: L names, in the order of the ids; markup and line breaks in them stay text.

    Returns:
        The path, written.

    Raises:
        TaskHeadsError: no square matrix of counts, no row, or another number of names.
    """
    counts = np.asarray(matrix, np.float64)
    if counts.ndim != 2 or counts.shape != (len(labels), len(labels)) or not counts.sum() > 0:
        found = f"counts of shape {counts.shape}, {len(labels)} labels"
        raise TaskHeadsError(Problem("confusion plot", found, "(L, L), not all 0", "check the labels"))
    size = len(labels)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    names, families = _axis_names(labels)
    by_id = "" if families else " by id (names: README.md)"
    title = f"Confusion ({int(counts.sum()):,} rows)"
    columns = names
    if size > MAX_NAMES:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        kept = np.sort(np.argsort(-errors, kind="stable")[:MOST_CONFUSED])
        title += f", the {len(kept)} of {size:,} labels in most errors"
        names = [names[place] for place in kept]
        columns, size = [*names, OTHERS], len(kept)
        inside = share[np.ix_(kept, kept)]
        # Of a label without rows all shares are 0.
        share = np.column_stack([inside, (total[kept, 0] > 0) - inside.sum(axis=1)]).clip(0.0, 1.0)
    side = min(18.0, 3.2 + 0.42 * size)
    figure = new_figure(side + 1.2, side)
    axes = figure.subplots()
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100, interpolation="nearest", aspect="equal")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true label (%)")
    font = {"fontfamily": families or [DEFAULT], "parse_math": False}
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8, **font)
    axes.set_yticks(range(size), names, fontsize=8, **font)
    if size <= MAX_NUMBERS:
        for row, column in np.argwhere(counts > 0):
            color = "white" if share[row, column] > 0.5 else "black"
            text = f"{int(counts[row, column])}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    axes.set(xlabel="predicted" + by_id, ylabel="true" + by_id, title=title)
    return save_figure(figure, path, grid=False)


def reliability_plot(probabilities: ArrayLike, correct: ArrayLike, path: str | Path) -> Path:
    """Share of right answers over the probability that the model gave them, beside the diagonal.

    Points below the diagonal mean an overconfident model. Source: Guo et al. 2017, arXiv:1706.04599.

    Args:
        probabilities: (N,) of the answers: of the predicted label, or of every label of a multi-label row.
        correct: (N,) 1 where the answer is right (multi-label: where the label holds), else 0.
        path: file to write; its suffix gives the format.

    Returns:
        The path, written.

    Raises:
        TaskHeadsError: shapes differ, no rows, or probabilities out of range.
    """
    sure, right = np.asarray(probabilities, np.float64), np.asarray(correct, np.float64)
    if sure.ndim != 1 or sure.shape != right.shape or not len(sure):
        found = f"shapes {sure.shape} and {right.shape}"
        raise TaskHeadsError(Problem("reliability plot", found, "two arrays (N,), N ≥ 1", "check the split"))
    if not ((sure >= 0) & (sure <= 1)).all():
        found = "probabilities out of range"
        raise TaskHeadsError(Problem("reliability plot", found, "0 to 1", "check the model's outputs"))
    slot = np.minimum((sure * ECE_BINS).astype(int), ECE_BINS - 1)
    count = np.bincount(slot, minlength=ECE_BINS)
    kept = count > 0
    share = np.bincount(slot, weights=right, minlength=ECE_BINS)[kept] / count[kept]
    centre = np.bincount(slot, weights=sure, minlength=ECE_BINS)[kept] / count[kept]
    low, high = np.array(
        [wilson_interval(s, count=int(n)) for s, n in zip(share, count[kept], strict=True)]
    ).T
    figure = new_figure(6.4, 4.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 100], [0, 100], color=GREY, linestyle="--", label="as sure as right")
    error = 100 * np.array([share - low, high - share])
    style = {"fmt": "o", "color": BLUE, "capsize": 3, "markersize": 5}
    top.errorbar(100 * centre, 100 * share, yerr=error, label="answers of the bin, 95% interval", **style)
    top.set(ylabel="right (%)", title=f"Reliability ({len(sure):,} answers)", ylim=(-3, 103))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)  # never over a point
    bottom.bar(
        100 * (np.arange(ECE_BINS) + 0.5) / ECE_BINS, count, width=95 / ECE_BINS, color=BLUE, alpha=0.45
    )
    bottom.set(xlabel="probability given by the model (%)", ylabel="answers")
    return save_figure(figure, path)


def risk_coverage_plot(curve: Sequence[Mapping[str, float]], path: str | Path) -> Path:
    """Share of wrong answers over the share of rows that get one, the most confident first.

    Source: Geifman & El-Yaniv 2017, arXiv:1705.08500.

    Args:
        curve: of `calibration.risk_coverage`.
        path: file to write; its suffix gives the format.

    Returns:
        The path, written.

    Raises:
        TaskHeadsError: an empty curve.
    """
    if not curve:
        raise TaskHeadsError(
            Problem("risk-coverage plot", "found an empty curve", "one row or more", "check the split")
        )
    rows = sorted(curve, key=lambda row: row["coverage"])
    coverage, error, upper = (
        100 * np.array([row[name] for row in rows]) for name in ("coverage", "error", "upper")
    )
    figure = new_figure(6.4, 4.8)
    axes = figure.subplots()
    axes.plot(coverage, error, color=BLUE, marker="o", markersize=4, label="wrong answers on dev")
    axes.plot(coverage, upper, color=GREY, linestyle="--", label="upper end of the 95% interval")
    axes.set(xlabel="rows that get an answer (%)", ylabel="wrong answers (%)", title="Risk and coverage")
    axes.set(xlim=(0, 102), ylim=(0, max(5.0, 1.05 * float(upper.max()))))
    axes.legend(frameon=False)
    return save_figure(figure, path)


def scatter_plot(predicted: ArrayLike, truth: ArrayLike, path: str | Path) -> Path:
    """Predicted over true values of a regression, beside the diagonal.

    Args:
        predicted: (N,) values.
        truth: (N,) values.
        path: file to write; its suffix gives the format.

    Returns:
        The path, written.

    Raises:
        TaskHeadsError: shapes differ, no rows, or values that are not finite.
    """
    x, y = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        found = f"shapes {x.shape} and {y.shape}, or values that are not finite"
        raise TaskHeadsError(
            Problem("scatter plot", found, "two finite arrays (N,), N ≥ 1", "check the split")
        )
    figure = new_figure(5.2, 4.8)
    axes = figure.subplots()
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axes.plot(ends, ends, color=GREY, linestyle="--", label="predicted = true")
    axes.scatter(x, y, s=9, color=BLUE, alpha=max(0.08, min(0.6, 150 / len(x))), linewidths=0)
    axes.set(xlabel="true value", ylabel="predicted value", title=f"Predicted against true ({len(x):,} rows)")
    axes.legend(frameon=False)
    return save_figure(figure, path)


def _axis_names(labels: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return names and the font families that have them; ids and None if no font has them."""
    names = [" ".join(label.split()) for label in labels]
    names = [name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…" for name in names]
    families = families_for(names)
    return (names, families) if families else ([str(place) for place in range(len(labels))], None)
