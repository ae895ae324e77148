from __future__ import annotations

import numpy as np
import pytest

from qwen_task_heads.data.click_pairs import pair_arms
from qwen_task_heads.data.click_rates import (
    p_values,
    preference_from_clicks,
    preferences_from_clicks,
)
from qwen_task_heads.data.examples import GroupExample
from qwen_task_heads.data.preferences import groups_to_pairs


def counts(rows: int, largest: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shown = [rng.integers(0, largest, rows) for _ in range(2)]
    clicked = [rng.binomial(one, rng.choice([0.001, 0.02, 0.5, 1.0], rows)) for one in shown]
    return [clicked[0], shown[0], clicked[1], shown[1]]


@pytest.mark.parametrize("largest", [2, 40, 3000, 10**6, 10**12])
def test_columns_equal_single_pairs(largest: int) -> None:
    """Results are bitwise equal, because the fingerprint of the data includes the preferences."""
    columns = counts(400, largest)
    single = [
        preference_from_clicks(*row) for row in zip(*(column.tolist() for column in columns), strict=True)
    ]
    assert preferences_from_clicks(*columns).tolist() == single
    tested = [p_values(*(column[row : row + 1] for column in columns))[0] for row in range(400)]
    assert p_values(*columns).tolist() == tested


def test_sums_that_begin_below_the_smallest_double_are_right() -> None:
    # 250 clicks of a million against half of a million: the first term is far below 1e-308.
    assert preference_from_clicks(250, 10**6, 10**6 // 2, 10**6) < 1e-300
    assert preference_from_clicks(10**6 // 2, 10**6, 250, 10**6) == pytest.approx(1, abs=1e-12)
    assert preference_from_clicks(250, 10**6, 250, 10**6) == pytest.approx(0.5, abs=1e-9)


def test_equal_rates_of_large_counts_are_exact() -> None:
    rates = [(3 * 10**11, 9 * 10**11), (10**11, 3 * 10**11), (10**11 + 1, 3 * 10**11)]
    group = GroupExample(
        titles=("A", "B", "C"),
        clicks=tuple(clicks for clicks, _ in rates),
        impressions=tuple(shown for _, shown in rates),
        group="t",
    )
    assert [(pair.chosen, pair.rejected) for pair in groups_to_pairs([group])] == [("C", "A"), ("C", "B")]


def test_experiments_without_arms_have_no_pairs() -> None:
    assert groups_to_pairs([]) == []
    from qwen_task_heads.data.click_pairs import arms_of

    better, worse, preferences = pair_arms(arms_of([]), least=1, max_p_value=0.5, all_pairs=True)
    assert (len(better), len(worse), len(preferences)) == (0, 0, 0)
