"""Tests of `ClassifierTrainer`: comparison with stock, every problem type, resumed runs and errors.

They use a random two-layer Qwen2 and real data sets of the package. No trainer is mocked.
"""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any

import launching
import numpy as np
import pytest
import torch
from peft import PeftModel
from problem_assertions import raises_problem
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.losses.registry import TEXT_LOSSES
from qwen_task_heads.models import adapter_config, build, load_tokenizer
from qwen_task_heads.tokenization.collators import text_dataset
from qwen_task_heads.training.checkpoints import (
    VerifiedCheckpointCallback,
    newest_verified,
    open_output,
)
from qwen_task_heads.training.checkpoints import train as train_or_resume
from qwen_task_heads.training.classifier_trainer import ClassifierTrainer
from qwen_task_heads.training.run_checks import resume_hazards

SINGLE, MULTI, SCORE, ORDER = TEXT_LOSSES
NOUNS = ("rest", "work", "bread", "music", "rain", "trains", "dogs", "money", "sleep", "books", "tea", "maps")
WORDS = ("good", "plain", "bad")
LABELS = {SINGLE: 3, MULTI: 3, SCORE: 1, ORDER: 3}


@pytest.fixture(scope="module")
def words() -> Any:
    return load_tokenizer("embedded")


@pytest.fixture(scope="module")
def fresh(bases) -> Any:
    """Give a model of a problem type with the same weights at each call."""
    built: dict[Any, Any] = {}

    def give(problem: str = SINGLE, **head: Any) -> Any:
        key = (problem, *sorted(head.items()))
        if key not in built:
            set_seed(5)
            options = {"num_labels": LABELS[problem], "problem_type": problem, **head}
            built[key] = build(bases["qwen2"], task="pooled_classifier", **options)
        return copy.deepcopy(built[key]).train()

    return give


