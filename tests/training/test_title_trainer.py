"""Tests of `TitleTrainer`: comparison with trl's trainer, every loss on separable data, and errors.

They use a random two-layer Qwen2 and real data sets of the package. No trainer is mocked.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel
from problem_assertions import raises_problem
from torch.nn import functional as F
from transformers import TrainerCallback, set_seed
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.losses.registry import GROUP_LOSSES, PAIR_LOSSES
from qwen_task_heads.models import adapter_config, build, load_tokenizer
from qwen_task_heads.tokenization.collators import TitleCollator, group_dataset, pair_dataset
from qwen_task_heads.tokenization.templates import Template, compile_template
from qwen_task_heads.training.title_arguments import TitleConfig
from qwen_task_heads.training.title_trainer import TitleTrainer

NOUNS = ("rest", "work", "bread", "music", "rain", "trains", "dogs", "money", "sleep", "books", "tea", "maps")


@pytest.fixture(scope="module")
def chat() -> Any:
    tokenizer = load_tokenizer("embedded")
    compile_template(tokenizer, template=Template(), model_type="qwen2", max_length=32)
    return tokenizer


@pytest.fixture(scope="module")
def fresh(bases) -> Any:
    """Give a model with the same weights at each call."""
    set_seed(5)
    first = build(bases["qwen2"], pooling="mean")
    return lambda: copy.deepcopy(first).train()


def pairs(count: int, **signals: Any) -> list[PairExample]:
    """Return separable pairs: the chosen title is positive, the rejected one is long."""
    return [
        PairExample(
            chosen=f"Ten good ways to {NOUNS[i % 12]} {i}",
            rejected=f"Several bad thoughts about the {NOUNS[(i * 5) % 12]} {i}",
            source=f"train.jsonl:{i + 1}",
            **{name: values[i % len(values)] for name, values in signals.items()},
        )
        for i in range(count)
    ]


def groups(count: int) -> list[GroupExample]:
    return [
        GroupExample(
            titles=(
                f"Ten good {NOUNS[i % 12]} {i}",
                f"A plain {NOUNS[i % 12]} {i}",
                f"The bad {NOUNS[i % 12]}",
            )[: 2 + i % 2],
            clicks=(9, 5, 1)[: 2 + i % 2],
            impressions=(100, 100, 100)[: 2 + i % 2],
            group=f"t{i}",
            sources=(f"arms.jsonl:{3 * i + 1}",),
        )
        for i in range(count)
    ]


def settings(folder: Any, **changes: Any) -> TitleConfig:
    known = {
        "per_device_train_batch_size": 4,
        "max_steps": 10,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "eval_strategy": "no",
        "seed": 1,
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "dataloader_pin_memory": False,
        "lr_scheduler_type": "constant",
    }
    return TitleConfig(str(folder), **(known | changes))


def trainer_for(
    model: Any,
    folder: Any,
    *,
    chat: Any,
    train: Any,
    dev: Any = None,
    loss: str = "bradley_terry",
    **more: Any,
) -> TitleTrainer:
    options = {name: more.pop(name) for name in ("loss_options", "callbacks", "peft_config") if name in more}
    dataset, _ = (group_dataset if loss in GROUP_LOSSES else pair_dataset)(
        train, tokenizer=chat, max_length=32
    )
    return TitleTrainer(
        model,
        args=settings(folder, **more),
        train_dataset=dataset,
        eval_dataset=None if dev is None else pair_dataset(dev, tokenizer=chat, max_length=32)[0],
        processing_class=chat,
        loss=loss,
        train_sources=[source_of(row) for row in train],
        eval_sources=[row.source for row in dev or []],
        **options,
    )


def source_of(row: Any) -> str:
    return row.sources[0] if isinstance(row, GroupExample) else row.source


def logged(trainer: Any, key: str = "loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize(("margins", "center"), [(None, None), ((0.5, 0.0, 1.5), None), (None, 0.05)])
def test_equals_trls_own_trainer_step_by_step(fresh, chat, tmp_path, margins, center):
    train = pairs(24, **({"margin": margins} if margins else {}))
    ours_model, stock_model = fresh(), fresh()
    loss = "bradley_terry_margin" if margins else "bradley_terry"
    more = {"center_rewards_coefficient": center, "max_steps": 10}
    ours = trainer_for(ours_model, tmp_path / "ours", chat=chat, train=train, loss=loss, **more)
    ours.train()
    stock = RewardTrainer(
        stock_model,
        args=settings(tmp_path / "stock", remove_unused_columns=False, **more),
        train_dataset=pair_dataset(train, tokenizer=chat, max_length=32)[0],
        processing_class=chat,
        data_collator=DataCollatorForPreference(pad_token_id=chat.pad_token_id),
    )
    stock.train()
    assert len(logged(ours)) == 10
    assert logged(ours) == pytest.approx(logged(stock), abs=1e-6)
    assert logged(ours, "grad_norm") == pytest.approx(logged(stock, "grad_norm"), rel=1e-5)
    before = fresh().state_dict()
    after = stock_model.state_dict()
    for name, tensor in ours_model.state_dict().items():
        torch.testing.assert_close(tensor, after[name], atol=1e-6, rtol=0, msg=name)
    assert any(not torch.equal(before[name], after[name]) for name in before)


SIGNALS = {
    "bradley_terry_margin": {"margin": (0.5, 1.0)},
    "soft": {"preference": (0.9, 0.8)},
    "rao_kupper": {"preference": (0.9, 0.9, 0.9, 0.9, 0.9, 0.5)},
    "davidson": {"preference": (0.9, 0.9, 0.9, 0.9, 0.9, 0.5)},
    "margin_ranking": {"margin": (1.0,)},
}


@pytest.mark.parametrize("loss", [*PAIR_LOSSES, *GROUP_LOSSES])
def test_every_loss_learns_separable_titles(fresh, chat, tmp_path, loss):
    signals = SIGNALS.get(loss, {})
    train = groups(24) if loss in GROUP_LOSSES else pairs(24, **signals)
    dev = pairs(9, **signals)
    trainer = trainer_for(
        fresh(),
        tmp_path,
        chat=chat,
        train=train,
        dev=dev,
        loss=loss,
        max_steps=24,
        learning_rate=3e-3,
        per_device_train_batch_size=6,
    )
    trainer.train()
    losses = logged(trainer)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4]), losses
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] >= 8 / 9
    assert math.isfinite(metrics["eval_loss"])


@pytest.mark.parametrize(
    ("loss", "signals", "formula"),
    [
        ("bradley_terry", {"weight": (0.5, 2.0, 1.0)}, lambda c, r, w: -w * F.logsigmoid(c - r)),
        ("bradley_terry_margin", {"margin": (0.3, 0.0, 2.0)}, lambda c, r, m: -F.logsigmoid(c - r - m)),
        ("margin_ranking", {"margin": (0.3, 0.0, 2.0)}, lambda c, r, m: (m - (c - r)).clamp(min=0)),
        (
            "soft",
            {"preference": (0.9, 0.6, 0.2)},
            lambda c, r, p: -p * F.logsigmoid(c - r) - (1 - p) * F.logsigmoid(r - c),
        ),
    ],
)
def test_signals_of_each_row_reach_the_loss(fresh, chat, tmp_path, loss, signals, formula):
    train = pairs(6, **signals)
    model = fresh()
    trainer = trainer_for(
        model,
        tmp_path,
        chat=chat,
        train=train,
        dev=train,
        loss=loss,
        max_steps=1,
        per_device_train_batch_size=6,
        learning_rate=0.0,
    )
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    with torch.no_grad():
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    column = torch.tensor(next(iter(signals.values())) * 2)
    wanted = formula(*scores.chunk(2), column).mean().item()
    assert logged(trainer)[0] == pytest.approx(wanted, abs=1e-6)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, abs=1e-6)
    without = formula(*scores.chunk(2), torch.zeros(6)).mean().item()
    assert abs(without - wanted) > 1e-3  # a missing column would give another value


def test_margin_ranking_equals_torchs_formula(fresh, chat, tmp_path):
    model = fresh()
    trainer = trainer_for(
        model,
        tmp_path,
        chat=chat,
        train=pairs(6),
        loss="margin_ranking",
        loss_options={"margin": 0.0},
        max_steps=1,
        per_device_train_batch_size=6,
        learning_rate=0.0,
    )
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    with torch.no_grad():
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    wanted = F.margin_ranking_loss(*scores.chunk(2), torch.ones(6), margin=0.0)
    assert logged(trainer)[0] == pytest.approx(wanted.item(), abs=1e-7)


def test_long_rows_are_truncated_and_not_dropped(fresh, chat, tmp_path):
    rows = pairs(10)
    rows[3] = PairExample(chosen="long " * 500, rejected="a short one", source="train.jsonl:4")
    seen: list[int] = []

    class Collator(TitleCollator):
        def __call__(self, examples):
            seen.extend(example["row"] for example in examples)
            batch = super().__call__(examples)
            assert batch["input_ids"].shape[1] <= 32
            return batch

    dataset, report = pair_dataset(rows, tokenizer=chat, max_length=32)
    assert report.cut_titles == 1
    trainer = TitleTrainer(
        fresh(),
        args=settings(tmp_path, max_steps=-1, num_train_epochs=1, max_length=8),
        train_dataset=dataset,
        processing_class=chat,
        data_collator=Collator(chat.pad_token_id),
    )
    trainer.train()
    assert sorted(seen) == list(range(10))


def test_dev_accuracy_is_exact_with_an_incomplete_last_batch(fresh, chat, tmp_path):
    trainer = trainer_for(
        fresh(), tmp_path, chat=chat, train=pairs(24), max_steps=24, learning_rate=3e-3, dev=pairs(9)
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] == 1.0
    # The ninth pair is reversed: 8 of 9 are right, and the mean over batches of 4 would be 2 of 3.
    dev = pairs(9)
    dev[8] = PairExample(chosen=dev[8].rejected, rejected=dev[8].chosen, source=dev[8].source)
    for batch in (1, 4, 9, 16):
        trainer.args.per_device_eval_batch_size = batch
        metrics = trainer.evaluate(pair_dataset(dev, tokenizer=chat, max_length=32)[0])
        assert metrics["eval_accuracy"] == pytest.approx(8 / 9, abs=1e-12), batch


def test_equal_scores_count_half(fresh, chat, tmp_path):
    model = fresh()
    torch.nn.init.zeros_(model.score.weight)
    trainer = trainer_for(model, tmp_path, chat=chat, train=pairs(4), dev=pairs(5))
    assert trainer.evaluate()["eval_accuracy"] == 0.5


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), pytest.param(1, 8, marks=pytest.mark.slow)])
def test_accumulated_batches_give_the_same_run(fresh, chat, tmp_path, batch, accumulation):
    runs = []
    for size, steps in ((8, 1), (batch, accumulation)):
        trainer = trainer_for(
            fresh(),
            tmp_path / f"{size}",
            chat=chat,
            train=pairs(16, weight=(0.5, 1.5, 1.0)),
            max_steps=-1,
            num_train_epochs=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        trainer.train()
        runs.append(trainer)
    whole, parts = runs
    assert len(logged(whole)) >= 4
    for key in ("loss", "grad_norm", "accuracy", "margin"):
        assert logged(parts, key) == pytest.approx(logged(whole, key), abs=1e-5), key


def test_train_accuracy_counts_every_row_of_an_epochs_last_update(fresh, chat, tmp_path):
    """Accelerate's `gather_for_metrics` would truncate each accumulated batch to the size of the last one."""
    trainer = trainer_for(
        fresh(),
        tmp_path,
        chat=chat,
        train=pairs(9),
        max_steps=-1,
        num_train_epochs=1,
        learning_rate=0.0,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
    )
    trainer.train()
    trainer.args.per_device_eval_batch_size = 9
    metrics = trainer.evaluate(trainer.train_dataset)
    assert logged(trainer, "margin")[0] == pytest.approx(metrics["eval_margin"], abs=1e-5)


