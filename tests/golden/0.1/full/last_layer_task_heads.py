"""A last layer that computes the pooled tokens alone.

Above the last attention nobody looks at a token that is not pooled: of the last layer every token gives its
key and value, and only the pooled ones have a query, go through `o`, the norms and the MLP. It is the layer's
own class with another `forward`, so hooks, checkpointing, FSDP and copies of the model find what they know.
This file travels with every published model; it imports torch, transformers and its siblings only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from .attention_task_heads import EXACT, PACKED, attend_with_prefix
from .packing_task_heads import PackedRows

# Families whose layers are: norm, q/k/v, rotation, attention, o; norm, MLP.
PLAIN_LAYERS = ("qwen2", "qwen3", "llama", "mistral")


def prepare(backbone: Any) -> None:
    """Make a backbone that can take packed rows take them."""
    config = backbone.config
    if config.model_type in EXACT and config._attn_implementation in ("sdpa", PACKED):
        backbone.set_attn_implementation(PACKED)
        if config.model_type in PLAIN_LAYERS:
            layer = backbone.layers[-1]
            layer.__class__ = _pooling(layer.__class__)


class _PoolsLast:
    """Mixed into the class of the last layer. No function on the layer: replicas of DataParallel share it."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        *args: Any,
        packed_rows: PackedRows | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Every token gives its key and value, and only pooled tokens go on, (1, B, H)."""
        if packed_rows is None or packed_rows.pooled is None or position_embeddings is None:
            if packed_rows is not None:
                kwargs["packed_rows"] = packed_rows
            return super().forward(hidden_states, *args, position_embeddings=position_embeddings, **kwargs)  # type: ignore[misc, no-any-return]
        attention, last = self.self_attn, packed_rows.last
        normed = self.input_layernorm(hidden_states)  # (1, N, H)
        cos, sin = position_embeddings
        key = _rotate(_heads(attention, "k", normed), cos, sin)
        value = _heads(attention, "v", normed)
        query = _heads(attention, "q", normed.index_select(1, last))
        query = _rotate(query, cos.index_select(1, last), sin.index_select(1, last))
        output = attend_with_prefix(
            query,
            key,
            value,
            packed_rows,
            packed_rows.pooled,
            layer=attention.layer_idx,
            dropout=attention.attention_dropout if self.training else 0.0,
            scale=attention.scaling,
        )
        pooled = hidden_states.index_select(1, last) + attention.o_proj(output.flatten(1)[None])  # (1, B, H)
        return pooled + self.mlp(self.post_attention_layernorm(pooled))  # type: ignore[no-any-return]

    def __reduce__(self) -> Any:  # pickle cannot find a class that was made here
        return _bare, (type(self).__bases__[1],), self.__dict__


@cache
def _pooling(kind: Any) -> Any:
    """The class under its own name, by which FSDP and `device_map` find the layers."""
    return type(kind.__name__, (_PoolsLast, kind), {"__module__": kind.__module__})


def _bare(kind: Any) -> Any:
    return _pooling(kind).__new__(_pooling(kind))


def _heads(attention: Any, part: str, states: torch.Tensor) -> torch.Tensor:
    """Project (1, N, H) to (heads, N, D); Qwen3 normalises queries and keys per head."""
    modules = attention._modules
    heads = modules[f"{part}_proj"](states)[0].unflatten(-1, (-1, attention.head_dim))  # (N, heads, D)
    if f"{part}_norm" in modules:
        heads = modules[f"{part}_norm"](heads)
    return heads.transpose(0, 1)


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of (heads, N, D) by cos and sin (1, N, D)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
