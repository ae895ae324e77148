"""Rows that offer a choice of labels: whatever answers them, a model or a baseline, is held to it here.

A model that may only choose between two of twenty labels is right half the time by tossing a coin. What
stands beside it has to choose between the same two, or the comparison measures the offer and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.labels import LabelMap

LEAST = -1e4  # of a label that a row offers: log-scores and margins do not come near it
NEVER = 2 * LEAST  # of one that it does not: below all others, and its probability is 0 in float64


def within(scores: ArrayLike, examples: Sequence[TextExample], *, labels: LabelMap) -> NDArray[np.float64]:
    """Scores whose best label is one that the row offers, and whose softmax is over these alone.

    Args:
        scores: (N, L) logits, log-probabilities or margins, the higher the better; -inf is none at all.
        examples: the N rows; one without `candidates` offers all labels, and keeps its scores.
        labels: the map that names the L columns.

    Returns:
        (N, L), a copy: `NEVER` where a row does not offer the label.

    Example:
        >>> from qwen_task_heads.data.candidates import within
        >>> labels = LabelMap(("a", "b", "c"))
        >>> rows = [TextExample(text="x", target=1, candidates=("b", "c")), TextExample(text="y", target=0)]
        >>> within([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]], rows, labels=labels).tolist()
        [[-20000.0, 1.0, 2.0], [3.0, 1.0, 2.0]]
    """
    found, place_of = np.array(scores, dtype=np.float64), labels.label2id
    for row, example in zip(found, examples, strict=True):
        if example.candidates:
            places = [place_of[name] for name in example.candidates]
            kept = np.maximum(row[places], LEAST)
            row[:] = NEVER
            row[places] = kept
    return found


def candidates_line(examples: Sequence[TextExample], *, labels: LabelMap, split: str) -> str:
    """How many rows offer a part of the labels, and what that means for the figures; "" where none does.

    Example:
        >>> row = TextExample(text="x", target=1, candidates=("b", "c"))
        >>> candidates_line([row], labels=LabelMap(("a", "b", "c")), split="test")
        '1 of 1 rows of test offer only some labels (2 of 3 on average): models and baselines choose among these'
    """
    sizes = [len(example.candidates) for example in examples if example.candidates]
    if not sizes:
        return ""
    rows = f"{len(sizes):,} of {len(examples):,} rows of {split} offer only some labels"
    mean = f"{sum(sizes) / len(sizes):.3g} of {len(labels):,} on average"
    return f"{rows} ({mean}): models and baselines choose among these"
