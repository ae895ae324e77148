"""Tests of metrics against brute force and known values, and of intervals, speed and errors."""

import json
import math

import numpy as np
import pytest
from problem_assertions import raises_problem
from work import at_most

from qwen_task_heads.metrics import ranking
from qwen_task_heads.metrics.ranking import (
    Metric,
    bootstrap_interval,
    group_metrics,
    length_bias,
    mean_metric,
    pair_accuracy,
    ranking_metrics,
    spearman,
    wilson_interval,
)


def pairs(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.5, 1, n), rng.normal(0, 1, n)


def test_pair_accuracy_counts_ties_half_and_reports_them():
    metric = pair_accuracy([3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 2.0, 5.0], groups=["a", "a", "b", "c"])
    assert metric.value == (1 + 0.5 + 0.5 + 0) / 4
    assert (metric.ties, metric.n, metric.n_groups) == (2, 4, 3)


def test_a_constant_scorer_is_at_one_half():
    assert pair_accuracy(np.zeros(7), np.zeros(7)).value == 0.5


def test_bootstrap_draws_whole_groups():
    # One group of 90 right rows, nine groups of one wrong row: over rows the interval would be narrow near
    # .9.
    values = np.array([1.0] * 90 + [0.0] * 9)
    groups = ["big"] * 90 + [f"g{i}" for i in range(9)]
    low, high = bootstrap_interval(values, groups)
    assert low == 0.0  # resamples without the big group
    row_low, _ = bootstrap_interval(values)
    assert row_low > 0.8
    assert high > 0.9


def test_bootstrap_equals_a_plain_loop():
    values, groups = np.random.default_rng(1).random(60), [f"g{i % 7}" for i in range(60)]
    keys = sorted(set(groups))
    rng = np.random.default_rng(3)
    means = []
    for row in rng.integers(7, size=(300, 7)):
        means.append(np.mean(np.concatenate([values[np.array(groups) == keys[k]] for k in row])))
    wanted = np.quantile(means, [0.05, 0.95])
    assert bootstrap_interval(values, groups, level=0.9, resamples=300, seed=3) == pytest.approx(wanted)


def test_bootstrap_is_seeded_and_independent_of_row_order():
    values, groups = np.random.default_rng(2).random(50), [f"g{i % 9}" for i in range(50)]
    first = bootstrap_interval(values, groups)
    assert first == bootstrap_interval(values, groups)
    assert first != bootstrap_interval(values, groups, seed=1)
    assert first == pytest.approx(bootstrap_interval(values[::-1], groups[::-1]), abs=1e-12)


def test_bootstrap_has_about_its_nominal_coverage():
    rng = np.random.default_rng(4)
    groups, hits = np.repeat(np.arange(80), 4), 0
    for trial in range(200):
        chance = np.clip(rng.normal(0.65, 0.2, 80), 0, 1)  # rows of a group are correlated
        truth = 0.65
        low, high = bootstrap_interval(
            rng.random(320) < np.repeat(chance, 4), groups, resamples=500, seed=trial
        )
        hits += low <= truth <= high
    assert 0.90 <= hits / 200 <= 0.985


def test_bootstrap_of_841_pairs_has_no_loop_over_resamples():
    values, groups = np.random.default_rng(0).random(841), [f"t{i % 220}" for i in range(841)]
    with at_most(2_000):
        bootstrap_interval(values, groups)
        bootstrap_interval(values)


def test_one_group_has_no_interval():
    assert bootstrap_interval([1.0, 0.0], ["a", "a"]) == (None, None)
    assert mean_metric([1.0, 0.0], groups=["a", "a"]) == Metric(0.5, None, None, 2, 1)


def test_chunks_do_not_lose_resamples(monkeypatch):
    values = np.random.default_rng(0).random(100)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(ranking, "CHUNK", 700)
    assert bootstrap_interval(values) == pytest.approx(whole, abs=0.02)


def test_log_loss_and_brier_equal_the_formulas():
    c, r = pairs()
    p = 1 / (1 + np.exp(-(c - r)))
    np.testing.assert_allclose(ranking.log_loss(c, r), -np.log(p))
    np.testing.assert_allclose(ranking.brier(c, r), (1 - p) ** 2)
    assert ranking.log_loss([1e4, -1e4], [-1e4, 1e4]).tolist() == [0.0, 2e4]
    assert ranking.brier([1e4, -1e4], [-1e4, 1e4]).tolist() == [0.0, 1.0]


