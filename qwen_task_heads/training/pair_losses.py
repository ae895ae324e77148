"""Losses over pairs of scores, chosen against rejected; `group_losses` has those over several titles.

Design decisions:

- A loss is a plain function of score tensors and gives one loss per pair `(B,)`; `reduce` makes the
  scalar, so that row weights work with every loss.
- Scores are cast to fp32 here (float64 stays): bf16 scores near 8 tie in 40% of pairs 0.04 apart. All
  formulas go through logsigmoid, log_softmax or logsumexp: loss and gradient stay finite for gaps to 1e4.
- Every loss raises TaskHeadsError unless its tensors have one shape `(B,)`: (B, 1) and (B,) would broadcast.
- Only shapes are checked here, because looking at values would wait for the device at each step. Values are
  the reader's business; a NaN that slips through gives a NaN loss, never a zero one.
- `PAIR_LOSSES` is the only list of names: recipes, messages and cards read it.

`c` and `r` are the scores of chosen and rejected, `σ` is the logistic function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Bradley-Terry: `-log σ(c - r)`, the usual reward-model loss.

    Source: Bradley & Terry 1952, Biometrika 39; as a loss: Ouyang et al. 2022, arXiv:2203.02155.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | returns | (B,) | fp32 | loss per pair |

    Example:
        >>> import torch
        >>> from qwen_task_heads.training.pair_losses import bradley_terry
        >>> bradley_terry(torch.tensor([2.0]), torch.tensor([2.0]))
        tensor([0.6931])
    """
    return -F.logsigmoid(_gap(chosen, rejected))


def bradley_terry_margin(chosen: Tensor, rejected: Tensor, *, margin: Tensor) -> Tensor:
    """Bradley-Terry with a margin per row: `-log σ(c - r - m)`; clear wins must be scored further apart.

    Source: Touvron et al. 2023 (Llama 2), arXiv:2307.09288, section 3.2.2; as in trl's RewardTrainer.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | margin | (B,) | float | gap asked for, in score units; 0 is plain Bradley-Terry |
    | returns | (B,) | fp32 | loss per pair |
    """
    gap = _gap(chosen, rejected)
    return -F.logsigmoid(gap - as_column(margin, gap, "margin"))


def soft(chosen: Tensor, rejected: Tensor, *, preference: Tensor) -> Tensor:
    """Cross-entropy with a soft target: `-p log σ(c - r) - (1 - p) log σ(r - c)`.

    The minimum is at `c - r = logit(p)`: a pair with 8 of 10 votes is not pushed apart without end.
    Source: conservative label smoothing as in Mitchell 2023 (cDPO note); the likelihood of p·n wins of n.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | preference | (B,) | float | p = P(chosen preferred) in [0, 1]; 1 is plain Bradley-Terry |
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
    """Rao-Kupper model with ties: a win is noticed only past a threshold `η = log(1 + nu)`.

    `P(win) = σ(c - r - η)`, `P(loss) = σ(r - c - η)`, `P(tie) = (e^2η - 1) P(win) P(loss)`; they sum to one.
    Source: Rao & Kupper 1967, JASA 62, with their θ = 1 + nu.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | tie | (B,) | bool | rows without a winner |
    | preference | (B,) | float | above .5 chosen won, exactly .5 is a tie, below .5 rejected won |
    | nu | scalar | float | tie parameter, above 0; towards 0 ties become impossible |
    | returns | (B,) | fp32 | loss per pair |

    A row is a tie when either column says so; without both, every row is a win of `chosen`. Of `preference`
    only the side of .5 counts: `soft` uses its size.

    Raises:
        TaskHeadsError: the shapes are not equal `(B,)`, or nu is not a finite number above 0.
    """
    _check_nu(nu)
    gap = _gap(chosen, rejected)
    eta = math.log1p(nu)
    win, lose = F.logsigmoid(gap - eta), F.logsigmoid(-gap - eta)
    # log(e^2η - 1) with e^η = 1 + nu is log(nu) + log(nu + 2): no cancellation at small nu
    draw = math.log(nu) + math.log(nu + 2) + win + lose
    return _outcome(win, lose, draw, tie=tie, preference=preference)


def davidson(
    chosen: Tensor,
    rejected: Tensor,
    *,
    tie: Tensor | None = None,
    preference: Tensor | None = None,
    nu: float = 0.5,
) -> Tensor:
    """Davidson model with ties: win, loss and tie have weights `e^c : e^r : nu e^((c + r)/2)`.

    Source: Davidson 1970, JASA 65. Two equal titles tie with probability `nu / (2 + nu)`.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | tie | (B,) | bool | rows without a winner |
    | preference | (B,) | float | above .5 chosen won, exactly .5 is a tie, below .5 rejected won |
    | nu | scalar | float | tie parameter, above 0; towards 0 ties become impossible |
    | returns | (B,) | fp32 | loss per pair |

    A row is a tie when either column says so; without both, every row is a win of `chosen`.

    Raises:
        TaskHeadsError: the shapes are not equal `(B,)`, or nu is not a finite number above 0.
    """
    _check_nu(nu)
    gap = _gap(chosen, rejected)
    # Divide the three weights by e^((c + r)/2): only the gap is left, and large scores do no harm.
    logits = torch.stack([gap / 2, -gap / 2, torch.full_like(gap, math.log(nu))], dim=-1)  # (B, 3)
    win, lose, draw = logits.log_softmax(dim=-1).unbind(dim=-1)
    return _outcome(win, lose, draw, tie=tie, preference=preference)


def margin_ranking(chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0) -> Tensor:
    """Margin ranking: `max(0, m - (c - r))`, equal to `torch.nn.functional.margin_ranking_loss` at target 1.

    With the margin 0 the gradient is zero once chosen is above rejected, and a scorer that gives every title
    the same score has loss zero: the order may be right while P(preferred) stays near one half. Give a
    margin above 0 unless an older setting is to be repeated.
    Source: Herbrich, Graepel & Obermayer 2000 (large margin rank boundaries); torch's formula.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | chosen, rejected | (B,) | float | scores |
    | margin | scalar or (B,) | float | gap asked for, in score units |
    | returns | (B,) | fp32 | loss per pair |
    """
    gap = _gap(chosen, rejected)
    wanted = as_column(margin, gap, "margin") if isinstance(margin, Tensor) else margin
    return (wanted - gap).clamp(min=0)


def center_rewards(chosen: Tensor, rejected: Tensor, *, coefficient: float) -> Tensor:
    """Centring term `coefficient (c + r)²`, to be added to a pair loss: it fixes the free zero of the scores.

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
        problem = Problem(
            "center_rewards",
            f"coefficient {coefficient!r}",
            "a number of 0 or more",
            "use 0.01, or 0 for none",
        )
        raise TaskHeadsError(problem)
    gap = _gap(chosen, rejected)
    return coefficient * (gap + 2 * rejected.to(gap.dtype)) ** 2  # c + r, at the precision of the gap


