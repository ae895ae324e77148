"""Ties: which scores are equal, up to the rounding of fp32.

Design decisions:

- Equal scores prefer nothing. A metric that compares them gives half a point for a pair, and each of k
  labels at the top a share of 1/k. `argmax` and `>` would give a whole point or none, by the order of labels.
- Two scores of one input differ by rounding when they come from batches of another shape. The logits of one
  model in two loads, batchings or packings were measured 6e-8 to 4e-7 apart, relative to the largest score;
  the invariance tests of this library allow 1e-6. A gap below that says nothing about the texts.
- The largest score is the measure for gaps of titles: near 0 a score is a difference of large terms, and
  its own size says nothing about its rounding. Labels of a row are held to the best of them, because the
  others may be very low without being less exact; ranks of a column to the values themselves.
- numpy only, as in `metrics.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
TIE = 1e-6  # relative; 8 units in the last place of fp32


def tie_bound(*scores: ArrayLike) -> float:
    """Return the gap up to which scores of one model are a tie: `TIE` times the largest of them.

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
    found = np.asarray(gaps, np.float64)
    return np.where(np.abs(found) <= bound, 0.0, np.sign(found))


def top_shares(scores: ArrayLike) -> Floats:
    """Return the share (N, L) of each label in the best score of its row: 1, or 1/k each of k tied labels.

    Args:
        scores: (N, L), finite in the best label of each row.

    Example:
        >>> from qwen_task_heads.metrics.ties import top_shares
        >>> top_shares([[2.0, 1.0, 2.0], [0.0, 3.0, 1.0]]).tolist()
        [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    """
    found = np.asarray(scores, np.float64)
    best = found.max(1, keepdims=True)
    top = found >= best - TIE * np.abs(best)
    return top / top.sum(1, keepdims=True)


def top_credit(scores: ArrayLike, truth: ArrayLike) -> Floats:
    """Return the credit (N,) of "the best label is right": 1, 0, or 1/k if k labels tie and one is right.

    Args:
        scores: (N, L), as of `top_shares`.
        truth: ids (N,).

    Example:
        >>> from qwen_task_heads.metrics.ties import top_credit
        >>> top_credit([[2.0, 2.0], [0.0, 3.0]], [1, 0]).tolist()
        [0.5, 0.0]
    """
    ids = np.asarray(truth, np.int64)
    return top_shares(scores)[np.arange(len(ids)), ids]


def merge_ties(values: ArrayLike) -> Floats:
    """Return values (N,) in which tied ones are the same number, for ranks and sorting.

    A class of ties is as wide as the bound at most: many values at small distances are not one tie.

    Example:
        >>> from qwen_task_heads.metrics.ties import merge_ties
        >>> merge_ties([1.0, 1.0000001, 2.0]).tolist()
        [1.0, 1.0, 2.0]
    """
    found = np.asarray(values, np.float64)
    order = np.argsort(found, kind="stable")
    ranked = found[order]
    bounds = TIE * np.abs(ranked)
    # Runs of neighbours; nearly all hold one value, and only wide runs are looked at value by value.
    starts = np.flatnonzero(np.append(True, np.diff(ranked) > bounds[1:]))
    first = np.repeat(starts, np.diff(np.append(starts, len(ranked))))
    for place in np.flatnonzero(ranked - ranked[first] > bounds).tolist():
        if ranked[place] - ranked[first[place - 1]] > bounds[place]:
            first[place] = place
        else:
            first[place] = first[place - 1]
    merged = np.empty_like(found)
    merged[order] = ranked[first]
    return merged
