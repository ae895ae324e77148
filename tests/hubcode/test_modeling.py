"""Precision, labels, losses, the ordinal head, and every decoder that transformers has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_same_model
from peft import get_peft_model
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    MambaConfig,
    MistralConfig,
    pipeline,
)

from qwen_task_heads import (
    PooledClassifier,
    PooledClassifierConfig,
    TitleScorer,
    TitleScorerConfig,
    adapter_config,
    build,
    load,
    save,
)
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.pooling_task_heads import CumulativeLink, FloatLinear, pool, rows_of

HEADS: dict[str, dict[str, Any]] = {
    "linear": {},
    "linear with dropout": {"head_dropout": 0.3},
    "mlp": {"head": "mlp", "head_sizes": [16, 8], "head_activation": "gelu"},
    "attention": {"pooling": "attention"},
    "attention mlp": {"pooling": "attention", "head": "mlp", "head_sizes": [8]},
}
IDS = torch.randint(1, 128, (4, 9), generator=torch.Generator().manual_seed(0))


def _classifier(tiny_config: Any, **options: Any) -> PooledClassifier:
    torch.manual_seed(0)
    config = PooledClassifierConfig(text_config=tiny_config(vocab_size=128), **{"num_labels": 4, **options})
    return PooledClassifier(config).eval()


# Precision


@torch.no_grad()
@pytest.mark.parametrize("problem_type", ["single_label_classification", "ordinal"])
@pytest.mark.parametrize("head", HEADS)
def test_head_and_logits_are_fp32_on_a_bf16_backbone(
    tiny_config: Any, bases: dict[str, str], tmp_path: Path, head: str, problem_type: str
) -> None:
    model = _classifier(tiny_config, problem_type=problem_type, **HEADS[head])
    model.save_pretrained(tmp_path)
    half = load(str(tmp_path), dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half.score.parameters()} == {torch.float32}
    plain = half(input_ids=IDS).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = half.model(input_ids=IDS).last_hidden_state
        under_autocast = half(input_ids=IDS).logits
    assert plain.dtype == under_autocast.dtype == torch.float32
    rows = rows_of(states, None)
    wanted = (
        half.score(*rows[:2])
        if half.config.pooling == "attention"
        else half.score(pool(*rows, pooling="last"))
    )
    assert torch.equal(under_autocast, wanted)
    # A product of only bf16 numbers would be a bf16 number.
    assert not torch.equal(under_autocast, under_autocast.bfloat16().float())
    half.bfloat16()
    assert half(input_ids=IDS).logits.dtype == torch.float32
    assert not torch.equal(half(input_ids=IDS).logits, half(input_ids=IDS).logits.bfloat16().float())


@torch.no_grad()
def test_close_scores_near_eight_do_not_tie() -> None:
    generator = torch.Generator().manual_seed(0)
    head = FloatLinear(64, 1)
    head.weight.copy_(torch.randn(1, 64, generator=generator) * 0.01)
    head.bias.fill_(8.0)
    pooled = torch.randn(100_000, 64, generator=generator).bfloat16()
    # The partner lies 0.04 further along the head's own direction, before its states are rounded.
    step = head.weight * (0.04 / head.weight.square().sum())
    partner = (pooled.float() + step).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = head(pooled), head(partner)
    assert int((ours == theirs).sum()) == 0
    assert (theirs > ours).float().mean() > 0.999
    rounded = (ours.bfloat16() == theirs.bfloat16()).float().mean()
    assert rounded > 0.15  # ties of a head in bf16, whose steps at 8 are 0.03 and 0.06


# Losses and labels


def test_losses_equal_their_formulas(tiny_config: Any) -> None:
    whole = torch.tensor([0, 3, 1, 2])
    several = torch.tensor([[1.0, 0, 0, 1]] * 2 + [[0.0, 1, 1, 0]] * 2)
    values = torch.tensor([0.5, -1.0, 2.0, 0.0])

    def run(labels: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output = _classifier(tiny_config, **options)(input_ids=IDS, labels=labels)
        return output.loss, output.logits

    for problem_type in ("single_label_classification", None):
        loss, logits = run(whole, problem_type=problem_type)
        torch.testing.assert_close(loss, -logits.log_softmax(1)[range(4), whole].mean())
    for problem_type in ("multi_label_classification", None):
        loss, logits = run(several, problem_type=problem_type)
        p = logits.sigmoid()
        torch.testing.assert_close(loss, -(several * p.log() + (1 - several) * (1 - p).log()).mean())
    for problem_type in ("regression", None):
        loss, logits = run(values, problem_type=problem_type, num_labels=1)
        torch.testing.assert_close(loss, (logits[:, 0] - values).square().mean())
    loss, logits = run(several, problem_type="regression")
    torch.testing.assert_close(loss, (logits - several).square().mean())
    loss, logits = run(whole, problem_type="ordinal")
    torch.testing.assert_close(loss, -logits[range(4), whole].mean())


def test_label_names_and_pad_id_survive_reload(bases: dict[str, str], tokenizer: Any, tmp_path: Path) -> None:
    labels = ["politics", "sport", "体育", "science & tech"]
    for kind in ("full", "adapter"):
        model = build(bases["qwen2"], task="pooled_classifier", labels=labels)
        wrapped = get_peft_model(model, adapter_config(model, r=2)) if kind == "adapter" else model
        again = load(str(save(wrapped, tokenizer=tokenizer, folder=tmp_path / kind)))
        assert again.config.id2label == dict(enumerate(labels))
        assert again.config.label2id == {label: index for index, label in enumerate(labels)}
        assert again.config.num_labels == again.num_labels == 4
        assert again.config.text_config.pad_token_id == tokenizer.pad_token_id
        rows = pipeline("text-classification", model=again, tokenizer=tokenizer, top_k=None)(["A title"])[0]
        assert {row["label"] for row in rows} == set(labels)
        assert sum(row["score"] for row in rows) == pytest.approx(1, abs=1e-5)


# The ordinal head


def test_ordinal_probabilities_are_those_of_the_proportional_odds_model() -> None:
    torch.manual_seed(0)
    head = CumulativeLink(6, 5)
    with torch.no_grad():
        head.first.fill_(-1.3)
        head.log_gaps.normal_()
    pooled = torch.randn(50, 6) * 3
    log_p = head(pooled)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(50))
    torch.testing.assert_close(log_p.softmax(1), log_p.exp())  # so stock pipelines give them unchanged
    thresholds = torch.cat([head.first, head.first + head.log_gaps.exp().cumsum(0)]).double()
    assert (thresholds.diff() > 0).all()
    below = (thresholds - head.latent(pooled).double()).sigmoid()
    wanted = torch.cat([below[:, :1], below.diff(dim=1), 1 - below[:, -1:]], dim=1)
    torch.testing.assert_close(log_p.double().exp(), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("latent", [-1e4, -50.0, 0.0, 50.0, 1e4])
def test_ordinal_gradients_stay_finite_far_from_the_thresholds(latent: float) -> None:
    head = CumulativeLink(1, 4)
    with torch.no_grad():
        head.latent.weight.fill_(1.0)
        head.first.fill_(-1.0)
        head.log_gaps.zero_()
    for label in range(4):
        pooled = torch.full((1, 1), latent, requires_grad=True)
        loss = F.cross_entropy(head(pooled), torch.tensor([label]))
        loss.backward()
        assert loss.isfinite()
        for tensor in (pooled, *head.parameters()):
            assert tensor.grad.isfinite().all()


def test_a_higher_latent_value_moves_mass_to_higher_labels(tiny_config: Any) -> None:
    head = _classifier(tiny_config, problem_type="ordinal", num_labels=5).score
    with torch.no_grad():
        head.latent.weight.fill_(1.0)
        states = torch.linspace(-0.1, 0.1, 9)[:, None].expand(-1, 32)
        expected = (head(states).exp() * torch.arange(5)).sum(1)
    assert (expected.diff() > 0).all()


# Gradients of every head, and heads on other decoders


@pytest.mark.parametrize("problem_type", ["single_label_classification", "ordinal"])
@pytest.mark.parametrize("head", HEADS)
def test_gradient_reaches_every_parameter(tiny_config: Any, head: str, problem_type: str) -> None:
    model = _classifier(tiny_config, problem_type=problem_type, **HEADS[head]).train()
    if "attention" in head:
        torch.nn.init.normal_(model.score.query)
    model(input_ids=IDS, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


DECODERS = {
    "mistral": MistralConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
    ),
    "gemma2": Gemma2Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
    ),
    "gpt2": GPT2Config(
        vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "bloom": BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=4),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    ),
    "mamba": MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=4),
}


@pytest.mark.parametrize("with_lm_head", [True, False], ids=["with lm_head", "bare"])
@pytest.mark.parametrize("family", DECODERS)
def test_other_decoders_build_train_and_reload(
    family: str, with_lm_head: bool, shake: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if with_lm_head else AutoModel
    backbone = auto.from_config(DECODERS[family])
    backbone.save_pretrained(tmp_path / "base")
    model = build(str(tmp_path / "base"), pooling="mean").train()
    for name, tensor in backbone.base_model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], tensor), name
    model(input_ids=IDS, labels=torch.ones(4)).loss.backward()
    assert model.score.weight.grad.abs().sum() > 0
    shake(model)
    model.save_pretrained(tmp_path / "full")
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        assert_same_model(load(str(tmp_path / "full")), model, input_ids=IDS)
        for left, right in ((0, 3), (3, 0), (2, 1)):  # learned positions, ALiBi and states must not change
            padded = {
                "input_ids": F.pad(IDS, (left, right)),
                "attention_mask": F.pad(IDS * 0 + 1, (left, right)),
            }
            assert (model(**padded).logits - wanted).abs().max() <= 2e-6, (left, right)


# GPT-2's projections are Conv1D; PEFT transposes the matrix with a warning.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("family", DECODERS)
def test_other_decoders_support_adapters(family: str, shake: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(DECODERS[family]).save_pretrained(tmp_path / "base")
    model = build(str(tmp_path / "base"))
    adapted = shake(get_peft_model(model, adapter_config(model, r=2)))
    (tmp_path / "adapter").mkdir()
    adapted.save_pretrained(tmp_path / "adapter")
    assert_same_model(load(str(tmp_path / "adapter")), adapted, input_ids=IDS)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(tiny_config: Any) -> None:
    grads = []
    for checkpointing in (False, True):
        model = _classifier(tiny_config).train()
        if checkpointing:
            model.gradient_checkpointing_enable(
                {"use_reentrant": False}
            )  # as in Trainer of transformers 5.23
        model(input_ids=IDS, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_linear_last_head_is_the_stock_layout(tiny_config: Any) -> None:
    """Servers that support only the stock class can load such a scorer."""
    from transformers import Qwen2ForSequenceClassification

    model = TitleScorer(TitleScorerConfig(text_config=tiny_config(vocab_size=128))).eval()
    text_config = tiny_config(vocab_size=128, num_labels=1, pad_token_id=0)
    stock = Qwen2ForSequenceClassification(text_config).eval()
    stock.load_state_dict(model.state_dict())
    with torch.no_grad():
        difference = stock(input_ids=IDS).logits - model(input_ids=IDS).logits
    assert difference.abs().max() <= 1e-6
    assert isinstance(model, TaskHeadModel)
