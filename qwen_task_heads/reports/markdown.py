"""Escape free text for Markdown, and format metrics to a fixed number of digits.

Names, labels and lines of reports may contain any characters. On a card each stays one line of text:

- Markdown, HTML, table cells, math and addresses are escaped.
- Control characters and bidirectional controls are removed, because they can change how a line reads.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

MAX_TEXT = 1000  # characters of one piece of free text
MAX_INDENT = 16  # columns of a line in a code block
# An underscore inside a word is not markup, nor is an ampersand outside an entity.
_MARKUP = re.compile(r"([\\`*{}\[\]|#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_ENTITY = re.compile(r"&(?=#?\w+;)")
# Prefixes that turn a line into a list item or a heading
_BLOCK = re.compile(r"^([-+=]|\d+(?=[.)](?:\s|$)))")
SPELLED = {
    "f1": "F1",
    "map": "mAP",
    "mse": "MSE",
    "mae": "MAE",
    "r2": "R²",
    "ece": "ECE",
    "brier": "Brier score",
    "spearman": "Spearman",
    "pearson": "Pearson",
}
# Embeddings, overrides and isolates of the bidirectional algorithm, its marks, and the byte order mark
_BIDIRECTIONAL = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
# Web and mail addresses, which renderers turn into links
_ADDRESS = re.compile(r"((?:[\w.+-]*://|www\.|[\w.+-]+@)[\w./?=&%+:@~-]*)", re.IGNORECASE)
_URL = re.compile(r"https?://[a-z0-9][a-z0-9./?=&%#+:@~,;_-]*", re.IGNORECASE | re.ASCII)


def one_line(text: object) -> str:
    """Return text as one line without control characters, truncated to 1,000 characters.

    Example:
        >>> from qwen_task_heads.reports.markdown import one_line
        >>> one_line("a\\x00 \\u202e\\n b")
        'a b'
    """
    line = " ".join(_BIDIRECTIONAL.sub("", str(text)).split())
    line = "".join(
        "\ufffd" if unicodedata.category(character) == "Cs" else character
        for character in line[: MAX_TEXT + 1]
        if unicodedata.category(character) != "Cc"
    )
    line = " ".join(line.split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


def escape(text: object) -> str:
    """Escape free text to one line of Markdown that renders as the text itself.

    Example:
        >>> from qwen_task_heads.reports.markdown import escape
        >>> escape("a | b <script>")
        'a \\\\| b &lt;script&gt;'
    """
    parts = _ADDRESS.split(one_line(text))  # every second part is an address, which contains no markup
    return "".join(
        f"`{part}`" if index % 2 else _escape_markup(part, first=not index)
        for index, part in enumerate(parts)
    )


def _escape_markup(text: str, *, first: bool) -> str:
    text = _MARKUP.sub(r"\\\1", _ENTITY.sub("&amp;", text))
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    if first:
        text = _BLOCK.sub(lambda m: m[1] + "\\" if m[1].isdigit() else "\\" + m[1], text)
    return text


def code(text: object) -> str:
    """Return free text as a code span, for names and ids outside of tables.

    Example:
        >>> from qwen_task_heads.reports.markdown import code
        >>> code("Qwen/Qwen3-8B"), code("a`b")
        ('`Qwen/Qwen3-8B`', '``a`b``')
    """
    line = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{fence}{space}{line}{space}{fence}" if line else ""


def link(text: str) -> str:
    """Return a web address as a link, and any other text escaped."""
    line = one_line(text)
    return f"<{line}>" if _URL.fullmatch(line) else escape(line)


def fenced(text: str, *, language: str = "") -> str:
    """Return a code block; lines that start like a rule or a heading are indented by two columns."""
    lines = [
        " " * min(len(line) - len(line.lstrip()), MAX_INDENT) + one_line(line)
        for line in text.strip().splitlines()
    ]
    body = "\n".join(f"  {line}" if line.startswith(("---", "#")) else line.rstrip() for line in lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
    return f"{fence}{language}\n{body}\n{fence}"


def format_value(value: float | None, *, digits: int = 3) -> str:
    """Format a number for cards and printed summaries; None is a dash."""
    # Adding 0.0 removes the sign of a negative zero.
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def metric_name(name: str) -> str:
    """Return the display name of a metric: `macro_f1` is "macro F1", that of a question follows its name.

    Example:
        >>> from qwen_task_heads.reports.markdown import metric_name
        >>> metric_name("macro_f1"), metric_name("map"), metric_name("is_it_spam.macro_f1")
        ('macro F1', 'mAP', 'is_it_spam: macro F1')
    """
    question, _, name = name.rpartition(".")
    if question:
        return f"{question}: {metric_name(name)}"
    return " ".join(SPELLED.get(word, word) for word in name.split("_"))


def format_interval(entry: Mapping[str, Any] | None) -> str:
    """Format a metric of `metrics.json` for a table cell, with its interval if it has one.

    Example:
        >>> from qwen_task_heads.reports.markdown import format_interval
        >>> format_interval({"value": 0.61234, "low": 0.55, "high": 0.6781})
        '0.612 (0.550 to 0.678)'
    """
    if entry is None:
        return "–"
    value = format_value(entry["value"])
    if entry["low"] is None:
        return value
    return f"{value} ({format_value(entry['low'])} to {format_value(entry['high'])})"