@pytest.mark.parametrize("loss", ["bradley_terry", "plackett_luce"])
def test_batches_of_similar_cost_contain_every_row_once(fresh, chat, tmp_path, loss):
    """Batches of transformers' sampler differ in size, and an update is the mean over all of its rows."""
    rows = (
        groups(16)
        if loss in GROUP_LOSSES
        else [
            PairExample(chosen="good " * (1 + n % 7), rejected="bad " * (1 + 3 * (n % 5))) for n in range(16)
        ]
    )
    data, _ = (group_dataset if loss in GROUP_LOSSES else pair_dataset)(rows, tokenizer=chat, max_length=32)
    seen: list[list[int]] = []

    class Watching(TitleCollator):
        def __call__(self, examples: Any) -> Any:
            seen.append([example["row"] for example in examples])
            return super().__call__(examples)

    changes = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 2, "learning_rate": 0.0}
    trainer = TitleTrainer(
        fresh(),
        args=settings(tmp_path, train_sampling_strategy="batch_rebalance", **changes),
        loss=loss,
        train_dataset=data,
        processing_class=chat,
        data_collator=Watching(chat.pad_token_id),
    )
    trainer.train()
    assert sorted(row for batch in seen for row in batch) == list(range(16))
    assert len({len(batch) for batch in seen}) > 1 or loss in GROUP_LOSSES
    whole = TitleTrainer(
        fresh(),
        args=settings(tmp_path, per_device_train_batch_size=16, max_steps=1, learning_rate=0.0),
        loss=loss,
        train_dataset=data,
        processing_class=chat,
    )
    whole.train()
    # The mean of two updates of eight rows each equals that of all sixteen.
    assert sum(logged(trainer)) / 2 == pytest.approx(logged(whole)[0], abs=1e-5)


