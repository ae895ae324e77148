"""Train, dev and test from files, folders and the embedded sample; all problems of all files at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen_task_heads.data.title_sets import read_title_sets
from qwen_task_heads.errors import TaskHeadsError


def write(path: Path, *rows: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    numbers = range(start, start + count)
    return [{"chosen": f"Good {i}", "rejected": f"Bad {i}", "group_id": f"g{i}"} for i in numbers]


def arms(tests: int) -> list[dict[str, object]]:
    return [
        {
            "headline": f"Title {t} {arm}",
            "impressions": 1000 * (1 + t % 2),
            "clicks": 10 + 9 * arm,
            "test_id": f"t{t}",
        }
        for t in range(tests)
        for arm in range(3)
    ]


def test_the_embedded_sample_has_its_three_sets():
    sets = read_title_sets("embedded")
    assert (len(sets.train), len(sets.dev), len(sets.test)) == (2679, 466, 841)
    assert not sets.dev_was_cut
    assert sets.groups == []
    groups = [{pair.group for pair in part} for part in (sets.train, sets.dev, sets.test)]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]


def test_a_folder_gives_its_splits_and_a_named_file_wins(tmp_path):
    write(tmp_path / "data/train.jsonl", *pairs(20))
    write(tmp_path / "data/dev.jsonl", *pairs(4, 100))
    write(tmp_path / "data/test.jsonl", *pairs(3, 200))
    sets = read_title_sets(str(tmp_path / "data"))
    assert [len(part) for part in (sets.train, sets.dev, sets.test)] == [20, 4, 3]
    other = write(tmp_path / "other.jsonl", *pairs(7, 300))
    sets = read_title_sets(str(tmp_path / "data"), dev=other)
    assert [len(part) for part in (sets.train, sets.dev, sets.test)] == [20, 7, 3]
    assert sets.dev[0].source == "other.jsonl:1" or sets.dev[0].source.endswith("other.jsonl:1")


def test_without_a_dev_set_groups_are_cut_by_hash_and_no_pair_is_lost(tmp_path):
    rows = pairs(60)
    sets = read_title_sets(write(tmp_path / "a.jsonl", *rows))
    assert sets.dev_was_cut
    assert sets.test == []
    assert len(sets.train) + len(sets.dev) == 60
    assert not {p.group for p in sets.train} & {p.group for p in sets.dev}
    shuffled = read_title_sets(write(tmp_path / "b.jsonl", *reversed(rows)))
    assert {p.chosen for p in shuffled.dev} == {p.chosen for p in sets.dev}
    assert any("cut from train by hash" in line for line in sets.lines)
    more = read_title_sets(str(tmp_path / "a.jsonl"), dev_fraction=0.5)
    assert len(more.dev) > len(sets.dev)


def test_arms_give_groups_and_pairs_and_dev_groups_are_not_trained_on(tmp_path):
    sets = read_title_sets(write(tmp_path / "arms.jsonl", *arms(40)))
    assert len(sets.train) + len(sets.dev) == 40 * 3
    assert {group.group for group in sets.groups} == {pair.group for pair in sets.train}
    assert not {group.group for group in sets.groups} & {pair.group for pair in sets.dev}
    assert all(0 <= pair.preference <= 1 for pair in sets.train)


def test_limits_on_arms_leave_pairs_out_and_too_high_a_limit_is_named(tmp_path):
    file = write(tmp_path / "arms.jsonl", *arms(40))
    all_pairs = read_title_sets(file)
    some = read_title_sets(file, min_impressions=1500)
    assert len(some.train) + len(some.dev) == (len(all_pairs.train) + len(all_pairs.dev)) // 2
    clear = read_title_sets(file, max_p_value=0.01)
    assert 0 < len(clear.train) < len(all_pairs.train)
    with pytest.raises(TaskHeadsError, match="--min_impressions"):
        read_title_sets(file, min_impressions=10**6)


def test_overlaps_with_train_are_called_out(tmp_path):
    train = write(tmp_path / "train.jsonl", *pairs(30))
    test = write(tmp_path / "test.jsonl", *pairs(5, 27))
    sets = read_title_sets(train, dev=write(tmp_path / "dev.jsonl", *pairs(5, 100)), test=test)
    (line,) = [line for line in sets.lines if "also stand in train" in line]
    assert line.startswith("3 pairs of test")
    assert len(sets.test) == 5


def test_lines_name_files_and_not_folders(tmp_path):
    rows = [*pairs(30), *pairs(1)]  # with a duplicate, which is said with its line
    test = write(tmp_path / "test.jsonl", *pairs(3))
    sets = read_title_sets(write(tmp_path / "deep/er/train.jsonl", *rows), test=test)
    assert any("train.jsonl" in line for line in sets.lines)
    assert not any(str(tmp_path) in line for line in sets.lines), sets.lines


def test_all_the_problems_of_all_the_files_come_at_once(tmp_path):
    train = write(tmp_path / "train.jsonl", *pairs(5), {"chosen": "only"})
    dev = write(tmp_path / "dev.jsonl", {"chosen": 1, "rejected": "b"})
    with pytest.raises(TaskHeadsError) as caught:
        read_title_sets(train, dev=dev, test=str(tmp_path / "nowhere.jsonl"))
    message = str(caught.value)
    assert all(name in message for name in ("train.jsonl:6", "dev.jsonl:1", "nowhere.jsonl"))


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path):
    train = write(tmp_path / "train.jsonl", *pairs(30), {"chosen": "only"})
    sets = read_title_sets(train, bad_rows="skip")
    assert len(sets.train) + len(sets.dev) == 30
    assert any("1" in line and "train.jsonl:31" in line for line in sets.lines), sets.lines


def test_one_group_cannot_be_split(tmp_path):
    rows = [{**row, "group_id": "same"} for row in pairs(10)]
    with pytest.raises(TaskHeadsError, match="1 independent groups"):
        read_title_sets(write(tmp_path / "train.jsonl", *rows))
