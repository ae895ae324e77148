"""What all rows of a call begin with, encoded once and kept for the next call.

A long instruction, or the prompt of a list, stands before every title that is scored. Its keys and values
do not depend on the titles, so they are computed once; a call whose rows begin with part of them uses that
part, because under causal attention the beginning of a prefix is a prefix. One is kept: a `Scorer` serves
one model with one template, and prompts that differ within a call are shared inside its batches anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.packing_task_heads import KeysAndValues

WORTH = 32  # tokens; below, a cached prefix saves less than its second pass costs


class PrefixCache:
    """The keys and values of one beginning of rows.

    Args:
        model: whose rows begin so; its weights must stay as they are.
    """

    def __init__(self, model: TaskHeadModel) -> None:
        self.model = model
        self.ids: list[int] = []
        self.kept: KeysAndValues = {}

    def take(self, rows: list[list[int]]) -> tuple[int, KeysAndValues | None]:
        """Give how many tokens of every row are known already, and their keys and values.

        Args:
            rows: token ids, as long as the model reads them.
        """
        if not rows or not self.can_serve:
            return 0, None
        # What the least and the greatest of all have in common, all have.
        least = min(rows)
        size = min(_alike(least, max(rows)), min(map(len, rows)) - 1)  # every row keeps a token of its own
        common = list(least[:size])
        known = _alike(common, self.ids)
        # Titles that begin alike by chance make `common` longer than what comes again: half is enough.
        if known < max(WORTH, len(common) / 2) and len(common) >= WORTH and len(rows) > 1:
            with torch.inference_mode():
                row = torch.tensor([common], device=self.model.device)
                self.kept, self.ids, known = self.model.encode_prefix(row), common, len(common)
        if known < WORTH:
            return 0, None
        return known, {layer: (k[:, :known], v[:, :known]) for layer, (k, v) in self.kept.items()}

    @property
    def can_serve(self) -> bool:
        """Whether the model takes a prefix: packed rows of which the last token is pooled."""
        return self.model.packing and self.model.why_padded is None and self.model.config.pooling == "last"


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows have in common from the beginning."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
