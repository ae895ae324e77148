"""Parts that all plots share: palette, figures, and shares of correct predictions by bin.

- `Figure` objects are drawn by the Agg canvas, without pyplot, its global state and its windows.
- Colours are of the Okabe-Ito palette, each with its own marker or line style, for readers with colour vision
  deficiency.
- matplotlib is imported when a plot is drawn, so that the import of this module is fast.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.metrics.ranking import Floats, wilson_interval

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"  # Okabe & Ito 2008


def invalid(
    plot: str, problem: str, expected: str, fix: str, *, code: str = "argument-type"
) -> TaskHeadsError:
    """Return the error of values that cannot be drawn."""
    return TaskHeadsError(Problem(plot, problem, expected, fix, code=code))


def shares_figure(
    values: Floats,
    credit: Floats,
    *,
    bins: NDArray[np.int64],
    line: tuple[Any, Any, str],
    points: str,
    scale: float = 1.0,
) -> tuple[Any, Any, Any]:
    """Plot the share of correct predictions over the mean value of each bin, with 95% intervals.

    Args:
        values: (N,).
        credit: (N,) 1, .5 or 0.
        bins: (N,) bin of each value.
        line: x, y and label of the line of a calibrated model.
        points: label of the points.
        scale: factor from the values to the axis.

    Returns:
        The figure, the axes of the shares, and the axes below, which are empty.
    """
    count = np.bincount(bins)
    kept = count > 0
    share = np.bincount(bins, weights=credit)[kept] / count[kept]
    centre = np.bincount(bins, weights=values)[kept] / count[kept]
    ends = [wilson_interval(s, count=int(n)) for s, n in zip(share, count[kept], strict=True)]
    low, high = np.array(ends).T
    figure = new_figure(6.4, 4.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    x, y, label = line
    top.plot(x, y, color=GREY, linestyle="--", label=label)
    error = 100 * np.array([share - low, high - share])
    style = {"fmt": "o", "color": BLUE, "capsize": 3, "markersize": 5}
    top.errorbar(scale * centre, 100 * share, yerr=error, label=f"{points} of the bin, 95% interval", **style)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)  # outside, so that it covers no point
    return figure, top, bottom


def new_figure(width: float, height: float) -> Any:
    """Return an empty Agg figure; width and height are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: str | Path, *, grid: bool = True) -> Path:
    """Style the axes and write the file at 150 dots per inch; `grid=False` for images."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if grid:
            axes.grid(axis="y", linewidth=0.5, alpha=0.4)
            axes.set_axisbelow(True)
        axes.title.set_fontsize(11)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # matplotlib logs a warning for fonts that have a single weight other than normal.
    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    fonts.setLevel(logging.ERROR)
    try:
        figure.savefig(path, dpi=150)
    finally:
        fonts.setLevel(level)
    return path
