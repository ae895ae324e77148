"""Compile a template into the tokenizer, once, before training, and encode texts with it.

In `tokenizers`, a "special token" of a template may have many ids. The chat scaffold with the instruction
becomes one such token, and the boundary another. Both are saved in `tokenizer.json`, so that
`tokenizer(title)` in any library returns the ids of training. `split_special_tokens` is saved too, so that
control tokens in a user's text stay characters. The flag splits special tokens only. Control tokens that a
tokenizer does not mark as special (Qwen's `<tool_call>`, `<think>`, `<|fim_prefix|>`) are therefore made
special first. The Rust API of `tokenizers` ignores the flag: a server that uses it must clean its input.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, processors
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
from qwen_task_heads.hubcode.encoding_task_heads import PARTS, TEMPLATE_KEY, Encoded, encode
from qwen_task_heads.hubcode.errors_task_heads import TaskHeadError
from qwen_task_heads.hubcode.families_task_heads import family_of
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.tokenization.truncation_reports import CutReport

SHELL_TEXTS = ("instruction", "between", "boundary")  # options with text of a template
SHELL_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}
PLACEHOLDERS = ("labels", "descriptions", "examples")
OWN_PREFIX = "own"  # key next to before, between and after: prefix that the tokenizer itself adds


class Plain(str):
    """A piece of a template from data (a label, an example), in which control tokens stay characters."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """The text around an input. It may have control tokens, which are characters in a user's text.

    Args:
        before: the chat scaffold and the instruction, e.g. `"<|im_start|>user\\nRate this title.\\n"`; or
            its pieces, in which control tokens of pieces of type `Plain` stay characters.
        between: text between prompt and title, if there is a prompt.
        after: the boundary, whose last token is pooled by `pooling: last`; None for that of the model family.
    """

    before: str | tuple[str, ...] = ""
    between: str = "\n"
    after: str | None = None


def label_template(
    instruction: str,
    labels: LabelMap,
    *,
    between: str = "\n",
    after: str | None = None,
    shots: Sequence[tuple[str, str]] | None = None,
) -> Template:
    """Return a template with the labels of a run in its instruction.

    Args:
        instruction: may have `{labels}` (the names, separated by commas), `{descriptions}` (a line per label,
            `name: description`) and `{examples}` (few-shot: each text with its label). The instruction may
            have control tokens; in the inserted texts they are characters.
        labels: names, descriptions and examples.
        between: see `Template`.
        after: see `Template`.
        shots: (text, label name) for `{examples}` in this order, instead of the examples of the labels.

    Raises:
        TaskHeadsError: a placeholder is unknown, or the labels lack descriptions or examples.

    Example:
        >>> from qwen_task_heads.tokenization.templates import label_template
        >>> from qwen_task_heads.labels.label_map import LabelMap
        >>> "".join(label_template("One of {labels}: ", LabelMap(("sport", "politics"))).before)
        'One of sport, politics: '
    """
    described = zip(labels.names, labels.descriptions, strict=False)
    own = zip(labels.names, labels.examples, strict=False)
    shown = [(text, name) for name, texts in own for text in texts] if shots is None else shots
    filled = {
        "labels": ", ".join(labels.names),
        "descriptions": "\n".join(f"{name}: {text}" for name, text in described if text),
        "examples": "\n\n".join(f"Text: {text}\nLabel: {name}" for text, name in shown),
    }
    pieces, problems = [], []
    for index, piece in enumerate(re.split(r"\{(\w+)\}", instruction)):
        if index % 2 == 0:
            pieces.append(piece)
        elif piece not in filled:
            problem = f"found {{{shorten(piece)[1:-1]}}}"
            expected = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            problems.append(
                Problem("--instruction", problem, expected, "correct its name", code="option-value")
            )
        elif not filled[piece]:
            problem, expected = f"found {{{piece}}}, and labels without {piece}", f"labels with {piece}"
            fix = "add them to labels.yaml, or drop it"
            problems.append(Problem("--instruction", problem, expected, fix, code="option-conflict"))
        else:
            pieces.append(Plain(filled[piece]))
    if problems:
        raise TaskHeadsError(problems)
    return Template(before=tuple(piece for piece in pieces if piece), between=between, after=after)


def from_shell(text: str) -> str:
    r"""Return the text of an option from a shell, with line breaks and tabs for `\n` and `\t`.

    A doubled backslash becomes one backslash; a backslash before any other character stays.

    Example:
        >>> from qwen_task_heads.tokenization.templates import from_shell
        >>> from_shell(r"Rate:\n") == "Rate:" + chr(10), from_shell(r"\\n") == r"\n"
        (True, True)
    """
    return re.sub(r"\\([nt\\])", lambda match: SHELL_ESCAPES[match[1]], text)


def for_shell(text: str) -> str:
    r"""Return a text with doubled backslashes, which `from_shell` reverses.

    Example:
        >>> from qwen_task_heads.tokenization.templates import for_shell, from_shell
        >>> from_shell(for_shell(r"C:\new")) == r"C:\new"
        True
    """
    return text.replace("\\", "\\\\")


def bind_template(
    tokenizer: Any, config: PooledClassifierConfig, *, template: Template | None = None, pairs: bool = False
) -> None:
    """Compile a template into the tokenizer of a classifier, and write its ids to the config.

    The tokenizer then cuts at `max_seq_length`, on the side of the policy. For `head_tail` and `windows` it
    does not cut, because the model does.

    Args:
        tokenizer: changed in place, as by `compile_template`.
        config: of the model, changed in place.
        template: None for that of a saved tokenizer, or the defaults.
        pairs: whether texts come in pairs.

    Raises:
        TaskHeadsError: the template leaves no tokens in `max_seq_length`, or pairs have the policy
            `head_tail` or `windows`.
    """
    ids = compile_template(tokenizer, template=template, model_type=config.get_text_config().model_type)
    try:
        config.set_template(ids, pairs=pairs)
    except TaskHeadError as error:
        raise as_option(error) from error
    side = "left" if config.truncation == "tail" else "right"
    tokenizer.truncation_side = tokenizer.init_kwargs["truncation_side"] = side
    if config.max_seq_length is not None:
        whole = config.truncation in ("head_tail", "windows")
        limit = VERY_LARGE_INTEGER if whole else config.max_seq_length
        tokenizer.model_max_length = tokenizer.init_kwargs["model_max_length"] = limit


def as_option(error: TaskHeadError) -> TaskHeadsError:
    """Return an error about a field of the config as an error about the option of that name."""
    return error_at(f"--{error.where}", error.problem, error.expected, error.fix, code=error.code)


def compile_template(
    tokenizer: Any, *, template: Template | None, model_type: str, max_length: int | None = None
) -> dict[str, list[int]]:
    """Write the template into the tokenizer, in place, and replace an earlier one.

    Args:
        tokenizer: a fast tokenizer of transformers.
        template: text before, between and after the inputs; None for that of the tokenizer of a saved model,
            or the defaults.
        model_type: family of the backbone, which defines the boundary token.
        max_length: becomes `model_max_length`, so that stock pipelines cut texts as in training.

    Returns:
        The ids: `{"before": [...], "between": [...], "after": [...]}`, also stored in the tokenizer.

    Raises:
        TaskHeadsError: the tokenizer is slow, there is no token to end a title or to pad with, or the limit
            is shorter than the template.
    """
    if not tokenizer.is_fast:
        raise error_at(
            "tokenizer",
            f"found the slow {type(tokenizer).__name__}",
            "a fast tokenizer (tokenizer.json)",
            "convert it with AutoTokenizer.from_pretrained(..., use_fast=True)",
            code="tokenizer-invalid",
        )
    _make_markup_special(tokenizer)
    own = _own_prefix(tokenizer)
    compiled = tokenizer.init_kwargs.get(TEMPLATE_KEY)
    if template is None and compiled:
        ids = {part: list(compiled[part]) for part in PARTS}
    else:
        template = template or Template()
        after = template.after if template.after is not None else _boundary(tokenizer, model_type)
        ids = {
            # The prefix that many tokenizers add to every text (BOS of Llama) is kept.
            "before": own + control_ids(tokenizer, template.before),
            "between": control_ids(tokenizer, template.between),
            "after": control_ids(tokenizer, after),
        }
    needed = sum(map(len, ids.values())) + 1
    if max_length is not None and max_length < needed:
        problem, expected = f"found {max_length}", f"{needed} or more, for the template and a title"
        fix = "raise it, or shorten the instruction"
        raise error_at("--max_length", problem, expected, fix, code="option-range")
    special = [
        {"id": f"<{part}>", "ids": part_ids, "tokens": tokenizer.convert_ids_to_tokens(part_ids)}
        for part, part_ids in ids.items()
        if part_ids
    ]
    present = {part: f"<{part}>" if part_ids else "" for part, part_ids in ids.items()}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{present['before']} $A {present['after']}".split(),
        pair=f"{present['before']} $A {present['between']} $B {present['after']}".split(),
        special_tokens=special,
    )
    # save_pretrained writes init_kwargs; this process uses the attributes.
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs["split_special_tokens"] = True
    tokenizer.init_kwargs[TEMPLATE_KEY] = {**ids, OWN_PREFIX: own}
    if max_length is not None:
        tokenizer.model_max_length = max_length
        tokenizer.init_kwargs["model_max_length"] = max_length
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _padding(tokenizer)
    return ids


def _padding(tokenizer: Any) -> str:
    """Return a special token for padding, because an ordinary token would become special."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    known = [tokenizer.eos_token, *tokenizer.all_special_tokens, *special]
    token = next((token for token in known if token is not None), None)
    if token is None:
        problem, expected = "found no pad, eos or other special token", "a tokenizer with one of them"
        fix = "add one: tokenizer.add_special_tokens({'pad_token': '<pad>'}), and a row to the embedding"
        raise error_at("tokenizer", problem, expected, fix, code="tokenizer-invalid")
    return str(token)


