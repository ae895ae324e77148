"""Records with several questions: their answers as targets, and every defect of a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from problem_assertions import raises_problem
from records import ASKED, QUESTIONS, record, write_records

from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.data.text_readers import read_inputs


def read(folder: Path, *rows: dict[str, Any], **options: Any) -> TextSets:
    """Read rows as dev, after two complete records in train."""
    train = write_records(folder / "train.jsonl", [record(0), record(1)])
    dev = write_records(folder / "dev.jsonl", [*rows])
    return read_text_sets(train, dev=dev, **options)


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({}, (1.0, 0.0, 0.0, 0.0, 1.0, 1.0)),
        ({"urgency": "this week"}, (1.0, 0.0, 0.0, 1.0, 0.0, 1.0)),
        ({"urgency": 0.25}, (1.0, 0.0, 0.75, 0.25, 0.0, 1.0)),  # between two levels
        ({"refund": False}, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
        ({"intent": None}, (-1.0, -1.0, 0.0, 0.0, 1.0, 1.0)),  # not answered
    ],
)
def test_answers_become_probabilities_of_the_outputs(tmp_path: Path, fields: Any, target: Any) -> None:
    sets = read(tmp_path, record(answers={"intent": "card", "urgency": 2, "refund": True} | fields))
    assert (sets.problem_type, [*sets.questions]) == ("questions", QUESTIONS)
    [row] = sets.dev
    assert row.target == target
    assert all(isinstance(share, float) for share in row.target)  # an int would be the id of a label


@pytest.mark.parametrize(
    ("soft", "target"),
    [
        ({"intent": {"card": 0.8, "cash": 0.2}}, (0.8, 0.2, 0.0, 0.0, 1.0, -1.0)),
        ({"intent": [0.8, 0.2]}, (0.8, 0.2, 0.0, 0.0, 1.0, -1.0)),
        ({"urgency": {"0": 0.5, "today": 0.5}}, (1.0, 0.0, 0.5, 0.0, 0.5, -1.0)),
        ({"refund": 0.75}, (1.0, 0.0, 0.0, 0.0, 1.0, 0.75)),
        ({"refund": {"true": 0.75, "false": 0.25}}, (1.0, 0.0, 0.0, 0.0, 1.0, 0.75)),
        ({"intent": {"card": 0.333, "cash": 0.6665}}, (0.333 / 0.9995, 0.6665 / 0.9995, 0.0, 0.0, 1.0, -1.0)),
    ],
)
def test_soft_labels_replace_answers(tmp_path: Path, soft: Any, target: Any) -> None:
    row = record(answers={"intent": "card", "urgency": 2}, soft_labels=soft)
    assert read(tmp_path, row).dev[0].target == pytest.approx(target)


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({"answers": {"intent": "weather"}}, "label-unknown", "weather"),
        ({"answers": {"urgency": 3}}, "label-unknown", "urgency"),
        ({"answers": {"urgency": "tomorrow"}}, "label-unknown", "tomorrow"),
        ({"answers": {"refund": "true"}}, "label-unknown", "refund"),
        ({"answers": {"refund": 1}}, "label-unknown", "refund"),
        ({"answers": {"colour": "red"}}, "label-unknown", "colour"),
        ({"answers": {}}, "value-missing", "answer"),
        ({"answers": {"intent": None}}, "value-missing", "answer"),
        ({"answers": ["card"]}, "value-type", "answers"),
        ({"soft_labels": {"intent": {"card": 0.8, "cash": 0.3}}}, "value-range", "1.1"),
        ({"soft_labels": {"intent": {"card": 0.8, "bill": 0.2}}}, "label-unknown", "bill"),
        ({"soft_labels": {"intent": [1.0]}}, "value-type", "intent"),
        ({"soft_labels": {"refund": 2}}, "value-type", "refund"),
        ({"questions": {}}, "value-missing", "question"),
        ({"questions": "intent"}, "value-type", "questions"),
        ({"questions": {"intent": "card"}}, "value-type", "intent"),
        ({"questions": {"intent": {"type": "guess"}}}, "label-invalid", "guess"),
        (
            {"questions": {"intent": {"type": "choice", "criteria": ["card", "cash"]}}},
            "label-invalid",
            "intent",
        ),
        ({"questions": {"intent": {"type": "choice", "criteria": {"card": None}}}}, "label-invalid", "two"),
        ({"questions": {"urgency": {"type": "score", "criteria": {"a": None}}}}, "label-invalid", "urgency"),
        ({"questions": {"refund": {"type": "noul", "criteria": {"yes": None}}}}, "label-invalid", "refund"),
        ({"questions": {"spam": {"type": "noul"}}, "answers": {"spam": True}}, "label-unknown", "spam"),
        (
            {"questions": {"refund": {"type": "noul"}}, "answers": {"refund": True}},  # other instructions
            "rows-conflict",
            "refund",
        ),
        ({"meta": {"group": 1.5}}, "value-type", "group"),
        ({"state": 7}, "value-type", "state"),
        ({"state": {}}, "value-type", "state"),
        ({"state": "  "}, "text-empty", "state"),
    ],
)
def test_every_defect_names_its_row(tmp_path: Path, fields: Any, code: str, named: str) -> None:
    with raises_problem(code, f"{tmp_path}/dev.jsonl:1", match=named) as problems:
        read(tmp_path, record(**fields))
    assert len(problems) == 1


def test_two_definitions_of_a_question_in_train(tmp_path: Path) -> None:
    changed = ASKED | {"urgency": {"type": "score", "criteria": ["today", "can wait", "this week"]}}
    path = write_records(tmp_path / "train.jsonl", [record(0), record(1, questions=changed)])
    with raises_problem("rows-conflict", f"{path}:2", match="urgency"):
        read_text_sets(path, dev=path)


def test_a_question_that_no_row_answers(tmp_path: Path) -> None:
    answers = {"intent": "card", "urgency": 1}
    path = write_records(tmp_path / "train.jsonl", [record(number, answers=answers) for number in range(4)])
    with raises_problem("rows-too-few", match="refund"):
        read_text_sets(path, dev=path)


def test_outputs_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    turned = {"criteria": {"cash": "Cash and machines", "card": None}}
    part = {"refund": ASKED["refund"], "intent": ASKED["intent"] | turned}
    rows = [record(0), record(1, questions=part, answers={"refund": True, "intent": "cash"})]
    found = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        path = write_records(tmp_path / f"{name}.jsonl", order)
        sets = read_text_sets(path, dev=path)
        found.append((sets.questions, {row.text: row.target for row in sets.train}))
    assert found[0] == found[1]
    assert [question["name"] for question in found[0][0]] == ["intent", "refund", "urgency"]
    assert [*found[0][1].values()][1] == (0.0, 1.0, 1.0, -1.0, -1.0, -1.0)


def test_a_group_of_meta_stays_in_one_split(tmp_path: Path) -> None:
    path = write_records(tmp_path / "train.jsonl", [record(number) for number in range(60)])
    sets = read_text_sets(path, dev_fraction=0.3)
    groups = [{row.group for row in rows} for rows in (sets.train, sets.dev)]
    assert groups[0].isdisjoint(groups[1])
    assert len(sets.dev) == 2 * len(groups[1])


def test_a_state_of_fields_is_json_and_columns_may_be_json_text(tmp_path: Path) -> None:
    state = {"subject": "Karte", "body": ["verloren", 1]}
    row = record(state=state)
    row |= {name: json.dumps(row[name]) for name in ("questions", "answers", "meta")}
    [found] = read(tmp_path, row).dev
    assert (found.text, found.group) == (json.dumps(state), "customer 0")
    [(_, asked)] = read_inputs(write_records(tmp_path / "new.jsonl", [{"state": state}]))
    assert asked.text == json.dumps(state)  # type: ignore[union-attr]


def test_a_column_called_state_is_no_text_beside_labels(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.jsonl", [{"state": "Ohio", "text": "x", "label": "a"}] * 2)
    with raises_problem("rows-too-few"):  # read by its text: one label
        read_text_sets(path, dev=path)
    path = write_records(tmp_path / "b.jsonl", [{"state": "Ohio", "label": "a"}] * 2)
    with raises_problem("column-missing"):
        read_text_sets(path, dev=path)


@pytest.mark.parametrize("option", ["labels", "mix"])
def test_options_of_labels_are_refused(tmp_path: Path, option: str) -> None:
    other = write_records(tmp_path / "other.jsonl", [record(7)])
    if option == "labels":
        Path(other).write_text("card\ncash\n")
    with raises_problem("option-unsupported", f"--{option}"):
        read(tmp_path, record(3), **{option: other})


def test_the_questions_of_a_saved_model_are_required(tmp_path: Path) -> None:
    fewer = [question for question in QUESTIONS if question["name"] != "refund"]
    with raises_problem("label-unknown", f"{tmp_path}/train.jsonl:1", match="refund"):
        read(tmp_path, record(3), problem_type="questions", questions=fewer)
    more = [*QUESTIONS, {"name": "spam", "type": "noul"}]
    sets = read(tmp_path, record(3), problem_type="questions", questions=more)
    assert sets.train[0].target[-1] == -1.0
