from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from qwen_task_heads import load_tokenizer
from qwen_task_heads.batching import token_sets
from qwen_task_heads.batching.collators import group_dataset, pair_dataset, text_dataset
from qwen_task_heads.batching.token_sets import TokenSet, parts, set_name
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig

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


@pytest.mark.parametrize("kind", ["pairs", "groups", "texts"])
def test_a_large_set_in_the_cache_is_the_small_one_in_memory(
    kind: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, report = make(kind)
    assert not small.cache_files
    monkeypatch.setattr(token_sets, "IN_MEMORY", 100)
    large, again = make(kind)
    assert [Path(file["filename"]).parent for file in large.cache_files] == [cache]
    assert large.to_list() == small.to_list()
    assert (again, again.equal) == (report, report.equal)
    assert report.equal is not None
    assert len(report.equal.places) == {"pairs": 180, "groups": 556, "texts": 0}[kind]
    assert large.features.keys() == small.features.keys()


def test_equal_rows_are_named_in_the_whole_set(cache: Path) -> None:
    made, report = make("pairs")
    equal = report.equal
    assert equal.rows == 9000
    assert list(equal.places) == [n for n in range(9000) if n % 50 == 3]
    assert equal.sources[-1] == f"a:{equal.places[-1]}"
    assert made["row"] == [n for n in range(9000) if n % 50 != 3]
    _, report = make("texts")
    assert list(report.equal.places) == []  # equal texts are no matter of a cut


def test_data_of_one_name_take_one_file_and_an_unfinished_one_is_no_data(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_sets, "IN_MEMORY", 1)
    for number in (1, 2):
        made = TokenSet(rows=9, name="train")
        made.add({"row": [number]})
        first = made.finish()
    assert first["row"][:] == [2]
    assert len(list(cache.iterdir())) == 1
    TokenSet(rows=9, name="dev").add({"row": [1]})
    assert sorted(path.suffix for path in cache.iterdir()) == [".arrow", ".unfinished"]


def test_parts_and_names() -> None:
    assert [(start, len(part)) for start, part in parts(PAIRS, 4000)] == [
        (0, 4000),
        (4000, 4000),
        (8000, 1000),
    ]
    assert list(parts([])) == [(0, [])]
    assert len({set_name(rows) for rows in (PAIRS, PAIRS[:-1], PAIRS[1:], [])}) == 4
