"""The plots of classifiers: written, readable for any number of labels, without a box for a sign."""

import numpy as np
import pytest

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.training import classification_plots
from qwen_task_heads.training.classification_plots import confusion_plot, reliability_plot, scatter_plot


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look into."""
    figures = []
    save = classification_plots.save_figure

    def keep(figure, path, **options):
        figures.append(figure)
        return save(figure, path, **options)

    monkeypatch.setattr(classification_plots, "save_figure", keep)
    return figures


def ticks(axes) -> list[str]:
    return [tick.get_text() for tick in axes.get_yticklabels()]


@pytest.mark.parametrize(
    ("count", "names", "numbers"),
    [(2, True, 4), pytest.param(20, True, 400, marks=pytest.mark.slow), (21, True, 0), (61, False, 0)],
)
def test_numbers_and_names_stand_where_they_can_be_read(tmp_path, drawn, count, names, numbers):
    labels = [f"label {index}" for index in range(count)]
    matrix = np.ones((count, count), int) + 8 * np.eye(count, dtype=int)
    path = confusion_plot(matrix, tmp_path / "new" / "confusion.png", labels=labels)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    axes = drawn[0].axes[0]
    assert len(axes.texts) == numbers
    assert (ticks(axes) == labels) == names
    assert axes.get_ylabel() == ("true" if names else "true by id (names: README.md)")
    if numbers:
        assert {text.get_text() for text in axes.texts} == {"1", "9"}
    width, height = drawn[0].get_size_inches()
    assert max(width, height) < 30


def test_rows_are_shares_of_the_true_label(tmp_path, drawn):
    confusion_plot([[3, 1], [0, 0]], tmp_path / "a.png", labels=["a", "b"])
    assert drawn[0].axes[0].images[0].get_array().tolist() == [[75.0, 25.0], [0.0, 0.0]]


def test_signs_that_no_font_has_make_ids_and_no_boxes(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(classification_plots, "EAST_ASIAN", ())  # as on a machine without such fonts
    confusion_plot(np.eye(2), tmp_path / "a.png", labels=["体育", "Trade"])
    axes = drawn[0].axes[0]
    assert ticks(axes) == ["0", "1"]
    assert "names: README.md" in axes.get_xlabel()


def test_a_font_of_the_machine_is_used_where_it_has_the_signs(monkeypatch):
    assert classification_plots._family_for("Größe – Ñandú, Спорт") == "DejaVu Sans"
    # STIX comes with matplotlib and has this sign, DejaVu has not
    monkeypatch.setattr(classification_plots, "EAST_ASIAN", ("No Such Font", "STIXGeneral"))
    assert classification_plots._family_for("a\u20dd") == "STIXGeneral"
    assert classification_plots._family_for("体") is None


def test_names_stay_text_and_short(tmp_path, drawn):
    labels = ["$x_1$", "a\nb", "n" * 90, "{}\\"]
    confusion_plot(np.eye(4), tmp_path / "a.png", labels=labels)
    assert ticks(drawn[0].axes[0]) == ["$x_1$", "a b", "n" * 23 + "…", "{}\\"]


def test_reliability_points_are_shares_of_their_bins(tmp_path, drawn):
    sure = np.array([0.1, 0.11, 0.11, 0.95, 0.95, 0.95, 0.95, 1.0])
    right = np.array([0, 1, 0, 1, 1, 1, 1, 0])
    reliability_plot(sure, right, tmp_path / "a.png")
    top, bottom = drawn[0].axes
    points = top.containers[0].lines[0].get_xydata()
    assert points == pytest.approx(np.array([[32 / 3, 100 / 3], [96, 80]]))
    assert sum(bar.get_height() for bar in bottom.patches) == 8


def test_scatter_holds_every_row(tmp_path, drawn):
    scatter_plot([1.0, 2.0, 2.0], [0.0, 2.0, 5.0], tmp_path / "a.png")
    assert drawn[0].axes[0].collections[0].get_offsets().tolist() == [[0, 1], [2, 2], [5, 2]]
    scatter_plot([1.0], [1.0], tmp_path / "b.png")  # one row, no width


def test_what_cannot_be_drawn_is_refused(tmp_path):
    path = tmp_path / "a.png"
    for draw, match in (
        (lambda: confusion_plot(np.eye(2), path, labels=["a"]), "shape"),
        (lambda: confusion_plot(np.zeros((1, 1)), path, labels=["a"]), "not all 0"),
        (lambda: reliability_plot([], [], path), "shapes"),
        (lambda: reliability_plot([1.5], [1.0], path), "0 to 1"),
        (lambda: reliability_plot([np.nan], [1.0], path), "0 to 1"),
        (lambda: scatter_plot([1.0], [1.0, 2.0], path), "shapes"),
        (lambda: scatter_plot([np.nan], [1.0], path), "finite"),
    ):
        with pytest.raises(TaskHeadsError, match=match):
            draw()
    assert not path.exists()
