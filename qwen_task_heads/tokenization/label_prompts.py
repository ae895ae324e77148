"""Prompts that ask a chat model for a label, and the tokens of every answer.

The same ids serve training (`recipes/sft_classify.py`) and scoring (`inference/label_scorer.py`), so they are
made here alone. The chat template of the model is rendered once around a placeholder; what stands before
and after it becomes a template like that of the task heads, compiled into a copy of the tokenizer. So a long
text is cut inside the text, never its instruction or the room of the answer, and control tokens in a user's
text stay characters. The tokenizer that is saved with a generative model stays the model's own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_task_heads.data.few_shot import Shots
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.encoding_task_heads import TEMPLATE_KEY
from qwen_task_heads.tokenization.templates import Template, compile_template, control_ids, label_template

# Instruction and text are encoded apart. With line breaks around them, byte-level tokenizers give the tokens
# of the whole prompt. A label is encoded behind what stands before it (`_answers`).
INSTRUCTION = "Classify the text. Answer with one of these labels and nothing else:\n{labels}\n\nText:\n"
# The same with examples, which `few_shot.with_shots` or the `shots` of `encode` bring.
FEW_SHOT_INSTRUCTION = (
    "Classify the text. Answer with one of these labels and nothing else:\n{labels}\n\n"
    "Examples:\n\n{examples}\n\nText:\n"
)
DESCRIBED = "What they mean:\n{descriptions}\n\n"
TEXT, ANSWER = "\u2983text\u2984", "\u2983answer\u2984"  # placeholders that no chat template has a use for
THOUGHT, THOUGHT_END = "<think>", "</think>"
MAX_LENGTH = 1024
MAX_KEPT = 256  # sets of candidates whose beginning is kept
LABEL_PROMPT = "label_prompt.json"
KINDS = {  # of what it states
    "labels": (LabelMap,), "instruction": (str,), "max_length": (int,), "truncation": (str,),
    "base": (dict, type(None)), "length_normalized": (bool,), "dtype": (str, type(None)),
}  # fmt: skip
# What files of older versions do not state, and what holds for them.
USUAL: dict[str, Any] = {"base": None, "length_normalized": False, "dtype": None}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Prompts:
    """Token ids of n prompts, each up to the answer; how many texts were cut, and how many lost examples."""

    input_ids: list[list[int]]
    cut: int
    fewer: int = 0


class AnswerPrompts:
    """The prompts of one model, one instruction and one set of labels.

    Args:
        tokenizer: fast, with a chat template; left as it is.
        labels: names, perhaps with descriptions and examples.
        instruction: stands before the text in the user's turn; may hold `{labels}`, `{descriptions}` and
            `{examples}`, as of `label_template`.
        model_type: family of the model.
        max_length: longest row in tokens, answer and its end included.
        truncation: `head` or `tail`: which end of a long text is kept.

    Attributes:
        answers: ids of every label behind the prompt, in the order of the labels, without the end.
        end: id of the token that ends an answer.

    Raises:
        TaskHeadsError: no chat template, or one without a generation prompt, with something else before an
            answer than it asks with, or without a special token after it; labels whose tokens are equal, or
            longer than the limit leaves room for. All labels at once.

    Example:
        >>> from qwen_task_heads import LabelMap, load_tokenizer
        >>> from qwen_task_heads.tokenization.label_prompts import AnswerPrompts
        >>> labels = LabelMap(("sport", "trade"))
        >>> prompts = AnswerPrompts(load_tokenizer("embedded"), labels, model_type="qwen2")
        >>> len(prompts.answers), len(prompts.encode(["A match", "A ship"]).input_ids)
        (2, 2)
    """

    def __init__(
        self,
        tokenizer: Any,
        labels: LabelMap,
        *,
        instruction: str = INSTRUCTION,
        model_type: str,
        max_length: int = MAX_LENGTH,
        truncation: str = "head",
    ) -> None:
        self.tokenizer, self.labels, self.instruction = tokenizer, labels, instruction
        self.model_type, self.max_length, self.truncation = model_type, max_length, truncation
        before, after, end = _scaffold(tokenizer)
        # A blank belongs to the answer, as tokenizers merge it with the word that follows.
        self.scaffold = before, after.rstrip(" "), end
        # Markup is special in it. What stands before a text depends on the labels, and is kept apart.
        self._plain = copy.deepcopy(tokenizer)
        self._plain.init_kwargs.pop(TEMPLATE_KEY, None)
        compiled = compile_template(
            self._plain, template=Template(after=self.scaffold[1]), model_type=model_type
        )
        self._own, self._after = compiled["before"], compiled["after"]
        self._before: dict[tuple[str, ...], list[int]] = {}
        self.end = _end(tokenizer, self.scaffold[2])
        blanks = after[len(self.scaffold[1]) :]
        self.answers = _answers(self._plain, labels, before=self.scaffold[1], blanks=blanks)
        # A token of text, and the end. What the instruction takes hangs on the labels that a row offers.
        fixed = len(self._begin(())) + len(self._after) + 2
        if problems := _label_problems(labels, self.answers, limit=max_length, room=max_length - fixed):
            raise TaskHeadsError(problems)
        self.room = max(map(len, self.answers)) + 1  # of the longest answer with its end

    def save(
        self,
        folder: str | Path,
        *,
        base: dict[str, Any] | None = None,
        length_normalized: bool = False,
        dtype: str | None = None,
    ) -> None:
        """Write `label_prompt.json`: labels, instruction and limits, all that `load` needs.

        Args:
            folder: of the model.
            base: of an adapter, what it was trained on (`generators.Base`).
            length_normalized: how the model's metrics were measured; loading it uses the same setting.
            dtype: of the weights in that measurement, such as `float32`; None if it is not known.
        """
        content = {
            "labels": asdict(self.labels),
            "instruction": self.instruction,
            "max_length": self.max_length,
            "truncation": self.truncation,
            "base": base,
            "length_normalized": length_normalized,
            "dtype": dtype,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        Path(folder, LABEL_PROMPT).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, *, tokenizer: Any, model_type: str) -> AnswerPrompts:
        """Read a `label_prompt.json`.

        Raises:
            TaskHeadsError: a file that `save` did not write.
        """
        stated = read_label_prompt(path)
        labels = stated.pop("labels")
        for name in USUAL:  # of the model, not of its prompts
            del stated[name]
        return cls(tokenizer, labels, model_type=model_type, **stated)

    @property
    def prefix(self) -> list[int]:
        """What the prompts of all texts begin with, where all labels are candidates."""
        return self._prefix_of(self.labels)

    @property
    def behind(self) -> int:
        """How many tokens a prompt has behind its text."""
        return len(self._after)

    def encode(
        self,
        texts: Sequence[str],
        *,
        candidates: Sequence[str] | None = None,
        shots: Sequence[Shots] | None = None,
    ) -> Prompts:
        """Encode n texts, each as its whole prompt; the text is cut so that the longest answer fits.

        Args:
            texts: n texts.
            candidates: label names that the instruction offers; all when None.
            shots: per text, the examples of `{examples}`, the nearest last. The farthest are left out until
                the text fits; one is kept, and then the text is cut.

        Raises:
            TaskHeadsError: an instruction, or one example of a row, that leaves no room for the text.
        """
        labels = self.labels if candidates is None else self.labels.subset(candidates)
        fixed = self.room + len(self._after)
        ids = self._plain(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        rows, cut, fewer = [], 0, 0
        for index, text in enumerate(ids):
            shown = None if shots is None else shots[index]
            before = self._prefix_of(labels, shown)
            while shown and len(shown) > 1 and fixed + len(before) + len(text) > self.max_length:
                shown = shown[1:]
                before = self._prefix_of(labels, shown)
            room = self.max_length - fixed - len(before)
            if room < 1:
                where, what = "max_length", "labels and examples" if any(labels.examples) else "labels"
                if shots is not None:
                    where, what = f"texts[{index}]", "examples"
                found = f"{fixed + len(before):,} tokens of template, instruction, {what} and answer"
                accepted = f"fewer than --max_length, {self.max_length:,}"
                raise TaskHeadsError(
                    Problem(where, f"found {found}", accepted, f"raise it, or show fewer or shorter {what}")
                )
            fewer += shown is not None and len(shown) < len(shots[index] if shots else ())
            cut += len(text) > room
            kept = text[:room] if self.truncation == "head" else text[-room:]
            rows.append(before + kept + self._after)
        return Prompts(rows, cut, fewer)

    def around(self) -> tuple[list[str], str]:
        """What stands before the text, in the pieces that are encoded apart, and after it.

        Without what the tokenizer itself begins every text with.
        """
        before, after, _ = self.scaffold
        own = self.tokenizer.decode(self._own)
        return [before.removeprefix(own), *_pieces(label_template(self.instruction, self.labels))], after

    def _begin(self, pieces: tuple[str, ...]) -> list[int]:
        """Ids of the scaffold and of pieces after it; with the tokenizer's own first tokens, once."""
        ids = control_ids(self._plain, (self.scaffold[0], *pieces))
        return ids if ids[: len(self._own)] == self._own else self._own + ids

    def _prefix_of(self, labels: LabelMap, shots: Shots | None = None) -> list[int]:
        """Ids before the text, where these labels are offered and these examples shown."""
        if shots is not None:  # of one text: not worth keeping
            return self._begin(_pieces(label_template(self.instruction, labels, shots=shots)))
        if labels.names not in self._before:
            if len(self._before) >= MAX_KEPT:
                self._before.clear()
            self._before[labels.names] = self._begin(_pieces(label_template(self.instruction, labels)))
        return self._before[labels.names]


