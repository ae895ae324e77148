"""Metrics as functions of row weights: the value at weights of one, the bootstrap at counts of draws.

Design decisions:

- A measure takes the scores and truths of one split and returns `weighted`, which maps row weights (R, N) to
  metrics (R,). R resamples are computed at once, and the value is the same function at weights of one.
- NaN means "undefined" inside this module, and no division gives a warning.
- Labels that tie at the top of a row (`ties`) share its prediction: k labels count 1/k each.
- Sorting (average precision, ranks) is done once; resamples only change the weights of the sorted rows.
- Metrics that are not means over rows are biased on resamples: these contain some rows twice, which raises
  average precision, and lack rare labels. `interval` subtracts that bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.metrics.ranking import CHUNK, Floats, sigmoid
from qwen_task_heads.metrics.ties import merge_ties, top_credit, top_shares

ECE_BINS = 15
Weighted = Callable[[Floats], dict[str, Floats]]  # row weights (R, N) to metrics (R,), NaN if undefined
# Metrics of weights, metrics without an interval, one dict per label.
Measures = tuple[Weighted, dict[str, float], list[dict[str, Any]]]


def of_classes(scores: Floats, truth: NDArray[Any], threshold: Any) -> Measures:
    """Return measures of one label per row: scores (N, L), ids (N,)."""
    shares, num_labels = top_shares(scores), scores.shape[1]
    rows, guess = np.nonzero(shares)  # one entry per row, or one per tied label
    share = shares[rows, guess]
    log_p = log_softmax(scores)
    confidence = np.exp(log_p.max(1))
    loss, hit = -log_p[np.arange(len(truth)), truth], top_credit(scores, truth)

    def counts(weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Return weights of hits, predictions and truths per label, each (R, L)."""
        columns = ((truth, weights * hit), (guess, weights[:, rows] * share), (truth, weights))
        hits, guessed, true = (
            np.array([np.bincount(ids, weights=row, minlength=num_labels) for row in each])
            for ids, each in columns
        )
        return hits, guessed, true

    def weighted(weights: Floats) -> dict[str, Floats]:
        total = weights.sum(1)
        averages = _averages(*counts(weights))
        return {"accuracy": weights @ hit / total, **averages, "log_loss": weights @ loss / total}

    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    plain = {"ece": float(np.abs(np.bincount(bins, weights=hit - confidence)).sum() / len(truth))}
    return weighted, plain, _per_class(*counts(np.ones((1, len(truth)))))


def ordinal_metrics(scores: Floats, truth: NDArray[Any], threshold: Any) -> Measures:
    """Return measures of ordered labels: log-probabilities (N, L), ids (N,)."""
    classes, plain, per_class = of_classes(scores, truth, threshold)
    t, steps = truth.astype(np.float64), np.arange(scores.shape[1], dtype=np.float64)
    shares, away = top_shares(scores), t[:, None] - steps  # (N, L)
    p = shares @ steps, shares @ steps**2
    distance = (shares * away**2).sum(1), (shares * np.abs(away)).sum(1)
    columns = np.stack([t, p[0], t * t, p[1], *distance], axis=1)  # (N, 6), the mean over tied labels

    def weighted(weights: Floats) -> dict[str, Floats]:
        t1, p1, t2, p2, observed, steps = (weights @ columns / weights.sum(1, keepdims=True)).T
        # Cohen's kappa with weights (i - j)²: the expected distance needs two moments of each margin only.
        expected = t2 + p2 - 2 * t1 * p1
        kappa = 1 - _ratio(observed, np.where(expected > 1e-12, expected, 0.0))
        return {"mae": steps, "quadratic_kappa": kappa, **classes(weights)}

    return weighted, plain, per_class


def multilabel_metrics(scores: Floats, truth: Floats, threshold: Any) -> Measures:
    """Return measures of several labels per row: logits (N, L), 0 and 1 (N, L)."""
    predicted = (sigmoid(scores) >= threshold).astype(np.float64)
    exact = (predicted == truth).all(1).astype(np.float64)
    loss = (np.logaddexp(0.0, scores) - truth * scores).mean(1)  # (N,) binary cross-entropy
    merged = np.stack([merge_ties(column) for column in scores.T], axis=1)

    def counts(weights: Floats) -> tuple[Floats, Floats, Floats]:
        return weights @ (predicted * truth), weights @ predicted, weights @ truth

    def ranked(weights: Floats) -> Floats:
        columns = zip(merged.T, truth.T, strict=True)
        return np.stack([_average_precision(s, y, weights) for s, y in columns], axis=1)  # (R, L)

    def weighted(weights: Floats) -> dict[str, Floats]:
        total = weights.sum(1)
        metrics = _averages(*counts(weights)) | {"map": _mean_defined(ranked(weights))}
        return {**metrics, "subset_accuracy": weights @ exact / total, "log_loss": weights @ loss / total}

    ones = np.ones((1, len(truth)))
    per_class = _per_class(*counts(ones))
    for row, value in zip(per_class, ranked(ones)[0], strict=True):
        row["average_precision"] = number(value)
    return weighted, {}, per_class


