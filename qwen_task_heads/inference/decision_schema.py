"""Write a label schema for transformers' `pipeline("decision")`: `decision.json` and its template.

The pipeline reads the logits of one token per option after one prompt. If every label is a single token, it
computes the same as `LabelScorer`, which does not score the end of such labels unless `with_end=True`. The
model can then be used without this package:

    model = AutoModelForCausalLM.from_pretrained("me/news")
    decide = pipeline("decision", model=model, tokenizer=AutoTokenizer.from_pretrained("me/news"))
    decide({"state": "A text", "questions": {"label": question(labels)}})["label"]["probabilities"]

The model must be passed as an object: for the name of a Qwen2 model, transformers 5.23 creates a JEV decision
model of 8 billion random weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import DecisionConfig

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts

SPLIT = "<|split|>"  # a mark of transformers: the texts on both sides are encoded separately


def write_decision(folder: str | Path, *, prompts: AnswerPrompts) -> None:
    """Write `decision.json` and `decision_template.jinja` for the labels and the instruction of `prompts`.

    Args:
        folder: folder of the model.
        prompts: prompts with labels of one token each.

    Raises:
        TaskHeadsError: all labels of several tokens, which the pipeline does not support; or labels that it
            would encode as other tokens.

    Source: transformers 5.23, `decision/template_utils.py`.
    """
    problems = [
        Problem(
            f"label {shorten(name)}",
            f"found {len(ids)} tokens",
            "labels of one token each, as pipeline('decision') needs",
            "use LabelScorer, or rename the label",
            code="label-invalid",
        )
        for name, ids in zip(prompts.labels.names, prompts.answers, strict=True)
        if len(ids) != 1
    ]
    if problems:
        raise TaskHeadsError(problems)
    names = list(prompts.labels.names)
    if prompts.tokenizer(names, add_special_tokens=False)["input_ids"] != prompts.answers:
        raise error_at(
            "chat template",
            "the tokens of the labels depend on the text before them",
            "labels with the same tokens in every context, as pipeline('decision') needs",
            "use LabelScorer",
            code="label-invalid",
        )
    pieces, after = prompts.around()
    before = SPLIT.join([*pieces, ""])
    template = f"{{{{- {_quoted(before)} ~ state ~ {_quoted(SPLIT + after)} -}}}}"
    DecisionConfig(labels={"choice": list(prompts.labels.names)}, chat_template=template).save_pretrained(
        folder
    )


def question(labels: LabelMap) -> dict[str, Any]:
    """Return the question for a written `decision.json`: all labels, in their order.

    Example:
        >>> from qwen_task_heads import LabelMap
        >>> from qwen_task_heads.inference.decision_schema import question
        >>> question(LabelMap(("sport", "trade")))
        {'type': 'choice', 'criteria': {'sport': None, 'trade': None}}
    """
    return {"type": "choice", "criteria": dict.fromkeys(labels.names)}


def _quoted(text: str) -> str:
    """Return a string literal of jinja, which supports the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)
