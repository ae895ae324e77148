"""Every row of `FAMILIES`, on a tiny random model of the family: each property holds, or is not used.

The tests read the tables, so that a new family or a new pooling cannot pass untested.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from family_models import VOCABULARY, family_scorer, randomize, tiny_family
from problem_assertions import raises_problem
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from qwen_task_heads import LabelMap, adapter_config, load_tokenizer
from qwen_task_heads.export.reward_model import export_reward_model
from qwen_task_heads.hubcode.attention_task_heads import PACKED, rotates_by_length, window_of
from qwen_task_heads.hubcode.configuration_task_heads import POOLINGS
from qwen_task_heads.hubcode.early_exit_task_heads import cut_layers
from qwen_task_heads.hubcode.families_task_heads import ALL_LINEAR, FAMILIES, family_of
from qwen_task_heads.inference.label_scorer import LabelScorer, fallback_reason
from qwen_task_heads.inference.label_trie import logits_of, score_alone
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts

every_family = pytest.mark.parametrize("family", FAMILIES)
PREFIX, WINDOW = 20, 28
LENGTHS = (1, 4, 9, 9, 17, 23)  # of the rests after the prefix; with it, some are longer than the window


def rows() -> list[torch.Tensor]:
    """Return rows with a common prefix and different rests."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randint(3, VOCABULARY, (size,), generator=generator) for size in (PREFIX, *LENGTHS)]
    return [torch.cat([draw[0], rest]) for rest in draw[1:]]


