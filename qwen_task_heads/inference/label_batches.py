"""Log-probabilities of a trie of labels after a batch of prompts that share a prefix."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from qwen_task_heads.hubcode.packing_task_heads import common_length
from qwen_task_heads.inference.label_trie import Trie, logits_of, sum_edges

MIN_SHARED = 8  # tokens of a common prefix that are computed separately
KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]  # per layer, (1, heads, P, D)


def shared_length(rows: list[list[int]]) -> int:
    """Return the length of the common prefix, leaving each prompt one token; 0 if it is too short."""
    # The common prefix of the least and the greatest row is that of all.
    shared = min(common_length(min(rows), max(rows)), min(map(len, rows)) - 1)
    return shared if shared >= MIN_SHARED and len(rows) > 1 else 0


def encode_prefix(model: Any, ids: list[int]) -> KeysAndValues:
    """Return keys and values per layer, (1, heads, P, D), of a prefix."""
    cache = DynamicCache()
    input_ids = torch.tensor([ids], device=model.device)
    model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return [(layer.keys, layer.values) for layer in cache.layers]


def score_batch(model: Any, rows: list[list[int]], trie: Trie, prefix: KeysAndValues | None) -> torch.Tensor:
    """Return the log-probability of every label's tokens, (B, L) float64, after B prompts.

    Args:
        model: a causal language model.
        rows: ids of the prompts after the prefix.
        trie: trie of the labels.
        prefix: keys and values of the prefix, or None.
    """
    device = model.device
    past = prefix[0][0].shape[2] if prefix else 0
    count, longest = len(rows), max(map(len, rows))
    # Padded on the left, so that all prompts end in the same column.
    ids = torch.tensor([[row[0]] * (longest - len(row)) + row for row in rows], device=device)
    sizes = torch.tensor([len(row) for row in rows], device=device)
    real = torch.arange(longest, device=device) >= longest - sizes[:, None]  # (B, T)
    real = torch.cat([real.new_ones(count, past), real], dim=1)  # (B, P + T)
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    layers = [(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in prefix or ()]
    cache = DynamicCache(layers or None)
    logits = logits_of(
        model,
        keep=1,
        input_ids=ids,
        attention_mask=real.long(),
        position_ids=positions[:, past:],
        past_key_values=cache,
        use_cache=True,
    )  # (B, 1, V)
    if len(trie.tokens):
        tree = trie.ancestors.to(device)[None].expand(count, -1, -1)  # (B, N, N)
        visible = torch.cat([real[:, None].expand(-1, len(trie.tokens), -1), tree], dim=2)[:, None]
        mask = torch.zeros(visible.shape, dtype=model.dtype, device=device)
        mask.masked_fill_(~visible, torch.finfo(model.dtype).min)
        node_logits = logits_of(
            model,
            input_ids=trie.tokens.to(device)[None].expand(count, -1),
            attention_mask=mask,  # (B, 1, N, P + T + N)
            position_ids=past + sizes[:, None] - 1 + trie.depths.to(device),
            past_key_values=cache,
            use_cache=True,
        )
        logits = torch.cat([logits, node_logits], dim=1)  # (B, 1 + N, V)
    return sum_edges(logits, trie)
