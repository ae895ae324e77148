"""Tests of solved heads against scikit-learn, on correlated features off centre and of unequal scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from problem_assertions import raises_problem
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor, nn
from torch.nn import functional as F

from qwen_task_heads import build
from qwen_task_heads.losses.registry import GROUP_LOSSES, PAIR_LOSSES, TEXT_LOSSES, resolve_text_loss
from qwen_task_heads.training.convex_heads import PATIENCE, PENALTIES, fit_path
from qwen_task_heads.training.feature_rows import FeatureRows, GroupRows, PairRows, TextRows, logits_of
from qwen_task_heads.training.frozen_heads import FittedHead, HeadTraining, fit_head, fresh_head

SINGLE, MULTI, SCORE, ORDER = TEXT_LOSSES
ROWS, WIDTH = 240, 24
LOSS, WEIGHTS = 1e-5, 1e-2  # tolerances to the solution of scikit-learn: absolute, and relative
EXACT: dict[str, Any] = {"fit_intercept": False, "tol": 1e-12, "max_iter": 100_000}


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hidden(count: int = ROWS, width: int = WIDTH, *, seed: int = 0) -> Tensor:
    """Return correlated features (N, H), of scales from 1e-3 to 1e3 and means up to 30 deviations."""
    mix = torch.randn(width, width, generator=draw(1)) / width**0.5 + 0.3 * torch.eye(width)
    centred = torch.randn(count, width, generator=draw(seed + 2)) @ mix
    means = 10 * torch.randn(width, generator=draw(3))
    return (centred + means) * torch.logspace(-3, 3, width)[torch.randperm(width, generator=draw(4))]


def signal(features: Tensor, outputs: int, *, noise: float = 0.5, seed: int = 0) -> Tensor:
    """Return noisy linear functions (N, L) of features."""
    unit = (features - features.mean(0)) / features.std(0)
    weight = torch.randn(features.shape[1], outputs, generator=draw(seed + 5)) / features.shape[1] ** 0.5
    return unit @ weight + noise * torch.randn(len(features), outputs, generator=draw(seed + 6))


def text_rows(features: Tensor, labels: Tensor, problem: str = SINGLE, **columns: Tensor) -> TextRows:
    count = features.shape[1] if problem == SCORE else 3
    loss = resolve_text_loss(None, problem_type=problem, num_labels=count)
    return TextRows(features, labels, loss, problem, **columns)


def scales(*features: Tensor) -> NDArray[np.float64]:
    return torch.cat(features).double().std(0, correction=0).numpy()


def standardised(features: Tensor, *others: Tensor) -> NDArray[np.float64]:
    """Return features over their deviations, in fp64; the deviations include the other features."""
    return features.double().numpy() / scales(features, *others)


def solved(rows: FeatureRows, penalty: float, *, outputs: int = 1) -> tuple[nn.Module, FittedHead]:
    head = nn.Linear(rows.features_of()[0].shape[1], outputs, bias=False)
    return head, fit_path(head, rows, dev=rows, penalties=[penalty])


def assert_near(head: nn.Module, wanted: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
    """Assert that weights on standardised features are within `WEIGHTS` of the largest."""
    found = head.weight.detach().double().numpy() * scale  # type: ignore[operator,union-attr]
    assert np.abs(found - wanted).max() <= WEIGHTS * np.abs(wanted).max()


# --- comparison with scikit-learn ---


@pytest.mark.parametrize("penalty", [1.0, 0.01, 1e-4])
def test_single_label_equals_multinomial_regression(penalty) -> None:
    features = hidden()
    labels = signal(features, 3).argmax(1)
    rows = text_rows(features, labels)
    head, found = solved(rows, penalty, outputs=3)
    reference = LogisticRegression(C=1 / (ROWS * penalty), **EXACT).fit(standardised(features), labels)
    assert_near(head, reference.coef_, scales(features))
    logits = torch.from_numpy(reference.decision_function(standardised(features)))
    loss = F.cross_entropy(logits, labels).item()
    assert found.history[0]["loss"] == pytest.approx(loss, abs=LOSS)
    # The head reads unscaled features.
    assert rows.metrics(head)["eval_loss"] == pytest.approx(loss, abs=2 * LOSS)
    own = logits_of(head, features).double()
    gap = (own - own.mean(1, keepdim=True)) - (logits - logits.mean(1, keepdim=True))
    assert float(gap.abs().max()) <= WEIGHTS * float(logits.abs().max())
    assert found.penalty == penalty
    assert torch.equal(found.state["weight"], head.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("penalty", [0.1, 1e-3])
def test_mse_equals_ridge_regression(penalty) -> None:
    features = hidden()
    values = signal(features, 1)
    loss = resolve_text_loss(None, problem_type=SCORE, num_labels=1)
    head, found = solved(TextRows(features, values, loss, SCORE), penalty)
    reference = Ridge(alpha=ROWS * penalty / 2, fit_intercept=False, solver="cholesky")
    reference.fit(standardised(features), values.double().numpy()[:, 0])
    assert_near(head, reference.coef_[None], scales(features))
    errors = reference.predict(standardised(features)) - values.double().numpy()[:, 0]
    assert found.history[0]["loss"] == pytest.approx((errors**2).mean(), abs=LOSS)


def pairs_of(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features of chosen and rejected titles."""
    titles = hidden(2 * ROWS, seed=seed)
    scores = signal(titles, 1, seed=seed)[:, 0]
    left, right = torch.arange(ROWS), torch.arange(ROWS, 2 * ROWS)
    wins = scores[left] > scores[right]
    return titles[torch.where(wins, left, right)], titles[torch.where(wins, right, left)]


