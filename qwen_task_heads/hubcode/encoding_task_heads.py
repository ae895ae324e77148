"""Encode texts as token ids and truncate long texts. This file is copied into every published model.

Training, scoring and the pipelines encode all texts with this module. The template (the ids before a text,
between two texts and after them) is compiled into the saved tokenizer, so `tokenizer(text)` gives the same
ids. The template is never cut. Of a title and its prompt, the prompt is cut first. Other texts are cut by
their truncation: `head` or `tail` (one end is kept), `head_tail` (both ends; Sun et al. 2019,
https://arxiv.org/abs/1905.05583, found it best for documents), or `windows` (the whole text in windows).
A classifier truncates ids in `forward`, because stock callers pass whole rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from .errors_task_heads import TaskHeadError, refuse, refuse_pairs

TEMPLATE_KEY = "task_template"  # in tokenizer_config.json: {"before": ids, "between": ids, "after": ids}
PARTS = ("before", "between", "after")
OPENING, CLOSING = "<title>", "</title>"


@dataclass(frozen=True)
class Encoded:
    """Token ids per text, and the numbers of texts that lost tokens to the limit."""

    input_ids: list[list[int]]
    cut_prompts: int
    cut_titles: int


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids per text, the number of texts over the limit, and the number of tokens lost."""

    input_ids: list[list[int]]
    cut: int
    lost: int


@runtime_checkable
class _Arrow(Protocol):
    """Arrow arrays."""

    def to_pylist(self) -> Any: ...


@runtime_checkable
class _Series(Protocol):
    """Series of polars, and of pandas."""

    def to_list(self) -> Any: ...


@runtime_checkable
class _Array(Protocol):
    """Arrays of NumPy and torch, and extension arrays of pandas."""

    def tolist(self) -> Any: ...


@runtime_checkable
class _Scalar(Protocol):
    """Scalars of Arrow."""

    def as_py(self) -> Any: ...


@runtime_checkable
class Table(Protocol):
    """Tables of pandas, polars and Arrow."""

    columns: Any


def as_list(values: Any) -> list[Any] | None:
    """Return the values of a list-like object as Python objects; None for any other object.

    Lists, tuples, generators, NumPy arrays, pandas and polars Series, Arrow arrays and their scalars are read
    by their methods, so none of these libraries is imported. A text, bytes, a mapping, a set (which has no
    order) and a table are not list-like.

    Example:
        >>> from qwen_task_heads.hubcode.encoding_task_heads import as_list
        >>> as_list(text for text in ("a", "b")), as_list("a")
        (['a', 'b'], None)
    """
    if isinstance(values, (str, bytes, bytearray, Mapping, set, frozenset, Table)):
        return None
    found = values
    if isinstance(values, _Arrow):
        found = values.to_pylist()
    elif isinstance(values, _Series):
        found = values.to_list()
    elif isinstance(values, _Array):
        found = values.tolist()
    if isinstance(found, (str, bytes)):  # from an array without dimensions
        return None
    try:
        rest = iter(found)
    except TypeError:
        return None
    return [_as_python(value) for value in rest]


def _as_python(value: Any) -> Any:
    """Return a plain string for a subclass of `str` such as NumPy's, and the value of an Arrow scalar."""
    if type(value) is str:
        return value
    value = value.as_py() if isinstance(value, _Scalar) else value
    return str.__str__(value) if isinstance(value, str) else value


def strip_title(text: str) -> str:
    """Remove outer white space and `<title>` tags, in linear time.

    Example:
        >>> from qwen_task_heads.hubcode.encoding_task_heads import strip_title
        >>> strip_title(" <title>Ten ways to rest</title> ")
        'Ten ways to rest'
    """
    start, end = 0, len(text)
    while start < end:
        if text[start].isspace():
            start += 1
        elif text[start : start + len(OPENING)].lower() == OPENING:
            start += len(OPENING)
        else:
            break
    while start < end:
        if text[end - 1].isspace():
            end -= 1
        elif text[max(start, end - len(CLOSING)) : end].lower() == CLOSING:
            end -= len(CLOSING)
        else:
            break
    return text[start:end]


