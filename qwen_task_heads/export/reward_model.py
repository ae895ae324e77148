"""Export a model with a two-layer head to the `Qwen2ForRewardModel` layout, which vLLM serves.

That class is `Linear(hidden, hidden)`, ReLU, `Linear(hidden, 1)` on Qwen2 (tensors `score.0.*` and
`score.2.*`, with biases). An `mlp` head of this form is supported, and any other head is refused.
transformers has no such class, and the folder has no code: `config.json` names the architecture for servers,
without an `auto_map`. `reference_logits` recomputes the scores from the files with plain transformers and
safetensors. An export is verified with it before it gets its final name.

vLLM returns the value of every token; the last one is the score of the text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.export.shared import (
    TOLERANCE,
    VERIFICATION_TEXTS,
    check_difference,
    float_logits,
    folder_problems,
    last_token_problems,
    load_merged,
    make_portable,
    server_config,
    staging_folder,
    unmet,
    verification_limit,
    verification_rows,
)
from qwen_task_heads.hubcode.encoding_task_heads import pad_rows
from qwen_task_heads.hubcode.families_task_heads import family_of
from qwen_task_heads.hubs import HUGGINGFACE

ARCHITECTURE = "Qwen2ForRewardModel"
HEAD = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")
FIX = "publish the model with save()"


def export_reward_model(
    model_or_folder: Any,
    *,
    tokenizer: Any = None,
    folder: str | Path,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
) -> Path:
    """Export a Qwen2 model with a two-layer head as vLLM's `Qwen2ForRewardModel`.

    Args:
        model_or_folder: a `TitleScorer` or `PooledClassifier` of one output, a `PeftModel` around one, or
            the folder or repo of one. An adapter is merged first, into a given model in place.
        tokenizer: with the compiled template; None for the one in the folder.
        folder: new or empty folder to write.
        revision: branch, tag or commit of a repo.
        hub: hub of the ids, also of an adapter's base: `huggingface` or `modelscope`.

    Returns:
        The folder; `serve_command` returns the command that serves it with vLLM.

    Raises:
        TaskHeadsError: an unsupported model, with all reasons, or scores that differ after the export.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import build, load_tokenizer
        >>> from qwen_task_heads.export.reward_model import export_reward_model, reference_logits
        >>> scorer = build("embedded", head="mlp", head_sizes=[192])
        >>> with tempfile.TemporaryDirectory() as root:
        ...     path = export_reward_model(scorer, tokenizer=load_tokenizer("embedded"), folder=f"{root}/rm")
        ...     ids = torch.tensor([[5, 6, 7]])
        ...     reference_logits(path, input_ids=ids, attention_mask=torch.ones_like(ids)).shape
        torch.Size([1, 1])

    Source: https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/models/qwen2_rm.py
    """
    folder = Path(folder)
    model, tokenizer = load_merged(model_or_folder, tokenizer=tokenizer, revision=revision, hub=hub)
    if problems := [*_unsupported(model), *folder_problems(folder)]:
        raise TaskHeadsError(problems)
    with staging_folder(folder) as staged:
        staged.mkdir()
        config = server_config(
            model,
            architecture=ARCHITECTURE,
            problem_type="regression",  # the score itself, without a sigmoid
            pad_id=tokenizer.pad_token_id,
        )
        config.dtype = str(model.dtype).split(".")[-1]
        config.save_pretrained(staged)
        first, last = (layer for layer in model.score if isinstance(layer, torch.nn.Linear))
        head = (first.weight, first.bias, last.weight, last.bias)
        tensors = {f"model.{name}": tensor for name, tensor in model.model.state_dict().items()}
        tensors |= {name: tensor.detach().float() for name, tensor in zip(HEAD, head, strict=True)}
        save_torch_state_dict(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            staged,
            metadata={"format": "pt"},
        )
        tokenizer.save_pretrained(staged)
        make_portable(staged)
        _verify(model, tokenizer, staged)
    return folder


def reference_logits(
    folder: str | Path, *, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Return scores (B, 1) fp32 of an exported folder, computed with plain transformers and safetensors.

    Args:
        folder: written by `export_reward_model`.
        input_ids: (B, T) int64, padded on any side.
        attention_mask: (B, T), 1 for real tokens.

    Raises:
        RuntimeError: a tensor that is missing, extra or of another shape.
    """
    return _load_scorer(Path(folder))(input_ids, attention_mask)


def _load_scorer(folder: Path) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Load a folder for `reference_logits`, once for several batches."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    inner, inner_bias, outer, outer_bias = (tensors.pop(name).float() for name in HEAD)
    backbone = Qwen2Model(Qwen2Config.from_pretrained(folder)).float().eval()
    backbone.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})

    @torch.no_grad()
    def score(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        states = backbone(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions
        ).last_hidden_state
        last = (attention_mask * torch.arange(attention_mask.shape[1])).argmax(1)
        pooled = states[torch.arange(len(states)), last]  # (B, H)
        return F.linear(F.linear(pooled, inner, inner_bias).relu(), outer, outer_bias)

    return score


def _unsupported(model: Any) -> list[Problem]:
    """Return the settings of a model that vLLM's class does not support."""
    config = model.config
    family, width = config.text_config.model_type, config.text_config.hidden_size
    is_mlp = config.head == "mlp"
    rules = [
        ("text_config", family, family_of(family).reward_model == ARCHITECTURE, "qwen2"),
        ("num_labels", config.num_labels, config.num_labels == 1, "1, one score"),
        ("head", config.head, is_mlp, "mlp; export_stock() takes a linear one"),
        ("head_sizes", config.head_sizes, not is_mlp or config.head_sizes == [width], f"[{width}]"),
        ("head_activation", config.head_activation, not is_mlp or config.head_activation == "relu", "relu"),
    ]
    return [*unmet(rules, fix=FIX), *last_token_problems(model, fix=FIX)]


def _verify(model: Any, tokenizer: Any, folder: Path) -> None:
    """Compare scores of the files with those of the model in fp32, padded left, right and not padded."""
    padded = pad_rows(verification_rows(model, tokenizer), pad_id=0)
    logits, score = float_logits(model, padded), _load_scorer(folder)
    saved_tokenizer = AutoTokenizer.from_pretrained(folder)
    options: dict[str, Any] = {
        "truncation": True,
        "max_length": verification_limit(model, tokenizer),
        "return_tensors": "pt",
    }
    batches = [
        saved_tokenizer(list(VERIFICATION_TEXTS), padding=True, padding_side=side, **options)
        for side in ("left", "right")
    ]
    batches += [saved_tokenizer(text, **options) for text in VERIFICATION_TEXTS]
    for batch, expected in zip(batches, [logits, logits, *logits.split(1)], strict=True):
        scores = score(batch["input_ids"], batch["attention_mask"])
        check_difference(scores, expected, tolerance=TOLERANCE, where=str(folder), runtime=ARCHITECTURE)
