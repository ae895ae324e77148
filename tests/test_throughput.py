"""The throughput summary counts tokens of the batches and tokens that the backbone computes."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerControl, TrainerState, TrainingArguments

from qwen_task_heads import build
from qwen_task_heads.adapters import adapter_config
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.throughput import Throughput, matrix_peak
from qwen_task_heads.tokenization.collators import text_dataset
from qwen_task_heads.tokenization.templates import Template, bind_template
from qwen_task_heads.training.classifier_trainer import ClassifierTrainer
from qwen_task_heads.training.speed import ThroughputCallback

TEXTS = ["tea", "the trains of the north are late", "a rest", "why it is late every winter and who pays"] * 2


def trained(base: str, folder: Path, *, before: str, **options: Any) -> tuple[Throughput, list[int], Any]:
    torch.manual_seed(0)
    model = build(base, task="pooled_classifier", labels=["a", "b"], pooling="last")
    model.packing = options.pop("packing", True)
    tokenizer = load_tokenizer(base)
    bind_template(tokenizer, model.config, template=Template(before=before))
    examples = [TextExample(text=text, target=len(text) % 2) for text in TEXTS]
    data, _ = text_dataset(examples, tokenizer=tokenizer, config=model.config, num_labels=2)
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        bf16=False,
        **options,
    )
    trainer = ClassifierTrainer(
        model,
        args=args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer.throughput.result, [len(row) for row in data["input_ids"]], model


@pytest.mark.parametrize("packing", [True, False])
def test_tokens_are_counted(bases: dict[str, str], tmp_path: Path, packing: bool) -> None:
    before = "Is it about the weather, or about something else? " * 2
    found, lengths, model = trained(
        bases["qwen2"], tmp_path, before=before, packing=packing, eval_strategy="epoch"
    )
    assert found.real == sum(lengths)  # evaluation is not counted
    assert found.padded > found.real
    if packing:
        assert found.computed < found.real  # the instruction is computed once per batch
        assert 0.3 < found.avoided < 1
    else:
        assert found.computed == found.padded
    summary = found.summary()
    assert f"{found.padded:,} tokens" in summary
    assert f"{found.avoided:.0%} of the" in summary
    assert not model._forward_pre_hooks  # all hooks are removed


def counted(model: Any, *, training: bool) -> tuple[float, float]:
    """Return the operations of linear layers by `Throughput`, and of all products by torch."""
    speed, ids = Throughput(), torch.arange(3, 27).view(3, 8)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    with (
        speed.listening(inner, training=training),
        FlopCounterMode(display=False) as counter,
        nullcontext() if training else torch.inference_mode(),
    ):
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        if training:
            output.logits.sum().backward()
    assert not inner._forward_pre_hooks
    assert not any(module._forward_pre_hooks for module in inner.modules())
    products = counter.get_flop_counts()["Global"]
    return speed.flops, sum(products.get(name, 0) for name in (torch.ops.aten.mm, torch.ops.aten.addmm))


@pytest.mark.parametrize("pooling", ["last", "mean"])  # the last layer of `last` computes only pooled tokens
@pytest.mark.parametrize("kind", ["full", "frozen", "lora", "predict"])
def test_operations_are_those_that_torch_counts(bases: dict[str, str], kind: str, pooling: str) -> None:
    model: Any = build(bases["qwen2"], task="pooled_classifier", labels=["a", "b"], pooling=pooling)
    head = 2 * 3 * model.score.weight.numel()  # not part of the backbone
    if kind == "frozen":
        model.model.requires_grad_(False)
    if kind == "lora":
        model = get_peft_model(model, adapter_config(model))
    training = kind != "predict"
    ours, theirs = counted(model.train(training), training=training)
    assert 0 <= theirs - ours <= 3 * head


def test_a_share_above_the_peak_is_never_printed(bases: dict[str, str], tmp_path: Path) -> None:
    found, _, _ = trained(bases["qwen2"], tmp_path, before="Is it? ")
    found.seconds = 1.0
    for factor, expected in (
        (0.43, ", 43% of this machine's matrix peak;"),
        (5.98, "second; "),
        (1.0001, "second; "),
    ):
        found.flops, found._peak = factor * 1e18, 1e18  # no machine's own measurement is higher
        summary = found.summary()
        assert expected in summary
        assert all(float(share) <= 100 for share in re.findall(r"([\d.]+)%", summary))
    found.flops = 0.0  # as of layers that multiply in int8
    assert "peak" not in found.summary()
    assert found.utilization is None


def test_the_best_of_all_measurements_is_the_peak(bases: dict[str, str], tmp_path: Path) -> None:
    found, _, _ = trained(bases["qwen2"], tmp_path, before="Is it? ")
    before = found._peak
    assert before > 1e8  # measured before the training
    found.summary()
    assert found._peak >= before
    found._peak = 1e18
    found.measure_peak()
    assert found._peak == 1e18


def test_the_summary_of_a_run_without_an_update() -> None:
    assert Throughput().summary() == "speed: nothing was computed"
    state = torch.get_rng_state()
    assert matrix_peak(torch.device("cpu")) > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interrupted_run_is_not_counted_twice(bases: dict[str, str], tmp_path: Path) -> None:
    model, callback = build(bases["qwen2"]), ThroughputCallback()
    known = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(), TrainerControl()
    ids = torch.arange(3, 15).view(2, 6)
    for _ in range(2):  # as after `auto_find_batch_size` found a batch too large
        callback.on_train_begin(*known, model=model)
        model.train()(input_ids=ids, attention_mask=torch.ones_like(ids))
    callback.on_train_end(*known)
    assert callback.result.padded == 2 * ids.numel()
    assert not model._forward_pre_hooks


def test_a_hook_removed_by_another_thread_does_not_stop_a_pass(bases: dict[str, str]) -> None:
    model = build(bases["qwen2"], task="pooled_classifier", labels=["a", "b"]).eval()
    ids = torch.arange(3, 9).view(2, 3)
    with Throughput().listening(model):
        # The other thread has removed the flag but not yet the hook: torch calls it without kwargs.
        for module in (model, model.model):
            module._forward_pre_hooks_with_kwargs.clear()
        assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (2, 2)
