"""The label audit: planted errors are found, a review file is written, edited, read back and applied."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from problem_assertions import raises_problem
from records import record, write_records

from qwen_task_heads import AuditArguments, TaskHeadsError, audit_dataset, read_text_sets, read_title_sets

WORDS = {"sport": "goal match team coach", "money": "bank price tax loan", "health": "doctor sleep diet pill"}
LABELS = sorted(WORDS)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(path: Path, *, flipped: int = 12) -> tuple[str, set[str]]:
    """Write 240 texts with some wrong labels; return the file and the places of these."""
    draw, rows, wrong = random.Random(0), [], set()
    for number in range(240):
        label = LABELS[number % 3]
        words = draw.sample(WORDS[label].split(), 2) + [f"word{draw.randrange(99)}" for _ in range(3)]
        if number % 20 == 0 and len(wrong) < flipped:
            wrong.add(f"{path.name}:{number + 1}")
            label = LABELS[(number + 1) % 3]
        rows.append({"text": " ".join(words), "label": label})
    return write(path, rows), wrong


def pairs(path: Path) -> tuple[str, set[str]]:
    draw, rows, wrong = random.Random(0), [], set()
    for number in range(200):
        good, bad = (f"{word} title {draw.randrange(99)} {number}" for word in ("great", "dull"))
        if number % 20 == 0:
            good, bad = bad, good
            wrong.add(f"{path.name}:{number + 1}")
        rows.append({"chosen": good, "rejected": bad})
    return write(path, rows), wrong


def arguments(source: str, dev: str, folder: Path, **options: Any) -> AuditArguments:
    return AuditArguments(dataset_name=source, dev_dataset=dev, output_dir=str(folder), **options)


def entries(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def edited(path: Path, rows: list[dict[str, str]], *, delimiter: str = ",") -> str:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_wrong_labels_are_found_reviewed_and_corrected(tmp_path: Path) -> None:
    source, wrong = texts(tmp_path / "train.jsonl")
    dev, _ = texts(tmp_path / "dev.jsonl", flipped=0)
    report = audit_dataset(arguments(source, dev, tmp_path / "out"))
    assert report.wrong == pytest.approx(len(wrong), abs=2)
    rows = entries(report.path)
    assert {row["row"] for row in rows[: len(wrong)]} == wrong
    for row in rows:
        row["decision"] = row["suggested"] if row["row"] in wrong else "keep"
    rows[0]["decision"] = "DROP"
    review = edited(tmp_path / "edited.csv", rows, delimiter=";")
    applied = audit_dataset(arguments(source, dev, tmp_path / "out", review=review))
    assert applied.wrong == len(wrong)
    assert applied.before is not None
    assert applied.after is not None
    assert applied.after.value >= applied.before.value
    cleaned = read_text_sets(str(applied.path), dev=dev).train
    assert len(cleaned) == 239
    assert all(row.text.split()[0] in WORDS[LABELS[row.target]].split() for row in cleaned)


def test_wrong_pairs_are_found_and_exchanged(tmp_path: Path) -> None:
    source, wrong = pairs(tmp_path / "train.jsonl")
    options = {"task": "titles", "model_name_or_path": "embedded"}
    report = audit_dataset(arguments(source, source, tmp_path / "out", **options))
    rows = entries(report.path)
    assert {row["row"] for row in rows[: len(wrong)]} == wrong
    assert {row["suggested"] for row in rows[: len(wrong)]} == {"swap"}
    for row in rows[: len(wrong)]:
        row["decision"] = "swap"
    review = edited(tmp_path / "edited.csv", rows)
    applied = audit_dataset(arguments(source, source, tmp_path / "out", review=review, task="titles"))
    cleaned = read_title_sets(str(applied.path), dev=source).train
    assert len(cleaned) == 200
    assert all(row.chosen.startswith("great") for row in cleaned)


def test_several_labels(tmp_path: Path) -> None:
    draw, rows = random.Random(0), []
    for number in range(240):
        own = draw.sample(LABELS, draw.choice((1, 2)))
        words = [draw.choice(WORDS[label].split()) for label in own] + [f"word{number % 50}"]
        rows.append({"text": f"{' '.join(words)} {number}", "labels": own})
    rows[7]["labels"] = [label for label in LABELS if label not in rows[7]["labels"]]
    source = write(tmp_path / "train.jsonl", rows)
    report = audit_dataset(arguments(source, source, tmp_path / "out", model_name_or_path="embedded"))
    found = entries(report.path)
    assert "train.jsonl:8" in {row["row"] for row in found[:3]}
    [entry] = [row for row in found if row["row"] == "train.jsonl:8"]
    entry["decision"] = "money|sport"
    review = edited(tmp_path / "edited.csv", [entry])
    applied = audit_dataset(arguments(source, source, tmp_path / "out", review=review))
    cleaned = [json.loads(line) for line in applied.path.read_text(encoding="utf-8").splitlines()]
    assert cleaned[7]["labels"] == ["money", "sport"]
    assert cleaned[7]["audited_from"] == "train.jsonl:8"


def test_a_review_of_other_data_and_unknown_decisions_are_refused_together(tmp_path: Path) -> None:
    source, _ = texts(tmp_path / "train.jsonl")
    report = audit_dataset(arguments(source, source, tmp_path / "out"))
    rows = entries(report.path)[:5]
    rows[0]["decision"] = "sprt"
    rows[1]["hash"] = "0" * 16
    rows[2]["row"] = "train.jsonl:9999"
    rows[4] = dict(rows[3])
    review = edited(tmp_path / "edited.csv", rows)
    with pytest.raises(TaskHeadsError) as caught:
        audit_dataset(arguments(source, source, tmp_path / "out", review=review))
    found = [(problem.where, problem.code) for problem in caught.value.problems]
    assert found == [
        (f"{review}:2", "label-unknown"),
        (f"{review}:3", "dataset-mismatch"),
        (f"{review}:4", "dataset-mismatch"),
        (f"{review}:6", "value-conflict"),
    ]
    with raises_problem("column-missing", review):
        audit_dataset(arguments(source, source, tmp_path, review=edited(Path(review), [{"row": "1"}])))
    missing = str(tmp_path / "none.csv")
    with raises_problem("file-format", missing):
        audit_dataset(arguments(source, source, tmp_path, review=missing))


def test_data_that_cannot_be_audited_are_refused(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", [{"text": f"text {n}", "label": f"l{n % 2}"} for n in range(30)])
    with raises_problem("rows-too-few", few):
        audit_dataset(arguments(few, few, tmp_path))
    scores = write(tmp_path / "scores.jsonl", [{"text": f"text {n}", "score": n / 7} for n in range(60)])
    with raises_problem("option-unsupported", scores):
        audit_dataset(arguments(scores, scores, tmp_path))
    asked = write_records(tmp_path / "asked.jsonl", [record(number) for number in range(60)])
    with raises_problem("option-unsupported", asked, match="questions"):
        audit_dataset(arguments(asked, asked, tmp_path))
    counts = {"clicks": 5, "impressions": 100}
    arms = [
        {"headline": f"title {n} {k}", "test_id": n, **counts, "clicks": 5 + k}
        for n in range(60)
        for k in (0, 1)
    ]
    source = write(tmp_path / "arms.jsonl", arms)
    with raises_problem("option-unsupported", source):
        audit_dataset(arguments(source, source, tmp_path, task="titles"))


def test_texts_that_spreadsheets_would_compute_are_quoted(tmp_path: Path) -> None:
    source, wrong = texts(tmp_path / "train.jsonl")
    rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["text"] = "=HYPERLINK(1) " + row["text"]
    source = write(tmp_path / "train.jsonl", rows)
    report = audit_dataset(arguments(source, source, tmp_path / "out"))
    assert all(row["text"].startswith("'=") for row in entries(report.path))
    assert {row["row"] for row in entries(report.path)[: len(wrong)]} == wrong
