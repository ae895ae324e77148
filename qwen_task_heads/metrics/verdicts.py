"""The verdict on a model: above, level with or below the best baseline, by a paired interval.

Design decisions:

- Model and baselines answer the same rows, so differences are taken on the same resamples of groups: the
  interval of a difference is narrower than two intervals suggest.
- The best baseline is the one with the highest value on the split that is reported. That is a choice on the
  rows measured, in favour of the baselines: a model that is above is above the luckiest of them.
- Above is a 95% interval over 0, below one under 0; everything else is level. The biases of two metrics that
  are no means cancel in a difference, so intervals are percentile intervals (Efron 1979).
- One metric is compared, the one that picks checkpoints, and nothing else is computed on the resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qwen_task_heads.metrics.classification import (
    MULTI,
    ORDINAL,
    REGRESSION,
    check_scores,
    member_numbers,
)
from qwen_task_heads.metrics.ranking import Floats, pair_credit
from qwen_task_heads.metrics.ties import top_credit
from qwen_task_heads.metrics.weighted import (
    Weighted,
    bootstrap,
    interval,
    number,
    ordinal_metrics,
    regression_metrics,
    sigmoid,
)

ABOVE, LEVEL, BELOW = "above", "level", "below"
RESAMPLES = 2000  # of differences: their ends decide, and should not move with the seed
PAIR_ACCURACY = "pair_accuracy"


def pair_measure(chosen: ArrayLike, rejected: ArrayLike) -> Weighted:
    """Pair accuracy of scores (B,) as a function of row weights, for `give_verdict`.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.metrics.verdicts import pair_measure
        >>> pair_measure([2.0, 1.0], [1.0, 3.0])(np.array([[1.0, 1.0], [2.0, 0.0]]))["pair_accuracy"].tolist()
        [0.5, 1.0]
    """
    return mean_measure(pair_credit(chosen, rejected), name=PAIR_ACCURACY)


def text_measure(
    problem_type: str, scores: ArrayLike, targets: Any, *, num_labels: int, thresholds: ArrayLike = 0.5
) -> Weighted:
    """The metric that picks checkpoints (`BEST_METRIC`) as a function of row weights, for `give_verdict`.

    Args:
        problem_type, scores, targets: as of `classification_figures`; scores (N, L).
        num_labels: L.
        thresholds: of multi-label probabilities, one or L.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.metrics.verdicts import text_measure
        >>> kind = "multi_label_classification"
        >>> found = text_measure(kind, [[2.0, -1.0], [1.0, 3.0]], [(0,), (0,)], num_labels=2)
        >>> found(np.ones((1, 2)))["micro_f1"].tolist()
        [0.8]
    """
    found, truth = check_scores(problem_type, scores, targets, num_labels=num_labels)
    if problem_type == REGRESSION:
        return regression_metrics(found, truth, 0.5)[0]
    if problem_type == ORDINAL:
        return ordinal_metrics(found, truth, 0.5)[0]
    if problem_type == MULTI:
        chosen = (sigmoid(found) >= np.asarray(thresholds)).astype(np.float64)
        hits, both = (chosen * truth).sum(1), (chosen + truth).sum(1)

        def micro_f1(weights: Floats) -> dict[str, Floats]:
            below = weights @ both
            return {"micro_f1": np.divide(2 * (weights @ hits), below, out=below * np.nan, where=below > 0)}

        return micro_f1
    return mean_measure(top_credit(found, truth), name="accuracy")


def mean_measure(values: ArrayLike, *, name: str) -> Weighted:
    """Mean of values (N,) as a function of row weights."""
    rows = np.asarray(values, np.float64)
    return lambda weights: {name: weights @ rows / weights.sum(1)}


def paired_difference(ours: Floats, theirs: Floats, *, value: float) -> dict[str, float | str | None]:
    """Difference of a metric with its 95% interval, and what it says.

    Args:
        ours, theirs: the metric on the same resamples (R,).
        value: the difference on all rows.

    Returns:
        `difference`, `low`, `high` and `word`: above, level or below. The ends are None where no resample
        tells them: of one group, or of answers that are equal on all rows.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.metrics.verdicts import paired_difference
        >>> paired_difference(np.linspace(0.6, 0.7, 21), np.full(21, 0.5), value=0.15)["word"]
        'above'
    """
    draws = ours - theirs
    draws = draws[np.isfinite(draws)]
    found: dict[str, float | str | None] = {
        "difference": number(value),
        "low": None,
        "high": None,
        "word": LEVEL,
    }
    if np.isfinite(value) and 2 * len(draws) >= len(ours) and draws.any():
        low, high = interval(value, draws, is_mean=True)
        found |= {"low": low, "high": high, "word": ABOVE if low > 0 else BELOW if high < 0 else LEVEL}
    return found


def give_verdict(
    measures: Mapping[str, Weighted],
    *,
    model: str,
    metric: str,
    groups: Sequence[str] | None = None,
    count: int,
    beside: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Set a model beside the best of the other scorers on the same rows.

    Args:
        measures: scorer to its measure, as of `pair_measure` or `text_measure`.
        model: the one that is judged; all others are baselines.
        metric: name of the metric; more is better.
        groups: key of each row's group (N,), "" for a row on its own; None for no groups.
        count: rows, N.
        beside: a baseline to which the difference is given too, where it is not the best one.
        resamples, seed: of the bootstrap over groups.

    Returns:
        `metric`, `baseline` (its name), `value` (of the baseline), `difference`, `low`, `high`, `word`; and
        `beside`, the same of that baseline. None where no baseline has a value.

    Example:
        >>> from qwen_task_heads.metrics.verdicts import give_verdict, pair_measure
        >>> right, wrong = pair_measure([1.0] * 40, [0.0] * 40), pair_measure([0.0] * 40, [1.0] * 40)
        >>> half = pair_measure([1.0, 0.0] * 20, [0.0, 1.0] * 20)
        >>> measures = {"this model": right, "a": wrong, "b": half}
        >>> found = give_verdict(measures, model="this model", metric="pair_accuracy", count=40)
        >>> found["baseline"], found["word"], found["difference"]
        ('b', 'above', 0.5)
    """
    ones = np.ones((1, count))
    values = {name: float(weighted(ones)[metric][0]) for name, weighted in measures.items()}
    known = {name: value for name, value in values.items() if name != model and np.isfinite(value)}
    if not known:
        return None
    member = member_numbers(groups, count)
    best = max(known, key=lambda name: known[name])
    # The same seed draws the same groups for all.
    drawn: dict[str, NDArray[np.float64]] = {
        name: bootstrap(_only(measures[name], metric), member, width=1, resamples=resamples, seed=seed)[
            metric
        ]
        for name in {model, best, *([beside] if beside in known else [])}
    }

    def against(name: str) -> dict[str, Any]:
        told = paired_difference(drawn[model], drawn[name], value=values[model] - values[name])
        return {"baseline": name, "value": values[name], **told}

    also = {"beside": against(beside)} if beside in known and beside != best else {}
    return {"metric": metric, **against(best), **also}


def _only(weighted: Weighted, metric: str) -> Weighted:
    return lambda weights: {metric: weighted(weights)[metric]}
