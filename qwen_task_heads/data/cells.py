"""Parse cells of text that contain a list, a conversation or a number.

`to_csv` writes the repr of a list, `json.dumps` writes JSON, and the repr of a NumPy array has no commas
between its values: Python would join `['joy' 'love']` into one name. Other texts are returned unchanged.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from typing import Any

# How pandas, R, SQL and Python write a missing value.
MISSING = frozenset(
    (
        *("", "nan", "NaN", "NAN", "-nan", "-NaN", "<NA>", "NA", "N/A", "n/a", "#N/A", "#NA", "NaT"),
        *("None", "NULL", "Null", "null"),
    )
)
DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9]*)?(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.0+)?")
VALUES = (tokenize.STRING, tokenize.NUMBER, tokenize.NAME)
OPENING, CLOSING = ("[", "(", "{"), ("]", ")", "}")


def whole_number(text: str) -> int | None:
    """Return the whole number in a text as Python or pandas writes it; None for all other texts.

    Example:
        >>> whole_number("11"), whole_number("11.0"), whole_number("011"), whole_number("1.5")
        (11, 11, None, None)
    """
    return int(text.split(".", 1)[0]) if WHOLE.fullmatch(text) else None


def is_decimal(text: str) -> bool:
    """Return whether a text is a number in the notation of scores; `01` and `2.21.1` are codes.

    Example:
        >>> is_decimal("4.64"), is_decimal(".5"), is_decimal("01"), is_decimal("nan")
        (True, True, False, False)
    """
    return bool(text.strip("+-")) and DECIMAL.fullmatch(text) is not None


def parse_number(text: str) -> float | str:
    """Return the number in a text, or the text itself."""
    try:
        return float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        return text


def looks_like_list(text: str) -> bool:
    """Return whether a text begins and ends with brackets or parentheses."""
    text = text.strip()
    return text[:1] in ("[", "(") and text[-1:] in ("]", ")")


def parse_list(text: str) -> list[Any] | None:
    """Return the list in a text, as JSON, Python or NumPy writes it; None for other texts.

    Example:
        >>> parse_list('["joy", "love"]') == parse_list("['joy', 'love']") == parse_list("['joy' 'love']")
        True
        >>> parse_list("[Music] Ten songs") is None
        True
    """
    if not looks_like_list(text):
        return None
    value = parse_cell(text)
    return value if isinstance(value, list) else None


def parse_cell(text: str) -> Any:
    """Return the list or mapping in a text, or the text itself.

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
        value = ast.literal_eval(_with_commas(stripped))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
        return text
    return list(value) if isinstance(value, tuple) else value


def _with_commas(text: str) -> str:
    """Return the repr of a list with a comma between two values, which that of a NumPy array lacks."""
    tokens: list[str] = []
    after_value = False
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (*VALUES, tokenize.OP):
            continue
        begins = token.type in VALUES or token.string in OPENING or (token.string == "-" and after_value)
        tokens.append(f", {token.string}" if begins and after_value else token.string)
        after_value = token.type in VALUES or token.string in CLOSING
    return " ".join(tokens)
