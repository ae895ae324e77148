"""Tests of rows of features: losses of any subset of rows, and after a linear map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problem_assertions import raises_problem
from torch import Tensor, nn
from torch.nn import functional as F

from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
from qwen_task_heads.losses.registry import GROUP_LOSSES, PAIR_LOSSES, TEXT_LOSSES, resolve_text_loss
from qwen_task_heads.tokenization.collators import group_dataset, pair_dataset, text_dataset
from qwen_task_heads.training.feature_rows import FeatureRows, GroupRows, PairRows, TextRows, logits_of

SINGLE, MULTI, SCORE, ORDER = TEXT_LOSSES
WIDTH = 6
SIZES = (2, 4, 3, 2)
KINDS = ["texts", "soft texts", "several labels", "pairs", "soft pairs", *GROUP_LOSSES]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(kind: str) -> tuple[FeatureRows, nn.Module]:
    """Return rows of a kind, and a head for them."""
    features, weight = numbers(12, WIDTH), torch.arange(12) % 3 / 2
    if kind in GROUP_LOSSES:
        return GroupRows(features[:11], SIZES, numbers(11, seed=3), GROUP_LOSSES[kind]), head_of(1)
    if kind.endswith("pairs"):
        chosen, rejected = features.chunk(2)
        signals = {"preference": torch.linspace(0.2, 1, 6)} if kind == "soft pairs" else {}
        loss = PAIR_LOSSES["soft" if signals else "bradley_terry"]
        return PairRows(chosen, rejected, loss, signals, weight[:6]), head_of(1)
    problem = MULTI if kind == "several labels" else SINGLE
    loss = resolve_text_loss(None, problem_type=problem, num_labels=3)
    labels = (numbers(12, 3, seed=5) > 0).float() if problem == MULTI else torch.arange(12) % 3
    soft = numbers(12, 3, seed=4).softmax(1) if kind == "soft texts" else None
    return TextRows(features, labels, loss, problem, soft, weight), head_of(3)


def head_of(outputs: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(WIDTH, outputs, bias=False)


# --- every kind ---


@pytest.mark.parametrize("kind", KINDS)
def test_slices_and_indices_give_the_same_rows(kind) -> None:
    rows, head = rows_of(kind)
    whole = rows.losses(head, slice(None))
    assert whole.shape == (len(rows),)
    every = torch.arange(len(rows))
    for index in (every, every.flip(0), torch.tensor([2, 0]), torch.tensor([1, 1, 3])):
        torch.testing.assert_close(rows.losses(head, index), whole[index], rtol=0, atol=1e-6)
    for part in (slice(1, 3), slice(2), slice(None, None, 2)):
        torch.testing.assert_close(rows.losses(head, part), whole[part], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_dev_is_the_mean_over_rows(kind) -> None:
    rows, head = rows_of(kind)
    found = rows.metrics(head)["eval_loss"]
    assert found == pytest.approx(rows.losses(head, slice(None)).mean().item(), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_disables_dropout_and_restores_training_mode(kind) -> None:
    rows, linear = rows_of(kind)
    head = nn.Sequential(nn.Dropout(0.5), linear).train()
    assert rows.metrics(head) == rows.metrics(linear)
    assert head.training


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_metric_is_one_of_the_metrics(kind) -> None:
    rows, head = rows_of(kind)
    assert rows.best[0] in rows.metrics(head)


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_features_equal_mapped_weights(kind) -> None:
    """The map may change the width, and features in bf16 are mapped in fp32."""
    rows, _ = rows_of(kind)
    matrix, outputs = numbers(WIDTH, 9, seed=7), 1 if isinstance(rows, PairRows | GroupRows) else 3
    short, long = nn.Linear(9, outputs, bias=False), nn.Linear(WIDTH, outputs, bias=False)
    with torch.no_grad():
        long.weight.copy_(short.weight @ matrix.T)
    wanted = rows.losses(long, slice(None))
    torch.testing.assert_close(rows.mapped(matrix).losses(short, slice(None)), wanted, rtol=0, atol=1e-5)
    halved = _bf16(rows)
    assert all(part.dtype == torch.float32 for part in halved.mapped(matrix).features_of())
    torch.testing.assert_close(
        halved.mapped(matrix).losses(short, slice(None)),
        halved.losses(_upcast(long), slice(None)),
        rtol=0,
        atol=1e-5,
    )


def _bf16(rows: Any) -> Any:
    names = {"features", "chosen", "rejected"} & set(vars(rows))
    return type(rows)(**{**vars(rows), **{name: vars(rows)[name].bfloat16() for name in names}})


def _upcast(linear: nn.Linear) -> nn.Module:
    class Upcast(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return linear(features.float())

    return Upcast()


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_returns_all_features(kind) -> None:
    rows, _ = rows_of(kind)
    wanted = numbers(12, WIDTH)[: 11 if kind in GROUP_LOSSES else 12]
    assert torch.equal(torch.cat([*rows.features_of()]), wanted)


@pytest.mark.parametrize("kind", ["pairs", "soft pairs", *GROUP_LOSSES])
def test_a_shift_shared_by_the_titles_of_a_row_is_not_in_the_contrasts(kind) -> None:
    """A constant added to both titles of a pair, or all of a group, does not change losses and contrasts."""
    rows: Any
    rows, head = rows_of(kind)
    if isinstance(rows, PairRows):
        shift = numbers(len(rows), WIDTH, seed=8)
        moved: Any = PairRows(
            rows.chosen + shift, rows.rejected + shift, rows.loss, rows.signals, rows.weight
        )
    else:
        shift = numbers(len(rows), WIDTH, seed=8).repeat_interleave(torch.tensor(SIZES), dim=0)
        moved = GroupRows(rows.features + shift, rows.sizes, rows.gains, rows.loss)
    torch.testing.assert_close(moved.contrasts(), rows.contrasts(), rtol=0, atol=1e-5)
    given = [each.losses(head, slice(None)) for each in (moved, rows)]
    torch.testing.assert_close(*given, rtol=0, atol=1e-5)
    assert rows.contrasts().dtype == _bf16(rows).contrasts().dtype == torch.float32


# --- groups ---


@pytest.mark.parametrize("name", GROUP_LOSSES)
def test_groups_have_the_loss_of_their_scores(name) -> None:
    rows, head = rows_of(name)
    assert isinstance(rows, GroupRows)
    scores = head(rows.features).squeeze(-1)
    ends = np.cumsum(SIZES)
    each = [
        GROUP_LOSSES[name].function(
            scores[end - size : end], sizes=[size], gains=rows.gains[end - size : end]
        )
        for end, size in zip(ends, SIZES, strict=True)
    ]
    torch.testing.assert_close(rows.losses(head, slice(None)), torch.cat(each), rtol=0, atol=1e-6)


def test_groups_are_read_from_a_data_set(tokenizer) -> None:
    groups = [
        GroupExample(prompt="", titles=("one", "two", "three"), clicks=(1, 2, 3), impressions=(10, 10, 10)),
        GroupExample(prompt="", titles=("four", "five"), clicks=(5, 1), impressions=(10, 20)),
    ]
    table, _ = group_dataset(groups, tokenizer=tokenizer, max_length=16)
    rows = GroupRows.of_table(numbers(5, WIDTH), table, loss=GROUP_LOSSES["all_pairs"])
    assert (rows.sizes, len(rows)) == ((3, 2), 2)
    gains = rows.gains
    assert gains.dtype == torch.float32
    assert bool(gains[0] < gains[1] < gains[2])
    assert bool(gains[3] > gains[4])


# --- pairs ---


def pair_table(tokenizer: Any, **columns: float) -> Any:
    pairs = [PairExample(prompt="", chosen=f"one {n}", rejected="two", weight=1 + n) for n in range(3)]
    table, _ = pair_dataset(pairs, tokenizer=tokenizer, max_length=64)
    for name, value in columns.items():
        table = table.add_column(name, [value] * len(table))
    return table


def test_a_pair_loss_without_its_column_raises_an_error(tokenizer) -> None:
    with raises_problem("column-missing", match="a column margin"):
        PairRows.of_table(torch.zeros(6, 8), pair_table(tokenizer), loss=PAIR_LOSSES["bradley_terry_margin"])


def test_pairs_are_read_from_a_data_set(tokenizer) -> None:
    features, table = numbers(6, WIDTH), pair_table(tokenizer, margin=0.5)
    rows = PairRows.of_table(features, table, loss=PAIR_LOSSES["bradley_terry_margin"])
    head = head_of(1)
    gaps = (head(features[:3]) - head(features[3:])).squeeze(-1)
    wanted = -F.logsigmoid(gaps - 0.5) * torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(rows.losses(head, slice(None)), wanted, rtol=0, atol=1e-6)


def test_an_option_with_the_name_of_a_column_applies_to_all_rows(tokenizer) -> None:
    features, loss = numbers(6, WIDTH), PAIR_LOSSES["margin_ranking"]
    by_option = PairRows.of_table(features, pair_table(tokenizer), loss=loss, options={"margin": 2.0})
    by_column = PairRows.of_table(features, pair_table(tokenizer, margin=2.0), loss=loss)
    head = head_of(1)
    assert torch.equal(by_option.losses(head, slice(None)), by_column.losses(head, slice(None)))


def test_an_equal_score_counts_half() -> None:
    features = numbers(2, WIDTH)
    rows = PairRows(features, features, PAIR_LOSSES["bradley_terry"])
    assert rows.metrics(head_of(1))["eval_accuracy"] == 0.5


# --- texts ---


def test_soft_labels_that_a_loss_does_not_use_raise_an_error(bases, tokenizer) -> None:
    texts = [TextExample(text=f"text {n}", target=n % 3, soft=(0.2, 0.3, 0.5)) for n in range(3)]
    config = PooledClassifierConfig(text_config={"model_type": "qwen2", "hidden_size": WIDTH}, num_labels=3)
    table, _ = text_dataset(texts, tokenizer=tokenizer, config=config, num_labels=3)
    focal = resolve_text_loss("focal", problem_type=SINGLE, num_labels=3)
    with raises_problem("option-unsupported", "--losses", match="'focal'"):
        TextRows.of_table(numbers(3, WIDTH), table, loss=focal, problem_type=SINGLE)
    usual = resolve_text_loss(None, problem_type=SINGLE, num_labels=3)
    rows = TextRows.of_table(numbers(3, WIDTH), table, loss=usual, problem_type=SINGLE)
    head = head_of(3)
    wanted = -(head(numbers(3, WIDTH)).log_softmax(1) * torch.tensor([0.2, 0.3, 0.5])).sum(1)
    torch.testing.assert_close(rows.losses(head, slice(None)), wanted, rtol=0, atol=1e-6)


def test_logits_of_many_rows_are_those_of_each_part(monkeypatch) -> None:
    features, head = numbers(10, WIDTH), head_of(3)
    whole = logits_of(head, features)
    monkeypatch.setattr("qwen_task_heads.training.feature_rows.ROWS_PER_PASS", 3)
    torch.testing.assert_close(logits_of(head, features), whole, rtol=0, atol=1e-6)
    assert not whole.requires_grad
