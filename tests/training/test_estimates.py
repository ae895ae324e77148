"""What a run is estimated to take: operations as they are counted, memory that follows what holds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from qwen_task_heads import build, load_tokenizer
from qwen_task_heads.data.examples import GroupExample
from qwen_task_heads.models import adapter_config
from qwen_task_heads.throughput import Throughput
from qwen_task_heads.tokenization.templates import Template, bind_template
from qwen_task_heads.training import estimates
from qwen_task_heads.training.checkpoints import train as train_or_resume
from qwen_task_heads.training.classifier_arguments import ClassifierConfig, parse_classifier_arguments
from qwen_task_heads.training.classifier_trainer import ClassifierTrainer
from qwen_task_heads.training.estimates import estimate_run
from qwen_task_heads.training.features import extract_features
from qwen_task_heads.training.pass_costs import batch_shape, pass_costs
from qwen_task_heads.training.run_checks import check_run
from qwen_task_heads.training.sweep_arguments import parse_sweep_arguments
from qwen_task_heads.training.title_arguments import TitleConfig
from qwen_task_heads.training.title_trainer import TitleTrainer
from qwen_task_heads.training.usage import Estimate, Usage

CPU = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-4, "bf16": False}
BEFORE = "Is it about the weather, or about something else that people talk of? "
WORDS = ["tea", "the trains of the north are late", "a rest", "why it is late every winter and who pays"]
TEXTS = [{"text": f"{word} {n}", "label": n % 2} for n in range(6) for word in WORDS]


def text_trainer(base: str, folder: Path, *, method: str = "full", **options: Any) -> ClassifierTrainer:
    torch.manual_seed(0)
    head = {name: options.pop(name) for name in ("max_seq_length", "truncation") if name in options}
    model = build(base, task="pooled_classifier", labels=["a", "b"], pooling="last", **head)
    tokenizer, options = load_tokenizer(base), {"per_device_train_batch_size": 4} | options
    bind_template(tokenizer, model.config, template=Template(before=BEFORE))
    adapter = None if method == "full" else adapter_config(model, head_only=method == "head")
    args = ClassifierConfig(str(folder), **CPU, save_strategy="no", load_best_model_at_end=False, **options)
    return ClassifierTrainer(
        model,
        args=args,
        train_dataset=TEXTS,
        eval_dataset=TEXTS[:6],
        processing_class=tokenizer,
        peft_config=adapter,
    )


def title_trainer(base: str, folder: Path, *, grouped: bool, **options: Any) -> TitleTrainer:
    torch.manual_seed(0)
    pairs = [{"chosen": f"{n} ways to rest", "rejected": f"On rest {n}"} for n in range(8)]
    groups = [
        GroupExample(titles=[f"{n} {word}" for word in WORDS], clicks=[1, 2, 3, 4], impressions=[9] * 4)
        for n in range(8)
    ]
    args = TitleConfig(
        str(folder),
        **CPU,
        save_strategy="no",
        load_best_model_at_end=False,
        max_length=24,
        per_device_train_batch_size=2,
        **options,
    )
    return TitleTrainer(
        build(base),
        args=args,
        processing_class=load_tokenizer(base),
        eval_dataset=pairs,
        train_dataset=groups if grouped else pairs,
        loss="plackett_luce" if grouped else "bradley_terry",
    )


def ran(trainer: Any) -> tuple[Estimate, Throughput]:
    train_or_resume(trainer, checkpoint=None)
    estimate = trainer.throughput.usage.estimate
    assert estimate is not None
    return estimate, trainer.throughput.result


@pytest.mark.parametrize("method", ["full", "lora", "head"])
@pytest.mark.parametrize("packing", [True, False])
def test_operations_are_those_of_the_run(
    bases: dict[str, str], tmp_path: Path, method: str, packing: bool
) -> None:
    trainer = text_trainer(bases["qwen2"], tmp_path, method=method, packing=packing, num_train_epochs=2)
    estimate, counted = ran(trainer)
    assert counted.flops > 0
    assert estimate.linear == pytest.approx(counted.flops, rel=0.05)
    assert estimate.operations > estimate.linear
    assert estimate.tokens > counted.computed  # dev too


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 5},
        {"gradient_accumulation_steps": 3},
        {"freeze_embeddings": True},
        {"max_seq_length": 30, "truncation": "windows"},
        {"train_sampling_strategy": "sequential"},
    ],
    ids=str,
)
def test_operations_follow_the_options(
    bases: dict[str, str], tmp_path: Path, options: dict[str, Any]
) -> None:
    estimate, counted = ran(text_trainer(bases["qwen3"], tmp_path, **{"num_train_epochs": 2} | options))
    assert estimate.linear == pytest.approx(counted.flops, rel=0.08)


@pytest.mark.parametrize("grouped", [True, False])
def test_operations_of_titles(bases: dict[str, str], tmp_path: Path, grouped: bool) -> None:
    estimate, counted = ran(title_trainer(bases["qwen2"], tmp_path, grouped=grouped, num_train_epochs=1))
    assert estimate.linear == pytest.approx(counted.flops, rel=0.08)


def test_operations_of_features_count_each_row_once(
    bases: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, usage, counted = build(bases["qwen2"]), Usage(), Throughput()
    rows = [list(range(5, 5 + length)) for length in (4, 9, 30, 17)] * 3
    options: dict[str, Any] = {"poolings": ["last", "mean"], "cache_dir": tmp_path, "batch_tokens": 64}
    with counted.listening(model):
        extract_features(model, rows, usage=usage, **options)
    assert usage.estimate is not None
    assert usage.estimate.linear == pytest.approx(counted.flops, rel=0.01)
    assert capsys.readouterr().out.startswith("estimate: ")
    assert set(usage.facts()) == {"estimate", "used"}
    again = Usage()
    extract_features(model, rows, usage=again, **options)  # from the cache: nothing is computed
    assert (again.facts(), again.line(), capsys.readouterr().out) == ({}, "", "")


def test_steps_of_a_checkpoint_are_not_estimated(bases: Any, tmp_path: Path) -> None:
    trainer = text_trainer(bases["qwen2"], tmp_path, num_train_epochs=2)
    flow = check_run(trainer)
    whole, half = estimate_run(trainer, flow), estimate_run(trainer, flow, done=flow.steps // 2)
    scored = estimate_run(trainer, flow, scored=100)
    assert whole
    assert half
    assert scored
    assert half.linear == pytest.approx(whole.linear / 2)
    assert scored.linear == whole.linear
    assert scored.operations > whole.operations
    assert scored.tokens > whole.tokens


def needed(base: str, folder: Path, **options: Any) -> int:
    trainer = text_trainer(base, folder, **options)
    estimate = estimate_run(trainer, check_run(trainer))
    assert estimate is not None
    assert estimate.memory >= estimate.needed > 0
    return estimate.needed


def test_memory_depends_on_gradients_states_and_activations(bases: dict[str, str], tmp_path: Path) -> None:
    base = bases["qwen2"]
    large = {"per_device_train_batch_size": 24, "packing": False}
    whole = needed(base, tmp_path, **large)
    assert needed(base, tmp_path, per_device_train_batch_size=24) < whole  # packed
    assert needed(base, tmp_path, **large, activation_checkpointing=True) < whole
    assert needed(base, tmp_path, **large, gradient_accumulation_steps=2) > whole
    one = {"per_device_train_batch_size": 1}  # what LoRA keeps for its dropout counts less than gradients
    assert needed(base, tmp_path, **one, method="lora") < needed(base, tmp_path, **one)
    assert needed(base, tmp_path, **large, method="head") < needed(base, tmp_path, **large, method="lora")
    assert needed(base, tmp_path, **large, optim="sgd") < whole  # no moments


def test_weights_of_a_mapped_file_are_in_memory_once_read(tmp_path: Path) -> None:
    size, process = 2**26, psutil.Process()  # 256 MiB
    layer = torch.nn.Linear(1, 1, bias=False)
    (tmp_path / "weights").touch()
    mapped = torch.from_file(str(tmp_path / "weights"), shared=True, size=size)
    layer.weight = torch.nn.Parameter(mapped)
    before = process.memory_info().rss
    estimates.read_weights(layer)
    assert process.memory_info().rss - before > 0.9 * 4 * size


def test_bytes_equal_those_saved_by_autograd(bases: dict[str, str]) -> None:
    model = build(bases["qwen2"], task="pooled_classifier", labels=["a", "b"], pooling="mean").train()
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    rows = [list(range(5, 45))] * 8
    ids = torch.tensor(rows)
    model.prefix_sharing = False
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    kept = pass_costs(model, training=True).kept * batch_shape(model, rows).tokens
    assert 0.7 < kept / sum(found.values()) < 1.3
    assert logits.requires_grad


def test_a_run_that_does_not_fit_names_options(
    bases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = estimates._machine
    monkeypatch.setattr(estimates, "_machine", lambda *args: {**machine(*args), "free": 1_000})
    trainer = text_trainer(bases["qwen2"], tmp_path, num_train_epochs=1)
    estimate, _ = ran(trainer)  # a warning, and the run goes on
    assert trainer.state.global_step > 0
    warning = capsys.readouterr().out.split("warning: ")[1].splitlines()[0]
    typed = [part.split() for part in warning.split(": give ")[1].split(", or ")]
    assert [words[0] for words in typed] == [
        "--per_device_train_batch_size",
        "--activation_checkpointing",
        "--use_peft",
    ]
    for words in typed:
        _, args, model_args = parse_classifier_arguments(["--use_cpu", "true", *words])
        assert args.gradient_checkpointing == (words[0] == "--activation_checkpointing")
        assert model_args.use_peft == (words[0] == "--use_peft")
    assert typed[0] == ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
    assert not any("warning" in line for line in replace(estimate, free=10**15).messages())


def test_features_that_do_not_fit_name_options(
    bases: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = estimates._machine
    monkeypatch.setattr(estimates, "_machine", lambda *args: {**machine(*args), "free": 1})
    extract_features(build(bases["qwen2"]), [[5, 6, 7]], usage=Usage())
    words = capsys.readouterr().out.split(": give ")[1].split()
    options, _, _ = parse_sweep_arguments(["--use_cpu", "true", *words])
    assert options.feature_options()["dtype"] == torch.bfloat16
    extract_features(build(bases["qwen2"]), [[5, 6, 7]], usage=Usage(), dtype=torch.bfloat16)
    assert ": give " not in capsys.readouterr().out  # nothing is left to give


def test_other_processes_share_the_memory_of_a_cpu() -> None:
    one = Estimate(
        seconds=1,
        memory=10,
        weights=1,
        needed=6,
        free=10,
        tokens=1,
        linear=1,
        operations=1,
        peak=1,
        device="cpu",
    )
    assert len(one.messages()) == 1
    assert len(replace(one, processes=2).messages()) == 2
    assert len(replace(one, processes=2, device="cuda").messages()) == 1
    assert "not calibrated" in replace(one, device="cuda").messages()[0]
    assert not replace(one, device="cuda").as_dict()["calibrated"]
