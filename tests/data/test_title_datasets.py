"""Train, dev and test from files, folders and the embedded sample; one error for all problems."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.sources import hub_datasets
from qwen_task_heads.sources.keys import text_key


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


def test_named_file_takes_precedence_over_the_split_of_a_folder(tmp_path):
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


def test_limits_on_arms_leave_pairs_out_and_too_high_a_limit_is_refused(tmp_path):
    file = write(tmp_path / "arms.jsonl", *arms(40))
    all_pairs = read_title_sets(file)
    some = read_title_sets(file, min_impressions=1500)
    assert len(some.train) + len(some.dev) == (len(all_pairs.train) + len(all_pairs.dev)) // 2
    clear = read_title_sets(file, max_p_value=0.01)
    assert 0 < len(clear.train) < len(all_pairs.train)
    with pytest.raises(TaskHeadsError, match="--min_impressions") as caught:
        read_title_sets(file, min_impressions=10**6)
    (problem,) = caught.value.problems
    assert (problem.where, problem.code) == (file, "rows-too-few")


def test_overlaps_with_train_are_reported(tmp_path):
    train = write(tmp_path / "train.jsonl", *pairs(30))
    test = write(tmp_path / "test.jsonl", *pairs(5, 27))
    sets = read_title_sets(train, dev=write(tmp_path / "dev.jsonl", *pairs(5, 100)), test=test)
    (line,) = [line for line in sets.lines if "also in train" in line]
    assert line.startswith("3 pairs of test")
    assert len(sets.test) == 5


def test_lines_name_files_and_not_folders(tmp_path):
    rows = [*pairs(30), *pairs(1)]  # with a duplicate, which is reported with its line
    test = write(tmp_path / "test.jsonl", *pairs(3))
    sets = read_title_sets(write(tmp_path / "deep/er/train.jsonl", *rows), test=test)
    assert any("train.jsonl" in line for line in sets.lines)
    assert not any(str(tmp_path) in line for line in sets.lines), sets.lines


def test_all_the_problems_of_all_the_files_come_at_once(tmp_path):
    train = write(tmp_path / "train.jsonl", *pairs(5), {"chosen": "only"})
    dev = write(tmp_path / "dev.jsonl", {"chosen": 1, "rejected": "b"})
    with pytest.raises(TaskHeadsError) as caught:
        read_title_sets(train, dev=dev, test=str(tmp_path / "nowhere.jsonl"))
    places = [Path(problem.where).name for problem in caught.value.problems]
    assert places == ["train.jsonl:6", "dev.jsonl:1", "nowhere.jsonl"]
    assert [problem.code for problem in caught.value.problems[:2]] == ["column-missing", "value-type"]


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path):
    train = write(tmp_path / "train.jsonl", *pairs(30), {"chosen": "only"})
    sets = read_title_sets(train, bad_rows="skip")
    assert len(sets.train) + len(sets.dev) == 30
    assert any("1" in line and "train.jsonl:31" in line for line in sets.lines), sets.lines


def test_one_group_cannot_be_split(tmp_path):
    rows = [{**row, "group_id": "same"} for row in pairs(10)]
    with pytest.raises(TaskHeadsError, match="1 independent groups") as caught:
        read_title_sets(write(tmp_path / "train.jsonl", *rows))
    (problem,) = caught.value.problems
    assert (problem.where, problem.code) == ("split", "rows-too-few")


def test_fingerprint_covers_train_groups_and_dev_and_not_the_paths_of_files(tmp_path):
    sets = read_title_sets(write(tmp_path / "arms.jsonl", *arms(40)))
    same = sets.fingerprint()
    assert set(same) == {"train_pairs", "train_groups", "dev_pairs"}
    assert all(len(value) == 64 for value in same.values())
    assert read_title_sets(write(tmp_path / "b/moved.jsonl", *arms(40))).fingerprint() == same
    group = replace(sets.groups[0], clicks=(1, *sets.groups[0].clicks[1:]))
    for changed, name in (
        (replace(sets, train=sets.train[::-1]), "train_pairs"),
        (replace(sets, train=sets.train[1:]), "train_pairs"),
        (replace(sets, dev=[replace(sets.dev[0], chosen="Other"), *sets.dev[1:]]), "dev_pairs"),
        (replace(sets, groups=[group, *sets.groups[1:]]), "train_groups"),
    ):
        other = changed.fingerprint()
        assert {key for key in same if same[key] != other[key]} == {name}


def arm(test: str, headline: str, clicks: int, impressions: int) -> dict[str, object]:
    return {"headline": headline, "impressions": impressions, "clicks": clicks, "test_id": test}


def test_filters_of_pairs_apply_to_groups_and_are_reported(tmp_path):
    odd = [
        arm("few", "Few a", 9, 1000),
        arm("few", "Few b", 5, 1000),
        arm("few", "Few c", 1, 10),
        arm("unseen", "Unseen a", 9, 1000),
        arm("unseen", "Unseen b", 5, 1000),
        arm("unseen", "Unseen c", 0, 0),
        arm("one", "One a", 9, 1000),
        arm("one", "One b", 0, 0),
        arm("equal", "Equal a", 9, 1000),
        arm("equal", "Equal b", 18, 2000),
    ]
    file = write(tmp_path / "arms.jsonl", *odd)
    dev = write(tmp_path / "dev.jsonl", *pairs(3))
    sets = read_title_sets(file, dev=dev)
    assert {group.group: len(group.titles) for group in sets.groups} == {"few": 3, "unseen": 2}
    assert all(min(group.impressions) > 0 for group in sets.groups)
    assert any("2 arms with fewer than 1 impression left out" in line for line in sets.lines)
    assert any("without a difference in click rate left out" in line for line in sets.lines)
    sets = read_title_sets(file, dev=dev, min_impressions=100)
    assert {group.group: group.titles for group in sets.groups} == {
        "few": ("Few a", "Few b"),
        "unseen": ("Unseen a", "Unseen b"),
    }
    assert [len(group.sources) for group in sets.groups] == [2, 2]
    clear = read_title_sets(
        write(tmp_path / "more.jsonl", *odd, arm("sure", "Sure", 900, 1000), arm("sure", "Poor", 1, 1000)),
        dev=dev,
        max_p_value=1e-9,
    )
    assert [group.group for group in clear.groups] == ["sure"]
    assert any("2 experiments without a clear difference (--max_p_value)" in line for line in clear.lines)


def test_titles_of_dev_are_in_no_group_of_train(tmp_path):
    """The third arm of each experiment is also in the next one, and in no pair with a clear difference."""
    rows = []
    for number in range(200):
        rows += [
            arm(f"t{number}", f"Good {number}", 90, 1000),
            arm(f"t{number}", f"Bad {number}", 10, 1000),
            arm(f"t{number}", f"SHARED {number // 2}" if number % 2 else f"Shared {number // 2}", 50, 1000),
        ]
    sets = read_title_sets(write(tmp_path / "arms.jsonl", *rows), max_p_value=1e-9, dev_fraction=0.3)
    assert not any("shared" in text_key(pair.chosen + pair.rejected) for pair in [*sets.train, *sets.dev])
    sides = [{pair.group for pair in part} for part in (sets.train, sets.dev)]
    assert {group.group for group in sets.groups} == sides[0]
    for number in range(0, 200, 2):  # both experiments with a shared title are in one split
        assert any({f"t{number}", f"t{number + 1}"} <= side for side in sides)


def test_folder_that_is_named_for_a_split_gives_that_split(tmp_path):
    for split, count in (("train", 20), ("dev", 4), ("test", 3)):
        write(tmp_path / f"other/{split}.jsonl", *pairs(count, 100 * count))
    train = write(tmp_path / "train.jsonl", *pairs(30))
    other = str(tmp_path / "other")
    sets = read_title_sets(train, dev=other, test=other)
    assert [len(part) for part in (sets.train, sets.dev, sets.test)] == [30, 4, 3]
    write(tmp_path / "flat/a.jsonl", *pairs(5, 900))  # the only split of a folder may have any name
    write(tmp_path / "single/train.jsonl", *pairs(6, 950))
    sets = read_title_sets(train, dev=str(tmp_path / "flat"), test=str(tmp_path / "single"))
    assert [len(part) for part in (sets.dev, sets.test)] == [5, 6]
    (tmp_path / "other/test.jsonl").unlink()
    with pytest.raises(TaskHeadsError, match="several splits"):
        read_title_sets(train, test=other)
    (tmp_path / "other/dev.jsonl").unlink()
    with pytest.raises(TaskHeadsError, match="'dev'"):  # train is never read as dev
        read_title_sets(other, dev=other)


@pytest.fixture
def hub(monkeypatch):
    """Return datasets by id, which `load_dataset` returns, and the ids of its calls."""
    import datasets

    stored: dict[str, dict[str, list[dict[str, object]]]] = {}
    asked: list[str] = []

    def load(name, streaming=False):
        asked.append(name)
        if name not in stored:
            raise FileNotFoundError(f"no data set {name}")
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split, rows in stored[name].items()}
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub_datasets._load_huggingface.cache_clear()
    yield stored, asked
    hub_datasets._load_huggingface.cache_clear()


def test_splits_of_an_id_are_found_and_loaded_once(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored, asked = hub
    stored["owner/three"] = {"train": pairs(20), "validation": pairs(4, 100), "test": pairs(3, 200)}
    sets = read_title_sets("owner/three")
    assert [len(part) for part in (sets.train, sets.dev, sets.test)] == [20, 4, 3]
    assert not sets.dev_was_cut
    assert asked == ["owner/three"]
    stored["owner/one"] = {"train": pairs(60)}
    sets = read_title_sets("owner/one", test="owner/three")
    assert sets.dev_was_cut
    assert len(sets.test) == 3
    assert asked == ["owner/three", "owner/one"]
    stored["owner/only"] = {"holdout": pairs(5, 300)}
    assert len(read_title_sets("owner/one", dev="owner/only").dev) == 5


def test_other_errors_of_an_id_are_reported_once(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored, asked = hub
    with pytest.raises(TaskHeadsError) as caught:
        read_title_sets("owner/nothing")
    assert [problem.where for problem in caught.value.problems] == ["owner/nothing"]
    assert asked == ["owner/nothing"]
    stored["owner/bad"] = {"train": pairs(9), "dev": [{"chosen": "A", "rejected": "A"}]}
    with pytest.raises(TaskHeadsError, match=r"owner/bad\[dev\]:row 1"):
        read_title_sets("owner/bad")
