"""Plot engines: a metric with its interval over the time per text.

Baselines are grey. The legend lists the names by descending metric, so that overlapping points can be
distinguished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_task_heads.reports.fonts import DEFAULT, families_for, readable
from qwen_task_heads.reports.plots import BLUE, GREY, ORANGE, invalid, new_figure, save_figure

MARKERS = "osD^vP*X"
MAX_NAME = 48


@dataclass(frozen=True)
class Point:
    """One engine or baseline: metric as a share, its interval (None without one), and seconds per text."""

    name: str
    value: float
    low: float | None
    high: float | None
    seconds: float
    is_baseline: bool = False
    is_chosen: bool = False


def engines_plot(points: Sequence[Point], path: str | Path, *, label: str, title: str) -> Path:
    """Draw a share in percent with its interval over milliseconds per text, on a logarithmic axis.

    Args:
        points: at least one.
        path: file to write; its suffix determines the format.
        label: of the axis of the metric, such as `accuracy`.
        title: of the plot.

    Returns:
        The path.

    Raises:
        TaskHeadsError: `points` is empty.

    Example:
        >>> import pathlib, tempfile
        >>> from qwen_task_heads.reports.comparison_plots import Point, engines_plot
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "engines.png")
        ...     engines_plot([Point("a", 0.9, 0.8, 0.95, 0.01)], path, label="accuracy", title="").exists()
        True
    """
    if not points:
        raise invalid("engines plot", "found no point", "at least one", "measure an engine")
    families = families_for([*(point.name for point in points), title, label])
    figure = new_figure(8.4, 4.6)
    axes = figure.subplots()
    for index, point in enumerate(sorted(points, key=lambda point: -point.value)):
        low = point.value if point.low is None else point.low
        high = point.value if point.high is None else point.high
        name = point.name if families else readable(point.name)
        name = name if len(name) <= MAX_NAME else "…" + name[1 - MAX_NAME :]
        axes.errorbar(
            1000 * point.seconds,
            100 * point.value,
            # Rounding can place the value of a sample outside its interval.
            yerr=[[max(0.0, 100 * (point.value - low))], [max(0.0, 100 * (high - point.value))]],
            fmt=MARKERS[index % len(MARKERS)],
            color=GREY if point.is_baseline else ORANGE if point.is_chosen else BLUE,
            capsize=3,
            markersize=7,
            # Escape math markup; the space prevents a leading underscore, which hides a label in the legend.
            label=(f" {name}" + " (advised)" * point.is_chosen).replace("$", r"\$"),
        )
    axes.set_xscale("log")
    axes.set(xlabel="time of one text (ms, batches of one)", ylabel=f"{label} (%)", title=title)
    figure.legend(loc="outside right upper", frameon=False, prop={"family": families or [DEFAULT], "size": 8})
    return save_figure(figure, path)
