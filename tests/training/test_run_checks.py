"""Runs held against their length and their disk, before a step is taken."""

from __future__ import annotations

import re
import shlex
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from qwen_task_heads import build, load_tokenizer
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.models import adapter_config
from qwen_task_heads.training.checkpoints import VerifiedCheckpointCallback
from qwen_task_heads.training.checkpoints import train as train_or_resume
from qwen_task_heads.training.run_checks import check_run, checkpoint_bytes, flow_of
from qwen_task_heads.training.title_arguments import TitleConfig
from qwen_task_heads.training.title_trainer import TitleTrainer

ROWS = [{"chosen": f"{n} ways to rest", "rejected": f"On rest {n}"} for n in range(8)]
STEPS = {"eval_strategy": "steps", "save_strategy": "steps"}
ALONE = {"load_best_model_at_end": False}
CPU = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-3}


def trainer_of(base: str, folder: Path, *, lora: bool = False, **options: Any) -> TitleTrainer:
    options = {"max_length": 16, "per_device_train_batch_size": 2, "num_train_epochs": 2, **options}
    model, limit = build(base), options.pop("save_total_limit", None)
    trainer = TitleTrainer(
        model,
        args=TitleConfig(str(folder), **CPU, **options),
        processing_class=load_tokenizer(base),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        peft_config=adapter_config(model, r=4) if lora else None,
        callbacks=[VerifiedCheckpointCallback(limit)],
    )
    trainer.args.save_total_limit = None
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {**STEPS, "eval_steps": 3, "save_steps": 3},
        {**STEPS, "eval_steps": 3, "save_strategy": "best"},
        {**STEPS, "eval_steps": 0.25, "save_steps": 0.5},
        {**STEPS, "eval_steps": 2, "save_steps": 4, "max_steps": 7},
        {"eval_delay": 1.5},
        {"num_train_epochs": 1.5},
        {"gradient_accumulation_steps": 3},
    ],
    ids=str,
)
def test_the_flow_is_that_of_a_real_run(options: dict[str, Any], bases: Any, tmp_path: Path) -> None:
    trainer = trainer_of(bases["qwen2"], tmp_path / "run", **options)
    loader = trainer.get_train_dataloader()
    values = trainer.set_initial_training_values(trainer.args, loader)
    flow = flow_of(trainer.args, steps=values[-1], steps_of_epoch=values[1])
    train_or_resume(trainer, checkpoint=None)
    assert flow.steps == trainer.state.global_step
    looks = [entry["step"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert list(flow.evaluations) == looks
    saved = {int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*")}
    if options.get("save_strategy") == "best":
        assert saved <= set(flow.saves)
    else:
        assert saved == set(flow.saves)


def applied(options: dict[str, Any], remedy: str) -> dict[str, Any]:
    words = shlex.split(re.search(r"give (--.*?)(?:, or|$)", remedy)[1])  # type: ignore[index]
    values = [float(word) if word[0].isdigit() else {"false": False}.get(word, word) for word in words[1::2]]
    return {**options, **dict(zip((word[2:] for word in words[::2]), values, strict=True))}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"eval_delay": 50}, "--eval_delay"),
        ({**STEPS, "eval_steps": 2, "save_steps": 2, "eval_delay": 50}, "--eval_delay"),
        ({**STEPS, "eval_steps": 500, "save_steps": 500}, "--eval_steps"),
        ({**STEPS, "eval_steps": 2, "save_steps": 500}, "--save_steps"),
        ({**STEPS, "eval_steps": 500, "save_strategy": "best", **ALONE}, "--eval_steps"),
        (
            {
                **STEPS,
                "eval_steps": 500,
                "load_best_model_at_end": False,
                "metric_for_best_model": "loss",
                "lr_scheduler_type": "reduce_lr_on_plateau",
            },
            "--eval_steps",
        ),
        ({**STEPS, "eval_steps": 500, "save_steps": 500, "max_steps": 1}, "--eval_steps"),
    ],
    ids=str,
)
def test_missing_evaluations_are_refused(
    options: dict[str, Any], named: str, bases: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(bases["qwen2"], tmp_path / "a", **options)
    with pytest.raises(TaskHeadsError) as refused:
        train_or_resume(trainer, checkpoint=None)
    [problem] = refused.value.problems
    assert problem.where == named
    assert trainer.state.global_step == 0
    check_run(trainer_of(bases["qwen2"], tmp_path / "b", **applied(options, problem.fix)))


@pytest.mark.parametrize(
    "options",
    [
        {**STEPS, "eval_steps": 8, "save_steps": 8},  # the last step of eight
        {**STEPS, "eval_steps": 500, "save_steps": 500, "load_best_model_at_end": False},
        {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "eval_delay": 50},
    ],
    ids=str,
)
def test_runs_that_need_no_evaluation_are_accepted(
    options: dict[str, Any], bases: Any, tmp_path: Path
) -> None:
    check_run(trainer_of(bases["qwen2"], tmp_path / "run", **options))


def test_a_best_checkpoint_needs_a_dev_set(bases: Any, tmp_path: Path) -> None:
    trainer = trainer_of(bases["qwen2"], tmp_path / "run")
    trainer.eval_dataset = None
    with pytest.raises(TaskHeadsError) as refused:
        check_run(trainer)
    [problem] = refused.value.problems
    assert (problem.where, problem.code) == ("--eval_strategy", "split-missing")


def test_modules_of_the_optimizer_must_be_in_the_model(bases: Any, tmp_path: Path) -> None:
    trainer = trainer_of(bases["qwen2"], tmp_path / "run")
    trainer.args.optim_target_modules = ["query"]
    with pytest.raises(TaskHeadsError, match="q_proj") as refused:
        check_run(trainer)
    [problem] = refused.value.problems
    assert (problem.where, problem.code) == ("--optim_target_modules", "option-value")
    assert problem.fix == "give --optim_target_modules all-linear"
    for names in (["q_proj"], r".*\.mlp\..*", "all-linear"):
        trainer.args.optim_target_modules = names
        check_run(trainer)


def test_a_schedule_is_tried_at_the_rate_and_length_of_the_run(bases: Any, tmp_path: Path) -> None:
    options = {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 2e-3}}
    with pytest.raises(TaskHeadsError, match=r"--lr_scheduler_kwargs: .*0\.002"):
        check_run(trainer_of(bases["qwen2"], tmp_path / "run", **options))


