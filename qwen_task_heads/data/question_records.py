"""Records of decision models -> the questions of a run, and the answers of each row as probabilities.

A record has a `state`, the `questions` about it and their answers. Questions have the form of a request to
transformers' decision models (5.23, `decision/template_utils.py`):

    {"id": "7", "state": "I was charged twice",
     "questions": {"intent": {"type": "choice", "criteria": {"card": null, "cash": "Cash and machines"}},
                   "urgency": {"type": "score", "criteria": ["can wait", "today"]},
                   "refund": {"type": "noul", "instructions": "Is a refund requested?"}},
     "answers": {"intent": "card", "urgency": 1, "refund": true},
     "soft_labels": {"intent": {"card": 0.8, "cash": 0.2}},
     "meta": {"group": "customer 3"}}

| type | answer | soft label |
|---|---|---|
| `choice` | an option | `{option: P}`, or a list in their order |
| `score` | a level by number from 0 or by its text; a fraction lies between its two levels | the same |
| `noul` | true or false | P(true), or `{"true": P, "false": P}` |

A question without an answer, or with null, is left out of the loss and of the metrics of its row. A soft
label replaces the answer to its question. Rows may have some of the questions, but one name has one
definition. Unless all rows name them in the same order, questions and options are sorted, so that the
outputs of a model do not depend on the order of rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qwen_task_heads.data.cells import parse_cell
from qwen_task_heads.data.raw_texts import RawTarget, RowProblem
from qwen_task_heads.data.row_reader import RowReader, code_of, is_number
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.hubcode.questions_task_heads import (
    NOUL,
    TYPES,
    UNANSWERED,
    label_names,
    options_of,
    sizes_of,
    text_of,
)
from qwen_task_heads.labels.label_map import LabelMap

KEYS = {"type", "criteria", "instructions"}  # of a question in a record
FORM = '{"name": {"type": "choice", "criteria": {"option": "description or null"}}}'
ONE_DEFINITION = "one definition of a question in all rows"


@dataclass(frozen=True)
class RecordQuestion:
    """A question as a row states it.

    Args:
        name: its name.
        type: `choice`, `score` or `noul`.
        options: options, levels, or false and true.
        descriptions: of the options, "" without one; () without any.
        instructions: its text; None without one.
    """

    name: str
    type: str
    options: tuple[str, ...]
    descriptions: tuple[str, ...] = ()
    instructions: str | None = None

    @property
    def definition(self) -> tuple[Any, ...]:
        """All but the order of the options of a choice, which has no meaning."""
        described = [*zip(self.options, self.descriptions or [""] * len(self.options), strict=True)]
        return self.type, self.instructions, sorted(described) if self.type == "choice" else described

    def as_dict(self, options: Sequence[str]) -> dict[str, Any]:
        """Return the question for a config, with its options in an order."""
        result: dict[str, Any] = {"name": self.name, "type": self.type}
        if self.instructions is not None:
            result["instructions"] = self.instructions
        if self.type != "noul":
            result["options"] = list(options)
        if any(self.descriptions):
            described = dict(zip(self.options, self.descriptions, strict=True))
            result["descriptions"] = [described[option] or None for option in options]
        return result


@dataclass(frozen=True)
class Record:
    """The target of a row: its questions, and P(option) of each answered one, in the order of its options."""

    questions: tuple[RecordQuestion, ...]
    answers: tuple[tuple[str, tuple[float, ...]], ...]


def read_record(row: RowReader) -> Record | None:
    """Read `questions`, `answers` and `soft_labels` of a row; return None if the row is refused."""
    before = len(row.problems)
    questions = {}
    for name, stated in (_mapping(row, "questions", FORM) or {}).items():
        question = None if stated is None else _read_question(row, name, stated)
        if question is not None:
            questions[name] = question
    if len(row.problems) > before:
        return None
    if not questions:
        row.refuse("'questions' names no question", FORM, "name the questions", code="value-missing")
        return None
    shares: dict[str, tuple[float, ...]] = {}
    for column, read in (("answers", _read_answer), ("soft_labels", _read_soft)):
        for name, value in (_mapping(row, column, "{name: answer}") or {}).items():
            if value is None:
                continue
            if name not in questions:
                problem = f"{column!r} names {shorten(name)}, which 'questions' does not"
                fix = "correct the name, or add the question"
                row.refuse(problem, f"one of {shorten([*questions])}", fix, code="label-unknown")
                continue
            share = read(row, questions[name], value)
            if share is not None:
                shares[name] = share
    if len(row.problems) > before:
        return None
    if not shares:
        problem, expected = "no question has an answer", "'answers' or 'soft_labels' with at least one"
        row.refuse(problem, expected, "answer a question, or remove the row", code="value-missing")
        return None
    answers = tuple((name, shares[name]) for name in questions if name in shares)
    return Record(tuple(questions.values()), answers)


def read_group(row: RowReader) -> str:
    """Return the key of the group in `meta`, or in a column of groups; "" if there is none."""
    meta = row.values.get("meta")
    meta = parse_cell(meta) if isinstance(meta, str) else meta
    if not isinstance(meta, dict) or meta.get("group") is None:
        return row.group()
    inner = RowReader(row.where, {"group": meta["group"]})
    group = inner.group()
    row.problems += inner.problems
    return group


def _mapping(row: RowReader, column: str, expected: str) -> dict[str, Any] | None:
    """Return the mapping of a column, which may be JSON text; None if it is absent or refused."""
    value = row.values.get(column)
    value = parse_cell(value) if isinstance(value, str) else value
    if value is None or value == "":
        return None
    if not isinstance(value, dict):
        row.refuse_value(column, value, expected, "write a mapping of names", code=code_of(value))
        return None
    return value


def _read_question(row: RowReader, name: str, stated: Any) -> RecordQuestion | None:
    """Return a question; None if it is refused."""
    where = f"question {shorten(name)}"
    if not name.strip() or not isinstance(stated, dict) or not stated.keys() <= KEYS:
        row.refuse(f"{where} is {shorten(stated)}", FORM, "correct the question", code="value-type")
        return None
    if stated.get("type") not in TYPES:
        problem = f"the type of {where} is {shorten(stated.get('type'))}"
        row.refuse(problem, ", ".join(TYPES), "correct the type", code="label-invalid")
        return None
    try:
        return _question(name, json.dumps(stated, ensure_ascii=False))
    except ValueError as error:
        row.refuse(f"'criteria' of {where}: {error}", FORM, "correct the criteria", code="label-invalid")
        return None


@lru_cache(maxsize=4096)
def _question(name: str, stated: str) -> RecordQuestion:
    """Return a question of valid type; equal questions of different rows are one object.

    Raises:
        ValueError: criteria that do not fit the type.
    """
    given = json.loads(stated)
    kind, criteria = given["type"], given.get("criteria")
    texts: list[str] = []
    if kind == "score":
        if not isinstance(criteria, list):
            raise ValueError("a score needs the list of its levels, lowest first")
        options = [text_of(level) for level in criteria]
    else:
        if not isinstance(criteria, dict) and not (kind == "noul" and criteria is None):
            raise ValueError("a choice needs a mapping of its options, a noul one of true and false or none")
        described = dict(criteria or {})
        options = list(NOUL) if kind == "noul" else [option for option in described]
        if kind == "noul" and described.keys() - set(NOUL):
            raise ValueError("the options of a noul are true and false")
        texts = ["" if described.get(one) is None else text_of(described[one]) for one in options]
    if len(options) < 2 or len(set(options)) < len(options) or not all(map(str.strip, options)):
        raise ValueError("it needs at least two different options")
    instructions = given.get("instructions")
    return RecordQuestion(
        name=name,
        type=kind,
        options=tuple(options),
        descriptions=tuple(texts) if any(texts) else (),
        instructions=None if instructions is None else text_of(instructions),
    )


def _read_answer(row: RowReader, question: RecordQuestion, value: Any) -> tuple[float, ...] | None:
    """Return P(option) of a hard answer: 1 for its option."""
    options, kind = question.options, question.type
    last = len(options) - 1
    if kind == "noul" and isinstance(value, bool):
        return (float(not value), float(value))
    if kind != "noul" and isinstance(value, str) and value in options:
        return tuple(float(option == value) for option in options)
    if kind == "score" and is_number(value) and 0 <= value <= last:
        return tuple(max(0.0, 1.0 - abs(value - level)) for level in range(last + 1))
    expected = {
        "noul": "true or false",
        "score": f"a level from 0 to {last}, or one of {shorten(list(options))}",
    }.get(kind, f"one of {shorten(list(options))}")
    problem = f"the answer to {shorten(question.name)} is {shorten(value)}"
    row.refuse(problem, expected, "correct the answer", code="label-unknown")
    return None


def _read_soft(row: RowReader, question: RecordQuestion, value: Any) -> tuple[float, ...] | None:
    """Return P(option) of a soft label, divided by the sum, which may differ from 1 by 1e-3."""
    options = question.options
    levels = {str(level): option for level, option in enumerate(options)} if question.type == "score" else {}
    if question.type == "noul" and is_number(value):
        value = {"true": value, "false": 1 - value}
    if isinstance(value, list):
        value = dict(zip(options, value, strict=False)) if len(value) == len(options) else None
    expected = f"probabilities of {shorten(list(options))}, with sum 1"
    problem, code = f"the soft label of {shorten(question.name)} is {shorten(value)}", "value-type"
    shares = dict.fromkeys(options, 0.0)
    if isinstance(value, dict):
        value = {name: share for name, share in value.items() if share is not None}
        unknown = [name for name in value if name not in shares and name not in levels]
        if unknown:
            problem, code = f"{problem[: problem.index(' is ')]} names {shorten(unknown[0])}", "label-unknown"
        elif all(is_number(share) and 0 <= share <= 1 for share in value.values()):
            for name, share in value.items():
                shares[name if name in shares else levels[name]] += share
            total = math.fsum(shares.values())
            if abs(total - 1) <= 1e-3:  # numbers may be rounded to three digits
                return tuple(share / total for share in shares.values())
            problem = f"the soft label of {shorten(question.name)} has the sum {total:.6g}"
            code = "value-range"
    row.refuse(problem, expected, "correct the probabilities", code=code)
    return None


def derive_questions(
    rows: Sequence[RawTarget], *, source: str, given: Sequence[Mapping[str, Any]] = ()
) -> tuple[dict[str, Any], ...]:
    """Return the questions of a run, as a config has them.

    Args:
        rows: each different target of the training rows.
        source: name of the training set, for messages.
        given: questions of a saved model, which the rows must have.

    Raises:
        TaskHeadsError: two definitions of one question, or a question that no row answers.
    """
    first: dict[str, tuple[RecordQuestion, str]] = {}
    option_orders: dict[str, set[tuple[str, ...]]] = {}
    problems: list[Problem] = []
    for raw in rows:
        for question in raw.value.questions:
            known, where = first.setdefault(question.name, (question, raw.where))
            option_orders.setdefault(question.name, set()).add(question.options)
            if known is not question and known.definition != question.definition:
                problem = f"the question {shorten(question.name)} differs from that at {where}"
                fix = "write it as there, or give it another name"
                problems.append(RowProblem(raw.where, problem, ONE_DEFINITION, fix, code="rows-conflict"))
    if problems:
        raise TaskHeadsError(problems)
    if given:
        return tuple(map(dict, given))
    answered = {name for raw in rows for name, _ in raw.value.answers}
    for name, (_, where) in first.items():
        if name not in answered:
            problem, fix = f"no row of train answers the question {shorten(name)}", "drop it, or answer it"
            problems.append(Problem(where, problem, "an answer", fix, code="rows-too-few"))
    if problems:
        raise TaskHeadsError(problems)
    orders = {tuple(question.name for question in raw.value.questions) for raw in rows}
    names = [*orders.pop()] if len(orders) == 1 else sorted(first)
    questions = []
    for name in names:
        own = option_orders[name]
        options = next(iter(own)) if len(own) == 1 else tuple(sorted(first[name][0].options))
        questions.append(first[name][0].as_dict(options))
    labels = label_names(questions)
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        problem, expected = f"two questions have an output called {shorten(twice)}", "names that differ"
        raise error_at(source, problem, expected, "rename a question", code="label-invalid")
    return tuple(questions)


def labels_of_questions(questions: Sequence[Mapping[str, Any]]) -> LabelMap:
    """Return the outputs of all questions as labels."""
    return LabelMap(tuple(label_names(questions)))


def resolve_record(raw: RawTarget, questions: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Return the targets (L,) of the outputs of all questions: P(option), P(true), or -1 without an answer.

    Raises:
        TaskHeadsError: the row has another question than the run, or another definition of one.

    Example:
        >>> from qwen_task_heads.data.question_records import Record, RecordQuestion, resolve_record
        >>> asked = RecordQuestion("refund", "noul", ("false", "true"))
        >>> raw = RawTarget(value=Record((asked,), (("refund", (0.0, 1.0)),)))
        >>> resolve_record(raw, [{"name": "refund", "type": "noul"}, {"name": "spam", "type": "noul"}])
        (1.0, -1.0)
    """
    known = {question["name"]: question for question in questions}
    for own in raw.value.questions:
        if own.name not in known:
            problem = f"found the question {shorten(own.name)}"
            expected = f"questions of the model or of train: {shorten([*known])}"
            raise error_at(raw.where, problem, expected, "remove it from the row", code="label-unknown")
        wanted = known[own.name]
        if own.definition != _of_config(wanted).definition:
            problem, fix = f"the question {shorten(own.name)} has another definition", "write it as there"
            expected = f"that of the model or of train: {shorten(wanted, 200)}"
            raise error_at(raw.where, problem, expected, fix, code="rows-conflict")
    options = {own.name: own.options for own in raw.value.questions}
    shares = {name: dict(zip(options[name], values, strict=True)) for name, values in raw.value.answers}
    target: list[float] = []
    for question, size in zip(questions, sizes_of(questions), strict=True):
        own_shares = shares.get(question["name"])
        outputs = ["true"] if question["type"] == "noul" else options_of(question)
        target += [UNANSWERED] * size if own_shares is None else [own_shares[one] for one in outputs]
    return tuple(target)


