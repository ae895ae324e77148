"""Plots of classifiers: readable for any number of labels, without boxes for missing characters."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.reports import fonts, text_plots
from qwen_task_heads.reports.text_plots import (
    confusion_plot,
    reliability_plot,
    risk_coverage_plot,
    scatter_plot,
)


@pytest.fixture
def drawn(monkeypatch):
    """Return the list of saved figures."""
    figures = []
    save = text_plots.save_figure

    def keep(figure, path, **options):
        figures.append(figure)
        return save(figure, path, **options)

    monkeypatch.setattr(text_plots, "save_figure", keep)
    return figures


def own_fonts() -> dict[str, str]:
    """Return the fonts of matplotlib, as on a machine without other fonts."""
    place = Path(matplotlib.get_data_path())
    listed = font_manager.fontManager.ttflist
    return {font.name: font.fname for font in listed if Path(font.fname).is_relative_to(place)}


def ticks(axes) -> list[str]:
    return [tick.get_text() for tick in axes.get_yticklabels()]


@pytest.mark.parametrize(
    ("count", "names", "numbers"),
    [(2, True, 4), pytest.param(20, True, 400, marks=pytest.mark.slow), (21, True, 0)],
)
def test_numbers_and_names_are_drawn_if_they_can_be_read(tmp_path, drawn, count, names, numbers):
    labels = [f"label {index}" for index in range(count)]
    matrix = np.ones((count, count), int) + 8 * np.eye(count, dtype=int)
    path = confusion_plot(matrix, tmp_path / "new" / "confusion.png", labels=labels)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    axes = drawn[0].axes[0]
    assert len(axes.texts) == numbers
    assert (ticks(axes) == labels) == names
    assert axes.get_ylabel() == "true"
    if numbers:
        assert {text.get_text() for text in axes.texts} == {"1", "9"}
    width, height = drawn[0].get_size_inches()
    assert max(width, height) < 30


def test_rows_are_shares_of_the_true_label(tmp_path, drawn):
    confusion_plot([[3, 1], [0, 0]], tmp_path / "a.png", labels=["a", "b"])
    assert drawn[0].axes[0].images[0].get_array().tolist() == [[75.0, 25.0], [0.0, 0.0]]


def families(figure) -> list[str]:
    return figure.axes[0].get_yticklabels()[0].get_fontfamily()


@pytest.mark.parametrize("labels", [["体育", "Trade"], ["スポーツ", "경제 😀"], ["体育" * 20, "財經"]])
def test_no_box_is_drawn_for_a_character(tmp_path, drawn, monkeypatch, labels):
    """Test with the fonts of this machine and with those of matplotlib only; a missing glyph warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion_plot(np.eye(2), tmp_path / "a.png", labels=labels)
        monkeypatch.setattr(fonts, "installed", own_fonts)
        confusion_plot(np.eye(2), tmp_path / "b.png", labels=labels)
    here, without = drawn
    assert ticks(without.axes[0]) == ["0", "1"]
    assert "names: README.md" in without.axes[0].get_xlabel()
    assert "names: README.md" in without.axes[0].get_ylabel()
    if families(here) == ["DejaVu Sans"]:
        assert ticks(here.axes[0]) == ["0", "1"]
    else:
        assert ticks(here.axes[0])[0][:2] == labels[0][:2]


def test_chinese_names_are_drawn_if_a_font_has_them(tmp_path, drawn, caplog):
    if fonts.families_for(["体育"]) is None:
        pytest.skip("no installed font has Chinese characters")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion_plot(np.eye(2), tmp_path / "a.png", labels=["体育", "Größe"])
    assert not caplog.records  # for example on a missing font weight
    assert ticks(drawn[0].axes[0]) == ["体育", "Größe"]
    assert drawn[0].axes[0].get_xlabel() == "predicted"
    assert len(families(drawn[0])) > 1


@pytest.mark.parametrize("count", [61, 77, 300])
def test_of_many_labels_the_most_confused_are_drawn(tmp_path, drawn, count):
    matrix = 50 * np.eye(count, dtype=int)
    wrong = [(5, 40), (40, 5), (count - 1, 7), *((3 * n, 3 * n + 1) for n in range(12))]
    for row, column in wrong:
        matrix[row, column] += 10
    matrix[5, 20:60] += 1  # each of them in one error
    confusion_plot(matrix, tmp_path / "a.png", labels=[f"label {n}" for n in range(count)])
    axes = drawn[0].axes[0]
    kept = [int(name.split()[1]) for name in ticks(axes)]
    assert len(kept) == 30
    assert kept == sorted(kept)
    assert {place for pair in wrong for place in pair} <= {*kept}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [*ticks(axes), "(all others)"]
    assert f"the 30 of {count} labels in most errors" in axes.get_title()
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (30, 31)
    assert shown.sum(axis=1) == pytest.approx(np.full(30, 100.0))  # every row includes all predictions
    row = kept.index(5)
    assert shown[row, kept.index(40)] == pytest.approx(100 * 11 / 100)
    inside = [place for place in kept if 20 <= place < 60]
    assert shown[row, -1] == pytest.approx(40 - len(inside))


def test_names_are_drawn_as_text_and_truncated(tmp_path, drawn):
    labels = ["$x_1$", "a\nb", "n" * 90, "{}\\"]
    confusion_plot(np.eye(4), tmp_path / "a.png", labels=labels)
    assert ticks(drawn[0].axes[0]) == ["$x_1$", "a b", "n" * 23 + "…", "{}\\"]


def test_reliability_points_are_shares_of_their_bins(tmp_path, drawn):
    confidence = np.array([0.1, 0.11, 0.11, 0.95, 0.95, 0.95, 0.95, 1.0])
    correct = np.array([0, 1, 0, 1, 1, 1, 1, 0])
    reliability_plot(confidence, correct, tmp_path / "a.png")
    top, bottom = drawn[0].axes
    points = top.containers[0].lines[0].get_xydata()
    assert points == pytest.approx(np.array([[32 / 3, 100 / 3], [96, 80]]))
    assert sum(bar.get_height() for bar in bottom.patches) == 8


def test_scatter_plot_has_every_row(tmp_path, drawn):
    scatter_plot([1.0, 2.0, 2.0], [0.0, 2.0, 5.0], tmp_path / "a.png")
    assert drawn[0].axes[0].collections[0].get_offsets().tolist() == [[0, 1], [2, 2], [5, 2]]
    scatter_plot([1.0], [1.0], tmp_path / "b.png")  # one row, no width


def test_invalid_values_are_refused(tmp_path):
    path = tmp_path / "a.png"
    for draw, where, code in (
        (lambda: confusion_plot(np.eye(2), path, labels=["a"]), "confusion plot", "argument-type"),
        (lambda: confusion_plot(np.zeros((1, 1)), path, labels=["a"]), "confusion plot", "argument-type"),
        (lambda: reliability_plot([], [], path), "reliability plot", "argument-type"),
        (lambda: reliability_plot([1.5], [1.0], path), "reliability plot", "value-range"),
        (lambda: reliability_plot([np.nan], [1.0], path), "reliability plot", "value-range"),
        (lambda: risk_coverage_plot([], path), "risk-coverage plot", "argument-type"),
        (lambda: scatter_plot([1.0], [1.0, 2.0], path), "scatter plot", "argument-type"),
        (lambda: scatter_plot([np.nan], [1.0], path), "scatter plot", "argument-type"),
    ):
        with pytest.raises(TaskHeadsError) as caught:
            draw()
        [problem] = caught.value.problems
        assert (problem.where, problem.code) == (where, code)
    assert not path.exists()
