"""Tests of pair losses against naive float64 formulas, torch and trl, and of limits and errors."""

import math

import pytest
import torch
from problem_assertions import raises_problem
from torch.nn import functional as F

from qwen_task_heads.losses import pairs as losses
from qwen_task_heads.losses.registry import PAIR_LOSSES, resolve_loss
from qwen_task_heads.losses.rows import reduce

B = 64


def scores(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, B, generator=generator, dtype=torch.float64).mul(3).to(dtype))


def columns(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    preference = torch.rand(B, generator=generator, dtype=torch.float64)
    preference[::5] = 0.5
    return {
        "margin": torch.rand(B, generator=generator, dtype=torch.float64).to(dtype),
        "preference": preference.to(dtype),
    }


def inputs_of(name: str, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return {key: value for key, value in columns(dtype).items() if key in PAIR_LOSSES[name].uses}


def naive(name: str, c: float, r: float, m: float, p: float, nu: float = 0.5) -> float:
    """Compute the formulas of the papers with Python floats."""
    ec, er = math.exp(c), math.exp(r)
    if name == "bradley_terry":
        return -math.log(ec / (ec + er))
    if name == "bradley_terry_margin":
        return -math.log(1 / (1 + math.exp(-(c - r - m))))
    if name == "soft":
        return -p * math.log(ec / (ec + er)) - (1 - p) * math.log(er / (ec + er))
    if name == "margin_ranking":
        return max(0.0, m - (c - r))
    if name == "rao_kupper":
        theta = 1 + nu
        win, lose = ec / (ec + theta * er), er / (er + theta * ec)
        draw = (theta**2 - 1) * ec * er / ((ec + theta * er) * (er + theta * ec))
    else:
        total = ec + er + nu * math.sqrt(ec * er)
        win, lose, draw = ec / total, er / total, nu * math.sqrt(ec * er) / total
    assert win + lose + draw == pytest.approx(1.0, abs=1e-12)
    return -math.log(win if p > 0.5 else lose if p < 0.5 else draw)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_equals_the_naive_formula(name, dtype, tolerance):
    c, r = scores()
    column = columns()
    wanted = [naive(name, *row) for row in zip(*(x.tolist() for x in (c, r, *column.values())), strict=True)]
    found = PAIR_LOSSES[name](c.to(dtype), r.to(dtype), **inputs_of(name, dtype))
    assert found.dtype == dtype
    assert found.shape == (B,)
    torch.testing.assert_close(
        found.double(), torch.tensor(wanted, dtype=torch.float64), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradient_matches_finite_differences(name):
    c, r = (x.requires_grad_() for x in scores(2))
    assert torch.autograd.gradcheck(lambda a, b: PAIR_LOSSES[name](a, b, **inputs_of(name)), (c, r))


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_the_loss_does_not_depend_on_a_shift_of_all_scores(name):
    c, r = scores(3)
    before = PAIR_LOSSES[name](c, r, **inputs_of(name))
    torch.testing.assert_close(PAIR_LOSSES[name](c + 100, r + 100, **inputs_of(name)), before)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_finite_with_finite_gradients_up_to_gaps_of_ten_thousand(name):
    gap = torch.tensor([-1e4, -1e3, -100.0, -1.0, 0.0, 1.0, 100.0, 1e3, 1e4])
    for p in (0.0, 0.5, 1.0):
        for base in (0.0, 8.0, -1e4, 1e4):
            c = (gap + base).requires_grad_()
            r = torch.full_like(gap, base).requires_grad_()
            row = {"margin": torch.full_like(gap, 0.5), "preference": torch.full_like(gap, p)}
            out = PAIR_LOSSES[name](c, r, **{k: v for k, v in row.items() if k in PAIR_LOSSES[name].uses})
            out.sum().backward()
            for values in (out, c.grad, r.grad):
                assert values.isfinite().all(), (name, p, base)
            assert (out >= 0).all()


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_bf16_scores_are_cast_up_before_the_difference(name):
    c, r = scores(4, torch.bfloat16)
    extra = inputs_of(name, torch.float32)
    found = PAIR_LOSSES[name](c, r, **extra)
    assert found.dtype == torch.float32
    assert torch.equal(found, PAIR_LOSSES[name](c.float(), r.float(), **extra))


def test_close_pairs_at_score_eight_do_not_tie_in_fp32():
    generator = torch.Generator().manual_seed(0)
    low = 8 + 0.5 * torch.rand(100_000, generator=generator)
    high = low + 0.04
    assert int((high == low).sum()) == 0
    assert int((losses.bradley_terry(high, low) >= math.log(2)).sum()) == 0
    # With bf16 scores the same pairs would tie.
    tied = (high.bfloat16() == low.bfloat16()).float().mean().item()
    assert 0.2 < tied < 0.6


def test_margin_ranking_equals_torch():
    c, r = scores(5, torch.float32)
    for margin in (0.0, 0.1, 1.0, 5.0):
        wanted = F.margin_ranking_loss(c, r, torch.ones(B), margin=margin)
        torch.testing.assert_close(reduce(losses.margin_ranking(c, r, margin=margin)), wanted, atol=0, rtol=0)
    by_row = losses.margin_ranking(c, r, margin=torch.full((B,), 0.1))
    torch.testing.assert_close(by_row, losses.margin_ranking(c, r, margin=0.1))


def test_margin_zero_has_no_gradient_once_ordered_and_no_loss_for_a_constant_scorer():
    c = torch.tensor([1.0, 0.3], requires_grad=True)
    out = losses.margin_ranking(c, torch.tensor([0.9, -4.0]))
    out.sum().backward()
    assert out.tolist() == [0.0, 0.0]
    assert c.grad.tolist() == [0.0, 0.0]
    assert losses.margin_ranking(torch.full((3,), 2.0), torch.full((3,), 2.0)).sum() == 0


def test_bradley_terry_and_centring_equal_trl():
    c, r = scores(6, torch.float32)
    margin = columns(torch.float32)["margin"]
    # trl/trainer/reward_trainer.py, compute_loss
    wanted = -F.logsigmoid(c - r - margin).mean() + 0.01 * torch.mean((c + r) ** 2)
    found = reduce(losses.bradley_terry_margin(c, r, margin=margin)) + reduce(
        losses.center_rewards(c, r, coefficient=0.01)
    )
    torch.testing.assert_close(found, wanted)


def test_soft_reduces_to_bradley_terry_and_is_least_at_the_logit():
    c, r = scores(7)
    torch.testing.assert_close(losses.soft(c, r, preference=torch.ones(B)), losses.bradley_terry(c, r))
    torch.testing.assert_close(losses.soft(c, r, preference=torch.zeros(B)), losses.bradley_terry(r, c))
    gap = torch.full((1,), math.log(0.8 / 0.2), dtype=torch.float64, requires_grad=True)
    losses.soft(gap, torch.zeros_like(gap), preference=torch.tensor([0.8])).sum().backward()
    assert abs(gap.grad.item()) < 1e-7


@pytest.mark.parametrize("name", ["rao_kupper", "davidson"])
@pytest.mark.parametrize("nu", [1e-6, 0.1, 1.0, 30.0])
def test_win_loss_and_tie_sum_to_one(name, nu):
    c, r = scores(8)
    total = sum(
        torch.exp(-PAIR_LOSSES[name](c, r, preference=torch.full((B,), p), nu=nu)) for p in (1.0, 0.5, 0.0)
    )
    torch.testing.assert_close(total, torch.ones(B, dtype=torch.float64))


@pytest.mark.parametrize("name", ["rao_kupper", "davidson"])
def test_ties_are_marked_by_either_column(name):
    c, r = scores(9)
    tie = torch.arange(B) % 3 == 0
    by_tie = PAIR_LOSSES[name](c, r, tie=tie)
    by_half = PAIR_LOSSES[name](c, r, preference=torch.where(tie, 0.5, 1.0))
    torch.testing.assert_close(by_tie, by_half)
    below = PAIR_LOSSES[name](c, r, preference=torch.full((B,), 0.2))
    torch.testing.assert_close(below, PAIR_LOSSES[name](r, c, preference=torch.ones(B)))


@pytest.mark.parametrize("name", ["rao_kupper", "davidson"])
def test_without_ties_the_small_tie_parameter_gives_bradley_terry(name):
    c, r = scores(10)
    found = PAIR_LOSSES[name](c, r, tie=torch.zeros(B, dtype=torch.bool), nu=1e-12)
    torch.testing.assert_close(found, losses.bradley_terry(c, r))


@pytest.mark.parametrize("name", [name for name, loss in PAIR_LOSSES.items() if loss.uses])
def test_a_nan_in_a_column_gives_a_nan_loss(name):
    c, r = scores(11)
    for column in set(PAIR_LOSSES[name].uses) - {"tie"}:
        extra = inputs_of(name)
        extra[column] = extra[column].clone()
        extra[column][3] = math.nan
        assert reduce(PAIR_LOSSES[name](c, r, **extra)).isnan()


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_nan_score_gives_a_nan_loss(name):
    c, r = scores(12)
    c[5] = math.nan
    assert reduce(PAIR_LOSSES[name](c, r, **inputs_of(name))).isnan()


def test_reduce_weights_rows_and_is_the_same_in_parts():
    c, r = scores(13)
    row = losses.bradley_terry(c, r)
    weight = torch.rand(B, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = reduce(row * weight)
    parts = [reduce(part) for part in (row * weight).split(8)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    torch.testing.assert_close(whole, (row * weight).sum() / B)


def test_an_unknown_name_lists_the_names():
    with raises_problem("option-value", "--loss", match="'hinge'") as problems:
        resolve_loss("hinge", "pairs")
    assert all(name in problems[0].expected for name in PAIR_LOSSES)


@pytest.mark.parametrize("name", ["bradley_terry_margin", "soft", "rao_kupper", "davidson"])
def test_a_missing_column_raises_an_error_before_and_during_training(name):
    loss = resolve_loss(name, "pairs")
    c, r = scores()
    for call in (lambda: loss.check(["prompt"]), lambda: loss(c, r), lambda: loss(c, r, margin=None)):
        with raises_problem("column-missing", match=" or ".join(loss.needs)) as problems:
            call()
        assert "bradley_terry" in problems[0].fix
    loss.check([loss.needs[-1]])


def test_an_input_that_the_loss_does_not_use_raises_an_error():
    c, r = scores()
    with raises_problem("argument-type", "loss 'bradley_terry'", match="margin"):
        PAIR_LOSSES["bradley_terry"](c, r, margin=torch.ones(B))
    with raises_problem("argument-type", "loss 'soft'", match="nu"):
        PAIR_LOSSES["soft"](c, r, preference=torch.ones(B), nu=0.5)


def test_shapes_that_would_broadcast_raise_errors():
    c, r = scores()
    for left, right in ((c[:, None], r), (c, r[:, None]), (c[:, None], r[:, None]), (c, r[:1])):
        with raises_problem("argument-type", "loss input 'scores'"):
            losses.bradley_terry(left, right)
    with raises_problem("argument-type", "loss input 'margin'"):
        losses.bradley_terry_margin(c, r, margin=torch.ones(B, 1))
    with raises_problem("argument-type", "reduce"):
        reduce(torch.empty(0))


@pytest.mark.parametrize("nu", [0.0, -1.0, math.nan, math.inf])
def test_a_tie_parameter_out_of_range_raises_an_error(nu):
    c, r = scores()
    for name in ("rao_kupper", "davidson"):
        with raises_problem("option-range", "--loss_nu"):
            PAIR_LOSSES[name](c, r, tie=torch.zeros(B), nu=nu)


@pytest.mark.parametrize("coefficient", [-0.01, math.nan, math.inf])
def test_a_centring_coefficient_out_of_range_raises_an_error(coefficient):
    with raises_problem("option-range", "center_rewards"):
        losses.center_rewards(*scores(), coefficient=coefficient)
