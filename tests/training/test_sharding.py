"""Sharded weights come back whole on the main process, adapter and fp32 head included."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace

import launching
import torch
from transformers.integrations import deepspeed

from qwen_task_heads import adapter_config, build
from qwen_task_heads.training.sharding import is_sharded, whole_model

INPUT = {"input_ids": torch.arange(1, 9).view(2, 4)}


def make():
    torch.manual_seed(0)
    return build("embedded", task="pooled_classifier", labels=["a", "b", "c"]).eval()


def work(folder: str) -> None:
    """One of two processes: shake, shard, collect, compare."""
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
            assert torch.equal(whole.eval()(**INPUT).logits, expected)
        Path(folder, "equal").touch()
    else:
        assert whole is None
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_give_back_one_model(tmp_path):
    for rank, process in enumerate(launching.fork_two(work, str(tmp_path), log=tmp_path / "log")):
        launching.join(process, tmp_path / f"log{rank}")
    assert (tmp_path / "equal").exists()


class Zero3:
    """What transformers keeps of DeepSpeed's configuration while a run lasts."""

    def is_zero3(self) -> bool:
        return True


def test_the_whole_model_is_not_split_again(monkeypatch):
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
    with torch.no_grad():
        assert torch.equal(whole.eval()(**INPUT).logits, model(**INPUT).logits)