def texts(count: int, problem: str = SINGLE, **changes: Any) -> list[TextExample]:
    """Return texts whose adjective is their label."""
    targets = {
        SINGLE: lambda i: i % 3,
        MULTI: lambda i: tuple(sorted({i % 3, (i // 3) % 3})),
        SCORE: lambda i: (0.5 * (i % 3),),
        ORDER: lambda i: i % 3,
    }
    return [
        TextExample(
            text=f"Ten {WORDS[i % 3]} thoughts about {'the ' * (i % 4)}{NOUNS[(i * 5) % 12]}"
            + (f" and {WORDS[(i // 3) % 3]} ones" if problem == MULTI else ""),
            target=targets[problem](i),
            source=f"train.jsonl:{i + 1}",
            **{name: values[i % len(values)] for name, values in changes.items()},
        )
        for i in range(count)
    ]


def settings(folder: Any, **changes: Any) -> TrainingArguments:
    known = {
        "per_device_train_batch_size": 4,
        "max_steps": 10,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "lr_scheduler_type": "constant",
        "bf16": False,
    }
    return TrainingArguments(str(folder), **(known | changes))


OWN = (
    "loss",
    "loss_options",
    "class_counts",
    "callbacks",
    "peft_config",
    "compute_metrics",
    "problem_type",
)


def trainer_for(
    model: Any, folder: Any, *, words: Any, train: Any, dev: Any = None, **more: Any
) -> ClassifierTrainer:
    options = {name: more.pop(name) for name in OWN if name in more}

    def table(rows: Any) -> Any:
        return text_dataset(rows, tokenizer=words, config=model.config, num_labels=model.config.num_labels)[0]

    return ClassifierTrainer(
        model,
        args=settings(folder, **more),
        train_dataset=table(train),
        eval_dataset=None if dev is None else table(dev),
        processing_class=words,
        train_sources=[row.source for row in train],
        eval_sources=[row.source for row in dev or []],
        **options,
    )


def logged(trainer: Any, key: str = "loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# --- comparison with stock ---


@pytest.mark.parametrize(
    ("problem", "smoothing"),
    [(SINGLE, 0.1), (MULTI, 0.0), (SCORE, 0.0), pytest.param(SINGLE, 0.0, marks=pytest.mark.slow)],
)
def test_equals_the_stock_classifier_under_the_stock_trainer(
    fresh, words, bases, tmp_path, problem, smoothing
):
    more = {"max_steps": 20, "label_smoothing_factor": smoothing}
    model = fresh(problem)
    stock = AutoModelForSequenceClassification.from_pretrained(
        bases["qwen2"],
        num_labels=LABELS[problem],
        problem_type=problem,
        pad_token_id=words.pad_token_id,
        dtype=torch.float32,
    )
    stock.score.load_state_dict(model.score.state_dict())
    ours = trainer_for(model, tmp_path / "ours", words=words, train=texts(24, problem), **more)
    ours.train()
    theirs = Trainer(
        stock,
        settings(tmp_path / "stock", **more),
        train_dataset=ours.train_dataset,
        data_collator=DataCollatorWithPadding(words),
    )
    theirs.train()
    assert len(logged(ours)) == 20
    assert logged(ours) == pytest.approx(logged(theirs), abs=1e-5)
    assert logged(ours, "grad_norm") == pytest.approx(logged(theirs, "grad_norm"), rel=1e-4, abs=1e-5)
    for name, tensor in stock.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-5, rtol=0, msg=name)


# --- every problem type ---


def metric(problem: str, logits: np.ndarray, targets: np.ndarray) -> float:
    if problem == SCORE:
        return float(np.corrcoef(logits[:, 0], targets[:, 0])[0, 1])
    if problem == MULTI:
        return float(((logits > 0) == (targets > 0.5)).mean())
    return float((logits.argmax(1) == targets).mean())


KINDS = ("full", "lora", "dora", "head_only")
QUICK = ((SINGLE, "full"), (SINGLE, "head_only"), (MULTI, "lora"), (SCORE, "dora"), (ORDER, "full"))


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        pytest.param(problem, kind, marks=[] if (problem, kind) in QUICK else pytest.mark.slow)
        for problem in LABELS
        for kind in KINDS
    ],
)
def test_every_problem_type_learns(fresh, words, tmp_path, problem, kind):
    head = {"pooling": "mean", **({"head": "mlp", "head_sizes": (32,)} if kind == "head_only" else {})}
    model = fresh(problem, **head)
    adapter = None
    if kind != "full":
        adapter = adapter_config(model, r=4, dora=kind == "dora", head_only=kind == "head_only")
    train = texts(24, problem)
    trainer = trainer_for(
        model,
        tmp_path,
        words=words,
        train=train,
        dev=texts(9, problem),
        peft_config=adapter,
        max_steps=60 if problem == ORDER else 30,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        compute_metrics=lambda done: {"metric": metric(problem, done.predictions, done.label_ids)},
    )
    trainer.train()
    losses = logged(trainer)
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4]), losses
    assert trainer.evaluate()["eval_metric"] > (0.6 if problem == ORDER else 0.75)  # chance: a third
    assert isinstance(trainer.model, PeftModel) == (kind != "full")


@pytest.mark.parametrize(
    ("problem", "loss", "options"),
    [
        (SINGLE, "cross_entropy", {"class_weights": "balanced", "label_smoothing": 0.1}),
        (SINGLE, "focal", {"focal_gamma": 1.5}),
        pytest.param(SINGLE, "logit_adjusted", {}, marks=pytest.mark.slow),
        (MULTI, "bce", {"pos_weight": "balanced"}),
        pytest.param(MULTI, "focal", {}, marks=pytest.mark.slow),
        pytest.param(SCORE, "mae", {}, marks=pytest.mark.slow),
        (SCORE, "huber", {}),
        (ORDER, "cumulative_link", {"class_weights": [1.0, 2.0, 1.0]}),
    ],
)
def test_every_loss_learns(fresh, words, tmp_path, problem, loss, options):
    trainer = trainer_for(
        fresh(problem, pooling="mean"),
        tmp_path,
        words=words,
        train=texts(25, problem),
        loss=loss,
        loss_options=options,
        max_steps=20,
        learning_rate=3e-3,
        per_device_train_batch_size=8,
    )
    trainer.train()
    assert sum(logged(trainer)[-4:]) < 0.8 * sum(logged(trainer)[:4])


