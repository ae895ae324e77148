"""Hash of a scorer's model, by which a resumed run recognizes its own shards.

The hash is of the config and of a few numbers of every tensor, as they are stored. Numbers computed after
loading, those of a merged adapter and of a probe, are not included: their last digit differs between
processors, and two machines may write shards of one file.
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
# Config fields of paths, versions and computed numbers.
NOT_THE_MODEL = (
    "backbone_name_or_path",
    "backbone_revision",
    "transformers_version",
    "_name_or_path",
    "probe",
)

Samples = dict[str, list[float]]
Stored = tuple[Any, Samples]  # the state of a model after its load, and its samples before


def sample_weights(model: Any) -> Samples:
    """Return up to 17 numbers of every parameter, by name, at equal distances.

    Args:
        model: with its adapter, if any, not merged.

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
    """Return a hash of a scorer's model and its prompt: 64 hexadecimal digits.

    The hash does not depend on the machine or the path of the model.

    Args:
        scorer: the stored weights are hashed if it was loaded by name and not changed since; otherwise the
            current weights.
        asked: the prompt of a generative classifier, as JSON; None for a head.
    """
    content = {
        name: value for name, value in scorer.model.config.to_dict().items() if name not in NOT_THE_MODEL
    }
    content["asked"] = asked
    made, samples = scorer.stored
    content["weights"] = samples if made == state_of(scorer.model) else sample_weights(scorer.model)
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def identity_of(scorer: Scorer | LabelScorer) -> dict[str, str | None]:
    """Return `model_revision`, the commit on the hub if there is one, and `model_hash`."""
    revision = scorer.model.config.__dict__.get("_commit_hash")
    return {"model_revision": revision, "model_hash": model_hash(scorer)}
