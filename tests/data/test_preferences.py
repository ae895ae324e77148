from __future__ import annotations

import math

import numpy as np
import pytest
from work import at_most

from qwen_task_heads.data.click_rates import p_values, preference_from_clicks
from qwen_task_heads.data.preferences import preference_from_votes
from qwen_task_heads.errors import TaskHeadsError

COUNTS = [
    (0, 0, 0, 0),
    (0, 10, 0, 500),
    (1, 1, 400, 500),
    (3, 40, 9, 50),
    (39, 2551, 68, 2629),
    (300, 9000, 330, 9100),
    (5000, 90000, 5100, 90000),
    (9, 10, 10, 10),
    (990, 1000, 985, 1000),
]


def p_value(*counts: int) -> float:
    return float(p_values(*(np.array([count]) for count in counts))[0])


@pytest.mark.parametrize("counts", COUNTS)
def test_clicks_agree_with_monte_carlo(counts: tuple[int, int, int, int]) -> None:
    rng = np.random.default_rng(0)
    c1, n1, c2, n2 = counts
    draws = 400_000
    sampled = np.mean(rng.beta(c1 + 1, n1 - c1 + 1, draws) > rng.beta(c2 + 1, n2 - c2 + 1, draws))
    value = preference_from_clicks(c1, n1, c2, n2)
    assert value == pytest.approx(sampled, abs=4 * math.sqrt(max(value * (1 - value), 1e-6) / draws) + 1e-5)
    assert preference_from_clicks(c2, n2, c1, n1) == pytest.approx(1 - value, abs=1e-9)


def test_the_approximation_joins_the_exact_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = [preference_from_clicks(c, 20_000, 250, 21_000) for c in range(200, 255, 6)]
    monkeypatch.setattr("qwen_task_heads.data.click_rates.EXACT_TERMS", 0)
    near = [preference_from_clicks(c, 20_000, 250, 21_000) for c in range(200, 255, 6)]
    assert exact == pytest.approx(near, abs=5e-4)
    assert exact == sorted(exact)


def test_huge_counts_are_finite_and_not_summed_term_by_term() -> None:
    with at_most(10_000):
        for counts in ((10**12, 10**12, 0, 10**12), (5, 10**12, 900, 10**12), (0, 10**12, 10**12, 10**12)):
            assert 0 <= preference_from_clicks(*counts) <= 1
            assert 0 <= p_value(*counts) <= 1
        assert preference_from_clicks(10**12, 10**12, 0, 10**12) == 1


def test_votes() -> None:
    assert preference_from_votes(0, 0) == 0.5
    assert preference_from_votes(8, 2) == 0.75
    assert preference_from_votes(10**12, 0) < 1


def test_p_value_agrees_with_published_rows() -> None:
    # Two rows of the Upworthy Research Archive (CC BY 4.0): clicks, impressions, z, p of its pairs.
    assert p_value(68, 2629, 39, 2551) == pytest.approx(0.007454, rel=1e-3)
    assert p_value(196, 2769, 64, 2787) == pytest.approx(3.218e-17, rel=1e-3)
    assert p_value(0, 0, 5, 10) == 1
    assert p_value(0, 9, 0, 10) == 1
    assert p_value(9, 9, 10, 10) == 1


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(TaskHeadsError, match="3 clicks of 2") as clicks:
        preference_from_clicks(3, 2, 0, 1)
    with pytest.raises(TaskHeadsError, match="-1 clicks") as negative:
        preference_from_clicks(0, 1, -1, 1)
    with pytest.raises(TaskHeadsError, match="-1 and 3") as votes:
        preference_from_votes(-1, 3)
    for caught in (clicks, negative, votes):
        [problem] = caught.value.problems
        assert (problem.where, problem.code) == ("counts", "value-range")
