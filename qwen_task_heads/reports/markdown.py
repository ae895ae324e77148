"""Free text and figures as a card shows them: text as itself, figures to fixed digits.

A name, a label, a line of a report may hold anything; on a card it must stay one line of text. Markdown,
HTML, tables, math and addresses are defused; control characters and those that turn the direction of
writing are taken out, for they can make a line read as something that it does not say.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

MAX_TEXT = 1000  # characters of one piece of free text
MAX_INDENT = 16  # columns of a line in a code block
# An underscore inside a word is no markup, and an ampersand none outside an entity.
_MARKUP = re.compile(r"([\\`*{}\[\]|#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_ENTITY = re.compile(r"&(?=#?\w+;)")
# what makes a list or a heading of a line's beginning
_BLOCK = re.compile(r"^([-+=]|\d+(?=[.)](?:\s|$)))")
SPELLED = {
    "f1": "F1", "map": "mAP", "mse": "MSE", "mae": "MAE", "r2": "R²", "ece": "ECE", "brier": "Brier score",
    "spearman": "Spearman", "pearson": "Pearson",
}  # fmt: skip
# Embeddings, overrides and isolates of the bidirectional algorithm, its marks, and the byte order mark
_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
# What renderers turn into links without being asked: addresses of the web and of mail
_ADDRESS = re.compile(r"((?:[\w.+-]*://|www\.|[\w.+-]+@)[\w./?=&%+:@~-]*)", re.IGNORECASE)
_URL = re.compile(r"https?://[a-z0-9][a-z0-9./?=&%#+:@~,;_-]*", re.IGNORECASE | re.ASCII)


def one_line(text: object) -> str:
    """Text in one line that a file and a reader can take: no control characters, at most 1,000 long.

    Example:
        >>> from qwen_task_heads.reports.markdown import one_line
        >>> one_line("a\\x00 \\u202e\\n b")
        'a b'
    """
    line = " ".join(_TURNING.sub("", str(text)).split())
    line = "".join(
        "\ufffd" if unicodedata.category(character) == "Cs" else character
        for character in line[: MAX_TEXT + 1]
        if unicodedata.category(character) != "Cc"
    )
    line = " ".join(line.split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


def plain(text: object) -> str:
    """Free text that shows as itself in Markdown, in one line: no markup, no HTML, no table break, no link.

    Example:
        >>> from qwen_task_heads.reports.cards import plain
        >>> plain("a | b <script>")
        'a \\\\| b &lt;script&gt;'
    """
    parts = _ADDRESS.split(one_line(text))  # every second one is an address; it holds no markup
    return "".join(
        f"`{part}`" if place % 2 else _escape(part, first=not place) for place, part in enumerate(parts)
    )


def _escape(text: str, *, first: bool) -> str:
    text = _MARKUP.sub(r"\\\1", _ENTITY.sub("&amp;", text))
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    if first:
        text = _BLOCK.sub(lambda m: m[1] + "\\" if m[1].isdigit() else "\\" + m[1], text)
    return text


def code(text: object) -> str:
    """A code span of free text, for names and ids outside of tables.

    Example:
        >>> from qwen_task_heads.reports.cards import code
        >>> code("Qwen/Qwen3-8B"), code("a`b")
        ('`Qwen/Qwen3-8B`', '``a`b``')
    """
    line = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{fence}{space}{line}{space}{fence}" if line else ""


def link(text: str) -> str:
    """A web address as a link; anything else as plain text."""
    line = one_line(text)
    return f"<{line}>" if _URL.fullmatch(line) else plain(line)


def fenced(text: str, *, language: str = "") -> str:
    """A code block of several lines; one that looks like a rule or a heading stands two columns in."""
    lines = [
        " " * min(len(line) - len(line.lstrip()), MAX_INDENT) + one_line(line)
        for line in text.strip().splitlines()
    ]
    body = "\n".join(f"  {line}" if line.startswith(("---", "#")) else line.rstrip() for line in lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
    return f"{fence}{language}\n{body}\n{fence}"


def figure(value: float | None, *, digits: int = 3) -> str:
    """A number as the card and the screen show it; a dash where it is not defined."""
    # adding 0.0 takes the sign off a zero
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def figure_name(name: str) -> str:
    """A figure as people write it: `macro_f1` is "macro F1".

    Example:
        >>> from qwen_task_heads.reports.cards import figure_name
        >>> figure_name("macro_f1"), figure_name("map")
        ('macro F1', 'mAP')
    """
    return " ".join(SPELLED.get(word, word) for word in name.split("_"))


def interval(entry: Mapping[str, Any] | None) -> str:
    """A figure of `metrics.json` in a table cell, with its interval where it has one.

    Example:
        >>> from qwen_task_heads.reports.cards import interval
        >>> interval({"value": 0.61234, "low": 0.55, "high": 0.6781})
        '0.612 (0.550 to 0.678)'
    """
    if entry is None:
        return "–"
    between = "" if entry["low"] is None else f" ({figure(entry['low'])} to {figure(entry['high'])})"
    return figure(entry["value"]) + between
