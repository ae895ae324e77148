"""Tests of classification losses against torch, at extreme logits, and of errors before training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problem_assertions import raises_problem
from torch.nn import functional as F

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.hubcode.pooling_task_heads import CumulativeLink
from qwen_task_heads.losses.class_balance import balanced_class_weights, balanced_pos_weight, count_labels
from qwen_task_heads.losses.registry import OPTIONS, TEXT_LOSSES, resolve_text_loss
from qwen_task_heads.losses.rows import reduce
from qwen_task_heads.losses.texts import (
    bce,
    cross_entropy,
    cumulative_link,
    focal,
    focal_binary,
    huber,
    logit_adjusted,
    mae,
    mse,
)

SINGLE, MULTI, SCORE, ORDER = TEXT_LOSSES
COUNTS = [50, 30, 15, 5]


def batch(rows: int = 16, labels: int = 4, *, scale: float = 3.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, labels, generator=generator) * scale
    ids = torch.randint(labels, (rows,), generator=generator)
    several = torch.randint(2, (rows, labels), generator=generator).float()
    soft = torch.rand(rows, labels, generator=generator)
    return logits, ids, several, soft / soft.sum(1, keepdim=True)


# --- comparison with torch ---


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 3.0)])
@pytest.mark.parametrize("is_soft", [False, True])
def test_cross_entropy_equals_torch(smoothing, weights, is_soft):
    logits, ids, _, soft = batch()
    weight = None if weights is None else torch.tensor(weights)
    found = cross_entropy(
        logits, ids, soft=soft if is_soft else None, class_weights=weight, label_smoothing=smoothing
    )
    target = soft if is_soft else F.one_hot(ids, 4).float()
    target = (1 - smoothing) * target + smoothing / 4
    wanted = -((1.0 if weight is None else weight) * target * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    whole = F.cross_entropy(
        logits, soft if is_soft else ids, weight=weight, label_smoothing=smoothing, reduction="sum"
    )
    torch.testing.assert_close(found.sum(), whole)


def test_bce_equals_torch():
    logits, _, several, _ = batch()
    weight = torch.tensor([0.5, 2.0, 1.0, 3.0])
    wanted = F.binary_cross_entropy_with_logits(logits, several, pos_weight=weight)
    torch.testing.assert_close(bce(logits, several, pos_weight=weight).mean(), wanted)
    smoothed = F.binary_cross_entropy_with_logits(logits, several * 0.8 + 0.1)
    torch.testing.assert_close(bce(logits, several, label_smoothing=0.2).mean(), smoothed)


@pytest.mark.parametrize(("loss", "wanted"), [(mse, F.mse_loss), (mae, F.l1_loss), (huber, F.huber_loss)])
def test_regression_losses_equal_torch(loss, wanted):
    logits, _, several, _ = batch()
    torch.testing.assert_close(loss(logits, several).mean(), wanted(logits, several))
    one = loss(logits[:, :1], several[:, 0])  # one value may have shape (B,)
    assert one.shape == (16,)
    torch.testing.assert_close(one.mean(), wanted(logits[:, 0], several[:, 0]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_equals_the_formula_of_the_paper(gamma):
    logits, ids, several, _ = batch(scale=1.0)
    weight = torch.tensor([0.5, 2.0, 1.0, 3.0])
    q = logits.softmax(1)[torch.arange(16), ids]
    torch.testing.assert_close(
        focal(logits, ids, gamma=gamma, class_weights=weight), -weight[ids] * (1 - q) ** gamma * q.log()
    )
    p = torch.where(several > 0, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(
        focal_binary(logits, several, gamma=gamma), (-((1 - p) ** gamma) * p.log()).mean(1)
    )


def test_focal_with_gamma_zero_equals_cross_entropy():
    logits, ids, several, _ = batch()
    torch.testing.assert_close(focal(logits, ids, gamma=0.0), cross_entropy(logits, ids))
    torch.testing.assert_close(focal_binary(logits, several, gamma=0.0), bce(logits, several))


def test_logit_adjustment_equals_the_formula_of_the_paper():
    """Compare with Menon et al., equation 10: -log of e^(f_y + τ log π_y) over the sum of all of them."""
    logits, ids, _, _ = batch()
    counts, tau = torch.tensor(COUNTS), 1.5
    prior = counts / counts.sum()
    scaled = logits.exp() * prior**tau
    wanted = -(scaled[torch.arange(16), ids] / scaled.sum(1)).log()
    torch.testing.assert_close(logit_adjusted(logits, ids, class_counts=counts, tau=tau), wanted)
    torch.testing.assert_close(
        logit_adjusted(logits, ids, class_counts=counts, tau=0.0), cross_entropy(logits, ids)
    )


def test_logit_adjustment_finds_the_balanced_prediction():
    """Without informative text the minimum is at equal logits; that of cross-entropy is the prior."""
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS))
    for counts, wanted in ((torch.tensor(COUNTS), [0.25] * 4), (torch.ones(4), [0.5, 0.3, 0.15, 0.05])):
        logits = torch.zeros(4, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=200)

        def closure(counts: torch.Tensor = counts, logits: torch.Tensor = logits, optimizer: Any = optimizer):
            optimizer.zero_grad()
            loss = logit_adjusted(logits.expand(100, 4), labels, class_counts=counts).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert logits.softmax(0).tolist() == pytest.approx(wanted, abs=1e-3)


def test_cumulative_link_is_the_likelihood_of_the_head():
    torch.manual_seed(0)
    head = CumulativeLink(8, 4)
    torch.nn.init.normal_(head.first)
    torch.nn.init.normal_(head.log_gaps)
    states, ids = torch.randn(16, 8), batch()[1]
    with torch.no_grad():
        logits = head(states)
        thresholds = torch.cat([head.first, head.first + head.log_gaps.exp().cumsum(0)])
        below = torch.sigmoid(thresholds - head.latent(states))
    edges = torch.cat([torch.zeros(16, 1), below, torch.ones(16, 1)], dim=1)
    wanted = -edges.diff(dim=1)[torch.arange(16), ids].log()
    torch.testing.assert_close(cumulative_link(logits, ids), wanted, atol=1e-5, rtol=1e-5)
    weight = torch.tensor([0.5, 2.0, 1.0, 3.0])
    torch.testing.assert_close(
        cumulative_link(logits, ids, class_weights=weight), wanted * weight[ids], atol=1e-5, rtol=1e-5
    )


# --- numbers ---


def every_loss() -> list[Any]:
    given = {
        "class_weights": [0.5, 2.0, 1.0, 3.0],
        "label_smoothing": 0.1,
        "focal_gamma": 0.5,
        "pos_weight": [0.5, 2.0, 1.0, 3.0],
        "logit_adjustment_tau": 2.0,
    }
    return [
        pytest.param(
            problem,
            resolve_text_loss(
                name,
                problem_type=problem,
                num_labels=4,
                class_counts=COUNTS,
                rows=100,
                options={option.name: given[option.name] for option in form.options},
            ),
            id=f"{problem}-{name}",
        )
        for problem, forms in TEXT_LOSSES.items()
        for name, form in forms.items()
    ]


@pytest.mark.parametrize(("problem", "loss"), every_loss())
@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_finite_and_fp32(problem, loss, size, dtype):
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)  # (16, 4): every corner
    logits = (signs * size).to(dtype).requires_grad_()
    _, ids, several, _ = batch()
    losses = loss(logits, ids if problem in (SINGLE, ORDER) else several)
    assert losses.shape == (16,)
    assert losses.dtype == torch.float32
    assert (losses >= 0).all()
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("problem", "loss"), every_loss())
def test_any_split_gives_the_gradient_of_the_whole(problem, loss):
    """torch's mean over the weights of a batch would give another gradient."""
    values, ids, several, _ = batch()
    targets = ids if problem in (SINGLE, ORDER) else several
    gradients = []
    for size in (16, 8, 4, 1):
        logits = values.clone().requires_grad_()
        for part, target in zip(logits.split(size), targets.split(size), strict=True):
            (reduce(loss(part, target)) * len(part) / 16).backward()
        gradients.append(logits.grad)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("problem", "loss"), every_loss())
