"""Losses of text classifiers: single-label, multi-label, regression and ordinal, one value per row.

Design decisions:

- A loss is a plain function of logits and labels and returns one loss per row `(B,)`. `rows.reduce`
  averages them, so that row weights work with every loss.
- Class weights and `pos_weight` multiply the losses, and the mean is over the rows. torch's own `mean`
  divides by the sum of the weights *of the batch*: eight rows at once, or as 4 + 4, would give two different
  steps. Instead, `registry.resolve_text_loss` divides the weights once by their mean over the training set.
  Over the whole training set that equals torch's mean, and every split into batches gives the same gradient.
- Logits are cast to fp32 (float64 stays), and formulas use logsigmoid, log_softmax or logsumexp. Loss and
  gradient stay finite for logits to ±1e4.
- Only shapes are checked per step. A NaN gives a NaN loss, never a zero one. The trainer rejects a label of
  -100, which torch would ignore without a message, before the first step.
- `ROWS` is part of `registry.LOSSES`, which recipes, messages, cards and tests read.

`z` are logits, `q = softmax(z)`, or `σ(z)` for multi-label models. There are K labels, and n_k training rows
with label k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.pooling_task_heads import question_mean
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.losses.rows import Loss, LossOption, at_least_fp32
from qwen_task_heads.metrics.classification import MULTI, ORDINAL, REGRESSION, SINGLE


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    soft: Tensor | None = None,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the cross-entropy `-Σ_k w_k t_k log q_k` with `t = (1 - ε) target + ε / K`, as in torch.

    Source: torch.nn.functional.cross_entropy; smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | logits | (B, K) | float | z |
    | labels | (B,) | int64 | id of the label |
    | soft | (B, K) | float | P(label), such as shares of annotators, instead of `labels` |
    | class_weights | (K,) | float | w, positive |
    | label_smoothing | scalar | float | ε in [0, 1) |
    | returns | (B,) | fp32 | loss per row |

    Example:
        >>> import torch
        >>> from qwen_task_heads.losses.texts import cross_entropy
        >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2]))
        tensor([1.3863])
    """
    z = _checked(logits, labels, soft)
    target = labels if soft is None else soft.to(z)
    weight = None if class_weights is None else class_weights.to(z)
    return F.cross_entropy(z, target, weight=weight, label_smoothing=label_smoothing, reduction="none")


def focal(
    logits: Tensor, labels: Tensor, *, gamma: float = 2.0, class_weights: Tensor | None = None
) -> Tensor:
    """Compute the focal loss `-w_y (1 - q_y)^γ log q_y`, which gives confident correct rows little weight.

    Source: Lin et al. 2017, arXiv:1708.02002, equations 4 and 5, with softmax for q; γ = 0 is cross-entropy.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | logits | (B, K) | float | z |
    | labels | (B,) | int64 | id y of the label |
    | gamma | scalar | float | γ, 0 or more |
    | class_weights | (K,) | float | w, the paper's α |
    | returns | (B,) | fp32 | loss per row |
    """
    z = _checked(logits, labels, None)
    own = F.one_hot(labels, z.shape[1]).bool()
    # log(1 - q_y) from the other logits: 1 - q_y is zero at a gap of 17, and 0^γ has no gradient for γ < 1.
    others = z.masked_fill(own, -math.inf).logsumexp(1) - z.logsumexp(1)
    losses = torch.exp(gamma * others) * F.cross_entropy(z, labels, reduction="none")
    return losses if class_weights is None else losses * class_weights.to(z)[labels]


