"""Plots of a title run: drawn values, layout, invalid values, and no import of pyplot."""

import math
import sys

import numpy as np
import pytest

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.reports import title_plots
from qwen_task_heads.reports.title_plots import gap_against_accuracy, training_curves

HISTORY = [
    *({"step": step, "loss": 0.7 - 0.002 * step, "learning_rate": 1e-4} for step in range(5, 100, 5)),
    *({"step": step, "eval_loss": 0.68, "eval_accuracy": 0.5 + 0.001 * step} for step in (25, 50, 75, 100)),
    {"step": 100, "train_runtime": 3.0},
]


@pytest.fixture
def drawn(monkeypatch):
    """Return the list of saved figures."""
    figures = []
    save = title_plots.save_figure
    monkeypatch.setattr(
        title_plots, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path)
    )
    return figures


def size_of_png(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def overlaps(figure) -> list[tuple[str, str]]:
    """Return the pairs of texts (titles, labels, ticks, legends) whose boxes overlap in the figure."""
    figure.canvas.draw()  # saving used another resolution
    renderer = figure.canvas.get_renderer()
    texts = []
    for axes in figure.axes:
        inside = [
            *(tick for tick in axes.get_xticklabels() if axes.xaxis.get_tick_params()["labelbottom"]),
            *axes.get_yticklabels(),
        ]
        ticks = [t for t in inside if _is_drawn(t, axes)]
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *ticks):
            if text.get_text():
                texts.append((text.get_text(), text.get_window_extent(renderer)))
    texts += [("legend", legend.get_window_extent(renderer)) for legend in figure.legends]
    found = []
    for i, (name, box) in enumerate(texts):
        found += [(name, other) for other, there in texts[i + 1 :] if box.overlaps(there)]
    return found


def _is_drawn(tick, axes) -> bool:
    """Return whether a tick is within the limits of its axis."""
    x, y = tick.get_position()
    if tick in axes.get_xticklabels():
        return axes.get_xlim()[0] <= x <= axes.get_xlim()[1]
    return axes.get_ylim()[0] <= y <= axes.get_ylim()[1]


def test_training_curves_have_the_logged_values(tmp_path, drawn):
    path = training_curves(HISTORY, tmp_path / "new" / "training.png", baselines={"longer title": 0.54})
    assert size_of_png(path) == (1350, 540)
    loss, accuracy = drawn[0].axes
    train, dev = loss.get_lines()
    assert train.get_xdata().tolist() == list(range(5, 100, 5))
    assert train.get_ydata()[0] == pytest.approx(0.69)
    assert dev.get_xdata().tolist() == [25, 50, 75, 100]
    assert accuracy.get_lines()[0].get_ydata().tolist() == pytest.approx([52.5, 55, 57.5, 60])
    assert accuracy.get_lines()[1].get_ydata() == [54.0, 54.0]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["dev", "longer title"]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in drawn[0].axes)
    assert not overlaps(drawn[0])


def test_training_curves_without_evaluation_and_with_a_diverged_step(tmp_path, drawn):
    history = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": "0.6"}]
    training_curves(history, tmp_path / "a.png")
    assert len(drawn[0].axes) == 1
    assert drawn[0].axes[0].get_lines()[0].get_xdata().tolist() == [1, 3]
    training_curves([{"step": 1, "eval_ours": 0.6}], tmp_path / "b.svg", accuracy_key="eval_ours")
    assert (tmp_path / "b.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    "losses",
    [
        [10.8, *(0.7 - 0.002 * n for n in range(40))],
        [*(0.7 - 0.002 * n for n in range(30)), 55.0, 0.64, 0.63],
        [0.5] * 12 + [9.0],
        [0.0] * 12 + [9.0],
    ],
)
def test_one_outlier_does_not_set_the_scale_of_the_loss(tmp_path, drawn, losses):
    history = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    training_curves(history, tmp_path / "a.png")
    axes = drawn[0].axes[0]
    low, high = axes.get_ylim()
    rest = sorted(losses)[:-1]
    assert low <= rest[0] <= rest[-1] <= high  # all other values are visible
    assert high < max(losses)
    spread = rest[-1] - rest[0]
    assert not spread or spread > 0.7 * (high - low)
    label = axes.get_legend().get_texts()[-1].get_text()
    assert label == f"above the axis: 1 (up to {max(losses):.3g})"  # the legend states the outlier
    mark = axes.get_lines()[-1]
    assert (mark.get_xdata().tolist(), mark.get_ydata().tolist()) == ([1 + losses.index(max(losses))], [high])


