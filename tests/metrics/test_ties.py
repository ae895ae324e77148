"""Tests of ties: scores that are equal up to rounding count half in every metric that compares them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import stats

from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.losses.registry import resolve_loss
from qwen_task_heads.metrics.classification import classification_metrics, coarse_accuracy
from qwen_task_heads.metrics.ranking import group_metrics, pair_accuracy, ranking_metrics, spearman
from qwen_task_heads.metrics.ties import gap_signs, merge_ties, tie_bound, top_credit, top_shares
from qwen_task_heads.metrics.title_baselines import TfidfBradleyTerry
from qwen_task_heads.reports.comparison import compare, measure
from qwen_task_heads.training.feature_rows import PairRows

# Scores of one input in batches of other shapes, which differ by rounding.
NOISE = np.random.default_rng(0).uniform(-2e-7, 2e-7, 400)


def noisy(value: float, count: int = 400) -> np.ndarray:
    return value * (1 + NOISE[:count])


def test_scores_apart_by_rounding_are_ties() -> None:
    accuracy = pair_accuracy(noisy(-0.04), noisy(-0.04)[::-1])
    assert (accuracy.value, accuracy.ties) == (0.5, 400)
    # One score in fp32, computed in two orders of summation.
    draw = torch.randn(400, 64), torch.randn(64)
    one, other = (draw[0] * draw[1]).sum(1), (draw[0] * draw[1]).flip(1).sum(1)
    assert pair_accuracy(one, other).value == 0.5


@pytest.mark.parametrize("scale", [1e-6, 1.0, 8.0, 1e4])
def test_small_gaps_above_the_rounding_are_not_ties(scale: float) -> None:
    chosen = np.linspace(-1, 1, 101) * scale
    accuracy = pair_accuracy(chosen + 1e-5 * scale, chosen)
    assert (accuracy.value, accuracy.ties) == (1.0, 0)


def test_all_metrics_of_pairs_count_a_tie_as_half() -> None:
    equal = ranking_metrics(
        noisy(3.0), noisy(3.0)[::-1], chosen_lengths=np.arange(400), rejected_lengths=np.arange(400)[::-1]
    )
    assert equal["pair_accuracy"]["value"] == equal["scorer_prefers_longer"]["value"] == 0.5
    assert equal["pair_accuracy"]["low"] == equal["pair_accuracy"]["high"] == 0.5
    assert equal["length_spearman"]["value"] is None  # as for any constant
    assert equal["ece"]["value"] == pytest.approx(0.0, abs=1e-6)


def test_titles_tied_at_the_top_share_the_prediction() -> None:
    scores = np.concatenate([noisy(2.0, 4), [5.0, 1.0]])
    metrics = group_metrics(scores, [3, 1, 1, 1, 1, 2], ["a"] * 4 + ["b"] * 2)
    assert metrics["best_pick"]["value"] == (0.25 + 0.0) / 2
    assert metrics["ndcg_at_1"]["value"] == pytest.approx((6 / 4 / 3 + 0.5) / 2)
    assert metrics["kendall_tau"]["value"] == -1.0  # of b alone: a is a constant


def test_labels_tied_at_the_top_share_the_row() -> None:
    count = 300
    truth = np.arange(count) % 3
    same = np.stack([noisy(-0.5, count)] * 3, axis=1) * (1 + 1e-7 * np.arange(3))
    for kind in ("single_label_classification", "ordinal"):
        metrics = classification_metrics(kind, same, truth, labels=["a", "b", "c"])
        for name in ("accuracy", "micro_f1", "macro_f1", "macro_recall"):
            assert metrics[name]["value"] == pytest.approx(1 / 3), name
        assert [row["predicted"] for row in metrics["per_class"]] == [100] * 3
    assert metrics["mae"]["value"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert metrics["quadratic_kappa"]["value"] == pytest.approx(0.0)
    coarse = coarse_accuracy(same, truth, parents=["x", "x", "y"])
    assert coarse is not None
    assert coarse["value"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)


def test_per_class_counts_contain_half_rows() -> None:
    metrics = classification_metrics(
        "single_label_classification", [[1.0, 1.0], [2.0, 0.0]], [0, 0], labels=["a", "b"]
    )
    assert metrics["accuracy"]["value"] == 0.75
    assert [row["predicted"] for row in metrics["per_class"]] == [1.5, 0.5]
    json.dumps(metrics)


def test_a_label_that_is_not_a_candidate_does_not_widen_the_bound() -> None:
    """A row contains -20,000 for labels that are not candidates, which must not affect the bound."""
    assert top_credit([[-20_000.0, 0.001, 0.002]], [2]).tolist() == [1.0]
    assert top_credit([[-np.inf, 0.5, 0.5]], [2]).tolist() == [0.5]


def test_a_constant_up_to_rounding_has_no_rank_correlation() -> None:
    assert spearman(noisy(0.7), np.arange(400)) is None
    metrics = classification_metrics("regression", noisy(0.7), np.arange(400.0), labels=["score"])
    assert metrics["spearman"]["value"] is None
    some = classification_metrics(
        "multi_label_classification",
        np.stack([noisy(0.7)] * 2, 1),
        np.eye(2)[np.arange(400) % 2],
        labels=["a", "b"],
        resamples=20,
    )
    assert some["map"]["value"] == pytest.approx(0.5)


def test_ranks_of_many_different_values_do_not_change() -> None:
    """A million values at small distances form a chain that must not merge."""
    values = np.sort(np.random.default_rng(1).normal(size=200_000))
    merged = merge_ties(values)
    assert np.abs(merged - values).max() <= 1e-6 * np.abs(values).max()
    assert np.diff(merged).min() >= 0
    few = values[:: len(values) // 500]
    assert merge_ties(few).tolist() == few.tolist()
    noise = few[::-1] ** 2
    assert spearman(few, noise) == pytest.approx(stats.spearmanr(few, noise).statistic)


def test_merged_values_keep_their_positions() -> None:
    values = np.array([2.0, 1.0, 2.0 * (1 + 3e-7), -1.0, 1.0])
    assert merge_ties(values).tolist() == [2.0, 1.0, 2.0, -1.0, 1.0]
    chain = 1 + 6e-7 * np.arange(5)
    assert len(set(merge_ties(chain).tolist())) == 3
    assert merge_ties([]).tolist() == []


def test_bounds_depend_on_the_largest_score() -> None:
    assert tie_bound([1.0], [-40.0, 3.0]) == pytest.approx(4e-5)
    assert tie_bound([]) == 0
    assert gap_signs([0.0, -1.0], bound=0.0).tolist() == [0.0, -1.0]
    assert top_shares([[0.0, 0.0]]).tolist() == [[0.5, 0.5]]


def test_a_head_on_features_counts_equal_scores_as_half() -> None:
    features = torch.randn(6, 4)
    rows = PairRows(features, features.clone(), resolve_loss("bradley_terry", "pairs"))
    assert rows.metrics(torch.nn.Linear(4, 1))["eval_accuracy"] == 0.5


def test_a_baseline_without_known_words_is_right_in_half_of_the_pairs() -> None:
    train = [PairExample(chosen=f"good {x}", rejected=f"bad {x}") for x in ("cat", "dog", "hat")]
    fitted = TfidfBradleyTerry().fit(train)
    assert pair_accuracy(fitted.score(["ξ"]), fitted.score(["ψ"])).value == 0.5


def test_engines_that_tie_are_compared_by_their_credit() -> None:
    from qwen_task_heads import LabelMap

    rows = [TextExample(text=str(n), target=n % 2) for n in range(8)]
    options = {"kind": "baseline", "labels": LabelMap(("a", "b")), "device": "CPU"}
    tied = measure(lambda rows: np.ones((len(rows), 2)), rows, name="tied", **options)
    right = measure(lambda rows: np.eye(2)[[int(r.text) % 2 for r in rows]], rows, name="right", **options)
    [pair] = compare([tied, right], rows, resamples=10)
    assert tied.metrics["accuracy"]["value"] == 0.5
    assert (pair["mcnemar"]["a_only"], pair["mcnemar"]["b_only"]) == (0, 8)
