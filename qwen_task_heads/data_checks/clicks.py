"""Checks of click data: how many preferences are chance, and the accuracy that a perfect model could reach.

Each pair has z, its observed difference in units of its standard error. The true difference in the same
units is taken as normal with mean 0 and standard deviation w, so that z is normal with variance 1 + w².
w is fitted by maximum likelihood. If a file has only significant pairs, the distribution of |z| is cut at
its smallest value. The sign of a pair is right with probability Φ(|z| w / √(1 + w²)). The mean of this is the
ceiling: no model of the titles can expect more on these labels.

Sources: Gelman & Carlin 2014 (errors of sign), doi 10.1177/1745691614551642; van Zwet & Cator 2021
(distribution of the signal-to-noise ratio), doi 10.1111/stan.12241.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.schema import CLICKS
from qwen_task_heads.data_checks.checked_data import CheckedData
from qwen_task_heads.data_checks.findings import NOTE, WARNING, CheckFinding

Floats = NDArray[np.float64]
LOW = 0.75  # ceiling below which the labels are mostly chance
CUT = 1.0  # smallest |z| from which a file is taken as filtered by significance
LEAST = 40
SIGNIFICANT = 1.959964


@dataclass(frozen=True)
class ClickNoise:
    """The noise of preferences that come from clicks.

    Args:
        pairs: number of pairs.
        significant: pairs that are significant at 5%, two-sided.
        chance: expected number of pairs whose truly better title is the rejected one.
        ceiling: expected accuracy of a model that knows the true click rates.
        spread: w, standard deviation of the true differences in standard errors.
        cut: smallest |z| if the pairs were filtered by significance, else 0.
    """

    pairs: int
    significant: int
    chance: float
    ceiling: float
    spread: float
    cut: float


def click_noise(z: Floats) -> ClickNoise:
    """Estimate the noise of observed differences.

    Args:
        z: (N,) differences over their standard errors.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> noise = click_noise(2 * rng.standard_normal(5000) + rng.standard_normal(5000))
        >>> round(noise.spread, 1), round(noise.ceiling, 2)
        (2.0, 0.85)
    """
    from scipy.optimize import minimize_scalar
    from scipy.stats import norm

    size = np.abs(z)
    cut = float(size.min()) if size.min() > CUT else 0.0

    def loss(log_spread: float) -> float:
        scale = np.sqrt(1 + np.exp(2 * log_spread))
        inside = norm.logpdf(size / scale) - np.log(scale) - norm.logsf(cut / scale)
        return -float(inside.sum())

    spread = float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))
    right = norm.cdf(size * spread / np.sqrt(1 + spread**2))
    return ClickNoise(
        pairs=len(z),
        significant=int((size >= SIGNIFICANT).sum()),
        chance=float((1 - right).sum()),
        ceiling=float(right.mean()),
        spread=spread,
        cut=cut,
    )


def check_clicks(data: CheckedData) -> list[CheckFinding]:
    """State the ceiling of accuracy that the noise of clicks implies, for train and the other splits."""
    if data.noun == "texts" or not ({"clicks"} <= data.names or {*CLICKS} <= data.names):
        return []
    findings = []
    for split, rows in data.splits.items():
        z = differences([row.preference for row in rows if row.preference is not None])
        if len(z) < LEAST:
            continue
        noise = click_noise(z)
        filtered = f", all above {noise.cut:.1f} standard errors," if noise.cut else ""
        message = (
            f"of {noise.pairs:,} pairs of {split}{filtered} {noise.significant:,} differ significantly at "
            f"5%; about {noise.chance:,.0f} winners ({100 * noise.chance / noise.pairs:.1f}%) are chance, so "
            f"the accuracy of a perfect model would be {100 * noise.ceiling:.0f}%"
        )
        low = noise.ceiling < LOW
        fix = "leave unclear pairs out: --max_p_value 0.05; or train on their probabilities: --loss soft"
        findings.append(
            CheckFinding(
                code="click-noise",
                severity=WARNING if low else NOTE,
                message=message,
                fix=fix if low else "",
                values={"split": split, **vars(noise)},
            )
        )
    return findings


def differences(preferences: list[float]) -> Floats:
    """Return z of P(chosen better) of each pair; probabilities are kept 1e-12 from 0 and 1."""
    from scipy.stats import norm

    return np.asarray(norm.ppf(np.clip(preferences, 1e-12, 1 - 1e-12)), np.float64)
