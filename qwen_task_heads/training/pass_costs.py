"""Costs of a pass of a model over a batch: operations, and bytes that are stored for the backward pass.

Batches are packed like in the model, and nothing is computed. Experts of a mixture and layers without
`nn.Linear` are not counted, as in `throughput`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from qwen_task_heads.hubcode.encoding_task_heads import pad_rows
from qwen_task_heads.hubcode.long_rows_task_heads import cut_rows, is_long
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.pooling_task_heads import real_tokens
from qwen_task_heads.throughput import product_operations

EVERY_TOKEN = ("k_proj", "v_proj")  # modules that a pooling last layer computes for every token


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Sizes of a batch in the backbone.

    Args:
        real: tokens without padding.
        tokens: tokens that the backbone computes.
        last: tokens for which the last layer computes more than keys and values.
        scores: attention scores per head and layer.
    """

    real: float
    tokens: float
    last: float
    scores: float


def batch_shape(model: TaskHeadModel, rows: Sequence[Sequence[int]], *, pools: bool = True) -> BatchShape:
    """Return the shape of a batch, packed like in a pass of the model.

    Args:
        model: of either task.
        rows: B rows of token ids, template included.
        pools: True if the pass ends in the pooling of the model; else the last layer computes all states.

    Example:
        >>> from qwen_task_heads import build
        >>> from qwen_task_heads.training.pass_costs import batch_shape
        >>> shape = batch_shape(build("embedded"), [[5, 6, 7, 8], [9]])
        >>> shape.tokens, shape.last
        (5, 2)
    """
    batch = pad_rows(rows, pad_id=0)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if is_long(model.config, ids, mask):
        ids, mask, _ = cut_rows(model.config, ids, mask)
    real = real_tokens(mask, ids)
    count = int(real.sum())
    if not model._can_pack(real):
        padded = ids.numel()
        return BatchShape(real=count, tokens=padded, last=padded, scores=padded * ids.shape[1])
    packed = model._pack(ids, real, None)
    tokens = packed.source.numel()
    last = len(packed.last) if pools and packed.pooled is not None else tokens
    # A causal kernel computes half of the square.
    scores = sum(math.prod(grid.shape) / (1 + grid.causal) for grid in packed.attention.grids)
    return BatchShape(real=count, tokens=tokens, last=last, scores=scores)


@dataclass(frozen=True, kw_only=True)
class PassCosts:
    """Costs per token of a pass.

    Args:
        every: operations per token of the linear layers that compute every token.
        last: operations per token of the layers that compute only the pooled tokens.
        score: operations per attention score, over all heads and layers.
        kept: bytes per token that the backward pass needs; without one, bytes of the widest layer.
        flows: whether the backward pass goes through the backbone.
    """

    every: float
    last: float
    score: float
    kept: float
    flows: bool

    def linear(self, shape: BatchShape) -> float:
        """Return the floating-point operations of the linear layers for a batch, like `Throughput`."""
        return self.every * shape.tokens + self.last * shape.last

    def operations(self, shape: BatchShape) -> float:
        """Return the floating-point operations for a batch, attention included."""
        return self.linear(shape) + self.score * shape.scores


def pass_costs(
    model: TaskHeadModel,
    *,
    training: bool,
    half: bool = False,
    checkpointing: bool = False,
    inputs_train: bool = False,
) -> PassCosts:
    """Return the costs of a pass, from the trained parameters of each layer and of the layers before it.

    Args:
        model: of this library, with the layers of an adapter if there is one.
        training: True if there is a backward pass.
        half: True if states have two bytes, as under autocast; else they have the size of the weights.
        checkpointing: True if the backward pass computes the states of a layer again.
        inputs_train: True if outputs of the embeddings require gradients: checkpointing with adapters.
    """
    config, named = model.model.config, list(model.model.named_modules())
    layers = model.model._modules.get("layers")
    pooled: set[int] = set()
    if isinstance(layers, nn.ModuleList):
        modules = layers[-1].named_modules()
        pooled = {id(module) for name, module in modules if not any(one in name for one in EVERY_TOKEN)}
    drops = any("lora_dropout" in name and isinstance(one, nn.Dropout) and one.p > 0 for name, one in named)
    flows, every, last, width = training and inputs_train, 0.0, 0.0, 0.0
    for name, module in named:
        own = training and any(one.requires_grad for one in module.parameters(recurse=False))
        if isinstance(module, nn.Linear):
            # Forward; gradient of the input; gradient of the weight; recomputed forward.
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
    # Norms store their input, the normed input and their output. Linear layers store their output and the
    # result of the rotation, attention or activation after them.
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
    """Return the bytes of the trained weights, which equal those of their gradients."""
    return sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all weights; shared weights count once."""
    tensors: dict[int, torch.Tensor] = {id(one): one for one in model.parameters()}
    return sum(one.numel() * one.element_size() for one in tensors.values())
