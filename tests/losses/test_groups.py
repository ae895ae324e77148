"""Tests of group losses against enumeration and pair losses, and of invariances, limits and errors."""

import itertools
import math
import re

import pytest
import torch
from problem_assertions import raises_problem

from qwen_task_heads.losses.groups import all_pairs, pair_indices, plackett_luce
from qwen_task_heads.losses.pairs import bradley_terry
from qwen_task_heads.losses.registry import GROUP_LOSSES, resolve_loss, unused_signals
from qwen_task_heads.losses.rows import reduce

SIZES = [2, 5, 3, 4]


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, sum(SIZES), generator=generator, dtype=torch.float64).mul(2))


def test_plackett_luce_equals_the_product_of_choices():
    scores, gains = batch()
    wanted = []
    for s, g in zip(scores.split(SIZES), gains.split(SIZES), strict=True):
        left, loss = sorted(zip(g.tolist(), s.tolist(), strict=True), reverse=True), 0.0
        while left:
            loss -= math.log(math.exp(left[0][1]) / sum(math.exp(x) for _, x in left))
            left.pop(0)
        wanted.append(loss)
    torch.testing.assert_close(plackett_luce(scores, sizes=SIZES, gains=gains), torch.tensor(wanted).double())


def test_plackett_luce_probabilities_of_all_orders_sum_to_one():
    scores = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    total = sum(
        math.exp(-plackett_luce(scores, sizes=[4], gains=torch.tensor(order)).item())
        for order in itertools.permutations([1.0, 2.0, 3.0, 4.0])
    )
    assert total == pytest.approx(1.0, abs=1e-12)


def test_all_pairs_equals_the_mean_of_bradley_terry():
    scores, gains = batch(1)
    wanted = []
    for s, g in zip(scores.split(SIZES), gains.split(SIZES), strict=True):
        pairs = [(a, b) if g[a] > g[b] else (b, a) for a, b in itertools.combinations(range(len(s)), 2)]
        wanted.append(torch.stack([bradley_terry(s[[a]], s[[b]])[0] for a, b in pairs]).mean())
    torch.testing.assert_close(all_pairs(scores, sizes=SIZES, gains=gains), torch.stack(wanted))


@pytest.mark.parametrize("name", GROUP_LOSSES)
def test_two_titles_give_bradley_terry(name):
    scores = torch.tensor([0.2, 1.5, 3.0, -1.0])
    found = GROUP_LOSSES[name](scores, sizes=[2, 2], gains=torch.tensor([0.1, 0.3, 9.0, 2.0]))
    torch.testing.assert_close(found, bradley_terry(scores[[1, 2]], scores[[0, 3]]))


@pytest.mark.parametrize("name", GROUP_LOSSES)
def test_the_loss_does_not_depend_on_the_order_of_titles_or_a_shift_of_a_group(name):
    scores, gains = batch(2)
    gains[2:4] = 1.0  # a tie inside the second group
    function = GROUP_LOSSES[name]
    before = function(scores, sizes=SIZES, gains=gains)
    order = torch.cat([p.flip(0) for p in torch.arange(sum(SIZES)).split(SIZES)])
    torch.testing.assert_close(function(scores[order], sizes=SIZES, gains=gains[order]), before)
    shift = torch.repeat_interleave(torch.tensor([5.0, -7.0, 100.0, 0.0]).double(), torch.tensor(SIZES))
    torch.testing.assert_close(function(scores + shift, sizes=SIZES, gains=gains), before)
    # The loss depends only on the order of the gains.
    torch.testing.assert_close(function(scores, sizes=SIZES, gains=gains.exp()), before)


@pytest.mark.parametrize("name", GROUP_LOSSES)
def test_group_gradient_matches_finite_differences(name):
    scores, gains = batch(3)
    gains[2:4] = 1.0
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: GROUP_LOSSES[name](s, sizes=SIZES, gains=gains), (scores,))


