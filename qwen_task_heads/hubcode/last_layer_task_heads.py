"""A last layer that computes only the pooled tokens.

After the last attention, only pooled tokens are read. In the last layer every token computes its key and
value, but only pooled tokens compute a query, `o`, the norms and the MLP. The layer keeps its own class with
another `forward`, so that hooks, checkpointing, FSDP and copies of the model work as before.
This file is copied into every published model; it imports only torch, transformers and its siblings.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from .attention_task_heads import PACKED, attend_with_prefix
from .families_task_heads import family_of
from .packing_task_heads import PackedRows


def prepare(backbone: Any) -> None:
    """Set the attention and the last layer of a backbone for packed rows, if it supports them."""
    config = backbone.config
    family = family_of(config.model_type)
    if family.packable and config._attn_implementation in ("sdpa", PACKED):
        backbone.set_attn_implementation(PACKED)
        if family.last_layer_pooling:
            layer = backbone.layers[-1]
            layer.__class__ = _pooling(layer.__class__)


class _PoolsLast:
    """Mixin for the class of the last layer; replicas of DataParallel would share a function on the layer."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        *args: Any,
        packed_rows: PackedRows | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the states (1, B, H) of the pooled tokens; every token gives its key and value."""
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

    def __reduce__(self) -> Any:  # pickle cannot find a class that is created at runtime
        return _bare, (type(self).__bases__[1],), self.__dict__


@cache
def _pooling(kind: Any) -> Any:
    """Return the subclass under the name of its base, by which FSDP and `device_map` find the layers."""
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
    """Apply the rotary embedding cos and sin (1, N, D) to (heads, N, D)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
