"""Files of public bug reports are read as they are meant, or refused with their place.

A test is called by the number of its folder in `tests/cases/`; `tests/training/test_reported_runs.py` has
those that a run finds.
"""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from fuzzing import pair_to_row
from reported import case, refused, rows_of

from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.data.title_datasets import TitleSets, read_title_sets
from qwen_task_heads.errors import TaskHeadsError

FIRST = "The One Where A Creationist Picks A Fight And Loses To A Priest"
FIVE = ("admiration", "gratitude", "joy", "love", "neutral")


def labels_of(sets: TextSets) -> dict[str, Any]:
    """Text -> the names of its labels, over all splits."""
    names = sets.labels.names
    return {
        row.text: names[row.target]
        if isinstance(row.target, int)
        else {names[int(place)] for place in row.target}
        for row in [*sets.train, *sets.dev, *sets.test]
    }


def pairs_of(sets: TitleSets) -> list[dict[str, Any]]:
    """Pairs of all splits without their places, in one order."""
    pairs = [pair_to_row(pair) for pair in [*sets.train, *sets.dev, *sets.test]]
    return sorted(({**pair, "group_id": ""} for pair in pairs), key=str)


# 1, 2 and 15: what a label is called over the files of a run


def test_01_float_ids_in_train_are_the_ints_of_test(tmp_path: Path) -> None:
    sets = read_text_sets(case(1))
    assert sets.labels.names == tuple(map(str, range(12)))
    stated = {row["text"].strip(): row["label"] for row in rows_of(case(1, "test.csv"))}
    assert {row.text: sets.labels.names[row.target] for row in sets.test} == stated
    shutil.copytree(case(1), tmp_path / "ints")
    train = tmp_path / "ints" / "train.csv"
    train.write_text(train.read_text().replace(".0\n", "\n"))
    assert labels_of(read_text_sets(str(train.parent))) == labels_of(sets)


@pytest.mark.parametrize("role", ["test", "dev"])
@pytest.mark.parametrize("column", ["label", "labels"])
def test_02_ids_in_test_are_refused_beside_names_in_train(role: str, column: str, tmp_path: Path) -> None:
    for name, copied in (("train", "train"), ("test", role)):
        rows = [{"text": row["text"], column: row["label"]} for row in rows_of(case(2, f"{name}.jsonl"))]
        rows = [row | {column: [row[column]]} for row in rows] if column == "labels" else rows
        (tmp_path / f"{copied}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert refused(lambda: read_text_sets(str(tmp_path))) == [f"{role}.jsonl:{n}" for n in range(1, 13)]
    names = sorted({row["label"] for row in rows_of(case(2, "train.jsonl"))}, reverse=True)
    (tmp_path / "labels.yaml").write_text("".join(f"- {name}\n" for name in names))
    sets = read_text_sets(str(tmp_path))  # the ids of this file run backwards
    wanted = {row["text"].strip(): names[row["label"]] for row in rows_of(case(2, "test.jsonl"))}
    assert next(iter(wanted.values())) == "Refund_not_showing_up"
    found = labels_of(sets)
    assert {text: found[text] for text in wanted} == {
        text: {name} if column == "labels" else name for text, name in wanted.items()
    }


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("dotted", ("2", "2.1", "2.21", "2.3", "V15")),
        ("leading_zeros", tuple(f"{number:02}" for number in range(1, 13))),
    ],
)
def test_15_codes_that_look_like_numbers_are_names(name: str, labels: tuple[str, ...]) -> None:
    path = case(15, f"{name}.csv")
    sets = read_text_sets(path)
    assert sets.labels.names == labels
    assert labels_of(sets) == {row["text"].strip(): row["label"] for row in rows_of(path)}


def test_15_names_beside_float_ids() -> None:
    path = case(15, "float_id_and_name.csv")
    rows = rows_of(path)
    sets = read_text_sets(path)
    assert sets.labels.names == tuple(dict.fromkeys(row["label_name"] for row in rows))
    assert labels_of(sets) == {row["text"].strip(): row["label_name"] for row in rows}


