"""Soft targets of a teacher: linear, a head, a generative classifier, a title scorer; and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problem_assertions import raises_problem

from qwen_task_heads import (
    DistillationArguments,
    Scorer,
    TaskHeadsError,
    build,
    distill,
    load_tokenizer,
    read_text_sets,
    read_title_sets,
    save,
)

WORDS = {"money": ["bank", "price", "tax", "loan"], "sport": ["goal", "match", "team", "coach"]}
LABELS = sorted(WORDS)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    draw = random.Random(0)
    labels = [LABELS[number % 2] for number in range(80)]
    rows = [
        {"text": f"{draw.choice(WORDS[label])} word{n}", "label": label} for n, label in enumerate(labels)
    ]
    return write(tmp_path / "train.jsonl", rows)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def saved(folder: Path, **options: Any) -> str:
    save(
        build("embedded", pooling="mean", **options), tokenizer=load_tokenizer("embedded"), folder=str(folder)
    )
    return str(folder)


def given(source: str, folder: Path, **options: Any) -> DistillationArguments:
    options = {"teacher": "tfidf", "output_file": str(folder / "soft.jsonl"), **options}
    return DistillationArguments(dataset_name=source, dev_dataset=source, **options)


def test_a_linear_teacher_answers_rows_and_a_pool(texts: str, tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.jsonl", [{"text": "goal of the team"}, {"text": "price of a loan"}])
    report = distill(given(texts, tmp_path, unlabeled_dataset=pool, mix=0.25))
    rows = lines(report.path)
    assert (report.rows, report.more, len(rows)) == (80, 2, 82)
    assert report.agreement > 0.9
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    hard = [json.loads(line)["label"] for line in Path(texts).read_text(encoding="utf-8").splitlines()]
    assert all(row["probabilities"][label] >= 0.25 for row, label in zip(rows, hard, strict=False))
    assert rows[80]["probabilities"]["sport"] > 0.5 > rows[81]["probabilities"]["sport"]
    sets = read_text_sets(str(report.path), dev=texts)
    assert all(row.soft is not None for row in sets.train)


def test_a_head_is_a_teacher_at_a_temperature(texts: str, tmp_path: Path) -> None:
    teacher = saved(tmp_path / "model", task="pooled_classifier", labels=LABELS)
    asked = [row["text"] for row in lines(Path(texts))]
    logits = Scorer(teacher).logits(asked).double().numpy() / 2
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    report = distill(given(texts, tmp_path, teacher=teacher, temperature=2, mix=0))
    found = np.array([[row["probabilities"][label] for label in LABELS] for row in lines(report.path)])
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_pairs_get_preferences_of_a_scorer_and_of_a_linear_teacher(tmp_path: Path) -> None:
    rows = [{"chosen": f"great title {n}", "rejected": f"dull title {n}"} for n in range(60)]
    rows[5]["preference"] = 0.75
    source = write(tmp_path / "pairs.jsonl", rows)
    teacher = saved(tmp_path / "model")
    report = distill(given(source, tmp_path, task="titles", teacher=teacher, mix=0.5))
    scorer = Scorer(teacher)
    gaps = np.array(scorer.score([row["chosen"] for row in rows])) - scorer.score(
        [row["rejected"] for row in rows]
    )
    own = np.array([row.get("preference", 1.0) for row in rows])
    found = np.array([row["preference"] for row in lines(report.path)])
    np.testing.assert_allclose(found, 0.5 * own + 0.5 / (1 + np.exp(-gaps)), atol=2e-6)
    assert "--loss soft" in report.next
    linear = distill(given(source, tmp_path, task="titles"))
    assert linear.agreement > 0.9
    assert len(read_title_sets(str(linear.path), dev=source).train) == 60


def test_bad_input_is_named(texts: str, tmp_path: Path) -> None:
    with pytest.raises(TaskHeadsError) as caught:
        distill(given(texts, tmp_path, temperature=0, mix=2, task="titles", unlabeled_dataset=texts))
    assert [one.where for one in caught.value.problems] == ["--temperature", "--mix", "--unlabeled_dataset"]
    other = saved(tmp_path / "other", task="pooled_classifier", labels=["sport", "weather"])
    with raises_problem("label-conflict", "--teacher"):
        distill(given(texts, tmp_path, teacher=other))
    with raises_problem("label-conflict", f"{texts}:1"):
        distill(given(texts, tmp_path, unlabeled_dataset=texts))
    several = write(tmp_path / "several.jsonl", [{"text": f"a {n}", "labels": ["x"]} for n in range(9)])
    with raises_problem("option-unsupported", several):
        distill(given(several, tmp_path))
    pairs = write(tmp_path / "pairs.jsonl", [{"chosen": f"a {n}", "rejected": f"b {n}"} for n in range(9)])
    with raises_problem("model-type", "--teacher"):
        distill(given(pairs, tmp_path, task="titles", teacher=other))
