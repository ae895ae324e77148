"""Read conversations in a row, in the published layouts, as (role, content).

| layout | column | message |
|---|---|---|
| OpenAI, trl | `messages`, or `prompt`, `chosen`, `rejected` | `{"role": "user", "content": "Hi"}` |
| ShareGPT, LLaMA-Factory | `conversations` | `{"from": "human", "value": "Hi"}` |
| HH-RLHF | `chosen`, `rejected` | one text, `\\n\\nHuman: Hi\\n\\nAssistant: Hello` |

A content may be a list of parts, `[{"type": "text", "text": "Hi"}]`. A list that `to_csv` or `json.dumps`
wrote as text is parsed.

Sources: https://huggingface.co/docs/trl/dataset_formats, https://llamafactory.readthedocs.io (data
preparation), https://huggingface.co/datasets/Anthropic/hh-rlhf.
"""

from __future__ import annotations

import re
from typing import Any

from qwen_task_heads.data.cells import parse_cell
from qwen_task_heads.data.row_reader import RowReader
from qwen_task_heads.errors import shorten

MESSAGES = 'messages such as {"role": "user", "content": "A text"}'
# Role names of ShareGPT and of the tools that write and read it.
ROLES = dict.fromkeys(("human", "prompter"), "user")
ROLES |= dict.fromkeys(("gpt", "chatgpt", "bot", "model", "bing", "bard"), "assistant")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")

Messages = list[tuple[str, str]]


def read_messages(row: RowReader, column: str, *, last: str = "user") -> Messages | None:
    """Read a column of messages; return None if it is refused.

    Args:
        row: its problems are extended.
        column: name of the column.
        last: the role in the example of an error message.
    """
    value = row.values[column]
    messages = parse_cell(value) if isinstance(value, str) else value
    messages = [messages] if isinstance(messages, dict) else messages  # LLaMA-Factory's `chosen`
    expected = MESSAGES if last == "user" else 'messages such as {"role": "assistant", "content": "A title"}'
    if not isinstance(messages, list) or not messages:
        row.refuse_value(column, messages, expected, "write a list of messages", code="value-type")
        return None
    read = [_read_message(message) for message in messages]
    if None in read:
        place = read.index(None)
        problem = f"message {place + 1} of {column!r} is {shorten(messages[place])}"
        row.refuse(problem, expected, "correct the message", code="value-type")
        return None
    return [message for message in read if message is not None]


def is_conversation(value: Any) -> bool:
    """Return whether a value is a list of messages or a message, or a text with one of them.

    Example:
        >>> is_conversation("[{'role': 'user', 'content': 'Hi'}]"), is_conversation("[1] A title")
        (True, False)
    """
    if isinstance(value, str):
        stripped = value.strip()
        if not (stripped.startswith(("[{", "{")) and stripped.endswith(("}]", "}"))):
            return False
        value = parse_cell(stripped)
    if isinstance(value, dict):
        return _read_message(value) is not None
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def split_turns(text: str) -> Messages | None:
    """Return the turns of a conversation in the layout of HH-RLHF; None for any other text.

    Example:
        >>> split_turns("\\n\\nHuman: Hi\\n\\nAssistant: Hello")
        [('user', 'Hi'), ('assistant', 'Hello')]
        >>> split_turns("Human: the board game") is None
        True
    """
    marks = list(TURN.finditer(text))
    if len(marks) < 2 or text[: marks[0].start()].strip() or marks[0][1] != "Human":
        return None
    if not any(mark[1] == "Assistant" for mark in marks):
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    names = {"Human": "user", "Assistant": "assistant"}
    return [(names[mark[1]], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]


def _read_message(message: Any) -> tuple[str, str] | None:
    if not isinstance(message, dict):
        return None
    role, content = message.get("role"), message.get("content")
    if role is None and content is None:
        role, content = message.get("from"), message.get("value")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "\n".join(texts) if texts and len(texts) == len(parts) else None
    if not isinstance(role, str) or not isinstance(content, str):
        return None
    return ROLES.get(role, role), content
