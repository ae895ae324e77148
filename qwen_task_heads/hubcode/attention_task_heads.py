"""Attention over packed rows, and the backbones that support it.

`packed_sdpa` is an attention implementation of transformers. Without packed rows it calls `sdpa` unchanged.
With packed rows, queries and keys are gathered into grids of similar length, on which torch's own kernels
run on any device. On CUDA in half precision, one call of torch's variable-length flash attention replaces the
grids, after a check that it gives the same output on this machine. This file is copied into every published
model; it imports only torch, transformers and its siblings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from .errors_task_heads import refuse
from .families_task_heads import family_of
from .packing_task_heads import Attention, Grid, PackedRows, Ragged, pack

# The number is increased when the fields of `PackedRows` change. transformers keeps one function per name,
# and two published models in one process may bring two versions of this file.
PACKED = "packed_sdpa_1"


def packing_fallback_reason(config: PreTrainedConfig) -> str | None:
    """Return why rows of a backbone cannot be packed; None if they can.

    Example:
        >>> from transformers import BloomConfig
        >>> from qwen_task_heads.hubcode.attention_task_heads import packing_fallback_reason
        >>> packing_fallback_reason(BloomConfig(attn_implementation="sdpa"))
        "packed rows are not exact for a 'bloom' backbone"
    """
    if not family_of(config.model_type).packable:
        return f"packed rows are not exact for a {config.model_type!r} backbone"
    if config.to_dict().get("use_bidirectional_attention"):
        return "the backbone's own attention is bidirectional"
    if config._attn_implementation == "sdpa":  # set after the model was built
        return f"attn_implementation was set to sdpa; set_attn_implementation({PACKED!r}) packs again"
    if config._attn_implementation != PACKED:
        return f"packed rows need attn_implementation sdpa, not {config._attn_implementation}"
    return None


def window_of(config: PreTrainedConfig) -> int | None:
    """Return the size of the attention's sliding window in tokens, if any; longer rows are padded."""
    fields = config.to_dict()
    kinds = fields.get("layer_types")
    slides = kinds is None or "sliding_attention" in kinds
    return fields.get("sliding_window") if slides else None


def rotates_by_length(config: PreTrainedConfig) -> bool:
    """Return whether rotations depend on the longest row of a batch, so that keys cannot be cached."""
    rope = config.to_dict().get("rope_parameters") or {}
    # Gemma 3 has one dictionary per kind of attention.
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return any(part.get("rope_type") in ("dynamic", "longrope") for part in parts)


def two_sided_mask(config: PreTrainedConfig, mask: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Expand the mask (B, T) of a padded batch to (B, 1, T, T); every token sees every real token."""
    implementation = config._attn_implementation
    if implementation not in ("sdpa", PACKED, "eager"):
        raise refuse(
            "attn_implementation",
            implementation,
            "sdpa or eager with bidirectional: true",
            "load the model with one of them",
            code="option-conflict",
        )
    two_sided = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    if implementation != "eager":
        return two_sided
    return torch.zeros_like(two_sided, dtype=dtype).masked_fill(~two_sided, torch.finfo(dtype).min)


def packed_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_rows: PackedRows | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention of one packed row: query (1, heads, N, D), key and value (1, key heads, N, D).

    Returns:
        (1, N, heads, D), and None for the weights.
    """
    if packed_rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    index: int = module.layer_idx  # type: ignore[assignment]
    if packed_rows.store is not None:
        packed_rows.store.layers[index] = (key[0], value[0])
    output = attend_with_prefix(
        query[0],
        key[0],
        value[0],
        packed_rows,
        packed_rows.attention,
        layer=index,
        dropout=dropout,
        scale=scaling,
    )
    return output[None], None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention: Attention,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
) -> torch.Tensor:
    """Compute the attention of packed queries.

    Args:
        query: (heads, N, D).
        key: (key heads, M, D), cached prefix first.
        value: (key heads, M, D).
        attention: the keys that each query sees.
        dropout: probability, 0 outside of training.
        scale: of the scores; 1 / sqrt(D) if None.

    Returns:
        (Q, heads, D) in the order of `attention`: N tokens, or one per row.
    """
    device = query.device.type
    if attention.ragged is not None and dropout == 0:
        # Rotation returns fp32 under autocast. torch casts inputs of its own kernels, but not of this one.
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
        if _has_varlen(cast, device, query.shape[2], query.requires_grad):
            return _varlen(query.to(cast), key.to(cast), value.to(cast), attention.ragged, scale)
    return _on_grids(query, key, value, attention, dropout=dropout, scale=scale)