def test_a_nan_gives_a_nan_loss(problem, loss):
    logits, ids, several, _ = batch()
    logits[3, 1] = math.nan
    losses = loss(logits, ids if problem in (SINGLE, ORDER) else several)
    assert losses.isnan().tolist() == [row == 3 for row in range(16)]


@pytest.mark.parametrize(("problem", "loss"), every_loss())
def test_shapes_that_would_broadcast_raise_errors(problem, loss):
    logits, ids, several, _ = batch()
    wrong = ids[:, None] if problem in (SINGLE, ORDER) else several[:, 0]
    with pytest.raises(TaskHeadsError, match="loss input 'labels': found logits"):
        loss(logits, wrong)
    if "soft" in loss.row.uses:
        with pytest.raises(TaskHeadsError, match="loss input 'soft': found logits"):
            loss(logits, ids, soft=torch.ones(16, 3))


# --- weights from counts ---


def test_balanced_weights_equal_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat(np.arange(4), COUNTS)
    wanted = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert balanced_class_weights(COUNTS).tolist() == pytest.approx(wanted.tolist(), rel=1e-6)
    first, third, fourth = compute_class_weight(
        "balanced", classes=np.array([0, 2, 3]), y=labels[labels != 1]
    )
    found = balanced_class_weights([50, 0, 15, 5]).tolist()
    assert found == pytest.approx([first, 1.0, third, fourth], rel=1e-6)


