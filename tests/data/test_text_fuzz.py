"""Labelled texts: fuzzed rows, planted defects, round trips. Times are of the processor."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import fuzzing
import pytest
from fuzzing import a_text, corrupt, dumps, nested, write
from work import at_most

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.text_readers import read_inputs
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.labels.label_map import LabelMap

NAMES = ("art", "体育", "a, b", "news")
LABELS = LabelMap(NAMES)


def a_row(rng: random.Random, number: int) -> dict[str, Any]:
    row: dict[str, Any] = {"text": f"{a_text(rng)} {number}", "label": rng.choice([*range(4), *NAMES])}
    if isinstance(row["label"], int) and rng.random() < 0.3:
        row["label_name"] = NAMES[row["label"]]
    if rng.random() < 0.3:
        row["weight"] = rng.uniform(0.1, 9)
    if rng.random() < 0.3:
        row["group_id"] = rng.choice([f"t{rng.randrange(99)}", rng.randrange(99)])
    return row


def wrong_text(rng: random.Random, row: dict[str, Any]) -> bytes:
    return dumps(row | {"text": rng.choice([True, 1, None, {}, [], math.nan, "", " \n", "\u200b"])})


def wrong_label(rng: random.Random, row: dict[str, Any]) -> bytes:
    row.pop("label_name", None)
    bad = [True, None, 1.5, 1.0, math.nan, -100, -1, 4, 10**30, "1", "sports", "", [0], {}, "ART"]
    return dumps(row | {"label": rng.choice(bad)})


def wrong_name(rng: random.Random, row: dict[str, Any]) -> bytes:
    return dumps(row | {"label": 2, "label_name": rng.choice(["art", "", None, 2, "other"])})


def wrong_number(rng: random.Random, row: dict[str, Any]) -> bytes:
    return dumps(row | {"weight": rng.choice([0, -1, True, None, "1", math.nan, math.inf, [], 10**400])})


MUTATIONS = (*fuzzing.MUTATIONS, wrong_text, wrong_label, wrong_name, wrong_number)


def test_ten_thousand_fuzzed_rows_are_refused_by_line_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(1)
    lines, defective = [], set()
    for number in range(1, 10_001):
        row = a_row(rng, number)
        line = dumps(row)
        if number % 500 == 0:  # a valid line of 1 MiB
            line = dumps(row | {"text": "x" * 2**20})
        elif number % 1000 == 7:
            line = nested(rng, row)
            defective.add(number)
        elif rng.random() < 0.4:
            line = rng.choice(MUTATIONS)(rng, row)
            defective.add(number)
        lines.append(line)
    path = tmp_path / "fuzz.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")

    with at_most(4_000_000), pytest.raises(TaskHeadsError) as caught:
        read_text_sets(str(path), labels=LABELS)
    problems = caught.value.problems
    places = [re.fullmatch(re.escape(str(path)) + r":(\d+)", problem.where) for problem in problems]
    assert all(places)
    assert {int(place.group(1)) for place in places if place} == defective
    assert all(len(str(problem)) < 1000 for problem in problems)

    sets = read_text_sets(str(path), labels=LABELS, bad_rows="skip")
    assert len(sets.train) + len(sets.dev) == 10_000 - len(defective)
    assert f"train: {len(defective):,} of 10,000 rows left out" in sets.lines
    texts = [item for _, item in read_inputs(str(path))]
    assert len(texts) == 10_000
    assert sum(isinstance(item, Problem) for item in texts) < len(defective)


@pytest.mark.parametrize("tries", [40, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet"])
def test_corrupted_files_raise_no_other_error(tmp_path: Path, suffix: str, tries: int) -> None:
    rng = random.Random(2)
    whole = tmp_path / f"whole{suffix}"
    write(whole, [{"text": f"text {n}", "label": NAMES[n % 4]} for n in range(30)])
    content = whole.read_bytes()
    path = tmp_path / f"corrupted{suffix}"
    refused = 0
    for _ in range(tries):
        path.write_bytes(corrupt(rng, content))
        try:
            read_text_sets(str(path), labels=LABELS)
        except TaskHeadsError as error:
            refused += 1
            places = [problem.where for problem in error.problems]
            assert all(where.startswith(str(path)) or where == "split" for where in places)
        assert all(isinstance(where, str) for where, _ in read_inputs(str(path)))
    assert refused > tries / 6


GOOD = {"text": "Ten quiet beaches", "label": 1}
# (line, code); "" for a defect of JSON, whose code `json_files` determines
PLANTED: list[tuple[bytes, str]] = [
    (b'{"text": "cut off, "label', ""),
    (b"[1, 2]", ""),
    (dumps(GOOD)[:-1] + b', "text": "twice"}', ""),
    (dumps(GOOD).replace(b"quiet", b"qui\xe9t"), ""),
    (json.dumps(GOOD | {"text": "half \udc00"}).encode(), ""),
    (dumps({"text": "no label"}), "column-missing"),
    (dumps({"label": 1, "txt": "misspelt here only"}), "column-missing"),
    (dumps(GOOD | {"text": ""}), "text-empty"),
    (dumps(GOOD | {"text": " \t\u200b"}), "text-empty"),
    (dumps(GOOD | {"text": 7}), "value-type"),
    (dumps(GOOD | {"label": None}), "value-missing"),
    (dumps(GOOD | {"label": "1"}), "value-type"),
    (dumps(GOOD | {"label": True}), "value-type"),
    (dumps(GOOD | {"label": 1.5}), "value-type"),
    (dumps(GOOD | {"label": math.nan}), "value-missing"),
    (dumps(GOOD | {"label": -100}), "value-range"),
    (dumps(GOOD | {"label": 4}), "label-unknown"),
    (dumps(GOOD | {"label": "Art"}), "label-unknown"),
]


def test_eighteen_planted_defects_are_reported_in_one_run(tmp_path: Path) -> None:
    lines = [dumps({"text": f"Text {number}", "label": number % 4}) for number in range(200)]
    expected = {}
    for place, (line, code) in enumerate(PLANTED):
        lines[place * 11 + 3] = line
        expected[place * 11 + 4] = code
    path = tmp_path / "planted.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(TaskHeadsError) as caught:
        read_text_sets(str(path), labels=LABELS)
    codes = {int(problem.where.rsplit(":", 1)[1]): problem.code for problem in caught.value.problems}
    assert len(caught.value.problems) == len(PLANTED) == 18
    assert codes.keys() == expected.keys()
    assert {line: codes[line] for line, code in expected.items() if code and code != codes[line]} == {}


@pytest.mark.parametrize(
    ("column", "suffix"),
    [
        # Daily runs cover each format and each kind of target; slow runs cover all combinations.
        pytest.param(column, suffix, marks=[] if column == daily else pytest.mark.slow)
        for suffix, daily in (
            (".jsonl", "labels"),
            (".json", "score"),
            (".csv", "label"),
            (".tsv", "labels"),
            (".parquet", "score"),
        )
        for column in ("label", "labels", "score")
    ],
)
def test_two_thousand_rows_round_trip(tmp_path: Path, suffix: str, column: str) -> None:
    rng = random.Random(3)
    examples = []
    for number in range(2000):
        target: Any = {
            "label": number % 4,
            "labels": tuple(sorted(rng.sample(range(4), number % 3))),
            "score": (rng.choice([0.0, rng.gauss(0, 3), 1e-9]),),
        }[column]
        examples.append(
            TextExample(
                text=f"{a_text(rng)}\n{number}",
                text_b=a_text(rng, longest=300),
                target=target,
                weight=rng.choice([1.0, rng.uniform(0.1, 9)]),
                group=rng.choice([f"test {rng.randrange(300)}", "漢"]),
            )
        )
    value = {
        "label": lambda row: NAMES[row.target],
        "labels": lambda row: [NAMES[label] for label in row.target],
        "score": lambda row: row.target[0],
    }[column]
    rows = [
        {
            "text_a": row.text,
            "text_b": row.text_b,
            column: value(row),
            "weight": row.weight,
            "group": row.group,
        }
        for row in examples
    ]
    path, dev = tmp_path / f"rows{suffix}", tmp_path / "dev.jsonl"
    write(path, rows)
    write(dev, rows[:2])
    sets = read_text_sets(str(path), dev=str(dev), labels=None if column == "score" else LABELS)
    assert [TextExample(**{**vars(row), "source": ""}) for row in sets.train] == examples
