"""The score of a text does not depend on its batch or its position in it.

144 batches (504 among the slow tests) over three layouts, three ways to compute them and four poolings are
compared with the same texts, scored one by one and not packed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from problem_assertions import raises_problem

from qwen_task_heads import PooledClassifier, PooledClassifierConfig, TitleScorer, TitleScorerConfig
from qwen_task_heads.hubcode.attention_task_heads import PACKED
from qwen_task_heads.hubcode.configuration_task_heads import POOLINGS

# Per layout, way and pooling: 36 x 4 = 144 by default, 36 x 14 = 504 where there is time.
BATCHES = [4, pytest.param(14, marks=pytest.mark.slow)]
TOLERANCE = 1e-6  # of scores that spread over about one unit
Rows = Sequence[torch.Tensor]


@pytest.fixture(scope="module")
def models(tiny_config: Any, shake: Any) -> dict[str, Any]:
    """One scorer per pooling, with alternating families and an attention query other than zero."""
    found = {}
    for seed, pooling in enumerate(POOLINGS):
        family = ("qwen2", "qwen3", "llama")[seed % 3]
        torch.manual_seed(seed)
        config = TitleScorerConfig(text_config=tiny_config(family, vocab_size=128), pooling=pooling)
        model = shake(TitleScorer(config), seed=seed)
        with torch.no_grad():
            if pooling == "attention":
                model.score.query.normal_()
        found[pooling] = model
    return found


def _padded(rows: Rows, before: Sequence[int], after: Sequence[int], pad: int = 0) -> dict[str, torch.Tensor]:
    parts = [
        (torch.full((b,), pad), row, torch.full((a,), pad))
        for b, row, a in zip(before, rows, after, strict=True)
    ]
    return {
        "input_ids": torch.stack([torch.cat(part) for part in parts]),
        "attention_mask": torch.stack(
            [
                torch.cat([torch.zeros(len(x)), torch.ones(len(y)), torch.zeros(len(z))]).long()
                for x, y, z in parts
            ]
        ),
    }


def _right(rows: Rows) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    return _padded(rows, [0] * len(rows), [width - len(row) for row in rows])


def _left(rows: Rows) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    return _padded(rows, [width - len(row) for row in rows], [0] * len(rows))


def _both(rows: Rows) -> dict[str, torch.Tensor]:
    width = max(map(len, rows)) + 3
    before = [(width - len(row)) // 2 for row in rows]
    return _padded(rows, before, [width - len(row) - b for b, row in zip(before, rows, strict=True)])


Layout = Callable[[Rows], dict[str, torch.Tensor]]
LAYOUTS: dict[str, Layout] = {"right": _right, "left": _left, "both": _both}
# Whether rows are packed, and whether their common prefixes are encoded once.
WAYS = {"padded": (False, False), "packed": (True, False), "shared": (True, True)}


def _rows(generator: torch.Generator) -> list[torch.Tensor]:
    lengths = torch.randint(5, 24, (4,), generator=generator).tolist()
    rows = [torch.randint(1, 128, (length,), generator=generator) for length in lengths]
    prefix = torch.randint(1, 128, (12,), generator=generator)  # long enough to be shared
    return [torch.cat([prefix, row]) for row in rows]


def _one_by_one(model: Any, rows: Rows) -> torch.Tensor:
    return torch.cat([_run(model, "padded", {"input_ids": row[None]}) for row in rows])


def _run(model: Any, way: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model.packing, model.prefix_sharing = WAYS[way]
    try:
        return model(**batch).logits
    finally:
        model.packing, model.prefix_sharing = WAYS["shared"]


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batches", BATCHES)
def test_a_score_does_not_depend_on_its_batch(
    models: dict[str, Any], batches: int, way: str, pooling: str, layout: str
) -> None:
    model = models[pooling]
    generator = torch.Generator().manual_seed(100 * POOLINGS.index(pooling) + list(LAYOUTS).index(layout))
    worst, spread = 0.0, []
    for _ in range(batches):
        rows = _rows(generator)
        alone = _one_by_one(model, rows)
        found = _run(model, way, LAYOUTS[layout](rows))
        assert found.shape == alone.shape
        worst = max(worst, float((found - alone).abs().max()))
        spread += alone.flatten().tolist()
    assert torch.tensor(spread).std() > 0.1  # otherwise the comparison would be weak
    assert worst <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_another_pad_id_changes_no_score(models: dict[str, Any], pooling: str, layout: str) -> None:
    generator = torch.Generator().manual_seed(1)
    model = models[pooling]
    for _ in range(5):
        batch = LAYOUTS[layout](_rows(generator))
        wanted = model(**batch).logits
        for pad in (7, 127, "noise"):
            filler = torch.randint(0, 128, batch["input_ids"].shape, generator=generator)
            filler = filler if pad == "noise" else torch.full_like(filler, pad)
            ids = torch.where(batch["attention_mask"].bool(), batch["input_ids"], filler)
            assert torch.equal(model(input_ids=ids, attention_mask=batch["attention_mask"]).logits, wanted)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_another_last_token_changes_every_score(models: dict[str, Any], pooling: str, layout: str) -> None:
    """Also a last token that equals a pad id: pooling does not depend on ids."""
    model = models[pooling]
    rows = _rows(torch.Generator().manual_seed(2))
    before = model(**LAYOUTS[layout](rows)).logits
    # max pooling may ignore a token in a dimension, but not in all 32
    changed = [torch.cat([row[:-1], (row[-1:] + 1) % 128]) for row in rows]
    assert ((model(**LAYOUTS[layout](changed)).logits - before).abs() > 1e-4).all()
    to_pad = [torch.cat([row[:-1], torch.zeros(1, dtype=torch.long)]) for row in rows]
    assert ((model(**LAYOUTS[layout](to_pad)).logits - before).abs() > 1e-4).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_mask_row_without_a_one_is_an_error(models: dict[str, Any], pooling: str) -> None:
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 1, 1]])
    with raises_problem("text-empty", "attention_mask", match="row 1"):
        models[pooling](input_ids=torch.ones(3, 3, dtype=torch.long), attention_mask=mask)


def test_a_4d_mask_is_an_error(models: dict[str, Any]) -> None:
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    with raises_problem("argument-type", "attention_mask"):
        models["last"](input_ids=torch.ones(1, 3, dtype=torch.long), attention_mask=mask)


@torch.no_grad()
def test_embeddings_instead_of_ids_give_the_same_scores(models: dict[str, Any]) -> None:
    for model in models.values():
        batch = _both(_rows(torch.Generator().manual_seed(3)))
        embeds = model.get_input_embeddings()(batch["input_ids"])
        found = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
        assert (found - model(**batch).logits).abs().max() <= TOLERANCE


# Bidirectional attention


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def two_sided(request: pytest.FixtureRequest, tiny_config: Any) -> PooledClassifier:
    torch.manual_seed(0)
    text_config = tiny_config("qwen2", vocab_size=128)
    config = PooledClassifierConfig(text_config=text_config, num_labels=3, pooling="mean", bidirectional=True)
    model = PooledClassifier._from_config(config, attn_implementation=request.param).eval()
    assert model.model.config._attn_implementation == {"sdpa": PACKED}.get(request.param, request.param)
    return model


def _first_state(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, output_hidden_states=True).hidden_states[-1][:, 0]


@torch.no_grad()
def test_the_first_token_sees_the_last_one_only_if_bidirectional(two_sided: PooledClassifier) -> None:
    ids = torch.arange(8)[None]
    changed = torch.cat([ids[:, :-1], torch.tensor([[99]])], dim=1)
    two_sided.config.bidirectional = False
    try:
        assert torch.equal(_first_state(two_sided, ids), _first_state(two_sided, changed))
    finally:
        two_sided.config.bidirectional = True
    assert (_first_state(two_sided, ids) - _first_state(two_sided, changed)).abs().max() > 1e-3


@torch.no_grad()
def test_bidirectional_equals_an_explicit_mask(two_sided: PooledClassifier) -> None:
    batch = _both(_rows(torch.Generator().manual_seed(4)))
    mask = batch["attention_mask"]
    additive = torch.where(mask.bool()[:, None, None, :], 0.0, torch.finfo(torch.float32).min)
    states = two_sided.model(
        input_ids=batch["input_ids"],
        attention_mask=additive.expand(-1, 1, mask.shape[1], -1),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
    ).last_hidden_state
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    wanted = pooled @ two_sided.score.weight.T
    assert (two_sided(**batch).logits - wanted).abs().max() <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bidirectional_scores_do_not_depend_on_padding(two_sided: PooledClassifier, layout: str) -> None:
    rows = _rows(torch.Generator().manual_seed(5))
    found = two_sided(**LAYOUTS[layout](rows)).logits
    assert (found - _one_by_one(two_sided, rows)).abs().max() <= TOLERANCE


def test_bidirectional_needs_sdpa_or_eager(two_sided: PooledClassifier) -> None:
    implementation = two_sided.model.config._attn_implementation
    two_sided.model.config._attn_implementation = "flex_attention"
    try:
        with raises_problem("option-conflict", "attn_implementation", match="flex_attention"):
            two_sided(input_ids=torch.arange(4)[None])
    finally:
        two_sided.model.config._attn_implementation = implementation
