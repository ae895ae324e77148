"""The lookup of training rows, and the leak check on splits with and without leaks."""

from __future__ import annotations

import doctest
import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_task_heads.data import lookups, text_datasets
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.lookups import look_up_titles, report_texts, report_titles
from qwen_task_heads.data.splits import split_by_group
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.title_datasets import read_title_sets

SINGLE = "single_label_classification"


def write(path: Path, rows: Any) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pair_row(pair: PairExample) -> dict[str, str]:
    return {"chosen": pair.chosen, "rejected": pair.rejected, "test_id": pair.group}


def leaks(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("LEAK: ")]


@pytest.fixture(scope="module")
def real() -> list[PairExample]:
    """Return pairs of the embedded experiments; pairs of one experiment share titles."""
    return list(read_title_sets("embedded").train)


def test_a_random_split_of_experiments_is_reported_first_and_its_fix_works(
    real: list[PairExample], tmp_path: Path
) -> None:
    rows = [pair_row(pair) for pair in random.Random(0).sample(real, len(real))]
    cut = len(rows) * 4 // 5
    train, test = write(tmp_path / "train.jsonl", rows[:cut]), write(tmp_path / "test.jsonl", rows[cut:])
    sets = read_title_sets(train, test=test)
    [line] = leaks(sets.lines)
    assert sets.lines[0] == line
    assert "pairs of test" in line
    chosen, rejected, known = look_up_titles(sets.train, sets.test)
    assert (0.5 + 0.5 * np.sign(chosen - rejected)).mean() > 0.8
    assert known.mean() > 0.7
    assert "--dataset_name all.jsonl --test_fraction 0.1" in line
    fixed = read_title_sets(write(tmp_path / "all.jsonl", rows), test_fraction=0.1)
    assert leaks(fixed.lines) == []
    assert len(fixed.train) + len(fixed.dev) + len(fixed.test) == len(rows)


def test_a_split_by_experiment_has_no_leak(real: list[PairExample]) -> None:
    sets = read_title_sets("embedded")
    assert leaks(sets.lines) == []
    for salt in "abc":
        train, test = split_by_group(real, dev_fraction=0.2, salt=salt)
        found = report_titles(train, test, split="test")
        assert (found.known, found.leaks) == (0, False)


def test_known_titles_without_consistent_wins_are_no_leak() -> None:
    """Half of the known titles win in train and lose in test, so that the lookup is at chance."""
    train = [PairExample(chosen=f"a{n}", rejected=f"b{n}") for n in range(200)]
    test = [PairExample(chosen=f"{'ab'[n % 2]}{n}", rejected=f"c{n}", group=f"g{n}") for n in range(200)]
    found = report_titles(train, test, split="test")
    assert (found.known, found.accuracy) == (200, 0.5)
    assert not found.leaks


def test_a_title_of_another_prompt_is_not_known() -> None:
    train = [PairExample(chosen=f"a{n}", rejected=f"b{n}", prompt="one") for n in range(20)]
    test = [PairExample(chosen=f"a{n}", rejected=f"c{n}", prompt="two", group=f"g{n}") for n in range(20)]
    assert report_titles(train, test, split="test").known == 0
    same = [PairExample(**{**asdict(pair), "prompt": "ONE"}) for pair in test]
    assert report_titles(train, same, split="test").leaks


def test_groups_count_and_not_rows() -> None:
    """A hundred pairs of three experiments are three observations."""
    train = [PairExample(chosen=f"a{n}", rejected=f"b{n}") for n in range(100)]
    test = [PairExample(chosen=f"a{n}", rejected=f"c{n}", group=f"g{n % 3}") for n in range(100)]
    found = report_titles(train, test, split="test")
    assert found.accuracy == 1.0
    assert not found.leaks
    apart = [PairExample(**{**asdict(pair), "group": pair.chosen}) for pair in test]
    assert report_titles(train, apart, split="test").leaks


