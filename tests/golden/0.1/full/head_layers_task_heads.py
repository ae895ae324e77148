"""The states of lower layers, for a head that reads several layers.

A backbone returns the states of its last layer. A hook on each lower layer that the head reads keeps what the
layer returns in a `LayerStates`, which the pass brings along as an argument: without that argument the hook
does nothing, so the passes of several threads, of replicas and of copies of a model do not meet. Hooks are
put on once, when the model is built, and are functions of this module, so that copies and pickles have them.
This file travels with every published model; it imports torch, transformers and its siblings only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .configuration_task_heads import refuse


class LayerStates:
    """Takes what lower layers return in one pass. No dict, for the same reason as `packing_task_heads.Store`.

    Args:
        layers: their numbers, from 1; empty for a head that reads the last layer alone.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = list(layers)
        self.found: dict[int, torch.Tensor] = {}
        self.has_gradients = torch.is_grad_enabled()

    @property
    def argument(self) -> dict[str, LayerStates]:
        """The keyword argument of the backbone by which its layers find this; {} if no layer is asked for."""
        return {"layer_states": self} if self.layers else {}

    def take(self, device: torch.device) -> list[torch.Tensor]:
        """Return the states, (1, N, H) or (B, T, H) as the layers returned them, in the order of `layers`."""
        return [self.found[number].to(device) for number in self.layers]


def keep_states(backbone: Any, layers: Sequence[int]) -> None:
    """Put the hook on lower layers of a backbone, by their numbers from 1."""
    for number in layers:
        backbone.layers[number - 1].register_forward_hook(_keep, with_kwargs=True)


def _keep(layer: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    states = kwargs.get("layer_states")
    if states is None:
        return
    if states.has_gradients and not torch.is_grad_enabled():
        raise refuse(
            "gradient checkpointing",
            "a checkpoint around a whole layer, in which no gradient is recorded",
            "use_reentrant: false with head_layers",
            "pass gradient_checkpointing_kwargs={'use_reentrant': False}",
        )
    # The first time: a checkpoint runs a layer once more in the backward pass.
    states.found.setdefault(layer.self_attn.layer_idx + 1, output[0] if isinstance(output, tuple) else output)


def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate the states of several layers along the last dimension; those of one are returned as is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)