@pytest.mark.parametrize("losses", [[8, 4, 2, 1, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7], [9.0, 0.5, 0.5], [0.5] * 20])
def test_a_decreasing_loss_is_drawn_completely(tmp_path, drawn, losses):
    training_curves([{"step": step, "loss": loss} for step, loss in enumerate(losses)], tmp_path / "a.png")
    axes = drawn[0].axes[0]
    assert axes.get_ylim()[1] >= max(line.get_ydata().max() for line in axes.get_lines())
    assert "above" not in str(axes.get_legend().get_texts())


@pytest.mark.parametrize("steps", [[1], [1, 2], [1, 2, 3], [2, 4, 6, 8], list(range(1, 200, 7))])
def test_steps_are_whole_numbers(tmp_path, drawn, steps):
    history = [{"step": step, "loss": 0.5, "eval_accuracy": 0.5} for step in steps]
    training_curves(history, tmp_path / "a.png")
    drawn[0].canvas.draw()
    for axes in drawn[0].axes:
        shown = [tick for tick in axes.get_xticklabels() if _is_drawn(tick, axes)]
        assert shown
        assert all(float(tick.get_text().replace("\u2212", "-")).is_integer() for tick in shown)


@pytest.mark.parametrize("history", [[], [{"step": 1}], [{"step": 1, "loss": math.nan}], [{"loss": 0.7}]])
def test_a_history_without_values_is_refused(history, tmp_path):
    with pytest.raises(TaskHeadsError, match="logging_steps") as caught:
        training_curves(history, tmp_path / "a.png")
    assert caught.value.problems[0].code == "value-missing"
    assert not (tmp_path / "a.png").exists()


def test_gap_plot_bins_contain_every_pair(tmp_path, drawn):
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 1.5, 900)
    correct = (rng.random(900) < 1 / (1 + np.exp(-np.abs(gaps)))).astype(float)
    path = gap_against_accuracy(gaps, correct, tmp_path / "gap.png")
    assert size_of_png(path) == (960, 720)
    top, bottom = drawn[0].axes
    counts = [bar.get_height() for bar in bottom.patches]
    assert sum(counts) == 900
    assert len(top.get_legend_handles_labels()[1]) == 2
    points = top.containers[0].lines[0].get_xydata()
    shares = [100 * correct[order].mean() for order in np.array_split(np.argsort(np.abs(gaps)), 8)]
    assert points[:, 1] == pytest.approx(shares, abs=1)
    reference = top.get_lines()[0]
    assert reference.get_ydata()[0] == pytest.approx(50)
    assert not overlaps(drawn[0])


@pytest.mark.parametrize("gaps", [[0.0], [0.0] * 5, [1.0, 1.0, 2.0], [3e4, 1e-9]])
def test_gap_plot_of_few_or_equal_gaps(gaps, tmp_path, drawn):
    gap_against_accuracy(gaps, [0.5] * len(gaps), tmp_path / "gap.png", bins=10)
    assert sum(bar.get_height() for bar in drawn[0].axes[1].patches) == len(gaps)


def test_gap_plot_refuses_invalid_values(tmp_path):
    for gaps, correct, code in (
        ([], [], "argument-type"),
        ([1.0], [1.0, 0.0], "argument-type"),
        ([math.nan], [1.0], "number-not-finite"),
        ([1.0], [math.inf], "number-not-finite"),
    ):
        with pytest.raises(TaskHeadsError) as caught:
            gap_against_accuracy(gaps, correct, tmp_path / "gap.png")
        [problem] = caught.value.problems
        assert (problem.where, problem.code) == ("gap plot", code)


def test_pyplot_is_not_imported(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    training_curves(HISTORY, tmp_path / "a.png")
    assert ("matplotlib.pyplot" in sys.modules) == before
