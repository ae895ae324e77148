"""Thresholds of the labels of a multi-label model, chosen on dev.

Design decisions:

- A label with few rows rarely gets a probability of .5, and its best threshold is far lower. Thresholds are
  chosen per label, after the temperature.
- The F1 threshold of a label with few rows is shrunk towards one threshold of all labels, because the best
  threshold on few rows is mostly noise (Lipton et al. 2014, https://arxiv.org/abs/1402.1892). On GoEmotions
  (TF-IDF, 28 labels) that raises macro F1 on test by .003 with 5,414 rows of dev, and by .043 with 100.
- F1 thresholds are used only if cross-validation over groups, with five folds, raises the held-out macro F1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qwen_task_heads.errors import error_at
from qwen_task_heads.metrics.calibration import folds, too_few
from qwen_task_heads.metrics.classification import MULTI, check_scores, member_numbers
from qwen_task_heads.metrics.ranking import Floats, sigmoid

SHRINK = 10  # weight of the threshold of all labels, in rows with the label
EPSILON = 1e-7


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Thresholds of the labels of a multi-label model.

    Args:
        values: P(label) from which each label is predicted; None for .5 of all labels.
        reason: why `values` is None; "" otherwise.
        held_out: macro F1 and micro precision, at .5 and at the thresholds of the other folds; {} if nothing
            was fitted.
        unreachable: ids of labels that do not reach the required precision at any threshold. They are never
            predicted.
    """

    values: tuple[float, ...] | None
    reason: str = ""
    held_out: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    unreachable: tuple[int, ...] = ()


def read_rule(text: str) -> tuple[str, float | None]:
    """Parse a rule for thresholds: `f1`, `none`, or `precision:` and a number between 0 and 1.

    Raises:
        TaskHeadsError: the text is none of them.

    Example:
        >>> from qwen_task_heads.metrics.thresholds import read_rule
        >>> read_rule("f1"), read_rule("precision:0.9")
        (('f1', None), ('precision', 0.9))
    """
    name, colon, number = text.partition(":")
    if name in ("f1", "none") and not colon:
        return name, None
    try:
        precision = float(number)
    except ValueError:
        precision = math.nan
    if name == "precision" and 0 < precision < 1:
        return name, precision
    raise error_at(
        "--thresholds",
        f"found {text!r}",
        "f1, none, or precision: with a number between 0 and 1",
        "choose such as precision:0.9",
        code="option-value",
    )


def fit_thresholds(
    logits: ArrayLike, targets: Any, *, rule: str = "f1", groups: Sequence[str] | None = None
) -> Thresholds:
    """Choose a threshold per label of a multi-label model on dev, with cross-validation.

    Args:
        logits: (N, L); after calibration, if the model is calibrated.
        targets: an (N, L) array of 0 and 1, or N sequences of ids.
        rule: `f1` maximises the F1 of each label. `precision:P` takes the lowest threshold with that
            precision on dev, a point estimate. A label that reaches it at no threshold is never predicted.
        groups: as for `fit_temperature`.

    Raises:
        TaskHeadsError: as for `classification_metrics`, or an unknown rule.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.metrics.thresholds import fit_thresholds
        >>> logits = np.linspace(-4.0, 0.0, 200)[:, None]
        >>> round(fit_thresholds(logits, (logits > -1.5).astype(float)).values[0], 1)
        0.2
    """
    name, precision = read_rule(rule)
    if name == "none":
        return Thresholds(values=None, reason="none were requested")
    scores = np.asarray(logits, np.float64)
    scores, truth = check_scores(MULTI, scores, targets, num_labels=scores.shape[-1])
    member = member_numbers(groups, len(scores))
    if reason := too_few(rows=len(scores), groups=int(member.max()) + 1):
        return Thresholds(values=None, reason=reason)

    def fit(rows: Any) -> Floats:
        if precision is None:
            return _cuts_by_f1(scores[rows], truth[rows])
        labels = zip(scores[rows].T, truth[rows].T, strict=True)
        return np.array([_cut_by_precision(*label, precision) for label in labels])

    cuts = fit(slice(None))
    predicted = np.zeros(scores.shape, bool)
    for train, test in folds(member):
        predicted[test] = scores[test] >= fit(train)
    before, after = _macro_f1(scores >= 0, truth), _macro_f1(predicted, truth)
    held_out = {
        "macro_f1": (before, after),
        "micro_precision": (_precision(scores >= 0, truth), _precision(predicted, truth)),
    }
    if precision is None and after <= before:
        reason = f"they do not raise the held-out macro F1 ({before:.3f}, and {after:.3f} with them)"
        return Thresholds(values=None, reason=reason, held_out=held_out)
    values = np.where(np.isinf(cuts), 1.0, np.clip(sigmoid(np.minimum(cuts, 700.0)), EPSILON, 1.0))
    unreachable = tuple(np.flatnonzero(np.isinf(cuts)).tolist())
    return Thresholds(values=tuple(values.tolist()), held_out=held_out, unreachable=unreachable)


