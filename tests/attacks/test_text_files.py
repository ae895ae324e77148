"""Hostile files of labelled texts: each is read or is a `TaskHeadsError`, within bounded work.

Work is counted in calls, which do not depend on the machine; pytest's timeout stops a hang within one call.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from work import at_most

from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.data.text_readers import TextInput, read_inputs
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.sources.json_files import MAX_LINE_BYTES

LINES = "".join(f'{{"text": "text {n}", "label": {n % 2}}}\n' for n in range(20))
MILLION = 10**6
CALLS = 6 * MILLION  # a few of each character, label or column of the largest file here


def counted(path: Path, **options: object) -> TextSets:
    with at_most(CALLS):
        return read_text_sets(str(path), **options)


def refused(path: Path, named: str = "", **options: object) -> None:
    """Expect an error that names a value of the file."""
    with at_most(CALLS), pytest.raises(TaskHeadsError) as caught:
        read_text_sets(str(path), **options)
    message = str(caught.value)
    assert named in message
    assert len(message) < 100_000


@pytest.mark.parametrize("unit", ["ab ", "あ", "<|im_start|>", "<|", "<|a", " x", "\u200b", "Ａ", "<think>"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_check_9_a_text_of_a_million_characters(tmp_path: Path, unit: str, suffix: str) -> None:
    path = tmp_path / f"train{suffix}"
    long = unit * (MILLION // len(unit)) + "end"
    rows = [(f"text {n}", n % 2) for n in range(20)] + [(long, 1)]
    content = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    if suffix != ".jsonl":
        mark = "," if suffix == ".csv" else "\t"
        content = "text,label\n" * (mark == ",") + "".join(f"{text}{mark}{label}\n" for text, label in rows)
    path.write_text(content, encoding="utf-8")
    assert len(counted(path).train) == 19
    with at_most(CALLS):
        rows = [*read_inputs(str(path))]
    assert sum(isinstance(item, TextInput) for _, item in rows) == 21


def test_a_blank_text_of_a_million_characters(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(LINES + json.dumps({"text": "\u200b" * MILLION, "label": 0}) + "\n", encoding="utf-8")
    refused(path, "train.jsonl:21: ")


@pytest.mark.parametrize("column", ["label", "labels"])
def test_check_9_a_hundred_thousand_labels_in_a_row(tmp_path: Path, column: str) -> None:
    path = tmp_path / "train.jsonl"
    names = [f"name {n}" for n in range(100_000)]
    rows = [{"text": f"text {n}", "labels": names[n::20]} for n in range(20)]
    if column == "label":
        rows = [{"text": f"t{n}", "category": names, "output": names[n]} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dev = tmp_path / "dev.jsonl"
    dev.write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    assert len(counted(path, dev=str(dev)).labels) == 100_000


def test_check_9_a_hundred_thousand_labels_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(LINES, encoding="utf-8")
    (tmp_path / "class.txt").write_text("".join(f"name {n}\n" for n in range(100_000)), encoding="utf-8")
    assert len(counted(path).labels) == 100_000


@pytest.mark.parametrize("form", ["- name {}\n", "name {}: The description\n"])
def test_a_label_file_of_yaml_is_read_in_linear_time(tmp_path: Path, form: str) -> None:
    calls = []
    for size in (10_000, 40_000):
        path = tmp_path / "labels.yaml"
        path.write_text("".join(form.format(n) for n in range(size)), encoding="utf-8")
        with at_most(CALLS) as work:
            assert len(LabelMap.read(path)) == size
        calls.append(work.calls)
    assert calls[1] <= 4.1 * calls[0]


def test_ids_up_to_a_billion_do_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(LINES + '{"text": "x", "label": 999999999}\n', encoding="utf-8")
    refused(path, "999,999,999")


def test_an_unknown_label_per_row_takes_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [{"text": f"text {n}", "label": f"a long unknown name {n}"} for n in range(10_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    labels = LabelMap(tuple(f"a long known name {n}" for n in range(10_000)))
    refused(path, "10000 problems", labels=labels)


def test_a_hundred_thousand_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {f"lablel{number}": 1 for number in range(100_000)} | {"text": "a"}
    path.write_text(json.dumps(row), encoding="utf-8")
    refused(path, str(path))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train{suffix}"
    with path.open("wb") as stream:
        stream.write(LINES.encode() * 9 if suffix == ".jsonl" else b"text\t1\n" * 2000)
        stream.seek(MAX_LINE_BYTES * 2, os.SEEK_CUR)  # a hole in the file: zeros that take no disk
        stream.write(b"\n")
    refused(path, str(path))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_files_of_another_kind(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train{suffix}"
    for content in (b"PAR1 and so on", b"\x1f\x8b\x08\x00", b"\xff\xfea\x00", bytes(range(32)) * 8):
        path.write_bytes(content)
        refused(path, str(path))


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
@pytest.mark.parametrize("column", ["label", "labels", "messages", "probabilities", "extra"])
def test_deep_nesting_is_an_error(tmp_path: Path, bracket: str, column: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES + f'{{"text": "a", "{column}": {bracket * 300_000}\n', encoding="utf-8")
    refused(path, str(path))
    path = tmp_path / "a.csv"
    cell = (bracket * 300_000).replace('"', '""')
    path.write_text(f'text,{column}\nx,"{cell}"\n' * 1, encoding="utf-8")
    with pytest.raises(TaskHeadsError):
        read_text_sets(str(path))


def test_texts_that_all_share_one_long_chain(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [{"text_a": f"text {n}", "text_b": f"text {n + 1}", "score": n % 7} for n in range(5_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sets = counted(path)
    assert len(sets.dev) == 500
    assert "second texts of pairs connect most rows, and are not kept apart" in sets.lines


def test_huge_names_are_truncated_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(LINES.replace("0}", '"' + "x" * MILLION + '"}'), encoding="utf-8")
    refused(path)
    dev = tmp_path / "dev.jsonl"
    dev.write_text(json.dumps({"text": "x", "label": "y" * MILLION}), encoding="utf-8")
    path.write_text(LINES, encoding="utf-8")
    refused(path, "dev.jsonl:1: ", dev=str(dev))
