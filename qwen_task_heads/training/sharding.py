"""Collection of a sharded model (FSDP2, DeepSpeed ZeRO-3) on one process after training.

All processes collect the weights together, and the main process loads them into a new model. A single process
can neither run nor save a sharded module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from qwen_task_heads.adapters import with_adapter

ZERO_3 = 3


def whole_model(trainer: Any, *, make: Callable[[], Any], peft_config: Any = None) -> Any:
    """Return the trained model with all of its weights on the main process.

    Every process must call it. ZeRO-3 collects in 16 bits, including the fp32 head, whose scores then change
    by rounding.

    Args:
        trainer: after training.
        make: builds the model as before training; called only on the main process and if weights are sharded.
        peft_config: of the adapter that the trainer added.

    Returns:
        The unwrapped model on the main process, None on the others.

    Source: accelerate 1.15, `Accelerator.get_state_dict`.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    if _is_zero_3(trainer):
        state = accelerator.get_state_dict(trainer.model_wrapped)
        # Otherwise `from_pretrained` shards the new model too and waits for processes that do not call it.
        unset_hf_deepspeed_config()
    elif is_sharded(model):
        state = full_state(model)
    else:
        return model if trainer.args.process_index == 0 else None
    if trainer.args.process_index != 0:
        return None
    whole = make()
    whole.config = model.get_base_model().config if peft_config is not None else model.config
    if peft_config is not None:
        whole = with_adapter(whole, peft_config)
    whole.load_state_dict(state, strict=True)
    return whole


def is_in_lockstep(trainer: Any) -> bool:
    """Return whether a forward pass needs all processes, because weights are collected for it."""
    return _is_zero_3(trainer) or is_sharded(trainer.model)


def _is_zero_3(trainer: Any) -> bool:
    plugin = trainer.args.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == ZERO_3


def is_sharded(model: Any) -> bool:
    """Return whether a parameter is a DTensor, of which each process has a shard (FSDP2)."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def full_state(model: Any) -> dict[str, Any]:
    """Return all tensors of a model sharded by FSDP2, on the CPU of the main process; {} on the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