def regression_metrics(scores: Floats, truth: Floats, threshold: Any) -> Measures:
    """Return measures of one or more values per row, (N, L) each; for several values, the mean over them."""
    merged = np.stack([merge_ties(column) for column in scores.T], axis=1)

    def of_column(x: Floats, tied: Floats, y: Floats, weights: Floats) -> dict[str, Floats]:
        total = weights.sum(1)
        mse = weights @ (x - y) ** 2 / total
        ranks = _weighted_ranks(tied, weights), _weighted_ranks(y, weights)
        return {
            "pearson": _correlation(x[None], y[None], weights),
            "spearman": _correlation(*ranks, weights),
            "mse": mse,
            "mae": weights @ np.abs(x - y) / total,
            "r2": 1 - _ratio(mse, _centre(y[None], weights)[1]),
        }

    def columns(weights: Floats) -> list[dict[str, Floats]]:
        return [of_column(*column, weights) for column in zip(scores.T, merged.T, truth.T, strict=True)]

    def weighted(weights: Floats) -> dict[str, Floats]:
        each = columns(weights)
        return {name: _mean_defined(np.stack([column[name] for column in each], 1)) for name in each[0]}

    rows = columns(np.ones((1, len(truth))))
    return weighted, {}, [{name: number(value[0]) for name, value in row.items()} for row in rows]


def bootstrap(
    weighted: Weighted, member: NDArray[np.int64], *, width: int, resamples: int, seed: int
) -> dict[str, Floats]:
    """Compute metrics (resamples,) of whole groups drawn with replacement; NaN for fewer than 2 groups.

    Args:
        weighted: of a measure.
        member: number of each row's group (N,), from 0.
        width: number of labels; with the number of rows it limits the resamples that are computed at once.
        resamples, seed: number of samples, and seed of the draws.
    """
    chunks = list(_resampled(weighted, member, width=width, resamples=resamples, seed=seed))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def interval(
    value: float, draws: Floats, *, is_mean: bool, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float]:
    """Return the ends of a 95% bootstrap interval that contains the value.

    For a mean over rows it is the percentile interval (Efron 1979). For any other metric, twice the bootstrap
    estimate of the median bias is subtracted, once for the resamples and once for the value itself (Efron &
    Tibshirani 1993, chapter 10). If the draws are symmetric, that is the basic interval (Davison & Hinkley
    1997, 5.2). Coverage in a simulation of 150 rows and 40 labels: mAP .82, not .07; macro F1 .91, not .77.

    Args:
        value: of the metric on all rows.
        draws: values of the metric on resamples (R,), finite.
        is_mean: whether the metric is a mean over rows, which is unbiased on resamples.
        bounds: smallest and largest value of the metric.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.metrics.weighted import interval
        >>> low, high = interval(0.5, np.linspace(0.5, 0.7, 201), is_mean=False, bounds=(0.0, 1.0))
        >>> round(low, 3), round(high, 3)
        (0.305, 0.5)
    """
    low, middle, high = np.quantile(draws, [0.025, 0.5, 0.975])
    if not is_mean:  # the median, because r2 of a resample can be far below the others
        low, high = low - 2 * (middle - value), high - 2 * (middle - value)
    # A bias larger than the spread leaves the value outside, and so does rounding.
    return float(max(bounds[0], min(low, value))), float(min(bounds[1], max(high, value)))


def number(value: Any) -> float | None:
    """Return a float, or None if the value is not finite."""
    return float(value) if np.isfinite(value) else None


