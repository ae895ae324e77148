"""What a pass over a batch costs a model: operations, and bytes that are kept for backward.

Batches are packed as the model packs them, and nothing is computed. Experts of a mixture and layers
without `nn.Linear` are not counted, as in `throughput`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from qwen_task_heads.hubcode.encoding_task_heads import pad_rows
from qwen_task_heads.hubcode.modeling_task_heads import PooledClassifier, TaskHeadModel
from qwen_task_heads.hubcode.pooling_task_heads import real_tokens
from qwen_task_heads.throughput import product_operations

EVERY_TOKEN = ("k_proj", "v_proj")  # what a last layer that pools computes for tokens that are not pooled


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Size of a padded batch in the backbone.

    Args:
        real: tokens that are no padding.
        tokens: that the backbone computes.
        last: those of them that a last layer computes beyond keys and values.
        scores: of attention, for each head and layer.
    """

    real: float
    tokens: float
    last: float
    scores: float


def batch_shape(model: TaskHeadModel, rows: Sequence[Sequence[int]], *, pools: bool = True) -> BatchShape:
    """Pack rows of token ids as a pass of the model does it.

    Args:
        model: of either task.
        rows: B rows of token ids, template included.
        pools: whether the pass ends in the model's pooling; else all states of the last layer are computed.

    Example:
        >>> from qwen_task_heads import build
        >>> from qwen_task_heads.training.pass_costs import batch_shape
        >>> found = batch_shape(build("embedded"), [[5, 6, 7, 8], [9]])
        >>> found.tokens, found.last
        (5, 2)
    """
    batch = pad_rows(rows, pad_id=0)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if isinstance(model, PooledClassifier) and model._is_long(ids, mask):
        ids, mask, _ = model._cut(ids, mask)
    real = real_tokens(mask, ids)
    count = int(real.sum())
    if not model._can_pack(real):
        padded = ids.numel()
        return BatchShape(real=count, tokens=padded, last=padded, scores=padded * ids.shape[1])
    packed = model._pack(ids, real, None)
    tokens = packed.source.numel()
    last = len(packed.last) if pools and packed.pooled is not None else tokens
    # A causal kernel leaves half of its square out.
    scores = sum(math.prod(grid.shape) / (1 + grid.causal) for grid in packed.attention.grids)
    return BatchShape(real=count, tokens=tokens, last=last, scores=scores)


@dataclass(frozen=True, kw_only=True)
class PassCosts:
    """What a model computes and keeps for each token of a pass.

    Args:
        every: operations of the linear layers for each token.
        last: of those that a pooling last layer computes for its pooled tokens alone.
        score: for a score of attention, over all heads and layers.
        kept: bytes a token that backward needs, or that a pass without one holds at its widest layer.
        flows: whether backward goes through the backbone.
    """

    every: float
    last: float
    score: float
    kept: float
    flows: bool

    def linear(self, shape: BatchShape) -> float:
        """Floating-point operations of the linear layers for a batch, as `Throughput` counts them."""
        return self.every * shape.tokens + self.last * shape.last

    def operations(self, shape: BatchShape) -> float:
        """The same with attention."""
        return self.linear(shape) + self.score * shape.scores


def pass_costs(
    model: TaskHeadModel,
    *,
    training: bool,
    half: bool = False,
    checkpointing: bool = False,
    inputs_train: bool = False,
) -> PassCosts:
    """Count the products of each linear layer from what is trained, in it and in front of it.

    Args:
        model: of this library, with the layers of an adapter in it.
        training: with a backward pass.
        half: states have two bytes, as under autocast; else those of the weights.
        checkpointing: backward computes the states of a layer again.
        inputs_train: the embeddings' outputs ask for gradients, as checkpointing wants it of adapters.
    """
    config, named = model.model.config, list(model.model.named_modules())
    layers = model.model._modules.get("layers")
    pooled: set[int] = set()
    if isinstance(layers, nn.ModuleList):
        parts = layers[-1].named_modules()
        pooled = {id(part) for name, part in parts if not any(one in name for one in EVERY_TOKEN)}
    drops = any("lora_dropout" in name and isinstance(one, nn.Dropout) and one.p > 0 for name, one in named)
    flows, every, last, width = training and inputs_train, 0.0, 0.0, 0.0
    for name, module in named:
        own = training and any(one.requires_grad for one in module.parameters(recurse=False))
        if isinstance(module, nn.Linear):
            # Forward; to the input; to the weight; forward again.
            products = 1 + flows + own + (checkpointing and (flows or own))
            if id(module) in pooled:
                last += products * product_operations(module)
            else:
                every += products * product_operations(module)
            if "lora_" not in name:
                width += module.out_features
            elif "lora_A" in name and drops:
                width += module.in_features / 2
        flows = flows or own
    depth, hidden, fields = config.num_hidden_layers, config.hidden_size, config.to_dict()
    # Norms keep their input, the normed input and their output; linear layers what they give, and what a
    # rotation, attention or activation makes of it.
    kept = 2 * width + 2 * depth * hidden
    if not flows:
        kept /= depth
    elif checkpointing:
        kept = kept / depth + depth * hidden
    heads = fields.get("num_attention_heads"), fields.get("head_dim")
    queries = math.prod(heads) if all(heads) else hidden  # type: ignore[arg-type]
    return PassCosts(
        every=every,
        last=last,
        score=4.0 * queries * depth * (3 + checkpointing if flows else 1),
        kept=kept * (2 if half else model.model.dtype.itemsize),
        flows=flows,
    )


def trained_bytes(model: nn.Module) -> int:
    """Bytes of the weights that are trained, which is what their gradients take."""
    return sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights, those that are shared once."""
    tensors: dict[int, torch.Tensor] = {id(one): one for one in model.parameters()}
    return sum(one.numel() * one.element_size() for one in tensors.values())
