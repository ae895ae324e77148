"""Fonts of this machine that have the characters of a text.

matplotlib's own font has no Chinese, Japanese or Korean characters: it draws boxes, with a warning for each.
matplotlib takes a list of families and looks for each character in their order, so several fonts together may
cover a set of names. matplotlib keeps its list of fonts from an earlier run; if nothing in it fits, the
folders of the system are read again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

DEFAULT = "DejaVu Sans"  # comes with matplotlib
# Families with Chinese, Japanese and Korean characters on Linux, macOS and Windows, tried before all others.
CJK = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN",
    "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB",
    "Heiti TC", "STHeiti", "Arial Unicode MS", "Microsoft YaHei", "SimHei", "SimSun", "Malgun Gothic",
    "Yu Gothic",
)  # fmt: skip
NO_TEXT = "lastresort"  # families that draw a box for every character


def families_for(texts: Iterable[str]) -> list[str] | None:
    """Return font families that together have every character of the texts; None if there are none.

    Args:
        texts: what is to be drawn; line breaks count as characters.

    Example:
        >>> from qwen_task_heads.reports.fonts import families_for
        >>> families_for(["Größe", "Спорт"])
        ['DejaVu Sans']
    """
    missing = {ord(sign) for text in texts for sign in text}
    known = installed()
    if found := _cover(missing, known):
        return found
    new = {family: path for family, path in _added().items() if family not in known}
    return _cover(missing, {**known, **new}) if new else None


def readable(text: str) -> str:
    r"""Return a text with each character that the default font does not have as its code.

    Example:
        >>> from qwen_task_heads.reports.fonts import readable
        >>> readable("head=runs/\u65b0")
        'head=runs/U+65B0'
    """
    known = _characters(installed()[DEFAULT])
    return "".join(sign if ord(sign) in known else f"U+{ord(sign):04X}" for sign in text)


def installed() -> dict[str, str]:
    """Return the font families that matplotlib knows, and a file of each."""
    from matplotlib import font_manager

    return {font.name: font.fname for font in font_manager.fontManager.ttflist}


def _added() -> dict[str, str]:
    """Add the fonts of this machine that matplotlib does not know yet."""
    from matplotlib import font_manager

    known = {str(Path(path).resolve()) for path in installed().values()}
    for path in font_manager.findSystemFonts():
        if str(Path(path).resolve()) not in known:
            try:
                font_manager.fontManager.addfont(path)
            except (OSError, RuntimeError, ValueError):  # a file that is no font, or of a kind it cannot open
                continue
    return installed()


def _cover(missing: set[int], known: dict[str, str]) -> list[str] | None:
    """The default family and the fewest others, by preference, that have all characters."""
    first = [family for family in (DEFAULT, *CJK) if family in known]
    rest = sorted(family for family in known if family not in first and NO_TEXT not in _plain(family))
    left, used = set(missing), []
    for family in [*first, *rest]:
        gained = left & _characters(known[family])
        if gained or family == DEFAULT:
            used.append(family)
            left -= gained
        if not left:
            return used
    return None


@cache
def _characters(path: str) -> frozenset[int]:
    """Characters that a font can draw in any size; none of a bitmap font, or of a file that does not open."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


def _plain(family: str) -> str:
    return family.lower().replace(" ", "").replace(".", "")
