"""Tests of the lookup baseline: labels of train for known texts, the trivial prediction for others."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.metrics.lookup_baseline import LookupBaseline
from qwen_task_heads.metrics.text_baselines import TrivialBaseline

NEW = TextExample(text="New", target=0)


def test_known_texts_get_their_labels_and_others_the_most_frequent() -> None:
    train = [TextExample(text=f"Text {n}", target=label) for n, label in enumerate((0, 1, 1, 2))]
    rows = [TextExample(text=f"TEXT  {n}", target=0) for n in range(4)]
    found = LookupBaseline("ordinal", 3).fit(train).predict([*rows, NEW])
    assert found.argmax(1).tolist() == [0, 1, 1, 2, 1]


def test_contradictory_rows_vote() -> None:
    train = [TextExample(text="A", target=label) for label in (2, 2, 0)]
    found = LookupBaseline("single_label_classification", 3).fit(train).predict(train)
    assert found.argmax(1).tolist() == [2, 2, 2]


def test_label_sets_and_values() -> None:
    train = [TextExample(text="A", target=(0, 2)), TextExample(text="B", target=())]
    found = LookupBaseline("multi_label_classification", 3).fit(train).predict(train)
    assert (found > 0).tolist() == [[True, False, True], [False, False, False]]
    votes = [TextExample(text="A", target=labels) for labels in ((0,), (0, 1), (0, 1, 2))]
    found = LookupBaseline("multi_label_classification", 3).fit(votes).predict(votes[:1])
    assert (found > 0).tolist() == [[True, True, False]]  # the labels of most of the rows
    values = [TextExample(text="A", target=(1.0,)), TextExample(text="a", target=(3.0,))]
    values.append(TextExample(text="B", target=(8.0,)))
    fitted = LookupBaseline("regression", 1).fit(values)
    assert fitted.predict([values[0], values[2], NEW]).ravel().tolist() == [2.0, 8.0, 4.0]


@pytest.mark.parametrize("kind", ["single_label_classification", "ordinal"])
def test_without_a_known_text_the_prediction_is_trivial(kind: str) -> None:
    train = [TextExample(text=f"t{n}", target=n % 3) for n in range(9)]
    rows = [NEW, TextExample(text="t10", target=1)]
    trivial = TrivialBaseline(kind, 3).fit(train).predict(rows)
    np.testing.assert_array_equal(LookupBaseline(kind, 3).fit(train).predict(rows), trivial)
