"""Check the inputs of metrics of labels: ids, names or lists of labels, and scores in another argument.

Design:

- `predictions` and `references` are ids or names, as in `evaluate`. Logits and probabilities are
  `prediction_scores`, as in its `roc_auc`. A matrix of numbers instead of labels is refused, and so are ids
  together with names without a list that relates them.
- `evaluate` stores a batch with fixed types, which would convert the name "1" to the id 1 and 0.7 to 0. Rows
  are therefore checked here and stored as JSON text. `add`, `add_batch` and several processes work as in any
  metric.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from qwen_task_heads.errors import error_at, shorten
from qwen_task_heads.metrics.classification import MULTI, ORDINAL, classification_metrics

SCORES = "scores"  # key of a stored row of numbers
SURE = 40.0  # logit of a label that is predicted without a score; log-loss is then left out
NEED_SCORES = ("log_loss", "ece", "map")
MAX_ID = 10_000  # without scores or names, the number of labels is the largest id plus one
SUM = 1e-3  # tolerance for the sum of a row of probabilities


@runtime_checkable
class _Array(Protocol):
    """An array of NumPy, torch, pandas or Arrow."""

    def tolist(self) -> Any:
        """Return the values as Python objects."""


def plain(value: Any) -> Any:
    """Return lists, tuples, arrays, tensors and series as lists of Python objects.

    Example:
        >>> plain((np.arange(2), [np.float64(0.5)]))
        [[0, 1], [0.5]]
    """
    if isinstance(value, _Array):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


class TakesLabels:
    """Methods of a metric of labels; this class must precede `evaluate.Metric` in the bases."""

    several = False  # whether a row may have several labels

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        prediction_scores: Any = None,
        **options: Any,
    ) -> dict[str, float | None] | None:
        """Compute the metrics of these rows, or of all added rows.

        Raises:
            TaskHeadsError: predictions are scores, labels mix ids and names, or lengths differ.
        """
        if any(value is not None for value in (predictions, references, prediction_scores)):
            self.add_batch(
                predictions=predictions, references=references, prediction_scores=prediction_scores
            )
        return super().compute(**options)  # type: ignore[misc]

    def add_batch(
        self, *, predictions: Any = None, references: Any = None, prediction_scores: Any = None
    ) -> None:
        """Add a batch of rows.

        Raises:
            TaskHeadsError: see `compute`.
        """
        super().add_batch(**self._encoded(predictions, references, prediction_scores))  # type: ignore[misc]

    def add(self, *, prediction: Any = None, reference: Any = None, prediction_scores: Any = None) -> None:
        """Add one row.

        Raises:
            TaskHeadsError: see `compute`.
        """
        rows = (None if value is None else [value] for value in (prediction, reference, prediction_scores))
        super().add_batch(**self._encoded(*rows))  # type: ignore[misc]

    def _encoded(self, predictions: Any, references: Any, scores: Any) -> dict[str, list[str]]:
        if (predictions is None) == (scores is None):
            where, code = "predictions, prediction_scores", "option-conflict"
            problem = "found both" if scores is not None else "found neither"
            fix = "pass labels as predictions, or logits or probabilities as prediction_scores"
            raise error_at(where, problem, "one of the two", fix, code=code)
        if references is None:
            raise error_at(
                "references", "found None", "the true labels", "pass references", code="option-missing"
            )
        truths = _labels("references", references, several=self.several)
        if scores is not None:
            answers: list[Any] = [{SCORES: row} for row in _scores(scores)]
        else:
            answers = _labels("predictions", predictions, several=self.several)
        if len(answers) != len(truths):
            problem = f"found {len(truths):,} for {len(answers):,} predictions"
            expected, fix = "one reference per prediction", "pass one for each row"
            raise error_at("references", problem, expected, fix, code="argument-type")
        return {"predictions": [*map(json.dumps, answers)], "references": [*map(json.dumps, truths)]}


def _rows(where: str, value: Any, expected: str) -> list[Any]:
    rows = plain(value)
    if not isinstance(rows, list):
        problem, fix = f"found {shorten(value)}", "pass one value per row"
        raise error_at(where, problem, f"a list of {expected}", fix, code="argument-type")
    return rows


def _labels(where: str, value: Any, *, several: bool) -> list[Any]:
    """Check a column of labels, which are all ids or all names."""
    expected = "rows of zeros and ones, or lists of names" if several else "label ids or names"
    rows = _rows(where, value, expected)
    fix = "pass one label per row" if not several else "pass one list per row"
    for place, row in enumerate(rows):
        items = row if isinstance(row, list) else [row]
        if any(isinstance(item, float) for item in items):
            fix = "pass logits and probabilities as prediction_scores=, and ids as whole numbers"
        whole = all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items)
        named = all(isinstance(item, str) for item in items)
        if isinstance(row, list) != several or not (whole or named):
            raise error_at(f"{where}[{place}]", f"found {shorten(row)}", expected, fix, code="value-type")
    kinds = {_kind(row) for row in rows} - {None}
    if len(kinds) > 1:
        problem, fix = (
            "found ids in some rows and names in others",
            "write all labels as ids, or all as names",
        )
        raise error_at(where, problem, "ids or names", fix, code="label-conflict")
    return rows


def _kind(row: Any) -> type | None:
    """Return `int` or `str`, None for an empty list."""
    items = row if isinstance(row, list) else [row]
    return type(items[0]) if items else None


def _scores(value: Any) -> list[list[float]]:
    expected = "rows with one number per label, logits or probabilities"
    rows = _rows("prediction_scores", value, expected)
    for place, row in enumerate(rows):
        numbers = isinstance(row, list) and row and all(isinstance(x, int | float) for x in row)
        if not numbers or not all(map(math.isfinite, row)) or len(row) != len(rows[0]):
            where, fix = f"prediction_scores[{place}]", "pass labels as predictions="
            raise error_at(where, f"found {shorten(row)}", expected, fix, code="value-type")
    return rows


def label_metrics(
    problem_type: str,
    predictions: Iterable[str],
    references: Iterable[str],
    *,
    labels: Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return the classification metrics of stored rows.

    Args:
        problem_type: of the model.
        predictions, references: rows as `TakesLabels` stores them.
        labels: names in the order of the ids; None keeps ids, and sorts names.
        options: `groups`, `threshold`.

    Raises:
        TaskHeadsError: `labels` lacks a label, ids and names are mixed without it, or scores have another
            length.
    """
    answers, truths = [json.loads(row) for row in predictions], [json.loads(row) for row in references]
    stored = [isinstance(row, dict) for row in answers]
    if any(stored) and not all(stored):
        problem, fix = "found labels in some batches and scores in others", "pass the same argument each time"
        raise error_at("predictions", problem, "one of the two", fix, code="option-conflict")
    scored = bool(stored) and stored[0]
    width = len(answers[0][SCORES]) if scored else None
    kinds = {_kind(row) for row in (*truths, *([] if scored else answers))} - {None}
    if problem_type == ORDINAL and str in kinds and labels is None:
        expected, fix = "the order of the names", "pass labels=, from the lowest to the highest"
        raise error_at("labels", "found None", expected, fix, code="option-missing")
    names = _names(truths if scored else [*answers, *truths], kinds, given=labels, width=width)
    several = problem_type == MULTI
    targets = _ids("references", truths, names, several=several)
    if scored:
        rows = np.asarray([row[SCORES] for row in answers], np.float64)
        logits = _logits(rows, several=several)
    else:
        chosen = _ids("predictions", answers, names, several=several)
        hot = chosen if several else (chosen[:, None] == np.arange(len(names))).astype(np.float64)
        logits = SURE * (2.0 * hot - 1.0)
        options["threshold"] = 0.5  # the labels were chosen by the caller
    metrics = classification_metrics(problem_type, logits, targets, labels=names, **options)
    return {name: entry for name, entry in metrics.items() if scored or name not in NEED_SCORES}


