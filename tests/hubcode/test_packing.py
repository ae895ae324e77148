"""Packed rows and shared prefixes give the results of the padded batch with fewer tokens."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from equality import assert_same_logits, logit_difference
from family_models import SIZES
from family_models import family_scorer as scorer
from problem_assertions import raises_problem
from torch.nn import functional as F
from transformers import AttentionInterface, BloomConfig, DynamicCache

from qwen_task_heads import PooledClassifier, PooledClassifierConfig, TitleScorer, TitleScorerConfig
from qwen_task_heads.hubcode import attention_task_heads
from qwen_task_heads.hubcode.attention_task_heads import attend, splits_prefix
from qwen_task_heads.hubcode.packing_task_heads import pack

INSTRUCTION, PROMPT, LAYERS = 20, 10, SIZES["num_hidden_layers"]


def batch(*, groups: int = 3, titles: int = 4, seed: int = 0, longest: int = 24) -> dict[str, torch.Tensor]:
    """Return titles with a common instruction and the prompt of their group, padded on both sides."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> torch.Tensor:
        return torch.randint(3, 128, (size,), generator=generator)

    instruction, rows = draw(INSTRUCTION), []
    for _ in range(groups):
        prompt = draw(PROMPT)
        for _ in range(titles):
            size = int(torch.randint(1, longest, (1,), generator=generator))
            rows.append(torch.cat([instruction, prompt, draw(size)]))
    width = max(map(len, rows)) + 2
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        begin = int(torch.randint(0, width - len(row) + 1, (1,), generator=generator))
        ids[place, begin : begin + len(row)] = row
        mask[place, begin : begin + len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def ways(model: Any) -> Iterator[str]:
    """Set the model to each way of computing a batch, the padded one first."""
    for name, model.packing, model.prefix_sharing in (
        ("padded", False, False),
        ("packed", True, False),
        ("shared", True, True),
    ):
        yield name


def logits_and_gradients(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    logits = model(**inputs).logits
    (logits[:, 0] * torch.arange(1, len(logits) + 1)).sum().backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logits.detach(), torch.cat(found)


@pytest.mark.parametrize("pooling", ["last", "max", "attention"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_pooling_on_both_kinds_of_attention(pooling: str, bidirectional: bool) -> None:
    model, inputs = scorer("qwen3", pooling=pooling, bidirectional=bidirectional), batch()
    found = [logits_and_gradients(model, inputs) for _ in ways(model)]
    for other, others in found[1:]:
        assert (other - found[0][0]).abs().max() <= 2e-6
        assert (others - found[0][1]).abs().max() <= 2e-6 * found[0][1].abs().max()


def tokens_of(inputs: dict[str, torch.Tensor], **options: Any) -> int:
    mask = inputs["attention_mask"].bool()
    return len(pack(mask, **options).source)


def test_nested_prefixes_are_stored_once() -> None:
    inputs = batch(groups=3, titles=4)
    real = int(inputs["attention_mask"].sum())
    assert tokens_of(inputs) == real
    # the instruction is stored once instead of 12 times, each of 3 prompts once instead of 4 times
    saved = 11 * INSTRUCTION + 3 * 3 * PROMPT
    assert tokens_of(inputs, input_ids=inputs["input_ids"]) == real - saved
    assert tokens_of(inputs, input_ids=inputs["input_ids"], causal=False) == real


@pytest.mark.parametrize(
    ("rows", "packed"),
    [
        ([[5] * 9 + [1], [5] * 9 + [2]], 11),
        ([[5] * 7 + [1], [5] * 7 + [2]], 16),  # too short to be shared
        ([[5] * 10, [5] * 10], 11),  # each row keeps a token of its own
        ([[5] * 10, [5] * 12], 13),  # one row is a prefix of the other
        ([[5] * 9 + [1], [5] * 9 + [2], [*range(20, 120)]], 120),  # 9 of 120 tokens: not shared
        ([[5] * 10], 10),
    ],
)
def test_the_number_of_packed_tokens(rows: list[list[int]], packed: int) -> None:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert tokens_of(inputs, input_ids=ids) == packed
    model = scorer("qwen2")
    logits = [model(**inputs).logits for _ in ways(model)]
    assert max((other - logits[0]).abs().max() for other in logits) <= 1e-6


@torch.no_grad()
def test_rows_within_a_sliding_window_are_packed_and_longer_ones_padded() -> None:
    for window, packs in ((64, True), (40, False)):
        model, inputs = scorer("mistral", backbone={"sliding_window": window}), batch()
        longest = int(inputs["attention_mask"].sum(1).max())
        assert 40 < longest <= 64
        assert model._can_pack(inputs["attention_mask"]) == packs
        logits = [model(**inputs).logits for _ in ways(model)]
        assert max((other - logits[0]).abs().max() for other in logits) <= 1e-6


@torch.no_grad()
def test_rows_that_cannot_be_packed_are_padded_with_a_reason(tiny_config: Any) -> None:
    inputs = batch()
    bloom = BloomConfig(vocab_size=128, hidden_size=32, n_layer=1, n_head=4)
    model = PooledClassifier(PooledClassifierConfig(text_config=bloom)).eval()
    assert model.fallback_reason == "packed rows are not exact for a 'bloom' backbone"
    rows = zip(*inputs.values(), strict=True)
    alone = torch.cat([model(input_ids=row[real.bool()][None]).logits for row, real in rows])
    assert (model(**inputs).logits - alone).abs().max() <= 1e-6
    config = TitleScorerConfig(text_config=tiny_config("qwen2", vocab_size=128))
    model = TitleScorer._from_config(config, attn_implementation="eager").eval()
    assert model.fallback_reason == "packed rows need attn_implementation sdpa, not eager"
    with raises_problem("option-unsupported", "prefix", match="attn_implementation sdpa"):
        model.encode_prefix(torch.ones(1, 4, dtype=torch.long))


@torch.no_grad()
def test_states_and_attentions_are_those_of_the_padded_batch() -> None:
    model, inputs = scorer("qwen2"), batch()
    found = model(**inputs, output_hidden_states=True)
    assert len(found.hidden_states) == LAYERS + 1
    assert found.hidden_states[0].shape[:2] == inputs["input_ids"].shape
    assert (found.logits - model(**inputs).logits).abs().max() <= 1e-6
    assert model(**inputs, use_cache=True).past_key_values is not None


@torch.no_grad()
def test_a_cached_prefix_has_keys_and_values_of_every_layer() -> None:
    model, inputs = scorer("qwen2"), batch()
    rows = [row[real.bool()] for row, real in zip(*inputs.values(), strict=True)]
    prefix = model.encode_prefix(rows[0][None, :INSTRUCTION])
    assert [keys.shape for keys, _ in prefix.values()] == [(2, INSTRUCTION, 8)] * LAYERS
    rest = rows[0][None, INSTRUCTION:]
    with raises_problem("option-unsupported", "prefix"):
        model(input_ids=rest, prefix=prefix, output_hidden_states=True)


def after_a_prefix(model: Any, ids: torch.Tensor, *, known: int) -> torch.Tensor:
    """Return the logits of rows (B, T) with a common prefix, whose first tokens are cached."""
    prefix = model.encode_prefix(ids[:1, :known])
    return model(input_ids=ids[:, known:], prefix=prefix).logits  # type: ignore[no-any-return]


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
}
TURNING = [
    ("llama", {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}),
    ("phi3", LONGROPE),
]


@torch.no_grad()
@pytest.mark.parametrize(("family", "rope"), TURNING)
def test_rotations_by_the_longest_row_allow_packing_but_no_prefix(family: str, rope: dict[str, Any]) -> None:
    sizes = {"max_position_embeddings": 32, "original_max_position_embeddings": 32, "rope_parameters": rope}
    model, inputs = scorer(family, backbone=sizes), batch()
    model.model.double()  # in fp32 the rounding of other shapes alone is 1.1e-6 on some processors
    logits = [model(**inputs).logits for _ in ways(model)]
    for other in logits:
        assert_same_logits(other, logits[0])
    with raises_problem("option-unsupported", "prefix", match="rotations"):
        model.encode_prefix(torch.ones(1, 20, dtype=torch.long))


@torch.no_grad()
def test_bidirectional_attention_cannot_use_a_prefix() -> None:
    model = scorer("qwen3", bidirectional=True)
    assert model.prefix_fallback_reason(9) == "attention is bidirectional"
    with raises_problem("option-unsupported", "prefix", match="bidirectional"):
        model.encode_prefix(torch.ones(1, 9, dtype=torch.long))


@torch.no_grad()
def test_a_prefix_is_stored_below_hooks_that_move_inputs() -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = scorer("qwen2")
    ids = torch.cat([torch.arange(40).expand(3, -1) + 3, torch.arange(12).view(3, 4) + 3], 1)
    wanted = model(input_ids=ids).logits
    for layer in model.model.layers:  # as `device_map` puts them there
        add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    assert (after_a_prefix(model, ids, known=40) - wanted).abs().max() <= 1e-6


@torch.no_grad()
def test_a_prefix_under_autocast() -> None:
    model = scorer("qwen2")
    ids = torch.cat([torch.arange(40).expand(3, -1) + 3, torch.arange(12).view(3, 4) + 3], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted, found = model(input_ids=ids).logits, after_a_prefix(model, ids, known=40)
    assert (found - wanted).abs().max() < 0.05 * max(1.0, float(wanted.abs().max()))


@pytest.mark.slow
@torch.no_grad()
def test_traced_and_exported_models_pad_rows() -> None:
    model, inputs = scorer("qwen2"), batch()
    wanted = model(**inputs).logits
    exported = torch.export.export(model, (), inputs).module()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for found in (exported(**inputs), compiled(**inputs)):
        assert (found.logits - wanted).abs().max() <= 1e-6


@torch.no_grad()
def test_arguments_that_packed_rows_do_not_support_are_passed_on() -> None:
    model, inputs = scorer("qwen2"), batch()
    wanted, cache = model(**inputs).logits, DynamicCache()
    found = model(**inputs, token_type_ids=torch.zeros_like(inputs["input_ids"])).logits
    assert (found - wanted).abs().max() <= 1e-6
    model(**inputs, past_key_values=cache)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@torch.no_grad()
def test_a_replaced_last_layer() -> None:
    model, inputs = scorer("qwen2"), batch()
    model.model.layers = model.model.layers[:2]
    logits = [model(**inputs).logits for _ in ways(model)]
    assert max((other - logits[0]).abs().max() for other in logits) <= 1e-6


def test_attention_to_a_prefix_is_separate_if_torch_returns_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert splits_prefix("cpu")
    assert not splits_prefix("cuda")
    model, calls = scorer("qwen2"), []
    # The code of a published model, loaded by another test of this process, registers its own function.
    AttentionInterface.register(attention_task_heads.PACKED, attention_task_heads.packed_sdpa)
    flash = attention_task_heads._flash
    monkeypatch.setattr(attention_task_heads, "_flash", lambda *a, **k: calls.append(1) or flash(*a, **k))
    with torch.no_grad():
        model(
            input_ids=torch.ones(2, 3, dtype=torch.long), prefix=model.encode_prefix(torch.ones(1, 9).long())
        )
    assert len(calls) == 2 * LAYERS  # the prefix and the rows, in each layer


@pytest.mark.parametrize(
    ("family", "reentrant"),
    [
        *(("qwen2", True), ("qwen3", False)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("qwen2", False), ("qwen3", True))),
        *(pytest.param("llama", reentrant, marks=pytest.mark.slow) for reentrant in (False, True)),
    ],
)
def test_lora_has_equal_gradients_under_checkpointing(family: str, reentrant: bool) -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(scorer(family), lora).train()
    base, inputs = model.get_base_model(), batch()
    sizes: list[int] = []
    base.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    found = [logits_and_gradients(model, inputs) for _ in ways(base)]
    assert sizes[0] > sizes[1] > sizes[2]  # also below PEFT's wrapper
    base.activation_checkpointing_enable({"use_reentrant": reentrant})
    base.enable_input_require_grads()
    found += [logits_and_gradients(model, inputs) for _ in ways(base)]
    for logits, gradients in found[1:]:
        assert len(gradients) == len(found[0][1])
        assert (logits - found[0][0]).abs().max() <= 2e-6
        assert (gradients - found[0][1]).abs().max() <= 2e-6 * found[0][1].abs().max()


def test_under_autocast_and_in_bf16_the_difference_is_rounding() -> None:
    model, inputs = scorer("qwen2"), batch()
    exact = model(**inputs).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in ways(model):
            assert (model(**inputs).logits - exact).abs().max() < 0.05 * exact.std()
    half = copy.deepcopy(model)
    half.model.to(torch.bfloat16)
    for _ in ways(half):
        found = half(**inputs).logits
        assert found.dtype == torch.float32
        assert (found - exact).abs().max() < 0.1 * exact.std()


@torch.no_grad()
@pytest.mark.parametrize("made", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_with_its_own_last_layer(made: Callable[[Any], Any]) -> None:
    model, inputs = scorer("qwen2"), batch()
    twin, wanted = made(model), model(**inputs).logits
    model.model.layers[-1].mlp.down_proj.weight.zero_()
    assert_same_logits(twin(**inputs).logits, wanted)
    assert logit_difference(model(**inputs).logits, wanted) > 1e-2


@torch.no_grad()
def test_a_replica_computes_with_its_own_last_layer() -> None:
    model, inputs = scorer("qwen2"), batch()
    wanted, sizes = model(**inputs).logits, []
    layer = model.model.layers[-1]
    assert type(layer).__name__ == "Qwen2DecoderLayer"  # by which FSDP and device_map know it
    # What DataParallel does for each GPU, which a CPU cannot be: here with other weights of the MLP.
    replica = layer._replicate_for_data_parallel()
    replica.mlp = torch.nn.Identity()
    replica.mlp.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
    model.model.layers[-1] = replica
    assert not torch.equal(model(**inputs).logits, wanted)
    assert sizes == [len(wanted)]  # only the pooled tokens


def varlen_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """Compute torch's `varlen_attn` as documented, in plain torch, because its kernel needs a GPU."""
    assert window_size == (-1, 0)
    outputs = []
    for q0, q1, k0, k1 in zip(cu_seq_q, cu_seq_q[1:], cu_seq_k, cu_seq_k[1:], strict=False):
        assert q1 - q0 <= max_q
        assert k1 - k0 <= max_k
        q, k, v = query[q0:q1], key[k0:k1], value[k0:k1]
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))  # aligned at the last key
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("before", [0, 6])
@pytest.mark.parametrize("shared", [False, True])
def test_kernels_of_variable_length_get_the_same_attention(
    monkeypatch: pytest.MonkeyPatch, shared: bool, before: int
) -> None:
    import torch.nn.attention.varlen as varlen

    inputs = batch()
    prefix = {0: (torch.zeros(2, before, 8), torch.zeros(2, before, 8))} if before else None
    # as on a GPU, where the ragged form is built too
    monkeypatch.setattr(attention_task_heads, "_has_varlen", lambda *_: False)
    packed = pack(
        inputs["attention_mask"].bool(),
        input_ids=inputs["input_ids"] if shared else None,
        pooled_only=True,
        prefix=prefix,
        ragged=True,
    )
    tokens = len(packed.source)
    key, value = torch.randn(2, 2, before + tokens, 8)
    for attention, queries in ((packed.attention, tokens), (packed.pooled, 12)):
        assert attention is not None
        query = torch.randn(4, queries, 8)
        wanted = attend(query, key, value, attention)
        monkeypatch.setattr(attention_task_heads, "_has_varlen", lambda *_: True)
        monkeypatch.setattr(varlen, "varlen_attn", varlen_reference)
        found = attend(query, key, value, attention)
        monkeypatch.setattr(attention_task_heads, "_has_varlen", lambda *_: False)
        assert (found - wanted).abs().max() <= 1e-6
