"""Pooling and heads: hidden states in, logits out. This file is copied into every published model.

Pooling uses the attention mask and not token ids, so a pad id, a missing pad id or eos == pad cannot change a
score. Only without a mask, the mask is derived from the pad ids at the edges of rows, and a warning is
logged. Heads compute in fp32 under any dtype of the backbone and under autocast, because bf16 scores near 8
tie for titles 0.04 apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import logging

from .configuration_task_heads import TaskHeadConfig
from .errors_task_heads import TaskHeadError, refuse
from .questions_task_heads import sizes_of

logger = logging.get_logger(__name__)
GAP = 2.0  # between neighbouring thresholds of a new ordinal head
PASS_MASK = "Pass the attention_mask of the tokenizer if this is not intended."


def rows_of(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the arguments of `pool` for a padded batch: rows (B, T, H), mask (B, T) bool, last (B,) in T.

    Args:
        hidden_states: (B, T, H), any float dtype.
        attention_mask: (B, T), 1 for real tokens on either or both sides of padding; None for all real.

    Raises:
        ValueError: a row without a real token, or a mask of another shape.
    """
    mask = real_tokens(attention_mask, hidden_states)
    position = torch.arange(mask.shape[1], device=mask.device)
    return hidden_states, mask, (mask * position).argmax(1)


def real_tokens(attention_mask: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mask (B, T) of `tokens` (B, T, ...) as bool, with at least one True per row.

    Raises:
        ValueError: a row without a real token, or a mask of another shape.
    """
    if attention_mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if attention_mask.dim() != 2:
        raise TaskHeadError(
            "attention_mask",
            f"found {attention_mask.dim()} dimensions",
            "(batch, length)",
            "pass padded rows: the model itself packs them and shares their prefixes",
            code="argument-type",
        )
    mask = attention_mask.to(torch.bool)
    if not torch.compiler.is_compiling() and not bool(mask.any(1).all()):
        row = int((~mask.any(1)).nonzero()[0])
        raise TaskHeadError(
            "attention_mask",
            f"row {row} has no real token",
            "at least one 1 in each row",
            "drop empty texts",
            code="text-empty",
        )
    return mask


def mask_for(model: Any, input_ids: torch.Tensor | None) -> torch.Tensor | None:
    """Derive the mask of a call without one; see `derive_mask`."""
    pad_id = model.config.text_config.__dict__.get("pad_token_id")
    if pad_id is None and model.tokenizer is not None:
        pad_id = model.tokenizer.pad_token_id
    return derive_mask(input_ids, pad_id=pad_id, template=model.config.__dict__.get("template"))


def derive_mask(
    input_ids: torch.Tensor | None, *, pad_id: int | None, template: dict | None = None
) -> torch.Tensor | None:
    """Derive the attention mask (B, T) int64 of a call without one from the pad ids at the edges of rows.

    All tokens between the first and the last token other than the pad id are real, pad ids among them
    included. Pad ids with which the template itself starts or ends are real too. A warning is logged once,
    also if no mask can be derived.

    Source: `GenericForSequenceClassification` of transformers 5.23, which pools the last token other than
    the pad id. It lets tokens attend to padding on the left, which is masked here.

    Args:
        input_ids: (B, T) int64; None for a call with `inputs_embeds`.
        pad_id: pad id of the backbone's config or of the tokenizer.
        template: `TaskHeadConfig.template`.

    Returns:
        None if no row is padded or no mask can be derived: all tokens are real then.

    Example:
        >>> import torch
        >>> from qwen_task_heads.hubcode.pooling_task_heads import derive_mask
        >>> derive_mask(torch.tensor([[5, 0, 6, 0], [5, 6, 7, 8]]), pad_id=0)
        tensor([[1, 1, 1, 0],
                [1, 1, 1, 1]])
    """
    if input_ids is None or pad_id is None:
        known = "inputs_embeds" if input_ids is None else "a model without a pad id"
        if input_ids is None or len(input_ids) > 1:
            logger.warning_once(
                f"Without an attention_mask, all tokens of {known} count as real. " + PASS_MASK
            )
        return None
    if input_ids.numel() == 0:
        return None
    other = (input_ids != pad_id).long()
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    first = input_ids.shape[1] - 1 - (other * position.flip(0)).amax(1, keepdim=True)
    last = (other * position).amax(1, keepdim=True)
    before, after = ((template or {}).get(part) or [] for part in ("before", "after"))
    real = (position >= first - _run_of(pad_id, before)) & (position <= last + _run_of(pad_id, after[::-1]))
    real &= other.any(1, keepdim=True)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return real.long()  # a traced graph must not depend on one batch
    if bool(real.all()):
        return None
    logger.warning_once(
        f"Without an attention_mask, tokens with the pad id {pad_id} at the edges of rows count as padding. "
        + PASS_MASK
    )
    return real.long()


def _run_of(token: int, ids: list[int]) -> int:
    """Return the number of leading ids that are this token."""
    return next((index for index, found in enumerate(ids) if found != token), len(ids))


def pool(rows: torch.Tensor, mask: torch.Tensor, last: torch.Tensor, *, pooling: str) -> torch.Tensor:
    """Pool rows (B, T, H) over the True positions of mask (B, T) into (B, H), in fp32.

    Example:
        >>> import torch
        >>> from qwen_task_heads.hubcode.pooling_task_heads import pool, rows_of
        >>> states = torch.arange(8.0).reshape(1, 4, 2)
        >>> pool(*rows_of(states, torch.tensor([[0, 1, 1, 0]])), pooling="last")
        tensor([[4., 5.]])
    """
    if pooling == "last":
        return rows[torch.arange(rows.shape[0], device=rows.device), last].float()
    rows = rows.float()
    # masked_fill, not multiplication: a pad position may hold inf or NaN in reduced precision
    if pooling == "mean":
        return rows.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True)
    if pooling == "max":
        return rows.masked_fill(~mask[..., None], -torch.inf).amax(1)
    raise refuse(
        "pooling",
        pooling,
        "last, mean or max (attention is pooled by its head)",
        "choose one of them",
        code="option-value",
    )


class FloatLinear(nn.Linear):
    """A linear layer that multiplies in fp32 under autocast and in models cast to bf16."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (..., in) of any float dtype to (..., out) fp32."""
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(device_type=input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), bias)


