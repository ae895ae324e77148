"""The samples of the package are read by the name `embedded`, and no text is in two splits."""

from __future__ import annotations

from collections import Counter

import pytest

from qwen_task_heads.data.embedded_datasets import EMBEDDED_DATASETS, locate_dataset
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.title_datasets import read_title_sets


def test_the_name_resolves_to_the_sample_of_each_task():
    assert read_title_sets("embedded").test[0].source.endswith("upworthy/test_public.jsonl:1")
    assert read_text_sets("embedded").test[0].source.endswith("banking77/test_public.jsonl:1")


def test_the_classification_sample_has_ten_labels_and_three_splits():
    sets = read_text_sets("embedded")
    assert (sets.problem_type, len(sets.labels)) == ("single_label_classification", 10)
    assert [len(rows) for rows in (sets.train, sets.dev, sets.test)] == [1384, 100, 200]
    assert not sets.dev_was_cut
    assert sets.test_seen == 0
    assert set(Counter(row.target for row in sets.test).values()) == {20}


@pytest.mark.parametrize("task", EMBEDDED_DATASETS)
def test_each_sample_is_small_and_has_its_licence(task):
    folder = EMBEDDED_DATASETS[task].folder
    assert "CC BY 4.0" in (folder / "LICENSE.md").read_text(encoding="utf-8")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1.5e6
    # the wheel takes what pyproject.toml lists: assets/**/*
    assert folder.parent.name == "assets"


def test_other_sources_are_unchanged():
    assert locate_dataset("reviews.jsonl", "texts") == "reviews.jsonl"
