"""The identity of a scorer's model, by which a run that resumes recognises its own parts.

It is a hash of the config and of a few numbers of every tensor, as they are stored. Numbers that are computed
after the load, those of a merged adapter and of a probe, are no part of it: they differ in the last place
between processors, and the answers of two machines may be parts of one file.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from qwen_task_heads.inference.prefix_cache import state_of

if TYPE_CHECKING:
    from qwen_task_heads.inference.label_scorer import LabelScorer
    from qwen_task_heads.inference.scorer import Scorer

SAMPLES = 16  # numbers of a tensor
# Where a model lies or was made, and numbers that were computed.
NOT_THE_MODEL = (
    "backbone_name_or_path", "backbone_revision", "transformers_version", "_name_or_path", "probe",
)  # fmt: skip

Samples = dict[str, list[float]]
Stored = tuple[Any, Samples]  # the state of a model after its load, and its samples before


def sample_weights(model: Any) -> Samples:
    """Return up to 17 numbers of every parameter, by name, at equal distances.

    Args:
        model: with its adapter, if it has one, not merged.

    Example:
        >>> import torch
        >>> from qwen_task_heads.inference.identity import sample_weights
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        >>> sample_weights(layer)
        {'weight': [1.0, 2.0]}
    """
    return {
        name: tensor.detach().flatten()[:: max(1, tensor.numel() // SAMPLES)].tolist()
        for name, tensor in model.named_parameters()
        if ".original_module." not in name  # PEFT's untrained copy of a head: random at every load
    }


def model_hash(scorer: Scorer | LabelScorer, *, asked: Any = None) -> str:
    """Return a hash of a scorer's model and of what it is asked: 64 hexadecimal digits.

    It is the same on every machine, and wherever the model lies.

    Args:
        scorer: if it was loaded by name and not changed since, its weights count as they are stored, and
            otherwise as they are now.
        asked: the prompt of a model that writes labels, as JSON; None of a head.
    """
    content = {
        name: value for name, value in scorer.model.config.to_dict().items() if name not in NOT_THE_MODEL
    }
    content["asked"] = asked
    made, samples = scorer.stored
    content["weights"] = samples if made == state_of(scorer.model) else sample_weights(scorer.model)
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