class CumulativeLink(nn.Module):
    """Ordinal output: one latent value, K - 1 ordered thresholds, log-probabilities of K labels.

    P(y <= k) = sigmoid(threshold_k - f(x)), the proportional-odds model (McCullagh 1980,
    https://doi.org/10.1111/j.2517-6161.1980.tb01109.x). The outputs are normalised log-probabilities, which
    softmax does not change, so cross-entropy and stock pipelines apply unchanged.
    """

    def __init__(self, in_features: int, num_labels: int) -> None:
        super().__init__()
        self.latent = FloatLinear(in_features, 1, bias=False)
        self.first = nn.Parameter(torch.empty(1))
        self.log_gaps = nn.Parameter(torch.empty(num_labels - 2))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map (B, H) to log-probabilities (B, K), fp32."""
        gaps = self.log_gaps.float().exp()
        thresholds = torch.cat([self.first.float(), self.first.float() + gaps.cumsum(0)])  # (K-1,)
        below = thresholds - self.latent(pooled)  # (B, K-1), logit of P(y <= k)
        # Softplus and not logsigmoid, which ONNX Runtime computes as -inf at or below -19
        first, final = -F.softplus(-below[:, :1]), -F.softplus(below[:, -1:])
        # sigmoid(a) - sigmoid(b) = sigmoid(a) * sigmoid(-b) * (1 - exp(b - a)), stable for a > b
        middle = torch.log(-torch.expm1(-gaps)) - F.softplus(-below[:, 1:]) - F.softplus(below[:, :-1])
        return torch.cat([first, middle, final], dim=1)


class AttentionPool(nn.Module):
    """Pool by a learned query, then apply a head. One module has query and head, so both are saved."""

    def __init__(self, hidden_size: int, head: nn.Module) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(hidden_size))
        self.head = head

    def forward(self, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map rows (B, T, H) and mask (B, T) to logits (B, labels), fp32."""
        with torch.autocast(device_type=rows.device.type, enabled=False):
            rows = rows.float().masked_fill(~mask[..., None], 0.0)
            weight = (rows @ self.query.float()) / rows.shape[-1] ** 0.5  # (B, T)
            weight = weight.masked_fill(~mask, -torch.inf).softmax(1)
            pooled = (weight[:, None] @ rows).squeeze(1)  # (B, H)
        return self.head(pooled)


_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def build_head(config: TaskHeadConfig, *, hidden_size: int) -> nn.Module:
    """Build the module `score` of a config: (B, H) to (B, labels); with `attention`, (B, T, H) and a mask.

    H is the total width of the layers that the head reads, `hidden_size` each. `attention` has one query for
    all of them, so that a token has one weight.

    A linear head without dropout is one matrix `score.weight`, the layout of the stock
    `Qwen2ForSequenceClassification`, which serving stacks read.
    """
    layers: list[nn.Module] = []
    width = states = hidden_size * (1 + len(config.lower_layers))
    for size in config.head_sizes or []:
        layers += [
            FloatLinear(width, size),
            _ACTIVATIONS[config.head_activation](),
            nn.Dropout(config.head_dropout),
        ]
        width = size
    if config.problem_type == "ordinal":
        if config.num_labels < 3:
            raise refuse(
                "num_labels",
                config.num_labels,
                "3 or more for 'ordinal'",
                "use single_label_classification",
                code="rows-too-few",
            )
        layers.append(CumulativeLink(width, config.num_labels))
    else:
        layers.append(FloatLinear(width, config.num_labels, bias=config.head == "mlp"))
    if config.head == "linear" and config.head_dropout:
        layers.insert(0, nn.Dropout(config.head_dropout))
    head = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
    return AttentionPool(states, head) if config.pooling == "attention" else head


