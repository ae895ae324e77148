from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest

from qwen_task_heads import load_tokenizer
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
from qwen_task_heads.tokenization import token_datasets
from qwen_task_heads.tokenization.collators import group_dataset, pair_dataset, text_dataset
from qwen_task_heads.tokenization.token_datasets import TokenDatasetBuilder, row_blocks

PAIRS = [
    PairExample(
        chosen=f"Tea {n}",
        rejected=f"Tea {n}" if n % 50 == 3 else f"Rest {n}",
        weight=1 + n % 2,
        source=f"a:{n}",
    )
    for n in range(9000)
]
TEXTS = [TextExample(text=f"Tea {n % 4400}", target=n // 4400 % 2, source=f"a:{n}") for n in range(9000)]
GROUPS = [
    GroupExample(
        titles=("Rest", f"Tea {n}", "Tea") if n % 9 else ("Rest", "Rest"),
        clicks=(1, 2, 3)[: 3 if n % 9 else 2],
        impressions=(9, 9, 9)[: 3 if n % 9 else 2],
        group=str(n),
    )
    for n in range(5000)
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path / "qwen_task_heads"


def make(kind: str) -> tuple[Any, Any]:
    tokenizer = load_tokenizer("embedded")
    if kind == "pairs":
        return pair_dataset(PAIRS, tokenizer=tokenizer, max_length=64, drop_equal=True)
    if kind == "groups":
        return group_dataset(GROUPS, tokenizer=tokenizer, max_length=64)
    config = PooledClassifierConfig(problem_type="single_label_classification")
    return text_dataset(TEXTS, tokenizer=tokenizer, config=config, num_labels=2)


@pytest.mark.parametrize(
    "kind", ["pairs", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("groups", "texts"))]
)
def test_a_dataset_in_the_cache_equals_one_in_memory(
    kind: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, report = make(kind)
    assert not small.cache_files
    monkeypatch.setattr(token_datasets, "IN_MEMORY", 100)
    large, again = make(kind)
    assert [Path(file["filename"]).parent for file in large.cache_files] == [cache]
    assert large.to_list() == small.to_list()
    assert (again, again.equal) == (report, report.equal)
    assert report.equal is not None
    assert len(report.equal.places) == {"pairs": 180, "groups": 556, "texts": 0}[kind]
    assert large.features.keys() == small.features.keys()


@pytest.mark.slow
def test_equal_rows_are_named_in_the_whole_dataset(cache: Path) -> None:
    made, report = make("pairs")
    equal = report.equal
    assert equal.rows == 9000
    assert list(equal.places) == [n for n in range(9000) if n % 50 == 3]
    assert equal.sources[-1] == f"a:{equal.places[-1]}"
    assert made["row"] == [n for n in range(9000) if n % 50 != 3]
    _, report = make("texts")
    assert list(report.equal.places) == []  # equal texts were not caused by a cut


def test_only_datasets_of_equal_ids_share_a_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_datasets, "IN_MEMORY", 1)

    def made(row: int) -> Any:
        tokens = TokenDatasetBuilder(rows=9)
        tokens.add({"row": [row]})
        return tokens.finish()

    one, other, again = made(1), made(2), made(1)
    assert [found["row"][0] for found in (one, other, again)] == [1, 2, 1]
    assert one.cache_files == again.cache_files != other.cache_files
    assert pickle.loads(pickle.dumps(one))["row"][0] == 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".arrow", ".arrow"]


def test_an_unfinished_dataset_leaves_no_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_datasets, "IN_MEMORY", 1)
    tokens = TokenDatasetBuilder(rows=9)
    tokens.add({"row": [1]})
    assert len(list(cache.iterdir())) == 1
    del tokens
    gc.collect()
    assert list(cache.iterdir()) == []


def test_a_dataset_of_equal_pairs_in_the_cache_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_datasets, "IN_MEMORY", 1)
    pairs = [PairExample(chosen=f"Tea at {n}", rejected=f"Tea at {n + 9}") for n in range(6)]
    made, report = pair_dataset(pairs, tokenizer=load_tokenizer("embedded"), max_length=4, drop_equal=True)
    assert (len(made), report.equal.are_all) == (0, True)


def test_pairs_without_a_source_are_named_by_their_place(cache: Path) -> None:
    pairs = [
        PairExample(chosen=f"Tea {n}", rejected="Rest" if n != 4500 else "Tea 4500") for n in range(5000)
    ]
    equal = pair_dataset(pairs, tokenizer=load_tokenizer("embedded"), max_length=64)[1].equal
    assert (equal.places, equal.sources) == ((4500,), ("row 4501",))


def test_row_blocks() -> None:
    assert [(start, len(part)) for start, part in row_blocks(PAIRS, 4000)] == [
        (0, 4000),
        (4000, 4000),
        (8000, 1000),
    ]
    assert list(row_blocks([])) == [(0, [])]
