"""What is known about each backbone family, one row per `model_type`.

Any decoder of transformers works without a row. Rows of a batch are then padded, LoRA targets are all linear
layers, and the end of a text is the tokenizer's eos token. A row adds what was verified for the family. The
tests build a tiny model of every row and compare each property with the padded, whole model. This file is
copied into every published model; it imports only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# PEFT reads this string as "all linear layers but the output and the classification head".
ALL_LINEAR = "all-linear"
# PEFT's name for "inject nothing": only modules_to_save, here the head, is trained and saved.
NO_TARGETS = "dummy-target-modules"


@dataclass(frozen=True)
class Family:
    """Properties of a backbone family.

    Args:
        packable: tokens are mixed only by plain scaled dot-product attention, so packed rows, prefixes and
            label tries are exact. Not so with linear attention, convolutions, ALiBi, soft caps or sinks. If
            the config has a sliding window, rows that are longer than the window are padded.
        last_layer_pooling: a layer is norm, q/k/v, rotation, attention, o; norm, MLP; so the last one can
            compute only the pooled tokens.
        early_exit: the first k layers with `norm` are again a decoder: each layer reads only the one below.
        plain_logits: logits of the causal language model are one matrix product, without soft cap or scale.
        attention: modules of the query and value projections, the targets of a small LoRA.
        all_linear: every projection of a layer, or PEFT's `all-linear`.
        boundary: tokens that may end a turn, in order of preference; the first one that the tokenizer has
            is used. Without one it is the eos token.
        reward_model: class of vLLM that serves a two-layer head on the family.
    """

    packable: bool = False
    last_layer_pooling: bool = False
    early_exit: bool = False
    plain_logits: bool = False
    attention: tuple[str, ...] | str = ALL_LINEAR
    all_linear: tuple[str, ...] | str = ALL_LINEAR
    boundary: tuple[str, ...] = ()
    reward_model: str | None = None


# The layers of Llama, which most families share.
_LLAMA = Family(
    packable=True,
    last_layer_pooling=True,
    early_exit=True,
    plain_logits=True,
    attention=("q_proj", "v_proj"),
    all_linear=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
_EXPERTS = replace(_LLAMA, last_layer_pooling=False, all_linear=ALL_LINEAR)
_CHATML, _GEMMA = ("<|im_end|>",), ("<end_of_turn>",)

FAMILIES: dict[str, Family] = {
    # Qwen1.5, 2, 2.5, DeepSeek-R1-Distill-Qwen
    "qwen2": replace(_LLAMA, boundary=_CHATML, reward_model="Qwen2ForRewardModel"),
    "qwen3": replace(_LLAMA, boundary=_CHATML),
    "llama": replace(_LLAMA, boundary=("<|eot_id|>",)),
    "mistral": _LLAMA,
    "qwen2_moe": replace(_EXPERTS, boundary=_CHATML),
    "qwen3_moe": replace(_EXPERTS, boundary=_CHATML),
    "gemma": replace(_LLAMA, last_layer_pooling=False, boundary=_GEMMA),
    "olmo2": replace(_LLAMA, last_layer_pooling=False),
    "phi3": replace(
        _LLAMA,
        last_layer_pooling=False,
        attention=("qkv_proj",),
        all_linear=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        boundary=("<|end|>",),
    ),
    # A config may set a soft cap of the logits.
    "gemma3_text": replace(_LLAMA, last_layer_pooling=False, plain_logits=False, boundary=_GEMMA),
    # A soft cap of the attention scores, and layers that alternate between two kinds of attention.
    "gemma2": Family(attention=_LLAMA.attention, all_linear=_LLAMA.all_linear, boundary=_GEMMA),
    "gpt2": Family(attention=("c_attn",), all_linear=("c_attn", "c_proj", "c_fc")),
}


def family_of(model_type: str) -> Family:
    """Return the row of a family, or the defaults for a family without one.

    Example:
        >>> from qwen_task_heads.hubcode.families_task_heads import family_of
        >>> family_of("qwen3").attention, family_of("bloom").packable
        (('q_proj', 'v_proj'), False)
    """
    return FAMILIES.get(model_type, Family())


def early_exit_families() -> str:
    """Return the names of the families that can exit early, for messages."""
    return ", ".join(name for name, family in FAMILIES.items() if family.early_exit)
