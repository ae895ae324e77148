"""Backbones whose rows cannot be packed: buckets of similar length give the results of each row alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from qwen_task_heads import PooledClassifier, PooledClassifierConfig, TitleScorer, TitleScorerConfig
from qwen_task_heads.hubcode.bucketing_task_heads import PASS_TOKENS, buckets, take_rows
from qwen_task_heads.throughput import Throughput

LENGTHS = [5, 70, 33, 130, 12, 64, 1, 31]
SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GATED = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
# Linear and full attention; short convolution and attention; only state spaces; ALiBi.
BACKBONES: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {**SIZES, **GATED},
    "qwen3_next": {**SIZES, **GATED, **MOE},
    "lfm2": {**SIZES, "full_attn_idxs": [2], "conv_L_cache": 3},
    "mamba": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "bloom": {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}
HYBRIDS = ["qwen3_5_text", "qwen3_next"]


def model_of(family: str, *, pooling: str = "last", **changes: Any) -> Any:
    """A random classifier whose tensors are all as large as trained ones."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**BACKBONES[family], **changes})
    model = PooledClassifier(PooledClassifierConfig(text_config=config, num_labels=3, pooling=pooling))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def rows(lengths: list[int] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 128, (length,), generator=generator) for length in lengths]


def padded(texts: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    width = max(map(len, texts)) + 2
    ids, mask = torch.full((len(texts), width), 7), torch.zeros(len(texts), width, dtype=torch.long)
    for place, row in enumerate(texts):
        begin = {"right": 0, "left": width - len(row), "both": (width - len(row)) // 2}[side]
        ids[place, begin : begin + len(row)] = row
        mask[place, begin : begin + len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def one_by_one(model: Any, texts: list[torch.Tensor]) -> torch.Tensor:
    masks = [torch.ones(1, len(row), dtype=torch.long) for row in texts]
    found = [model(row[None], mask).logits for row, mask in zip(texts, masks, strict=True)]
    return torch.cat(found)


def gradients(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("family", BACKBONES)
def test_a_batch_gives_the_logits_of_each_row_alone(family: str, side: str) -> None:
    texts = rows()
    for pooling in ("last", "mean", "attention"):
        model = model_of(family, pooling=pooling)
        assert model.fallback_reason is not None
        wanted, batch = one_by_one(model, texts), padded(texts, side)
        assert wanted.std() > 0.01  # otherwise the comparison would be weak
        counted = Throughput()
        with counted.listening(model):
            found = model(**batch).logits
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max(), pooling
        assert counted.real == sum(LENGTHS) <= counted.computed < counted.padded / 2
        embeds = model.get_input_embeddings()(batch.pop("input_ids"))
        assert (model(**batch, inputs_embeds=embeds).logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["off", "reentrant", "not reentrant"])
@pytest.mark.parametrize("family", HYBRIDS)
def test_training_gives_the_loss_and_gradients_of_each_row_alone(
    family: str, checkpointing: bool | None
) -> None:
    model, texts = model_of(family).train(), rows()
    labels = torch.arange(len(texts)) % 3
    wanted = torch.nn.functional.cross_entropy(one_by_one(model, texts), labels)
    wanted.backward()
    expected = gradients(model)
    model.zero_grad()
    if checkpointing is not None:
        model.activation_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    loss = model(**padded(texts, "right"), labels=labels).loss
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert (gradients(model) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture
def one_of_a_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def passes_of(model: Any, batch: dict[str, torch.Tensor], **options: Any) -> int:
    found: list[int] = []
    handle = model.model.register_forward_hook(lambda *_: found.append(1))
    with torch.no_grad():
        model(**batch, **options)
    handle.remove()
    return len(found)


def test_some_options_need_the_whole_batch() -> None:
    model, batch = model_of("qwen3_5_text"), padded(rows(), "right")
    assert passes_of(model, batch) > 1
    assert passes_of(model, batch, output_hidden_states=True) == 1
    assert passes_of(model, batch, use_cache=True) == 1
    model.packing = False
    assert passes_of(model, batch) == 1
    model = model_of("qwen3_5_text")
    assert passes_of(model, padded(rows([40] * 8), "right")) == 1
    config = CONFIG_MAPPING["qwen2"](
        **SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    )
    config = TitleScorerConfig(text_config=config)  # its rotations depend on the longest row
    assert passes_of(TitleScorer._from_config(config, attn_implementation="eager"), batch) == 1


@pytest.mark.usefixtures("one_of_a_group")
def test_each_of_several_processes_runs_one_pass() -> None:
    assert passes_of(model_of("qwen3_5_text"), padded(rows(), "right")) == 1


def test_a_bucket_has_less_padding_than_a_pass_costs() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 40):
        lengths = torch.randint(1, 300, (count,), generator=generator).tolist()
        found = buckets(lengths)
        assert sorted(row for group in found for row in group) == [*range(count)]
        for group in found:
            own = [lengths[row] for row in group]
            assert len(own) * max(own) - sum(own) <= PASS_TOKENS["cpu"]
        assert buckets([9] * count) == [[*range(count)]]
        assert len(buckets(lengths, device_type="cuda")) <= len(found)


def test_rows_are_taken_without_padding_between_their_tokens() -> None:
    ids = torch.tensor([[9, 1, 9, 2, 9], [3, 9, 9, 9, 4], [5, 6, 7, 8, 1]])
    mask = ids != 9
    found, own = take_rows(ids, mask, [1, 0])
    assert found.tolist() == [[3, 4], [1, 2]]
    assert own.all()
    found, own = take_rows(ids[..., None].float(), mask, [0, 2])
    assert found[:, :, 0][own].tolist() == [1, 2, 5, 6, 7, 8, 1]
