"""Selection of fonts that have the characters of a text, with and without such fonts installed."""

import shutil
import warnings
from pathlib import Path

import matplotlib
import pytest
from matplotlib import font_manager

from qwen_task_heads.reports import fonts
from qwen_task_heads.reports.comparison_plots import Point, engines_plot
from qwen_task_heads.reports.fonts import families_for, readable


@pytest.fixture
def own(monkeypatch):
    """Make the fonts of matplotlib the only installed ones, and return them."""
    place = Path(matplotlib.get_data_path())
    listed = font_manager.fontManager.ttflist
    known = {font.name: font.fname for font in listed if Path(font.fname).is_relative_to(place)}
    monkeypatch.setattr(fonts, "installed", lambda: dict(known))
    return known


def test_the_default_font_suffices_if_it_has_all_characters(own):
    assert families_for(["Größe – Ñandú, Спорт"]) == ["DejaVu Sans"]
    assert families_for([]) == ["DejaVu Sans"]


def test_several_fonts_may_cover_the_characters_together(own):
    # STIX has the enclosing circle and DejaVu the Armenian letter; neither has both
    found = families_for(["\u0561", "a\u20dd"])
    assert found[0] == "DejaVu Sans"
    assert len(found) == 2
    assert families_for(["体"]) is None


def test_a_font_installed_since_the_last_plot_is_found(own, monkeypatch, tmp_path):
    """matplotlib caches its list of fonts."""
    family = families_for(["a\u20dd"])[-1]
    path = own[family]
    others = {name: file for name, file in own.items() if 0x20DD not in fonts._characters(file)}
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    shutil.copyfile(path, tmp_path / "new.ttf")
    manager = font_manager.FontManager.__new__(font_manager.FontManager)
    manager.__dict__ = {**font_manager.fontManager.__dict__, "ttflist": []}
    monkeypatch.setattr(font_manager, "fontManager", manager)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in tmp_path.iterdir()])
    monkeypatch.setattr(fonts, "installed", lambda: others | {f.name: f.fname for f in manager.ttflist})
    assert families_for(["a\u20dd"]) == ["DejaVu Sans", family]


def test_a_missing_file_has_no_characters(own, monkeypatch, tmp_path):
    monkeypatch.setattr(fonts, "installed", lambda: {**own, "SimHei": str(tmp_path / "gone.ttf")})
    assert families_for(["体"]) is None


def test_names_of_engines_are_drawn_without_boxes(own, tmp_path):
    points = [Point("head=runs/新闻", 0.9, 0.8, 0.95, 0.01), Point("sft=b", 0.8, None, None, 0.1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engines_plot(points, tmp_path / "a.png", label="accuracy", title="Engines")
    assert readable("head=runs/新") == "head=runs/U+65B0"
