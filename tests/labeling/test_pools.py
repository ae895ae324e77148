"""Rows to label next and pseudo-labels: what is chosen, written, and refused."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problem_assertions import raises_problem

from qwen_task_heads import (
    PseudoLabelArguments,
    SelectionArguments,
    TaskHeadsError,
    build,
    load_tokenizer,
    pseudo_label,
    read_text_sets,
    save,
    select_rows,
)
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.labeling.pseudo_labels import threshold_for
from qwen_task_heads.labeling.selection import choose, score

WORDS = {
    "sport": ["goal", "match", "team", "coach", "race", "win"],
    "money": ["bank", "price", "tax", "loan", "fund", "cash"],
    "health": ["doctor", "sleep", "diet", "pill", "nurse", "cure"],
}
LABELS = sorted(WORDS)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(count: int, *, seed: int, words: int = 2) -> list[dict[str, str]]:
    draw = random.Random(seed)
    return [
        {
            "text": " ".join([*draw.sample(WORDS[label], words), f"word{draw.randrange(999)}"]),
            "label": label,
        }
        for label in (LABELS[number % 3] for number in range(count))
    ]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """Sixty labelled rows, a dev set, and a pool whose labels are in another file."""
    pool = texts(200, seed=2)
    return {
        "dataset_name": write(tmp_path / "train.jsonl", texts(60, seed=0)),
        "dev_dataset": write(tmp_path / "dev.jsonl", texts(60, seed=1)),
        "unlabeled_dataset": write(tmp_path / "pool.jsonl", [{"text": row["text"]} for row in pool]),
        "truth": write(tmp_path / "truth.jsonl", pool),
    }


def options(sources: dict[str, str], **more: Any) -> dict[str, Any]:
    return {**{name: value for name, value in sources.items() if name != "truth"}, **more}


def test_chosen_texts_are_unsure_and_differ(sources: dict[str, str], tmp_path: Path) -> None:
    mixed = [{"text": f"goal bank doctor word{n}"} for n in range(40)]  # of no label
    pool = [{"text": row["text"]} for row in texts(200, seed=2)]
    sources["unlabeled_dataset"] = write(tmp_path / "pool.jsonl", [*pool, *mixed])
    out = tmp_path / "next.csv"
    report = select_rows(
        SelectionArguments(**options(sources, output_file=str(out), count=20, diverse=False))
    )
    assert report.count == 20
    with out.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    unsure = sum(row["text"].startswith("goal bank doctor") for row in rows)
    assert unsure >= 12  # 40 of 240 by chance are 3 of 20
    assert {row["label"] for row in rows} == {""}


def test_diverse_texts_are_of_different_clusters() -> None:
    rows = [
        TextExample(text=f"{word} {word} {n}", target=0) for word in ("cat", "dog", "sun") for n in range(10)
    ]
    same = np.full((30, 2), 0.5)
    chosen = choose(rows, [same], count=3, strategy="margin")
    assert {rows[number].text.split()[0] for number in chosen} == {"cat", "dog", "sun"}


def test_scores_follow_their_definitions() -> None:
    one, other = np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([[0.1, 0.9], [0.5, 0.5]])
    assert score([one, other], strategy="disagreement").argmax() == 0
    assert score([one], strategy="entropy").argmax() == 1
    assert score([one, other], strategy="disagreement")[1] == pytest.approx(0)


def test_pseudo_labels_are_right_and_have_their_origin(sources: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "more.jsonl"
    report = pseudo_label(PseudoLabelArguments(**options(sources, output_file=str(out), rounds=2)))
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    added = [row for row in rows if row["label_source"] == "pseudo"]
    assert len(rows) - len(added) == report.labelled == 60
    assert len(added) == report.accepted > 50
    lines = Path(sources["truth"]).read_text(encoding="utf-8").splitlines()
    truth = {row["text"]: row["label"] for row in map(json.loads, lines)}
    assert np.mean([truth[row["text"]] == row["label"] for row in added]) > 0.9
    assert {row["teacher"] for row in added} == {"TF-IDF"}
    assert {row["round"] for row in added} <= {1, 2}
    assert len(read_text_sets(str(out), dev=sources["dev_dataset"]).train) == len(rows)


def test_a_classifier_can_be_the_teacher(sources: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = build("embedded", task="pooled_classifier", labels=LABELS, pooling="mean")
    save(model, tokenizer=load_tokenizer("embedded"), folder=str(folder))
    given = options(sources, output_file=str(tmp_path / "more.jsonl"), model=str(folder), max_error=0.9)
    report = pseudo_label(PseudoLabelArguments(**given))
    assert len(report.rounds) <= 1
    other = tmp_path / "other"
    model = build("embedded", task="pooled_classifier", labels=["sport", "weather"], pooling="mean")
    save(model, tokenizer=load_tokenizer("embedded"), folder=str(other))
    with raises_problem("label-conflict", "--model"):
        pseudo_label(PseudoLabelArguments(**{**given, "model": str(other)}))


def test_no_threshold_without_enough_right_answers() -> None:
    dev = np.tile([[0.9, 0.1]], (40, 1))
    assert threshold_for(dev, np.ones(40), max_error=0.05) is None
    assert threshold_for(dev, np.zeros(40), max_error=0.05) == pytest.approx(0.9)


def test_bad_input_is_named(sources: dict[str, str], tmp_path: Path) -> None:
    given = options(sources, output_file=str(tmp_path / "out"))
    labelled = {**given, "unlabeled_dataset": sources["truth"]}
    with raises_problem("label-conflict", f"{sources['truth']}:1"):
        select_rows(SelectionArguments(**labelled))
    with raises_problem("file-empty", given["unlabeled_dataset"]):
        same = write(tmp_path / "pool.jsonl", [{"text": row["text"]} for row in texts(60, seed=0)])
        select_rows(SelectionArguments(**{**given, "unlabeled_dataset": same}))
    few = write(tmp_path / "few.jsonl", texts(9, seed=5))
    with raises_problem("rows-too-few", few):
        pseudo_label(PseudoLabelArguments(**{**given, "dataset_name": few}))
    with pytest.raises(TaskHeadsError) as caught:
        pseudo_label(PseudoLabelArguments(**given, rounds=0, max_error=2))
    assert [problem.where for problem in caught.value.problems] == ["--max_error", "--rounds"]
    with pytest.raises(TaskHeadsError) as caught:
        select_rows(SelectionArguments(**given, count=0, strategy="disagreement"))
    assert [problem.where for problem in caught.value.problems] == ["--count", "--strategy"]