def _of_config(question: Mapping[str, Any]) -> RecordQuestion:
    descriptions = tuple(text or "" for text in question.get("descriptions") or ())
    options = tuple(options_of(question))
    return RecordQuestion(
        question["name"], question["type"], options, descriptions, question.get("instructions")
    )


def question_lines(questions: Sequence[Mapping[str, Any]], targets: Sequence[Any]) -> list[str]:
    """Return messages on the questions, and on those with few or equal answers.

    Args:
        questions: of the run.
        targets: of the training rows, from `resolve_record`.
    """
    kinds = {"choice": "{} options", "score": "{} levels", "noul": "yes or no"}
    named = [
        f"{shorten(one['name'], 40)} ({kinds[one['type']].format(len(options_of(one)))})" for one in questions
    ]
    lines, start = [f"questions: {len(questions)}, {', '.join(named)}"], 0
    for question, size in zip(questions, sizes_of(questions), strict=True):
        own = [target[start : start + size] for target in targets if target[start] != UNANSWERED]
        start += size
        name = shorten(question["name"], 40)
        if len(own) < len(targets):
            lines.append(f"questions: {name} is answered in {len(own):,} of {len(targets):,} rows of train")
        if len(set(own)) == 1:
            lines.append(f"questions: {name} has the same answer in every row of train")
    return lines
