"""How often each label occurs in training, and the weights that follow from it.

Weights are divided by their mean over the training rows, once. That keeps the loss, and with it the
learning rate, at the scale of an unweighted run, and it makes the mean over rows of any batch an
unbiased part of the mean over the set, however the rows are split (see `classification_losses`).
A label without a training row gets the weight 1 and is named: it cannot be learned, but rows of it may
stand in dev, and infinity would spoil their loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

LABELS_SHOWN = 10  # names in one line of the account


def count_labels(
    labels: Sequence[Any], *, problem_type: str, num_labels: int, sources: Sequence[str] = ()
) -> list[int]:
    """Rows with each label, `[n_0, ..., n_K-1]`; empty for regression.

    Args:
        labels: as in the data set: an id per row, or K numbers per row for several labels.
        problem_type: as in the model's config.
        num_labels: K.
        sources: where each row was read.

    Raises:
        TaskHeadsError: an id outside 0 to K - 1, by row. Above all -100, which torch leaves out of a mean.

    Example:
        >>> from qwen_task_heads.training.class_balance import count_labels
        >>> count_labels([0, 2, 2], problem_type="ordinal", num_labels=3)
        [1, 0, 2]
    """
    if problem_type == "regression":
        return []
    if problem_type == "multi_label_classification":
        values = torch.as_tensor(labels, dtype=torch.float32).reshape(-1, num_labels)
        return [int(count) for count in (values > 0.5).sum(0)]
    ids = torch.as_tensor(labels)
    wrong = ((ids < 0) | (ids >= num_labels)).nonzero().flatten().tolist()
    if wrong:
        accepted = f"0 to {num_labels - 1}"
        raise TaskHeadsError(
            [
                Problem(
                    sources[row] if row < len(sources) else f"row {row}",
                    f"found label {int(ids[row])}",
                    accepted,
                    "correct the row, or train with all labels of the data",
                )
                for row in wrong
            ]
        )
    return torch.bincount(ids, minlength=num_labels).tolist()


def balanced_class_weights(counts: Sequence[int]) -> Tensor:
    """`n / (K n_k)`, (K,) fp32, over the K labels that have a row; 1 for the others.

    Source: scikit-learn's `class_weight="balanced"`; King & Zeng 2001. The mean over the rows is 1.

    Example:
        >>> from qwen_task_heads.training.class_balance import balanced_class_weights
        >>> balanced_class_weights([30, 10])
        tensor([0.6667, 2.0000])
    """
    present = sum(1 for count in counts if count)
    return torch.tensor([sum(counts) / (present * count) if count else 1.0 for count in counts])


def balanced_pos_weight(counts: Sequence[int], *, rows: int) -> Tensor:
    """Negatives over positives of each label, (K,) fp32; 1 where all or none of the rows have it.

    Source: the documentation of torch.nn.BCEWithLogitsLoss.
    """
    return torch.tensor([(rows - count) / count if 0 < count < rows else 1.0 for count in counts])


def read_number(value: Any, *, flag: str, below: float) -> list[Problem]:
    """What is wrong with an option that takes one number of 0 or more, and less than `below`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value) and 0 <= value < below:
        return []
    limit = "" if below == math.inf else f", less than {below:g}"
    accepted = f"a number of 0 or more{limit}"
    return [Problem(flag, f"found {shorten(value)}", accepted, "drop it")]


def read_weights(
    value: Any, *, flag: str, num_labels: int, class_counts: Sequence[int] | None, rows: int | None
) -> tuple[Tensor, list[Problem]]:
    """Weights (K,) of `--class_weights` or `--pos_weight`, and what is wrong with them.

    Args:
        value: `"balanced"`, or K positive numbers (texts of numbers too, as a command line gives them).
        flag: the option, for messages; it also says which formula `balanced` stands for.
        num_labels: K.
        class_counts: n_k of the training set, or None: given class weights then stay as they are.
        rows: number of training rows, for a balanced `--pos_weight`.
    """
    accepted = f"balanced, or {num_labels} numbers above 0"
    words = [value] if isinstance(value, str | int | float) else list(value)
    ones = torch.ones(num_labels)
    if words == ["balanced"]:
        if class_counts is None or (flag == "--pos_weight" and rows is None):
            return ones, [no_counts(f"{flag} balanced")]
        if flag == "--pos_weight":
            return balanced_pos_weight(class_counts, rows=rows or 0), []
        return balanced_class_weights(class_counts), []
    try:
        numbers = [float(word) for word in words]
    except (TypeError, ValueError):
        return ones, [Problem(flag, f"found {shorten(words)}", accepted, "give one or the other")]
    problems = []
    if len(numbers) != num_labels:
        remedy = "give one per label, in the order of the label ids"
        problems.append(Problem(flag, f"found {len(numbers)} numbers", accepted, remedy))
    if bad := [number for number in numbers if not (math.isfinite(number) and number > 0)]:
        remedy = "a label that should not count has no place in the data"
        problems.append(Problem(flag, f"found {', '.join(map(str, bad))}", accepted, remedy))
    if problems:
        return ones, problems
    weights = torch.tensor(numbers)
    # pos_weight stays as given: it weighs two ends of one label, not rows against each other
    if flag == "--class_weights" and class_counts is not None and any(class_counts):
        counts = torch.tensor(class_counts, dtype=torch.float32)
        weights = weights * (counts.sum() / (counts * weights).sum())
    return weights, []


def no_counts(where: str) -> Problem:
    """The problem of a loss that follows from the counts of the labels, without counts."""
    return Problem(
        where, "found no counts of the labels", "a training set with a length", "give class_counts"
    )


def absent_lines(
    options: Mapping[str, Any],
    adjusted: bool,
    counts: Sequence[int] | None,
    *,
    rows: int | None,
    labels: Sequence[str],
) -> list[str]:
    """What to say of labels that no training row has, where the loss follows from the counts."""
    if counts is None:
        return []
    none = [place for place, count in enumerate(counts) if not count]
    lines = []
    if none and options.get("class_weights") in ("balanced", ["balanced"]):
        lines.append(f"no training row has {_names(none, labels)}: the balanced weight is 1 there")
    if none and adjusted:
        lines.append(f"no training row has {_names(none, labels)}: the prior is that of half a row")
    if options.get("pos_weight") in ("balanced", ["balanced"]):
        same = [place for place, count in enumerate(counts) if count in (0, rows)]
        if same:
            lines.append(
                f"all or none of the training rows have {_names(same, labels)}: the pos_weight is 1 there"
            )
    return lines


def _names(places: Sequence[int], labels: Sequence[str]) -> str:
    shown = [repr(labels[place]) if labels else f"label {place}" for place in places[:LABELS_SHOWN]]
    more = len(places) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
