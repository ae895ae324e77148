"""What all rows of a call begin with, encoded once and kept for the next call.

A long instruction stands before every text that is scored, a long prompt before every title of a list.
Their keys and values do not depend on what follows, so they are computed once. The template's beginning is
always taken whole, so that an answer hangs on nothing that was asked before. The prompt of a list may be
taken in part: under causal attention the beginning of a prefix is a prefix. One of each is kept; prompts
that differ within a call are shared inside its batches anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.packing_task_heads import KeysAndValues

WORTH = 32  # tokens; below, a cached prefix saves less than its second pass costs


class PrefixCache:
    """The keys and values of beginnings of rows.

    Args:
        model: whose rows begin so; its weights must stay as they are.
        template: ids that every row begins with.
    """

    def __init__(self, model: TaskHeadModel, *, template: Sequence[int] = ()) -> None:
        self.model = model
        self.template = list(template)
        self._kept: dict[str, tuple[list[int], KeysAndValues]] = {}  # of the template, of a list

    def take(self, rows: list[list[int]], *, of_list: bool = False) -> tuple[int, KeysAndValues | None]:
        """Give how many tokens of every row are known already, and their keys and values.

        Args:
            rows: token ids, as long as the model reads them.
            of_list: the rows are titles of one list, under one prompt.
        """
        if not rows or not self.can_serve:
            return 0, None
        least = min(rows)
        # What the least and the greatest of all have in common, all have; each keeps a token of its own.
        common = least[: min(_alike(least, max(rows)), min(map(len, rows)) - 1)]
        if of_list:
            known = _alike(common, self._ids("list"))
            # Titles that begin alike by chance make `common` longer than what comes again: half is enough.
            if known < max(WORTH, len(common) / 2) and len(common) >= WORTH and len(rows) > 1:
                known = self._encode("list", common)
            if known >= max(WORTH, len(self.template)):
                kept = self._kept["list"][1]
                return known, {layer: (k[:, :known], v[:, :known]) for layer, (k, v) in kept.items()}
        size = len(self.template)
        if size < WORTH or common[:size] != self.template:
            return 0, None
        if not self._ids("template"):
            self._encode("template", self.template)
        return size, self._kept["template"][1]

    def _ids(self, name: str) -> list[int]:
        return self._kept.get(name, ([], {}))[0]

    def _encode(self, name: str, ids: list[int]) -> int:
        with torch.inference_mode():
            row = torch.tensor([ids], device=self.model.device)
            self._kept[name] = ids, self.model.encode_prefix(row)
        return len(ids)

    @property
    def can_serve(self) -> bool:
        """Whether the model takes a prefix: packed rows of which the last token is pooled."""
        return self.model.packing and self.model.why_padded is None and self.model.config.pooling == "last"


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows have in common from the beginning."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