def _make_markup_special(tokenizer: Any) -> None:
    """Mark added tokens in brackets as special; others (runs of line breaks of Gemma) stay ordinary text."""
    markup = [
        AddedToken(
            token.content,
            special=True,
            normalized=token.normalized,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
        )
        for token in tokenizer.added_tokens_decoder.values()
        if not token.special and token.content[:1] + token.content[-1:] in ("<>", "[]")
    ]
    tokenizer.backend_tokenizer.add_special_tokens(markup)  # known contents keep their ids


def control_ids(tokenizer: Any, text: str | tuple[str, ...]) -> list[int]:
    """Return the ids of a part of a template; control tokens stay characters in `Plain` pieces only."""
    pieces = (text,) if isinstance(text, str) else text
    return [
        token
        for piece in pieces
        if piece
        for token in tokenizer(
            piece, add_special_tokens=False, split_special_tokens=isinstance(piece, Plain)
        )["input_ids"]
    ]


def _own_prefix(tokenizer: Any) -> list[int]:
    """Return the ids that the tokenizer itself adds before every text, without a compiled template."""
    if compiled := tokenizer.init_kwargs.get(TEMPLATE_KEY):
        return list(compiled[OWN_PREFIX])
    processor = json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"] or {}
    steps = processor.get("processors", [processor])
    for step in steps:
        if step.get("type") == "TemplateProcessing":
            pieces = step["single"]
            first = pieces[0].get("SpecialToken", {}).get("id") if pieces else None
            return list(step["special_tokens"][first]["ids"]) if first else []
    return []


