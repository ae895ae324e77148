"""Plots of a classifier or regressor: confusion matrix, reliability, risk and coverage, scatter plot.

Design decisions:

- Rows of the confusion matrix are shares of the true label, so that rare labels are visible. Counts are
  written into the cells of up to 20 labels. Of more than 60 labels only those in most errors are drawn, with
  a column for all others, so that the names remain readable.
- Names are drawn in fonts of this machine that have their characters (`fonts.py`). Without such fonts the
  axes have ids and state the file with the names, instead of a box for each character.
- The bins of the reliability diagram are those of `ece`, with intervals, over a histogram.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from qwen_task_heads.metrics.weighted import ECE_BINS
from qwen_task_heads.reports.fonts import DEFAULT, families_for
from qwen_task_heads.reports.plots import BLUE, GREY, invalid, new_figure, save_figure, shares_figure

MAX_NUMBERS = 20  # labels up to which the cells have counts
MAX_NAMES = 60  # labels up to which all are drawn
MOST_CONFUSED = 30  # labels that are drawn if there are more
MAX_NAME = 24  # characters of a name on an axis
OTHERS = "(all others)"  # the column of the labels that are not drawn


def confusion_plot(matrix: ArrayLike, path: str | Path, *, labels: Sequence[str]) -> Path:
    """Plot a confusion matrix: rows are true labels and sum to one, columns are predictions.

    Of more than `MAX_NAMES` labels, the `MOST_CONFUSED` in most errors are drawn, as true or predicted label.

    Args:
        matrix: counts (L, L) of `confusion_matrix`.
        path: file to write; its suffix determines the format.
        labels: L names, in the order of the ids; markup and line breaks are drawn as text.

    Returns:
        The path.

    Raises:
        TaskHeadsError: the matrix is not square or has no counts, or the number of names differs.
    """
    counts = np.asarray(matrix, np.float64)
    if counts.ndim != 2 or counts.shape != (len(labels), len(labels)) or not counts.sum() > 0:
        found = f"found counts of shape {counts.shape} for {len(labels)} labels"
        expected = "shape (L, L) for L labels, not all 0"
        raise invalid("confusion plot", found, expected, "check the labels")
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
        # All shares of a label without rows are 0.
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
    """Plot the share of correct predictions over their probability, with the diagonal.

    Points below the diagonal indicate an overconfident model. Source: Guo et al. 2017, arXiv:1706.04599.

    Args:
        probabilities: (N,) of the predicted label, or of every label of a multi-label row.
        correct: (N,) 1 if the prediction is correct (multi-label: if the label applies), else 0.
        path: file to write; its suffix determines the format.

    Returns:
        The path.

    Raises:
        TaskHeadsError: the shapes differ, there are no rows, or a probability is out of range.
    """
    confidence, right = np.asarray(probabilities, np.float64), np.asarray(correct, np.float64)
    if confidence.ndim != 1 or confidence.shape != right.shape or not len(confidence):
        found = f"found shapes {confidence.shape} and {right.shape}"
        expected = "two arrays of shape (N,) with N ≥ 1"
        raise invalid("reliability plot", found, expected, "check the split")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        found, fix = "found probabilities out of range", "check the outputs of the model"
        raise invalid("reliability plot", found, "0 to 1", fix, code="value-range")
    slot = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    line = ([0, 100], [0, 100], "perfect calibration")
    figure, top, bottom = shares_figure(
        confidence, right, bins=slot, line=line, points="predictions", scale=100
    )
    top.set(ylabel="correct (%)", title=f"Reliability ({len(confidence):,} predictions)", ylim=(-3, 103))
    centres, count = (np.arange(ECE_BINS) + 0.5) / ECE_BINS, np.bincount(slot, minlength=ECE_BINS)
    bottom.bar(100 * centres, count, width=95 / ECE_BINS, color=BLUE, alpha=0.45)
    bottom.set(xlabel="probability of the model (%)", ylabel="predictions")
    return save_figure(figure, path)


def risk_coverage_plot(curve: Sequence[Mapping[str, float]], path: str | Path) -> Path:
    """Plot the error rate over the coverage: the share of rows with a prediction, most confident first.

    Source: Geifman & El-Yaniv 2017, arXiv:1705.08500.

    Args:
        curve: of `calibration.risk_coverage`.
        path: file to write; its suffix determines the format.

    Returns:
        The path.

    Raises:
        TaskHeadsError: the curve is empty.
    """
    if not curve:
        raise invalid("risk-coverage plot", "found an empty curve", "one row or more", "check the split")
    rows = sorted(curve, key=lambda row: row["coverage"])
    coverage, error, upper = (
        100 * np.array([row[name] for row in rows]) for name in ("coverage", "error", "upper")
    )
    figure = new_figure(6.4, 4.8)
    axes = figure.subplots()
    axes.plot(coverage, error, color=BLUE, marker="o", markersize=4, label="error rate on dev")
    axes.plot(coverage, upper, color=GREY, linestyle="--", label="upper bound of the 95% interval")
    axes.set(xlabel="coverage (%)", ylabel="error rate (%)", title="Risk and coverage")
    axes.set(xlim=(0, 102), ylim=(0, max(5.0, 1.05 * float(upper.max()))))
    axes.legend(frameon=False)
    return save_figure(figure, path)


def scatter_plot(predicted: ArrayLike, truth: ArrayLike, path: str | Path) -> Path:
    """Plot predicted over true values of a regression, with the diagonal.

    Args:
        predicted: (N,) values.
        truth: (N,) values.
        path: file to write; its suffix determines the format.

    Returns:
        The path.

    Raises:
        TaskHeadsError: the shapes differ, there are no rows, or a value is not finite.
    """
    x, y = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        found = f"found shapes {x.shape} and {y.shape}, or values that are not finite"
        expected = "two finite arrays of shape (N,) with N ≥ 1"
        raise invalid("scatter plot", found, expected, "check the split")
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
    return (names, families) if families else ([str(label_id) for label_id in range(len(labels))], None)
