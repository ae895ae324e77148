"""Build prompts that ask a chat model for a label, and the tokens of every answer.

Training (`recipes/sft_classify.py`) and scoring (`inference/label_scorer.py`) use the ids of this module. The
chat template of the model is rendered once around a placeholder. The text before and after it becomes a
template like that of the task heads, compiled into a copy of the tokenizer. The cut of a long text therefore
never removes tokens of the instruction or of the answer. Control tokens in a user's text stay characters. The
tokenizer that is saved with a generative model is not changed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_task_heads.data.few_shot import Shots
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.hubcode.encoding_task_heads import TEMPLATE_KEY
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.tokenization.templates import Template, compile_template, control_ids, label_template

# Instruction and text are encoded separately. Line breaks around them make byte-level tokenizers return the
# tokens of the whole prompt. A label is encoded after its context (`_answers`).
INSTRUCTION = "Classify the text. Answer with one of these labels and nothing else:\n{labels}\n\nText:\n"
# The examples come from `few_shot.with_shots` or from the `shots` of `encode`.
FEW_SHOT_INSTRUCTION = (
    "Classify the text. Answer with one of these labels and nothing else:\n{labels}\n\n"
    "Examples:\n\n{examples}\n\nText:\n"
)
DESCRIBED = "What they mean:\n{descriptions}\n\n"
TEXT, ANSWER = "\u2983text\u2984", "\u2983answer\u2984"  # placeholders that no chat template contains
THOUGHT, THOUGHT_END = "<think>", "</think>"
MAX_LENGTH = 1024
MAX_KEPT = 256  # sets of candidates whose prefix is cached
LABEL_PROMPT = "label_prompt.json"
KINDS = {  # types of its values
    "labels": (LabelMap,),
    "instruction": (str,),
    "max_length": (int,),
    "truncation": (str,),
    "base": (dict, type(None)),
    "length_normalized": (bool,),
    "with_end": (bool, type(None)),
    "dtype": (str, type(None)),
}
# Defaults for keys that files of older versions lack.
# Of files that were written before these keys; the end was scored for all labels then.
DEFAULTS: dict[str, Any] = {"base": None, "length_normalized": False, "dtype": None, "with_end": True}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Prompts:
    """Token ids of n prompts up to the answer; numbers of cut texts and of texts with fewer examples."""

    input_ids: list[list[int]]
    cut: int
    fewer: int = 0


class AnswerPrompts:
    """The prompts of one model, one instruction and one set of labels.

    Args:
        tokenizer: fast, with a chat template; it is not changed.
        labels: names, optionally with descriptions and examples.
        instruction: precedes the text in the user's turn; may have the placeholders `{labels}`,
            `{descriptions}` and `{examples}`, as in `label_template`.
        model_type: family of the model.
        max_length: longest row in tokens, answer and its end included.
        truncation: `head` or `tail`, the end of a long text that is kept.

    Attributes:
        answers: ids of every label after the prompt, in the order of the labels, without the end.
        end: id of the token that ends an answer.

    Raises:
        TaskHeadsError: there is no chat template, or it has no generation prompt, a generation prompt that
            differs from the text before an answer, or no special token after an answer; or labels have equal
            tokens or do not fit into the limit. All such labels are named.

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
        # A blank belongs to the answer, because tokenizers merge it with the next word.
        self.scaffold = before, after.rstrip(" "), end
        # Markup is special in this copy. The prefix depends on the labels, so it is not compiled.
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
        # One token of text and one for the end. The instruction depends on the candidates of a row.
        fixed = len(self._begin(())) + len(self._after) + 2
        if problems := _label_problems(labels, self.answers, limit=max_length, room=max_length - fixed):
            raise TaskHeadsError(problems)
        self.room = max(map(len, self.answers)) + 1  # tokens of the longest answer with its end

    def save(
        self,
        folder: str | Path,
        *,
        base: dict[str, Any] | None = None,
        length_normalized: bool = False,
        with_end: bool | None = None,
        dtype: str | None = None,
    ) -> None:
        """Write `label_prompt.json` with the labels, the instruction and the limits, for `load`.

        Args:
            folder: of the model.
            base: of an adapter, the base model of its training (`generators.Base`).
            length_normalized, with_end: settings in the evaluation of the model, which are restored on
                loading; `with_end` None for the default of `LabelScorer`.
            dtype: of the weights in the evaluation, such as `float32`; None if it is not known.
        """
        content = {
            "labels": asdict(self.labels),
            "instruction": self.instruction,
            "max_length": self.max_length,
            "truncation": self.truncation,
            "base": base,
            "length_normalized": length_normalized,
            "with_end": with_end,
            "dtype": dtype,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        Path(folder, LABEL_PROMPT).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, *, tokenizer: Any, model_type: str) -> AnswerPrompts:
        """Read a `label_prompt.json`.

        Raises:
            TaskHeadsError: `save` did not write the file.
        """
        content = read_label_prompt(path)
        labels = content.pop("labels")
        for name in DEFAULTS:  # of the model, not of its prompts
            del content[name]
        return cls(tokenizer, labels, model_type=model_type, **content)

    @property
    def prefix(self) -> list[int]:
        """Common prefix of all prompts whose candidates are all labels."""
        return self._prefix_of(self.labels)

    @property
    def behind(self) -> int:
        """Number of tokens of a prompt after its text."""
        return len(self._after)

    def encode(
        self,
        texts: Sequence[str],
        *,
        candidates: Sequence[str] | None = None,
        shots: Sequence[Shots] | None = None,
    ) -> Prompts:
        """Encode n texts as whole prompts; a text is cut if the longest answer would not fit.

        Args:
            texts: n texts.
            candidates: names of the candidate labels in the instruction; None for all.
            shots: per text, the examples of `{examples}`, the nearest last. The farthest examples are left
                out until the text fits. With one example left, the text is cut.

        Raises:
            TaskHeadsError: the instruction, or one example of a row, leaves no tokens for the text.
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
                where, parts = "max_length", "labels and examples" if any(labels.examples) else "labels"
                if shots is not None:
                    where, parts = f"texts[{index}]", "examples"
                count = fixed + len(before)
                problem = f"found {count:,} tokens of template, instruction, {parts} and answer"
                expected = f"fewer than --max_length, {self.max_length:,}"
                fix = f"raise it, or give fewer or shorter {parts}"
                raise error_at(where, problem, expected, fix, code="text-too-long")
            fewer += shown is not None and len(shown) < len(shots[index] if shots else ())
            cut += len(text) > room
            kept = text[:room] if self.truncation == "head" else text[-room:]
            rows.append(before + kept + self._after)
        return Prompts(rows, cut, fewer)

    def around(self) -> tuple[list[str], str]:
        """Return the prompt before the text, in its separately encoded pieces, and after the text.

        The result lacks the prefix that the tokenizer adds to every text.
        """
        before, after, _ = self.scaffold
        own = self.tokenizer.decode(self._own)
        return [before.removeprefix(own), *_pieces(label_template(self.instruction, self.labels))], after

    def _begin(self, pieces: tuple[str, ...]) -> list[int]:
        """Return the ids of the scaffold and the pieces, with the prefix of the tokenizer once."""
        ids = control_ids(self._plain, (self.scaffold[0], *pieces))
        return ids if ids[: len(self._own)] == self._own else self._own + ids

    def _prefix_of(self, labels: LabelMap, shots: Shots | None = None) -> list[int]:
        """Return the ids before the text, for some candidate labels and examples."""
        if shots is not None:  # examples of one text are not cached
            return self._begin(_pieces(label_template(self.instruction, labels, shots=shots)))
        if labels.names not in self._before:
            if len(self._before) >= MAX_KEPT:
                self._before.clear()
            self._before[labels.names] = self._begin(_pieces(label_template(self.instruction, labels)))
        return self._before[labels.names]


def read_label_prompt(path: str | Path) -> dict[str, Any]:
    """Return the arguments of `AnswerPrompts.save`, with `labels` as a `LabelMap`.

    Raises:
        TaskHeadsError: `save` did not write the file.
    """
    try:
        content = {**DEFAULTS, **json.loads(Path(path).read_bytes())}
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
        problem = f"the file cannot be read ({type(error).__name__}: {str(error)[:120]})"
        expected, fix = f"a valid {LABEL_PROMPT}", "fetch the model again"
        raise error_at(str(path), problem, expected, fix, code="config-invalid") from error


def instruction_for(labels: LabelMap, *, few_shot: bool = False) -> str:
    """Return the default instruction, with descriptions if the labels have any.

    Example:
        >>> from qwen_task_heads import LabelMap
        >>> from qwen_task_heads.tokenization.label_prompts import instruction_for
        >>> "{descriptions}" in instruction_for(LabelMap(("a", "b"), ("first", "")))
        True
    """
    text = FEW_SHOT_INSTRUCTION if few_shot else INSTRUCTION
    return text.replace("{labels}\n\n", "{labels}\n\n" + DESCRIBED) if any(labels.descriptions) else text


def _scaffold(tokenizer: Any) -> tuple[str, str, str]:
    """Return the chat template before the user's text, between text and answer, and after the answer.

    A template has two prefixes of an answer: the generation prompt, and the text before a given answer. The
    longer of the two is used, because only one of them may have an empty thought. A generation prompt that
    opens a thought is not used, because a label would be scored as a thought.
    """
    where, fix = "chat template", "give a chat model, or set tokenizer.chat_template"
    if not tokenizer.chat_template:
        raise error_at(where, "found none", "a tokenizer with one", fix, code="tokenizer-invalid")
    user = {"role": "user", "content": TEXT}
    options = {"tokenize": False, "enable_thinking": False}  # other templates ignore `enable_thinking`
    asked = tokenizer.apply_chat_template([user], add_generation_prompt=True, **options)
    without = tokenizer.apply_chat_template([user], add_generation_prompt=False, **options)
    answered = tokenizer.apply_chat_template([user, {"role": "assistant", "content": ANSWER}], **options)
    if asked == without or asked.count(TEXT) != 1:
        problem = "found no generation prompt"
        expected = "a template with a generation prompt, after which the model answers"
        raise error_at(where, problem, expected, fix, code="tokenizer-invalid")
    before, prompt = asked.split(TEXT)
    written, _, end = answered.partition(TEXT)[2].partition(ANSWER)
    if not _thinks(written) and (_thinks(prompt) or written.startswith(prompt)):
        return before, written, end
    if not _thinks(prompt) and prompt.startswith(written):
        return before, prompt, end
    problem = f"the generation prompt is {shorten(prompt)}, and an answer follows {shorten(written)}"
    expected = "a template in which one is a prefix of the other"
    raise error_at(where, problem, expected, fix, code="tokenizer-invalid")


def _answers(tokenizer: Any, labels: LabelMap, *, before: str, blanks: str) -> list[list[int]]:
    """Return the ids of the labels after the prompt; SentencePiece adds a blank only at the start of a text.

    Args:
        tokenizer: with markup as special tokens.
        labels: the labels.
        before: text of the chat template before an answer.
        blanks: between this text and the answer.
    """
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    last = max((before.rfind(token) + len(token) for token in special if token in before), default=0)
    context, words = before[last:], [blanks + name for name in labels.names]
    texts = [context, *(context + word for word in words)]
    prefix, *rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    size = len(prefix)
    if context and all(ids[:size] == prefix for ids in rows):
        return [ids[size:] for ids in rows]
    # Without a context, or if the context merges with a label, labels are encoded alone.
    return list(tokenizer(words, add_special_tokens=False)["input_ids"])


def _thinks(text: str) -> bool:
    """Return whether a text ends inside a thought."""
    return text.rfind(THOUGHT) > text.rfind(THOUGHT_END)


def _end(tokenizer: Any, text: str) -> int:
    """Return the token that ends an answer: the first special token of the template after it."""
    special = {*tokenizer.all_special_ids}
    special |= {place for place, token in tokenizer.added_tokens_decoder.items() if token.special}
    for token in control_ids(tokenizer, text):
        if token in special:
            return token
    problem = f"found {shorten(text)} after an answer"
    expected = "a template that ends an answer with a special token"
    fix = "give a chat model, or set tokenizer.chat_template"
    raise error_at("chat template", problem, expected, fix, code="tokenizer-invalid")


def _pieces(template: Template) -> tuple[str, ...]:
    return (template.before,) if isinstance(template.before, str) else template.before


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _label_problems(
    labels: LabelMap, answers: Sequence[Sequence[int]], *, limit: int, room: int
) -> list[Problem]:
    """Return the problems of labels with equal tokens and of labels that do not fit."""
    if room < 1:  # independent of the labels
        problem = f"{limit:,} is {1 - room:,} tokens too few for the chat template, a text and an answer"
        expected = "a limit with tokens for both"
        return [Problem("max_length", problem, expected, "raise it", code="option-range")]
    problems: list[Problem] = []
    seen: dict[tuple[int, ...], str] = {}
    for name, ids in zip(labels.names, answers, strict=True):
        where = f"label {shorten(name)}"
        if tuple(ids) in seen:
            problem = f"found the same tokens as label {shorten(seen[tuple(ids)])}"
            expected = "labels that differ in tokens"
            problems.append(Problem(where, problem, expected, "rename one", code="label-invalid"))
        seen.setdefault(tuple(ids), name)
        if len(ids) > room:
            problem = f"found {len(ids):,} tokens"
            expected = f"at most {room:,}, the limit without the instruction"
            fix = "shorten the label, or raise --max_length"
            problems.append(Problem(where, problem, expected, fix, code="text-too-long"))
    return problems
