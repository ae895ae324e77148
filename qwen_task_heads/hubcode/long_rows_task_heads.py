"""Rows over `max_seq_length`: cut them to pieces, and aggregate the logits of the pieces.

This file is copied into every published model; it imports only torch, transformers and its siblings.
"""

from __future__ import annotations

from typing import Any

import torch

from .encoding_task_heads import cut_row, pad_rows
from .errors_task_heads import TaskHeadError


def is_long(config: Any, tokens: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Return whether a text without padding is longer than `max_seq_length`; title scorers have no limit."""
    limit = config.__dict__.get("max_seq_length")
    if limit is None or tokens.shape[1] <= limit:
        return False
    return mask is None or mask.dim() != 2 or int(mask.sum(1).max()) > limit


def cut_rows(
    config: Any, input_ids: torch.Tensor | None, mask: torch.Tensor | None, **others: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Cut every row to pieces of at most `max_seq_length` ids, template included.

    Args:
        config: a `PooledClassifierConfig`.
        input_ids: (B, T) int64, padded on any side.
        mask: (B, T), 1 for real tokens; None for all real.
        **others: arguments of `forward` that cannot be cut; each must be None.

    Returns:
        The pieces (P, T) int64 of all rows, padded on the right, their mask, and their number per row.

    Raises:
        ValueError: a row that cannot be cut: a pair, or a row without the template; or other arguments.
    """
    named = [name for name, value in others.items() if value is not None]
    if mask is not None and mask.dim() != 2:
        named.append("attention_mask")
    if input_ids is None or named:
        raise TaskHeadError(
            named[0],
            f"a row is longer than max_seq_length {config.max_seq_length}",
            "only input_ids and a 2D mask for such rows",
            "leave it out, or cut the row",
            code="text-too-long",
        )
    if "between" in (config.template or {}):
        raise TaskHeadError(
            "input_ids",
            f"a pair is longer than max_seq_length {config.max_seq_length}",
            "pairs that the tokenizer has cut, because only it can separate the two texts",
            "pass truncation=True to the tokenizer",
            code="text-too-long",
        )
    mask = torch.ones_like(input_ids) if mask is None else mask
    found = [pieces_of(config, row[real].tolist()) for row, real in zip(input_ids, mask.bool(), strict=True)]
    batch = pad_rows([piece for row in found for piece in row], pad_id=0)
    device = input_ids.device
    return batch["input_ids"].to(device), batch["attention_mask"].to(device), [*map(len, found)]


def pieces_of(config: Any, row: list[int]) -> list[list[int]]:
    """Cut one row of ids by the truncation of a config; a row that fits is one piece."""
    if config.__dict__.get("max_seq_length") is None:
        return [row]
    return cut_row(
        row,
        max_length=config.max_seq_length,
        truncation=config.truncation,
        overlap=config.window_overlap,
        template=config.template,
    )


def aggregate(config: Any, logits: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Aggregate the logits of pieces (P, L) to those of rows (B, L), differentiably.

    The mean of logits is the normalised geometric mean of the windows' probabilities. Aggregated
    log-probabilities of `ordinal` do not sum to one, so they are normalised again, as by softmax.
    """
    reduce = torch.mean if config.window_aggregation == "mean" else torch.amax
    rows = torch.stack([reduce(part, dim=0) for part in logits.split(counts)])
    return rows.log_softmax(-1) if config.problem_type == "ordinal" else rows
