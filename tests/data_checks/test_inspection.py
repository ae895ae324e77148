"""The data check without training: task by the columns, every defect, and the next command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from records import record

from qwen_task_heads import cli
from qwen_task_heads.data_checks.arguments import DataCheckArguments
from qwen_task_heads.data_checks.inspection import inspect_data

PAIRS = [{"chosen": f"Title {n}", "rejected": f"Other {n}"} for n in range(20)]
TEXTS = [{"text": f"text {n}", "label": ["good", "bad"][n % 2]} for n in range(20)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("rows", "task", "command", "labels"),
    [(PAIRS, "titles", "qth titles", []), (TEXTS, "texts", "qth classify", ["bad", "good"])],
)
def test_a_valid_file_is_summarized_with_the_command_that_trains(
    tmp_path: Path, capsys: Any, rows: Any, task: str, command: str, labels: list[str]
) -> None:
    source = write(tmp_path / "a b.jsonl", rows)
    assert cli.main(["data", source, "--dev_fraction", "0.2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"Next: {command} --dataset_name '{source}' --dev_fraction 0.2"
    assert cli.main(["data", source, "--dev_fraction", "0.2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["task"], report["labels"], report["problems"]) == (task, labels, [])
    assert sum(report["splits"].values()) == 20
    assert all(line in printed for line in report["messages"])


@pytest.mark.parametrize(("rows", "task"), [(PAIRS, "titles"), (TEXTS, "texts")])
def test_every_defective_row_is_named_and_the_exit_code_is_1(
    tmp_path: Path, capsys: Any, rows: Any, task: str
) -> None:
    first = next(iter(rows[0]))
    bad = [{**row, first: " "} for row in rows * 3]  # 60: more than one message of an error shows
    bad[5] = {first: "a row without the other column"}
    source = write(tmp_path / "in.jsonl", [*rows, *bad])
    assert cli.main(["data", source]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].endswith(f"qth data {source}")
    assert cli.main(["data", source, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["task"] == task
    assert [one["where"] for one in report["problems"]] == [f"{source}:{n}" for n in range(21, 81)]
    assert [line.split(": ")[0] for line in printed[1:-1]] == [one["where"] for one in report["problems"]]


def test_columns_of_neither_task_and_a_missing_file(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"a": 1}])
    [problem] = inspect_data(source).problems
    assert (problem.where, problem.code) == (source, "column-missing")
    for task in ("texts", "titles"):
        assert task in problem.fix
        found = inspect_data(source, DataCheckArguments(task=task))
        assert found.task == task
        assert {one.where for one in found.problems} == {f"{source}:1"}
    [problem] = inspect_data(str(tmp_path / "none.jsonl")).problems
    assert problem.code == "path-not-found"


def test_outputs_of_several_questions_are_no_labels_of_rows(tmp_path: Path) -> None:
    found = inspect_data(write(tmp_path / "desk.jsonl", [record(number) for number in range(40)]))
    assert found.problem_type == "questions"
    assert "rare-labels" not in {finding.code for finding in found.findings}


def test_options_reach_the_reader_and_the_command(tmp_path: Path) -> None:
    source, dev = write(tmp_path / "in.jsonl", PAIRS), write(tmp_path / "dev.jsonl", PAIRS[:4])
    options = DataCheckArguments(task="titles", dev_dataset=dev, bad_rows="skip")
    report = inspect_data(source, options)
    assert report.splits == {"train": 20, "dev": 4, "test": 0}
    assert report.command == f"qth titles --dataset_name {source} --dev_dataset {dev} --bad_rows skip"
    refused = inspect_data(source, DataCheckArguments(task="titles", labels="labels.yaml"))
    assert [problem.where for problem in refused.problems] == ["--labels"]
