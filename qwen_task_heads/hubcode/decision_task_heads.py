"""Answers to typed questions by a classifier's head: `pipeline("decision")` and `/v1/systemone`.

    decide = pipeline("decision", model="me/intents", trust_remote_code=True)
    decide({"state": "I lost my card", "questions": {"intent": {"type": "choice", "criteria": {...}}}})

All questions of a request are answered from one pass, because the head reads the state only. The question
must be one that the head was trained for. A model with several heads (`questions_task_heads`) answers its own
questions, by their names; a `choice` may have some of the options. Of the other models:

| question | model | answer |
|---|---|---|
| `choice`, with labels as options | single-label, ordinal | softmax over the options |
| `score`, with a level per label | ordinal | probability of each level |
| `score`, with levels 0 to K-1 | regression, one output | the value, between its two levels |
| `noul`, named like a label | single-label, ordinal, multi-label | probability of that label |
| `noul` | single-label, two labels | probability of the label with id 1 |

Other questions raise an error, since the head would answer something else.

Source: transformers 5.23, `pipelines/decision.py` and `decision/`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from transformers import ProcessorMixin

from .configuration_task_heads import PooledClassifierConfig
from .encoding_task_heads import encode_texts
from .errors_task_heads import TaskHeadError
from .pooling_task_heads import option_scores
from .questions_task_heads import options_of, slices_of, text_of

try:
    from transformers import DecisionConfig
    from transformers.decision import parse_questions
    from transformers.decision.modeling_utils import DecisionMixin

    HAS_DECISIONS = True
except ImportError:  # transformers before 5.23 has no decision models
    HAS_DECISIONS = False

    class DecisionMixin:  # type: ignore[no-redef]
        """Marks decision models, where transformers has them."""

    DecisionConfig = object  # type: ignore[assignment,misc]

SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which no tokenizer reads
LEVELS = 1000  # most levels of a `score` question


class HeadDecisionConfig(DecisionConfig):
    """Encodes the state of a request as training encoded texts.

    Args:
        config: config of the classifier.
    """

    def __init__(self, config: PooledClassifierConfig) -> None:
        names = [config.id2label[index] for index in range(config.num_labels)]
        super().__init__(labels={"choice": names, "score": [str(level) for level in range(LEVELS)]})
        self._config = config

    def prepare_inputs(
        self, request: dict[str, Any] | str, processor: Any
    ) -> list[tuple[dict[str, Any], list[Any]]]:
        """Return one prompt: `{"input_ids": (1, N), "marks": (1,)}`, and all questions.

        Args:
            request: `{"state": ..., "questions": {name: question}}`, or its JSON. A state is a text;
                `{"text": ..., "text_pair": ...}` for a model of pairs; other objects are read as JSON.
            processor: the tokenizer saved with the model, or a processor with it.

        Raises:
            ValueError: a malformed request, or a question that the head cannot answer.
        """
        request = json.loads(request) if isinstance(request, str) else request
        if not isinstance(request, dict) or "state" not in request or "questions" not in request:
            raise TaskHeadError(
                "request",
                "state or questions are missing",
                '{"state": ..., "questions": {name: question}}',
                "pass both",
                code="argument-type",
            )
        try:
            questions = parse_questions(request["questions"], self)
        except TypeError as error:  # a type that is no text
            raise ValueError(str(error)) from error
        for question in questions:
            _check(question, self._config)
        text, other = self._texts(request["state"])
        rows = encode_texts(
            processor.tokenizer if isinstance(processor, ProcessorMixin) else processor,
            [text],
            text_pairs=None if other is None else [other],
            max_length=self._config.max_seq_length,
            truncation=self._config.truncation,
        ).input_ids
        input_ids = torch.tensor(rows)
        return [({"input_ids": input_ids, "marks": torch.tensor([input_ids.shape[1]])}, questions)]

    def _texts(self, state: Any) -> tuple[str, str | None]:
        pairs = "between" in (self._config.template or {})
        if isinstance(state, dict) and pairs and state.keys() == {"text", "text_pair"}:
            texts = (state["text"], state["text_pair"])
            if (
                all(isinstance(text, str) and not SURROGATE.search(text) for text in texts)
                and texts[0].strip()
            ):
                return texts
            raise TaskHeadError("state", "found no text", "two texts", "pass them", code="argument-type")
        text = text_of(state)
        if pairs or not text.strip() or SURROGATE.search(text):
            found, expected = ("found one text", "two texts") if pairs else ("found no text", "a text")
            fix = 'pass {"text": ..., "text_pair": ...}' if pairs else "pass one"
            raise TaskHeadError("state", found, expected, fix, code="argument-type")
        return text, None


def answer_scores(logits: torch.Tensor, question: Any, config: PooledClassifierConfig) -> torch.Tensor:
    """Return log-probabilities of a question's options, in their order.

    Args:
        logits: (L,) of one state.
        question: of `DecisionConfig.prepare_inputs`.
        config: config of the classifier.

    Raises:
        ValueError: a question that the head cannot answer.
    """
    _check(question, config)
    logits, ids = logits.double(), config.label2id
    if config.questions:
        return _of_its_question(logits, question, config)
    if question.type == "choice":
        return logits[[ids[option] for option in question.options]].log_softmax(-1)
    if question.type == "score" and config.problem_type == "regression":
        return _interpolated(logits[0], levels=len(question.options))
    if question.type == "score":
        return logits.log_softmax(-1)
    index = ids.get(question.name, 1)
    if config.problem_type == "multi_label_classification":
        true, false = logits[index], -logits[index]
        both = {"true": torch.nn.functional.logsigmoid(true), "false": torch.nn.functional.logsigmoid(false)}
    else:
        scores = logits.log_softmax(-1)
        others = [label for label in range(len(logits)) if label != index]
        both = {"true": scores[index], "false": scores[others].logsumexp(-1)}
    return torch.stack([both[option] for option in question.options])


def _of_its_question(logits: torch.Tensor, question: Any, config: PooledClassifierConfig) -> torch.Tensor:
    """Return log-probabilities of the options of a question of a model with several heads."""
    questions = config.questions or ()
    known = next(one for one in questions if one["name"] == question.name)
    scores = option_scores(logits[slices_of(questions)[question.name]][None], known)[0]
    if question.type == "score":
        return scores
    places = options_of(known)
    return scores[[places.index(option) for option in question.options]].log_softmax(-1)


def _expected_question(question: Any, config: PooledClassifierConfig) -> str:
    """Return what a model with several heads accepts instead of a question; "" if it answers the question."""
    known = {one["name"]: one for one in config.questions or ()}
    own = known.get(question.name)
    if own is None:
        return f"one of the questions {list(known)[:20]}"
    options = options_of(own)
    if question.type != own["type"]:
        return f"the type {own['type']}"
    if question.type == "score":
        fits = [text_of(level) for level in question.descriptions] == options
        return "" if fits else f"the levels {options[:20]}"
    return "" if set(question.options) <= set(options) else f"options of {options[:20]}"


def _interpolated(value: torch.Tensor, *, levels: int) -> torch.Tensor:
    """Return log-probabilities of two neighbouring levels whose mean is the value, within the levels."""
    value = value.clamp(0, levels - 1)
    lower = int(torch.trunc(value).clamp(max=max(0, levels - 2)))
    probabilities = torch.zeros(levels, dtype=value.dtype)
    probabilities[lower] = 1 - (value - lower)
    if levels > 1:
        probabilities[lower + 1] = value - lower
    return probabilities.log()


def _check(question: Any, config: PooledClassifierConfig) -> None:
    """Raise if the head was not trained for a question."""
    labels = list(config.id2label.values())
    kind = config.problem_type or ("regression" if len(labels) == 1 else "single_label_classification")
    one_label = kind in ("single_label_classification", "ordinal")
    expected = ""
    if config.questions:
        expected = _expected_question(question, config)
    elif question.type == "choice":
        unknown = [option for option in question.options if option not in config.label2id]
        if not one_label or unknown:
            expected = f"options of {labels[:20]}" if one_label else f"another type for a {kind} model"
    elif question.type == "score":
        if kind == "ordinal" and len(question.options) != config.num_labels:
            expected = f"{config.num_labels} levels"
        elif kind != "ordinal" and not (kind == "regression" and config.num_labels == 1):
            expected = f"another type for a {kind} model"
    elif kind == "regression":
        expected = "a question of the type score"
    elif question.name not in config.label2id and not (one_label and config.num_labels == 2):
        expected = "a question named like a label"
    if expected:
        raise TaskHeadError(
            f"question {question.name!r}",
            f"found {question.type} with {question.options[:20]}",
            expected,
            "ask what the model was trained for",
            code="option-unsupported",
        )