def focal_binary(logits: Tensor, labels: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Compute the multi-label focal loss, the mean over the labels of `-(1 - p)^γ log p`.

    p is σ(z) for a label of the row, and σ(-z) for any other label.
    Source: Lin et al. 2017, arXiv:1708.02002, equation 4; torchvision's `sigmoid_focal_loss` with alpha=-1.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | logits | (B, K) | float | z |
    | labels | (B, K) | float | 1 for each label of the row; values in between mix both terms |
    | gamma | scalar | float | γ, 0 or more; 0 is `bce` |
    | returns | (B,) | fp32 | loss per row |
    """
    z, target = _paired(logits, labels)
    present = -torch.exp(gamma * F.logsigmoid(-z)) * F.logsigmoid(z)
    absent = -torch.exp(gamma * F.logsigmoid(z)) * F.logsigmoid(-z)
    return (target * present + (1 - target) * absent).mean(1)


def logit_adjusted(
    logits: Tensor,
    labels: Tensor,
    *,
    class_counts: Tensor,
    tau: float = 1.0,
    soft: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the cross-entropy of `z + τ log π`, for training sets with rare labels.

    The prediction is the largest z, without the shift, which is optimal for balanced accuracy. A label
    without a training row counts as half a row, because the logarithm of zero is not finite.
    Source: Menon et al. 2021, arXiv:2007.07314, equation 10; Ren et al. 2020 (balanced softmax) for τ = 1.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | logits | (B, K) | float | z |
    | labels | (B,) | int64 | id of the label |
    | class_counts | (K,) | number | n_k; π_k = n_k / n |
    | tau | scalar | float | τ, 0 or more; 0 is cross-entropy |
    | soft, label_smoothing | | | as in `cross_entropy` |
    | returns | (B,) | fp32 | loss per row |
    """
    z = _checked(logits, labels, soft)
    counts = class_counts.to(z).clamp(min=0.5)
    shift = tau * (counts / counts.sum()).log()
    return cross_entropy(z + shift, labels, soft=soft, label_smoothing=label_smoothing)


def bce(
    logits: Tensor, labels: Tensor, *, pos_weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the binary cross-entropy, the mean over labels of `-w_k t log σ(z) - (1 - t) log σ(-z)`.

    Smoothing moves both targets towards .5: `t = (1 - ε) target + ε / 2`, as in Keras.
    Source: torch.nn.functional.binary_cross_entropy_with_logits.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | logits | (B, K) | float | z |
    | labels | (B, K) | float | 1 for each label of the row |
    | pos_weight | (K,) | float | w, positive; weight of a present label relative to an absent one |
    | label_smoothing | scalar | float | ε in [0, 1) |
    | returns | (B,) | fp32 | loss per row |
    """
    z, target = _paired(logits, labels)
    target = target * (1 - label_smoothing) + label_smoothing / 2
    weight = None if pos_weight is None else pos_weight.to(z)
    return F.binary_cross_entropy_with_logits(z, target, pos_weight=weight, reduction="none").mean(1)


def mse(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean over the values of a row of `(z - y)²`. (B, L) or (B,) floats -> (B,) fp32.

    Source: torch.nn.functional.mse_loss.
    """
    return F.mse_loss(*_paired(logits, labels), reduction="none").mean(1)


def mae(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean over the values of a row of `|z - y|`. (B, L) or (B,) floats -> (B,) fp32.

    Outliers among the targets have less influence than on `mse`.
    Source: torch.nn.functional.l1_loss.
    """
    return F.l1_loss(*_paired(logits, labels), reduction="none").mean(1)


def huber(logits: Tensor, labels: Tensor, *, delta: float = 1.0) -> Tensor:
    """Compute Huber's loss: `d²/2` up to |d| = delta, then `delta (|d| - delta/2)`, with d = z - y.

    It is the mean over the values of a row: (B, L) or (B,) floats -> (B,) fp32. `delta` is in units of the
    values: scale targets to about 1.
    Source: Huber 1964, doi 10.1214/aoms/1177703732; torch.nn.functional.huber_loss.
    """
    return F.huber_loss(*_paired(logits, labels), reduction="none", delta=delta).mean(1)


def cumulative_link(
    logits: Tensor, labels: Tensor, *, soft: Tensor | None = None, class_weights: Tensor | None = None
) -> Tensor:
    """Compute `-w_y log P(y)` of an ordinal head, whose outputs are the log-probabilities of the K labels.

    The probabilities sum to one, so that softmax does not change them. It normalises means over windows,
    whose probabilities do not sum to one.
    Source: McCullagh 1980, proportional odds, doi 10.1111/j.2517-6161.1980.tb01109.x.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | logits | (B, K) | float | log P(k), as `PooledClassifier` gives them for `ordinal` |
    | labels | (B,) | int64 | 0 to K - 1, in their natural order |
    | soft | (B, K) | float | P(label), instead of `labels` |
    | class_weights | (K,) | float | w, positive |
    | returns | (B,) | fp32 | loss per row |
    """
    return cross_entropy(logits, labels, soft=soft, class_weights=class_weights)


def _checked(logits: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
    """Check the shapes of the targets; return logits (B, K), at least fp32."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise _shape_error("labels", logits, labels, "shapes (B, K) and (B,)")
    if soft is not None and soft.shape != logits.shape:
        raise _shape_error("soft", logits, soft, "shape (B, K) of both")
    return logits.to(at_least_fp32(logits))


def _paired(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and targets of one shape (B, L), at least fp32; targets of one value may be (B,)."""
    if labels.ndim == 1 and tuple(logits.shape) == (*labels.shape, 1):
        labels = labels[:, None]
    if logits.ndim != 2 or labels.shape != logits.shape:
        # (B, 1) and (B,) would broadcast to (B, B).
        raise _shape_error("labels", logits, labels, "shape (B, L) of both")
    z = logits.to(at_least_fp32(logits))
    return z, labels.to(z)


def _shape_error(name: str, logits: Tensor, values: Tensor, expected: str) -> TaskHeadsError:
    problem = f"found logits {tuple(logits.shape)} and {name} {tuple(values.shape)}"
    fix = "create the data set with the config of this model"
    return TaskHeadsError(Problem(f"loss input {name!r}", problem, expected, fix, code="argument-type"))


CLASS_WEIGHTS = LossOption(
    name="class_weights",
    field="class_weights",
    help="'balanced', or one positive number per label.",
    per_label=True,
)
POS_WEIGHT = LossOption(
    name="pos_weight",
    field="pos_weight",
    help="'balanced', or one positive number per label.",
    per_label=True,
)
SMOOTHING = LossOption(
    name="label_smoothing",
    field="label_smoothing_factor",
    help="Share of the target that is spread over all labels.",
    default=0.0,
    minimum=0,
    below=1,
    is_inherited=True,
)
FOCAL_GAMMA = LossOption(
    name="focal_gamma",
    field="focal_gamma",
    help="Strength of the down-weighting of easy rows.",
    parameter="gamma",
    default=2.0,
    minimum=0,
)
TAU = LossOption(
    name="logit_adjustment_tau",
    field="logit_adjustment_tau",
    help="Strength; 1 is the value of the paper.",
    parameter="tau",
    default=1.0,
    minimum=0,
)

# The first of each problem type is its default.
ROWS = (
    Loss(
        "cross_entropy",
        SINGLE,
        cross_entropy,
        "-log softmax(z)_y",
        "torch cross_entropy",
        uses=("soft",),
        options=(CLASS_WEIGHTS, SMOOTHING),
    ),
    Loss(
        "focal",
        SINGLE,
        focal,
        "-(1 - q_y)^γ log q_y",
        "Lin et al. 2017, arXiv:1708.02002",
        paper="focal",
        options=(FOCAL_GAMMA, CLASS_WEIGHTS),
    ),
    Loss(
        "logit_adjusted",
        SINGLE,
        logit_adjusted,
        "-log softmax(z + τ log prior)_y",
        "Menon et al. 2021, arXiv:2007.07314",
        paper="logit_adjusted",
        uses=("soft",),
        needs_counts=True,
        options=(TAU, SMOOTHING),
    ),
    Loss(
        "bce",
        MULTI,
        bce,
        "mean over labels of -t log σ(z) - (1 - t) log σ(-z)",
        "torch bce_with_logits",
        options=(POS_WEIGHT, SMOOTHING),
    ),
    Loss(
        "focal",
        MULTI,
        focal_binary,
        "mean over labels of -(1 - p)^γ log p",
        "Lin et al. 2017, arXiv:1708.02002",
        paper="focal",
        options=(FOCAL_GAMMA,),
    ),
    Loss("mse", REGRESSION, mse, "(z - y)²", "torch mse_loss"),
    Loss("mae", REGRESSION, mae, "|z - y|", "torch l1_loss"),
    Loss("huber", REGRESSION, huber, "(z - y)²/2, linear beyond 1", "Huber 1964; torch huber_loss"),
    Loss(
        "cumulative_link",
        ORDINAL,
        cumulative_link,
        "-log P(y), P(y <= k) = σ(threshold_k - f)",
        "McCullagh 1980",
        paper="cumulative_link",
        uses=("soft",),
        options=(CLASS_WEIGHTS,),
    ),
    Loss(
        "question_mean",
        QUESTIONS,
        question_mean,
        "mean over answered questions of -Σ_k t_k log q_k",
        "torch cross_entropy, bce_with_logits",
        needs_sizes=True,
    ),
)
