"""What all rows of a call begin with, encoded once and kept for the next call.

A long instruction stands before every text that is scored, a long prompt before every title of a list.
Their keys and values do not depend on what follows, so they are computed once. The template's beginning is
always taken whole, so that an answer hangs on nothing that was asked before. The prompt of a list may be
taken in part: under causal attention the beginning of a prefix is a prefix. One of each is kept; prompts
that differ within a call are shared inside its batches anyway.

What is kept goes with the weights that made it: a training step, a move to another device or autocast make
it worthless, and it is made again. Fused optimizers write past torch's count of writes to a tensor, so the
steps of all optimizers are counted too. Threads may use one cache at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.packing_task_heads import KeysAndValues, common_length

WORTH = 32  # tokens; below, a cached prefix saves less than its second pass costs

_steps = [0]  # of all optimizers of this process


def _count_step(*_: Any) -> None:
    _steps[0] += 1


register_optimizer_step_post_hook(_count_step)

_Kept = tuple[Any, list[int], KeysAndValues]  # the state of the model, what was encoded, and into what


class PrefixCache:
    """The keys and values of beginnings of rows.

    Args:
        model: whose rows begin so. Of its weights, what is written to `.data` is not seen, but for the
            writes of an optimizer's step.
        template: ids that every row begins with.
    """

    def __init__(self, model: TaskHeadModel, *, template: Sequence[int] = ()) -> None:
        self.model = model
        self.template = list(template)
        self._kept: dict[str, _Kept] = {}  # of the template, of a list

    def take(self, rows: list[list[int]], *, of_list: bool = False) -> tuple[int, KeysAndValues | None]:
        """Give how many tokens of every row are known already, and their keys and values.

        Args:
            rows: token ids, as long as the model reads them.
            of_list: the rows are titles of one list, under one prompt.
        """
        if not rows or not self._can_serve(max(map(len, rows))):
            return 0, None
        state = state_of(self.model)
        least = min(rows)
        # What the least and the greatest of all have in common, all have; each keeps a token of its own.
        common = least[: min(common_length(least, max(rows)), min(map(len, rows)) - 1)]
        if of_list:
            ids, kept = self._find("list", state)
            known = common_length(common, ids)
            # Titles that begin alike by chance make `common` longer than what comes again: half is enough.
            if known < max(WORTH, len(common) / 2) and len(common) >= WORTH and len(rows) > 1:
                known, kept = len(common), self._encode("list", common, state)
            if known >= max(WORTH, len(self.template)):
                return known, {layer: (k[:, :known], v[:, :known]) for layer, (k, v) in kept.items()}
        size = len(self.template)
        if size < WORTH or common[:size] != self.template:
            return 0, None
        _, kept = self._find("template", state)
        return size, kept or self._encode("template", self.template, state)

    def _find(self, name: str, state: Any) -> tuple[list[int], KeysAndValues]:
        # Read once: another thread may put another prompt there at any time.
        made, ids, kept = self._kept.get(name, (None, [], {}))
        return (ids, kept) if made == state else ([], {})

    def _encode(self, name: str, ids: list[int], state: Any) -> KeysAndValues:
        with torch.inference_mode():
            kept = self.model.encode_prefix(torch.tensor([ids], device=self.model.device))
        self._kept[name] = state, ids, kept
        return kept

    def _can_serve(self, longest: int) -> bool:
        # A compiled model pads all rows; `torch.compile(model)` wraps it, and `.compile()` does not.
        compiled = "_orig_mod" in self.model._modules or self.model._compiled_call_impl is not None
        return not compiled and self.model.prefix_fallback_reason(longest) is None


def state_of(model: torch.nn.Module) -> Any:
    """Equal as long as the same weights lie at the same place and are computed with in the same way."""
    kind = next(model.parameters()).device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    # torch counts the writes to a tensor, except to one that was made in inference mode.
    return (
        _steps[0],
        cast,
        [
            (id(weight), 0 if weight.is_inference() else weight._version, weight.device, weight.dtype)
            for weight in model.parameters()
        ],
    )
