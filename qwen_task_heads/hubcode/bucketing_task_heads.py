"""Buckets of rows of similar length, for backbones whose rows cannot be packed.

A layer that mixes tokens in another way than attention (the gated delta rule or a state space, with a
convolution before it) runs over padded rows. A batch of ragged lengths is computed in several passes, each
over rows of similar length, so that little padding is computed. Padding follows the tokens of a row, where no
causal layer reads it, so the results are those of each row alone. This file is copied into every published
model; it imports only torch and its siblings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .attention_task_heads import rotates_by_length

# Padded tokens that cost about as much as one more pass. A GPU takes as long for a few tokens as for
# thousands, because launching its kernels dominates the time.
PASS_TOKENS = {"cpu": 32}
PASS_TOKENS_ELSEWHERE = 4096


def buckets(lengths: Sequence[int], *, device_type: str = "cpu") -> list[list[int]]:
    """Group rows by length: a bucket grows until its padding costs more than another pass.

    Args:
        lengths: (B,) real tokens of each row.
        device_type: type of the device that computes them.

    Returns:
        Indices of the rows of each bucket, shorter rows first.

    Example:
        >>> from qwen_task_heads.hubcode.bucketing_task_heads import buckets
        >>> buckets([5, 90, 7, 91])
        [[0, 2], [1, 3]]
    """
    limit = PASS_TOKENS.get(device_type, PASS_TOKENS_ELSEWHERE)
    found: list[list[int]] = []
    total = 0  # real tokens of the last bucket
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        total += lengths[row]
        if not found or lengths[row] * (len(found[-1]) + 1) - total > limit:
            found.append([])
            total = lengths[row]
        found[-1].append(row)
    return found


def buckets_of(model: Any, mask: torch.Tensor) -> list[list[int]]:
    """Return the buckets of a padded batch with mask (B, T) bool; [] if it is computed in one pass."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    # Several processes must run the same number of passes: FSDP and ZeRO-3 gather weights in each pass.
    if not model.packing or tracing or is_distributed() or rotates_by_length(model.model.config):
        return []
    found = buckets(mask.sum(1).tolist(), device_type=mask.device.type)
    return found if len(found) > 1 else []


def is_distributed() -> bool:
    """Return whether this is one process of several."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def take_rows(
    tokens: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return some rows of a padded batch without its padding, padded on the right to the longest of them.

    Args:
        tokens: (B, T) ids or (B, T, H) embeddings.
        mask: (B, T) bool, True for real tokens, anywhere in a row.
        rows: R indices.

    Returns:
        (R, L) or (R, L, H), and their mask (R, L) bool. Padding keeps the values of the batch's padding.

    Example:
        >>> import torch
        >>> from qwen_task_heads.hubcode.bucketing_task_heads import take_rows
        >>> mask = torch.tensor([[False, True, True], [True, True, True]])
        >>> take_rows(torch.tensor([[0, 5, 6], [7, 8, 9]]), mask, [0])[0]
        tensor([[5, 6]])
    """
    index = torch.tensor(rows, device=mask.device)
    own = mask[index]  # (R, T)
    longest = int(own.sum(1).max())
    # A stable sort puts the positions of real tokens first, in their order.
    places = (~own).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]  # (R, L)
    return tokens[index[:, None], places], own.gather(1, places)


def in_order(parts: Sequence[torch.Tensor], groups: Sequence[Sequence[int]]) -> torch.Tensor:
    """Join the outputs of the buckets, (R, L) each, in the order of the batch's rows (B, L)."""
    return torch.cat(list(parts))[torch.tensor([row for group in groups for row in group]).argsort()]
