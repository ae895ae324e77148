"""Losses of text classifiers: single-label, multi-label, regression and ordinal, one value per row.

Design decisions:

- A loss is a plain function of logits and labels and gives one loss per row `(B,)`; `losses.reduce` makes
  the scalar, so that row weights work with every loss.
- Class weights and `pos_weight` multiply the losses, and the mean goes over the rows. torch's own `mean`
  divides by the sum of the weights *of the batch*: eight rows at once, or as 4 + 4, would then be two
  different steps. Instead `resolve_text_loss` divides the weights once by their mean over the training set.
  Over the whole set that is torch's mean, and any split into batches gives one and the same gradient.
- Logits are cast to fp32 (float64 stays), and formulas go through logsigmoid, log_softmax or logsumexp:
  loss and gradient stay finite for logits to ±1e4.
- Only shapes are checked per step. A NaN that slips through gives a NaN loss, never a zero one. A label of
  -100, which torch would leave out in silence, is refused by the trainer before the first step.
- `TEXT_LOSSES` is the only list of names: recipes, messages and cards read it.

`z` are logits, `q = softmax(z)` or, for several labels, `σ(z)`; K labels, n_k training rows with label k.
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
from qwen_task_heads.training.class_balance import absent_lines, no_counts, read_number, read_weights

# Options by the names of the recipe that carries them.
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
    """Cross-entropy `-Σ_k w_k t_k log q_k` with `t = (1 - ε) target + ε / K`, as in torch.

    Source: torch.nn.functional.cross_entropy; smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | logits | (B, K) | float | z |
    | labels | (B,) | int64 | id of the label |
    | soft | (B, K) | float | P(label) where annotators disagreed, instead of `labels` |
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
    """Focal loss `-w_y (1 - q_y)^γ log q_y`: rows that are right already weigh little.

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
    # log(1 - q_y) from the other logits: 1 - q_y is zero at a gap of 17, and 0^γ has no gradient for γ < 1
    others = z.masked_fill(own, -math.inf).logsumexp(1) - z.logsumexp(1)
    losses = torch.exp(gamma * others) * F.cross_entropy(z, labels, reduction="none")
    return losses if class_weights is None else losses * class_weights.to(z)[labels]


def focal_binary(logits: Tensor, labels: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Focal loss of several labels: the mean over them of `-(1 - p)^γ log p`, p = σ(z) or, absent, σ(-z).

    Source: Lin et al. 2017, arXiv:1708.02002, equation 4; torchvision's `sigmoid_focal_loss` with alpha=-1.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | logits | (B, K) | float | z |
    | labels | (B, K) | float | 1 for each label of the row; values between are mixed |
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
    """Cross-entropy of `z + τ log π`, for long tails: rare labels must win by more than their prior.

    Prediction stays the largest z, without the shift, which is then the best for balanced accuracy. A label
    without a row counts as half a row, since the logarithm of zero is no number.
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
    """Binary cross-entropy, the mean over the labels of `-w_k t log σ(z) - (1 - t) log σ(-z)`.

    Smoothing pulls both ends to the middle: `t = (1 - ε) target + ε / 2`, as in Keras.
    Source: torch.nn.functional.binary_cross_entropy_with_logits.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | logits | (B, K) | float | z |
    | labels | (B, K) | float | 1 for each label of the row |
    | pos_weight | (K,) | float | w, positive; weight of a present label beside an absent one |
    | label_smoothing | scalar | float | ε in [0, 1) |
    | returns | (B,) | fp32 | loss per row |
    """
    z, target = _paired(logits, labels)
    target = target * (1 - label_smoothing) + label_smoothing / 2
    weight = None if pos_weight is None else pos_weight.to(z)
    return F.binary_cross_entropy_with_logits(z, target, pos_weight=weight, reduction="none").mean(1)


def mse(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the scores of a row of `(z - y)²`. (B, L) or (B,) floats -> (B,) fp32.

    Source: torch.nn.functional.mse_loss.
    """
    return F.mse_loss(*_paired(logits, labels), reduction="none").mean(1)


def mae(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the scores of a row of `|z - y|`, for targets with outliers. (B, L) or (B,) -> (B,) fp32.

    Source: torch.nn.functional.l1_loss.
    """
    return F.l1_loss(*_paired(logits, labels), reduction="none").mean(1)


def huber(logits: Tensor, labels: Tensor, *, delta: float = 1.0) -> Tensor:
    """Mean over the scores of a row of Huber's loss: `d²/2` to |d| = delta, then `delta (|d| - delta/2)`.

    (B, L) or (B,) floats -> (B,) fp32. `delta` is in units of the score: scale targets to about 1.
    Source: Huber 1964, doi 10.1214/aoms/1177703732; torch.nn.functional.huber_loss.
    """
    return F.huber_loss(*_paired(logits, labels), reduction="none", delta=delta).mean(1)


def cumulative_link(
    logits: Tensor, labels: Tensor, *, soft: Tensor | None = None, class_weights: Tensor | None = None
) -> Tensor:
    """`-w_y log P(y)` of an ordinal head, whose outputs are the log-probabilities of the K labels.

    They sum to one, so that softmax leaves them as they are; it puts right means over windows, which do not.
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
    """An entry of `TEXT_LOSSES`: `function(logits, labels, **parameters) -> (B,)`, and what it takes.

    Args:
        function: the loss.
        formula: one line, for cards.
        source: paper or upstream code.
        options: names out of `FLAGS` that it takes.
        uses: columns of the batch that it takes beside `labels`.
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
            cross_entropy, "-log softmax(z)_y", "torch cross_entropy",
            options=("class_weights", "label_smoothing"), uses=("soft",),
        ),
        "focal": LossForm(
            focal, "-(1 - q_y)^γ log q_y", "Lin et al. 2017, arXiv:1708.02002",
            options=("focal_gamma", "class_weights"),
        ),
        "logit_adjusted": LossForm(
            logit_adjusted, "-log softmax(z + τ log prior)_y", "Menon et al. 2021, arXiv:2007.07314",
            options=("logit_adjustment_tau", "label_smoothing"), uses=("soft",),
        ),
    },
    "multi_label_classification": {
        "bce": LossForm(
            bce, "mean over labels of -t log σ(z) - (1 - t) log σ(-z)", "torch bce_with_logits",
            options=("pos_weight", "label_smoothing"),
        ),
        "focal": LossForm(
            focal_binary, "mean over labels of -(1 - p)^γ log p", "Lin et al. 2017, arXiv:1708.02002",
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
            cumulative_link, "-log P(y), P(y <= k) = σ(threshold_k - f)", "McCullagh 1980",
            options=("class_weights",), uses=("soft",),
        ),
    },
}  # fmt: skip
# options that are called otherwise in their function
_PARAMETERS = {"focal_gamma": "gamma", "logit_adjustment_tau": "tau"}