@pytest.mark.parametrize("loss", ["bradley_terry", "soft"])
@pytest.mark.parametrize("penalty", [0.1, 1e-4])
def test_pairs_equal_logistic_regression_on_differences(penalty, loss) -> None:
    chosen, rejected = pairs_of()
    share = torch.ones(ROWS)
    if loss == "soft":
        share = 0.5 + 0.5 * torch.rand(ROWS, generator=draw(9))
    signals = {"preference": share} if loss == "soft" else {}
    head, found = solved(PairRows(chosen, rejected, PAIR_LOSSES[loss], signals), penalty)
    scale = scales(chosen, rejected)
    gaps = (chosen.double() - rejected.double()).numpy() / scale
    reference = LogisticRegression(C=1 / (ROWS * penalty), **EXACT).fit(
        np.concatenate([gaps, gaps]),
        np.repeat([1, 0], ROWS),
        sample_weight=torch.cat([share, 1 - share]).double().numpy(),
    )
    assert_near(head, reference.coef_, scale)
    gap = torch.from_numpy(reference.decision_function(gaps))
    wanted = F.binary_cross_entropy_with_logits(gap, share.double()).item()
    assert found.history[0]["loss"] == pytest.approx(wanted, abs=LOSS)


def test_a_row_weight_equals_repeated_rows() -> None:
    features = hidden()
    labels, weight = signal(features, 3).argmax(1), torch.arange(ROWS) % 4 / 2
    head, _ = solved(text_rows(features, labels, weight=weight), 0.01, outputs=3)
    reference = LogisticRegression(C=1 / (ROWS * 0.01), **EXACT)
    reference.fit(standardised(features), labels, sample_weight=weight.double().numpy())
    assert_near(head, reference.coef_, scales(features))
    other, _ = solved(text_rows(features, labels), 0.01, outputs=3)
    with pytest.raises(AssertionError):
        assert_near(other, reference.coef_, scales(features))


def test_soft_labels_equal_weighted_rows_of_each_label() -> None:
    features = hidden()
    soft = signal(features, 3).softmax(1)
    head, _ = solved(text_rows(features, soft.argmax(1), soft=soft), 0.01, outputs=3)
    reference = LogisticRegression(C=1 / (ROWS * 0.01), **EXACT).fit(
        np.tile(standardised(features), (3, 1)),
        np.repeat([0, 1, 2], ROWS),
        sample_weight=soft.T.reshape(-1).double().numpy(),
    )
    assert_near(head, reference.coef_, scales(features))