def test_balanced_pos_weight_is_negatives_over_positives():
    assert balanced_pos_weight([25, 80, 0, 100], rows=100).tolist() == [3.0, 0.25, 1.0, 1.0]


@pytest.mark.parametrize("given", ["balanced", [1.0, 2.0, 3.0, 4.0], ["0.1", "0.2", "0.3", "0.4"]])
def test_class_weights_have_the_mean_one_over_the_training_rows(given):
    loss = resolve_text_loss(
        None, problem_type=SINGLE, num_labels=4, class_counts=COUNTS, options={"class_weights": given}
    )
    weights = loss.parameters["class_weights"]
    assert float((weights * torch.tensor(COUNTS)).sum() / 100) == pytest.approx(1.0, abs=1e-6)
    logits, _, _, _ = batch(rows=100)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS))
    # Over the whole training set it equals torch's mean.
    torch.testing.assert_close(loss(logits, labels).mean(), F.cross_entropy(logits, labels, weight=weights))


def test_labels_without_a_row_are_named():
    options = {"class_weights": "balanced"}
    loss = resolve_text_loss(
        None,
        problem_type=SINGLE,
        num_labels=3,
        class_counts=[5, 0, 5],
        options=options,
        labels=["news", "sport", "tv"],
    )
    assert loss.messages == ("no training row has 'sport': the balanced weight is 1",)
    loss = resolve_text_loss("logit_adjusted", problem_type=SINGLE, num_labels=3, class_counts=[5, 0, 5])
    assert loss.messages == ("no training row has label 1: the prior is that of half a row",)
    assert torch.isfinite(loss(torch.zeros(1, 3), torch.tensor([1]))).all()
    loss = resolve_text_loss(
        None,
        problem_type=MULTI,
        num_labels=3,
        class_counts=[5, 0, 10],
        rows=10,
        options={"pos_weight": ["balanced"]},
    )
    assert loss.parameters["pos_weight"].tolist() == [1.0, 1.0, 1.0]
    assert loss.messages == ("all or none of the training rows have label 1, label 2: the pos_weight is 1",)
    assert resolve_text_loss(None, problem_type=SINGLE, num_labels=3, class_counts=[5, 0, 5]).messages == ()


def test_labels_are_counted_and_invalid_ids_raise_an_error():
    assert count_labels([0, 2, 2, 1], problem_type=SINGLE, num_labels=4) == [1, 1, 2, 0]
    several = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    assert count_labels(several, problem_type=MULTI, num_labels=2) == [2, 1]
    assert count_labels([[0.5]], problem_type=SCORE, num_labels=1) == []
    with raises_problem("label-unknown") as problems:
        count_labels([0, -100, 2], problem_type=ORDER, num_labels=2, sources=["a:1", "a:2"])
    assert [problem.where for problem in problems] == ["a:2", "row 2"]


# --- errors ---


def test_defaults_are_those_of_the_stock_models():
    names = {
        problem: resolve_text_loss(None, problem_type=problem, num_labels=4).name for problem in TEXT_LOSSES
    }
    assert names == {SINGLE: "cross_entropy", MULTI: "bce", SCORE: "mse", ORDER: "cumulative_link"}


@pytest.mark.parametrize("problem", TEXT_LOSSES)
@pytest.mark.parametrize("name", ["mse", "cross_entropy", "nonsense"])
def test_a_loss_of_another_problem_type_raises_an_error(problem, name):
    if name in TEXT_LOSSES[problem]:
        assert resolve_text_loss(name, problem_type=problem, num_labels=4).name == name
        return
    with raises_problem("option-value", "--loss", match=f"'{name}' for {problem}") as problems:
        resolve_text_loss(name, problem_type=problem, num_labels=4)
    assert problems[0].expected == ", ".join(TEXT_LOSSES[problem])


