"""Apply each fix of the problems of records with several questions, and read the data again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixes import refused
from reading import Case, Change, follow, lines, of_row, texts, write
from records import ASKED, record

from qwen_task_heads.reports.sweeps import open_sweep
from qwen_task_heads.training.sweep_arguments import parse_sweep_arguments

HERE = "data/question_records.py::"
BASE = [record(number) for number in range(6)]
INTENT = ASKED["intent"]


def of_record(site: str, ways: dict[str, Any], **bad: Any) -> Case:
    """Return a case of one bad record after good ones; a way is the fields that replace the bad ones."""
    changes = {way: fields if fields is None else record(7, **fields) for way, fields in ways.items()}
    return of_row(site, record(7, **bad), changes, base=BASE)


def of_all(site: str, rows: list[Any], ways: dict[str, list[Any]], *, at: str) -> Case:
    """Return a case of the whole training set."""
    changes: dict[str, Change] = {way: {"train.jsonl": lines(*done)} for way, done in ways.items()}
    return Case(site, {"train.jsonl": lines(*rows)}, at, changes)


def of_dev(site: str, bad: Any, ways: dict[str, Any]) -> Case:
    """Return a case of a record of dev."""
    files = {"train.jsonl": lines(*BASE), "dev.jsonl": lines(bad)}
    changes: dict[str, Change] = {way: {"dev.jsonl": lines(done)} for way, done in ways.items()}
    return Case(site, files, "dev.jsonl:1", changes, words="--dev_dataset HERE/dev.jsonl")


def asking(rows: list[Any], **questions: Any) -> list[Any]:
    """Return records with further questions; a question of None is removed."""
    asked = {name: one for name, one in (ASKED | questions).items() if one is not None}
    return [row | {"questions": asked} for row in rows]


def answering(rows: list[Any], **answers: Any) -> list[Any]:
    """Return records with further answers."""
    return [row | {"answers": row["answers"] | answers} for row in rows]


SPAM = {"type": "noul"}
OTHER = {"type": "score", "criteria": ["today", "this week", "can wait"]}
CASES = [
    of_record(f"{HERE}read_record::row", {"name the questions": {}}, questions={}),
    of_record(
        f"{HERE}read_record::row#2",
        {
            "correct the name": {"answers": {"refund": True}},
            "add the question": {"questions": ASKED | {"refnud": SPAM}, "answers": {"refnud": True}},
        },
        answers={"refnud": True},
    ),
    of_record(f"{HERE}read_record::row#3", {"answer a question": {}, "remove the row": None}, answers={}),
    of_record(f"{HERE}_mapping::row", {"write a mapping of names": {}}, answers="card"),
    of_record(
        f"{HERE}_read_question::row",
        {"correct the question": {}},
        questions={"intent": {**INTENT, "options": 2}},
    ),
    of_record(
        f"{HERE}_read_question::row#2", {"correct the type": {}}, questions={"intent": {"type": "label"}}
    ),
    of_record(
        f"{HERE}_read_question::row#3", {"correct the criteria": {}}, questions={"intent": {"type": "choice"}}
    ),
    of_record(f"{HERE}_read_answer::row", {"correct the answer": {}}, answers={"intent": "weather"}),
    of_record(
        f"{HERE}_read_soft::row",
        {"correct the probabilities": {"soft_labels": {"intent": {"card": 0.9, "cash": 0.1}}}},
        soft_labels={"intent": {"card": 0.9, "cash": 0.9}},
    ),
    of_all(
        f"{HERE}derive_questions::raw.where",
        [*BASE, *asking([record(7)], urgency=OTHER)],
        {
            "write it as there": [*BASE, record(7)],
            "give it another name": [
                *BASE,
                *asking([record(7, answers={"hurry": 2})], urgency=None, hurry=OTHER),
            ],
        },
        at="train.jsonl:7",
    ),
    of_all(
        f"{HERE}derive_questions::where",
        asking(BASE, spam=SPAM),
        {"drop it": BASE, "answer it": answering(asking(BASE, spam=SPAM), spam=True)},
        at="train.jsonl:1",
    ),
    of_all(
        f"{HERE}derive_questions::source",
        answering(asking(BASE, **{"intent=card": SPAM}), **{"intent=card": True}),
        {"rename a question": answering(asking(BASE, card=SPAM), card=True)},
        at="train.jsonl",
    ),
    of_dev(
        f"{HERE}resolve_record::raw.where",
        asking([record(7)], spam=SPAM)[0],
        {"remove it from the row": record(7)},
    ),
    of_dev(
        f"{HERE}resolve_record::raw.where#2",
        asking([record(7)], urgency=OTHER)[0],
        {"write it as there": record(7)},
    ),
    Case(
        "data/text_datasets.py::_records_scheme::option",
        {"train.jsonl": lines(*BASE), "in/labels.yaml": "- card\n- cash\n"},
        "--labels",
        {"drop --labels": ""},
        words="--labels HERE/in/labels.yaml",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fixed_records_are_read(case: Case, tmp_path: Path) -> None:
    follow(case, tmp_path)


def test_a_sweep_refuses_records(tmp_path: Path) -> None:
    source = write(tmp_path / "rows", {"train.jsonl": lines(*BASE)})
    words = ["--dataset_name", source, "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    with refused("reports/sweeps.py::TextSweep._read::--dataset_name") as found:
        open_sweep(*parse_sweep_arguments([*words, "--dev_fraction", "0.5"]))
    assert found[0].fix.endswith("qth classify")
    assert texts(source, "--loss question_mean").questions
