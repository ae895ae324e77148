"""Tests of heads on features: every loss, the returned state, and the weights of the frozen trainer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import PeftModel
from problem_assertions import raises_problem
from transformers import TrainingArguments

from qwen_task_heads import adapter_config, build
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.hubcode.encoding_task_heads import pad_rows
from qwen_task_heads.losses.registry import PAIR_LOSSES, TEXT_LOSSES, resolve_text_loss
from qwen_task_heads.tokenization.collators import pair_dataset, text_dataset
from qwen_task_heads.training.classifier_trainer import ClassifierTrainer
from qwen_task_heads.training.feature_rows import PairRows, TextRows, logits_of
from qwen_task_heads.training.features import extract_features
from qwen_task_heads.training.frozen_heads import HeadTraining, fit_head, fresh_head, head_config

SINGLE, MULTI, SCORE, ORDER = TEXT_LOSSES
LABELS = {SINGLE: 3, MULTI: 3, SCORE: 1, ORDER: 3}
HEADS = {"linear": {}, "mlp": {"head": "mlp", "head_sizes": [16], "head_dropout": 0.1}}
LOSSES = [(problem, name) for problem, names in TEXT_LOSSES.items() for name in names]
WORDS = ("good", "plain", "bad")
QUICK = HeadTraining(epochs=4, batch_size=8, learning_rate=2e-2)


def texts(count: int, problem: str = SINGLE, **changes: Any) -> list[TextExample]:
    """Return texts whose adjective is their label."""
    targets: dict[str, Any] = {
        SINGLE: lambda i: i % 3,
        MULTI: lambda i: tuple(sorted({i % 3, (i // 3) % 3})),
        SCORE: lambda i: (0.5 * (i % 3),),
        ORDER: lambda i: i % 3,
    }
    return [
        TextExample(
            text=f"Ten {WORDS[i % 3]} thoughts{' again' * (i % 4)} and {WORDS[(i // 3) % 3]} ones, no {i}",
            target=targets[problem](i),
            **{name: values[i % len(values)] for name, values in changes.items()},
        )
        for i in range(count)
    ]


def prepared(base: str, tokenizer: Any, problem: str, loss: str | None, count: int = 36, **head: Any) -> Any:
    """Return a model, its rows of features, and the token ids."""
    changes = {name: head.pop(name) for name in ("weight", "soft") if name in head}
    torch.manual_seed(2)
    model = build(base, task="pooled_classifier", num_labels=LABELS[problem], problem_type=problem, **head)
    table, _ = text_dataset(
        texts(count, problem, **changes), tokenizer=tokenizer, config=model.config, num_labels=LABELS[problem]
    )
    settled = resolve_text_loss(
        loss,
        problem_type=problem,
        num_labels=LABELS[problem],
        class_counts=[12] * LABELS[problem],
        rows=count,
    )
    ids = list(table["input_ids"])
    [features] = extract_features(model, ids, poolings=[model.config.pooling]).values()
    return model.eval(), TextRows.of_table(features, table, loss=settled, problem_type=problem), table, ids


@pytest.mark.parametrize(
    ("problem", "loss", "head"),
    [
        # Every loss with one head; the other heads are slow tests.
        pytest.param(*case, head, marks=[] if place % len(HEADS) == other else pytest.mark.slow)
        for place, case in enumerate(LOSSES)
        for other, head in enumerate(HEADS)
    ],
)
def test_every_loss_learns_and_the_model_loads_its_head(bases, tokenizer, problem, loss, head) -> None:
    model, rows, _, ids = prepared(bases["qwen2"], tokenizer, problem, loss, pooling="mean", **HEADS[head])
    fitted = fit_head(fresh_head(model, model.config), rows, dev=rows, settings=QUICK, seed=1)
    losses = [entry["loss"] for entry in fitted.history if "loss" in entry]
    assert losses[-1] < losses[0]
    model.score.load_state_dict(fitted.state)
    with torch.no_grad():
        wanted = model(**pad_rows(ids, pad_id=0)).logits
    assert float((logits_of(model.score, rows.features) - wanted).abs().max()) <= 1e-6
    key, _ = rows.best
    assert rows.metrics(model.score)[key] == pytest.approx(fitted.value, abs=1e-6)
    assert fitted.value == max(entry[key] for entry in fitted.history if key in entry)


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_every_pair_loss_learns_titles(bases, tokenizer, loss) -> None:
    torch.manual_seed(2)
    model = build(bases["qwen3"], pooling="mean").eval()
    signals = {"preference": 0.9, "margin": 0.1}
    pairs = [
        PairExample(prompt="", chosen=f"A good title {i}", rejected=f"A bad one {i}", weight=1 + i % 2)
        for i in range(24)
    ]
    table, _ = pair_dataset(pairs, tokenizer=tokenizer, max_length=64)
    for name, value in signals.items():
        if name in PAIR_LOSSES[loss].uses:
            table = table.add_column(name, [value] * len(table))
    ids = [*table["chosen_ids"], *table["rejected_ids"]]
    [features] = extract_features(model, ids, poolings=["mean"]).values()
    options = {"nu": 0.3} if PAIR_LOSSES[loss].takes("nu") else {}
    rows = PairRows.of_table(features, table, loss=PAIR_LOSSES[loss], options=options)
    head = fresh_head(model, model.config)
    before = rows.metrics(head)["eval_loss"]
    fitted = fit_head(head, rows, dev=rows, settings=QUICK)
    assert rows.metrics(head)["eval_loss"] < before
    assert fitted.value == 1.0
    model.score.load_state_dict(fitted.state)
    with torch.no_grad():
        scores = model(**pad_rows(ids, pad_id=0)).logits.squeeze(-1)
    assert bool((scores[:24] > scores[24:]).all())


@pytest.mark.parametrize("kind", ["plain", "weighted soft mlp"])
def test_the_result_equals_that_of_the_frozen_trainer(bases, tokenizer, tmp_path, kind) -> None:
    """The same rows in the same order give the same head from features and from tokens."""
    head = {} if kind == "plain" else {"head": "mlp", "head_sizes": [16]}
    more = {} if kind == "plain" else {"weight": [1.0, 0.5], "soft": [(0.8, 0.1, 0.1), None]}
    model, rows, table, _ = prepared(bases["qwen2"], tokenizer, SINGLE, None, 20, **head, **more)
    state = {name: tensor.clone() for name, tensor in model.score.state_dict().items()}
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=3,
        learning_rate=5e-3,
        use_cpu=True,
        warmup_steps=2,
        weight_decay=0.1,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        bf16=False,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
    )
    trainer = ClassifierTrainer(
        model,
        args=args,
        train_dataset=table,
        processing_class=tokenizer,
        peft_config=adapter_config(model, head_only=True),
    )
    trainer.train()
    assert isinstance(trainer.model, PeftModel)
    wanted = trainer.model.get_base_model().score.modules_to_save["default"].state_dict()
    own = fresh_head(model, model.config)
    own.load_state_dict(state)
    settings = HeadTraining(
        epochs=3, batch_size=8, learning_rate=5e-3, warmup=2, weight_decay=0.1, shuffle=False
    )
    found = fit_head(own, rows, settings=settings).state
    for name, tensor in wanted.items():
        assert not torch.equal(tensor, state[name])
        assert float((tensor - found[name]).abs().max()) <= 1e-5


def test_a_fresh_head_is_initialised_like_that_of_the_model(bases) -> None:
    model = build(bases["llama"], task="pooled_classifier", num_labels=5, problem_type="ordinal")
    torch.manual_seed(4)
    head = fresh_head(model, model.config)
    assert head.log_gaps.tolist() == pytest.approx([math.log(2)] * 3)
    # initializer_range of the tiny backbones is 0.11
    assert 0.05 < float(head.latent.weight.detach().std()) < 0.2


def test_equal_seeds_give_equal_heads_and_other_seeds_do_not(bases, tokenizer) -> None:
    model, rows, _, _ = prepared(bases["qwen2"], tokenizer, SINGLE, None, **HEADS["mlp"])

    def fit(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        return fit_head(fresh_head(model, model.config), rows, settings=QUICK, seed=seed).state["0.weight"]

    assert torch.equal(fit(1), fit(1))
    assert not torch.equal(fit(1), fit(2))
    before = torch.random.get_rng_state()
    fit_head(model.score, rows, settings=QUICK)
    assert torch.equal(before, torch.random.get_rng_state())


def test_features_in_bf16_are_trained_in_fp32(bases, tokenizer) -> None:
    model, rows, table, _ = prepared(bases["qwen2"], tokenizer, SINGLE, None)
    half = TextRows.of_table(rows.features.bfloat16(), table, loss=rows.loss, problem_type=SINGLE)
    fitted = fit_head(fresh_head(model, model.config), half, dev=half, settings=QUICK)
    assert fitted.state["weight"].dtype == torch.float32
    assert fitted.value > 0.5


def test_rows_that_cannot_be_trained_raise_errors(bases, tokenizer) -> None:
    model, rows, table, _ = prepared(bases["qwen2"], tokenizer, SINGLE, None)
    broken = TextRows.of_table(rows.features * math.nan, table, loss=rows.loss, problem_type=SINGLE)
    with raises_problem("number-not-finite", "loss", match="nan in epoch 1"):
        fit_head(model.score, broken)
    empty = TextRows(rows.features[:0], rows.labels[:0], rows.loss, SINGLE)
    with raises_problem("file-empty", "rows"):
        fit_head(model.score, empty)
    with pytest.raises(ValueError, match="head_sizes"):
        head_config(model.config, head_sizes=[0])


def test_head_config_replaces_pooling_and_head(bases) -> None:
    config = build(bases["qwen2"], task="pooled_classifier", num_labels=2).config
    other = head_config(config, pooling="max", head_sizes=[8, 4])
    assert (other.pooling, other.head, other.head_sizes) == ("max", "mlp", [8, 4])
    assert head_config(other, head_sizes=[]).head == "linear"
    assert config.pooling == "last"
