"""A mean over rows with its 95% interval over groups, as messages show it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.metrics.ranking import bootstrap_interval


class Share(NamedTuple):
    """A mean over rows with its 95% interval over groups; the ends are infinite for fewer than 2 groups."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.0f}% ({100 * self.low:.0f} to {100 * self.high:.0f})"


def share_of_rows(values: ArrayLike, rows: Sequence[PairExample | TextExample]) -> Share:
    """Return the mean of a value per row (N,); a row without a group is its own group."""
    return share_of_groups(values, [row.group or str(place) for place, row in enumerate(rows)])


def share_of_groups(values: ArrayLike, groups: Sequence[str]) -> Share:
    """Return the mean of values (N,) of rows with the given groups."""
    low, high = bootstrap_interval(values, groups)
    return Share(
        float(np.mean(np.asarray(values, np.float64))),
        -math.inf if low is None else low,
        math.inf if high is None else high,
    )
