"""Checks of shortcuts: what predicts the answer without reading the text.

The measure is the accuracy of the shortcut, with a 95% interval over groups, against chance. A shortcut is
not an error, but a model can learn it, and a metric below it is worth nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwen_task_heads.data.examples import full_text
from qwen_task_heads.data.title_datasets import TitleSets
from qwen_task_heads.data_checks.checked_data import CheckedData
from qwen_task_heads.data_checks.findings import NOTE, WARNING, CheckFinding
from qwen_task_heads.metrics.ranking import spearman
from qwen_task_heads.metrics.shares import Share, share_of_groups, share_of_rows
from qwen_task_heads.metrics.title_baselines import longer_title

LARGE = 0.1  # gain over one half from which a shortcut of pairs is a warning
LARGE_SHARE = 0.25  # share of the errors of the most frequent label that a shortcut of texts avoids
SMALL = 0.03  # gain over chance from which it is a note
LEAST = 40  # rows from which shortcuts are measured
BINS = 8  # quantiles of the length of texts
MOST_VALUES = 50  # different values of a column that is compared with the answers
SIDES = ("chosen_", "rejected_")


def check_length(data: CheckedData) -> list[CheckFinding]:
    """Measure how well the length of the text, or the longer title, predicts the answer."""
    if len(data.sample) < LEAST:
        return []
    if data.noun == "pairs":
        metric = share_of_rows(longer_title(data.sample), data.sample)
        return _against_half(metric, "length-shortcut", "the longer title wins", "the shorter title wins")
    lengths = np.array([len(full_text(row)) for row in data.sample], np.float64)
    if data.problem_type == "regression":
        values = np.array([float(np.mean(row.target)) for row in data.sample])
        rho = spearman(lengths, values)
        if rho is None or abs(rho) < 0.3:
            return []
        message = f"the length of a text and its score have a Spearman correlation of {rho:.2f}"
        return [_found("length-shortcut", message, abs(rho) >= 0.5, {"spearman": rho})]
    if not data.has_classes:
        return []
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, BINS + 1)[1:-1]))
    return _class_shortcut(
        data, np.digitize(lengths, edges).tolist(), "length-shortcut", "the length of a text"
    )


def check_position(data: CheckedData) -> list[CheckFinding]:
    """Measure whether the first arm of an experiment wins, and whether rows are ordered by their label."""
    if isinstance(data.sets, TitleSets):
        credit, member = [], []
        for number, group in enumerate(data.sets.groups):
            rates = np.array(group.clicks) / np.maximum(group.impressions, 1)
            for first in range(len(rates)):
                later = rates[first + 1 :]
                credit += (0.5 + 0.5 * np.sign(rates[first] - later)).tolist()
                member += [str(number)] * len(later)
        if len(set(member)) < LEAST:
            return []
        metric = share_of_groups(credit, member)
        return _against_half(
            metric, "position-shortcut", "the earlier arm of an experiment wins", "the later arm wins"
        )
    if not data.has_classes or len(data.sample) < LEAST:
        return []
    targets = np.array([row.target for row in data.sample])
    counts = np.bincount(targets) / len(targets)
    equal, expected = float((targets[1:] == targets[:-1]).mean()), float((counts**2).sum())
    if equal < expected + 0.3:
        return []
    message = f"training rows are ordered by their label: {100 * equal:.0f}% of neighbours have the same one"
    fix = (
        "nothing, training shuffles them; but shuffle the file before you take its first rows (--max_samples)"
    )
    values = {"equal_neighbours": equal, "expected": expected}
    return [CheckFinding(code="ordered-rows", severity=NOTE, message=message, fix=fix, values=values)]


def check_unread_columns(data: CheckedData) -> list[CheckFinding]:
    """Name the columns that are not read, and find those that predict the answer."""
    unread = data.sets.unread
    named = sorted({name for names in unread.values() for name in names})
    if not named:
        return []
    shown = ", ".join(named[:10]) + (f" and {len(named) - 10:,} more" if len(named) > 10 else "")
    listed = {"columns": named}
    findings = [
        CheckFinding(code="unread-columns", severity=NOTE, message=f"not read: {shown}", values=listed)
    ]
    if len(data.sample) < LEAST:
        return findings
    for name, cells in data.columns.items():
        if data.noun == "pairs":
            findings += _column_of_pairs(data, name, cells)
        elif data.has_classes:
            findings += _column_of_texts(data, name, cells)
    return findings


def _column_of_pairs(data: CheckedData, name: str, cells: Mapping[str, Any]) -> list[CheckFinding]:
    """Compare `chosen_NAME` with `rejected_NAME`, or the share of a truth value."""
    if not name.startswith(SIDES[0]):
        return []
    other = data.columns.get(SIDES[1] + name.removeprefix(SIDES[0]), {})
    credit, kept = [], []
    for row in data.sample:
        own, its = cells.get(row.source), other.get(row.source)
        if isinstance(own, bool) and not other:
            credit.append(float(own))
        elif _is_number(own) and _is_number(its):
            credit.append(0.5 + 0.5 * float(np.sign(own - its)))  # type: ignore[operator]
        else:
            continue
        kept.append(row)
    share = float(np.mean(credit)) if credit else 0.5
    if len(credit) < LEAST or share in (0.0, 1.0):  # the answer itself, such as the click rates
        return []
    what = name if not other else f"the larger {name.removeprefix(SIDES[0])}"
    metric = share_of_rows(credit, kept)
    return _against_half(metric, "column-shortcut", f"{what} wins", f"{what} loses")


def _column_of_texts(data: CheckedData, name: str, cells: Mapping[str, Any]) -> list[CheckFinding]:
    values = [str(cells.get(row.source, ""))[:200] for row in data.sample]
    if not 2 <= len(set(values)) <= MOST_VALUES:
        return []
    return _class_shortcut(data, values, "column-shortcut", f"the column {name}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _against_half(metric: Share, code: str, above: str, below: str) -> list[CheckFinding]:
    """Return a finding if the interval of a share excludes one half, and the share differs by `SMALL`."""
    wins = metric.value >= 0.5
    own = metric if wins else Share(1 - metric.value, 1 - metric.high, 1 - metric.low)
    if own.low <= 0.5 or own.value < 0.5 + SMALL:
        return []
    message = f"{above if wins else below} in {own} of the training pairs"
    return [_found(code, message, own.value >= 0.5 + LARGE, own._asdict())]


def _class_shortcut(data: CheckedData, values: Sequence[Any], code: str, subject: str) -> list[CheckFinding]:
    """Return a finding if the most frequent label of each value is right more often than that of all rows.

    The labels are counted on one half of the rows and compared with the other half, in both directions.
    """
    targets = [row.target for row in data.sample]
    half = np.random.default_rng(0).permutation(len(targets)) % 2
    gain, right = np.zeros(len(targets)), np.zeros(len(targets))
    for side in (0, 1):
        fitted = [row for row in range(len(targets)) if half[row] == side]
        common = Counter(targets[row] for row in fitted).most_common(1)[0][0]
        by_value: dict[Any, Counter[int]] = {}
        for row in fitted:
            by_value.setdefault(values[row], Counter())[targets[row]] += 1
        for row in np.flatnonzero(half != side).tolist():
            seen = by_value.get(values[row])
            guess = seen.most_common(1)[0][0] if seen else common
            right[row] = guess == targets[row]
            gain[row] = right[row] - (common == targets[row])
    accuracy, difference = share_of_rows(right, data.sample), share_of_rows(gain, data.sample)
    if difference.low <= 0 or difference.value < SMALL:
        return []
    base = accuracy.value - difference.value
    message = (
        f"{subject} alone predicts the label of {accuracy} of the training texts, and the most frequent "
        f"label is right on {100 * base:.0f}%"
    )
    numbers = {"accuracy": accuracy.value, "most_frequent": base, "gain": difference.value}
    is_large = difference.value >= LARGE_SHARE * (1 - base)
    return [_found(code, message, is_large, numbers)]


def _found(code: str, message: str, is_large: bool, values: Mapping[str, Any]) -> CheckFinding:
    fix = "read the metrics next to this one, and add rows that break the rule" if is_large else ""
    severity = WARNING if is_large else NOTE
    return CheckFinding(code=code, severity=severity, message=message, fix=fix, values=values)
