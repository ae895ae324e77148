"""Texts to token ids: the template is compiled into the tokenizer, once, before training.

`tokenizers` lets a "special token" of a template stand for many ids. The chat scaffold and the
instruction become one such token, the boundary another, and both are saved in `tokenizer.json`: a
plain `tokenizer(title)` in any library then gives the ids of training. `split_special_tokens` is
saved too, so that control tokens in a user's text stay characters; those that a tokenizer does not
call special (Qwen's `<tool_call>`, `<think>`, `<|fim_prefix|>`) are made special first, because the flag
splits no others. (The bare Rust `tokenizers` API ignores it: a server that uses it must clean its input.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, processors
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from qwen_task_heads.backbones import backbone_of
from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig, TaskHeadError
from qwen_task_heads.hubcode.encoding_task_heads import PARTS, TEMPLATE_KEY, Encoded, encode
from qwen_task_heads.tokenization.truncation_reports import CutReport

SHELL_TEXTS = ("instruction", "between", "boundary")  # options of text that stands around others
SHELL_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}
PLACEHOLDERS = ("labels", "descriptions", "examples")
OWN_PREFIX = "own"  # beside before, between, after: what the tokenizer began every text with by itself


class Plain(str):
    """A piece of a template that comes from data (a label, an example): control tokens stay characters."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """What surrounds a text. Control tokens are meant here; in a user's text they are characters.

    Args:
        before: the chat scaffold and the instruction, e.g. `"<|im_start|>user\\nRate this title.\\n"`; or
            its pieces, of which those of type `Plain` hold no control tokens.
        between: between prompt and title, when there is a prompt.
        after: the boundary, whose last token is pooled by `pooling: last`; None for the family's own.
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
    """Fill the labels of a run into an instruction.

    Args:
        instruction: may hold `{labels}` (the names, with commas between), `{descriptions}` (a line per label,
            `name: description`) and `{examples}` (few-shot: each text with its label). Control tokens are
            meant in the instruction itself; in what is filled in they are characters.
        labels: names, descriptions and examples.
        between: see `Template`.
        after: see `Template`.
        shots: (text, label name) to show as `{examples}` in this order, instead of the labels' own.

    Raises:
        TaskHeadsError: an unknown placeholder, or descriptions or examples that the labels lack.

    Example:
        >>> from qwen_task_heads.tokenization.templates import label_template
        >>> from qwen_task_heads.data.labels import LabelMap
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
            accepted = "" + ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            problems.append(
                Problem("--instruction", f"found {{{shorten(piece)[1:-1]}}}", accepted, "correct its name")
            )
        elif not filled[piece]:
            found = f"found {{{piece}}}, and labels without {piece}"
            accepted = f"labels with {piece}"
            problems.append(Problem("--instruction", found, accepted, "add them to labels.yaml, or drop it"))
        else:
            pieces.append(Plain(filled[piece]))
    if problems:
        raise TaskHeadsError(problems)
    return Template(before=tuple(piece for piece in pieces if piece), between=between, after=after)


def from_shell(text: str) -> str:
    r"""Read an option of text as it is typed in a shell: `\n` and `\t` are a line break and a tab.

    A doubled backslash is one backslash; before any other character a backslash stays.

    Example:
        >>> from qwen_task_heads.tokenization.templates import from_shell
        >>> from_shell(r"Rate:\n") == "Rate:" + chr(10), from_shell(r"\\n") == r"\n"
        (True, True)
    """
    return re.sub(r"\\([nt\\])", lambda found: SHELL_ESCAPES[found[1]], text)


def for_shell(text: str) -> str:
    r"""Write a text so that `from_shell` reads it back: backslashes are doubled.

    Example:
        >>> from qwen_task_heads.tokenization.templates import for_shell, from_shell
        >>> from_shell(for_shell(r"C:\new")) == r"C:\new"
        True
    """
    return text.replace("\\", "\\\\")


def bind_template(
    tokenizer: Any, config: PooledClassifierConfig, *, template: Template | None = None, pairs: bool = False
) -> None:
    """Compile a template into the tokenizer of a classifier, and tell its config: both, or they disagree.

    The tokenizer then cuts at `max_seq_length` and on the side that the policy says; for `head_tail` and
    `windows` it must not cut at all, because only the model knows how.

    Args:
        tokenizer: changed in place, as by `compile_template`.
        config: of the model, changed in place.
        template: None for the one that a saved tokenizer has, or the defaults.
        pairs: whether texts come in pairs.

    Raises:
        TaskHeadsError: a template that leaves no room in `max_seq_length`, or pairs with `head_tail` or
            `windows`.
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
    """Give an error about a field of the config, which is an option of a recipe, our type."""
    return TaskHeadsError(
        Problem(f"--{error.where}", error.problem, error.expected, error.fix, code=error.code)
    )


