"""A model with a two-layer head to the `Qwen2ForRewardModel` layout, which vLLM serves.

That class is `Linear(hidden, hidden)`, ReLU, `Linear(hidden, 1)` on Qwen2 (tensors `score.0.*` and
`score.2.*`, with biases), so an `mlp` head of just that form fits and any other is refused. transformers has
no such class, and the folder brings no code: `config.json` names the architecture for servers, there is no
`auto_map`, and `reference_logits` recomputes the answers from the files with plain transformers and
safetensors. An export is held to that before it appears under its name.

vLLM gives the value of every token; the last one is the score of the text.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.export.stock import (
    PROOF_TEXTS,
    TOLERANCE,
    appearing,
    check_difference,
    float_logits,
    last_token_reasons,
    open_merged,
    proof_limit,
    proof_rows,
    taken,
)
from qwen_task_heads.hubcode.encoding_task_heads import pad_rows
from qwen_task_heads.modelscope import HUGGINGFACE

ARCHITECTURE = "Qwen2ForRewardModel"
HEAD = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")
REMEDY = "vLLM's class has no such thing: publish the model with save()"


def export_reward_model(
    model_or_folder: Any,
    *,
    tokenizer: Any = None,
    folder: str | Path,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
) -> Path:
    """Write a Qwen2 model with a two-layer head as vLLM's `Qwen2ForRewardModel`.

    Args:
        model_or_folder: a `TitleScorer` or `PooledClassifier` of one output, a `PeftModel` around one, or
            the folder or repo of one. An adapter is merged first, into a given model in place.
        tokenizer: with the compiled template; None for the one in the folder.
        folder: where to; new or empty.
        revision: of a repo.
        hub: where ids are looked up, that of an adapter's base too: `huggingface` or `modelscope`.

    Returns:
        The folder; `serve_command` says how vLLM opens it.

    Raises:
        TaskHeadsError: a model of another form, all reasons at once, or scores that differ after the export.

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
    model, tokenizer = open_merged(model_or_folder, tokenizer=tokenizer, revision=revision, hub=hub)
    if problems := [*_reasons(model), *taken(folder)]:
        raise TaskHeadsError(problems)
    with appearing(folder) as staged:
        staged.mkdir()
        _config(model, pad_id=tokenizer.pad_token_id).save_pretrained(staged)
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
        _prove(model, tokenizer, staged)
    return folder


def reference_logits(
    folder: str | Path, *, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Scores (B, 1) fp32 of a reward model's folder, by plain transformers and safetensors.

    Args:
        folder: written by `export_reward_model`.
        input_ids: (B, T) int64, padded on any side.
        attention_mask: (B, T), 1 for real tokens.

    Raises:
        RuntimeError: a tensor that is missing, extra or of another shape.
    """
    return _open(Path(folder))(input_ids, attention_mask)


def _open(folder: Path) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Open a folder as `reference_logits` does, once for several batches."""
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


def _reasons(model: Any) -> list[Problem]:
    """Why vLLM's class cannot compute what this model does; all reasons."""
    config = model.config
    family, width = config.text_config.model_type, config.text_config.hidden_size
    is_mlp = config.head == "mlp"
    rules = [
        ("text_config", family, family == "qwen2", "qwen2"),
        ("num_labels", config.num_labels, config.num_labels == 1, "1, one score"),
        ("head", config.head, is_mlp, "mlp; export_stock() takes a linear one"),
        ("head_sizes", config.head_sizes, not is_mlp or config.head_sizes == [width], f"[{width}]"),
        ("head_activation", config.head_activation, not is_mlp or config.head_activation == "relu", "relu"),
    ]
    problems = [
        Problem(field, f"found {value!r}", f"{accepted}", REMEDY)
        for field, value, fits, accepted in rules
        if not fits
    ]
    return [*problems, *last_token_reasons(model, remedy=REMEDY)]


def _config(model: Any, *, pad_id: int | None) -> Any:
    """The backbone's config, with what servers read of a reward model."""
    config = copy.deepcopy(model.config.text_config)
    config.id2label, config.label2id = dict(model.config.id2label), dict(model.config.label2id)
    config.problem_type = "regression"  # the score itself, and no sigmoid of it
    config.pad_token_id = pad_id
    config.architectures = [ARCHITECTURE]
    config.dtype = str(model.dtype).split(".")[-1]
    config._name_or_path = ""
    return config


def _prove(model: Any, tokenizer: Any, folder: Path) -> None:
    """Compare scores in fp32 with those of the files, rows padded left, right and not at all."""
    padded = pad_rows(proof_rows(model, tokenizer), pad_id=0)
    wanted, score = float_logits(model, padded), _open(folder)
    again = AutoTokenizer.from_pretrained(folder)
    options: dict[str, Any] = {
        "truncation": True, "max_length": proof_limit(model, tokenizer), "return_tensors": "pt",
    }  # fmt: skip
    batches = [
        again(list(PROOF_TEXTS), padding=True, padding_side=side, **options) for side in ("left", "right")
    ]
    batches += [again(text, **options) for text in PROOF_TEXTS]
    for batch, expected in zip(batches, [wanted, wanted, *wanted.split(1)], strict=True):
        found = score(batch["input_ids"], batch["attention_mask"])
        check_difference(found, expected, tolerance=TOLERANCE, where=str(folder), what=ARCHITECTURE)