@dataclass(frozen=True)
class TextLoss:
    """A loss with its options settled, from `resolve_text_loss`.

    Args:
        name: as in `TEXT_LOSSES`.
        form: its entry there.
        parameters: what the function is called with beside logits, labels and `soft`.
        lines: what a reader of the run's report should know, such as labels without a training row.
    """

    name: str
    form: LossForm
    parameters: dict[str, Tensor | float] = field(default_factory=dict)
    lines: tuple[str, ...] = ()

    def __call__(self, logits: Tensor, labels: Tensor, **columns: Tensor) -> Tensor:
        """Losses (B,), fp32; `columns` are those that the form uses.

        Raises:
            TaskHeadsError: shapes that do not fit each other.
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
    """Settle a loss and its options before training, with all that is wrong in one error.

    Args:
        name: of `TEXT_LOSSES[problem_type]`; None for the problem type's own.
        problem_type: as in the model's config.
        num_labels: K.
        options: by their names in `FLAGS`; values of None, and a smoothing of 0, count as not given.
            `class_weights` and `pos_weight` are `"balanced"` or a number per label.
        class_counts: n_k, training rows with each label; `balanced` and `logit_adjusted` need it.
        rows: number of training rows, which several labels per row do not tell.
        labels: names of the labels, for messages.

    Raises:
        TaskHeadsError: an unknown loss, an option that it does not take, or values that cannot be.

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
        found = f"found {shorten(chosen)} for {problem_type}"
        raise TaskHeadsError(Problem("--loss", found, f"{', '.join(forms)}", "choose one of them, or none"))
    form = forms[chosen]
    given = {key: value for key, value in (options or {}).items() if value is not None}
    if not given.get("label_smoothing"):
        given.pop("label_smoothing", None)
    problems: list[Problem] = []
    parameters: dict[str, Tensor | float] = {}
    for key, value in given.items():
        flag = FLAGS.get(key, f"loss option {key!r}")
        if key not in form.options:
            takes = ", ".join(FLAGS[option] for option in form.options) or "no option"
            found = f"found {shorten(value)} with loss {chosen!r}"
            other = next((loss for loss, one in forms.items() if key in one.options), None)
            remedy = "drop it" if other is None else f"drop it, or give --loss {other}"
            problems.append(Problem(flag, found, f"{takes}", remedy))
        elif key in ("class_weights", "pos_weight"):
            numbers, wrong = read_weights(
                value, flag=flag, num_labels=num_labels, class_counts=class_counts, rows=rows
            )
            problems += wrong
            parameters[key] = numbers
        elif wrong := read_number(value, flag=flag, below=1.0 if key == "label_smoothing" else math.inf):
            problems += wrong
        else:
            parameters[_PARAMETERS.get(key, key)] = value
    if form.function is logit_adjusted:
        if class_counts is None:
            problems.append(no_counts("--loss logit_adjusted"))
        else:
            parameters["class_counts"] = torch.tensor(class_counts, dtype=torch.float32)
    if problems:
        raise TaskHeadsError(problems)
    lines = absent_lines(given, form.function is logit_adjusted, class_counts, rows=rows, labels=labels)
    return TextLoss(chosen, form, parameters, tuple(lines))


def _checked(logits: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
    """Logits (B, K), at least fp32, once the shapes of the targets fit."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise _shapes("labels", logits, labels, "(B, K) and (B,)")
    if soft is not None and soft.shape != logits.shape:
        raise _shapes("soft", logits, soft, "(B, K) both")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _paired(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets of one shape (B, L), at least fp32; targets of one score may come as (B,)."""
    if labels.ndim == 1 and tuple(logits.shape) == (*labels.shape, 1):
        labels = labels[:, None]
    if logits.ndim != 2 or labels.shape != logits.shape:
        # (B, 1) and (B,) would broadcast to (B, B)
        raise _shapes("labels", logits, labels, "(B, L) both")
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return z, labels.to(z)


def _shapes(name: str, logits: Tensor, values: Tensor, accepted: str) -> TaskHeadsError:
    found = f"logits {tuple(logits.shape)} and {name} {tuple(values.shape)}"
    remedy = "make the data set with the config of this model"
    return TaskHeadsError(Problem(f"loss input {name!r}", f"found {found}", f"{accepted}", remedy))