def read_label_prompt(path: str | Path) -> dict[str, Any]:
    """What `AnswerPrompts.save` wrote: `labels` (a `LabelMap`) and the rest as it was given there.

    Raises:
        TaskHeadsError: a file that `save` did not write.
    """
    try:
        content = {**USUAL, **json.loads(Path(path).read_bytes())}
        content["labels"] = LabelMap(**{name: _tuples(value) for name, value in content["labels"].items()})
        wrong = sorted(content.keys() ^ KINDS.keys())
        wrong += [name for name, kind in KINDS.items() if name in content and type(content[name]) not in kind]
        wrong += [] if content["truncation"] in ("head", "tail") else ["truncation"]
        wrong += [] if content["dtype"] in (None, *DTYPES) else ["dtype"]
        if wrong:
            raise ValueError(f"in {', '.join(wrong)}")
        return content
    except TaskHeadsError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        found = f"a file that cannot be read ({type(error).__name__}: {str(error)[:120]})"
        remedy = "fetch the model again"
        raise TaskHeadsError(Problem(str(path), f"found {found}", f"a {LABEL_PROMPT}", remedy)) from error


def instruction_for(labels: LabelMap, *, few_shot: bool = False) -> str:
    """The default instruction, with the descriptions of the labels where there are any.

    Example:
        >>> from qwen_task_heads import LabelMap
        >>> from qwen_task_heads.tokenization.label_prompts import instruction_for
        >>> "{descriptions}" in instruction_for(LabelMap(("a", "b"), ("first", "")))
        True
    """
    words = FEW_SHOT_INSTRUCTION if few_shot else INSTRUCTION
    return words.replace("{labels}\n\n", "{labels}\n\n" + DESCRIBED) if any(labels.descriptions) else words


