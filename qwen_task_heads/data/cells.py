"""Text that holds a list, a conversation or a number -> Python values.

`to_csv` writes a list as Python shows it, `json.dumps` writes JSON, and a NumPy array has no commas between
its values: `['joy' 'love']` would be one name to Python. What is no such text stays as it is.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from typing import Any

# What pandas, R, SQL and Python write for a value that is not there.
MISSING = frozenset({
    "", "nan", "NaN", "NAN", "-nan", "-NaN", "<NA>", "NA", "N/A", "n/a", "#N/A", "#NA", "NaT", "None", "NULL",
    "Null", "null",
})  # fmt: skip
DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9]*)?(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.0+)?")
VALUES = (tokenize.STRING, tokenize.NUMBER, tokenize.NAME)
OPENING, CLOSING = ("[", "(", "{"), ("]", ")", "}")


def whole_number(text: str) -> int | None:
    """Return the whole number that a text stands for as Python or pandas writes it; None for all others.

    Example:
        >>> whole_number("11"), whole_number("11.0"), whole_number("011"), whole_number("1.5")
        (11, 11, None, None)
    """
    return int(text.split(".", 1)[0]) if WHOLE.fullmatch(text) else None


def is_decimal(text: str) -> bool:
    """Return whether a text is a number as scores are written; `01` and `2.21.1` are codes.

    Example:
        >>> is_decimal("4.64"), is_decimal(".5"), is_decimal("01"), is_decimal("nan")
        (True, True, False, False)
    """
    return bool(text.strip("+-")) and DECIMAL.fullmatch(text) is not None


def parse_number(text: str) -> float | str:
    """Return a number, or the text itself."""
    try:
        return float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        return text


def looks_like_list(text: str) -> bool:
    """Return whether a text begins and ends as a list does."""
    text = text.strip()
    return text[:1] in ("[", "(") and text[-1:] in ("]", ")")


def parse_list(text: str) -> list[Any] | None:
    """Return the list that a text holds, as JSON, Python or NumPy writes it; None if it holds none.

    Example:
        >>> parse_list('["joy", "love"]') == parse_list("['joy', 'love']") == parse_list("['joy' 'love']")
        True
        >>> parse_list("[Music] Ten songs") is None
        True
    """
    if not looks_like_list(text):
        return None
    found = parse_cell(text)
    return found if isinstance(found, list) else None


def parse_cell(text: str) -> Any:
    """Return the list or mapping that a text holds, or the text itself.

    Example:
        >>> parse_cell("[{'role': 'user', 'content': \\"It's\\"}]")
        [{'role': 'user', 'content': "It's"}]
    """
    stripped = text.strip()
    if stripped[:1] not in OPENING or stripped[-1:] not in CLOSING:
        return text
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(_with_commas(stripped))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
        return text
    return list(found) if isinstance(found, tuple) else found


def _with_commas(text: str) -> str:
    """A list as Python shows it; between two values without a comma, as NumPy shows them, one is set."""
    parts: list[str] = []
    after_value = False
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (*VALUES, tokenize.OP):
            continue
        begins = token.type in VALUES or token.string in OPENING or (token.string == "-" and after_value)
        parts.append(f", {token.string}" if begins and after_value else token.string)
        after_value = token.type in VALUES or token.string in CLOSING
    return " ".join(parts)
