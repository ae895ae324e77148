"""Losses over groups of scores: several titles of one experiment or prompt, ordered by their gains.

Design decisions:

- Scores stay flat, `(N,)` with `sizes` per group, as a packed batch returns them. Nothing is padded.
- Each function returns one loss per group `(G,)`, which `rows.reduce` averages. Scores are cast to
  fp32.
- The functions loop over groups. A batch has tens of groups, and the backbone takes nearly all of the time.
- A gain that is not finite gives a NaN loss, never a tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.losses.rows import Loss, as_column, at_least_fp32, nan_of, shape_error


def plackett_luce(scores: Tensor, *, sizes: Sequence[int], gains: Tensor) -> Tensor:
    """Compute the Plackett-Luce loss of the order by gains: `Σ_i [logsumexp(s_j : gain_j ≤ gain_i) - s_i]`.

    The best title is drawn from all titles, the next one from the rest, and so on. Equal gains share their
    risk set (Breslow 1974), so that they have no order. With two titles the loss is Bradley-Terry. The loss
    is a sum over the titles, so that long lists weigh more.
    Source: Luce 1959, Plackett 1975; as a loss: Xia et al. 2008 (ListMLE), Cao et al. 2007.

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | scores | (N,) | float | scores of all groups, group after group |
    | sizes | G ints | int | titles per group, at least 2 each, with sum N |
    | gains | (N,) | float | higher is better: CTR, votes; for ranks (1 is best) give `-rank` |
    | returns | (G,) | fp32 | loss per group |

    Raises:
        TaskHeadsError: the shapes are not equal `(N,)`, or the sizes do not fit.
    """
    scores, gains = _groups(scores, sizes, gains)
    losses = []
    for s, gain in zip(scores.split(list(sizes)), gains.split(list(sizes)), strict=True):  # (K,), (K,)
        outside = gain[None, :] > gain[:, None]  # (K, K): j was drawn before i
        # The diagonal is never masked, so that no row is all -inf and the gradient stays finite.
        choice = s.expand(len(s), -1).masked_fill(outside, -math.inf).logsumexp(dim=-1) - s  # (K,)
        losses.append(choice.sum())
    return torch.stack(losses) + nan_of(gains)


def all_pairs(
    scores: Tensor,
    *,
    sizes: Sequence[int],
    gains: Tensor | None = None,
    preference: Tensor | None = None,
) -> Tensor:
    """Compute Bradley-Terry over all pairs of a group: mean cross-entropy of `σ(s_i - s_j)` with p_ij, i < j.

    p_ij is 1, .5 or 0 by the order of the gains, or the given preference. Without the mean over the pairs, a
    group of ten titles would weigh 45 times as much as a group of two.
    Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, equation 1; Burges et al. 2005 (RankNet).

    | input | shape | dtype | meaning |
    |---|---|---|---|
    | scores | (N,) | float | scores of all groups, group after group |
    | sizes | G ints | int | titles per group, at least 2 each, with sum N |
    | gains | (N,) | float | higher is better; equal gains are a preference of .5 |
    | preference | (M,) | float | instead of gains: P(i preferred over j), pairs as in `pair_indices` |
    | returns | (G,) | fp32 | loss per group |

    Raises:
        TaskHeadsError: shapes or sizes do not fit, or not exactly one of gains and preference is given.
    """
    if (gains is None) == (preference is None):
        given = "neither gains nor preference" if gains is None else "both gains and preference"
        raise TaskHeadsError(
            Problem(
                "all_pairs", f"found {given}", "exactly one of them", "pass one of them", code="argument-type"
            )
        )
    scores, gains = _groups(scores, sizes, gains if gains is not None else torch.zeros_like(scores))
    left, right = pair_indices(sizes)
    left, right = left.to(scores.device), right.to(scores.device)
    gap = scores[left] - scores[right]  # (M,)
    if preference is None:
        target = 0.5 + 0.5 * (gains[left] - gains[right]).sign()
        target = target + 0.0 * (
            gains[left] + gains[right]
        )  # propagates a NaN gain, which sign() maps to a tie
    else:
        target = as_column(preference, gap, "preference")
    losses = F.binary_cross_entropy_with_logits(gap, target, reduction="none")
    return torch.stack([part.mean() for part in losses.split([k * (k - 1) // 2 for k in sizes])])


def pair_indices(sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return left and right positions `(M,)`, int64, of all pairs i < j of each group in a tensor `(N,)`.

    Example:
        >>> from qwen_task_heads.losses.groups import pair_indices
        >>> pair_indices([2, 3])
        (tensor([0, 2, 2, 3]), tensor([1, 3, 4, 4]))
    """
    parts, start = [], 0
    for size in sizes:
        parts.append(torch.triu_indices(size, size, offset=1) + start)  # (2, k(k-1)/2), row by row
        start += size
    left, right = torch.cat(parts, dim=1) if parts else torch.empty(2, 0, dtype=torch.long)
    return left, right


def _groups(scores: Tensor, sizes: Sequence[int], gains: Tensor) -> tuple[Tensor, Tensor]:
    """Check the sizes; return scores and gains as (N,), at least fp32."""
    if scores.ndim != 1 or scores.shape != gains.shape:
        raise shape_error("gains", scores.shape, gains.shape)
    if not sizes or min(sizes) < 2 or sum(sizes) != len(scores):
        problem = f"found sizes {shorten(list(sizes))} for {len(scores)} scores"
        expected, fix = "sizes of at least 2 that sum to the number of scores", "drop groups of one title"
        raise TaskHeadsError(Problem("group sizes", problem, expected, fix, code="argument-type"))
    scores = scores.to(at_least_fp32(scores))
    return scores, gains.to(scores)


ROWS = (
    Loss(
        "plackett_luce",
        "groups",
        plackett_luce,
        "Σ_i [logsumexp(s_j : gain_j ≤ gain_i) - s_i]",
        "Plackett 1975; Xia et al. 2008 (ListMLE)",
        paper="plackett_luce",
        uses=("sizes", "gains"),
    ),
    Loss(
        "all_pairs",
        "groups",
        all_pairs,
        "mean over i < j of CE(σ(s_i - s_j), p_ij)",
        "arXiv:2203.02155",
        paper="instructgpt",
        uses=("sizes", "gains", "preference"),
    ),
)