def _cuts_by_f1(scores: Floats, truth: Floats) -> Floats:
    """Return threshold logits (L,): the best one of each label, shrunk towards the best one of all labels."""
    common = _common_cut(scores, truth)
    cuts = np.full(scores.shape[1], common)
    for label, (column, true) in enumerate(zip(scores.T, truth.T, strict=True)):
        if count := true.sum():
            order, hits, ends = _steps(column, true)
            f1 = 2 * hits[ends] / (ends + 1 + count)
            own = _between(column[order], int(ends[f1.argmax()]))
            cuts[label] = (count * own + SHRINK * common) / (count + SHRINK)
    return cuts


def _common_cut(scores: Floats, truth: Floats) -> float:
    """Return the threshold logit, one for all labels, with the best macro F1 of 200 quantiles."""
    tried = np.unique([0.0, *np.quantile(scores, np.linspace(0.0, 1.0, 201)[1:])])
    f1 = np.zeros((len(tried), scores.shape[1]))
    occurs = np.zeros(f1.shape, bool)
    for label, (column, true) in enumerate(zip(scores.T, truth.T, strict=True)):
        # Rows and hits at or above each threshold.
        predicted = len(column) - np.searchsorted(np.sort(column), tried)
        hits = int(true.sum()) - np.searchsorted(np.sort(column[true > 0]), tried)
        both = predicted + true.sum()
        occurs[:, label] = both > 0
        f1[:, label] = 2 * hits / np.maximum(both, 1)
    return float(tried[(f1.sum(1) / np.maximum(occurs.sum(1), 1)).argmax()])


def _cut_by_precision(column: Floats, true: Floats, precision: float) -> float:
    """Return the lowest threshold logit with the required precision; inf if there is none."""
    order, hits, ends = _steps(column, true)
    reached = ends[hits[ends] >= precision * (ends + 1) - 1e-9]
    return _between(column[order], int(reached[-1])) if len(reached) else math.inf


def _steps(column: Floats, true: Floats) -> tuple[NDArray[Any], Floats, NDArray[Any]]:
    """Return rows by falling score, hits up to each position, and the positions that may end a cut."""
    order = np.argsort(-column, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(column[order]) != 0, True))
    return order, np.cumsum(true[order]), ends


def _between(descending: Floats, last: int) -> float:
    """Return a cut after the position `last`: halfway to the next score, or the last score of all rows."""
    return float(descending[last : last + 2].mean())


def _macro_f1(predicted: NDArray[Any], truth: Floats) -> float:
    """Return the mean F1 over the labels that occur among truths or predictions; 0 if none does."""
    hits, both = (predicted * truth).sum(0), predicted.sum(0) + truth.sum(0)
    return float((2 * hits[both > 0] / both[both > 0]).mean()) if (both > 0).any() else 0.0


def _precision(predicted: NDArray[Any], truth: Floats) -> float | None:
    """Return the share of correct labels among all predicted ones; None without predictions."""
    return float((predicted * truth).sum() / predicted.sum()) if predicted.any() else None
