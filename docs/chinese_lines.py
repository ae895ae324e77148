"""A hook of MkDocs: join the lines of a Chinese paragraph, between which HTML would show a space."""

from __future__ import annotations

import re
from typing import Any

FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
HAN, MARK = "\u4e00-\u9fff", "\u3001-\u3003\u3008-\u3011\uff01-\uff5e"
# A line break between Chinese characters or after a full-width mark, but not before a list or a table.
BREAK = re.compile(
    rf"(?:(?<=[{MARK}])\n *(?![\s|#>*<-]|\d+\.|```)|(?<=[{HAN}])\n *(?=[{HAN}{MARK}]))", re.MULTILINE
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page without these line breaks, outside of blocks of code.

    Example:
        >>> on_page_markdown("第一行，\\n第二行。\\n\\n- 项目")
        '第一行，第二行。\\n\\n- 项目'
    """
    parts = FENCED.split(markdown)
    return "".join(part if part.startswith("```") else BREAK.sub("", part) for part in parts)