def compile_template(
    tokenizer: Any, *, template: Template | None, model_type: str, max_length: int | None = None
) -> dict[str, list[int]]:
    """Write the template into the tokenizer, in place, instead of one that it may have.

    Args:
        tokenizer: a fast tokenizer of transformers.
        template: what stands before, between and after the texts; None for what the tokenizer of a saved
            model has already, or the defaults.
        model_type: family of the backbone, which names the boundary token.
        max_length: becomes `model_max_length`, so that stock pipelines cut where training did.

    Returns:
        The ids: `{"before": [...], "between": [...], "after": [...]}`, also kept in the tokenizer.

    Raises:
        TaskHeadsError: a slow tokenizer, no token to end a title or to pad with, or a limit below the
            template.
    """
    if not tokenizer.is_fast:
        raise TaskHeadsError(
            Problem(
                "tokenizer",
                f"found the slow {type(tokenizer).__name__}",
                "a fast tokenizer (tokenizer.json)",
                "convert it with AutoTokenizer.from_pretrained(..., use_fast=True)",
            )
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
            # Many families begin every text with a token of their own (Llama's BOS): it is kept.
            "before": own + control_ids(tokenizer, template.before),
            "between": control_ids(tokenizer, template.between),
            "after": control_ids(tokenizer, after),
        }
    needed = sum(map(len, ids.values())) + 1
    if max_length is not None and max_length < needed:
        found, remedy = f"found {max_length}", "raise it, or shorten the instruction"
        raise TaskHeadsError(
            Problem("--max_length", found, f"{needed} or more, for the template and a title", remedy)
        )
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
    # init_kwargs are what save_pretrained writes; the attributes are what this process uses.
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
    """A token to pad with: any special one, as it is masked out; an ordinary one would become special."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    known = [tokenizer.eos_token, *tokenizer.all_special_tokens, *special]
    token = next((token for token in known if token is not None), None)
    if token is None:
        found, accepted = "found no pad, eos or other special token", "a tokenizer with one of them"
        remedy = "add one: tokenizer.add_special_tokens({'pad_token': '<pad>'}), and a row to the embedding"
        raise TaskHeadsError(Problem("tokenizer", found, accepted, remedy))
    return str(token)


def _make_markup_special(tokenizer: Any) -> None:
    """Mark added tokens in brackets as special; others (Gemma's runs of line breaks) are ordinary text."""
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
    """Ids of a part of the template, in which control tokens are control tokens, but for plain pieces."""
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
    """What the tokenizer itself puts before every text, without a template of ours."""
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
    for token in backbone_of(model_type).boundary:
        if token in vocabulary:
            return token
    if tokenizer.eos_token is None:
        raise TaskHeadsError(
            Problem(
                "tokenizer",
                "found no eos token and no boundary known for " + repr(model_type),
                "a tokenizer with an eos token, or --boundary",
                "name the text that ends a title with --boundary",
            )
        )
    return tokenizer.eos_token


def encode_pairs(
    tokenizer: Any, pairs: Sequence[PairExample], *, max_length: int
) -> tuple[dict[str, list[list[int]]], CutReport]:
    """Encode pairs as `chosen_ids` and `rejected_ids`, columns that trl's RewardTrainer takes as they are.

    Both columns keep the order of `pairs`, and no pair is left out.
    """
    rows = [(pair.chosen, pair.prompt) for pair in pairs] + [(pair.rejected, pair.prompt) for pair in pairs]
    once = list(dict.fromkeys(rows))  # an arm of a test is in a pair with each other one
    found = _encode_rows(tokenizer, once, max_length=max_length)
    if found.cut_prompts or found.cut_titles:  # which are counted per pair
        once, found = rows, _encode_rows(tokenizer, rows, max_length=max_length)
    ids = dict(zip(once, found.input_ids, strict=True))
    half = len(pairs)
    columns = {
        "chosen_ids": [ids[row] for row in rows[:half]],
        "rejected_ids": [ids[row] for row in rows[half:]],
    }
    return columns, CutReport(half, found.cut_prompts, found.cut_titles, max_length)


def _encode_rows(tokenizer: Any, rows: Sequence[tuple[str, str]], *, max_length: int) -> Encoded:
    """Encode titles, each with its prompt, "" for none."""
    prompts = [prompt for _, prompt in rows]
    titles = [title for title, _ in rows]
    return encode(tokenizer, titles, prompts=prompts if any(prompts) else None, max_length=max_length)