@pytest.mark.parametrize("loss", ["bradley_terry_margin", "soft", "rao_kupper", "davidson"])
def test_a_loss_without_its_column_raises_an_error_before_training(fresh, chat, tmp_path, loss):
    with raises_problem("column-missing", "--loss, training set", match=loss):
        trainer_for(fresh(), tmp_path, chat=chat, train=pairs(4), loss=loss)
    # The loss is also computed on dev: the error comes before training, not after the first epoch.
    rows = pairs(4, **SIGNALS[loss])
    with raises_problem("column-missing", "--loss, dev set", match=loss):
        trainer_for(fresh(), tmp_path, chat=chat, train=rows, dev=pairs(4), loss=loss)


def test_an_option_that_the_loss_does_not_take_raises_an_error_before_training(fresh, chat, tmp_path):
    for loss, options in (("bradley_terry", {"margin": 0.1}), ("plackett_luce", {"nu": 0.5})):
        train = groups(4) if loss in GROUP_LOSSES else pairs(4)
        with raises_problem("option-conflict", f"--loss_{next(iter(options))}", match=loss):
            trainer_for(fresh(), tmp_path, chat=chat, train=train, loss=loss, loss_options=options)


def test_a_scalar_margin_applies_to_every_row(fresh, chat, tmp_path):
    first = []
    for train, options in ((pairs(4), {"margin": 0.7}), (pairs(4, margin=(0.7,)), {})):
        trainer = trainer_for(
            fresh(),
            tmp_path,
            chat=chat,
            train=train,
            loss="bradley_terry_margin",
            loss_options=options,
            max_steps=1,
        )
        trainer.train()
        first += logged(trainer)
    assert first[0] == pytest.approx(first[1], abs=1e-7)


