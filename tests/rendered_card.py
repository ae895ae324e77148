"""Render a card to HTML by a CommonMark parser with tables, and parse the result."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from markdown_it import MarkdownIt


class Rendered(HTMLParser):
    """The page of a card, without its front matter.

    Attributes:
        tags: every start tag with its attributes, in order, without code spans.
        titles: heading to its tables: rows of cells.
        texts: text outside of code.
        heading: text of the first heading.
    """

    def __init__(self, card: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.titles: dict[str, list[list[list[str]]]] = {}
        self.texts: list[str] = []
        self.heading = ""
        self._open: list[str] = []
        self._title = ""
        body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)[2]
        self.feed(MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(body))

    def handle_starttag(self, tag, attrs):
        if tag in ("img", "br", "hr"):
            self.tags.append((tag, tuple(attrs)))
            return
        self._open.append(tag)
        if tag != "code":
            self.tags.append((tag, tuple(attrs)))
        if tag == "h2":
            self._title = ""
        if tag == "table":
            self.titles.setdefault(self._title, []).append([])
        if tag == "tr":
            self.titles[self._title][-1].append([])
        if tag in ("td", "th"):
            self.titles[self._title][-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "h1" in self._open:
            self.heading += data
        if "h2" in self._open:
            self._title += data
        if "td" in self._open or "th" in self._open:
            self.titles[self._title][-1][-1][-1] += data
        if "code" not in self._open:
            self.texts.append(data)