VALUES = {
    "class_weights": "balanced",
    "label_smoothing": 0.1,
    "focal_gamma": 2.0,
    "pos_weight": "balanced",
    "logit_adjustment_tau": 1.0,
}


@pytest.mark.parametrize(
    ("problem", "name"), [(problem, name) for problem, forms in TEXT_LOSSES.items() for name in forms]
)
def test_options_that_a_loss_does_not_take_raise_one_error(problem, name):
    taken = [option.name for option in TEXT_LOSSES[problem][name].options]
    with pytest.raises(TaskHeadsError) as caught:
        resolve_text_loss(
            name, problem_type=problem, num_labels=4, options=VALUES, class_counts=COUNTS, rows=100
        )
    assert {problem.where for problem in caught.value.problems} == {
        OPTIONS[option].flag for option in VALUES if option not in taken
    }
    assert {problem.code for problem in caught.value.problems} == {"option-conflict"}
    assert all(f"'{name}'" in problem.problem for problem in caught.value.problems)


def test_options_without_a_value_are_ignored():
    options = {"class_weights": None, "pos_weight": None, "focal_gamma": None, "label_smoothing": 0.0}
    assert resolve_text_loss(None, problem_type=SCORE, num_labels=1, options=options).parameters == {}


@pytest.mark.parametrize(
    ("problem", "name", "options", "code", "value"),
    [
        (SINGLE, None, {"class_weights": [1.0, 2.0]}, "option-value", "2 numbers"),
        (SINGLE, None, {"class_weights": [1.0, 0.0, 2.0, -1.0]}, "option-range", "0.0, -1.0"),
        (SINGLE, None, {"class_weights": [1.0, math.nan, 2.0, 1.0]}, "option-range", "nan"),
        (SINGLE, None, {"class_weights": "balance"}, "option-value", r"\['balance'\]"),
        (SINGLE, None, {"class_weights": 2.0}, "option-value", "1 numbers"),
        (MULTI, None, {"pos_weight": [1.0] * 5}, "option-value", "5 numbers"),
        (MULTI, None, {"pos_weight": [1.0, 1.0, 1.0, math.inf]}, "option-range", "inf"),
        (SINGLE, None, {"label_smoothing": 1.0}, "option-range", "1.0"),
        (SINGLE, None, {"label_smoothing": -0.1}, "option-range", "-0.1"),
        (MULTI, None, {"label_smoothing": math.nan}, "option-range", "nan"),
        (SINGLE, "focal", {"focal_gamma": -1.0}, "option-range", "-1.0"),
        (SINGLE, "focal", {"focal_gamma": "2"}, "option-value", "'2'"),
        (SINGLE, "logit_adjusted", {"logit_adjustment_tau": math.inf}, "option-range", "inf"),
    ],
)
def test_invalid_values_raise_errors(problem, name, options, code, value):
    [option] = options
    with raises_problem(code, OPTIONS[option].flag, match=f"found {value}"):
        resolve_text_loss(
            name, problem_type=problem, num_labels=4, options=options, class_counts=COUNTS, rows=100
        )


@pytest.mark.parametrize(
    ("problem", "name", "options", "where"),
    [
        (SINGLE, None, {"class_weights": "balanced"}, "--class_weights balanced"),
        (MULTI, None, {"pos_weight": "balanced"}, "--pos_weight balanced"),
        (SINGLE, "logit_adjusted", {}, "--loss logit_adjusted"),
    ],
)
def test_balancing_without_counts_raises_an_error(problem, name, options, where):
    with raises_problem("option-unsupported", where):
        resolve_text_loss(name, problem_type=problem, num_labels=4, options=options)


def test_one_error_reports_all_problems():
    options = {"class_weights": [1.0, -2.0], "label_smoothing": 2.0, "focal_gamma": 1.0}
    with pytest.raises(TaskHeadsError) as caught:
        resolve_text_loss(None, problem_type=SINGLE, num_labels=3, options=options)
    assert sorted(problem.where for problem in caught.value.problems) == [
        "--class_weights",
        "--class_weights",
        "--focal_gamma",
        "--label_smoothing_factor",
    ]
