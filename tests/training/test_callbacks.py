"""A NaN stops a run at its step and names the row; swapped files; lost processes.

All on the real `RewardTrainer`: what counts is that the weights of the step before are still there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.training.callbacks import (
    NonFiniteGuard,
    SwappedLabelsCallback,
    check_world,
    wilson_interval,
)


class Collator:
    """Collator of trl that adds the sources of the rows to the tensors."""

    def __init__(self) -> None:
        self.pairs = DataCollatorForPreference(pad_token_id=0)

    def __call__(self, rows):
        return {**self.pairs(rows), "sources": [row["source"] for row in rows]}


class GuardedTrainer(RewardTrainer):
    """Trainer subclass that passes loss and scores to the guard, like those of the package."""

    guard: NonFiniteGuard

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        sources = inputs.pop("sources")
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if self.model.training:
            step = self.state.global_step + 1
            self.guard.check_finite(loss, scores=outputs.logits, sources=sources, step=step)
        return (loss, outputs) if return_outputs else loss


def pair(index: int, *, swapped: bool = False, **more):
    """Return a learnable pair: the chosen title ends with an even word."""
    noise = [4 + (index * 7 + j * 5) % 56 for j in range(3)]
    even, odd = 4 + 2 * (index % 28), 5 + 2 * (index % 28)
    chosen, rejected = (odd, even) if swapped else (even, odd)
    ids = {"chosen_ids": [*noise, chosen], "rejected_ids": [*noise, rejected]}
    return {**ids, "source": f"train.jsonl:{index + 1}", **more}


def build(folder, rows, *, dev=None, callbacks=(), **changes) -> GuardedTrainer:
    set_seed(0)
    words = {f"w{index}": index for index in range(60)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0", eos_token="w1"
    )
    config = Qwen2Config(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=0,
    )
    settings = {
        "per_device_train_batch_size": 2, "max_steps": 24, "learning_rate": 1e-3, "max_length": None,
        "use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none",
        "disable_tqdm": True, "dataloader_pin_memory": False, "remove_unused_columns": False,
        "save_strategy": "no", "train_sampling_strategy": "sequential", "logging_strategy": "no",
    }  # fmt: skip
    guard = NonFiniteGuard()
    trainer = GuardedTrainer(
        model=Qwen2ForSequenceClassification(config),
        args=RewardConfig(str(folder), **(settings | changes)),
        data_collator=Collator(),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(dev) if dev else None,
        processing_class=tokenizer,
        callbacks=[guard, *callbacks],
    )
    trainer.guard = guard
    return trainer


def weights(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def trained_for(folder, rows, *, steps: int, **changes) -> list[torch.Tensor]:
    """Return the weights after a number of finite steps of the same schedule."""

    class Stop(NonFiniteGuard):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= steps
            return control

    trainer = build(folder, rows, callbacks=[Stop()] if steps else [], **changes)
    if steps:
        trainer.train()
    return weights(trainer.model)


@pytest.mark.parametrize("step", [1, 7, 20])
def test_nan_margin_stops_at_its_step_and_names_the_batch(tmp_path, step):
    rows = [pair(index, margin=0.1) for index in range(48)]
    before = trained_for(tmp_path / "sound", rows, steps=step - 1)
    rows[2 * step - 1]["margin"] = float("nan")  # the second row of that step's batch
    trainer = build(tmp_path / "nan", rows)
    with pytest.raises(
        TaskHeadsError, match=rf"^train.jsonl:{2 * step - 1}, train.jsonl:{2 * step}: .*nan at step {step},"
    ):
        trainer.train()
    assert trainer.state.global_step == step - 1
    for now, then in zip(weights(trainer.model), before, strict=True):
        assert torch.equal(now, then)


def test_nan_in_one_micro_batch_of_an_accumulated_step(tmp_path):
    rows = [pair(index, margin=0.1) for index in range(48)]
    rows[9]["margin"] = float("nan")  # batch 5 of 2 rows, step 3 of 2 batches
    trainer = build(tmp_path, rows, gradient_accumulation_steps=2)
    with pytest.raises(TaskHeadsError, match=r"train.jsonl:9, train.jsonl:10: .* at step 3,"):
        trainer.train()


def test_gradient_that_is_not_finite_stops_before_the_optimizer(tmp_path):
    """A finite loss whose backward pass overflows: only the gradients show it."""
    trainer = build(tmp_path, [pair(index) for index in range(48)], gradient_accumulation_steps=2)
    before = weights(trainer.model)
    trainer.model.score.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        TaskHeadsError, match=r"train.jsonl:1, .*train.jsonl:4: the gradient is not finite at step 1,"
    ):
        trainer.train()
    assert all(torch.equal(now, then) for now, then in zip(weights(trainer.model), before, strict=True))


def test_only_rows_that_are_not_finite_are_named():
    guard, sources = NonFiniteGuard(), [f"a.jsonl:{line}" for line in range(1, 5)]
    scores = torch.zeros(8, 1)
    scores[6] = float("inf")  # the rejected title of the third pair
    with pytest.raises(TaskHeadsError, match=r"^a.jsonl:3: a score is infinite at step 5,"):
        guard.check_finite(torch.tensor(0.5), scores=scores, sources=sources, step=5)
    losses = torch.tensor([0.1, float("nan"), 0.2, float("nan")])
    with pytest.raises(TaskHeadsError, match=r"^a.jsonl:2, a.jsonl:4: the loss is nan"):
        guard.check_finite(losses, scores=torch.zeros(4, 3), sources=sources, step=1)
    # three titles cannot be assigned to two rows: all rows are named
    with pytest.raises(TaskHeadsError, match=r"^a.jsonl:1, a.jsonl:2: a score is nan"):
        guard.check_finite(torch.tensor(0.5), scores=torch.full((3,), torch.nan), sources=sources[:2], step=1)
    many = [f"b.jsonl:{line}" for line in range(100)]
    with pytest.raises(TaskHeadsError, match=r"b.jsonl:9 and 90 more: "):
        guard.check_finite(torch.tensor(torch.inf), scores=torch.zeros(100), sources=many, step=1)
    guard.check_finite(torch.tensor(0.5), scores=torch.zeros(8, 1), sources=sources, step=1)


def swapped_run(folder, *, swapped: bool):
    callback = SwappedLabelsCallback(pairs=100)
    trainer = build(
        folder,
        [pair(index, swapped=swapped) for index in range(400)],
        dev=[{**pair(400 + index), "source": f"dev.jsonl:{index + 1}"} for index in range(100)],
        callbacks=[callback],
        per_device_train_batch_size=8,
        per_device_eval_batch_size=50,
        max_steps=50,
        learning_rate=3e-3,
        eval_strategy="steps",
        eval_steps=10,
    )
    return trainer, callback


def test_swapped_training_file_is_reported_within_50_steps(tmp_path, caplog):
    trainer, callback = swapped_run(tmp_path, swapped=True)
    trainer.train()
    assert callback.step is not None
    assert callback.step <= 50
    assert "chosen and rejected look swapped in the training file" in callback.finding
    calls = [record for record in caplog.records if "look swapped" in record.message]
    assert len(calls) == 1  # loud, once
    assert calls[0].levelname == "WARNING"


def test_correct_training_file_is_not_reported(tmp_path, caplog):
    trainer, callback = swapped_run(tmp_path, swapped=False)
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.9  # the model has learned
    assert callback.finding is None
    assert "swapped" not in caplog.text


def test_the_warning_counts_groups_and_can_be_withdrawn(caplog):
    state = SimpleNamespace(global_step=10, is_world_process_zero=True)
    pairs, groups = SwappedLabelsCallback(pairs=400), SwappedLabelsCallback(pairs=400, groups=40)
    for callback in (pairs, groups):
        callback.on_evaluate(None, state, None, metrics={"eval_accuracy": 0.42})
    assert pairs.finding
    assert groups.finding is None  # not significant with 40 independent groups
    pairs.on_evaluate(None, state, None, metrics={"eval_accuracy": 0.55})
    assert pairs.finding is None
    assert "no longer ranked in reverse" in caplog.text
    untrained = SwappedLabelsCallback(pairs=400)
    untrained.on_evaluate(None, SimpleNamespace(global_step=0), None, metrics={"eval_accuracy": 0.1})
    untrained.on_evaluate(None, state, None, metrics={"eval_loss": 0.1})
    assert untrained.finding is None


def test_wilson_interval_against_published_values():
    # Newcombe 1998, table I, method 3 (score without continuity correction)
    published = [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]
    for successes, count, low, high in published:
        assert wilson_interval(successes / count, count=count) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(0.0, count=0) == (0.0, 1.0)


def test_number_of_processes():
    check_world(2, running=2, environment={"WORLD_SIZE": "2", "MASTER_PORT": "29500"})
    check_world(None, running=1, environment={})
    check_world(1, running=1, environment={"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"})
    for asked, environment, found in (
        (2, {}, "1 running.*torchrun --nproc_per_node 2"),
        (None, {"WORLD_SIZE": "2"}, r"started 2 \(WORLD_SIZE\)"),
        (None, {"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}, "started one"),
    ):
        with pytest.raises(TaskHeadsError, match=found) as caught:
            check_world(asked, running=1, environment=environment)
        [problem] = caught.value.problems
        assert (problem.where, problem.code) == ("processes", "processes-differ")


@pytest.mark.slow
def test_accelerate_launch_of_one_process_is_accepted(tmp_path):
    """`recipes/test_reward_titles.py` tests a launch with a missing process."""
    script = tmp_path / "script.py"
    script.write_text(
        "from qwen_task_heads.training.callbacks import check_world\n"
        "from accelerate import PartialState\n"
        "check_world(None, running=PartialState(cpu=True).num_processes)\n"
    )
    options = ["--cpu", "--num_processes", "1", "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    clean = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "MASTER_PORT")}
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
    assert done.returncode == 0, done.stderr
