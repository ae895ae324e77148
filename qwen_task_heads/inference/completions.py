"""Extract the title from a completion: a text, or the messages of a conversation.

Thinking, tags and control tokens are removed, so that only the title is scored.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.hubcode.encoding_task_heads import as_list

THINK, THOUGHT = (re.compile(tag, re.IGNORECASE) for tag in ("<think>", "</think>"))
OPENING, CLOSING = (re.compile(tag, re.IGNORECASE) for tag in ("<title>", "</title>"))
KEYCAP = re.compile("[0-9#*]\ufe0f?\u20e3")  # an emoji that starts with a digit
UNSEEN = frozenset("\u115f\u1160\u3164\uffa0")  # Unicode letters without a glyph
WORDS = ("Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No")  # Unicode categories of letters and numbers
CONTROL = re.compile(r"<\|(?:im_start|im_end|endoftext)\|>")

Message = Mapping[str, Any]
Completion = str | Sequence[Message]  # plain text, or the messages of a conversation


def title_of(completion: Completion) -> str:
    """Return the title of a completion in one line, or "" if it has none; in linear time.

    Args:
        completion: text, or messages, of which those of the assistant are read. Text up to `</think>`, and
            after an unclosed `<think>`, is thinking. The title is the first `<title>…</title>`, or the whole
            answer without these tags. A title has a letter or a number of any script.

    Example:
        >>> from qwen_task_heads.inference.completions import title_of
        >>> title_of("<think>Short.</think> Here: <title>Ten ways to rest</title>")
        'Ten ways to rest'
        >>> title_of("<think>It should be"), title_of("<title> </title>")
        ('', '')
    """
    text = text_of(completion, role="assistant")
    text = THOUGHT.split(text)[-1]  # the opening tag may be in the prompt
    text = CONTROL.sub(" ", THINK.split(text, maxsplit=1)[0])
    text = OPENING.split(text, maxsplit=1)[-1]
    text = OPENING.sub(" ", CLOSING.split(text, maxsplit=1)[0])
    return " ".join(text.split()) if has_words(text) else ""


def has_words(text: str) -> bool:
    """Return whether a text has a letter or a number of any script.

    Example:
        >>> from qwen_task_heads.inference.completions import has_words
        >>> [has_words(text) for text in ("休む", "7", "Ⅳ", "!?", "🎉🎉", "—")]
        [True, True, True, False, False, False]
    """
    text = KEYCAP.sub("", text) if "\u20e3" in text else text
    return any(char not in UNSEEN and unicodedata.category(char) in WORDS for char in text)


def text_of(content: Completion, *, role: str) -> str:
    """Return plain text unchanged; for messages, the text parts of those of a role."""
    if isinstance(content, str):
        return content
    parts: list[str] = []
    for message in content:
        if message.get("role") == role and message.get("content"):
            inner = message["content"]
            parts += (
                [inner]
                if isinstance(inner, str)
                else [p["text"] for p in inner if isinstance(p.get("text"), str)]
            )
    return "\n".join(parts)


def read_completions(where: str, completions: Any) -> list[Any]:
    """Return the texts or conversations of a list-like argument, and validate them."""
    rows = as_list(completions)
    if rows is None:
        found = "one text" if isinstance(completions, str) else type(completions).__name__
        raise error_at(
            where,
            f"found {found}",
            "a list of texts, or of conversations (lists of messages)",
            "put it in a list",
            code="argument-type",
        )
    rows = [row if (messages := as_list(row)) is None else messages for row in rows]
    problems = [
        Problem(
            f"{where}[{place}]",
            f"found {shorten(one)}",
            "a text, or a conversation (a list of messages)",
            "pass the completion as the model generated it",
            code="value-type",
        )
        for place, one in enumerate(rows)
        if not isinstance(one, str)
        and not (isinstance(one, list) and all(isinstance(message, Mapping) for message in one))
    ]
    if problems:
        raise TaskHeadsError(problems)
    return rows
