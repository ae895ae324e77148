"""The texts of a row of preferences: a prompt, the chosen title, and one or more rejected ones.

| layout | columns |
|---|---|
| plain | chosen, rejected, perhaps prompt: text |
| trl, UltraFeedback | chosen, rejected: messages, the title last; perhaps prompt, as text or messages |
| HH-RLHF | chosen, rejected: `\\n\\nHuman: ...\\n\\nAssistant: ...` |
| Alpaca, as of LLaMA-Factory | instruction, perhaps input; chosen, rejected |
| ShareGPT, as of LLaMA-Factory | conversations; chosen, rejected: one message |
| ms-swift | messages, the chosen title last; rejected_response |
| Orca DPO | question or query, perhaps system; chosen, rejected |

`rejected` may be a list of titles: one pair each. What comes before the titles is the prompt: contents joined
by line ends, without roles and chat template. A prompt column that repeats it, or a part of it, adds nothing.

Sources: https://huggingface.co/docs/trl/dataset_formats#preference, https://llamafactory.readthedocs.io
(data preparation), https://swift.readthedocs.io (custom dataset), https://huggingface.co/datasets/HuggingFaceH4/
ultrafeedback_binarized, https://huggingface.co/datasets/Intel/orca_dpo_pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen_task_heads.data.cells import parse_list
from qwen_task_heads.data.conversations import Messages, is_conversation, read_messages, split_turns
from qwen_task_heads.data.pair_columns import RowReader, collapse, is_blank, strip_title
from qwen_task_heads.data.pair_layout import ALPACA, HISTORY, Layout
from qwen_task_heads.errors import shorten


@dataclass(frozen=True)
class PairTexts:
    """The texts of a row.

    Args:
        prompt: "" without one.
        chosen: the preferred title.
        rejected: the other titles; () where the row is refused.
        spoken: the prompt was made of messages.
    """

    prompt: str = ""
    chosen: str = ""
    rejected: tuple[str, ...] = ()
    spoken: bool = False


def read_texts(row: RowReader, layout: Layout) -> PairTexts:
    """Read the texts of a row that has `layout.titles`; without `rejected` where `row.problems` says why."""
    before, spoken = read_prompt(row, layout)
    good, bad = layout.titles
    if good in HISTORY:  # of ms-swift: the chosen title is the last message
        said, other = _talk(row, good), None
        if said is None:
            return PairTexts()
    else:
        turns = {name: _turns(row.values[name]) for name in (good, bad)}
        if None in turns.values():  # a text with marks of turns beside one without is a title
            turns = dict.fromkeys(turns)
        talks = [name for name in (good, bad) if turns[name] or _holds_messages(row.values[name])]
        if len(talks) == 1 and not (talks == [bad] and _texts_of(row.values[bad])):
            found = f"only {talks[0]!r} is a list of messages"
            row.refuse(found, "both or neither", "write both in one form")
            return PairTexts()
        is_talk = len(talks) == 2
        said, other = (_talk(row, name, turns[name]) if is_talk else None for name in (good, bad))
        if is_talk and (said is None or other is None):
            return PairTexts()
    chosen = said[1] if said else row.title(good)
    rejected = [other[1]] if other else [row.one_title(bad, title) for title in _several(row.values[bad])]
    if said and other and said[0] != other[0]:
        found = f"{good!r} and {bad!r} answer different conversations"
        row.refuse(found, "the same messages before the title", "correct or remove the row")
    if said and said[0]:
        before, spoken = _once(before, said[0]), True
    equal = [title for title in rejected if chosen and title and collapse(chosen) == collapse(title)]
    if equal:
        row.refuse(f"{good!r} and {bad!r} are equal ({shorten(chosen)})", "two titles", "remove the row")
    if not chosen or not all(rejected):
        return PairTexts()
    prompt = "\n".join(before).strip()
    return PairTexts(prompt, chosen, tuple(rejected), spoken=spoken and bool(prompt))


def read_prompt(row: RowReader, layout: Layout) -> tuple[list[str], bool]:
    """The parts of the prompt beside the titles, and whether they are messages."""
    parts: list[str] = []
    spoken = False
    for column in layout.prompt:
        value = row.values.get(column, "")
        if column in HISTORY and column in layout.titles:
            continue
        if _holds_messages(value) or column in HISTORY:
            if column in row.values:
                parts += [content for _, content in read_messages(row, column, last="assistant") or []]
                spoken = True
        elif isinstance(value, str):
            parts += [value.strip()] if value.strip() else []
        elif value is not None or column not in (*ALPACA, "system"):
            row.refuse(f"{column!r} is {shorten(value)}", "text", "write a string, or leave the key out")
    return parts, spoken


def _holds_messages(value: Any) -> bool:
    return isinstance(value, list | dict) or (isinstance(value, str) and is_conversation(value))


def _turns(value: Any) -> Messages | None:
    return split_turns(value) if isinstance(value, str) else None


def _talk(row: RowReader, column: str, turns: Messages | None = None) -> tuple[list[str], str] | None:
    """(earlier contents, the title) of messages; None where they are refused."""
    if turns is None and row.values[column] == []:
        row.refuse(f"no message in {column!r}", "messages", "end with the title")
        return None
    messages = turns or read_messages(row, column, last="assistant")
    if not messages:
        return None
    role, title = messages[-1]
    if role != "assistant":
        found = f"the last message of {column!r} is from {shorten(role)}"
        row.refuse(found, "messages that end with the title, by the assistant", "end with the title")
        return None
    if is_blank(title):
        row.refuse(f"the title in {column!r} is empty", "a title with text", "fill in the title")
        return None
    return [content for _, content in messages[:-1]], strip_title(title)


def _several(value: Any) -> list[Any]:
    """The titles of a list of texts, or the one that a value is."""
    return _texts_of(value) or [value]


def _texts_of(value: Any) -> list[str]:
    """The texts of a list that holds nothing else, also of a list as text; [] for all others."""
    found = parse_list(value) if isinstance(value, str) else value
    texts = [title for title in found if isinstance(title, str)] if isinstance(found, list) else []
    return texts if texts and len(texts) == len(found or ()) else []


def _once(prompt: list[str], before: list[str]) -> list[str]:
    """Prompt and earlier messages, without what both of them hold."""
    one, other = ([part.strip() for part in parts if part.strip()] for parts in (prompt, before))
    if _within(one, other) or "\n".join(one) == "\n".join(other):
        return other
    return one if _within(other, one) else [*one, *other]


def _within(parts: list[str], whole: list[str]) -> bool:
    """Whether some parts follow each other in the whole."""
    return any(whole[place : place + len(parts)] == parts for place in range(len(whole) - len(parts) + 1))