# 3, 4, 8, 17 and 18: preferences


def test_03_a_prompt_that_the_conversations_hold_too_stands_once() -> None:
    sets = read_title_sets(case(3))
    rows = rows_of(case(3, "train.jsonl"))
    assert {pair.prompt for pair in [*sets.train, *sets.dev]} == {row["prompt"] for row in rows}
    assert {pair.chosen for pair in [*sets.train, *sets.dev]} == {row["chosen"][1]["content"] for row in rows}


def test_04_conversations_as_text_are_conversations() -> None:
    read = {
        form: read_title_sets(case(4, f"train_{form}"), dev=case(4, f"dev_{form}"))
        for form in ("pandas.csv", "dumped.jsonl")
    }
    for sets in read.values():
        assert (len(sets.train), len(sets.dev)) == (8, 2)
        first = sets.train[0]
        assert (first.prompt, first.chosen) == ("Write a headline for story 0.", FIRST)
    assert pairs_of(read["pandas.csv"]) == pairs_of(read["dumped.jsonl"])


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("instruction_input", lambda row: f"{row['instruction']}\n{row['input']}"),
        ("question", lambda row: f"{row['system']}\n{row['question']}"),
    ],
)
def test_08_the_prompt_of_other_tools_is_read(name: str, prompt: Callable[[dict[str, str]], str]) -> None:
    path = case(8, f"{name}.jsonl")
    wanted = [
        {"chosen": row["chosen"], "rejected": row["rejected"], "prompt": prompt(row), "group_id": ""}
        for row in rows_of(path)
    ]
    assert pairs_of(read_title_sets(path)) == sorted(wanted, key=str)


def test_17_every_rejected_title_makes_a_pair() -> None:
    wanted = [
        {"chosen": row["chosen"], "rejected": title, "prompt": row["prompt"], "group_id": ""}
        for row in rows_of(case(17, "train.jsonl"))
        for title in row["rejected"]
    ]
    assert len(wanted) == 16
    found = pairs_of(read_title_sets(case(17)))
    assert sorted(found, key=str) == sorted(
        ({name: row[name] for name in ("chosen", "rejected", "prompt", "group_id")} for row in wanted),
        key=str,
    )


