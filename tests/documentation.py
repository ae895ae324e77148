"""Blocks of code of the README and of the pages in `docs/`, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).parents[1]
ENGLISH, CHINESE = REPO / "docs" / "en", REPO / "docs" / "zh"
GENERATED = ENGLISH / "reference"  # by docs/reference.py; not committed
PAGES = [
    REPO / "README.md",
    REPO / "CONTRIBUTING.md",
    *(path for path in sorted(ENGLISH.rglob("*.md")) if GENERATED not in path.parents),
]
BLOCK = re.compile(r"(?:^<!-- needs: (\w+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = ("gpu", "network")


@dataclass(frozen=True)
class Block:
    """A block of code of a page; `needs` is what a machine must have to run it, or "" for nothing."""

    language: str
    text: str
    needs: str

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a block of `bash` as words, without comments."""
        lines = re.split(r"(?<!\\)\n", self.text)
        split = [shlex.split(line.replace("\\\n", " "), comments=True) for line in lines]
        return [words for words in split if words]


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(language, text, needs) for needs, language, text in found]


def name_of(page: Path) -> str:
    """Return the path of a page in the repository."""
    return page.relative_to(REPO).as_posix()
