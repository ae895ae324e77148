"""Tiny random models of every backbone family, with tensors as large as trained ones."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from qwen_task_heads import TitleScorer, TitleScorerConfig

VOCABULARY = 128
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
# What the sizes leave at the value of a large model, or name otherwise.
OWN: dict[str, dict[str, Any]] = {
    "qwen2_moe": EXPERTS,
    "qwen3_moe": EXPERTS,
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window_pattern": 2, "sliding_window": 64},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 64},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
}


def tiny_family(family: str, **changes: Any) -> PreTrainedConfig:
    """Return the config of a decoder with 3 layers and 32 channels."""
    sizes = {**SIZES, **OWN.get(family, {}), **changes}
    if family == "gpt2":  # it has other names, and no grouped heads
        names = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", *OWN[family])
        sizes = {name: sizes[name] for name in names}
    return CONFIG_MAPPING[family](**sizes)


def randomize(model: Any, *, width: float = 0.1) -> Any:
    """Change every tensor at random and set eval mode; a new model would have norms and biases of 0 and 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * width)
    return model.eval()


def family_scorer(
    family: str, *, backbone: dict[str, Any] | None = None, seed: int = 0, **head: Any
) -> TitleScorer:
    """Return a title scorer on a tiny backbone.

    Args:
        family: `model_type` of the backbone.
        backbone: fields of the backbone's config that differ.
        seed: seed of the weights.
        head: fields of `TitleScorerConfig`.
    """
    torch.manual_seed(seed)
    config = TitleScorerConfig(text_config=tiny_family(family, **(backbone or {})), **head)
    return randomize(TitleScorer(config))