def reduce(losses: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Mean of `weight · loss` over the rows, a scalar.

    The divisor is the number of rows, not the sum of the weights: with it, gradient accumulation and
    several processes give the same gradient as one large batch. Keep the mean weight of a data set near 1.

    Raises:
        TaskHeadsError: no rows, or the weight has another shape.
    """
    if losses.ndim != 1 or losses.numel() == 0:
        found = f"losses of shape {tuple(losses.shape)}"
        raise TaskHeadsError(Problem("reduce", found, "shape (B,) with B of 1 or more", "drop empty batches"))
    return losses.mean() if weight is None else (losses * as_column(weight, losses, "weight")).mean()


@dataclass(frozen=True)
class PairLoss:
    """A row of `PAIR_LOSSES`: the function, what it takes, and what a card says about it.

    Args:
        name: the name in recipes and configs.
        function: `(chosen, rejected, **columns) -> (B,)`.
        formula: one line, in c and r.
        source: paper or upstream code.
        uses: the batch columns that the function takes.
        needs: at least one of these columns must be there; empty when none is needed.
        options: scalar options, with their defaults in the signature of the function.
    """

    name: str
    function: Callable[..., Tensor]
    formula: str
    source: str
    uses: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def check(self, columns: Iterable[str], *, where: str = "--loss") -> None:
        """Refuse data without the columns that this loss needs; call it before training.

        Raises:
            TaskHeadsError: none of `needs` is among the columns.
        """
        present = set(columns)
        if self.needs and not present.intersection(self.needs):
            raise TaskHeadsError(
                Problem(
                    where,
                    f"loss {self.name!r} with columns {', '.join(sorted(present)) or 'none'}",
                    f"a column {' or '.join(self.needs)} in every row",
                    "add the column to the data, or choose one of: " + ", ".join(losses_for(present)),
                )
            )

    def __call__(self, chosen: Tensor, rejected: Tensor, **inputs: Tensor | float | None) -> Tensor:
        """Losses `(B,)`. Inputs that are None count as absent.

        Raises:
            TaskHeadsError: a needed column is missing, or an input would be ignored.
        """
        given = {key: value for key, value in inputs.items() if value is not None}
        self.check(given, where=f"loss {self.name!r}")
        accepted = (*self.uses, *self.options)
        # A column that is dropped in silence trains another loss than the user thinks.
        if unknown := [key for key in given if key not in accepted]:
            raise TaskHeadsError(
                Problem(
                    f"loss {self.name!r}",
                    f"input {', '.join(unknown)}",
                    ", ".join(accepted) or "no further input",
                    "leave it out, or choose a loss that uses it",
                )
            )
        return self.function(chosen, rejected, **given)


PAIR_LOSSES: dict[str, PairLoss] = {
    loss.name: loss
    for loss in (
        PairLoss("bradley_terry", bradley_terry, "-log σ(c - r)", "Bradley & Terry 1952; arXiv:2203.02155"),
        PairLoss(
            "bradley_terry_margin",
            bradley_terry_margin,
            "-log σ(c - r - m)",
            "Touvron et al. 2023 (Llama 2), arXiv:2307.09288",
            uses=("margin",),
            needs=("margin",),
        ),
        PairLoss(
            "soft",
            soft,
            "-p log σ(c - r) - (1 - p) log σ(r - c)",
            "Mitchell 2023 (cDPO note)",
            uses=("preference",),
            needs=("preference",),
        ),
        PairLoss(
            "rao_kupper",
            rao_kupper,
            "-log P(outcome), P(win) = σ(c - r - log(1 + nu))",
            "Rao & Kupper 1967",
            uses=("tie", "preference"),
            needs=("tie", "preference"),
            options=("nu",),
        ),
        PairLoss(
            "davidson",
            davidson,
            "-log P(outcome), win : loss : tie = e^c : e^r : nu e^((c + r)/2)",
            "Davidson 1970",
            uses=("tie", "preference"),
            needs=("tie", "preference"),
            options=("nu",),
        ),
        PairLoss(
            "margin_ranking",
            margin_ranking,
            "max(0, m - (c - r))",
            "Herbrich et al. 2000; torch margin_ranking_loss",
            uses=("margin",),
        ),
    )
}


def losses_for(columns: Iterable[str]) -> list[str]:
    """Names of the pair losses that data with these columns can feed."""
    present = set(columns)
    return [loss.name for loss in PAIR_LOSSES.values() if not loss.needs or present.intersection(loss.needs)]


def resolve_pair_loss(name: str, *, where: str = "--loss") -> PairLoss:
    """The row of `PAIR_LOSSES` called `name`.

    Raises:
        TaskHeadsError: there is none; the message lists the names.

    Example:
        >>> from qwen_task_heads.training.pair_losses import resolve_pair_loss
        >>> resolve_pair_loss("bradley_terry").formula
        '-log σ(c - r)'
    """
    if name not in PAIR_LOSSES:
        raise TaskHeadsError(
            Problem(where, f"found {shorten(name)}", ", ".join(PAIR_LOSSES), "choose one of them")
        )
    return PAIR_LOSSES[name]


def _gap(chosen: Tensor, rejected: Tensor) -> Tensor:
    """`chosen - rejected` (B,), at least fp32."""
    if chosen.ndim != 1 or chosen.shape != rejected.shape:
        raise shape_error("scores", chosen.shape, rejected.shape)
    dtype = torch.promote_types(torch.promote_types(chosen.dtype, rejected.dtype), torch.float32)
    return chosen.to(dtype) - rejected.to(dtype)  # cast before subtracting: the difference needs the bits


def as_column(values: Tensor, like: Tensor, name: str) -> Tensor:
    """A column of the batch with the shape, dtype and device of `like`."""
    if values.shape != like.shape:
        raise shape_error(name, like.shape, values.shape)
    return values.to(like)


def shape_error(name: str, expected: torch.Size, found: torch.Size) -> TaskHeadsError:
    """The error for two inputs that should have one shape `(B,)`; to be raised by the caller."""
    return TaskHeadsError(
        Problem(
            f"loss input {name!r}",
            f"shapes {tuple(expected)} and {tuple(found)}",
            "two tensors of one shape (B,)",
            "squeeze the last dimension of the logits",
        )
    )


def _outcome(
    win: Tensor, lose: Tensor, draw: Tensor, *, tie: Tensor | None, preference: Tensor | None
) -> Tensor:
    """Minus the log-probability (B,) of what happened in each row."""
    log_p = win
    if preference is not None:
        p = as_column(preference, win, "preference")
        log_p = torch.where(p > 0.5, win, torch.where(p < 0.5, lose, draw)) + nan_of(p)
    if tie is not None:
        log_p = torch.where(as_column(tie, win, "tie").bool(), draw, log_p)
    return -log_p


def nan_of(values: Tensor) -> Tensor:
    """Zero, or NaN if a value is not finite: comparisons would turn a NaN into an ordinary outcome."""
    return (0.0 * values).sum()


def _check_nu(nu: float) -> None:
    if not (math.isfinite(nu) and nu > 0):
        raise TaskHeadsError(
            Problem("tie parameter nu", f"found {nu!r}", "a finite number above 0", "0.5 is the default")
        )
