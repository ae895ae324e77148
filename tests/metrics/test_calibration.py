"""Tests of temperatures, calibration metrics and risk-coverage against formulas and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problem_assertions import raises_problem
from sklearn.metrics import brier_score_loss

from qwen_task_heads.hubcode.pooling_task_heads import CumulativeLink
from qwen_task_heads.metrics import calibration, ranking
from qwen_task_heads.metrics.calibration import (
    PAIRS,
    calibration_metrics,
    divide_logits,
    fit_temperature,
    risk_coverage,
)
from qwen_task_heads.metrics.classification import (
    MULTI,
    ORDINAL,
    REGRESSION,
    SINGLE,
    classification_metrics,
    probabilities,
)


def link(count: int = 5) -> CumulativeLink:
    head = CumulativeLink(8, count)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return head


def sure_logits(kind: str, count: int, *, factor: float, seed: int = 0) -> tuple[Any, Any]:
    """Return logits that are `factor` times too large for the drawn truths."""
    rng = np.random.default_rng(seed)
    if kind == PAIRS:
        scores = rng.normal(0, 1, (count, 2))
        right = rng.random(count) < 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
        scores[~right] = scores[~right, ::-1]  # the chosen title first
        return factor * scores, None
    if kind == MULTI:
        logits = rng.normal(-1, 1.5, (count, 4))
        return factor * logits, (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    logits = rng.normal(0, 1.5, (count, 4))
    if kind == ORDINAL:
        features = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
        logits = link()(features).detach().double().numpy()
    p = probabilities(SINGLE, logits)
    targets = [int(rng.choice(len(row), p=row / row.sum())) for row in p]
    return divide_logits(kind, logits, 1 / factor), targets


@pytest.mark.parametrize("kind", [SINGLE, MULTI, ORDINAL, PAIRS])
@pytest.mark.parametrize("factor", [3.0, 0.5])
def test_a_known_temperature_is_found_and_halves_the_calibration_error(kind, factor):
    logits, targets = sure_logits(kind, 4000, factor=factor)
    found = fit_temperature(kind, logits, targets)
    assert found.value == pytest.approx(factor, rel=0.12)
    assert found.reason == ""
    assert (found.rows, found.groups) == (4000, 4000)
    before, after = found.log_loss
    assert after < before
    fresh, truth = sure_logits(kind, 4000, factor=factor, seed=1)
    errors = [
        calibration_metrics(kind, scores, truth)["ece"]["value"]
        for scores in (fresh, divide_logits(kind, fresh, found.value))
    ]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("kind", [SINGLE, MULTI, PAIRS])
def test_no_other_temperature_has_less_log_loss(kind):
    logits, targets = sure_logits(kind, 500, factor=2.0)
    truth = calibration._checked(kind, logits, targets)[1]
    value = fit_temperature(kind, logits, targets).value
    losses = [
        calibration._log_loss(kind, divide_logits(kind, logits, value * change), truth).mean()
        for change in (0.97, 1.0, 1.03)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_an_ordinal_model_keeps_its_cumulative_form():
    head, features = link(), torch.randn(50, 8, generator=torch.Generator().manual_seed(3))
    before = head(features).detach().double().numpy()
    with torch.no_grad():
        head.latent.weight /= 2.5
        head.first /= 2.5
        head.log_gaps -= float(np.log(2.5))
    after = head(features).detach().double().numpy()
    np.testing.assert_allclose(divide_logits(ORDINAL, before, 2.5), after, atol=2e-4)
    np.testing.assert_allclose(divide_logits(ORDINAL, after, 1 / 2.5), before, atol=2e-4)
    np.testing.assert_allclose(np.exp(divide_logits(ORDINAL, before, 20.0)).sum(1), 1.0)


def test_few_rows_few_groups_and_too_few_errors_leave_the_temperature_at_one():
    logits, targets = sure_logits(SINGLE, 400, factor=3.0)
    few = fit_temperature(SINGLE, logits[:49], targets[:49])
    assert (few.value, few.log_loss) == (1.0, None)
    assert "49 rows" in few.reason
    groups = fit_temperature(SINGLE, logits, targets, groups=["a", "b", "c", "d"] * 100)
    assert (groups.value, groups.groups) == (1.0, 4)
    assert "4 groups" in groups.reason
    right = np.eye(3)[np.arange(90) % 3]
    assert fit_temperature(SINGLE, right, np.arange(90) % 3).value == 1.0
    assert fit_temperature(SINGLE, logits[:50], targets[:50]).rows == 50


def test_a_temperature_that_does_not_generalise_to_other_groups_is_not_used():
    # All errors are in one group: a temperature fitted with it does not suit the others, and vice versa.
    logits = np.tile([2.0, 0.0], (100, 1))
    targets, groups = [0] * 88 + [1] * 12, [f"g{place // 4}" for place in range(88)] + ["odd"] * 12
    found = fit_temperature(SINGLE, logits, targets, groups=groups)
    assert found.value == 1.0
    assert found.log_loss[1] >= found.log_loss[0]
    assert "held-out" in found.reason


def test_no_group_is_in_both_parts_of_a_fold():
    member = np.repeat(np.arange(13), 4)
    seen = []
    for rest, out in calibration.folds(member):
        assert not set(member[rest]) & set(member[out])
        seen += out.tolist()
    assert sorted(seen) == list(range(52))


def test_the_calibration_metrics_equal_their_formulas():
    logits, targets = sure_logits(SINGLE, 300, factor=2.0)
    found = calibration_metrics(SINGLE, logits, targets)
    p = probabilities(SINGLE, logits)
    assert found["brier"]["value"] == pytest.approx(((p - np.eye(4)[targets]) ** 2).sum(1).mean())
    plain = classification_metrics(SINGLE, logits, targets, labels=list("abcd"))
    assert found["ece"]["value"] == pytest.approx(plain["ece"]["value"])
    both = calibration_metrics(SINGLE, logits[:, :2], [min(one, 1) for one in targets])
    p = probabilities(SINGLE, logits[:, :2])[:, 1]
    assert both["brier"]["value"] == pytest.approx(2 * brier_score_loss([min(t, 1) for t in targets], p))

    logits, targets = sure_logits(MULTI, 300, factor=2.0)
    found = calibration_metrics(MULTI, logits, targets)
    p = probabilities(MULTI, logits)
    assert found["brier"]["value"] == pytest.approx(((p - targets) ** 2).mean())
    slot = np.minimum((p * 15).astype(int), 14)
    by_bin = [abs((targets - p)[slot == place].sum()) for place in range(15)]
    assert found["ece"]["value"] == pytest.approx(sum(by_bin) / p.size)

    scores, _ = sure_logits(PAIRS, 300, factor=2.0)
    found = calibration_metrics(PAIRS, scores)
    assert found["brier"]["value"] == pytest.approx(ranking.brier(*scores.T).mean())
    assert found["ece"]["value"] == pytest.approx(ranking.expected_calibration_error(*scores.T))


def test_intervals_are_over_groups_and_contain_the_value():
    logits, targets = sure_logits(SINGLE, 300, factor=2.0)
    alone = calibration_metrics(SINGLE, logits, targets)
    grouped = calibration_metrics(
        SINGLE, np.repeat(logits, 3, 0), np.repeat(targets, 3), groups=np.repeat(range(300), 3).astype(str)
    )
    for name in ("ece", "brier"):
        assert alone[name]["low"] <= alone[name]["value"] <= alone[name]["high"]
        assert grouped[name] == pytest.approx({**alone[name], "n": 900})
    one = calibration_metrics(SINGLE, logits, targets, groups=["same"] * 300)
    assert one["ece"]["low"] is None


def test_risk_and_coverage_equal_a_manual_computation():
    sure = np.array([0.9, 0.8, 0.7, 0.6])
    logits = np.stack([np.log(sure), np.log(1 - sure)], axis=1)
    curve = risk_coverage(SINGLE, logits, [0, 0, 1, 0])
    assert [row["coverage"] for row in curve] == [1.0, 0.75, 0.5, 0.25]
    assert [row["error"] for row in curve] == pytest.approx([0.25, 1 / 3, 0.0, 0.0])
    assert [row["confidence"] for row in curve] == pytest.approx([0.6, 0.7, 0.8, 0.9], abs=2e-6)
    assert all(row["confidence"] <= one for row, one in zip(curve, sure[::-1], strict=True))
    assert curve[2]["upper"] == pytest.approx(ranking.wilson_interval(0.0, count=2)[1])
    grouped = risk_coverage(SINGLE, logits, [0, 0, 1, 0], groups=["a", "a", "b", "b"])
    assert grouped[0]["upper"] == pytest.approx(ranking.wilson_interval(0.25, count=2)[1])


def test_equal_confidences_are_kept_or_dropped_together():
    curve = risk_coverage(SINGLE, [[1.0, 0.0]] * 30, [0] * 20 + [1] * 10)
    assert [(row["coverage"], row["error"]) for row in curve] == [(1.0, pytest.approx(1 / 3))]


def test_calibration_of_a_regression_raises_an_error():
    with raises_problem("option-unsupported", "calibration"):
        fit_temperature(REGRESSION, [[1.0]], [1.0])
