"""The texts of a row of preferences: a prompt, the chosen title, and one or more rejected ones.

| layout | columns |
|---|---|
| plain | chosen, rejected, optionally prompt: text |
| trl, UltraFeedback | chosen, rejected: messages, the title last; optionally prompt, as text or messages |
| HH-RLHF | chosen, rejected: `\\n\\nHuman: ...\\n\\nAssistant: ...` |
| Alpaca, as in LLaMA-Factory | instruction, optionally input; chosen, rejected |
| ShareGPT, as in LLaMA-Factory | conversations; chosen, rejected: one message |
| ms-swift | messages, the chosen title last; rejected_response |
| Orca DPO | question or query, optionally system; chosen, rejected |

`rejected` may be a list of titles; each makes one pair. The messages before the titles are the prompt: their
contents joined by newlines, without roles and chat template. A prompt column that repeats them is read once.

Sources: https://huggingface.co/docs/trl/dataset_formats#preference, https://llamafactory.readthedocs.io
(data preparation), https://swift.readthedocs.io (custom dataset), https://huggingface.co/datasets/HuggingFaceH4/
ultrafeedback_binarized, https://huggingface.co/datasets/Intel/orca_dpo_pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen_task_heads.data.cells import parse_list
from qwen_task_heads.data.conversations import Messages, is_conversation, read_messages, split_turns
from qwen_task_heads.data.pair_layout import PairLayout
from qwen_task_heads.data.row_reader import RowReader, blank_defect, code_of, collapse
from qwen_task_heads.data.schema import CONVERSATIONS, NULLABLE
from qwen_task_heads.errors import shorten
from qwen_task_heads.hubcode.encoding_task_heads import CLOSING, OPENING, strip_title


@dataclass(frozen=True)
class PairTexts:
    """The texts of a row.

    Args:
        prompt: "" without a prompt.
        chosen: the preferred title.
        rejected: the other titles; () if the row is refused.
        from_messages: whether the prompt was made of messages.
    """

    prompt: str = ""
    chosen: str = ""
    rejected: tuple[str, ...] = ()
    from_messages: bool = False


def read_title(row: RowReader, column: str, value: Any) -> str:
    """Return a title of a column without tags; "" with a problem if it has no visible text."""
    if not isinstance(value, str):
        row.refuse_value(column, value, "text", "write the title as a string", code="value-type")
        return ""
    if defect := title_defect(value):
        fix = "fill in the title or remove the row"
        row.refuse(f"{column!r} is {defect}", "a title with text", fix, code="text-empty")
        return ""
    return strip_title(value)


def title_defect(text: str) -> str:
    """Return the defect of a title without visible text besides its tags, "" for other titles.

    Example:
        >>> title_defect("<title> </title>"), title_defect("Ten ways")
        ('without any visible text', '')
    """
    visible = text.lower().replace(OPENING, "").replace(CLOSING, "") if "<" in text else text
    return blank_defect(text, visible=visible)


def read_texts(row: RowReader, layout: PairLayout) -> PairTexts:
    """Read the texts of a row that has `layout.titles`; without `rejected` if `row.problems` has any."""
    prompt_parts, from_messages = read_prompt(row, layout)
    good, bad = layout.titles
    if good in CONVERSATIONS:  # ms-swift: the chosen title is the last message
        chosen_talk, rejected_talk = _conversation(row, good), None
        if chosen_talk is None:
            return PairTexts()
    else:
        values = {name: row.values[name] for name in (good, bad)}
        turns = {
            name: split_turns(value) if isinstance(value, str) else None for name, value in values.items()
        }
        if None in turns.values():  # a text with marks of turns is a title if the other text has none
            turns = dict.fromkeys(turns)
        talks = [name for name in (good, bad) if turns[name] or _has_messages(row.values[name])]
        if len(talks) == 1 and not (talks == [bad] and _texts_of(row.values[bad])):
            problem = f"only {talks[0]!r} is a list of messages"
            expected = "messages in both columns or in neither"
            row.refuse(problem, expected, "write both in one form", code="value-conflict")
            return PairTexts()
        are_talks = len(talks) == 2
        chosen_talk, rejected_talk = (
            _conversation(row, name, turns[name]) if are_talks else None for name in (good, bad)
        )
        if are_talks and (chosen_talk is None or rejected_talk is None):
            return PairTexts()
    chosen = chosen_talk[1] if chosen_talk else read_title(row, good, row.values[good])
    if rejected_talk:
        rejected = [rejected_talk[1]]
    else:
        titles = _texts_of(row.values[bad]) or [row.values[bad]]
        rejected = [read_title(row, bad, title) for title in titles]
    if chosen_talk and rejected_talk and chosen_talk[0] != rejected_talk[0]:
        problem = f"{good!r} and {bad!r} answer different conversations"
        expected = "the same messages before the title"
        row.refuse(problem, expected, "correct or remove the row", code="value-conflict")
    if chosen_talk and chosen_talk[0]:
        prompt_parts, from_messages = _merge(prompt_parts, chosen_talk[0]), True
    if any(chosen and title and collapse(chosen) == collapse(title) for title in rejected):
        problem = f"{good!r} and {bad!r} are equal ({shorten(chosen)})"
        row.refuse(problem, "two different titles", "remove the row", code="value-conflict")
    if not chosen or not all(rejected):
        return PairTexts()
    prompt = "\n".join(prompt_parts).strip()
    return PairTexts(prompt, chosen, tuple(rejected), from_messages=from_messages and bool(prompt))


def read_prompt(row: RowReader, layout: PairLayout) -> tuple[list[str], bool]:
    """Return the parts of the prompt outside the columns of titles, and whether they are messages."""
    parts: list[str] = []
    from_messages = False
    for column in layout.prompt:
        value = row.values.get(column, "")
        if column in CONVERSATIONS and column in layout.titles:
            continue
        if _has_messages(value) or column in CONVERSATIONS:
            if column in row.values:
                parts += [content for _, content in read_messages(row, column, last="assistant") or []]
                from_messages = True
        elif isinstance(value, str):
            parts += [value.strip()] if value.strip() else []
        elif value is not None or column not in NULLABLE:
            fix = "write a string, or leave the key out"
            row.refuse_value(column, value, "text", fix, code=code_of(value))
    return parts, from_messages


def _has_messages(value: Any) -> bool:
    return isinstance(value, list | dict) or (isinstance(value, str) and is_conversation(value))


def _conversation(row: RowReader, column: str, turns: Messages | None = None) -> tuple[list[str], str] | None:
    """Return the contents of the earlier messages, and the title; None if they are refused."""
    if turns is None and row.values[column] == []:
        problem, expected = f"{column!r} has no message", "messages that end with the title"
        row.refuse(problem, expected, "end with the title", code="value-missing")
        return None
    messages = turns or read_messages(row, column, last="assistant")
    if not messages:
        return None
    role, title = messages[-1]
    if role != "assistant":
        problem = f"the last message of {column!r} is from {shorten(role)}"
        expected = "messages that end with the title, by the assistant"
        row.refuse(problem, expected, "end with the title", code="value-conflict")
        return None
    if title_defect(title):
        problem = f"the title in {column!r} is empty"
        row.refuse(problem, "a title with text", "fill in the title", code="text-empty")
        return None
    return [content for _, content in messages[:-1]], strip_title(title)


def _texts_of(value: Any) -> list[str]:
    """Return the texts of a list of texts, also of a list written as text; [] for all other values."""
    items = parse_list(value) if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        return []
    return items


def _merge(prompt: list[str], messages: list[str]) -> list[str]:
    """Join the prompt and the earlier messages; if one contains the other, return the larger one alone."""
    one, other = ([part.strip() for part in parts if part.strip()] for parts in (prompt, messages))
    if _contains(other, one) or "\n".join(one) == "\n".join(other):
        return other
    return one if _contains(one, other) else [*one, *other]


def _contains(whole: list[str], parts: list[str]) -> bool:
    """Return whether `parts` is a contiguous slice of `whole`."""
    return any(whole[start : start + len(parts)] == parts for start in range(len(whole) - len(parts) + 1))
