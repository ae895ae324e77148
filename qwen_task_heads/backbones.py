"""Backbone families: LoRA targets and boundary tokens, one row per `model_type`.

A new family needs one row. A decoder without a row also works: its targets are `all-linear` and its
boundary is the tokenizer's eos token. Pooling does not depend on this table.
"""

from __future__ import annotations

from dataclasses import dataclass

# PEFT reads this string as "all linear layers but the output and the classification head".
ALL_LINEAR = "all-linear"
EMBEDDED = "embedded"
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Backbone:
    """Properties of a backbone family.

    Args:
        attention: modules of the query and value projections, the targets of a small LoRA.
        all_linear: every projection of a layer, or PEFT's `all-linear`.
        boundary: tokens that may end a turn, in order of preference; the first one that the
            tokenizer has is used. `None` means the eos token.
    """

    attention: tuple[str, ...] | str = ALL_LINEAR
    all_linear: tuple[str, ...] | str = ALL_LINEAR
    boundary: tuple[str, ...] = ()


_ROTARY = ("q_proj", "v_proj")
BACKBONES: dict[str, Backbone] = {
    "qwen2": Backbone(_ROTARY, SEVEN, ("<|im_end|>",)),  # Qwen1.5, 2, 2.5, DeepSeek-R1-Distill-Qwen
    "qwen3": Backbone(_ROTARY, SEVEN, ("<|im_end|>",)),
    "qwen2_moe": Backbone(_ROTARY, ALL_LINEAR, ("<|im_end|>",)),
    "qwen3_moe": Backbone(_ROTARY, ALL_LINEAR, ("<|im_end|>",)),
    "llama": Backbone(_ROTARY, SEVEN, ("<|eot_id|>",)),
    "mistral": Backbone(_ROTARY, SEVEN),
    "gemma": Backbone(_ROTARY, SEVEN, ("<end_of_turn>",)),
    "gemma2": Backbone(_ROTARY, SEVEN, ("<end_of_turn>",)),
    "gemma3_text": Backbone(_ROTARY, SEVEN, ("<end_of_turn>",)),
    "olmo2": Backbone(_ROTARY, SEVEN),
    "phi3": Backbone(("qkv_proj",), ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), ("<|end|>",)),
    "gpt2": Backbone(("c_attn",), ("c_attn", "c_proj", "c_fc")),
}


def backbone_of(model_type: str) -> Backbone:
    """Return the row of a family, or the defaults for a family without one.

    Example:
        >>> from qwen_task_heads.backbones import backbone_of
        >>> backbone_of("qwen3").attention
        ('q_proj', 'v_proj')
    """
    return BACKBONES.get(model_type, Backbone())
