"""Fuzzed rows, planted defects, round trips. Times are of the processor only."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path

import fuzzing
import pytest
from fuzzing import a_text, corrupt, dumps, nested, pair_to_row, write
from work import at_most

from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.pair_readers import read_pairs
from qwen_task_heads.errors import TaskHeadsError


def a_row(rng: random.Random, number: int) -> dict[str, object]:
    row: dict[str, object] = {
        "chosen": f"{a_text(rng)} {number}",
        "rejected": f"<title>{a_text(rng)} {-number}</title>",
    }
    if rng.random() < 0.5:
        row["prompt"] = a_text(rng)
    if rng.random() < 0.3:
        row["margin"] = rng.uniform(-2, 5)
    if rng.random() < 0.5:
        row |= {"votes_chosen": rng.randrange(5, 11), "votes_rejected": rng.randrange(5)}
    if rng.random() < 0.3:
        row["group_id"] = rng.choice([f"t{rng.randrange(99)}", rng.randrange(99)])
    return row


def wrong_type(rng: random.Random, row: dict[str, object]) -> bytes:
    column = rng.choice(["chosen", "rejected", "prompt"])
    return dumps(
        row | {column: rng.choice([True, 1, None, {}, 1.5, math.nan, "" if column != "prompt" else 0])}
    )


def wrong_number(rng: random.Random, row: dict[str, object]) -> bytes:
    column = rng.choice(["margin", "weight", "votes_chosen", "votes_rejected"])
    whole = {"votes_chosen": 3, "votes_rejected": 2} if column.startswith("votes") else {}
    value = rng.choice([True, None, "1", math.nan, math.inf, [], {}, 10**400, -(10**13)])
    return dumps(row | whole | {column: value})


def other_encoding(rng: random.Random, row: dict[str, object]) -> bytes:
    return dumps(row | {"chosen": "café " * rng.randrange(1, 5)}).replace("é".encode(), b"\xe9")


MUTATIONS = (*fuzzing.MUTATIONS, wrong_type, wrong_number, other_encoding)


def test_ten_thousand_fuzzed_rows_are_refused_by_line_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(1)
    lines, defective = [], set()
    for number in range(1, 10_001):
        row = a_row(rng, number)
        if number % 500 == 0:  # a valid line of 1 MiB, every other one with a byte that is not UTF-8
            line = dumps(row | {"prompt": "x" * 2**20})
            line = line if number % 1000 else line[:-40] + b"\xff" + line[-40:]
            defective |= set() if number % 1000 else {number}
        elif number % 1000 == 7:
            line = nested(rng, row)
            defective.add(number)
        elif rng.random() < 0.5:
            line = rng.choice(MUTATIONS)(rng, row)
            defective.add(number)
        else:
            line = dumps(row)
        lines.append(line)
    path = tmp_path / "fuzz.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")

    with at_most(4_000_000), pytest.raises(TaskHeadsError) as caught:
        read_pairs(str(path))
    places = [
        re.fullmatch(re.escape(str(path)) + r":(\d+)", problem.where) for problem in caught.value.problems
    ]
    assert all(places)
    assert {int(place.group(1)) for place in places if place} == defective
    assert all(len(str(problem)) < 1000 for problem in caught.value.problems)

    data = read_pairs(str(path), bad_rows="skip")
    assert data.report.rows_read == 10_000
    assert data.report.refused == len(defective)
    assert data.report.used == len(data.pairs) == 10_000 - len(defective)


@pytest.mark.parametrize("tries", [60, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_corrupted_files_raise_no_other_error(tmp_path: Path, suffix: str, tries: int) -> None:
    rng = random.Random(2)
    rows = [a_row(rng, number) for number in range(30)]
    whole = tmp_path / f"whole{suffix}"
    write(whole, rows)
    content = whole.read_bytes()
    path = tmp_path / f"corrupted{suffix}"
    refused = 0
    for _ in range(tries):
        path.write_bytes(corrupt(rng, content))
        refused += is_refused(path)
    assert refused > tries / 10


def is_refused(path: Path) -> bool:
    """Return whether a file, or any of its rows, is refused."""
    try:
        report = read_pairs(str(path), bad_rows="skip").report
    except TaskHeadsError as error:
        return all(problem.where.startswith(str(path)) for problem in error.problems)
    assert report.rows_read == report.used + report.refused
    return report.refused > 0


GOOD = {
    "chosen": "Ten quiet beaches",
    "rejected": "Beaches",
    "votes_chosen": 7,
    "votes_rejected": 2,
    "weight": 1,
}
# (line, code); "" for a defect of JSON, whose code `json_files` determines
PLANTED: list[tuple[bytes, str]] = [
    (b'{"chosen": "cut off, "rejected', ""),
    (b"[1, 2]", ""),
    (dumps(GOOD)[:-1] + b', "chosen": "twice"}', ""),
    (dumps(GOOD).replace(b"quiet", b"qui\xe9t"), ""),
    (json.dumps(GOOD | {"chosen": "half \udc00"}).encode(), ""),
    (dumps({"chosen": "no other title"}), "column-missing"),
    (dumps({"rejected": "x", "chosn": "misspelt here only"}), "column-missing"),
    (dumps(GOOD | {"chosen": ""}), "text-empty"),
    (dumps(GOOD | {"rejected": " \t\u200b"}), "text-empty"),
    (dumps(GOOD | {"chosen": "<title> </title>"}), "text-empty"),
    (dumps(GOOD | {"rejected": "<title>Ten  quiet beaches</title>"}), "value-conflict"),
    (dumps(GOOD | {"chosen": 7}), "value-type"),
    (dumps(GOOD | {"prompt": None}), "value-missing"),
    (dumps(GOOD | {"margin": math.nan}), "value-range"),
    (dumps(GOOD | {"weight": 0}), "value-range"),
    (dumps(GOOD | {"votes_chosen": "8"}), "value-type"),
    (dumps(GOOD | {"votes_rejected": -1}), "value-range"),
    (dumps(GOOD | {"chosen": [{"role": "assistant", "content": "A title"}]}), "value-conflict"),
]


def test_eighteen_planted_defects_are_reported_in_one_run(tmp_path: Path) -> None:
    lines = [dumps(GOOD | {"chosen": f"Title {number}"}) for number in range(200)]
    expected = {}
    for place, (line, code) in enumerate(PLANTED):
        lines[place * 11 + 3] = line
        expected[place * 11 + 4] = code
    path = tmp_path / "planted.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(TaskHeadsError) as caught:
        read_pairs(str(path))
    codes = {int(problem.where.rsplit(":", 1)[1]): problem.code for problem in caught.value.problems}
    assert len(caught.value.problems) == len(PLANTED) == 18
    assert codes.keys() == expected.keys()
    assert {line: codes[line] for line, code in expected.items() if code and code != codes[line]} == {}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_two_thousand_rows_round_trip(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(3)
    pairs = []
    for number in range(2000):
        pairs.append(
            PairExample(
                chosen=f"{a_text(rng)} {number}",
                rejected=f"{a_text(rng)}\n{-number - 1}",
                prompt=a_text(rng, longest=300) if rng.random() < 0.5 else "",
                margin=rng.choice([None, 0.0, rng.gauss(0, 3), 1e-9]),
                preference=rng.choice([None, rng.uniform(0.5, 1), 1.0]),
                weight=rng.choice([1.0, rng.uniform(0.1, 9)]),
                group=rng.choice(["", f"test {rng.randrange(300)}", "漢"]),
            )
        )
    path = tmp_path / f"rows{suffix}"
    rows = [pair_to_row(pair) for pair in pairs]
    write(path, rows)
    data = read_pairs(str(path))
    read = [PairExample(**{**vars(pair), "source": ""}) for pair in data.pairs]
    assert read == pairs
    assert data.report.rows_read == data.report.used == 2000
