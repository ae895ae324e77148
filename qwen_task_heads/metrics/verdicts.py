"""Comparison of a model with the best baseline, by a paired interval: above, level or below.

Design decisions:

- Model and baselines are evaluated on the same rows, so that differences are computed on the same resamples
  of groups. The interval of a difference is narrower than the two separate intervals suggest.
- The best baseline is the one with the highest value on the reported split. The selection on these rows
  favours the baselines.
- "above" is a 95% interval above 0, and "below" one below 0; any other interval is "level". The biases of two
  metrics that are not means cancel in a difference, so that intervals are percentile intervals (Efron 1979).
- Only the metric that selects checkpoints is compared and computed on the resamples.
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
from qwen_task_heads.metrics.ranking import Floats, pair_credit, sigmoid
from qwen_task_heads.metrics.ties import top_credit
from qwen_task_heads.metrics.weighted import (
    Weighted,
    bootstrap,
    interval,
    number,
    ordinal_metrics,
    regression_metrics,
)

ABOVE, LEVEL, BELOW = "above", "level", "below"
RESAMPLES = 2000  # of differences; the ends of the interval must not depend much on the seed
PAIR_ACCURACY = "pair_accuracy"


def pair_measure(chosen: ArrayLike, rejected: ArrayLike) -> Weighted:
    """Return the pair accuracy of scores (B,) as a function of row weights, for `give_verdict`.

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
    """Return the metric of `BEST_METRIC` as a function of row weights, for `give_verdict`.

    Args:
        problem_type, scores, targets: as for `classification_metrics`; scores (N, L).
        num_labels: L.
        thresholds: of multi-label probabilities, one or L.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.metrics.verdicts import text_measure
        >>> kind = "multi_label_classification"
        >>> micro_f1 = text_measure(kind, [[2.0, -1.0], [1.0, 3.0]], [(0,), (0,)], num_labels=2)
        >>> micro_f1(np.ones((1, 2)))["micro_f1"].tolist()
        [0.8]
    """
    checked, truth = check_scores(problem_type, scores, targets, num_labels=num_labels)
    if problem_type == REGRESSION:
        return regression_metrics(checked, truth, 0.5)[0]
    if problem_type == ORDINAL:
        return ordinal_metrics(checked, truth, 0.5)[0]
    if problem_type == MULTI:
        predicted = (sigmoid(checked) >= np.asarray(thresholds)).astype(np.float64)
        hits, both = (predicted * truth).sum(1), (predicted + truth).sum(1)

        def micro_f1(weights: Floats) -> dict[str, Floats]:
            below = weights @ both
            return {"micro_f1": np.divide(2 * (weights @ hits), below, out=below * np.nan, where=below > 0)}

        return micro_f1
    return mean_measure(top_credit(checked, truth), name="accuracy")


def mean_measure(values: ArrayLike, *, name: str) -> Weighted:
    """Return the mean of values (N,) as a function of row weights."""
    rows = np.asarray(values, np.float64)
    return lambda weights: {name: weights @ rows / weights.sum(1)}


def paired_difference(ours: Floats, theirs: Floats, *, value: float) -> dict[str, float | str | None]:
    """Compute the 95% interval of a difference of a metric, and whether it is above or below 0.

    Args:
        ours, theirs: the metric on the same resamples (R,).
        value: the difference on all rows.

    Returns:
        `difference`, `low`, `high` and `word`: above, level or below. The ends are None if the resamples do
        not define them: for one group, or for predictions that are equal on all rows.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.metrics.verdicts import paired_difference
        >>> paired_difference(np.linspace(0.6, 0.7, 21), np.full(21, 0.5), value=0.15)["word"]
        'above'
    """
    draws = ours - theirs
    draws = draws[np.isfinite(draws)]
    result: dict[str, float | str | None] = {
        "difference": number(value),
        "low": None,
        "high": None,
        "word": LEVEL,
    }
    if np.isfinite(value) and 2 * len(draws) >= len(ours) and draws.any():
        low, high = interval(value, draws, is_mean=True)
        result |= {"low": low, "high": high, "word": ABOVE if low > 0 else BELOW if high < 0 else LEVEL}
    return result


def give_verdict(
    measures: Mapping[str, Weighted],
    *,
    model: str,
    metric: str,
    groups: Sequence[str] | None = None,
    count: int,
    second: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Compare a model with the best of the other scorers on the same rows.

    Args:
        measures: scorer to its measure, from `pair_measure` or `text_measure`.
        model: name of the model in `measures`; all other scorers are baselines.
        metric: name of the metric; a greater value is better.
        groups: key of each row's group (N,), "" for a row on its own; None for no groups.
        count: number of rows, N.
        second: a second baseline, whose difference is also returned if it is not the best one.
        resamples, seed: of the bootstrap over groups.

    Returns:
        `metric`, `baseline` (its name), `value` (of the baseline), `difference`, `low`, `high`, `word`; and
        `beside`, the same for the second baseline. None if no baseline has a value.

    Example:
        >>> from qwen_task_heads.metrics.verdicts import give_verdict, pair_measure
        >>> right, wrong = pair_measure([1.0] * 40, [0.0] * 40), pair_measure([0.0] * 40, [1.0] * 40)
        >>> half = pair_measure([1.0, 0.0] * 20, [0.0, 1.0] * 20)
        >>> measures = {"this model": right, "a": wrong, "b": half}
        >>> verdict = give_verdict(measures, model="this model", metric="pair_accuracy", count=40)
        >>> verdict["baseline"], verdict["word"], verdict["difference"]
        ('b', 'above', 0.5)
    """
    ones = np.ones((1, count))
    values = {name: float(weighted(ones)[metric][0]) for name, weighted in measures.items()}
    known = {name: value for name, value in values.items() if name != model and np.isfinite(value)}
    if not known:
        return None
    member = member_numbers(groups, count)
    best = max(known, key=lambda name: known[name])
    names = {model, best, *([second] if second in known else [])}
    # The same seed draws the same groups for all scorers.
    draws: dict[str, NDArray[np.float64]] = {}
    for name in names:
        measure = _only(measures[name], metric)
        draws[name] = bootstrap(measure, member, width=1, resamples=resamples, seed=seed)[metric]

    def against(name: str) -> dict[str, Any]:
        difference = paired_difference(draws[model], draws[name], value=values[model] - values[name])
        return {"baseline": name, "value": values[name], **difference}

    also = {"beside": against(second)} if second in known and second != best else {}
    return {"metric": metric, **against(best), **also}


def _only(weighted: Weighted, metric: str) -> Weighted:
    return lambda weights: {metric: weighted(weights)[metric]}
