"""States of lower layers, for a head that reads several layers.

A backbone returns the states of its last layer. A hook on each lower layer that the head reads stores the
output of the layer in a `LayerStates`, which is an argument of the pass. Without that argument the hook does
nothing, so passes of several threads, replicas and copies of a model do not share states. Hooks are
registered once, when the model is built. They are functions of this module, so that copies and pickles keep
them. This file is copied into every published model; it imports only torch, transformers and its siblings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .errors_task_heads import TaskHeadError


class LayerStates:
    """Stores the outputs of lower layers in one pass.

    It is not a dict, for the same reason as `packing_task_heads.Store`.

    Args:
        layers: their numbers, from 1; empty for a head that reads only the last layer.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = list(layers)
        self.found: dict[int, torch.Tensor] = {}
        self.has_gradients = torch.is_grad_enabled()

    @property
    def argument(self) -> dict[str, LayerStates]:
        """Return the keyword argument that passes this object to the layers; {} without layers."""
        return {"layer_states": self} if self.layers else {}

    def take(self, device: torch.device) -> list[torch.Tensor]:
        """Return the states as the layers returned them, (1, N, H) or (B, T, H), in the order of `layers`."""
        return [self.found[number].to(device) for number in self.layers]


def keep_states(backbone: Any, layers: Sequence[int]) -> None:
    """Register the hook on lower layers of a backbone, given by their numbers from 1."""
    for number in layers:
        backbone.layers[number - 1].register_forward_hook(_keep, with_kwargs=True)


def _keep(layer: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    states = kwargs.get("layer_states")
    if states is None:
        return
    if states.has_gradients and not torch.is_grad_enabled():
        raise TaskHeadError(
            "gradient checkpointing",
            "a reentrant checkpoint around a whole layer records no gradient",
            "use_reentrant: false with head_layers",
            "pass gradient_checkpointing_kwargs={'use_reentrant': False}",
            code="option-conflict",
        )
    # Only the first output: a checkpoint runs a layer again in the backward pass.
    states.found.setdefault(layer.self_attn.layer_idx + 1, output[0] if isinstance(output, tuple) else output)


def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate the states of several layers along the last dimension; one layer is not changed."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)