@pytest.mark.parametrize("loss", ["bradley_terry_margin", "margin_ranking"])
def test_a_margin_as_option_and_as_column_raises_an_error(fresh, chat, tmp_path, loss):
    rows, plain = pairs(4, margin=(0.7,)), pairs(4)
    for train, dev, where in ((rows, None, "training set"), (plain, rows, "dev set")):
        with raises_problem("option-conflict", "--loss_margin", match=f"0.1, and a column .* in the {where}"):
            trainer_for(
                fresh(), tmp_path, chat=chat, train=train, dev=dev, loss=loss, loss_options={"margin": 0.1}
            )


def test_centring_with_a_group_loss_raises_an_error(fresh, chat, tmp_path):
    with raises_problem("option-conflict", "--center_rewards_coefficient", match="plackett_luce"):
        trainer_for(
            fresh(),
            tmp_path,
            chat=chat,
            train=groups(4),
            loss="plackett_luce",
            center_rewards_coefficient=0.01,
        )


def test_groups_without_order_give_no_nan_metric(fresh, chat, tmp_path):
    rows = groups(6)
    rows[:2] = [replace(group, clicks=(5,) * len(group.titles)) for group in rows[:2]]
    trainer = trainer_for(
        fresh(),
        tmp_path,
        chat=chat,
        train=rows,
        loss="all_pairs",
        max_steps=3,
        logging_steps=3,
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
    )
    trainer.train()
    for name in ("accuracy", "margin"):
        (value,) = logged(trainer, name)
        assert math.isfinite(value), name
    # All three steps are logged separately: a step without ordered pairs has no accuracy.
    trainer = trainer_for(
        fresh(),
        tmp_path / "b",
        chat=chat,
        train=rows,
        loss="all_pairs",
        max_steps=2,
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
    )
    trainer.train()
    assert len(logged(trainer)) == 2
    assert len(logged(trainer, "accuracy")) == 1