def _names(
    rows: Sequence[Any], kinds: set[type | None], *, given: Sequence[str] | None, width: int | None
) -> list[str]:
    """Return the names of all labels, in the order of their ids."""
    if given is not None:
        names = plain(given)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            problem, fix = f"found {shorten(given)}", "pass a list of strings"
            raise error_at("labels", problem, "a list of names", fix, code="argument-type")
        if len(set(names)) < len(names) or width not in (None, len(names)):
            problem = f"found {len(names):,} names for {width:,} columns" if width else "a name is repeated"
            expected, fix = "one name per label", "pass each label once"
            raise error_at("labels", problem, expected, fix, code="label-invalid")
        return names
    if kinds == {int, str}:
        where, problem = "predictions, references", "found ids together with names"
        fix = "pass labels=, the names in the order of the ids"
        raise error_at(where, problem, "ids or names", fix, code="label-conflict")
    if str in kinds and width:
        problem, expected = "found names together with scores", "ids, or names with labels="
        fix = "pass labels=, the names in the order of the columns"
        raise error_at("references", problem, expected, fix, code="label-conflict")
    items = [item for row in rows for item in (row if isinstance(row, list) else [row])]
    if str in kinds:
        return sorted(set(items))
    if rows and isinstance(rows[0], list):
        return [*map(str, range(width or len(rows[0])))]
    largest = max(items, default=0)
    if width is None and largest >= MAX_ID:
        where, problem = "predictions, references", f"found the id {largest:,}"
        expected, fix = f"ids below {MAX_ID:,}", "check it"
        raise error_at(where, problem, expected, fix, code="value-range")
    return [*map(str, range(width or largest + 1))]


def _ids(where: str, rows: Sequence[Any], names: Sequence[str], *, several: bool) -> Any:
    """Return ids (N,), or zeros and ones (N, L) for several labels per row."""
    place = {name: number for number, name in enumerate(names)}
    known = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    result: list[Any] = []
    for number, row in enumerate(rows):
        hot = several and _kind(row) is int
        if hot and (len(row) != len(names) or not set(row) <= {0, 1}):
            expected = f"{len(names):,} zeros and ones, or a list of names"
            fix = "pass one column per label, or names"
            raise error_at(f"{where}[{number}]", f"found {shorten(row)}", expected, fix, code="value-type")
        items = row if isinstance(row, list) else [row]
        unknown = [
            item for item in items if item not in (place if isinstance(item, str) else range(len(names)))
        ]
        if unknown and not hot:
            problem = f"{shorten(unknown[0])} is none of the {len(names):,} labels"
            fix = "pass labels= with all names, in the order of the ids"
            raise error_at(f"{where}[{number}]", problem, known, fix, code="label-unknown")
        ids = [place[item] if isinstance(item, str) else item for item in items]
        result.append(row if hot else [float(n in ids) for n in range(len(names))] if several else ids[0])
    return np.asarray(result, np.float64 if several else np.int64)


def _logits(scores: Any, *, several: bool) -> Any:
    """Return logits; probabilities are converted to logits."""
    inside = bool(((scores >= 0) & (scores <= 1)).all())
    tiny = np.finfo(np.float64).tiny
    if several:
        share = np.clip(scores, tiny, 1 - np.finfo(np.float64).epsneg)
        return np.log(share) - np.log1p(-share) if inside else scores
    sums = np.abs(scores.sum(1) - 1) <= SUM
    return np.log(np.maximum(scores, tiny)) if inside and sums.all() else scores
