"""Losses of text classifiers: single-label, multi-label, regression and ordinal, one value per row.

Design decisions:

- A loss is a plain function of logits and labels and returns one loss per row `(B,)`. `pair_losses.reduce`
  averages them, so that row weights work with every loss.
- Class weights and `pos_weight` multiply the losses, and the mean is over the rows. torch's own `mean`
  divides by the sum of the weights *of the batch*: eight rows at once, or as 4 + 4, would give two different
  steps. Instead, `resolve_text_loss` divides the weights once by their mean over the training set. Over the
  whole training set that equals torch's mean, and every split into batches gives the same gradient.
- Logits are cast to fp32 (float64 stays), and formulas use logsigmoid, log_softmax or logsumexp. Loss and
  gradient stay finite for logits to ±1e4.
- Only shapes are checked per step. A NaN gives a NaN loss, never a zero one. The trainer rejects a label of
  -100, which torch would ignore without a message, before the first step.
- `TEXT_LOSSES` is the only list of names: recipes, messages and cards read it.

`z` are logits, `q = softmax(z)`, or `σ(z)` for multi-label models. There are K labels, and n_k training rows
with label k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.training.class_balance import (
    absent_label_messages,
    counts_problem,
    read_number,
    read_weights,
)

# Options of the losses, and the command-line options that set them.
FLAGS = {
    "class_weights": "--class_weights",
    "label_smoothing": "--label_smoothing_factor",
    "focal_gamma": "--focal_gamma",
    "pos_weight": "--pos_weight",
    "logit_adjustment_tau": "--logit_adjustment_tau",
}


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
        >>> from qwen_task_heads.training.text_losses import cross_entropy
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


@dataclass(frozen=True)
class LossForm:
    """An entry of `TEXT_LOSSES`: `function(logits, labels, **parameters) -> (B,)`, and its inputs.

    Args:
        function: the loss.
        formula: one line, for cards.
        source: paper or upstream code.
        options: names from `FLAGS` that the function takes.
        uses: columns of the batch that the function takes in addition to `labels`.
    """

    function: Callable[..., Tensor]
    formula: str
    source: str
    options: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()


# The first of each problem type is its default.
TEXT_LOSSES: dict[str, dict[str, LossForm]] = {
    "single_label_classification": {
        "cross_entropy": LossForm(
            cross_entropy,
            "-log softmax(z)_y",
            "torch cross_entropy",
            options=("class_weights", "label_smoothing"),
            uses=("soft",),
        ),
        "focal": LossForm(
            focal,
            "-(1 - q_y)^γ log q_y",
            "Lin et al. 2017, arXiv:1708.02002",
            options=("focal_gamma", "class_weights"),
        ),
        "logit_adjusted": LossForm(
            logit_adjusted,
            "-log softmax(z + τ log prior)_y",
            "Menon et al. 2021, arXiv:2007.07314",
            options=("logit_adjustment_tau", "label_smoothing"),
            uses=("soft",),
        ),
    },
    "multi_label_classification": {
        "bce": LossForm(
            bce,
            "mean over labels of -t log σ(z) - (1 - t) log σ(-z)",
            "torch bce_with_logits",
            options=("pos_weight", "label_smoothing"),
        ),
        "focal": LossForm(
            focal_binary,
            "mean over labels of -(1 - p)^γ log p",
            "Lin et al. 2017, arXiv:1708.02002",
            options=("focal_gamma",),
        ),
    },
    "regression": {
        "mse": LossForm(mse, "(z - y)²", "torch mse_loss"),
        "mae": LossForm(mae, "|z - y|", "torch l1_loss"),
        "huber": LossForm(huber, "(z - y)²/2, linear beyond 1", "Huber 1964; torch huber_loss"),
    },
    "ordinal": {
        "cumulative_link": LossForm(
            cumulative_link,
            "-log P(y), P(y <= k) = σ(threshold_k - f)",
            "McCullagh 1980",
            options=("class_weights",),
            uses=("soft",),
        ),
    },
}
# Options whose parameter in the loss function has another name.
_PARAMETERS = {"focal_gamma": "gamma", "logit_adjustment_tau": "tau"}


@dataclass(frozen=True)
class TextLoss:
    """A loss with resolved options, from `resolve_text_loss`.

    Args:
        name: as in `TEXT_LOSSES`.
        form: its entry there.
        parameters: arguments of the function in addition to logits, labels and `soft`.
        messages: lines for the report of the run, such as labels without a training row.
    """

    name: str
    form: LossForm
    parameters: dict[str, Tensor | float] = field(default_factory=dict)
    messages: tuple[str, ...] = ()

    def __call__(self, logits: Tensor, labels: Tensor, **columns: Tensor) -> Tensor:
        """Return losses (B,), fp32; `columns` are those that the loss uses.

        Raises:
            TaskHeadsError: the shapes differ.
        """
        return self.form.function(logits, labels, **columns, **self.parameters)


def resolve_text_loss(
    name: str | None,
    *,
    problem_type: str,
    num_labels: int,
    options: Mapping[str, Any] | None = None,
    class_counts: Sequence[int] | None = None,
    rows: int | None = None,
    labels: Sequence[str] = (),
) -> TextLoss:
    """Resolve a loss and its options before training, and report all problems in one error.

    Args:
        name: a name in `TEXT_LOSSES[problem_type]`; None for the default of the problem type.
        problem_type: as in the model's config.
        num_labels: K.
        options: by their names in `FLAGS`; values of None, and a smoothing of 0, count as not given.
            `class_weights` and `pos_weight` are `"balanced"` or a number per label.
        class_counts: n_k, training rows with each label; `balanced` and `logit_adjusted` need it.
        rows: number of training rows; the counts of multi-label rows do not determine it.
        labels: names of the labels, for messages.

    Raises:
        TaskHeadsError: an unknown loss, an option that it does not take, or a value out of range.

    Example:
        >>> from qwen_task_heads.training.text_losses import resolve_text_loss
        >>> loss = resolve_text_loss(None, problem_type="single_label_classification", num_labels=2,
        ...                          options={"class_weights": "balanced"}, class_counts=[30, 10])
        >>> loss.parameters["class_weights"]
        tensor([0.6667, 2.0000])
    """
    forms = TEXT_LOSSES[problem_type]
    chosen = next(iter(forms)) if name is None else name
    if chosen not in forms:
        raise TaskHeadsError(
            Problem(
                "--loss",
                f"found {shorten(chosen)} for {problem_type}",
                ", ".join(forms),
                "choose one of them",
                code="option-value",
            )
        )
    form = forms[chosen]
    given = {key: value for key, value in (options or {}).items() if value is not None}
    if not given.get("label_smoothing"):
        given.pop("label_smoothing", None)
    problems: list[Problem] = []
    parameters: dict[str, Tensor | float] = {}
    for key, value in given.items():
        flag = FLAGS.get(key, f"loss option {key!r}")
        if key not in form.options:
            supported = ", ".join(FLAGS[option] for option in form.options) or "no option"
            problem = f"found {shorten(value)} with loss {chosen!r}"
            other = next((loss for loss, entry in forms.items() if key in entry.options), None)
            fix = "drop it" if other is None else f"drop it, or give --loss {other}"
            problems.append(Problem(flag, problem, supported, fix, code="option-conflict"))
        elif key in ("class_weights", "pos_weight"):
            weights, weight_problems = read_weights(
                value, flag=flag, num_labels=num_labels, class_counts=class_counts, rows=rows
            )
            problems += weight_problems
            parameters[key] = weights
        elif number_problems := read_number(
            value, flag=flag, below=1.0 if key == "label_smoothing" else math.inf
        ):
            problems += number_problems
        else:
            parameters[_PARAMETERS.get(key, key)] = value
    is_adjusted = form.function is logit_adjusted
    if is_adjusted:
        if class_counts is None:
            problems.append(counts_problem("--loss logit_adjusted"))
        else:
            parameters["class_counts"] = torch.tensor(class_counts, dtype=torch.float32)
    if problems:
        raise TaskHeadsError(problems)
    messages = absent_label_messages(given, is_adjusted, class_counts, rows=rows, labels=labels)
    return TextLoss(chosen, form, parameters, tuple(messages))


def _checked(logits: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
    """Check the shapes of the targets; return logits (B, K), at least fp32."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise _shape_error("labels", logits, labels, "shapes (B, K) and (B,)")
    if soft is not None and soft.shape != logits.shape:
        raise _shape_error("soft", logits, soft, "shape (B, K) of both")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _paired(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and targets of one shape (B, L), at least fp32; targets of one value may be (B,)."""
    if labels.ndim == 1 and tuple(logits.shape) == (*labels.shape, 1):
        labels = labels[:, None]
    if logits.ndim != 2 or labels.shape != logits.shape:
        # (B, 1) and (B,) would broadcast to (B, B).
        raise _shape_error("labels", logits, labels, "shape (B, L) of both")
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return z, labels.to(z)


def _shape_error(name: str, logits: Tensor, values: Tensor, expected: str) -> TaskHeadsError:
    return TaskHeadsError(
        Problem(
            f"loss input {name!r}",
            f"found logits {tuple(logits.shape)} and {name} {tuple(values.shape)}",
            expected,
            "create the data set with the config of this model",
            code="argument-type",
        )
    )
