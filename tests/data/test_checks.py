from __future__ import annotations

import doctest
import random
from importlib import import_module

import pytest
from work import at_most

from qwen_task_heads.data.checks import Finding, ReadReport, find_overlaps
from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.sources.keys import text_key


def test_only_planted_overlaps_are_found() -> None:
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "eins", "zwei", "drei", "Straße", "café", "漢字", "東京", "ＡＢＣ"]
    train = [
        PairExample(
            chosen=f"Title {i} " + " ".join(rng.choices(words, k=6)),
            rejected=f"Other {i} " + " ".join(rng.choices(words, k=6)),
            prompt=f"P {i % 7}",
            source=f"train.jsonl:{i + 1}",
        )
        for i in range(5000)
    ]
    # Near misses: one shared title, the same titles under another prompt, one character more.
    test = [
        PairExample(chosen=pair.chosen, rejected=f"new {i}", prompt=pair.prompt, source="near")
        for i, pair in enumerate(train[:2000])
    ]
    test += [
        PairExample(chosen=p.chosen, rejected=p.rejected, prompt="Q", source="near") for p in train[:1000]
    ]
    test += [PairExample(chosen=p.chosen + "!", rejected=p.rejected, prompt=p.prompt) for p in train[:1850]]
    planted = {}
    for i, pair in enumerate(rng.sample(train, 150)):
        kind = ("exact", "normalised", "swapped")[i % 3]
        chosen, rejected = pair.chosen, pair.rejected
        if kind == "normalised":
            chosen, rejected = chosen.upper().replace(" ", "  "), rejected.replace("A", "Ａ") + "\u3000"
        if kind == "swapped":
            chosen, rejected = rejected, chosen.upper() if i % 2 else chosen
        source = f"test.jsonl:{i}"
        test.append(PairExample(chosen=chosen, rejected=rejected, prompt=pair.prompt, source=source))
        planted[source] = (kind, pair.source)
    rng.shuffle(test)
    with at_most(500_000):
        found = find_overlaps(train, test)
    assert len(test) == 5000
    assert {overlap.test_source: (overlap.kind, overlap.train_source) for overlap in found} == planted
    assert len(found) == 150


@pytest.mark.parametrize(
    "one", ["Straße", "ﬁne  print", "ＡＢＣ", "İstanbul", "e\u0301t\u00e9", "\u1e9e", "ͅ"]
)
def test_text_key_is_stable(one: str) -> None:
    assert text_key(text_key(one)) == text_key(one)
    assert text_key(f"  {one.upper()} ") == text_key(one.upper())


def test_lines_of_a_report() -> None:
    sources = tuple(f"data/train.jsonl:{line}" for line in (17, 40, 51, 90))
    report = ReadReport(
        source="data/train.jsonl",
        rows_read=2680,
        used=2679,
        refused=1,
        pairs=2679,
        groups=1901,
        findings=(Finding("duplicate", sources),),
    )
    assert report.lines() == [
        "2,679 pairs of 1,901 experiments read from data/train.jsonl",
        "1 of 2,680 rows left out",
        "4 duplicates of earlier pairs (train.jsonl:17, train.jsonl:40, train.jsonl:51, …)",
    ]


MODULES = (
    "candidates",
    "checks",
    "label_values",
    "datasets",
    "pair_readers",
    "pair_texts",
    "row_reader",
    "schema",
    "splits",
    "stores",
    "text_datasets",
    "text_layout",
    "text_readers",
    "title_datasets",
)


@pytest.mark.parametrize("name", MODULES)
def test_documented_examples_run(name: str) -> None:
    module = import_module(f"qwen_task_heads.data.{name}")
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0