def encode(
    tokenizer: Any,
    titles: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    max_length: int | None = None,
) -> Encoded:
    """Encode titles, each with its prompt if it has one, by the template in the tokenizer.

    Args:
        tokenizer: a fast tokenizer, with or without a compiled template.
        titles: n texts, without `<title>` tags (`strip_title`). Control tokens in them stay plain text.
        prompts: n texts, "" for none; or None.
        max_length: longest row in tokens, template included; None for the tokenizer's own limit.

    Raises:
        ValueError: a limit that leaves no token for a title.
    """
    template = tokenizer.init_kwargs.get(TEMPLATE_KEY) or {part: [] for part in PARTS}
    before, between, after = (list(template[part]) for part in PARTS)
    limit = max_length or tokenizer.model_max_length
    fixed = len(before) + len(after)
    if limit < fixed + len(between) + 1:
        raise refuse(
            "max_length",
            limit,
            f"at least {fixed + len(between) + 1}",
            "raise it: the template leaves no token for a title",
            code="option-range",
        )
    title_ids = _plain_ids(tokenizer, titles)
    prompt_ids = _plain_ids(tokenizer, prompts) if prompts is not None else [[]] * len(titles)
    rows, cut_prompts, cut_titles = [], 0, 0
    for title, prompt, has_prompt in zip(title_ids, prompt_ids, prompts or [""] * len(titles), strict=True):
        joint = between if has_prompt else []
        room = limit - fixed - len(joint)
        kept = title[:room]
        context = prompt[: room - len(kept)]
        cut_titles += len(kept) < len(title)
        cut_prompts += len(context) < len(prompt)
        rows.append(before + context + joint + kept + after)
    return Encoded(rows, cut_prompts, cut_titles)


def encode_texts(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    text_pairs: Sequence[str] | None = None,
    max_length: int | None,
    truncation: str = "head",
) -> EncodedTexts:
    """Encode texts, or pairs, as `tokenizer(text, text_b, truncation=True, max_length=...)` would.

    Args:
        tokenizer: a fast tokenizer, with or without a compiled template.
        texts: n texts. Control tokens in them stay plain text.
        text_pairs: n second texts, "" for none; or None. The longer text of a pair is cut first, as
            in `longest_first` of `tokenizers`.
        max_length: longest row in tokens, template included; None for no limit.
        truncation: `head` or `tail` (of a tokenizer whose `truncation_side` is `left`), `head_tail`, or
            `windows`: rows come back whole, because the model makes the windows.

    Raises:
        ValueError: a limit that leaves no token for the text, or pairs with `head_tail` or `windows`.
    """
    before, between, after = template_of(tokenizer)
    seconds = text_pairs or [""] * len(texts)
    second_ids = _plain_ids(tokenizer, seconds) if any(seconds) else [[]] * len(texts)
    if any(seconds) and truncation in ("head_tail", "windows"):
        raise refuse_pairs(truncation)
    rows, cut, lost = [], 0, 0
    for text, other, second in zip(_plain_ids(tokenizer, texts), second_ids, seconds, strict=True):
        fixed = len(before) + len(after) + (len(between) if second else 0)
        size = len(text) + len(other)
        if max_length is not None and max_length <= fixed:
            raise refuse(
                "max_length",
                max_length,
                f"at least {fixed + 1}",
                "raise it: the template leaves no token for a text",
                code="option-range",
            )
        if max_length is not None and size > max_length - fixed:
            room = max_length - fixed
            cut += 1
            if second:
                text, other = _cut_pair(text, other, room=room, left=truncation == "tail")
            elif truncation != "windows":
                text = pieces(text, room=room, truncation=truncation)[0]
            lost += size - len(text) - len(other)
        rows.append(before + text + (between + other if second else []) + after)
    return EncodedTexts(rows, cut, lost)