def padded(texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return rows padded on both sides."""
    width = max(map(len, texts)) + 2
    ids, mask = torch.zeros(2, len(texts), width, dtype=torch.long)
    for place, row in enumerate(texts):
        begin = place % (width - len(row) + 1)
        ids[place, begin : begin + len(row)] = row
        mask[place, begin : begin + len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def ways(model: Any) -> Iterator[None]:
    """Set the model to each way of computing a batch."""
    for model.packing, model.prefix_sharing in ((False, False), (True, False), (True, True)):
        yield


def gradients(logits: torch.Tensor, model: Any) -> torch.Tensor:
    """Return the gradients of a weighted sum of logits (B, 1)."""
    model.zero_grad()
    (logits[:, 0] * torch.arange(1, len(logits) + 1)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("pooling", POOLINGS)
@every_family
def test_a_batch_gives_the_results_of_each_row_alone(family: str, pooling: str) -> None:
    model, texts = family_scorer(family, pooling=pooling), rows()
    assert (model.fallback_reason is None) == family_of(family).packable
    assert (model.model.config._attn_implementation == PACKED) == family_of(family).packable
    model.packing = False
    alone = torch.cat([model(input_ids=row[None]).logits for row in texts])
    assert alone.std() > 0.01  # otherwise the comparison would be weak
    wanted, inputs = gradients(alone, model), padded(texts)
    for _ in ways(model):
        found = model(**inputs).logits
        assert (found - alone).abs().max() <= 1e-6 * alone.abs().max().clamp(min=1)
        assert (gradients(found, model) - wanted).abs().max() <= 2e-6 * wanted.abs().max()


WINDOWS = [family for family in FAMILIES if "sliding_window" in tiny_family(family).to_dict()]


@torch.no_grad()
@pytest.mark.parametrize("family", WINDOWS)
def test_rows_beyond_a_sliding_window_are_padded(family: str) -> None:
    window = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}
    model, texts = family_scorer(family, backbone=window), rows()
    assert min(map(len, texts)) < WINDOW < max(map(len, texts))
    model.packing = False
    alone = torch.cat([model(input_ids=row[None]).logits for row in texts])
    model.packing = True
    for size in (3, len(texts)):  # rows within the window, and all of them
        inputs = padded(texts[:size])
        fits = max(map(len, texts[:size])) <= WINDOW
        assert model._can_pack(inputs["attention_mask"].bool()) == (family_of(family).packable and fits)
        assert (model(**inputs).logits - alone[:size]).abs().max() <= 1e-6 * float(alone.abs().max())
    wide = family_scorer(family, backbone=window | {"sliding_window": 64})  # the window matters beyond it
    assert (wide(**padded(texts)).logits - alone).abs().max() > 1e-4


@torch.no_grad()
@every_family
def test_a_last_layer_that_pools_computes_only_the_pooled_tokens(family: str) -> None:
    model, sizes = family_scorer(family), []
    layers = dict(model.model.named_children()).get("layers", [])
    assert len(layers) or not family_of(family).last_layer_pooling
    if len(layers):
        layers[-1].mlp.register_forward_hook(lambda module, args, output: sizes.append(args[0].shape[1]))
        model(**padded(rows()))
        assert (sizes == [len(LENGTHS)]) == family_of(family).last_layer_pooling


@torch.no_grad()
@every_family
def test_a_cached_prefix_gives_the_scores_of_whole_rows(family: str) -> None:
    model, texts = family_scorer(family), rows()
    if not family_of(family).packable:
        assert model.prefix_fallback_reason(PREFIX) is not None
        with raises_problem("option-unsupported", "prefix"):
            model.encode_prefix(texts[0][None, :PREFIX])
        return
    wanted = model(**padded(texts)).logits
    prefix = model.encode_prefix(texts[0][None, :PREFIX])
    rests = padded([row[PREFIX:] for row in texts])
    for model.prefix_sharing in (False, True):
        for with_gradients in (False, True):  # the attention to the prefix is separate only without
            with torch.set_grad_enabled(with_gradients):
                found = model(**rests, prefix=prefix).logits
            assert (found - wanted).abs().max() <= 1e-6 * max(1.0, float(wanted.abs().max()))


@torch.no_grad()
@every_family
def test_an_early_exit_gives_the_states_of_its_layer(family: str) -> None:
    whole = family_scorer(family)
    if not family_of(family).early_exit:
        with raises_problem("option-unsupported", "backbone_layers"):
            cut_layers(whole.config.text_config, keep=2)
        return
    cut = family_scorer(family, backbone_layers=2)
    tensors = {name: t for name, t in whole.state_dict().items() if "layers.2." not in name}
    cut.load_state_dict(tensors)
    states = []
    whole.model.layers[1].register_forward_hook(
        lambda module, args, output: states.append(output[0] if isinstance(output, tuple) else output)
    )
    for row in rows():
        whole.packing = False
        whole(input_ids=row[None])
        wanted = whole.score(whole.model.norm(states.pop())[:, -1])
        assert (cut(input_ids=row[None]).logits - wanted).abs().max() <= 1e-6 * max(1.0, float(wanted.abs()))


@every_family
def test_lora_adapts_modules_of_the_family(family: str) -> None:
    model = family_scorer(family)
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in model.model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    attention = adapter_config(model, targets="attention").target_modules
    assert attention
    assert set(attention) < linear
    every = adapter_config(model).target_modules
    assert every == ALL_LINEAR or set(every) == linear


@torch.no_grad()
@every_family
def test_a_trie_of_labels_gives_the_scores_of_each_label_alone(family: str) -> None:
    tokenizer, labels = load_tokenizer("embedded"), LabelMap(("sport", "sport news", "news", "trade fair"))
    config = tiny_family(family, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    model = randomize(AutoModelForCausalLM.from_config(config))
    has_trie = family_of(family).packable and not window_of(config)
    assert (fallback_reason(model) is None) == has_trie
    prompts = AnswerPrompts(tokenizer, labels, model_type=family, instruction="Text: ")
    ours, texts = LabelScorer(model, prompts=prompts), ["A day at the fair", "Two goals in a minute"]
    wanted = score_alone(model, prompts.encode(texts).input_ids, ours.answers)
    assert wanted.std() > 0.1
    assert torch.allclose(ours.log_scores(texts), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
@every_family
def test_logits_of_half_precision_are_those_of_the_family(family: str) -> None:
    config, ids = tiny_family(family), rows()[0][None]
    if "final_logit_softcapping" in config.to_dict():
        config.final_logit_softcapping = 0.5
    torch.manual_seed(0)
    model = randomize(AutoModelForCausalLM.from_config(config)).bfloat16()
    found, wanted = logits_of(model, input_ids=ids).float(), model(input_ids=ids).logits.float()
    assert (found - wanted).abs().max() <= 0.02 * wanted.abs().max()
    in_fp32 = not torch.equal(found, found.bfloat16().float())
    assert in_fp32 == family_of(family).plain_logits


@every_family
def test_reward_models_of_families_that_vllm_serves(family: str, tmp_path: Any) -> None:
    model, tokenizer = family_scorer(family, head="mlp", head_sizes=[32]), load_tokenizer("embedded")
    if family_of(family).reward_model is None:
        with raises_problem("model-unsupported", "text_config"):
            export_reward_model(model, tokenizer=tokenizer, folder=tmp_path / "it")


@torch.no_grad()
def test_a_backbone_with_its_own_bidirectional_attention_is_padded() -> None:
    model, texts = family_scorer("gemma3_text", backbone={"use_bidirectional_attention": True}), rows()
    assert model.fallback_reason is not None
    alone = torch.cat([model(input_ids=row[None]).logits for row in texts])
    assert (model(**padded(texts)).logits - alone).abs().max() <= 1e-6 * float(alone.abs().max())


def test_rotations_by_length_of_one_kind_of_attention_are_found() -> None:
    rope = {"full_attention": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}
    assert rotates_by_length(tiny_family("gemma3_text", rope_parameters=rope))
    assert not rotates_by_length(tiny_family("gemma3_text"))
