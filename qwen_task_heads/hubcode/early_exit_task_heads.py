"""Early exit: the layers of a backbone that are kept, and those that a head reads.

This file is copied into every published model; it imports only transformers and its siblings.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedConfig

from .errors_task_heads import TaskHeadError, refuse
from .families_task_heads import early_exit_families, family_of


def cut_layers(text_config: PreTrainedConfig, *, keep: int) -> PreTrainedConfig:
    """Return a copy of a backbone's config with its first `keep` layers; the config itself if it has no more.

    Raises:
        ValueError: a backbone with fewer layers, or a family that cannot exit early.

    Example:
        >>> from transformers import Qwen2Config
        >>> from qwen_task_heads.hubcode.early_exit_task_heads import cut_layers
        >>> cut = cut_layers(Qwen2Config(hidden_size=64, num_hidden_layers=6), keep=2)
        >>> cut.num_hidden_layers, len(cut.layer_types)
        (2, 2)
    """
    depth = text_config.num_hidden_layers
    if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= depth:
        raise refuse(
            "backbone_layers",
            keep,
            f"1 to {depth}, the number of layers of the backbone",
            f"choose such as {max(1, depth // 2)}",
            code="option-range",
        )
    if keep == depth:
        return text_config
    if not family_of(text_config.model_type).early_exit:
        raise _no_early_exit("backbone_layers", keep, text_config, f"all {depth} layers")
    cut = copy.deepcopy(text_config)
    cut.num_hidden_layers = keep
    if text_config.to_dict().get("layer_types") is not None:
        cut.layer_types = text_config.layer_types[:keep]
    return cut


def check_head_layers(layers: list[int], text_config: Any, *, keep: int | None) -> None:
    """Raise for layers that the backbone does not have or whose states it does not return.

    Args:
        layers: `TaskHeadConfig.head_layers`.
        text_config: config of the backbone.
        keep: `TaskHeadConfig.backbone_layers`.

    Raises:
        ValueError: unknown or unordered layers, a last one other than `keep`, or a family that cannot exit
            early.
    """
    depth = text_config.num_hidden_layers
    known = sorted({n for n in layers if isinstance(n, int) and n is not True and 1 <= n <= depth})
    if layers != known or not layers:
        raise refuse(
            "head_layers",
            layers,
            f"distinct layer numbers from 1 to {depth} in ascending order",
            f"choose such as {' '.join(map(str, known or [depth]))}",
            code="option-range",
        )
    if keep is not None and keep != layers[-1]:
        raise refuse(
            "head_layers",
            layers,
            f"layers of which the last is {keep}, the value of backbone_layers",
            "drop one of the two: backbone_layers follows from head_layers",
            code="option-conflict",
        )
    if layers != [depth] and not family_of(text_config.model_type).early_exit:
        raise _no_early_exit("head_layers", layers, text_config, f"the last layer, {depth}")


def _no_early_exit(where: str, found: object, text_config: Any, expected: str) -> TaskHeadError:
    return TaskHeadError(
        where,
        f"found {found} for a {text_config.model_type} backbone",
        f"{expected}, or a backbone of type {early_exit_families()}",
        "drop it",
        code="option-unsupported",
    )