def _boundary(tokenizer: Any, model_type: str) -> str:
    vocabulary = tokenizer.get_vocab()
    for token in family_of(model_type).boundary:
        if token in vocabulary:
            return token
    if tokenizer.eos_token is None:
        raise error_at(
            "tokenizer",
            f"found no eos token, and no boundary is known for {model_type!r}",
            "a tokenizer with an eos token, or --boundary",
            "name the text that ends a title with --boundary",
            code="tokenizer-invalid",
        )
    return tokenizer.eos_token


def encode_pairs(
    tokenizer: Any, pairs: Sequence[PairExample], *, max_length: int
) -> tuple[dict[str, list[list[int]]], CutReport]:
    """Encode pairs as `chosen_ids` and `rejected_ids`, the columns of trl's RewardTrainer.

    Both columns keep the order of `pairs`, and no pair is left out.
    """
    rows = [(pair.chosen, pair.prompt) for pair in pairs] + [(pair.rejected, pair.prompt) for pair in pairs]
    distinct = list(dict.fromkeys(rows))  # an arm of an experiment is in several pairs
    encoded = _encode_rows(tokenizer, distinct, max_length=max_length)
    if encoded.cut_prompts or encoded.cut_titles:  # cuts are counted per pair
        distinct, encoded = rows, _encode_rows(tokenizer, rows, max_length=max_length)
    ids = dict(zip(distinct, encoded.input_ids, strict=True))
    half = len(pairs)
    columns = {
        "chosen_ids": [ids[row] for row in rows[:half]],
        "rejected_ids": [ids[row] for row in rows[half:]],
    }
    return columns, CutReport(half, encoded.cut_prompts, encoded.cut_titles, max_length)


def _encode_rows(tokenizer: Any, rows: Sequence[tuple[str, str]], *, max_length: int) -> Encoded:
    """Encode titles, each with its prompt, or "" without one."""
    prompts = [prompt for _, prompt in rows]
    titles = [title for title, _ in rows]
    return encode(tokenizer, titles, prompts=prompts if any(prompts) else None, max_length=max_length)
