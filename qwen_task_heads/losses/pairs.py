"""Losses over pairs of scores, chosen against rejected. `groups` has the losses over several titles.

Design decisions:

- A loss is a plain function of score tensors and returns one loss per pair `(B,)`. `rows.reduce`
  averages them, so that row weights work with every loss.
- Scores are cast to fp32 here (float64 stays): bf16 scores near 8 tie in 40% of pairs 0.04 apart. All
  formulas use logsigmoid, log_softmax or logsumexp. Loss and gradient stay finite for gaps to 1e4.
- Every loss raises TaskHeadsError unless its tensors have one shape `(B,)`: (B, 1) and (B,) would broadcast.
- Only shapes are checked here, because reading values would synchronise with the device at each step. The
  readers check values. A NaN gives a NaN loss, never a zero one.
- `ROWS` is part of `registry.LOSSES`, which recipes, messages, cards and tests read.

`c` and `r` are the scores of chosen and rejected, `σ` is the logistic function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.losses.rows import Loss, LossOption, as_column, at_least_fp32, nan_of, shape_error


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Compute Bradley-Terry: `-log σ(c - r)`, the usual reward-model loss.

    Source: Bradley & Terry 1952, Biometrika 39; as a loss: Ouyang et al. 2022, arXiv:2203.02155.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | returns | (B,) | fp32 | loss per pair |

    Example:
        >>> import torch
        >>> from qwen_task_heads.losses.pairs import bradley_terry
        >>> bradley_terry(torch.tensor([2.0]), torch.tensor([2.0]))
        tensor([0.6931])
    """
    return -F.logsigmoid(_gap(chosen, rejected))


def bradley_terry_margin(chosen: Tensor, rejected: Tensor, *, margin: Tensor) -> Tensor:
    """Compute Bradley-Terry with a margin per row: `-log σ(c - r - m)`.

    Pairs with a larger margin must be scored further apart.

    Source: Touvron et al. 2023 (Llama 2), arXiv:2307.09288, section 3.2.2; as in trl's RewardTrainer.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | margin | (B,) | float | required gap, in score units; 0 is Bradley-Terry without a margin |
    | returns | (B,) | fp32 | loss per pair |
    """
    gap = _gap(chosen, rejected)
    return -F.logsigmoid(gap - as_column(margin, gap, "margin"))


def soft(chosen: Tensor, rejected: Tensor, *, preference: Tensor) -> Tensor:
    """Compute the cross-entropy with a soft target: `-p log σ(c - r) - (1 - p) log σ(r - c)`.

    The minimum is at `c - r = logit(p)`, so that the gap of a pair with 8 of 10 votes stays finite.
    Source: conservative label smoothing as in Mitchell 2023 (cDPO note); the likelihood of p·n wins of n.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | preference | (B,) | float | p = P(chosen preferred) in [0, 1]; 1 is Bradley-Terry |
    | returns | (B,) | fp32 | loss per pair |
    """
    gap = _gap(chosen, rejected)
    target = as_column(preference, gap, "preference")
    return F.binary_cross_entropy_with_logits(gap, target, reduction="none")


def rao_kupper(
    chosen: Tensor,
    rejected: Tensor,
    *,
    tie: Tensor | None = None,
    preference: Tensor | None = None,
    nu: float = 0.5,
) -> Tensor:
    """Compute the Rao-Kupper model with ties, in which a win needs a gap above `η = log(1 + nu)`.

    `P(win) = σ(c - r - η)`, `P(loss) = σ(r - c - η)`, `P(tie) = (e^2η - 1) P(win) P(loss)`; they sum to one.
    Source: Rao & Kupper 1967, JASA 62, with their θ = 1 + nu.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | tie | (B,) | bool | rows without a winner |
    | preference | (B,) | float | above .5 chosen won, exactly .5 is a tie, below .5 rejected won |
    | nu | scalar | float | tie parameter, above 0; towards 0 ties become impossible |
    | returns | (B,) | fp32 | loss per pair |

    A row is a tie if either column marks a tie. Without both columns, every row is a win of `chosen`. Only
    the side of .5 on which `preference` lies is used; the loss `soft` uses its value.

    Raises:
        TaskHeadsError: the shapes are not equal `(B,)`, or nu is not a finite number above 0.
    """
    _check_nu(nu)
    gap = _gap(chosen, rejected)
    eta = math.log1p(nu)
    win, lose = F.logsigmoid(gap - eta), F.logsigmoid(-gap - eta)
    # log(e^2η - 1) with e^η = 1 + nu is log(nu) + log(nu + 2): no cancellation at small nu
    draw = math.log(nu) + math.log(nu + 2) + win + lose
    return _row_losses(win, lose, draw, tie=tie, preference=preference)


def davidson(
    chosen: Tensor,
    rejected: Tensor,
    *,
    tie: Tensor | None = None,
    preference: Tensor | None = None,
    nu: float = 0.5,
) -> Tensor:
    """Compute the Davidson model with ties: win, loss and tie have weights `e^c : e^r : nu e^((c + r)/2)`.

    Source: Davidson 1970, JASA 65. Two equal titles tie with probability `nu / (2 + nu)`.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | tie | (B,) | bool | rows without a winner |
    | preference | (B,) | float | above .5 chosen won, exactly .5 is a tie, below .5 rejected won |
    | nu | scalar | float | tie parameter, above 0; towards 0 ties become impossible |
    | returns | (B,) | fp32 | loss per pair |

    A row is a tie if either column marks a tie. Without both columns, every row is a win of `chosen`.

    Raises:
        TaskHeadsError: the shapes are not equal `(B,)`, or nu is not a finite number above 0.
    """
    _check_nu(nu)
    gap = _gap(chosen, rejected)
    # Dividing the three weights by e^((c + r)/2) leaves only the gap, so that large scores do not overflow.
    logits = torch.stack([gap / 2, -gap / 2, torch.full_like(gap, math.log(nu))], dim=-1)  # (B, 3)
    win, lose, draw = logits.log_softmax(dim=-1).unbind(dim=-1)
    return _row_losses(win, lose, draw, tie=tie, preference=preference)