def template_of(tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Return the ids that a tokenizer puts before a text, between two texts, and after them.

    Without a compiled template they are derived from the ids that the tokenizer adds (BOS, `[CLS]`, `[SEP]`).
    """
    if compiled := tokenizer.init_kwargs.get(TEMPLATE_KEY):
        return list(compiled["before"]), list(compiled["between"]), list(compiled["after"])
    plain = _plain_ids(tokenizer, ["a"])[0]
    single, pair = tokenizer("a")["input_ids"], tokenizer("a", "a")["input_ids"]
    start = next(at for at in range(len(single)) if single[at : at + len(plain)] == plain)
    after = single[start + len(plain) :]
    inner = pair[start + len(plain) : len(pair) - len(plain) - len(after)]
    return single[:start], inner, after


def pieces(ids: list[int], *, room: int, truncation: str, overlap: int = 0) -> list[list[int]]:
    """Cut the ids of one text to pieces of at most `room` ids: one piece, or with `windows` all of them.

    All windows of a long text are full. The last window ends with the text and shares more than `overlap` ids
    with the previous one, because a short remainder would weigh as much as a full window.

    Example:
        >>> from qwen_task_heads.hubcode.encoding_task_heads import pieces
        >>> pieces([1, 2, 3, 4, 5, 6, 7], room=4, truncation="head_tail")
        [[1, 2, 6, 7]]
        >>> pieces([1, 2, 3, 4, 5, 6, 7], room=4, truncation="windows", overlap=2)
        [[1, 2, 3, 4], [3, 4, 5, 6], [4, 5, 6, 7]]
    """
    if len(ids) <= room:
        return [ids]
    if truncation == "head":
        return [ids[:room]]
    if truncation == "tail":
        return [ids[len(ids) - room :]]
    if truncation == "head_tail":
        tail = room // 2
        return [ids[: room - tail] + ids[len(ids) - tail :]]
    final = len(ids) - room
    starts = [*range(0, final, room - overlap), final]
    return [ids[start : start + room] for start in starts]


def cut_row(
    row: list[int], *, max_length: int, truncation: str, overlap: int, template: dict[str, list[int]] | None
) -> list[list[int]]:
    """Cut a row of a single text, and put the template around every piece.

    Args:
        row: ids with the template, without padding.
        max_length: longest piece in tokens, template included.
        truncation: `head`, `tail`, `head_tail` or `windows`.
        overlap: tokens that neighbouring windows share.
        template: `{"before": ids, "after": ids}`; None for no template.

    Raises:
        ValueError: a long row that does not start and end with the template.
    """
    if len(row) <= max_length:
        return [row]
    before, after = ((template or {}).get(part, []) for part in ("before", "after"))
    end = len(row) - len(after)
    if row[: len(before)] != before or row[end:] != after:
        raise TaskHeadError(
            "input_ids",
            f"a row of {len(row)} tokens is without the template of the config",
            f"at most {max_length} tokens, or whole rows of the tokenizer that is saved with the model",
            "use that tokenizer",
            code="tokenizer-invalid",
        )
    room = max_length - len(before) - len(after)
    found = pieces(row[len(before) : end], room=room, truncation=truncation, overlap=overlap)
    return [[*before, *piece, *after] for piece in found]


def pad_rows(rows: Sequence[Sequence[int]], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Right-pad rows to `input_ids` and `attention_mask`, both (B, T) int64."""
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
        attention_mask[index, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of the texts without the template; control tokens are split into characters."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)[
        "input_ids"
    ]


def _cut_pair(first: list[int], second: list[int], *, room: int, left: bool) -> tuple[list[int], list[int]]:
    """Cut two texts to `room` ids in total, the longer text first: `truncate_encodings` of `tokenizers`."""
    short, long = sorted((len(first), len(second)))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    sizes = (long, short) if len(first) > len(second) else (short, long)
    keep = [
        ids[len(ids) - size :] if left else ids[:size]
        for ids, size in zip((first, second), sizes, strict=True)
    ]
    return keep[0], keep[1]
