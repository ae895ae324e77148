"""Checks of labels: classes without rows, rare classes, one dominant class, and the share of wrong labels."""

from __future__ import annotations

import numpy as np

from qwen_task_heads.data.example_columns import are_soft, label_counts
from qwen_task_heads.data_checks.checked_data import CheckedData
from qwen_task_heads.data_checks.findings import NOTE, WARNING, CheckFinding, kept, share_of
from qwen_task_heads.errors import shorten
from qwen_task_heads.labeling.confident_learning import audit_labels

RARE = 5  # training rows of a label below which it is rare
DOMINANT = 0.8  # share of a label from which accuracy says little
NOISY = 0.05  # estimated share of wrong labels from which the finding is a warning
RELIABLE = 0.75  # out-of-fold accuracy from which wrong labels are distinguished from errors of the model
LEAST = 200  # rows from which the share of wrong labels is estimated


def check_balance(data: CheckedData) -> list[CheckFinding]:
    """Find labels without training rows, labels with few, and a label that most rows have."""
    if not data.labels:
        return []
    counts = {split: label_counts(rows) for split, rows in data.splits.items()}
    train, findings = counts["train"], []
    for split in ("dev", "test"):
        absent = [data.labels[label] for label in counts.get(split, {}) if label >= 0 and not train[label]]
        if absent:
            message = f"{len(absent):,} labels of {split} have no training row: {_listed(absent)}"
            fix = "add rows of these labels to train, or cut the splits again: --test_fraction 0.1"
            findings.append(_finding("label-without-rows", WARNING, message, fix, labels=absent, split=split))
    rare = [name for label, name in enumerate(data.labels) if train[label] < RARE]
    if rare:
        severity = WARNING if len(rare) > 0.1 * len(data.labels) else NOTE
        subject = f"{len(rare):,} of {len(data.labels):,} labels"
        message = f"{subject} have fewer than {RARE} training rows: {_listed(rare)}"
        fix = "add rows of these labels, or merge them with others"
        findings.append(_finding("rare-labels", severity, message, fix, labels=rare))
    most, count = max(enumerate(train[label] for label in range(len(data.labels))), key=lambda one: one[1])
    share = count / len(data.sets.train)
    if data.has_classes and share >= max(DOMINANT, 2 / len(data.labels)):
        message = f"{100 * share:.0f}% of the training rows have the label {shorten(data.labels[most], 40)}"
        fix = "read macro-F1 and not accuracy: --metric_for_best_model eval_macro_f1"
        findings.append(
            _finding("dominant-label", WARNING, message, fix, share=share, label=data.labels[most])
        )
    return findings


def check_label_noise(data: CheckedData) -> list[CheckFinding]:
    """Estimate the share of wrong labels by confident learning on TF-IDF (`confident_learning`)."""
    if not data.has_classes or len(data.sample) < LEAST or are_soft(data.sample):
        return []
    if min(np.bincount([row.target for row in data.sample])) < 2:
        return []
    audit = audit_labels(data.sample, num_labels=len(data.labels))
    share = audit.wrong / len(data.sample)
    values = {"share": share, "accuracy": audit.accuracy, "rows": audit.wrong}
    if audit.accuracy < RELIABLE:  # its own errors would be counted as wrong labels
        message = f"not estimated: a linear model is right on only {100 * audit.accuracy:.0f}% of unseen rows"
        return [CheckFinding(code="label-noise", severity=NOTE, message=message, values=values)]
    is_much = share >= NOISY
    return [
        CheckFinding(
            code="label-noise",
            severity=WARNING if is_much else NOTE,
            message=f"about {share_of(audit.wrong, len(data.sample))} training labels look wrong to a linear "
            f"model of the other rows, which is right on {100 * audit.accuracy:.0f}%",
            fix="review the most suspicious rows: qth audit" if is_much else "",
            places=kept([data.sample[row].source for row in audit.order[: audit.wrong]]),
            values=values,
        )
    ]


def _listed(names: list[str]) -> str:
    shown = ", ".join(shorten(name, 30)[1:-1] for name in names[:5])
    return shown + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _finding(code: str, severity: str, message: str, fix: str, **values: object) -> CheckFinding:
    return CheckFinding(code=code, severity=severity, message=message, fix=fix, values=values)