def init_head(module: nn.Module) -> None:
    """Initialise the parameters of a head module, except linear layers; other modules are not changed."""
    if isinstance(module, CumulativeLink):
        # Symmetric and GAP apart: with smaller gaps the inner labels would never be the most probable.
        gaps = module.log_gaps.numel()
        nn.init.constant_(module.first, -GAP * gaps / 2)
        nn.init.constant_(module.log_gaps, math.log(GAP))
    elif isinstance(module, AttentionPool):
        nn.init.zeros_(module.query)  # equal weights: mean pooling at the start


def mean_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    problem_type: str | None,
    questions: Sequence[Mapping[str, Any]] | None = None,
) -> torch.Tensor:
    """Return the mean loss of logits (B, L); a problem type of None is inferred as in transformers."""
    if questions:
        return question_mean(logits, labels, sizes=sizes_of(questions)).mean()
    several = logits.shape[1] > 1
    if problem_type is None:
        problem_type = "single_label_classification" if several else "regression"
        if several and labels.is_floating_point():
            problem_type = "multi_label_classification"
    if problem_type in ("single_label_classification", "ordinal"):
        return F.cross_entropy(logits, labels)
    labels = labels.to(logits.dtype).view_as(logits)
    if problem_type == "regression":
        return F.mse_loss(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels)


def option_scores(logits: torch.Tensor, question: Mapping[str, Any]) -> torch.Tensor:
    """Return log-probabilities (N, K) of the options of a question, in their order.

    Args:
        logits: (N, L) of the outputs of this question.
        question: of the config.

    Example:
        >>> import torch
        >>> from qwen_task_heads.hubcode.pooling_task_heads import option_scores
        >>> option_scores(torch.zeros(1, 1), {"name": "refund", "type": "noul"}).exp()
        tensor([[0.5000, 0.5000]])
    """
    if question["type"] == "noul":
        return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=-1)
    return logits.log_softmax(-1)


def question_mean(logits: torch.Tensor, targets: torch.Tensor, *, sizes: Sequence[int]) -> torch.Tensor:
    """Compute the mean of the losses of the answered questions of each row.

    The loss of a question with several outputs is the cross-entropy to its probabilities, that of a question
    with one output the binary cross-entropy. Outputs whose target is negative have no answer.
    Source: torch.nn.functional.cross_entropy and binary_cross_entropy_with_logits.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | logits | (B, L) | float | outputs of all questions |
    | targets | (B, L) | float | P(option), or -1 in all outputs of a question without an answer |
    | sizes | Q | int | outputs of each question, with sum L |
    | returns | (B,) | fp32 | loss per row; 0 for a row without any answer |

    Example:
        >>> import torch
        >>> from qwen_task_heads.hubcode.pooling_task_heads import question_mean
        >>> targets = torch.tensor([[0.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
        >>> question_mean(torch.zeros(2, 3), targets, sizes=[2, 1])
        tensor([0.6931, 0.6931])
    """
    if logits.shape != targets.shape or logits.shape[-1] != sum(sizes):
        raise TaskHeadError(
            "loss input 'labels'",
            f"found logits {tuple(logits.shape)} and labels {tuple(targets.shape)}",
            f"shape (B, {sum(sizes)}) of both",
            "create the data set with the config of this model",
            code="argument-type",
        )
    z = logits if logits.dtype == torch.float64 else logits.float()
    losses, answered = [], []
    for own, target in zip(z.split(list(sizes), -1), targets.to(z).split(list(sizes), -1), strict=True):
        known = ~(target < 0).any(-1)  # a NaN is known, and gives a NaN loss
        target = target.masked_fill(~known[:, None], 0.0)
        if own.shape[-1] == 1:
            loss = F.binary_cross_entropy_with_logits(own, target, reduction="none")[:, 0]
        else:
            loss = F.cross_entropy(own, target, reduction="none")
        losses.append(loss * known)
        answered.append(known)
    return torch.stack(losses).sum(0) / torch.stack(answered).sum(0).clamp(min=1)
