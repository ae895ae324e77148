"""The classifier cuts rows over `max_seq_length` itself, so that every caller gets the ids of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from problem_assertions import raises_problem

from qwen_task_heads import PooledClassifier, PooledClassifierConfig, adapter_config
from qwen_task_heads.hubcode import modeling_task_heads
from qwen_task_heads.hubcode.configuration_task_heads import POOLINGS
from qwen_task_heads.hubcode.encoding_task_heads import cut_row, pad_rows
from qwen_task_heads.hubcode.pooling_task_heads import mean_loss

BEFORE, AFTER = [1, 2], [3]
LIMIT, ROOM = 16, 13
LENGTHS = (1, 12, 13, 14, 26, 45)  # of the text: below, at and over the 13 that fit
POLICIES = ("head", "tail", "head_tail", "windows")
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def make(tiny_config: Any, shake: Any) -> Callable[..., PooledClassifier]:
    def classifier(*, family: str = "qwen2", seed: int = 0, **options: Any) -> PooledClassifier:
        torch.manual_seed(seed)
        fixed = {"num_labels": 4, "max_seq_length": LIMIT, "template": {"before": BEFORE, "after": AFTER}}
        config = PooledClassifierConfig(
            text_config=tiny_config(family, vocab_size=128), **{**fixed, **options}
        )
        return shake(PooledClassifier(config), seed=seed)

    return classifier


def rows_of(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [[*BEFORE, *torch.randint(4, 128, (n,), generator=generator).tolist(), *AFTER] for n in lengths]


def padded(rows: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    width = max(map(len, rows)) + (4 if side == "both" else 0)
    before = {"right": lambda n: 0, "left": lambda n: width - n, "both": lambda n: (width - n) // 2}[side]
    batch = {"input_ids": torch.zeros(len(rows), width, dtype=torch.long)}
    batch["attention_mask"] = torch.zeros_like(batch["input_ids"])
    for index, row in enumerate(rows):
        start = before(len(row))
        batch["input_ids"][index, start : start + len(row)] = torch.tensor(row)
        batch["attention_mask"][index, start : start + len(row)] = 1
    return batch


def by_hand(model: PooledClassifier, row: list[int]) -> torch.Tensor:
    """Return the logits of every piece of a row, computed one by one: (pieces, L)."""
    config = model.config
    found = cut_row(
        row,
        max_length=config.max_seq_length,
        truncation=config.truncation,
        overlap=config.window_overlap,
        template=config.template,
    )
    assert all(len(piece) <= LIMIT for piece in found)
    return torch.cat([model(input_ids=torch.tensor([piece])).logits for piece in found])


@torch.no_grad()
@pytest.mark.parametrize(
    "side", [*(pytest.param(side, marks=pytest.mark.slow) for side in ("right", "left")), "both"]
)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("truncation", POLICIES)
def test_a_long_row_gives_its_pieces_at_any_position(
    make: Any, truncation: str, pooling: str, side: str
) -> None:
    family = ("qwen2", "qwen3", "llama")[POOLINGS.index(pooling) % 3]
    overlap = 4 if truncation == "windows" and pooling in ("mean", "max") else 0
    model = make(family=family, truncation=truncation, pooling=pooling, window_overlap=overlap)
    rows = rows_of(POOLINGS.index(pooling))
    wanted = torch.stack([by_hand(model, row).mean(0) for row in rows])
    found = model(**padded(rows, side)).logits
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= TOLERANCE
    alone = torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])
    assert (alone - wanted).abs().max() <= TOLERANCE
    assert wanted.std() > 0.1  # otherwise the comparison would be weak


@torch.no_grad()
def test_the_truncations_differ(make: Any) -> None:
    rows = rows_of(1, (45,))
    found = torch.cat([make(truncation=policy)(**padded(rows, "right")).logits for policy in POLICIES])
    distances = torch.pdist(found)
    assert distances.min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("truncation", POLICIES)
def test_padding_over_the_limit_cuts_nothing(make: Any, truncation: str, side: str) -> None:
    model = make(truncation=truncation)
    rows = rows_of(2, (5, 13, 9))
    wide = padded([*rows, [0] * 40], side)
    batch = {name: tensor[:3] for name, tensor in wide.items()}
    assert batch["input_ids"].shape[1] >= 40
    wanted = torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])
    output = model(**batch, output_hidden_states=True)
    assert (output.logits - wanted).abs().max() <= TOLERANCE
    assert output.hidden_states is not None  # the padded batch


@torch.no_grad()
@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_windows_are_aggregated_by_the_config(make: Any, aggregation: str) -> None:
    model = make(truncation="windows", window_aggregation=aggregation, window_overlap=3)
    rows = rows_of(3)
    pieces = [by_hand(model, row) for row in rows]
    assert [len(part) for part in pieces] == [1, 1, 1, 2, 3, 5]
    wanted = torch.stack([part.mean(0) if aggregation == "mean" else part.amax(0) for part in pieces])
    assert (model(**padded(rows, "right")).logits - wanted).abs().max() <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_ordinal_windows_give_probabilities(make: Any, aggregation: str) -> None:
    model = make(truncation="windows", window_aggregation=aggregation, problem_type="ordinal")
    rows = rows_of(4)
    logits = model(**padded(rows, "left")).logits
    assert logits.exp().sum(1) == pytest.approx(torch.ones(len(rows)), abs=1e-6)
    pieces = by_hand(model, rows[-1])
    raw = pieces.mean(0) if aggregation == "mean" else pieces.amax(0)
    assert float(raw.exp().sum()) != pytest.approx(1, abs=1e-4)  # so they are normalised again
    assert (logits[-1] - raw.log_softmax(0)).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    "problem_type", ["single_label_classification", "multi_label_classification", "ordinal"]
)
def test_gradients_flow_through_every_window(make: Any, problem_type: str) -> None:
    model = make(truncation="windows", problem_type=problem_type).train()
    rows = rows_of(5)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    if problem_type.startswith("multi"):
        labels = torch.nn.functional.one_hot(labels, 4).float()
    loss = model(**padded(rows, "right"), labels=labels).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    seen = found["model.embed_tokens.weight"].abs().sum(1) > 0
    assert seen[sorted({token for row in rows for token in row})].all()
    model.zero_grad()
    logits = torch.stack([by_hand(model, row).mean(0) for row in rows])
    rows = logits.log_softmax(1) if problem_type == "ordinal" else logits
    by_hand_loss = mean_loss(rows, labels, problem_type=problem_type)
    by_hand_loss.backward()
    assert float(loss.detach()) == pytest.approx(float(by_hand_loss.detach()), abs=1e-6)
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-5), name


def test_checkpointing_and_adapters_change_nothing(make: Any, shake: Any) -> None:
    model = make(truncation="windows")
    batch = padded(rows_of(6), "right")
    adapted = get_peft_model(model, adapter_config(model, r=2, dropout=0.0))
    shake(adapted)
    wanted = adapted(**batch, labels=torch.zeros(6, dtype=torch.long))
    wanted.loss.backward()
    gradients = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.requires_grad}
    adapted.zero_grad()
    adapted.activation_checkpointing_enable()
    adapted.train()
    loss = adapted(**batch, labels=torch.zeros(6, dtype=torch.long)).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.loss.detach()), abs=1e-6)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-5), name


@torch.no_grad()
def test_passes_are_bounded_in_evaluation_and_change_no_logit(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(truncation="windows")
    batch = padded(rows_of(7), "right")
    wanted = model(**batch).logits
    sizes: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["packed_rows"].last)), with_kwargs=True
    )
    monkeypatch.setattr(modeling_task_heads, "WINDOWS_PER_PASS", 4)
    assert (model(**batch).logits - wanted).abs().max() <= TOLERANCE
    assert sizes == [4, 4, 3]
    sizes.clear()
    model.train()
    model(**batch)
    assert sizes == [11]  # gradients need all of them


def test_a_training_batch_is_cut_without_a_mask_too(make: Any) -> None:
    model = make(truncation="tail")
    ids = torch.tensor(rows_of(8, (30, 30)))
    assert torch.equal(model(ids).logits, model(ids, torch.ones_like(ids)).logits)
    short = pad_rows([[*BEFORE, *row[-14:-1], *AFTER] for row in ids.tolist()], pad_id=0)
    assert torch.equal(model(ids).logits, model(**short).logits)


# Rows that cannot be cut


@pytest.mark.parametrize("truncation", POLICIES)
def test_long_rows_that_cannot_be_cut_are_errors(make: Any, truncation: str) -> None:
    model = make(truncation=truncation)
    batch = padded(rows_of(9), "right")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with raises_problem("text-too-long", "inputs_embeds"):
        model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask)
    with raises_problem("text-too-long", "position_ids"):
        model(**batch, position_ids=torch.arange(ids.shape[1]).expand_as(ids))
    with raises_problem("text-too-long", "attention_mask"):
        model(ids, torch.ones(len(ids), 1, ids.shape[1], ids.shape[1], dtype=torch.bool))
    with raises_problem("tokenizer-invalid", "input_ids", match="20 tokens"):
        model(torch.full((1, 20), 5))
    with raises_problem("argument-type", "input_ids"):
        model()


def test_a_long_pair_must_be_cut_by_its_tokenizer(make: Any) -> None:
    model = make(truncation="head", template={"before": BEFORE, "between": [4], "after": AFTER})
    model(**padded(rows_of(11, (13,)), "right"))
    with raises_problem("text-too-long", "input_ids", match="truncation=True"):
        model(**padded(rows_of(11, (14,)), "right"))


@torch.no_grad()
def test_without_a_limit_nothing_is_cut(make: Any) -> None:
    model = make(max_seq_length=None, template=None)
    rows = rows_of(12)
    wanted = torch.cat(
        [model.score(model.model(torch.tensor([row])).last_hidden_state[:, -1]) for row in rows]
    )
    assert (model(**padded(rows, "right")).logits - wanted).abs().max() <= TOLERANCE
