"""Scores of any kind restricted to the candidate labels of rows."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_task_heads.data.candidates import candidates_line, within
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.metrics.classification import SINGLE, probabilities

LABELS = LabelMap(("a", "b", "c", "d"))
ROWS = [
    TextExample(text="x", target=1, candidates=("b", "d")),
    TextExample(text="y", target=2, candidates=("c",)),
    TextExample(text="z", target=0),
]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 2e3])
def test_best_label_is_a_candidate_and_probabilities_are_over_candidates(scale: float) -> None:
    given = scale * np.array([[5.0, -4.0, 3.0, -3.0], [5.0, 4.0, -9.0, 1.0], [1.0, 2.0, 3.0, 0.0]])
    before = given.copy()
    found = within(given, ROWS, labels=LABELS)
    assert found.argmax(1).tolist() == [3, 2, 2]
    sure = probabilities(SINGLE, found)
    assert np.allclose(sure.sum(1), 1)
    assert sure[0, [0, 2]].tolist() == [0, 0]
    assert sure[1].tolist() == [0, 0, 1, 0]
    if scale == 1:
        assert sure[0, 3] == pytest.approx(1 / (1 + np.exp(-1)))
    assert np.array_equal(found[2], given[2])
    assert np.array_equal(given, before)


def test_other_labels_have_finite_scores_below_those_of_candidates() -> None:
    given = np.full((1, 4), -np.inf)
    assert within(given, ROWS[:1], labels=LABELS).argmax(1).tolist() == [1]  # a candidate, without any score
    given[0, 3] = -50.0
    found = within(given, ROWS[:1], labels=LABELS)
    assert np.isfinite(found).all()
    assert found.argmax(1).tolist() == [3]


def test_message_on_candidates_is_empty_without_any() -> None:
    assert candidates_line(ROWS[2:], labels=LABELS, split="test") == ""
    message = candidates_line(ROWS, labels=LABELS, split="dev")
    assert message.startswith("2 of 3 rows of dev have candidate labels (1.5 of 4 on average)")
