"""Counts of the labels in the training set, and weights that balance them.

Weights are divided once by their mean over the training rows. The loss, and with it the learning rate, keeps
the scale of an unweighted run. The mean over the rows of any batch is an unbiased part of the mean over the
training set (see `texts`).
A label without a training row gets the weight 1 and is named in a message. Rows of dev may have this label,
and an infinite weight would make their loss infinite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS

LABELS_SHOWN = 10  # names in one message


def count_labels(
    labels: Sequence[Any], *, problem_type: str, num_labels: int, sources: Sequence[str] = ()
) -> list[int]:
    """Count the rows with each label, `[n_0, ..., n_K-1]`; empty for regression.

    Args:
        labels: as in the data set: an id per row, or K numbers per row of several labels or questions.
        problem_type: as in the model's config.
        num_labels: K.
        sources: file and line of each row.

    Raises:
        TaskHeadsError: an id outside 0 to K - 1, by row, such as -100, which torch leaves out of a mean.

    Example:
        >>> from qwen_task_heads.losses.class_balance import count_labels
        >>> count_labels([0, 2, 2], problem_type="ordinal", num_labels=3)
        [1, 0, 2]
    """
    if problem_type == "regression":
        return []
    if problem_type in ("multi_label_classification", QUESTIONS):
        values = torch.as_tensor(labels, dtype=torch.float32).reshape(-1, num_labels)
        return [int(count) for count in (values > 0.5).sum(0)]
    ids = torch.as_tensor(labels)
    invalid = ((ids < 0) | (ids >= num_labels)).nonzero().flatten().tolist()
    if invalid:
        raise TaskHeadsError(
            [
                Problem(
                    sources[row] if row < len(sources) else f"row {row}",
                    f"found label {int(ids[row])}",
                    f"0 to {num_labels - 1}",
                    "correct the row, or train with all labels of the data",
                    code="label-unknown",
                )
                for row in invalid
            ]
        )
    return torch.bincount(ids, minlength=num_labels).tolist()


def balanced_class_weights(counts: Sequence[int]) -> Tensor:
    """Return `n / (K n_k)`, (K,) fp32, over the K labels that have a row; 1 for the others.

    Source: scikit-learn's `class_weight="balanced"`; King & Zeng 2001. The mean over the rows is 1.

    Example:
        >>> from qwen_task_heads.losses.class_balance import balanced_class_weights
        >>> balanced_class_weights([30, 10])
        tensor([0.6667, 2.0000])
    """
    present = sum(1 for count in counts if count)
    return torch.tensor([sum(counts) / (present * count) if count else 1.0 for count in counts])


def balanced_pos_weight(counts: Sequence[int], *, rows: int) -> Tensor:
    """Return negatives over positives of each label, (K,) fp32; 1 if all or none of the rows have it.

    Source: the documentation of torch.nn.BCEWithLogitsLoss.
    """
    return torch.tensor([(rows - count) / count if 0 < count < rows else 1.0 for count in counts])


def read_weights(
    value: Any, *, flag: str, num_labels: int, class_counts: Sequence[int] | None, rows: int | None
) -> tuple[Tensor, list[Problem]]:
    """Return weights (K,) of `--class_weights` or `--pos_weight`, and their problems.

    Args:
        value: `"balanced"`, or K positive numbers, also as strings from a command line.
        flag: the option, for messages; it also selects the formula of `balanced`.
        num_labels: K.
        class_counts: n_k of the training set; if None, given class weights are not rescaled.
        rows: number of training rows, for a balanced `--pos_weight`.
    """
    expected = f"balanced, or {num_labels} numbers above 0"
    words = [value] if isinstance(value, str | int | float) else list(value)
    ones = torch.ones(num_labels)
    if words == ["balanced"]:
        if class_counts is None or (flag == "--pos_weight" and rows is None):
            return ones, [counts_problem(f"{flag} balanced")]
        if flag == "--pos_weight":
            return balanced_pos_weight(class_counts, rows=rows or 0), []
        return balanced_class_weights(class_counts), []
    try:
        numbers = [float(word) for word in words]
    except (TypeError, ValueError):
        fix = "give balanced or the numbers"
        return ones, [Problem(flag, f"found {shorten(words)}", expected, fix, code="option-value")]
    problems = []
    if len(numbers) != num_labels:
        fix = "give one per label, in the order of the label ids"
        problems.append(Problem(flag, f"found {len(numbers)} numbers", expected, fix, code="option-value"))
    if invalid := [number for number in numbers if not (math.isfinite(number) and number > 0)]:
        fix = "drop rows of labels that should not count from the data"
        problems.append(
            Problem(flag, f"found {', '.join(map(str, invalid))}", expected, fix, code="option-range")
        )
    if problems:
        return ones, problems
    weights = torch.tensor(numbers)
    # pos_weight is not rescaled: it weighs presence against absence of one label, not rows against rows.
    if flag == "--class_weights" and class_counts is not None and any(class_counts):
        counts = torch.tensor(class_counts, dtype=torch.float32)
        weights = weights * (counts.sum() / (counts * weights).sum())
    return weights, []


def counts_problem(where: str) -> Problem:
    """Return the problem of a loss that needs the counts of the labels and has none."""
    problem, expected = "found no counts of the labels", "a training set with a length"
    return Problem(where, problem, expected, "pass class_counts", code="option-unsupported")


def absent_label_messages(
    options: Mapping[str, Any],
    is_adjusted: bool,
    counts: Sequence[int] | None,
    *,
    rows: int | None,
    labels: Sequence[str],
) -> list[str]:
    """Return messages on labels that no training row has, if the loss depends on the counts."""
    if counts is None:
        return []
    absent = [label_id for label_id, count in enumerate(counts) if not count]
    messages = []
    if absent and options.get("class_weights") in ("balanced", ["balanced"]):
        messages.append(f"no training row has {_names(absent, labels)}: the balanced weight is 1")
    if absent and is_adjusted:
        messages.append(f"no training row has {_names(absent, labels)}: the prior is that of half a row")
    if options.get("pos_weight") in ("balanced", ["balanced"]):
        constant = [label_id for label_id, count in enumerate(counts) if count in (0, rows)]
        if constant:
            messages.append(
                f"all or none of the training rows have {_names(constant, labels)}: the pos_weight is 1"
            )
    return messages


def _names(label_ids: Sequence[int], labels: Sequence[str]) -> str:
    names = [repr(labels[index]) if labels else f"label {index}" for index in label_ids[:LABELS_SHOWN]]
    more = len(label_ids) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