def _scaffold(tokenizer: Any) -> tuple[str, str, str]:
    """What the chat template writes before the user's text, between it and the answer, and after that.

    A template writes the beginning of an answer twice: as the generation prompt, and before an answer that is
    there. The longer of the two is taken, so that an empty thought that either of them holds is there. A
    generation prompt that opens a thought is not: a label would be scored as a thought.
    """
    where, remedy = "chat template", "give a chat model, or set tokenizer.chat_template"
    if not tokenizer.chat_template:
        raise TaskHeadsError(Problem(where, "found none", "a tokenizer with one", remedy))
    user = {"role": "user", "content": TEXT}
    options = {"tokenize": False, "enable_thinking": False}  # templates that know no thinking ignore it
    asked = tokenizer.apply_chat_template([user], add_generation_prompt=True, **options)
    without = tokenizer.apply_chat_template([user], add_generation_prompt=False, **options)
    answered = tokenizer.apply_chat_template([user, {"role": "assistant", "content": ANSWER}], **options)
    if asked == without or asked.count(TEXT) != 1:
        accepted = "a template with a generation prompt, which tells the model to answer"
        raise TaskHeadsError(Problem(where, "found no generation prompt", accepted, remedy))
    before, prompt = asked.split(TEXT)
    written, _, end = answered.partition(TEXT)[2].partition(ANSWER)
    if not _thinks(written) and (_thinks(prompt) or written.startswith(prompt)):
        return before, written, end
    if not _thinks(prompt) and prompt.startswith(written):
        return before, prompt, end
    found = f"{shorten(prompt)} where it asks for an answer, and {shorten(written)} before one"
    raise TaskHeadsError(Problem(where, f"found {found}", "a template where one continues the other", remedy))


