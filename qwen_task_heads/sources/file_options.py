"""Define how a file is read: its encoding, and the column names of a table without a header.

An encoding is never guessed, because a wrong guess trains on mojibake without a message. If the bytes of a
line are not UTF-8, the error names the encoding that they look like.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

UTF_8 = "utf-8"
ASCII = '\n\t,"{}[]:\\'  # separators of lines, fields and values must be single bytes
ALONE = re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])")
HIGH = re.compile(rb"[\x80-\xff]")


@dataclass(frozen=True)
class FileOptions:
    """Options for reading files.

    Args:
        encoding: of text files, with ASCII characters as single bytes.
        columns: column names of CSV and TSV files without a header; () takes the first row as the header.

    Raises:
        TaskHeadsError: the encoding is unknown or has wide characters, or a column is blank or repeated.

    Example:
        >>> FileOptions(encoding="gbk").decode("体育".encode("gbk"), "news.txt:1")
        '体育'
    """

    encoding: str = UTF_8
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        try:
            known = codecs.lookup(self.encoding).name
            fits = ASCII.encode(known) == ASCII.encode("ascii") and known != "utf-8-sig"
        except (LookupError, UnicodeError, TypeError):
            fits = False
        if not fits:
            problem, expected = f"found {shorten(self.encoding)}", "utf-8, gb18030, gbk, big5, cp1252, …"
            fix = "name such an encoding, or save the file as UTF-8"
            problems.append(Problem("--encoding", problem, expected, fix, code="option-value"))
        if any(not name.strip() for name in self.columns) or len(set(self.columns)) < len(self.columns):
            problem, expected = f"found {shorten(','.join(self.columns))}", "names such as label,title,text"
            fix = "name each column once"
            problems.append(Problem("--columns", problem, expected, fix, code="option-value"))
        if problems:
            raise TaskHeadsError(problems)

    def decode(self, line: bytes, where: str) -> str | Problem:
        """Return a line as text, or the problem of its first byte outside the encoding."""
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError as error:
            return bad_byte(where, line, error.start, encoding=self.encoding)


PLAIN = FileOptions()


def options_of(encoding: str = UTF_8, columns: Sequence[str] = ()) -> FileOptions:
    """Return the options of a run; a single string of columns is split at its commas.

    Example:
        >>> options_of(columns=["label,title,text"]).columns
        ('label', 'title', 'text')
    """
    names = columns[0].split(",") if len(columns) == 1 else columns
    return FileOptions(encoding, tuple(name.strip() for name in names))


def bad_byte(where: str, line: bytes, position: int, *, encoding: str = UTF_8) -> Problem:
    """Return the problem of a byte outside the encoding; `position` counts from 0 in the line."""
    name = "UTF-8" if encoding == UTF_8 else encoding
    problem = f"byte 0x{line[position]:02x} at position {position + 1:,} of the line is not {name}"
    likely = likely_encoding(line) if encoding == UTF_8 else None
    fix = "save the file as UTF-8" + (f", or read it with --encoding {likely}" if likely else "")
    return Problem(where, problem, name, fix, code="file-encoding")


def likely_encoding(line: bytes) -> str | None:
    """Return the likely encoding of the bytes of a line: `gb18030`, `cp1252` or None.

    In Chinese encodings, high bytes come in pairs. In cp1252, an accented letter is a single high byte.

    Example:
        >>> likely_encoding("体育新闻".encode("gbk")), likely_encoding("Très déçu".encode("cp1252"))
        ('gb18030', 'cp1252')
    """
    alone = len(ALONE.findall(line))
    names = ("cp1252",) if 4 * alone > len(HIGH.findall(line)) else ("gb18030", "cp1252")
    for name in names:
        try:
            line.decode(name)
        except UnicodeDecodeError:
            continue
        return name
    return None
