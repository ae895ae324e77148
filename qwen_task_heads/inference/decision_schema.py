"""A label schema for transformers' `pipeline("decision")`: `decision.json` and its template.

That pipeline reads the logits of one token per option after one prompt. So where every label is a token of
its own, it and `LabelScorer(with_end=False)` are the same computation on the same ids, and anybody asks the
model without this package:

    model = AutoModelForCausalLM.from_pretrained("me/news")
    decide = pipeline("decision", model=model, tokenizer=AutoTokenizer.from_pretrained("me/news"))
    decide({"state": "A text", "questions": {"label": question(labels)}})["label"]["probabilities"]

The model is given as an object: of a Qwen2 named by a string, transformers 5.23 makes a JEV decision model of
8 billion random weights instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import DecisionConfig

from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts

SPLIT = "<|split|>"  # transformers' own mark: what stands on either side is encoded by itself


def write_decision(folder: str | Path, *, prompts: AnswerPrompts) -> None:
    """Write `decision.json` and `decision_template.jinja` for the labels and the instruction of `prompts`.

    Args:
        folder: of the model.
        prompts: labels of one token each.

    Raises:
        TaskHeadsError: labels of several tokens, which that pipeline does not read, all of them at once; or
            labels that it would read as other tokens.

    Source: transformers 5.23, `decision/template_utils.py`.
    """
    problems = [
        Problem(
            f"label {shorten(name)}",
            f"found {len(ids)} tokens",
            "labels of one token each, which is what pipeline('decision') reads",
            "use LabelScorer, or rename the label",
        )
        for name, ids in zip(prompts.labels.names, prompts.answers, strict=True)
        if len(ids) != 1
    ]
    if problems:
        raise TaskHeadsError(problems)
    names = list(prompts.labels.names)
    if prompts.tokenizer(names, add_special_tokens=False)["input_ids"] != prompts.answers:
        found = "labels whose tokens depend on what stands before them"
        accepted = "a chat template and a tokenizer that leave them alone, as pipeline('decision') does"
        raise TaskHeadsError(Problem("chat template", f"found {found}", accepted, "use LabelScorer"))
    pieces, after = prompts.around()
    before = SPLIT.join([*pieces, ""])
    template = f"{{{{- {_quoted(before)} ~ state ~ {_quoted(SPLIT + after)} -}}}}"
    DecisionConfig(labels={"choice": list(prompts.labels.names)}, chat_template=template).save_pretrained(
        folder
    )


def question(labels: LabelMap) -> dict[str, Any]:
    """The question that goes with a written `decision.json`: all labels, in their order.

    Example:
        >>> from qwen_task_heads import LabelMap
        >>> from qwen_task_heads.inference.decision_schema import question
        >>> question(LabelMap(("sport", "trade")))
        {'type': 'choice', 'criteria': {'sport': None, 'trade': None}}
    """
    return {"type": "choice", "criteria": dict.fromkeys(labels.names)}


def _quoted(text: str) -> str:
    """A string literal of jinja, which knows the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)