@pytest.mark.parametrize("name", GROUP_LOSSES)
def test_group_loss_is_finite_for_gaps_of_ten_thousand(name):
    scores = torch.tensor([1e4, -1e4, 0.0, 8.0, 8.04, -1e4, 1e4], requires_grad=True)
    gains = torch.tensor([0.0, 1.0, 2.0, 3.0, 3.0, 5.0, 1.0])
    out = GROUP_LOSSES[name](scores, sizes=[4, 3], gains=gains)
    reduce(out).backward()
    assert out.isfinite().all()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("name", GROUP_LOSSES)
@pytest.mark.parametrize("where", ["scores", "gains"])
def test_a_nan_gives_a_nan_group_loss(name, where):
    scores, gains = batch(4)
    (scores if where == "scores" else gains)[3] = math.nan
    assert reduce(GROUP_LOSSES[name](scores, sizes=SIZES, gains=gains)).isnan()


@pytest.mark.parametrize("name", GROUP_LOSSES)
def test_groups_of_equal_gains_have_their_minimum_at_equal_scores(name):
    scores = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    GROUP_LOSSES[name](scores, sizes=[3], gains=torch.zeros(3)).sum().backward()
    assert scores.grad[0] > 0 > scores.grad[2]
    assert scores.grad.sum().abs() < 1e-6


def test_all_pairs_with_a_preference_per_pair():
    scores, gains = batch(5)
    left, right = pair_indices(SIZES)
    hard = (gains[left] > gains[right]).double()
    by_gain = all_pairs(scores, sizes=SIZES, gains=gains)
    torch.testing.assert_close(all_pairs(scores, sizes=SIZES, preference=hard), by_gain)
    exact = torch.sigmoid(scores[left] - scores[right])
    scores.requires_grad_()
    all_pairs(scores, sizes=SIZES, preference=exact).sum().backward()
    assert scores.grad.abs().max() < 1e-12  # the model's own probabilities are the minimum


def test_pair_indices_follow_combinations():
    left, right = pair_indices([3, 2])
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2), (3, 4)]
    assert pair_indices([])[0].shape == (0,)


def test_bf16_scores_give_fp32_losses():
    scores, gains = batch(6)
    for loss in GROUP_LOSSES.values():
        assert loss(scores.bfloat16(), sizes=SIZES, gains=gains).dtype == torch.float32


def test_invalid_groups_raise_errors():
    scores, gains = batch()
    for sizes in ([], [1, 13], [14, 1], [13]):
        with raises_problem("argument-type", "group sizes"):
            plackett_luce(scores, sizes=sizes, gains=gains)
    with raises_problem("argument-type", "loss input 'gains'"):
        plackett_luce(scores, sizes=SIZES, gains=gains[:-1])
    for extra in ({}, {"gains": gains, "preference": torch.ones(20)}):
        with raises_problem("argument-type", "all_pairs"):
            all_pairs(scores, sizes=SIZES, **extra)
    with raises_problem("argument-type", "loss input 'preference'"):
        all_pairs(scores, sizes=SIZES, preference=torch.ones(3))
    with raises_problem("option-value", "--loss", match="plackett_luce, all_pairs"):
        resolve_loss("listnet", "groups")


@pytest.mark.parametrize(
    ("loss", "columns", "message"),
    [
        ("bradley_terry", ["chosen_ids", "row", "weight"], None),
        ("bradley_terry", ["margin"], "has margins, .*'bradley_terry'.*: choose bradley_terry_margin to"),
        ("bradley_terry", ["preference"], "votes, clicks or preferences, .*: choose soft to"),
        (
            "bradley_terry",
            ["margin", "preference"],
            "margins and votes.*choose bradley_terry_margin or soft to",
        ),
        ("soft", ["preference", "margin"], "^the data has margins, which loss 'soft' does not use: choose"),
        ("soft", ["preference"], None),
        ("margin_ranking", ["margin"], None),
        ("davidson", ["preference"], None),
        ("plackett_luce", ["title_ids", "gains", "row"], None),
    ],
)
def test_the_message_names_signals_that_a_loss_does_not_use(loss, columns, message):
    sentence = unused_signals(loss, columns)
    assert sentence is None if message is None else re.search(message, sentence)