def log_softmax(logits: Floats) -> Floats:
    """Compute log-probabilities (N, L) of logits (N, L)."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _averages(hits: Floats, guessed: Floats, true: Floats) -> dict[str, Floats]:
    """Return macro, micro and weighted precision, recall and F1, each (R,), from counts (R, L)."""
    occurs = (guessed + true) > 0
    metrics = {}
    for name, above, below in (
        ("precision", hits, guessed),
        ("recall", hits, true),
        ("f1", 2 * hits, guessed + true),
    ):
        each = np.nan_to_num(_ratio(above, below))
        metrics[f"macro_{name}"] = _ratio((each * occurs).sum(1), occurs.sum(1))
        metrics[f"micro_{name}"] = _ratio(above.sum(1), below.sum(1))
        metrics[f"weighted_{name}"] = _ratio((each * true).sum(1), true.sum(1))
    return metrics


def _per_class(hits: Floats, guessed: Floats, true: Floats) -> list[dict[str, Any]]:
    """Return one dict per label from counts (1, L)."""
    metrics = (_ratio(hits, guessed)[0], _ratio(hits, true)[0], _ratio(2 * hits, guessed + true)[0])
    return [
        {
            "precision": number(precision),
            "recall": number(recall),
            "f1": number(f1),
            "support": int(support),
            "predicted": _as_count(predicted),
        }
        for precision, recall, f1, support, predicted in zip(*metrics, true[0], guessed[0], strict=True)
    ]


def _as_count(count: float) -> int | float:
    """Return a count as an int, or as a float if it contains shares of tied labels."""
    nearest = round(count)
    return nearest if abs(count - nearest) < 1e-6 else float(count)


def _average_precision(scores: Floats, truth: Floats, weights: Floats) -> Floats:
    """Return the area under the precision-recall steps of one label, (R,); equal scores are one step."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    positives = np.flatnonzero(truth[order])  # positions of the rows that have the label: the steps of recall
    step = ends[np.searchsorted(ends, positives)]
    ranked = weights[:, order]
    gained = ranked[:, positives]
    hits = np.cumsum(gained, axis=1)[:, np.searchsorted(positives, step, side="right") - 1]
    precision = _ratio(hits, np.cumsum(ranked, axis=1)[:, step])
    return _ratio((gained * np.nan_to_num(precision)).sum(1), gained.sum(1))


def _weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Return ranks (R, N) of a sample with each row `weight` times; equal values get the mean rank."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(values[order]) != 0))
    mass = np.add.reduceat(weights[:, order], starts, axis=1)  # (R, U) weight of each distinct value
    ranks = np.cumsum(mass, axis=1) - (mass - 1) / 2
    positions = np.empty(len(values), dtype=np.int64)
    positions[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))
    return ranks[:, positions]


def _correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Return the weighted Pearson correlation (R,) of rows (R or 1, N); NaN if one is constant."""
    (a, spread_a), (b, spread_b) = _centre(x, weights), _centre(y, weights)
    return _ratio((weights * a * b).sum(1) / weights.sum(1), np.sqrt(spread_a * spread_b))


def _centre(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return values (R, N) minus their weighted mean, and their weighted variance (R,), 0 for constants."""
    total = weights.sum(1)
    centred = values - ((weights * values).sum(1) / total)[:, None]
    spread = (weights * centred**2).sum(1) / total
    # By rounding, the variance of a constant may be the square of its last bit.
    return centred, np.where(spread > 1e-24 * (weights * values**2).sum(1) / total, spread, 0.0)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return `above / below`; NaN if the denominator is 0."""
    shape = np.broadcast(above, below).shape
    return np.divide(above, below, out=np.full(shape, np.nan), where=np.asarray(below) > 0)


def _mean_defined(values: Floats) -> Floats:
    """Return the mean of the defined values over the last axis; NaN if there are none."""
    return _ratio(np.nan_to_num(values).sum(-1), np.isfinite(values).sum(-1))


def _resampled(
    weighted: Weighted, member: NDArray[np.int64], *, width: int, resamples: int, seed: int
) -> Iterator[dict[str, Floats]]:
    groups, rng = int(member.max()) + 1, np.random.default_rng(seed)
    if groups < 2:
        yield {name: value * np.nan for name, value in weighted(np.ones((1, len(member)))).items()}
        return
    step = max(1, CHUNK // max(len(member), width) // 4)
    for start in range(0, resamples, step):
        draws = rng.integers(groups, size=(min(step, resamples - start), groups))
        counts = np.array([np.bincount(draw, minlength=groups) for draw in draws], dtype=np.float64)
        yield weighted(counts[:, member])