def texts(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"Text number {n}", "label": ("a", "b")[n % 2]} for n in range(start, start + count)]


def test_texts_of_train_in_test_are_reported_and_the_fix_works(tmp_path: Path) -> None:
    train, test = texts(100), [*texts(30, 50), *texts(30, 200)]
    test[0]["text"] = test[0]["text"].upper()  # the same up to case
    sets = read_text_sets(write(tmp_path / "train.jsonl", train), test=write(tmp_path / "test.jsonl", test))
    [line] = leaks(sets.lines)
    assert sets.lines[0] == line
    assert "30 of 60 texts of test (50%)" in line or "29 of 60" in line or "28 of 60" in line  # less dev
    fixed = read_text_sets(write(tmp_path / "all.jsonl", train + test), test_fraction=0.1)
    assert leaks(fixed.lines) == []
    others = write(tmp_path / "others.jsonl", texts(60, 200))
    assert leaks(read_text_sets(str(tmp_path / "train.jsonl"), test=others).lines) == []


def test_texts_with_other_labels_in_train_are_no_leak() -> None:
    """Known texts whose labels are drawn again: the lookup is at chance."""
    rng = random.Random(0)
    train = [TextExample(text=f"text {n}", target=rng.randrange(2)) for n in range(300)]
    test = [TextExample(text=f"text {n}", target=rng.randrange(2)) for n in range(300)]
    found = report_texts(train, test, split="test", problem_type=SINGLE)
    assert found.known == 300
    assert not found.leaks


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("multi_label_classification", lambda n: (n % 3, 3 + n % 2)),
        ("multi_label_classification", lambda n: (n % 3,) if n % 3 else ()),
        ("regression", lambda n: (n / 7,)),
        ("ordinal", lambda n: n % 4),
    ],
)
def test_every_kind_of_target_is_looked_up(kind: str, target: Any) -> None:
    rows = [TextExample(text=f"text {n}", target=target(n)) for n in range(60)]
    assert report_texts(rows, rows, split="dev", problem_type=kind).leaks
    turned = [TextExample(text=f"text {n}", target=target(59 - n)) for n in range(60)]
    assert not report_texts(rows, turned, split="dev", problem_type=kind).leaks


def test_pairs_of_texts_are_known_as_pairs() -> None:
    train = [TextExample(text=f"a{n}", text_b=f"b{n}", target=n % 2) for n in range(30)]
    test = [TextExample(text=f"a{n}", text_b=f"c{n}", target=n % 2) for n in range(30)]
    assert report_texts(train, test, split="test", problem_type=SINGLE).known == 0
    assert report_texts(train, train, split="test", problem_type=SINGLE).known == 30


def test_a_split_cut_from_train_has_another_fix() -> None:
    rows = [TextExample(text=f"text {n}", target=n % 2) for n in range(30)]
    found = report_texts(rows, rows, split="dev", problem_type=SINGLE)
    line = found.line(was_cut=True)
    assert "--dev_dataset" in line
    assert "all.jsonl" not in line


def test_a_run_measures_its_leaks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report has the lookups of the messages; another training set has lookups of its own."""
    measured: list[str] = []

    def counting(*args: Any, split: str, **options: Any) -> lookups.LookupReport:
        measured.append(split)
        return report_texts(*args, split=split, **options)

    monkeypatch.setattr(text_datasets, "report_texts", counting)
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n}", "label": n % 2}) + "\n" for n in range(40)))
    sets = read_text_sets(str(path), test_fraction=0.2)
    assert sets.lookups.keys() == {"dev", "test"}
    assert sets.leak_lines() == []
    assert sorted(measured) == ["dev", "test"]
    other = replace(sets, train=sets.dev)
    assert other.lookups["dev"].known == len(sets.dev)
    assert sorted(measured) == ["dev", "dev", "test", "test"]


def test_documented_examples_run() -> None:
    result = doctest.testmod(lookups)
    assert result.attempted > 3
    assert result.failed == 0
