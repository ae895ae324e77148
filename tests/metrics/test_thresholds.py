"""Tests of thresholds per label against an exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest
from problem_assertions import raises_problem
from sklearn.metrics import f1_score, precision_recall_curve

from qwen_task_heads.metrics import thresholds
from qwen_task_heads.metrics.ranking import sigmoid
from qwen_task_heads.metrics.thresholds import fit_thresholds, read_rule


def rare_labels(count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated logits of labels with few rows."""
    rng = np.random.default_rng(seed)
    logits = rng.normal([-2.0, -3.0, -4.0], 1.3, (count, 3))
    return logits, (rng.random(logits.shape) < sigmoid(logits)).astype(float)


def test_thresholds_raise_macro_f1_on_other_rows():
    found = fit_thresholds(*rare_labels(3000))
    before, after = found.held_out["macro_f1"]
    assert after > before + 0.1
    logits, truth = rare_labels(3000, seed=1)
    chosen = sigmoid(logits) >= np.array(found.values)
    scores = [f1_score(truth, one, average="macro") for one in (logits >= 0, chosen)]
    assert scores[1] > scores[0] + 0.1
    assert len(found.values) == 3
    assert all(0 < value < 0.5 for value in found.values)


def test_the_threshold_of_a_label_is_the_best_of_all(monkeypatch):
    monkeypatch.setattr(thresholds, "SHRINK", 0)
    logits, truth = rare_labels(400)
    cuts = thresholds._cuts_by_f1(logits, truth)
    for column, true, cut in zip(logits.T, truth.T, cuts, strict=True):
        precision, recall, _ = precision_recall_curve(true, column)
        best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
        assert f1_score(true, column >= cut) == pytest.approx(best)


def test_thresholds_of_labels_with_few_rows_are_shrunk():
    logits, truth = rare_labels(400)
    truth[:, 2] = 0
    truth[np.argmin(logits[:, 2]), 2] = 1  # on its own, the label would be predicted for all rows
    common = thresholds._common_cut(logits, truth)
    cut = thresholds._cuts_by_f1(logits, truth)[2]
    assert cut == pytest.approx((logits[:, 2].min() + 10 * common) / 11)
    truth[:, 2] = 0
    assert thresholds._cuts_by_f1(logits, truth)[2] == thresholds._common_cut(logits, truth)


def test_the_common_threshold_is_the_best_candidate():
    logits, truth = rare_labels(300)
    tried = np.unique([0.0, *np.quantile(logits, np.linspace(0, 1, 201)[1:])])
    wanted = max(f1_score(truth, logits >= cut, average="macro", zero_division=0) for cut in tried)
    cut = thresholds._common_cut(logits, truth)
    assert f1_score(truth, logits >= cut, average="macro") == pytest.approx(wanted)


def test_a_required_precision_is_reached_or_the_label_is_never_predicted():
    logits, truth = rare_labels(2000)
    truth[:, 1] = 0
    truth[np.argmin(logits[:, 1]), 1] = 1
    found = fit_thresholds(logits, truth, rule="precision:0.6")
    chosen = sigmoid(logits) >= np.array(found.values)
    assert found.unreachable == (1,)
    assert not chosen[:, 1].any()
    for label in (0, 2):
        assert truth[chosen[:, label], label].mean() >= 0.6
        lower = np.sort(logits[~chosen[:, label], label])[::-1]
        for score in lower[:200]:  # no lower threshold has the precision
            assert truth[logits[:, label] >= score, label].mean() < 0.6
    half, held = found.held_out["micro_precision"]
    assert held == pytest.approx(0.6, abs=0.12)
    assert half is not None


def test_thresholds_that_do_not_help_are_not_used():
    rng = np.random.default_rng(0)
    truth = (rng.random((300, 2)) < 0.5).astype(float)
    found = fit_thresholds(np.where(truth > 0, 3.0, -3.0), truth)  # .5 is right for all rows
    assert found.values is None
    assert "held-out" in found.reason
    assert fit_thresholds(*(part[:49] for part in rare_labels(100))).values is None
    assert fit_thresholds(*rare_labels(100), rule="none").values is None


@pytest.mark.parametrize(
    "rule", ["f2", "precision", "precision:", "precision:1", "precision:0", "f1:0.5", ""]
)
def test_an_unknown_rule_raises_an_error(rule):
    with raises_problem("option-value", "--thresholds"):
        read_rule(rule)