def test_multi_label_equals_one_regression_per_label() -> None:
    features = hidden()
    labels = (signal(features, 3) > 0.3).float()
    head, _ = solved(text_rows(features, labels, MULTI), 0.01, outputs=3)
    each = [
        LogisticRegression(C=1 / (3 * ROWS * 0.01), **EXACT).fit(standardised(features), labels[:, place])
        for place in range(3)
    ]
    assert_near(head, np.concatenate([found.coef_ for found in each]), scales(features))


# --- all registered losses ---


def slope(head: nn.Module, rows: FeatureRows, penalty: float) -> float:
    """Return the largest slope on standardised features, in fp64, relative to that at zero."""
    scale = torch.from_numpy(scales(*rows.features_of()))
    exact, rows = head.double(), rows.mapped(torch.diag(1 / scale.float()))
    rows = _in_fp64(rows)
    with torch.no_grad():
        for parameter in exact.parameters():
            if parameter.dim() == 2:
                parameter.mul_(scale)
    found = []
    for factor in (1.0, 0.0):
        with torch.no_grad():
            for parameter in exact.parameters():
                parameter.mul_(factor)
        value = rows.losses(exact, slice(None)).mean()
        value = value + penalty / 2 * sum((p**2).sum() for p in exact.parameters() if p.dim() == 2)
        parts = torch.autograd.grad(value, [*exact.parameters()])
        found.append(max(float(part.abs().max()) for part in parts))
    return found[0] / found[1]


