"""Cache for the keys and values of a prefix that all rows of a call share.

A long instruction precedes every text, and a long prompt precedes every title of a list. Their keys and
values do not depend on the tokens after them, so they are computed once and kept for the next call. The
prefix of the template is used whole, so that a score does not depend on earlier calls. The prompt of a list
may be used in part, because attention is causal. One prefix of each kind is kept; different prompts of one
call share their prefixes inside a batch.

Cached values are valid for the weights that computed them. They are computed again after a training step, a
move to another device or a change of autocast. Fused optimizers do not update torch's version counter of a
tensor, so the steps of all optimizers are counted too. Several threads may use one cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.packing_task_heads import KeysAndValues, common_length

MIN_TOKENS = 32  # a shorter cached prefix saves less than its second pass costs

_steps = [0]  # of all optimizers of this process


def _count_step(*_: Any) -> None:
    _steps[0] += 1


register_optimizer_step_post_hook(_count_step)

_Entry = tuple[Any, list[int], KeysAndValues]  # state of the model, ids of the prefix, their keys and values


class PrefixCache:
    """Keys and values of shared prefixes.

    Args:
        model: model that computes them. Writes to `.data` of its weights are not detected, except those of an
            optimizer's step.
        template: ids that every row starts with.
    """

    def __init__(self, model: TaskHeadModel, *, template: Sequence[int] = ()) -> None:
        self.model = model
        self.template = list(template)
        self._entries: dict[str, _Entry] = {}  # keys: "template" and "list"

    def take(self, rows: list[list[int]], *, of_list: bool = False) -> tuple[int, KeysAndValues | None]:
        """Return the number of cached tokens of every row, and their keys and values.

        Args:
            rows: token ids, not longer than the limit of the model.
            of_list: whether the rows are titles of one list with one prompt.
        """
        if not rows or not self._can_serve(max(map(len, rows))):
            return 0, None
        state = state_of(self.model)
        least = min(rows)
        # The common prefix of the least and the greatest row is that of all. Each row keeps one token.
        common = least[: min(common_length(least, max(rows)), min(map(len, rows)) - 1)]
        if of_list:
            ids, cached = self._find("list", state)
            known = common_length(common, ids)
            # Titles with the same first words make `common` longer than the prompt: half of it is enough.
            if known < max(MIN_TOKENS, len(common) / 2) and len(common) >= MIN_TOKENS and len(rows) > 1:
                known, cached = len(common), self._encode("list", common, state)
            if known >= max(MIN_TOKENS, len(self.template)):
                return known, {layer: (k[:, :known], v[:, :known]) for layer, (k, v) in cached.items()}
        size = len(self.template)
        if size < MIN_TOKENS or common[:size] != self.template:
            return 0, None
        _, cached = self._find("template", state)
        return size, cached or self._encode("template", self.template, state)

    def _find(self, name: str, state: Any) -> tuple[list[int], KeysAndValues]:
        # Read once, because another thread may replace the entry.
        entry_state, ids, cached = self._entries.get(name, (None, [], {}))
        return (ids, cached) if entry_state == state else ([], {})

    def _encode(self, name: str, ids: list[int], state: Any) -> KeysAndValues:
        with torch.inference_mode():
            cached = self.model.encode_prefix(torch.tensor([ids], device=self.model.device))
        self._entries[name] = state, ids, cached
        return cached

    def _can_serve(self, longest: int) -> bool:
        # A compiled model pads all rows; `torch.compile(model)` wraps it, and `.compile()` does not.
        compiled = "_orig_mod" in self.model._modules or self.model._compiled_call_impl is not None
        return not compiled and self.model.prefix_fallback_reason(longest) is None


def state_of(model: torch.nn.Module) -> Any:
    """Return a value that changes if the weights, their device or dtype, or autocast change."""
    kind = next(model.parameters()).device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    # torch counts the writes to a tensor, except to one created in inference mode.
    return (
        _steps[0],
        cast,
        [
            (id(weight), 0 if weight.is_inference() else weight._version, weight.device, weight.dtype)
            for weight in model.parameters()
        ],
    )
