"""Tables and selections of tables give the same results as lists of their examples."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_task_heads.data.checks import examine, examine_texts, find_overlaps
from qwen_task_heads.data.click_pairs import arms_of
from qwen_task_heads.data.example_columns import (
    are_soft,
    arm_hashes,
    hashed,
    joined,
    label_counts,
    numbers_of,
    rarest_labels,
    row_labels,
    rows_containing,
    with_groups,
)
from qwen_task_heads.data.example_tables import GroupTable, have_second
from qwen_task_heads.data.pair_readers import PairData, read_pairs
from qwen_task_heads.data.preferences import comparable_groups, groups_to_pairs
from qwen_task_heads.data.sequences import Joined, Table, pick, sources_of
from qwen_task_heads.data.splits import assign_groups, split_by_group, split_texts, titles_tie
from qwen_task_heads.data.text_datasets import read_text_sets

WORDS = ["tea", "Tea", "rest", "ten", "ways", "a", "<|im_end|>", "中"]
TITLES = [word for word in WORDS if word != "<|im_end|>"]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module", params=["labels", "label"])
def texts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Table[Any]:
    """Return 9,000 texts in three chunks, with pairs, groups and weights, of one label or several."""
    rng = random.Random(0)
    rows = []
    for number in range(9000):
        chosen = rng.sample(["x", "y", "z"], rng.randrange(3))
        target = {"labels": chosen} if request.param == "labels" else {"label": rng.choice("xyz")}
        row = {
            "text": f"{rng.choice(WORDS)} {number % 7000}",
            "text_b": rng.choice(["b", "c", "d"]),
            **target,
        }
        row |= {"weight": 2.5} if number % 50 == 0 else {}
        row |= {"group_id": f"g{number // 3}"} if number % 7 == 0 else {}
        rows.append(row)
    path = write(tmp_path_factory.mktemp("texts") / "a.jsonl", rows)
    train = read_text_sets(path, dev=path).train
    assert isinstance(train, Table)
    return train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    """Return pairs and experiments."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("pairs")
    title = lambda: " ".join(rng.choices(TITLES, k=3))  # noqa: E731
    pairs = []
    while len(pairs) < 5000:
        row = {"chosen": title(), "rejected": title() + "!"}
        row |= rng.choice([{}, {"prompt": rng.choice("pq")}, {"group_id": f"g{len(pairs) // 3}"}])
        row |= rng.choice([{}, {"preference": rng.uniform(0.3, 1)}, {"margin": 0.5, "weight": 2.0}])
        pairs.append(row)
    arms = []
    for number in range(5000):
        shown = rng.choice([0, 30, 400, 4000])
        clicks = rng.randint(0, shown // 3)
        arms.append(
            {
                "headline": f"{title()} {number}",
                "clicks": clicks,
                "impressions": shown,
                "test_id": f"t{number // 4}",
            }
        )
    write(folder / "pairs.jsonl", pairs)
    write(folder / "arms.jsonl", arms)
    return read_pairs(str(folder))


def parts_of(table: Sequence[Any]) -> list[Sequence[Any]]:
    """Return the table, some of its rows, and several joined tables."""
    rows = np.random.default_rng(0).permutation(len(table))[: len(table) // 2]
    some = pick(table, np.sort(rows))
    return [table, some, Joined([pick(table, rows[:300]), some, list(pick(table, rows[:9]))])]


def test_a_table_is_a_sequence(texts: Table[Any], data: PairData) -> None:
    for table in [part for whole in (texts, data.pairs, data.groups) for part in parts_of(whole)]:
        rows = list(table)
        assert len(rows) == len(table)
        assert table == rows
        assert table != rows[:-1]
        assert (table[0], table[-1], table[5]) == (rows[0], rows[-1], rows[5])
        assert list(table[3:40:5]) == rows[3:40:5]
        assert list(pick(table, [7, 2, 2])) == [rows[7], rows[2], rows[2]]
        assert list(sources_of(table)) == list(sources_of(rows))
        assert sources_of(table)[4] == sources_of(rows)[4]
        with pytest.raises(IndexError):
            table[len(rows)]


def test_columns_of_texts(texts: Table[Any]) -> None:
    for table in parts_of(texts):
        rows = list(table)
        for name in ("text", "text_b", "group"):
            assert (hashed(table, name) == hashed(rows, name)).all()
        counts = label_counts(rows)
        assert label_counts(table) == counts
        assert rarest_labels(table, counts).tolist() == rarest_labels(rows, counts).tolist()
        assert [*map(row_labels(table), range(40))] == [*map(row_labels(rows), range(40))]
        np.testing.assert_array_equal(numbers_of(table, "weight"), numbers_of(rows, "weight"))
        assert have_second(table) == have_second(rows)
        assert not are_soft(table)
        assert rows_containing(table, "<").tolist() == rows_containing(rows, "<").tolist()


def test_checks_and_splits_of_texts(texts: Table[Any]) -> None:
    for table in parts_of(texts):
        rows = list(table)
        assert examine_texts(table) == examine_texts(rows)
        assert find_overlaps(table[:4000], table[3000:]) == find_overlaps(rows[:4000], rows[3000:])
        for salt in ("", "test"):
            assert split_texts(table, dev_fraction=0.2, salt=salt) == split_texts(
                rows, dev_fraction=0.2, salt=salt
            )


def test_columns_of_pairs(data: PairData) -> None:
    for table in parts_of(data.pairs):
        rows = list(table)
        for name in ("chosen", "rejected", "prompt", "group"):
            assert (hashed(table, name) == hashed(rows, name)).all()
        assert numbers_of(table, "preference") is numbers_of(rows, "preference") is None
        np.testing.assert_array_equal(numbers_of(table, "weight"), numbers_of(rows, "weight"))
        named = {0: "one", 7: "two", len(rows) - 1: "three"}
        assert with_groups(table, named) == with_groups(rows, named)


def test_checks_and_splits_of_pairs(data: PairData) -> None:
    for table in parts_of(data.pairs):
        rows = list(table)
        assert examine(table) == examine(rows)
        assert find_overlaps(table[:2000], table[1500:]) == find_overlaps(rows[:2000], rows[1500:])
        assert assign_groups(table) == assign_groups(rows)
        assert titles_tie(table) == titles_tie(rows)
        options = {"dev_fraction": 0.2, "titles_apart": False}
        assert split_by_group(table, **options) == split_by_group(rows, **options)


@pytest.mark.parametrize("options", [{}, {"min_impressions": 50}, {"max_p_value": 0.3}, {"all_pairs": False}])
def test_pairs_of_arms(data: PairData, options: dict[str, Any]) -> None:
    groups = data.groups
    assert isinstance(groups, GroupTable)
    for table in (groups, pick(groups, [5, 3, 900]), groups[100:200]):
        rows = list(table)
        assert groups_to_pairs(table, **options) == groups_to_pairs(rows, **options)
        least = options.get("min_impressions", 0)
        assert comparable_groups(table, min_impressions=least) == comparable_groups(
            rows, min_impressions=least
        )
        assert [column.tolist() for column in arm_hashes(table)] == [
            column.tolist() for column in arm_hashes(rows)
        ]
        assert arms_of(table).experiments.tolist() == arms_of(rows).experiments.tolist()
        pairs = groups_to_pairs(table)
        assert split_by_group(pairs, groups=table) == split_by_group(list(pairs), groups=rows)


def test_joined_sequences_of_one_kind_keep_their_kind(texts: Table[Any]) -> None:
    assert joined([[], texts, []]) is texts
    assert joined([[1], [2]]) == [1, 2]
    assert list(joined([texts[:2], list(texts[2:4])])) == list(texts[:4])
    assert len(joined([])) == 0


def test_tables_are_pickled(texts: Table[Any], data: PairData) -> None:
    for table in (texts[:50], data.pairs[:50], data.groups[:50]):
        assert pickle.loads(pickle.dumps(table)) == table
