from __future__ import annotations

import pickle
import random
import resource
from pathlib import Path

import datasets
import numpy as np
import pytest

from qwen_task_heads.data import stores
from qwen_task_heads.data.stores import CHUNK, Column, Places, Texts, cache_folder
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.sources.keys import hash_keys


def words(count: int, *, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [rng.choice(["", "a", "中文", "Tea in five minutes", "é"]) for _ in range(count)]


@pytest.mark.parametrize("spool", [stores.SPOOL_BYTES, 0], ids=["memory", "file"])
def test_a_column_returns_its_texts(monkeypatch: pytest.MonkeyPatch, spool: int) -> None:
    monkeypatch.setattr(stores, "SPOOL_BYTES", spool)
    texts, given = Texts(str.upper), words(3 * CHUNK + 17)
    for start in range(0, len(given), 1000):
        texts.extend(given[start : start + 1000])
    assert len(texts) == len(given)
    rng = np.random.default_rng(0)
    for rows in (np.arange(len(given)), rng.permutation(len(given))[:5000], np.array([0, len(given) - 1])):
        assert texts.take(rows) == [given[row] for row in rows]
    assert [texts[row] for row in (0, CHUNK - 1, CHUNK, len(given) - 1)] == [
        given[row] for row in (0, CHUNK - 1, CHUNK, len(given) - 1)
    ]
    assert (texts.hashes() == hash_keys(map(str.upper, given))).all()
    assert texts.containing("five").tolist() == [row for row, text in enumerate(given) if "five" in text]


@pytest.mark.parametrize("rows", [0, 5, CHUNK, 2 * CHUNK + 1, 2 * CHUNK + 40])
def test_a_column_is_truncated(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(stores, "SPOOL_BYTES", 0)
    texts, given = Texts(str.lower), words(2 * CHUNK + 40)
    texts.extend(given)
    texts.truncate(rows)
    texts.extend(["new"] * 7)
    wanted = given[:rows] + ["new"] * 7
    assert texts.take(np.arange(rows + 7)) == wanted
    assert (texts.hashes() == hash_keys(map(str.lower, wanted))).all()


def test_an_empty_column_takes_no_memory_until_the_first_text() -> None:
    texts = Texts(str.lower)
    texts.extend([""] * (CHUNK + 3))
    assert texts.are_empty
    assert (len(texts), texts[5], texts.take(np.array([1, 2]))) == (CHUNK + 3, "", ["", ""])
    assert texts.hashes().strides == (0,)
    texts.extend(["a", ""])
    assert (len(texts), texts[CHUNK + 3], texts[CHUNK + 4], texts[0]) == (CHUNK + 5, "a", "", "")
    assert (texts.hashes() == hash_keys([""] * (CHUNK + 3) + ["a", ""])).all()
    texts.truncate(CHUNK)
    assert texts.take(np.arange(3)) == [""] * 3


def test_places_are_returned_unchanged() -> None:
    rng, places, wanted = random.Random(1), Places(), []
    for source in ("a.jsonl:", "b.parquet:row ", "a.jsonl:"):
        number = 0
        for _ in range(20):
            numbers = []
            for _ in range(rng.randrange(5)):
                number += rng.choice([1, 1, 1, 3])
                numbers.append(number)
            places.extend(source, numbers)
            wanted += [f"{source}{one}" for one in numbers]
    assert [places[row] for row in range(len(places))] == wanted
    places.truncate(30)
    places.extend("c:", [1])
    assert [places[row] for row in range(len(places))] == [*wanted[:30], "c:1"]


@pytest.mark.parametrize("default", [1.0, float("nan")])
def test_numbers_take_memory_from_the_first_different_value(default: float) -> None:
    column = Column("d", default)
    column.extend([default] * 3)
    assert column.is_constant
    column.extend([2.0, default])
    assert not column.is_constant
    np.testing.assert_array_equal(column.values(), [default] * 3 + [2.0, default])
    column.truncate(2)
    assert len(column) == 2
    np.testing.assert_array_equal(column.values(), [default] * 2)


def test_a_column_is_pickled_with_its_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "SPOOL_BYTES", 0)
    texts, given = Texts(str.lower), words(CHUNK + 9)
    texts.extend(given)
    again = pickle.loads(pickle.dumps(texts))
    assert again.take(np.arange(len(given))) == given
    assert (again.hashes() == texts.hashes()).all()


def test_a_full_disk_names_the_variable_for_another_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stores, "SPOOL_BYTES", 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(TaskHeadsError, match="HF_DATASETS_CACHE") as caught:
            Texts().extend(["a text"] * 9000)
        assert caught.value.problems[0].code == "disk-full"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # as the variable does
    texts = Texts()
    texts.extend(["a text"] * 9000)
    assert texts[8999] == "a text"


def test_an_unwritable_cache_falls_back_to_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    monkeypatch.setattr(stores, "SPOOL_BYTES", 0)
    assert Path(cache_folder()).is_dir()
    texts = Texts()
    texts.extend(["a text"] * 9000)
    assert texts[8999] == "a text"
