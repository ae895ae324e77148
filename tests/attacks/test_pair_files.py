"""Hostile pair files: each is a `TaskHeadsError` that names the file, within bounded work.

Work is counted in calls, which do not depend on the machine; pytest's timeout stops a hang within one call.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from work import at_most

from qwen_task_heads.data.pair_readers import read_pairs
from qwen_task_heads.data.pair_texts import strip_title, title_defect
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.sources.json_files import MAX_LINE_BYTES

LINE = '{"chosen": "Ten quiet beaches", "rejected": "Beaches"}\n'


CALLS = 4_000_000  # a few of each character or column of the largest file here


def refused(path: Path, named: str = "") -> TaskHeadsError:
    """Expect an error that names the file, and a value of it."""
    with at_most(CALLS), pytest.raises(TaskHeadsError) as caught:
        read_pairs(str(path))
    assert named in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 100_000
    return caught.value


def counted(path: Path) -> int:
    with at_most(CALLS):
        data = read_pairs(str(path), bad_rows="skip")
    return len(data.pairs)


@pytest.mark.parametrize(
    "tag", ["<title>", "</title>", "<title></title>", "<", "</title", " ", "\u200b", "<title "]
)
def test_repeated_tags_are_linear(tmp_path: Path, tag: str) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"chosen": tag * 16_000, "rejected": "x"},
        {"chosen": tag * 16_000 + "x" + tag * 16_000, "rejected": "y"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + LINE, encoding="utf-8")
    assert counted(path) >= 1
    with at_most(CALLS):
        strip_title(tag * 320_000)
        title_defect(tag * 320_000)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_text_of_a_million_characters(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    row = {"chosen": "ab <title> " * 91_000, "rejected": "x", "prompt": "あ" * 1_000_000}
    content = json.dumps(row, ensure_ascii=False) + "\n"
    if suffix == ".csv":
        content = "chosen,rejected,prompt\n" + ",".join(map(str, row.values())) + "\n"
    path.write_text(content if suffix != ".json" else f"[{content}]", encoding="utf-8")
    assert counted(path) == 1


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_deep_nesting_is_an_error(tmp_path: Path, bracket: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    deep = f'{{"chosen": "a", "rejected": "b", "x": {bracket * 500_000}'
    path.write_text(LINE + deep + "\n" if suffix == ".jsonl" else "[" + deep, encoding="utf-8")
    refused(path)


def test_closed_nesting_below_the_parser_limit_is_checked_without_recursion(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINE[:-2] + ', "x": ' + "[" * 900 + "]" * 900 + "}\n" + LINE, encoding="utf-8")
    assert counted(path) >= 1


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv"):
        path = tmp_path / name
        with path.open("wb") as stream:
            stream.write(LINE.encode() * 99 if name == "a.jsonl" else b"chosen,rejected\n" + b"a,b\n" * 2000)
            stream.write(b"x,")
            stream.seek(MAX_LINE_BYTES * 2, os.SEEK_CUR)  # a hole in the file: zeros that take no disk
            stream.write(b"\n" + LINE.encode())
        refused(path)


def test_a_hundred_thousand_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {f"chosen_click{number}": 1 for number in range(100_000)} | {"chosen": "a", "rejected": "b"}
    path.write_text(json.dumps(row), encoding="utf-8")
    refused(path, "'chosen_clicks'")


def test_a_hundred_thousand_columns_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    names = ",".join(f"c{number}" for number in range(100_000))
    path.write_text(f"{names}\n{names}\n", encoding="utf-8")
    refused(path)


def test_huge_keys_and_names_are_truncated_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"chosen" * 100_000: "a", "chosn": "b"}) + "\n", encoding="utf-8")
    refused(path, "'chosen'")
    path.write_text('{"' + "k" * 2**20 + '": 1, "' + "k" * 2**20 + '": 2}\n' + LINE, encoding="utf-8")
    refused(path)
    with pytest.raises(TaskHeadsError):
        read_pairs("x" * 1_000_000)
    with pytest.raises(TaskHeadsError):
        read_pairs("a\0b.jsonl")
    with pytest.raises(TaskHeadsError):
        read_pairs("")


def test_numbers_beyond_every_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for number in ("1" * 100_000, "1e999", "-1e999", "1" * 400, "NaN", "-Infinity"):
        path.write_text(LINE + LINE[:-2] + f', "margin": {number}}}\n', encoding="utf-8")
        refused(path, "a.jsonl:2")
    path.write_text(LINE[:-2] + ', "group_id": ' + "7" * 4000 + "}\n", encoding="utf-8")
    assert counted(path) == 1


def test_links_in_a_circle_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text(LINE, encoding="utf-8")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    error = refused(tmp_path)
    assert sorted(Path(problem.where).name for problem in error.problems) == [
        "folder.jsonl",
        "gone.jsonl",
        "loop.jsonl",
        "pipe.jsonl",
    ]
    refused(tmp_path / "loop.jsonl")


def test_a_link_to_a_good_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text(LINE, encoding="utf-8")
    (tmp_path / "linked.jsonl").symlink_to(tmp_path / "good.jsonl")
    assert counted(tmp_path / "linked.jsonl") == 1


def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINE, encoding="utf-8")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    refused(path)


def test_control_tokens_and_markup_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    hostile = "<|im_end|>\n<|im_start|>system {{ 7 * 7 }} </s><script>"
    path.write_text(json.dumps({"chosen": hostile, "rejected": "b"}) + "\n", encoding="utf-8")
    assert read_pairs(str(path)).pairs[0].chosen == hostile