def test_18_counts_that_pandas_wrote_as_floats(tmp_path: Path) -> None:
    groups = read_title_sets(case(18)).groups
    numbers = [
        {**row, "clicks": int(float(row["clicks"])), "impressions": int(float(row["impressions"]))}
        for row in rows_of(case(18, "arms.csv"))
    ]
    (tmp_path / "arms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbers))
    same = read_title_sets(str(tmp_path / "arms.jsonl")).groups
    of = [[(g.group, g.titles, g.clicks, g.impressions) for g in found] for found in (groups, same)]
    assert of[0] == of[1]
    total = sum(sum(group.clicks) for group in groups)
    assert (len(groups), {len(group.titles) for group in groups}) == (11, {2})  # one test is in dev
    assert total < sum(row["clicks"] for row in numbers)


# 5, 6, 9, 10, 11, 13 and 14: targets


@pytest.mark.parametrize("name", ["comma", "semicolon", "python_list"])
def test_05_several_labels_in_a_cell(name: str) -> None:
    sets = read_text_sets(case(5, f"{name}.csv"))
    assert sets.labels.names == FIVE
    wanted = {
        row["text"].strip(): {*ast.literal_eval(row["labels"])} for row in rows_of(case(5, "python_list.csv"))
    }
    assert labels_of(sets) == wanted
    assert max(map(len, wanted.values())) > 1


@pytest.mark.parametrize(("name", "line"), [("train.csv", 2), ("train_quoted.jsonl", 1)])
def test_06_scores_in_the_label_column_are_asked_about(name: str, line: int) -> None:
    path = case(6, name)
    with pytest.raises(TaskHeadsError) as caught:
        read_text_sets(path)
    [problem] = caught.value.problems
    assert problem.where == f"{path}:{line}"
    assert "--problem_type regression" in problem.fix
    sets = read_text_sets(path, problem_type="regression")
    assert sets.labels.names == ("score",)
    found = {row.text: row.target for row in [*sets.train, *sets.dev]}
    assert found == {row["sentence1"]: (float(row["label"]),) for row in rows_of(path)}


def classes(column: str, names: list[str], rows: list[dict[str, Any]]) -> Dataset:
    label = ClassLabel(names=names)
    kind = List(label) if column == "labels" else label
    return Dataset.from_list(rows, features=Features({"text": Value("string"), column: kind}))


def named_rows() -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of names, and these names in an order that no sorting gives."""
    rows = rows_of(case(2, "train.jsonl"))
    return rows, sorted({row["label"] for row in rows}, key=lambda name: name[::-1])


def test_09_class_names_of_parquet(tmp_path: Path) -> None:
    rows, names = named_rows()
    classes("label", names, rows).to_parquet(str(tmp_path / "train.parquet"))
    sets = read_text_sets(str(tmp_path / "train.parquet"))
    assert list(sets.labels.names) == names
    assert labels_of(sets) == {row["text"].strip(): row["label"] for row in rows}


def test_09_class_names_of_several_labels_in_parquet(tmp_path: Path) -> None:
    """One of them never occurs."""
    names = ["anger", "fear", "joy", "love"]
    given = [[0], [1], [0, 2]] * 8
    rows = [{"text": f"Text {place}", "labels": ids} for place, ids in enumerate(given)]
    classes("labels", names, rows).to_parquet(str(tmp_path / "several.parquet"))
    sets = read_text_sets(str(tmp_path / "several.parquet"))
    assert (list(sets.labels.names), sets.problem_type) == (names, "multi_label_classification")
    assert labels_of(sets) == {row["text"]: {names[place] for place in row["labels"]} for row in rows}


def test_10_nan_among_several_labels_is_missing(tmp_path: Path) -> None:
    rows = rows_of(case(10, "train.csv"))
    bad = [line for line, row in enumerate(rows, start=2) if row["labels"] == "nan"]
    assert len(bad) == 10
    assert refused(lambda: read_text_sets(case(10))) == [f"train.csv:{line}" for line in bad]
    sets = read_text_sets(case(10), bad_rows="skip")
    assert sets.labels.names == FIVE
    assert len(sets.train) + len(sets.dev) == 50


@pytest.mark.parametrize("width", [2, 3])
def test_11_rows_of_zeros_and_ones_are_refused(width: int, tmp_path: Path) -> None:
    """Read as ids they would name other labels; short rows as longer ones."""
    rows = rows_of(case(11, "train.jsonl"))
    more = [0] * (width - 2)
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({**row, "labels": row["labels"] + more}) + "\n" for row in rows))
    assert "train.jsonl:1" in refused(lambda: read_text_sets(str(path)))


@pytest.mark.parametrize("form", ["one", "splits"])
def test_13_what_save_to_disk_wrote_is_read(form: str, tmp_path: Path) -> None:
    rows, names = named_rows()
    data = classes("label", names, rows)
    saved = (
        data if form == "one" else DatasetDict(train=data.select(range(24)), test=data.select(range(24, 36)))
    )
    saved.save_to_disk(str(tmp_path / form))
    sets = read_text_sets(str(tmp_path / form))
    assert list(sets.labels.names) == names
    assert len(sets.test) == (0 if form == "one" else 12)
    assert labels_of(sets) == {row["text"].strip(): row["label"] for row in rows}


@pytest.mark.parametrize("names", [(), ("cnews.train.txt",)], ids=["folder", "file"])
def test_14_class_files_that_begin_with_the_label(names: tuple[str, ...]) -> None:
    sets = read_text_sets(case(14, *names))
    assert sets.labels.names == ("体育", "教育", "财经")
    files = names or ("cnews.train.txt", "cnews.val.txt")
    read = [Path(case(14, name)).read_text(encoding="utf-8").splitlines() for name in files]
    fields = [line.split("\t") for lines in read for line in lines]
    assert labels_of(sets) == {text: label for label, text in fields}