def test_calibration_error_is_small_when_scores_are_log_odds_and_grows_with_their_scale():
    rng = np.random.default_rng(5)
    gap = rng.normal(0, 1.5, 20_000)
    won = rng.random(20_000) < 1 / (1 + np.exp(-gap))
    oriented = np.where(won, gap, -gap)  # chosen minus rejected
    zero = np.zeros_like(oriented)
    assert ranking.expected_calibration_error(oriented, zero) < 0.015
    assert ranking.expected_calibration_error(3 * oriented, zero) > 0.08
    assert ranking.expected_calibration_error([50.0, 50.0], [0.0, 0.0]) == pytest.approx(0.0, abs=1e-12)
    assert ranking.expected_calibration_error([-50.0], [0.0]) == pytest.approx(1.0)


def test_spearman_equals_scipy_with_ties():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(6)
    x, y = rng.integers(0, 9, 100), rng.integers(0, 5, 100)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert spearman([1, 2, 3], [1, 4, 9]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [1, 1, 1]) is None


def test_length_bias_detects_a_scorer_that_counts_characters():
    rng = np.random.default_rng(7)
    a, b = rng.integers(20, 90, 300), rng.integers(20, 90, 300)
    bias = length_bias(a.astype(float), b.astype(float), a, b)
    assert bias["spearman"] == pytest.approx(1.0)
    assert bias["scorer_prefers_longer"] == 1.0
    assert bias["data_prefer_longer"] == pytest.approx((a > b)[a != b].mean())
    # The bias of the scorer does not depend on which title was chosen.
    swapped = length_bias(b.astype(float), a.astype(float), b, a)
    assert swapped["spearman"] == pytest.approx(bias["spearman"])
    assert swapped["scorer_prefers_longer"] == 1.0
    same = length_bias([1.0, 2.0], [0.0, 0.0], [5, 5], [5, 5])
    assert same == {"spearman": None, "scorer_prefers_longer": None, "data_prefer_longer": None}