def _on_grids(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention: Attention,
    *,
    dropout: float,
    scale: float | None,
) -> torch.Tensor:
    outputs = []
    heads, _, width = query.shape
    for grid, q, k, v in _gather(query, key, value, attention):
        if grid.mask is not None and query.device.type == "cuda" and k.shape[1] < heads:
            # With a mask, CUDA's fused kernels need as many key heads as heads.
            k, v = (part.repeat_interleave(heads // k.shape[1], dim=1) for part in (k, v))
        output = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=grid.mask,
            dropout_p=dropout,
            is_causal=grid.causal,
            scale=scale,
            enable_gqa=k.shape[1] < heads,
        )  # (R, heads, L, D)
        outputs.append(output.transpose(1, 2).reshape(-1, heads, width))
    return _restored(outputs, attention)


def _on_grids_with_sums(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: Attention, *, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs (Q, heads, D) and their log-sum-exp (Q, heads), on a CPU and without gradients."""
    outputs, sums = [], []
    heads, _, width = query.shape
    for grid, q, k, v in _gather(query, key, value, attention):
        k, v = (part.repeat_interleave(heads // k.shape[1], dim=1) for part in (k, v))
        output, found = _flash(q, k, v, causal=grid.causal, mask=grid.mask, scale=scale)
        outputs.append(output.transpose(1, 2).reshape(-1, heads, width))
        sums.append(found.transpose(1, 2).reshape(-1, heads))
    return _restored(outputs, attention), _restored(sums, attention)


def _gather(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: Attention
) -> Iterator[tuple[Grid, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield each grid with its queries (R, heads, L, D), keys and values (R, key heads, K, D)."""
    keys = attention.queries if attention.keys is None else attention.keys
    query_counts = [rows * length for rows, length, _ in (grid.shape for grid in attention.grids)]
    key_counts = [rows * width for rows, _, width in (grid.shape for grid in attention.grids)]
    parts = (
        query.index_select(1, attention.queries).split(query_counts, dim=1),
        key.index_select(1, keys).split(key_counts, dim=1),
        value.index_select(1, keys).split(key_counts, dim=1),
    )
    for grid, *found in zip(attention.grids, *parts, strict=True):
        q, k, v = (part.unflatten(1, (grid.shape[0], -1)).transpose(0, 1) for part in found)
        yield grid, q, k, v


def _restored(outputs: list[torch.Tensor], attention: Attention) -> torch.Tensor:
    """Join the outputs of the grids in packed order."""
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return joined if attention.restore is None else joined.index_select(0, attention.restore)


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ragged: Ragged, scale: float | None
) -> torch.Tensor:
    """Call flash attention once for rows of any length."""
    from torch.nn.attention.varlen import varlen_attn

    k, v = (part.transpose(0, 1) for part in (key, value))
    if ragged.keys is not None:
        k, v = (part.index_select(0, ragged.keys) for part in (k, v))
    output = varlen_attn(
        query.transpose(0, 1).contiguous(),
        k.contiguous(),
        v.contiguous(),
        ragged.q_ends,
        ragged.k_ends,
        *ragged.longest,
        scale=scale,
        window_size=(-1, 0),  # causal, aligned at the last key
        enable_gqa=len(key) < len(query),
    )
    return output if isinstance(output, torch.Tensor) else output[0]


@cache
def _has_varlen(dtype: torch.dtype, device_type: str, width: int, trains: bool) -> bool:
    """Return whether variable-length flash attention runs on this machine and agrees with the grids.

    The check runs once for each width of a head, with gradients if `trains`.
    """
    if device_type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    shared_prefix = torch.arange(10).expand(3, -1)
    ids = torch.cat([shared_prefix, torch.arange(12).reshape(3, 4)], dim=1).to(device_type)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 12:] = False
    packed = pack(mask, input_ids=ids)
    draw = torch.Generator(device_type).manual_seed(0)
    options: dict[str, Any] = {"generator": draw, "device": device_type, "dtype": dtype}
    with torch.enable_grad(), torch.autocast(device_type, enabled=False):
        q, k, v = (
            torch.randn(heads, len(packed.source), width, **options).requires_grad_(trains)
            for heads in (4, 2, 2)
        )
        try:
            found = [_varlen(q, k, v, packed.attention.ragged, None)]  # type: ignore[arg-type]
            found += torch.autograd.grad(found[0].sum(), (q, k, v)) if trains else []
        except (ImportError, RuntimeError, NotImplementedError):
            return False
        wanted = [_on_grids(q, k, v, packed.attention, dropout=0.0, scale=None)]
        wanted += torch.autograd.grad(wanted[0].sum(), (q, k, v)) if trains else []
    return all(bool((a - b).abs().max() < 0.05) for a, b in zip(found, wanted, strict=True))


def attend_with_prefix(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed_rows: PackedRows,
    attention: Attention,
    *,
    layer: int,
    dropout: float,
    scale: float | None,
) -> torch.Tensor:
    """Compute the attention (Q, heads, D) to the packed row and to the cached prefix, if there is one."""
    if not packed_rows.prefix:
        return attend(query, key, value, attention, dropout=dropout, scale=scale)
    before = packed_rows.prefix[layer]
    if not packed_rows.apart:
        key, value = torch.cat([before[0], key], dim=1), torch.cat([before[1], value], dim=1)
        return attend(query, key, value, attention, dropout=dropout, scale=scale)
    heads, tokens, width = query.shape
    own, own_sum = _on_grids_with_sums(query, key, value, attention, scale=scale)
    # All queries see the whole prefix: heads that share a key head and all queries form one long row.
    rows = query.reshape(1, len(key), -1, width)
    first, first_sum = _flash(rows, before[0][None], before[1][None], scale=scale)
    first = first.reshape(heads, tokens, width).transpose(0, 1)
    first_sum = first_sum.reshape(heads, tokens).T
    # Each part is normalised by its own sum of exponentials; softmax over both weights them by these sums.
    share = torch.sigmoid(own_sum - first_sum)[..., None].to(own.dtype)  # (Q, heads, 1)
    return torch.lerp(first, own, share)


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs (R, heads, L, D) and log-sum-exp (R, heads, L) of torch's CPU flash attention.

    The public function does not return the sums, so this calls its operation of torch 2.13. `splits_prefix`
    checks that the operation exists and returns them.
    """
    if mask is not None:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # type: ignore[no-any-return]
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )


@cache
def splits_prefix(device_type: str) -> bool:
    """Return whether attention to a cached prefix can be separate: on a CPU, if torch returns sums."""
    if device_type != "cpu":
        return False
    query, key = torch.ones(1, 1, 2, 8), torch.ones(1, 1, 3, 8)
    try:
        _, sums = _flash(query, key, key, scale=1.0)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.allclose(sums, torch.full((1, 1, 2), 8 + math.log(3))))


AttentionInterface.register(PACKED, packed_sdpa)
AttentionMaskInterface.register(PACKED, sdpa_mask)