# --- inputs of the loss ---


def test_weights_and_soft_labels_reach_the_loss(fresh, words, tmp_path):
    soft = ((0.6, 0.3, 0.1), None)
    rows = texts(6, weight=(0.5, 2.0, 1.0), soft=soft)
    model = fresh()
    trainer = trainer_for(
        model,
        tmp_path,
        words=words,
        train=rows,
        dev=rows,
        max_steps=1,
        per_device_train_batch_size=6,
        learning_rate=0.0,
        loss_options={"class_weights": [1.0, 2.0, 3.0]},
    )
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    target = torch.tensor([row.soft or F.one_hot(torch.tensor(row.target), 3).tolist() for row in rows])
    # Two rows of each label: the weights 1, 2, 3 have the mean 2 over the training set.
    losses = F.cross_entropy(logits, target, weight=torch.tensor([0.5, 1.0, 1.5]), reduction="none")
    wanted = (losses * torch.tensor([0.5, 2.0, 1.0] * 2)).mean().item()
    assert logged(trainer)[0] == pytest.approx(wanted, abs=1e-6)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, abs=1e-6)


def test_label_smoothing_of_the_arguments_is_used_and_kept(fresh, words, tmp_path):
    trainer = trainer_for(
        fresh(MULTI), tmp_path, words=words, train=texts(6, MULTI), label_smoothing_factor=0.2
    )
    assert trainer.loss.parameters == {"label_smoothing": 0.2}
    assert trainer.args.label_smoothing_factor == 0.2  # the record of the run contains it
    assert trainer.label_smoother is None


def test_soft_labels_that_the_loss_does_not_use_raise_an_error(fresh, words, tmp_path):
    rows = texts(3, soft=((0.2, 0.3, 0.5),))
    with raises_problem("option-unsupported", "--loss", match="'focal', and soft labels in the eval set"):
        trainer_for(fresh(), tmp_path, words=words, train=texts(3), dev=rows, loss="focal")


def test_labels_that_torch_would_ignore_raise_an_error_with_their_rows(fresh, words, tmp_path):
    trainer = trainer_for(fresh(), tmp_path, words=words, train=texts(4))
    table = trainer.train_dataset.remove_columns("labels").add_column("labels", [0, -100, 3, 1])
    with raises_problem("label-unknown", match="-100") as problems:
        ClassifierTrainer(
            fresh(),
            args=settings(tmp_path),
            train_dataset=table,
            processing_class=words,
            train_sources=["a.csv:1", "a.csv:2", "a.csv:3", "a.csv:4"],
        )
    assert [problem.where for problem in problems] == ["a.csv:2", "a.csv:3"]


def test_another_problem_type_than_that_of_the_model_raises_an_error(fresh, words, tmp_path):
    with raises_problem("model-type", "problem_type", match=f"'{ORDER}'.*'{SINGLE}'"):
        trainer_for(fresh(), tmp_path, words=words, train=texts(3), problem_type=ORDER)


def test_a_second_adapter_raises_an_error(fresh, words, tmp_path):
    from peft import get_peft_model

    model = fresh()
    adapter = adapter_config(model, r=2)
    adapted = get_peft_model(model, adapter)
    assert trainer_for(adapted, tmp_path, words=words, train=texts(3)).model is adapted
    with raises_problem("option-unsupported", "peft_config"):
        trainer_for(adapted, tmp_path, words=words, train=texts(3), peft_config=adapter)