# --- the disk ---


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor", "adagrad"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_bytes_of_a_checkpoint_are_those_on_the_disk(
    lora: bool, optim: str, bases: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(
        bases["qwen2"],
        tmp_path / "run",
        lora=lora,
        optim=optim,
        max_steps=1,
        **STEPS,
        eval_steps=1,
        save_steps=1,
    )
    weights, state = checkpoint_bytes(trainer.model, trainer.args)
    train_or_resume(trainer, checkpoint=None)
    folder = tmp_path / "run" / "checkpoint-1"
    saved = sum(path.stat().st_size for path in folder.rglob("*model*.safetensors"))
    kept = (folder / "optimizer.pt").stat().st_size
    assert saved == pytest.approx(weights, rel=0.02, abs=20_000)  # names of tensors
    # one that keeps a number for each row of a matrix keeps more for small ones
    assert kept == pytest.approx(state, rel=0.02, abs=200_000 if optim == "adafactor" else 40_000)


def test_a_model_without_optimizer_state_counts_its_weights_alone() -> None:
    args = TrainingArguments("x", use_cpu=True, save_only_model=True)
    assert checkpoint_bytes(torch.nn.Linear(10, 10), args) == (440, 0)
    half = torch.nn.Linear(512, 512, bias=False, dtype=torch.bfloat16)
    args.save_only_model = False
    weights, state = checkpoint_bytes(half, args)
    assert (weights, round(state / weights)) == (2 * 512**2, 2)
    half.weight.requires_grad_(False)
    assert checkpoint_bytes(half, args) == (2 * 512**2, 0)


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("fits", "limit", "remedy"),
    [
        # checkpoints that fit beside the model, of eight; --save_total_limit; what is named
        (7.5, None, r"give --save_total_limit 5, or name an --output_dir"),
        (3.5, 2, r"give --save_total_limit 1, or name an --output_dir"),
        (2.5, 2, r"give --save_strategy no --load_best_model_at_end false, or name an --output_dir"),
        (-1, 1, r"name an --output_dir on a disk with [\d,]+ bytes free"),
    ],
)
def test_a_disk_that_is_too_small_names_options_that_fit(
    fits: float, limit: int | None, remedy: str, bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**STEPS, "eval_steps": 1, "save_steps": 1, "save_total_limit": limit}
    trainer = trainer_of(bases["qwen2"], tmp_path / "new" / "run", **options)
    weights, state = checkpoint_bytes(trainer.model, trainer.args)
    free = int(weights + fits * (weights + state))

    def disk_usage(path: Path) -> Usage:
        assert Path(path).is_dir()
        return Usage(0, 0, max(0, free))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(TaskHeadsError) as refused:
        train_or_resume(trainer, checkpoint=None)
    [problem] = refused.value.problems
    assert problem.code == "disk-full"
    assert re.match(remedy, problem.fix), problem.fix
    assert f"{max(0, free):,} bytes" in problem.problem
    needed = int(re.search(r"([\d,]+) bytes", problem.expected)[1].replace(",", ""))  # type: ignore[index]
    if "give" in remedy:
        again = applied(options, problem.fix)
        again["save_total_limit"] = again.get("save_total_limit") and int(again["save_total_limit"])
        trainer = trainer_of(bases["qwen2"], tmp_path / "again", **again)
        train_or_resume(trainer, checkpoint=None)
        found = sum(path.stat().st_size for path in (tmp_path / "again").rglob("*") if path.is_file())
        assert found <= max(0, free) + 3_000_000  # tokenizers
    free = needed  # or another disk
    check_run(trainer_of(bases["qwen2"], tmp_path / "other", **options), save_total_limit=limit)


def test_existing_checkpoints_need_no_further_space(
    bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(bases["qwen2"], tmp_path / "run", **STEPS, eval_steps=4, save_steps=4)
    weights, state = checkpoint_bytes(trainer.model, trainer.args)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, weights + 1_000))
    with pytest.raises(TaskHeadsError) as refused:
        check_run(trainer)
    assert [problem.code for problem in refused.value.problems] == ["disk-full"]
    for step in (4, 8):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "optimizer.pt").write_bytes(b"0" * (weights + state))
    check_run(trainer)
