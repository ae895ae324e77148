"""Ties: scores that are equal up to the rounding of fp32.

Design decisions:

- Equal scores express no preference. Metrics count such a pair half, and each of k labels at the top 1/k.
  With `argmax` and `>` the result would depend on the order of the labels.
- Two scores of one input differ by rounding if their batches have different shapes. The logits of one model
  in two loads, batchings or packings were measured 6e-8 to 4e-7 apart, relative to the largest score. The
  invariance tests of this library allow 1e-6. A smaller gap is no difference between the texts.
- Gaps of titles are compared with the largest score: near 0 a score is a difference of large terms, and its
  own size does not bound its rounding. Labels of a row are compared with the best label of the row, because
  the others may be very low without being less exact. Ranks of a column are compared with the values
  themselves.
- Only numpy is used, as in the other modules of metrics.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
TIE = 1e-6  # relative; 8 units in the last place of fp32


def tie_bound(*scores: ArrayLike) -> float:
    """Return the gap up to which scores of one model are a tie: `TIE` times the largest absolute score.

    Args:
        scores: arrays of any shape, finite.

    Example:
        >>> from qwen_task_heads.metrics.ties import tie_bound
        >>> tie_bound([8.0, -2.0], [0.5, 1.0])
        8e-06
    """
    arrays = [np.abs(np.asarray(array, np.float64)) for array in scores]
    return TIE * max((float(array.max()) for array in arrays if array.size), default=0.0)


def gap_signs(gaps: ArrayLike, *, bound: float) -> Floats:
    """Return -1, 0 or 1 per gap, any shape, float64: 0 for gaps up to the bound.

    Example:
        >>> from qwen_task_heads.metrics.ties import gap_signs
        >>> gap_signs([0.2, 1e-9, -3.0], bound=8e-6).tolist()
        [1.0, 0.0, -1.0]
    """
    array = np.asarray(gaps, np.float64)
    return np.where(np.abs(array) <= bound, 0.0, np.sign(array))


def top_shares(scores: ArrayLike) -> Floats:
    """Return the share (N, L) of each label in the best score of its row: 1, or 1/k for k tied labels.

    Args:
        scores: (N, L), finite in the best label of each row.

    Example:
        >>> from qwen_task_heads.metrics.ties import top_shares
        >>> top_shares([[2.0, 1.0, 2.0], [0.0, 3.0, 1.0]]).tolist()
        [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    """
    array = np.asarray(scores, np.float64)
    best = array.max(1, keepdims=True)
    top = array >= best - TIE * np.abs(best)
    return top / top.sum(1, keepdims=True)


def top_credit(scores: ArrayLike, truth: ArrayLike) -> Floats:
    """Return 1 or 0 per row (N,) for a right or wrong best label, or 1/k if one of k tied labels is right.

    Args:
        scores: (N, L), as for `top_shares`.
        truth: ids (N,).

    Example:
        >>> from qwen_task_heads.metrics.ties import top_credit
        >>> top_credit([[2.0, 2.0], [0.0, 3.0]], [1, 0]).tolist()
        [0.5, 0.0]
    """
    ids = np.asarray(truth, np.int64)
    return top_shares(scores)[np.arange(len(ids)), ids]


def merge_ties(values: ArrayLike) -> Floats:
    """Return values (N,) in which tied values are the same number, for ranks and sorting.

    A class of ties is at most as wide as the bound: a long run of values at small distances is several
    classes.

    Example:
        >>> from qwen_task_heads.metrics.ties import merge_ties
        >>> merge_ties([1.0, 1.0000001, 2.0]).tolist()
        [1.0, 1.0, 2.0]
    """
    array = np.asarray(values, np.float64)
    order = np.argsort(array, kind="stable")
    ranked = array[order]
    bounds = TIE * np.abs(ranked)
    # Runs of neighbours: nearly all have one value, and only wide runs are processed value by value.
    starts = np.flatnonzero(np.append(True, np.diff(ranked) > bounds[1:]))
    first = np.repeat(starts, np.diff(np.append(starts, len(ranked))))
    for position in np.flatnonzero(ranked - ranked[first] > bounds).tolist():
        if ranked[position] - ranked[first[position - 1]] > bounds[position]:
            first[position] = position
        else:
            first[position] = first[position - 1]
    merged = np.empty_like(array)
    merged[order] = ranked[first]
    return merged
