"""Sharded weights come back whole on the main process, adapter and fp32 head included."""

from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import launching
import pytest
import torch
from equality import assert_same_logits, assert_same_model
from transformers.integrations import deepspeed

from qwen_task_heads import LabelMap, adapter_config, build, load_tokenizer
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.generators import load_generator
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.pretrained import locate
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts
from qwen_task_heads.training.sft_trainer import AnswerTrainer, answer_dataset
from qwen_task_heads.training.sharding import is_sharded, whole_model

INPUT = {"input_ids": torch.arange(1, 9).view(2, 4)}


def make():
    torch.manual_seed(0)
    return build("embedded", task="pooled_classifier", labels=["a", "b", "c"]).eval()


def work(folder: str) -> None:
    """Run one of two processes: randomize, shard, collect and compare."""
    from peft import get_peft_model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import Trainer, TrainingArguments

    model = make()
    adapter = {"make": make, "peft_config": adapter_config(model, r=4)}
    trainer = Trainer(
        get_peft_model(model, adapter["peft_config"]).eval(),
        TrainingArguments(folder, use_cpu=True, report_to="none"),
    )
    with torch.no_grad():
        for number, parameter in enumerate(trainer.model.parameters()):
            torch.manual_seed(number)
            parameter.add_(0.1 * torch.randn_like(parameter))
        expected = trainer.model(**INPUT).logits
    assert not is_sharded(trainer.model)
    assert whole_model(trainer, **adapter) is (trainer.model if trainer.args.process_index == 0 else None)
    fully_shard(trainer.model, mesh=init_device_mesh("cpu", (2,)))
    assert is_sharded(trainer.model)
    whole = whole_model(trainer, **adapter)
    if trainer.args.process_index == 0:
        assert not is_sharded(whole)
        with torch.no_grad():
            assert_same_logits(whole.eval()(**INPUT).logits, expected)
        Path(folder, "equal").touch()
    else:
        assert whole is None
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_collect_one_model(tmp_path):
    for rank, process in enumerate(launching.fork_two(work, str(tmp_path), log=tmp_path / "log")):
        launching.join(process, tmp_path / f"log{rank}")
    assert (tmp_path / "equal").exists()


def work_on_answers(folder: str) -> None:
    """Run one of two processes: score labels with a sharded chat model, and collect it."""
    from peft import LoraConfig
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from trl import SFTConfig

    labels, tokenizer = LabelMap(("sport", "foreign trade")), load_tokenizer("embedded")
    prompts = AnswerPrompts(tokenizer, labels, instruction="Which is it?\n", model_type="qwen2")
    dev = [TextExample(text=f"a text {n}", target=n % 2) for n in range(7)]
    make, adapter = partial(load_generator, locate("embedded")), LoraConfig(task_type="CAUSAL_LM", r=4)
    model = make()
    rows, scorer = answer_dataset(dev, prompts=prompts)[0], LabelScorer(model, prompts=prompts)
    trainer = AnswerTrainer(
        model,
        args=SFTConfig(folder, use_cpu=True, bf16=False, report_to="none"),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter,
        scorer=scorer,
        dev=dev,
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    texts = [text.text for text in dev]
    expected, accuracy = scorer.log_scores(texts), trainer._accuracy()
    fully_shard(trainer.model, mesh=init_device_mesh("cpu", (2,)))
    assert trainer._accuracy() == accuracy
    whole = whole_model(trainer, make=make, peft_config=adapter)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if trainer.args.process_index == 0:
        scorer.model = whole.get_base_model().eval()
        assert torch.allclose(scorer.log_scores(texts), expected, atol=1e-5, rtol=0)
        Path(folder, "equal").touch()


@pytest.mark.slow
def test_a_sharded_model_is_evaluated_by_all_processes(tmp_path):
    for rank, process in enumerate(launching.fork_two(work_on_answers, str(tmp_path), log=tmp_path / "log")):
        launching.join(process, tmp_path / f"log{rank}")
    assert (tmp_path / "equal").exists()


class Zero3:
    """DeepSpeed configuration that transformers stores during a run."""

    def is_zero3(self) -> bool:
        return True


def test_the_collected_model_is_not_sharded_again(monkeypatch):
    config, model = Zero3(), make()
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", weakref.ref(config))
    assert deepspeed.is_deepspeed_zero3_enabled()
    trainer = SimpleNamespace(  # DeepSpeed runs on GPUs: its engine is a stand-in
        model=model,
        model_wrapped=model,
        args=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3), process_index=0),
        accelerator=SimpleNamespace(
            unwrap_model=lambda model: model, get_state_dict=lambda model: model.state_dict()
        ),
    )
    whole = whole_model(trainer, make=make)
    assert_same_model(whole.eval(), model.eval(), **INPUT)
