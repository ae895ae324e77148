"""The whole model on one process, after training that had sharded its weights (FSDP2, DeepSpeed ZeRO-3).

Sharded weights are collected by all processes together, and loaded into a model that the main one builds
again: a sharded module can neither be run nor saved by one process alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from qwen_task_heads.adapters import with_adapter

ZERO_3 = 3


def whole_model(trainer: Any, *, make: Callable[[], Any], peft_config: Any = None) -> Any:
    """Give the trained model with all of its weights, on the main process.

    Every process must call it. ZeRO-3 collects in 16 bits, the fp32 head too: its scores then move by
    rounding.

    Args:
        trainer: after training.
        make: builds the model as it was before training; called on the main process, and only where
            weights are sharded.
        peft_config: of the adapter that the trainer put on it.

    Returns:
        On the main process the model, unwrapped; None on the others.

    Source: accelerate 1.15, `Accelerator.get_state_dict`.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    if _is_zero_3(trainer):
        state = accelerator.get_state_dict(trainer.model_wrapped)
        # Else `from_pretrained` would split the new model too, and wait for processes that do not call it.
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
    """Whether a forward pass waits for the same pass of all processes, as weights are collected for it."""
    return _is_zero_3(trainer) or is_sharded(trainer.model)


def _is_zero_3(trainer: Any) -> bool:
    plugin = trainer.args.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == ZERO_3


def is_sharded(model: Any) -> bool:
    """Whether a parameter is a DTensor, of which each process holds a part (FSDP2)."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def full_state(model: Any) -> dict[str, Any]:
    """All tensors of a model sharded by FSDP2, on the CPU of the main process; empty on the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
