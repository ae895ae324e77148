"""Find fonts of this machine that have the characters of a text.

The default font of matplotlib has no Chinese, Japanese or Korean characters: it draws boxes and warns.
matplotlib accepts a list of families and searches them in order, so several fonts together may cover a set of
names. matplotlib caches its list of fonts; if no listed font fits, the folders of the system are read again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

DEFAULT = "DejaVu Sans"  # comes with matplotlib
# Families with Chinese, Japanese and Korean characters on Linux, macOS and Windows, tried before others
CJK = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti TC",
    "STHeiti",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "SimHei",
    "SimSun",
    "Malgun Gothic",
    "Yu Gothic",
)
LAST_RESORT = "lastresort"  # part of the name of families that draw a box for every character


def families_for(texts: Iterable[str]) -> list[str] | None:
    """Return font families that together have every character of the texts; None if there are none.

    Args:
        texts: texts to draw; line breaks count as characters.

    Example:
        >>> from qwen_task_heads.reports.fonts import families_for
        >>> families_for(["Größe", "Спорт"])
        ['DejaVu Sans']
    """
    characters = {ord(character) for text in texts for character in text}
    known = installed()
    if families := _cover(characters, known):
        return families
    new = {family: path for family, path in _added().items() if family not in known}
    return _cover(characters, {**known, **new}) if new else None


def readable(text: str) -> str:
    r"""Replace each character that the default font lacks by its code point.

    Example:
        >>> from qwen_task_heads.reports.fonts import readable
        >>> readable("head=runs/\u65b0")
        'head=runs/U+65B0'
    """
    known = _characters(installed()[DEFAULT])
    return "".join(character if ord(character) in known else f"U+{ord(character):04X}" for character in text)


def installed() -> dict[str, str]:
    """Return the font families that matplotlib knows, with a file of each."""
    from matplotlib import font_manager

    return {font.name: font.fname for font in font_manager.fontManager.ttflist}


def _added() -> dict[str, str]:
    """Register the fonts of this machine that matplotlib does not know; return all families."""
    from matplotlib import font_manager

    known = {str(Path(path).resolve()) for path in installed().values()}
    for path in font_manager.findSystemFonts():
        if str(Path(path).resolve()) not in known:
            try:
                font_manager.fontManager.addfont(path)
            except (OSError, RuntimeError, ValueError):  # not a font, or an unsupported format
                continue
    return installed()


def _cover(characters: set[int], known: dict[str, str]) -> list[str] | None:
    """Return the default family and others, by preference, that together have all characters."""
    preferred = [family for family in (DEFAULT, *CJK) if family in known]
    others = sorted(
        family for family in known if family not in preferred and LAST_RESORT not in _normalized(family)
    )
    missing, used = set(characters), []
    for family in [*preferred, *others]:
        covered = missing & _characters(known[family])
        if covered or family == DEFAULT:
            used.append(family)
            missing -= covered
        if not missing:
            return used
    return None


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the characters of a scalable font; none of a bitmap font or an unreadable file."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


def _normalized(family: str) -> str:
    return family.lower().replace(" ", "").replace(".", "")