def test_a_title_without_impressions_raises_an_error(chat):
    rows = [replace(group, impressions=(0, *group.impressions[1:])) for group in groups(2)]
    with pytest.raises(TaskHeadsError, match="0 impressions") as caught:
        group_dataset(rows, tokenizer=chat, max_length=32)
    assert len(caught.value.problems) == 2


class Weights(TrainerCallback):
    """Callback that stores the weights after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize("step", [1, 7, 20])
@pytest.mark.parametrize("column", ["margin", "weight"])
def test_a_nan_stops_the_run_at_its_step_and_names_the_row(fresh, chat, tmp_path, step, column):
    rows = pairs(42, **{column: (0.5,)})
    guilty = (step - 1) * 2 + 1  # the second row of the step's batch of two
    broken = PairExample(**{**vars(rows[guilty]), column: math.nan})
    rows[guilty] = broken
    weights, model = Weights(), fresh()
    loss = "bradley_terry_margin" if column == "margin" else "bradley_terry"
    trainer = trainer_for(
        model,
        tmp_path,
        chat=chat,
        train=rows,
        loss=loss,
        max_steps=21,
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
        callbacks=[weights],
    )
    with pytest.raises(TaskHeadsError) as caught:
        trainer.train()
    (problem,) = caught.value.problems
    assert problem.where == f"train.jsonl:{guilty + 1}"
    assert f"at step {step}," in problem.problem
    assert len(weights.steps) == step - 1
    unmoved = weights.steps[-1] if weights.steps else fresh().state_dict()
    assert all(torch.equal(tensor, unmoved[name]) for name, tensor in model.state_dict().items())


def test_a_nan_in_dev_names_the_row_of_dev(fresh, chat, tmp_path):
    dev = pairs(5, margin=(0.5,))
    dev[3] = PairExample(**{**vars(dev[3]), "margin": math.inf, "source": "dev.csv:4"})
    trainer = trainer_for(
        fresh(), tmp_path, chat=chat, train=pairs(4, margin=(0.5,)), dev=dev, loss="bradley_terry_margin"
    )
    with pytest.raises(TaskHeadsError, match=r"^dev\.csv:4: "):
        trainer.evaluate()


def test_a_nan_gain_of_a_group_names_its_row(fresh, chat, tmp_path):
    dataset, _ = group_dataset(groups(4), tokenizer=chat, max_length=32)
    gains = dataset["gains"]
    rows = [list(row) for row in gains]
    rows[2][0] = math.nan
    dataset = dataset.remove_columns("gains").add_column("gains", rows)
    trainer = TitleTrainer(
        fresh(),
        args=settings(tmp_path),
        train_dataset=dataset,
        processing_class=chat,
        loss="all_pairs",
        train_sources=[group.sources[0] for group in groups(4)],
    )
    with pytest.raises(TaskHeadsError, match=r"^arms\.jsonl:7: "):
        trainer.train()


@pytest.mark.parametrize("head_only", [False, True])
def test_an_adapter_run_trains_the_head_and_not_the_base(fresh, chat, tmp_path, head_only):
    model = fresh()
    config = adapter_config(model, r=2, head_only=head_only)
    trainer = trainer_for(model, tmp_path, chat=chat, train=pairs(8), peft_config=config, max_steps=3)
    assert isinstance(trainer.model, PeftModel)
    names = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {
        name
        for name, parameter in trainer.model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert any("score.modules_to_save" in name for name in moved)
    assert moved <= names
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    assert any("lora_" in name for name in names) != head_only


def test_no_stock_card_is_written(fresh, chat, tmp_path):
    trainer = trainer_for(
        fresh(), tmp_path, chat=chat, train=pairs(4), max_steps=1, save_strategy="steps", save_steps=1
    )
    trainer.train()
    assert (tmp_path / "checkpoint-1/model.safetensors").exists()
    assert not list(tmp_path.rglob("README.md"))


def test_the_collator_keeps_the_order_and_pads_right(chat):
    rows = pairs(5, margin=(0.1, 0.2), weight=(2.0, 1.0))
    dataset, _ = pair_dataset(rows, tokenizer=chat, max_length=32)
    assert set(dataset.column_names) == {"chosen_ids", "rejected_ids", "row", "length", "margin", "weight"}
    batch = TitleCollator(chat.pad_token_id)([dataset[i] for i in (4, 0, 2)])
    texts = [rows[i].chosen for i in (4, 0, 2)] + [rows[i].rejected for i in (4, 0, 2)]
    for ids, mask, text in zip(batch["input_ids"], batch["attention_mask"], texts, strict=True):
        length = int(mask.sum())
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
        assert ids[:length].tolist() == chat(text)["input_ids"]
        assert set(ids[length:].tolist()) <= {chat.pad_token_id}
    assert batch["row"].tolist() == [4, 0, 2]
    assert batch["margin"].tolist() == pytest.approx([0.1, 0.1, 0.1])
    assert batch["weight"].tolist() == [2.0, 2.0, 2.0]


def test_signals_that_only_some_rows_have_are_dropped(chat):
    rows = [*pairs(2, margin=(0.5,)), *pairs(1)]
    dataset, _ = pair_dataset(rows, tokenizer=chat, max_length=32)
    assert set(dataset.column_names) == {"chosen_ids", "rejected_ids", "row", "length"}


def test_the_collator_does_not_split_groups(chat):
    dataset, report = group_dataset(groups(5), tokenizer=chat, max_length=32)
    assert report.pairs == 5
    batch = TitleCollator(chat.pad_token_id)([dataset[i] for i in (3, 0)])
    assert batch["sizes"].tolist() == [3, 2]
    assert batch["gains"].tolist() == pytest.approx([0.09, 0.05, 0.01, 0.09, 0.05])
    assert batch["row"].tolist() == [3, 0]
    titles = [*groups(5)[3].titles, *groups(5)[0].titles]
    for ids, mask, title in zip(batch["input_ids"], batch["attention_mask"], titles, strict=True):
        assert ids[mask.bool()].tolist() == chat(title)["input_ids"]


@pytest.mark.parametrize("batch", [2, 4, 9])
def test_dev_loss_is_the_mean_over_all_pairs(fresh, chat, tmp_path, batch):
    """trl's loss is the mean over the first half, because it takes the 2B rows of a batch for its size."""
    dev = pairs(9)
    model = fresh()
    trainer = trainer_for(
        model, tmp_path, chat=chat, train=pairs(4), dev=dev, per_device_eval_batch_size=batch
    )
    everything = trainer.data_collator(list(trainer.eval_dataset))
    with torch.no_grad():
        scores = model(**{name: everything[name] for name in ("input_ids", "attention_mask")}).logits[:, 0]
    chosen, rejected = scores.chunk(2)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        -F.logsigmoid(chosen - rejected).mean().item(), abs=1e-6
    )
