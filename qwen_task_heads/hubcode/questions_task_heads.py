"""Questions of a model with several heads. This file is copied into every published model.

`config.questions` lists them in the order of their outputs. The head has one logit per option of a `choice`,
one per level of a `score`, and one for a `noul`, whose probability is the sigmoid of it. All are computed
from one pooled state, so that one pass of the backbone answers all questions.

    [{"name": "intent", "type": "choice", "options": ["card", "cash"], "instructions": "What is it about?"},
     {"name": "urgency", "type": "score", "options": ["can wait", "today"]},
     {"name": "refund", "type": "noul", "instructions": "Is a refund requested?"}]

The types and the words of a request are those of transformers' `decision` module (5.23).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .errors_task_heads import refuse

QUESTIONS = "questions"  # the problem type
TYPES = ("choice", "score", "noul")
NOUL = ("false", "true")  # options of a `noul`, in the order of `pooling_task_heads.option_scores`
UNANSWERED = -1.0  # target of every output of a question without an answer
FIELDS = {"name", "type", "options", "descriptions", "instructions"}
EXAMPLE = '[{"name": "intent", "type": "choice", "options": ["card", "cash"]}]'


def check_questions(questions: Any) -> None:
    """Raise for questions from which no head can be built.

    Raises:
        TaskHeadError: no list of questions with a name, a type and options each, or a repeated name.

    Example:
        >>> from qwen_task_heads.hubcode.questions_task_heads import check_questions
        >>> check_questions([{"name": "refund", "type": "noul"}])
    """
    if not isinstance(questions, (list, tuple)) or not questions:
        raise refuse("questions", questions, EXAMPLE, "name the questions", code="config-invalid")
    names = []
    for question in questions:
        if not isinstance(question, dict) or not {"name", "type"} <= question.keys() <= FIELDS:
            expected = f"questions as in {EXAMPLE}"
            raise refuse("questions", question, expected, "correct it", code="config-invalid")
        name, kind, options = question["name"], question["type"], question.get("options")
        if not isinstance(name, str) or not name.strip() or name in names:
            raise refuse("questions", name, "names that differ", "correct the name", code="config-invalid")
        names.append(name)
        if kind not in TYPES:
            raise refuse(f"question {name!r}", kind, ", ".join(TYPES), "correct it", code="config-invalid")
        if kind != "noul" and not _are_options(options):
            expected = "at least two different texts as options"
            raise refuse(f"question {name!r}", options, expected, "correct them", code="config-invalid")
        descriptions = question.get("descriptions")
        if descriptions is not None and len(descriptions) != len(options_of(question)):
            expected = "one description per option"
            raise refuse(f"question {name!r}", descriptions, expected, "correct them", code="config-invalid")


def question_fields(
    questions: Any, *, labels: Mapping[Any, str] | None, problem_type: str | None
) -> dict[str, Any]:
    """Check questions, and return the fields of a config that follow from them.

    Args:
        questions: as in a config.
        labels: `id2label` of the config, which may be absent.
        problem_type: of the config, which may be absent.

    Raises:
        TaskHeadError: see `check_questions`; or labels or a problem type of another model.
    """
    check_questions(questions)
    names = label_names(questions)
    found = None if labels is None else [labels[index] for index in sorted(labels, key=int)]
    if found not in (None, names):
        expected = f"{names}, of the questions"
        raise refuse("id2label", found, expected, "drop it", code="config-invalid")
    if problem_type not in (None, QUESTIONS):
        raise refuse("problem_type", problem_type, QUESTIONS, "drop it", code="option-conflict")
    return {
        "problem_type": QUESTIONS,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _are_options(options: Any) -> bool:
    if not isinstance(options, (list, tuple)) or len(options) < 2:
        return False
    are_texts = all(isinstance(one, str) and one.strip() for one in options)
    return are_texts and len(set(options)) == len(options)


def options_of(question: Mapping[str, Any]) -> list[str]:
    """Return the options of a choice, the levels of a score, or false and true of a noul."""
    return list(NOUL if question["type"] == "noul" else question["options"])


def sizes_of(questions: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the number of outputs of each question: 1 for a noul, else one per option.

    Example:
        >>> from qwen_task_heads.hubcode.questions_task_heads import sizes_of
        >>> scale = {"name": "b", "type": "score", "options": ["low", "high"]}
        >>> sizes_of([{"name": "a", "type": "noul"}, scale])
        [1, 2]
    """
    return [1 if one["type"] == "noul" else len(one["options"]) for one in questions]


def slices_of(questions: Sequence[Mapping[str, Any]]) -> dict[str, slice]:
    """Return the outputs of each question by its name, in their order."""
    slices, start = {}, 0
    for question, size in zip(questions, sizes_of(questions), strict=True):
        slices[question["name"]] = slice(start, start + size)
        start += size
    return slices


def label_names(questions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each output: the name of a noul, else `question=option`.

    Example:
        >>> from qwen_task_heads.hubcode.questions_task_heads import label_names
        >>> scale = {"name": "b", "type": "score", "options": ["low", "high"]}
        >>> label_names([{"name": "a", "type": "noul"}, scale])
        ['a', 'b=low', 'b=high']
    """
    return [
        question["name"] if question["type"] == "noul" else f"{question['name']}={option}"
        for question in questions
        for option in (options_of(question)[:1] if question["type"] == "noul" else options_of(question))
    ]


def as_request(questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the questions in the form of a request, `{name: {"type": ..., "criteria": ...}}`.

    Example:
        >>> from qwen_task_heads.hubcode.questions_task_heads import as_request
        >>> as_request([{"name": "topic", "type": "choice", "options": ["sport", "trade"]}])
        {'topic': {'type': 'choice', 'criteria': {'sport': None, 'trade': None}}}
    """
    asked = {}
    for question in questions:
        options = options_of(question)
        own = {"type": question["type"]}
        if question.get("instructions") is not None:
            own["instructions"] = question["instructions"]
        descriptions = question.get("descriptions")
        if question["type"] == "score":
            own["criteria"] = options
        elif question["type"] == "choice" or descriptions:
            own["criteria"] = dict(zip(options, descriptions or [None] * len(options), strict=True))
        asked[question["name"]] = own
    return asked


def text_of(content: Any) -> str:
    """Return a text unchanged and other content as JSON, as requests and records are read."""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