def margin_ranking(chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0) -> Tensor:
    """Compute `max(0, m - (c - r))`, equal to `torch.nn.functional.margin_ranking_loss` at target 1.

    With the margin 0 the gradient is zero once chosen is above rejected. A scorer that gives every title the
    same score then has loss zero, and P(preferred) may stay near one half although the order is right. Use a
    margin above 0 unless an older setting is to be reproduced.
    Source: Herbrich, Graepel & Obermayer 2000 (large margin rank boundaries); torch's formula.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | margin | scalar or (B,) | float | required gap, in score units |
    | returns | (B,) | fp32 | loss per pair |
    """
    gap = _gap(chosen, rejected)
    required = as_column(margin, gap, "margin") if isinstance(margin, Tensor) else margin
    return (required - gap).clamp(min=0)


def center_rewards(chosen: Tensor, rejected: Tensor, *, coefficient: float) -> Tensor:
    """Compute the centring term `coefficient (c + r)²`, which is added to a pair loss.

    Pair losses depend on differences of scores only; the term moves the mean score to zero.
    Source: Eisenstein et al. 2023, arXiv:2312.09244; the same as trl's `center_rewards_coefficient` (0.01).

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | coefficient | scalar | float | 0 or more |
    | returns | (B,) | fp32 | term per pair |

    Raises:
        TaskHeadsError: the shapes are not equal `(B,)`, or the coefficient is negative or not finite.
    """
    if not (math.isfinite(coefficient) and coefficient >= 0):
        where, problem = "center_rewards", f"found coefficient {coefficient!r}"
        fix = "use 0.01, or 0 for no centring"
        raise TaskHeadsError(Problem(where, problem, "a number of 0 or more", fix, code="option-range"))
    gap = _gap(chosen, rejected)
    return coefficient * (gap + 2 * rejected.to(gap.dtype)) ** 2  # c + r, at the precision of the gap


def _gap(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return `chosen - rejected` (B,), at least fp32."""
    if chosen.ndim != 1 or chosen.shape != rejected.shape:
        raise shape_error("scores", chosen.shape, rejected.shape)
    dtype = at_least_fp32(chosen, rejected)
    return chosen.to(dtype) - rejected.to(dtype)  # cast first: a difference of bf16 scores loses precision


def _row_losses(
    win: Tensor, lose: Tensor, draw: Tensor, *, tie: Tensor | None, preference: Tensor | None
) -> Tensor:
    """Return minus the log-probability (B,) of the win, loss or tie of each row."""
    log_p = win
    if preference is not None:
        p = as_column(preference, win, "preference")
        log_p = torch.where(p > 0.5, win, torch.where(p < 0.5, lose, draw)) + nan_of(p)
    if tie is not None:
        log_p = torch.where(as_column(tie, win, "tie").bool(), draw, log_p)
    return -log_p


def _check_nu(nu: float) -> None:
    if problems := NU.problems(nu):
        raise TaskHeadsError(problems)


NU = LossOption(
    name="nu", field="loss_nu", help="Tie parameter: the larger, the more ties.", default=0.5, above=0
)
MARGIN = LossOption(name="margin", field="loss_margin", help="Required gap between the scores, for all rows.")
TIES = ("tie", "preference")

ROWS = (
    Loss(
        "bradley_terry",
        "pairs",
        bradley_terry,
        "-log σ(c - r)",
        "Bradley & Terry 1952; arXiv:2203.02155",
        paper="bradley_terry",
    ),
    Loss(
        "bradley_terry_margin",
        "pairs",
        bradley_terry_margin,
        "-log σ(c - r - m)",
        "Touvron et al. 2023 (Llama 2), arXiv:2307.09288",
        paper="llama2",
        uses=("margin",),
        needs=("margin",),
        options=(MARGIN,),
    ),
    Loss(
        "soft",
        "pairs",
        soft,
        "-p log σ(c - r) - (1 - p) log σ(r - c)",
        "Mitchell 2023 (cDPO note)",
        uses=("preference",),
        needs=("preference",),
    ),
    Loss(
        "rao_kupper",
        "pairs",
        rao_kupper,
        "-log P(outcome), P(win) = σ(c - r - log(1 + nu))",
        "Rao & Kupper 1967",
        uses=TIES,
        needs=TIES,
        options=(NU,),
    ),
    Loss(
        "davidson",
        "pairs",
        davidson,
        "-log P(outcome), win : loss : tie = e^c : e^r : nu e^((c + r)/2)",
        "Davidson 1970",
        uses=TIES,
        needs=TIES,
        options=(NU,),
    ),
    Loss(
        "margin_ranking",
        "pairs",
        margin_ranking,
        "max(0, m - (c - r))",
        "Herbrich et al. 2000; torch margin_ranking_loss",
        uses=("margin",),
        options=(MARGIN,),
    ),
)