def _in_fp64(rows: Any) -> Any:
    columns = {
        name: value.double()
        for name, value in vars(rows).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    return type(rows)(**{**vars(rows), **columns})


@pytest.mark.parametrize(
    ("problem", "name"),
    [(kind, name) for kind, names in TEXT_LOSSES.items() for name in names if name != "mae"],
)
def test_every_smooth_text_loss_ends_at_zero_slope(bases, problem, name) -> None:
    count = {SINGLE: 3, MULTI: 3, SCORE: 1, ORDER: 4}[problem]
    model = build(bases["qwen2"], task="pooled_classifier", num_labels=count, problem_type=problem)
    features = hidden(width=model.model.config.hidden_size)
    scores = signal(features, 1 if problem == ORDER else count, seed=3)
    labels = {
        SINGLE: lambda: scores.argmax(1),
        MULTI: lambda: (scores > 0.2).float(),
        SCORE: lambda: scores,
        ORDER: lambda: torch.bucketize(scores[:, 0], torch.tensor([-0.6, 0.0, 0.6])),
    }[problem]()
    loss = resolve_text_loss(
        name, problem_type=problem, num_labels=count, class_counts=[ROWS // count] * count, rows=ROWS
    )
    rows = TextRows(features, labels, loss, problem)
    head = fresh_head(model, model.config)
    found = fit_path(head, rows, dev=rows, penalties=[0.1, 0.01])
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert found.penalty == 0.01
    assert slope(head, rows, 0.01) <= 1e-3


TITLE_ROWS = [*PAIR_LOSSES, *GROUP_LOSSES]


def title_rows(name: str) -> PairRows | GroupRows:
    if name in GROUP_LOSSES:
        titles, sizes = hidden(ROWS), (2, 3, 4, 3) * (ROWS // 12)
        return GroupRows(titles, sizes, signal(titles, 1)[:, 0], GROUP_LOSSES[name])
    columns = {"margin": torch.full((ROWS,), 0.3), "preference": torch.arange(ROWS) % 3 / 2}
    uses = {key: value for key, value in columns.items() if key in PAIR_LOSSES[name].uses}
    return PairRows(*pairs_of(), PAIR_LOSSES[name], uses)


@pytest.mark.parametrize("name", [name for name in TITLE_ROWS if name != "margin_ranking"])
def test_every_smooth_title_loss_ends_at_zero_slope(name) -> None:
    rows = title_rows(name)
    head, _ = solved(rows, 0.01)
    assert slope(head, rows, 0.01) <= 1e-3


@pytest.mark.parametrize("name", ["margin_ranking", "mae"])
def test_a_piecewise_linear_loss_is_at_most_that_of_gradient_steps(name) -> None:
    if name == "mae":
        features, loss = hidden(), resolve_text_loss(name, problem_type=SCORE, num_labels=1)
        rows: Any = TextRows(features, signal(features, 1), loss, SCORE)
    else:
        rows = title_rows(name)
    _, found = solved(rows, 1e-4)
    unit = rows.mapped(torch.diag(1 / torch.from_numpy(scales(*rows.features_of())).float()))
    stepped = nn.Linear(WIDTH, 1, bias=False)
    fit_head(stepped, unit, settings=HeadTraining(epochs=40, batch_size=16, learning_rate=1e-2))
    assert found.history[0]["loss"] <= unit.metrics(stepped)["eval_loss"]


# --- channels ---


def test_a_constant_channel_has_no_effect() -> None:
    features = hidden()
    labels = signal(features, 3).argmax(1)
    for value in (0.0, 7.0, 1e6):
        more = torch.cat([features[:, :5], torch.full((ROWS, 1), value), features[:, 5:]], dim=1)
        head, _ = solved(text_rows(more, labels), 0.01, outputs=3)
        assert not head.weight[:, 5].any()  # type: ignore[index,union-attr]
        without, _ = solved(text_rows(features, labels), 0.01, outputs=3)
        kept = [*range(5), *range(6, WIDTH + 1)]
        weight = head.weight[:, kept].detach().double().numpy()  # type: ignore[index,operator,union-attr]
        assert_near(without, weight * scales(features), scales(features))


def test_a_channel_of_small_scale_is_used_next_to_large_ones() -> None:
    """Channels are scaled separately: one of scale 1e-6 next to one of 1e3 may determine the label."""
    features = torch.randn(ROWS, 3, generator=draw(1)) * torch.tensor([1e3, 1.0, 1e-6])
    rows = text_rows(features, (features[:, 2] > 0).long())
    head, _ = solved(rows, 1e-3, outputs=3)
    assert rows.metrics(head)["eval_accuracy"] > 0.95


def test_the_unit_of_a_channel_does_not_matter() -> None:
    features = hidden()
    labels, units = signal(features, 3).argmax(1), torch.logspace(4, -4, WIDTH)
    first, _ = solved(text_rows(features, labels), 0.01, outputs=3)
    second, _ = solved(text_rows(features * units, labels), 0.01, outputs=3)
    weight = second.weight.detach().double().numpy()  # type: ignore[operator,union-attr]
    assert_near(first, weight * units.numpy() * scales(features), scales(features))


def test_constant_features_give_a_head_of_zeros() -> None:
    rows = text_rows(torch.ones(6, 4), torch.arange(6) % 3)
    head, found = solved(rows, 0.1, outputs=3)
    assert not head.weight.any()  # type: ignore[union-attr,operator]
    assert found.history[0]["loss"] == pytest.approx(math.log(3), abs=1e-6)


def test_features_of_bf16_are_solved_in_fp32() -> None:
    features = hidden().bfloat16()
    labels = signal(features.float(), 3).argmax(1)
    half, _ = solved(text_rows(features, labels), 0.01, outputs=3)
    whole, _ = solved(text_rows(features.float(), labels), 0.01, outputs=3)
    assert half.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert torch.equal(half.weight, whole.weight)  # type: ignore[arg-type]


# --- the path ---


@pytest.fixture(scope="module")
def noisy() -> tuple[TextRows, TextRows]:
    """Return few rows of train with many channels: weak penalties overfit."""
    features = hidden(400, 40)
    labels = signal(features, 3, noise=1.0).argmax(1)
    return text_rows(features[:60], labels[:60]), text_rows(features[60:], labels[60:])


def path(noisy: tuple[TextRows, TextRows], **options: Any) -> FittedHead:
    torch.manual_seed(options.pop("seed", 0))
    return fit_path(nn.Linear(40, 3, bias=False), noisy[0], dev=noisy[1], **options)


def test_dev_selects_by_metric_then_by_loss(noisy) -> None:
    found = path(noisy)
    best = max(found.history, key=lambda entry: (entry["eval_accuracy"], -entry["eval_loss"]))
    assert (found.penalty, found.value, found.epoch) == (best["penalty"], best["eval_accuracy"], best["step"])
    head = nn.Linear(40, 3, bias=False)
    head.load_state_dict(found.state)
    metrics = noisy[1].metrics(head)
    assert metrics["eval_accuracy"] == best["eval_accuracy"]
    assert metrics["eval_loss"] == pytest.approx(best["eval_loss"], abs=1e-4)


def test_the_least_loss_decides_between_equal_metrics() -> None:
    """Every penalty gets all pairs right."""
    chosen, rejected = pairs_of()
    rows = PairRows(chosen[:3], rejected[:3], PAIR_LOSSES["bradley_terry"])
    found = fit_path(nn.Linear(WIDTH, 1, bias=False), rows, dev=rows, penalties=[1.0, 0.1, 0.01])
    assert [entry["eval_accuracy"] for entry in found.history] == [1.0] * 3
    assert found.penalty == 0.01


def test_the_path_ends_after_dev_has_become_worse(noisy) -> None:
    history = path(noisy).history
    losses = [entry["eval_loss"] for entry in history]
    assert [entry["penalty"] for entry in history] == [*PENALTIES[: len(history)]]
    assert PATIENCE < len(history) < len(PENALTIES)
    assert losses.index(min(losses)) == len(history) - 1 - PATIENCE
    # On the rows of train every weaker penalty is better.
    assert len(path((noisy[0], noisy[0])).history) == len(PENALTIES)


def test_the_result_does_not_depend_on_the_order_of_penalties_or_the_given_head(noisy) -> None:
    first = path(noisy, penalties=[1.0, 0.1, 0.01])
    second = path(noisy, penalties=[0.01, 1.0, 0.1, 1.0], seed=1)
    assert first.history == second.history
    assert torch.equal(first.state["weight"], second.state["weight"])


def test_a_penalty_has_the_same_solution_alone_and_on_a_path(noisy) -> None:
    alone, along = path(noisy, penalties=[0.01]), path(noisy, penalties=[1.0, 0.3, 0.1, 0.03, 0.01])
    assert along.history[-1]["loss"] == pytest.approx(alone.history[0]["loss"], abs=LOSS)


def test_the_solver_converges_before_its_limit(noisy) -> None:
    assert max(entry["iterations"] for entry in path((noisy[0], noisy[0])).history) < 250


# --- errors ---


@pytest.mark.parametrize("penalties", [[], [-0.1], [math.nan], [0.1, math.inf]])
def test_penalties_out_of_range_raise_an_error(noisy, penalties) -> None:
    with raises_problem("option-range", "--penalties") as problems:
        path(noisy, penalties=penalties)
    assert len(problems) == 1


def test_no_rows_raise_an_error(noisy) -> None:
    with raises_problem("file-empty", "rows"):
        path((text_rows(torch.zeros(0, 40), torch.zeros(0, dtype=torch.long)), noisy[1]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_raise_an_error(noisy, value) -> None:
    features = noisy[0].features.clone()
    features[3, 7] = value
    with raises_problem("number-not-finite", "features"):
        path((text_rows(features, noisy[0].labels), noisy[1]))


def test_a_loss_that_is_not_finite_raises_an_error(noisy) -> None:
    weight = torch.ones(60)
    weight[5] = math.nan
    with raises_problem("number-not-finite", "loss"):
        path((text_rows(noisy[0].features, noisy[0].labels, weight=weight), noisy[1]))
