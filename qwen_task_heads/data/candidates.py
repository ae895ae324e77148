"""Restrict the scores of models and baselines to the candidate labels of a row.

A random choice between two candidates is right in half of the cases, whatever the number of labels. A model
and the baselines that it is compared with must therefore choose from the same candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.labels.label_map import LabelMap

LEAST = -1e4  # lower bound of the score of a candidate, below all real log-scores and margins
NEVER = 2 * LEAST  # score of any other label; its probability is 0 in float64


def within(scores: ArrayLike, examples: Sequence[TextExample], *, labels: LabelMap) -> NDArray[np.float64]:
    """Set the score of each label that is not a candidate of its row to `NEVER`.

    The best label of a row is then a candidate, and the softmax is over the candidates alone.

    Args:
        scores: (N, L) logits, log-probabilities or margins, the higher the better; -inf for no score.
        examples: the N rows; a row without `candidates` keeps its scores.
        labels: the map that names the L columns.

    Returns:
        (N, L), a copy.

    Example:
        >>> labels = LabelMap(("a", "b", "c"))
        >>> rows = [TextExample(text="x", target=1, candidates=("b", "c")), TextExample(text="y", target=0)]
        >>> within([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]], rows, labels=labels).tolist()
        [[-20000.0, 1.0, 2.0], [3.0, 1.0, 2.0]]
    """
    restricted = np.array(scores, dtype=np.float64)
    for row, example in zip(restricted, examples, strict=True):
        if example.candidates:
            ids = [labels.label2id[name] for name in example.candidates]
            kept = np.maximum(row[ids], LEAST)
            row[:] = NEVER
            row[ids] = kept
    return restricted


def candidates_line(examples: Sequence[TextExample], *, labels: LabelMap, split: str) -> str:
    """Return the message on the rows of a split that have candidate labels, "" if there are none.

    Example:
        >>> row = TextExample(text="x", target=1, candidates=("b", "c"))
        >>> candidates_line([row], labels=LabelMap(("a", "b", "c")), split="test")
        '1 of 1 rows of test have candidate labels (2 of 3 on average): models and baselines choose from them'
    """
    sizes = [len(example.candidates) for example in examples if example.candidates]
    if not sizes:
        return ""
    rows = f"{len(sizes):,} of {len(examples):,} rows of {split} have candidate labels"
    mean = f"{sum(sizes) / len(sizes):.3g} of {len(labels):,} on average"
    return f"{rows} ({mean}): models and baselines choose from them"