def test_ranking_metrics_contain_every_metric_and_are_json():
    c, r = pairs()
    found = ranking_metrics(
        c,
        r,
        groups=[f"g{i // 4}" for i in range(200)],
        chosen_lengths=np.arange(200),
        rejected_lengths=np.ones(200),
    )
    assert set(found) == {
        *("pair_accuracy", "log_loss", "brier", "score_gap", "ece"),
        *("length_spearman", "scorer_prefers_longer", "data_prefer_longer"),
    }
    for name, metric in found.items():
        assert {"value", "low", "high", "n", "n_groups"} <= set(metric)
        assert (metric["n"], metric["n_groups"]) == (200, 50)
        assert ("ties" in metric) == (name == "pair_accuracy")
        if metric["low"] is not None:
            assert metric["low"] < metric["value"] < metric["high"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["score_gap"]["value"] == pytest.approx((c - r).mean())
    assert "length_spearman" not in ranking_metrics(c, r)


def test_group_metrics_equal_a_manual_computation():
    # a: best title on top; b: the worst on top; c: a single title; d: two tied on top, one of them best
    scores = [3.0, 2.0, 1.0, 9.0, 0.0, 5.0, 1.0, 1.0]
    gains = [0.3, 0.2, 0.1, 0.1, 0.4, 0.9, 0.2, 0.1]
    groups = ["a", "a", "a", "b", "b", "c", "d", "d"]
    found = group_metrics(scores, gains, groups)
    assert found["best_pick"]["value"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["ndcg_at_1"]["value"] == pytest.approx((1 + 0.25 + 0.75) / 3)
    assert found["kendall_tau"]["value"] == pytest.approx((1 - 1) / 2)  # d: its scores are constant
    assert (found["best_pick"]["n"], found["kendall_tau"]["n"]) == (3, 2)


def test_group_metrics_do_not_depend_on_row_order():
    rng = np.random.default_rng(8)
    scores, gains, groups = rng.normal(size=60), rng.random(60), np.array([f"g{i % 12}" for i in range(60)])
    order = rng.permutation(60)
    first, second = (
        group_metrics(scores, gains, groups),
        group_metrics(scores[order], gains[order], groups[order]),
    )
    for name in first:
        assert first[name]["value"] == pytest.approx(second[name]["value"])


def test_kendall_equals_scipy_with_ties():
    from scipy.stats import kendalltau

    rng = np.random.default_rng(9)
    scores, gains = rng.integers(0, 4, 12), rng.integers(0, 4, 12)
    found = group_metrics(scores, gains, ["a"] * 12)["kendall_tau"]
    assert found["value"] == pytest.approx(kendalltau(scores, gains).statistic)
    assert found["low"] is None


def test_groups_without_any_gain_give_no_ratio():
    found = group_metrics([1.0, 2.0], [0.0, 0.0], ["a", "a"])
    assert found["ndcg_at_1"] == {"value": None, "low": None, "high": None, "n": 0, "n_groups": 0}
    assert found["best_pick"]["value"] == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_raise_an_error_with_their_row(bad):
    for call in (
        lambda: ranking_metrics([0.0, 1.0, bad], [0.0, 0.0, 0.0]),
        lambda: pair_accuracy([0.0, 1.0, 0.0], [0.0, 0.0, bad]),
        lambda: group_metrics([0.0, 1.0, bad], [0.1, 0.2, 0.3], ["a", "a", "a"]),
    ):
        with raises_problem("number-not-finite", match="row 2"):
            call()


def test_invalid_shapes_and_options_raise_errors():
    with raises_problem("argument-type", "pair metrics"):
        pair_accuracy([1.0, 2.0], [1.0])
    with raises_problem("argument-type", "pair metrics"):
        pair_accuracy([], [])
    with raises_problem("argument-type", "metrics"):
        mean_metric([])
    with raises_problem("argument-type", "metrics"):
        pair_accuracy([1.0, 2.0], [0.0, 0.0], groups=["a"])
    with raises_problem("option-range", "bootstrap", match="level 95"):
        bootstrap_interval([1.0, 0.0], level=95)
    with raises_problem("option-range", "bootstrap", match="0 resamples"):
        bootstrap_interval([1.0, 0.0], resamples=0)
    with raises_problem("value-range", "gains", match="-1"):
        group_metrics([1.0, 2.0], [-1.0, 0.0], ["a", "a"])
    with raises_problem("rows-too-few", "groups"):
        group_metrics([1.0, 2.0], [1.0, 0.0], ["a", "b"])


def test_wilson_interval_solves_its_equation():
    for right, count in ((0, 7), (7, 7), (3, 10), (641, 900)):
        for bound in ranking.wilson_interval(right / count, count=count):
            distance = abs(right / count - bound)
            half = ranking.Z_95 * math.sqrt(max(0.0, bound * (1 - bound)) / count)
            assert distance == pytest.approx(half, abs=1e-9)


def test_values_that_are_all_one_have_the_interval_of_a_share():
    perfect = pair_accuracy([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert (perfect.value, perfect.low, perfect.high) == (1.0, *wilson_interval(1.0, count=3))
    assert bootstrap_interval([1.0] * 18) == wilson_interval(1.0, count=18)
    assert bootstrap_interval([0.0] * 6, ["a", "b", "c"] * 2) == wilson_interval(0.0, count=3)
    assert bootstrap_interval([0.5] * 6) == (0.5, 0.5)  # ties, all of them


def test_every_interval_of_a_scorer_contains_its_value():
    rng = np.random.default_rng(3)
    for _ in range(100):
        rows = int(rng.integers(2, 30))
        first, second = np.round(rng.normal(size=(2, rows)), 1)
        groups = [f"g{n}" for n in rng.integers(max(2, rows // 2), size=rows)]
        found = ranking_metrics(first, second, groups=groups, resamples=100)
        found |= group_metrics(
            [*first, *second], np.abs([*second, *first]), [*groups, *groups], resamples=100
        )
        for name, entry in found.items():
            if entry["low"] is not None:
                assert entry["low"] <= entry["value"] <= entry["high"], name
    for value in (0.1, 0.7, 1.3):  # of which a sum over rows is not exact
        for rows in range(2, 40):
            found = mean_metric([value] * 3 * rows, groups=[f"g{row // 3}" for row in range(3 * rows)])
            assert found.low <= found.value <= found.high