def _answers(tokenizer: Any, labels: LabelMap, *, before: str, blanks: str) -> list[list[int]]:
    """Ids of the labels as they follow the prompt: SentencePiece puts a blank before a text alone, not there.

    Args:
        tokenizer: for which markup is special.
        labels: the labels.
        before: what the chat template writes before an answer.
        blanks: those between that and the answer.
    """
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    last = max((before.rfind(token) + len(token) for token in special if token in before), default=0)
    context, words = before[last:], [blanks + name for name in labels.names]
    texts = [context, *(context + word for word in words)]
    known, *found = tokenizer(texts, add_special_tokens=False)["input_ids"]
    size = len(known)
    if context and all(ids[:size] == known for ids in found):
        return [ids[size:] for ids in found]
    return list(tokenizer(words, add_special_tokens=False)["input_ids"])  # nothing to follow, or it merges


def _thinks(text: str) -> bool:
    """Whether what follows is a thought."""
    return text.rfind(THOUGHT) > text.rfind(THOUGHT_END)


def _end(tokenizer: Any, text: str) -> int:
    """The token that ends an answer: the first special one of what the template writes after it."""
    special = {*tokenizer.all_special_ids}
    special |= {place for place, token in tokenizer.added_tokens_decoder.items() if token.special}
    for token in control_ids(tokenizer, text):
        if token in special:
            return token
    accepted = "a template that ends an answer by a special token"
    remedy = "give a chat model, or set tokenizer.chat_template"
    raise TaskHeadsError(Problem("chat template", f"found {shorten(text)} after an answer", accepted, remedy))


def _pieces(template: Template) -> tuple[str, ...]:
    return (template.before,) if isinstance(template.before, str) else template.before


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _label_problems(
    labels: LabelMap, answers: Sequence[Sequence[int]], *, limit: int, room: int
) -> list[Problem]:
    """Labels that no score could tell apart, and labels without room."""
    if room < 1:  # no label is to blame
        found = f"{limit:,}, {1 - room:,} tokens too few for the chat template, a text and an answer"
        return [Problem("max_length", f"found {found}", "one that leaves some for both", "raise it")]
    problems: list[Problem] = []
    seen: dict[tuple[int, ...], str] = {}
    for name, ids in zip(labels.names, answers, strict=True):
        where = f"label {shorten(name)}"
        if tuple(ids) in seen:
            found = f"found the same tokens as label {shorten(seen[tuple(ids)])}"
            problems.append(Problem(where, found, "labels that differ in tokens", "rename one"))
        seen.setdefault(tuple(ids), name)
        if len(ids) > room:
            found = f"found {len(ids):,} tokens"
            accepted = f"at most {room:,}, what the limit leaves beside the instruction"
            problems.append(Problem(where, found, accepted, "shorten the label, or raise --max_length"))
    return problems