# --- accumulation and checkpointing ---


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), pytest.param(1, 8, marks=pytest.mark.slow)])
def test_accumulated_batches_give_the_same_run(fresh, words, tmp_path, batch, accumulation):
    """Nineteen rows: the last update of an epoch has three, in batches of 3, of 3 + 0 and of 1 + 1 + 1."""
    runs = []
    for size, steps in ((8, 1), (batch, accumulation)):
        trainer = trainer_for(
            fresh(),
            tmp_path / f"{size}",
            words=words,
            train=texts(19, weight=(0.5, 1.5, 1.0)),
            max_steps=21,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            loss_options={"class_weights": [1.0, 3.0, 2.0]},
        )
        trainer.train()
        runs.append(trainer)
    whole, parts = runs
    assert len(logged(whole)) == len(logged(parts)) == 21
    for key in ("loss", "grad_norm"):
        assert logged(parts, key) == pytest.approx(logged(whole, key), abs=1e-5), key


def test_an_update_is_the_mean_of_its_rows_and_not_of_its_batches(fresh, words, tmp_path):
    """Six rows as 4 + 2: the parent would give the two rows of the last batch twice the weight."""
    runs = [
        trainer_for(
            fresh(),
            tmp_path / str(size),
            words=words,
            train=texts(6, weight=(0.2, 3.0)),
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        for size, steps in ((6, 1), (4, 2))
    ]
    for trainer in runs:
        trainer.train()
    for key in ("loss", "grad_norm"):
        assert logged(runs[1], key) == pytest.approx(logged(runs[0], key), abs=1e-5), key


@pytest.mark.parametrize(
    ("kind", "reentrant"),
    [
        *(("lora", True), ("full", False)),
        *(pytest.param(kind, False, marks=pytest.mark.slow) for kind in ("lora", "head_only")),
    ],
)
def test_checkpointing_does_not_change_the_run(fresh, words, tmp_path, kind, reentrant):
    """With reentrant checkpointing, adapters get gradients only if the frozen embeddings require them."""
    runs = []
    for on in (False, True):
        model = fresh()
        adapter = None if kind == "full" else adapter_config(model, r=4, head_only=kind == "head_only")
        trainer = trainer_for(
            model,
            tmp_path / str(on),
            words=words,
            train=texts(24),
            max_steps=20,
            peft_config=adapter,
            activation_checkpointing=on,
            activation_checkpointing_kwargs={"use_reentrant": reentrant},
        )
        trainer.train()
        runs.append(trainer)
    assert runs[1].args.gradient_checkpointing
    for key in ("loss", "grad_norm"):
        assert logged(runs[1], key) == pytest.approx(logged(runs[0], key), abs=1e-5), key


@pytest.mark.parametrize("batch", [1, 2, 4, 9, 16])
def test_dev_metrics_are_exact_with_an_incomplete_last_batch(fresh, words, tmp_path, batch):
    model, dev = fresh(), texts(9, weight=(0.5, 1.5, 1.0, 2.0))
    seen = []

    def metrics(done: Any) -> dict[str, float]:
        seen.append((done.predictions, done.label_ids))
        return {"accuracy": metric(SINGLE, done.predictions, done.label_ids)}

    trainer = trainer_for(
        model,
        tmp_path,
        words=words,
        train=texts(4),
        dev=dev,
        per_device_eval_batch_size=batch,
        compute_metrics=metrics,
    )
    everything = trainer.data_collator(list(trainer.eval_dataset))
    with torch.no_grad():
        logits = model(input_ids=everything["input_ids"], attention_mask=everything["attention_mask"]).logits
    losses = F.cross_entropy(logits, everything["labels"], reduction="none") * everything["weight"]
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(losses.mean().item(), abs=1e-6)
    ((predictions, targets),) = seen
    assert predictions.shape == (9, 3)
    assert targets.tolist() == [row.target for row in dev]
    assert predictions == pytest.approx(logits.numpy(), abs=1e-5)
    assert metrics["eval_accuracy"] == metric(SINGLE, logits.numpy(), targets)


def test_rows_without_labels_can_be_predicted(fresh, words, tmp_path):
    trainer = trainer_for(fresh(), tmp_path, words=words, train=texts(4), dev=texts(5))
    with_labels = trainer.predict(trainer.eval_dataset)
    without = trainer.predict(trainer.eval_dataset.remove_columns("labels"))
    assert without.predictions == pytest.approx(with_labels.predictions, abs=1e-6)
    assert "test_loss" in with_labels.metrics
    assert "test_loss" not in without.metrics


# --- two processes ---


def run_on(base: str, folder: str) -> None:
    """Run one of two processes; defined at module level, so that the fork server can import it."""
    torch.save(train_and_look(base, folder, batch=2), Path(folder) / f"rank{os.environ['RANK']}.pt")
    bare = distributed_trainer(base, folder, batch=2, seen=[])
    bare.evaluate()
    with pytest.raises(TaskHeadsError, match=r"^train: .*2 processes"):
        bare.train()
    torch.distributed.destroy_process_group()


def distributed_trainer(base: str, folder: str, *, batch: int, seen: list[Any]) -> ClassifierTrainer:
    set_seed(5)
    model = build(base, task="pooled_classifier", num_labels=3, problem_type=SINGLE)
    return trainer_for(
        model,
        folder,
        words=load_tokenizer("embedded"),
        train=texts(24, weight=(0.5, 1.5, 1.0)),
        dev=texts(9, weight=(1.0, 3.0)),
        max_steps=20,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=2,
        ddp_find_unused_parameters=False,
        compute_metrics=lambda done: seen.append((done.predictions, done.label_ids)) or {},
        loss_options={"class_weights": "balanced"},
    )


def train_and_look(base: str, folder: str, *, batch: int) -> dict[str, Any]:
    seen: list[Any] = []
    trainer = distributed_trainer(base, folder, batch=batch, seen=seen)
    trainer.train()
    metrics = trainer.evaluate()
    return {
        "world": trainer.args.world_size,
        "loss": logged(trainer),
        "grad_norm": logged(trainer, "grad_norm"),
        "eval_loss": metrics["eval_loss"],
        "predictions": seen[-1][0].tolist(),
        "labels": seen[-1][1].tolist(),
        "weights": trainer.model.state_dict(),
    }


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(bases, tmp_path):
    started = launching.fork_two(run_on, bases["qwen2"], str(tmp_path), log=tmp_path / "log")
    one = train_and_look(bases["qwen2"], str(tmp_path / "one"), batch=4)
    for rank, process in enumerate(started):
        launching.join(process, tmp_path / f"log{rank}")
    zero, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (one["world"], zero["world"], other["world"]) == (1, 2, 2)
    for key in ("loss", "grad_norm", "eval_loss"):
        assert zero[key] == pytest.approx(one[key], abs=1e-5), key
    assert zero["labels"] == one["labels"] == [row.target for row in texts(9)]
    assert np.array(zero["predictions"]) == pytest.approx(np.array(one["predictions"]), abs=1e-5)
    for name, tensor in zero["weights"].items():
        assert torch.equal(tensor, other["weights"][name]), name


# --- errors during training ---


class Weights(TrainerCallback):
    """Callback that stores the weights after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize("step", [1, 7, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("problem", [SINGLE, SCORE])
def test_a_nan_stops_the_run_at_its_step_and_names_the_row(fresh, words, tmp_path, step, problem):
    rows = texts(42, problem, weight=(0.5,))
    guilty = (step - 1) * 2 + 1  # the second row of the step's batch of two
    broken = {**vars(rows[guilty]), "weight": math.nan}
    rows[guilty] = TextExample(**broken)
    weights, model = Weights(), fresh(problem)
    trainer = trainer_for(
        model,
        tmp_path,
        words=words,
        train=rows,
        max_steps=21,
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
        callbacks=[weights],
    )
    with pytest.raises(TaskHeadsError) as caught:
        trainer.train()
    (problem_found,) = caught.value.problems
    assert problem_found.where == f"train.jsonl:{guilty + 1}"
    assert f"at step {step}," in problem_found.problem
    assert len(weights.steps) == step - 1
    unmoved = weights.steps[-1] if weights.steps else fresh(problem).state_dict()
    assert all(torch.equal(tensor, unmoved[name]) for name, tensor in model.state_dict().items())


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update(fresh, words, tmp_path):
    """Loss and logits are finite: only the callback that checks the accumulated gradients can find it."""
    weights, model = Weights(), fresh()
    backwards: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        backwards.append(1)
        return gradient * math.inf if len(backwards) == 5 else gradient  # first batch of step 3

    model.score.weight.register_hook(spoil)
    trainer = trainer_for(
        model,
        tmp_path,
        words=words,
        train=texts(12),
        per_device_train_batch_size=2,
        callbacks=[weights],
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
    )
    with pytest.raises(TaskHeadsError, match="the gradient is not finite at step 3") as caught:
        trainer.train()
    assert caught.value.problems[0].where == ", ".join(f"train.jsonl:{row}" for row in (9, 10, 11, 12))
    assert len(weights.steps) == 2
    assert all(torch.equal(tensor, weights.steps[-1][name]) for name, tensor in model.state_dict().items())


def test_a_nan_in_dev_names_the_row_of_dev(fresh, words, tmp_path):
    dev = texts(5, weight=(1.0, 1.0, 1.0, math.inf, 1.0))
    dev = [TextExample(**{**vars(row), "source": f"dev.csv:{i}"}) for i, row in enumerate(dev)]
    trainer = trainer_for(fresh(), tmp_path, words=words, train=texts(4), dev=dev)
    with pytest.raises(TaskHeadsError, match=r"^dev\.csv:3: "):
        trainer.evaluate()


# --- checkpoints ---


def saved_each(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_metric",
        "greater_is_better": True,
        "restore_callback_states_from_checkpoint": True,
        **changes,
    }


@pytest.mark.parametrize(
    "kind", ["full", "lora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dora", "head_only"))]
)
def test_only_the_best_checkpoint_is_kept(fresh, words, tmp_path, kind):
    model, weights = fresh(), Weights()
    adapter = None
    if kind != "full":
        adapter = adapter_config(model, r=4, dora=kind == "dora", head_only=kind == "head_only")
    order = iter([0.1, 0.9, 0.3, 0.2, 0.5])
    trainer = trainer_for(
        model,
        tmp_path,
        words=words,
        train=texts(12),
        dev=texts(4),
        peft_config=adapter,
        max_steps=8,
        learning_rate=1e-2,
        compute_metrics=lambda done: {"metric": next(order)},
        callbacks=[VerifiedCheckpointCallback(1), weights],
        **saved_each(tmp_path),
    )
    train_or_resume(trainer, checkpoint=open_output(tmp_path, None))
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    best, last = weights.steps[3], weights.steps[7]
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, best[name]), name
    moved = {name for name in best if not torch.equal(best[name], last[name])}
    assert any("score" in name for name in moved)
    assert any("lora" in name for name in moved) == (kind in ("lora", "dora"))
    assert trainer.evaluate()["eval_metric"] == 0.5  # the metric is returned unchanged
    # The rotation of checkpoints keeps the best and the newest.
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]


def test_early_stopping_stops_a_run_and_its_resumed_run_at_the_same_step(fresh, words, tmp_path):
    """Killed after step 4 with one of two evaluations used; the resumed run must restore the patience."""

    class Killed(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    metrics = {2: 0.9, 4: 0.5, 6: 0.4, 8: 0.3, 10: 0.2, 12: 0.1}

    def start(folder: Path, *more: Any, resume: Any = None) -> ClassifierTrainer:
        trainer = trainer_for(
            fresh(),
            folder,
            words=words,
            train=texts(12),
            dev=texts(4),
            max_steps=12,
            compute_metrics=lambda done: {"metric": metrics[trainer.state.global_step]},
            callbacks=[VerifiedCheckpointCallback(2), EarlyStoppingCallback(2), *more],
            **saved_each(folder),
        )
        assert not resume_hazards(trainer.args, early_stopping=True)
        train_or_resume(trainer, checkpoint=open_output(folder, resume))
        return trainer

    whole = start(tmp_path / "whole")
    assert whole.state.global_step == 6
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "killed", Killed())
    assert newest_verified(tmp_path / "killed").name == "checkpoint-4"
    resumed = start(tmp_path / "killed", resume=True)
    assert resumed.state.global_step == 6
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("step", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 3, 5))])
def test_a_resumed_run_ends_with_the_same_bytes(fresh, words, tmp_path, kind, step):
    """With dropout, accumulation and a short last update of each epoch: ten rows as 4, 4 and 2."""

    def start(folder: Path) -> ClassifierTrainer:
        model = fresh(ORDER, head_dropout=0.2)
        adapter = adapter_config(model, r=2, dropout=0.2) if kind == "lora" else None
        return trainer_for(
            model,
            folder,
            words=words,
            train=texts(10, ORDER, weight=(0.5, 2.0)),
            peft_config=adapter,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=6,
            save_steps=step,
            save_strategy="steps",
            callbacks=[VerifiedCheckpointCallback()],
            loss_options={"class_weights": "balanced"},
        )

    whole, resumed = start(tmp_path / "whole"), start(tmp_path / "resumed")
    train_or_resume(whole, checkpoint=open_output(tmp_path / "whole", None))
    first = str(tmp_path / "whole" / f"checkpoint-{step}")
    train_or_resume(resumed, checkpoint=open_output(tmp_path / "resumed", first))
    assert (whole.state.global_step, resumed.state.global_step) == (6, 6)
    assert logged(resumed)[-1] == logged(whole)[-1]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_no_stock_card_is_written(fresh, words, tmp_path):
    trainer = trainer_for(
        fresh(), tmp_path, words=words, train=texts(4), max_steps=1, save_strategy="steps", save_steps=1
    )
    trainer.train()
    assert (tmp_path / "checkpoint-1/model.safetensors").exists()
    assert not list(tmp_path.rglob("README.md"))


# --- token dropout ---


def test_hidden_tokens_have_the_effect_of_removed_tokens():
    from qwen_task_heads.training.classifier_trainer import hide_tokens

    torch.manual_seed(0)
    lengths = torch.tensor([[40], [9], [4], [3]])
    mask = (torch.arange(40)[None] < lengths).long()
    found = torch.stack([hide_tokens(mask, share=0.3, template=(2, 1)) for _ in range(400)])  # (400, 4, 40)
    assert bool((found <= mask).all())
    assert bool((found[:, :, :2] == mask[:, :2]).all())  # the template is not hidden
    for row, length in enumerate(lengths[:, 0].tolist()):
        assert bool((found[:, row, length - 1] == 1).all())
    share = 1 - found[:, 0, 2:39].float().mean()
    assert abs(float(share) - 0.3) < 0.02
    assert bool((found.sum(2) > torch.tensor([3, 3, 3, 2])).all())  # a text is never hidden completely
    assert bool((hide_tokens(mask, share=0.0, template=(2, 1)) == mask).all())


def test_a_row_with_hidden_tokens_has_the_logits_of_the_shorter_row(tiny_config, shake):
    from qwen_task_heads import PooledClassifier, PooledClassifierConfig

    for pooling in ("last", "mean"):
        config = PooledClassifierConfig(text_config=tiny_config(), num_labels=3, pooling=pooling)
        model = shake(PooledClassifier(config))
        mask = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 1]])
        ids = torch.arange(7, 15)[None]
        with torch.inference_mode():
            masked = model(input_ids=ids, attention_mask=mask).logits
            shorter = model(input_ids=ids[:, mask[0].bool()]).logits
        assert torch.allclose(masked, shorter, atol=1e-6)


def test_continued_training_drops_the_calibration(fresh, words, tmp_path):
    model = fresh(MULTI)
    model.config.calibration, model.config.label_thresholds = {"temperature": 2.0}, [0.1, 0.2, 0.3]
    trainer = trainer_for(model, tmp_path, words=words, train=texts(4, MULTI), max_steps=1)
    assert model.config.calibration is not None  # an evaluation does not change it
    trainer.train()
    assert (model.config.calibration, model.config.label_thresholds) == (None, None)
