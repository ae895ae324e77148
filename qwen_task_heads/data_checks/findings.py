"""A finding of a data check, and the order of severities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

NOTE, WARNING, ERROR = SEVERITIES = ("note", "warning", "error")
EXIT_CODES = {NOTE: 0, WARNING: 3, ERROR: 1}  # 2 is the code of a wrong command line
SHOWN = 3  # places named in a line
KEPT = 200  # places kept for JSON and HTML

# Code of a finding -> what it says. The codes are stable.
CODES = {
    "duplicate": "rows that repeat an earlier one",
    "contradiction": "equal texts with other labels, or reversed pairs",
    "equal-titles": "titles of a pair that differ only in case, width or spacing",
    "swapped-rows": "pairs whose votes or clicks prefer the rejected title",
    "frequent-text": "a text that several rows have",
    "preference-cycle": "preferences that go in a circle",
    "damaged-text": "text that was decoded with the wrong encoding",
    "overlap-exact": "rows of dev or test that are in train",
    "overlap-normalised": "the same up to case, width and spacing",
    "overlap-swapped": "the same in the other order",
    "overlap-near": "rows of dev or test that are nearly equal to a training row",
    "near-contradiction": "nearly equal training texts with other labels",
    "leak": "a lookup of train, which reads no words, is right on dev or test",
    "shared-groups": "groups with rows in train and in another split",
    "swapped-columns": "a split whose two titles are exchanged",
    "length-shortcut": "an answer that follows from the length",
    "position-shortcut": "an answer that follows from the position",
    "unread-columns": "columns that are not read",
    "column-shortcut": "an answer that follows from a column that is not read",
    "ordered-rows": "rows that are ordered by their label",
    "label-without-rows": "labels of dev or test without a training row",
    "rare-labels": "labels with few training rows",
    "dominant-label": "a label that most training rows have",
    "label-noise": "an estimate of wrong labels",
    "click-noise": "winners by chance, and the accuracy of a perfect model",
    "lengths": "lengths in characters",
    "tokens": "lengths in tokens, and what a limit cuts",
    "cost": "estimated time and memory",
}


@dataclass(frozen=True, kw_only=True)
class CheckFinding:
    """What a data check found.

    Args:
        code: one of `CODES`.
        severity: `error` if metrics or training would be invalid, `warning` if they probably suffer, `note`
            for facts about the data.
        message: one sentence with its numbers.
        fix: what to do, "" for a note without consequence.
        places: file and line of the rows, in reading order; at most `KEPT`.
        values: the numbers of the message.
    """

    code: str
    severity: str
    message: str
    fix: str = ""
    places: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        names = [PurePath(place).name for place in self.places[:SHOWN]]
        more = ", …" if len(self.places) > SHOWN else ""
        where = f" ({', '.join(names)}{more})" if names else ""
        fix = f" Fix: {self.fix}." if self.fix else ""
        return f"{self.severity}: {self.code}: {self.message}{where}.{fix}"


def by_severity(findings: Sequence[CheckFinding]) -> list[CheckFinding]:
    """Return findings with errors first, then warnings and notes, each in their order.

    Example:
        >>> from qwen_task_heads.data_checks.findings import CheckFinding, by_severity
        >>> findings = [CheckFinding(code=one, severity=one, message="") for one in ("note", "error")]
        >>> [one.severity for one in by_severity(findings)]
        ['error', 'note']
    """
    return sorted(findings, key=lambda one: -SEVERITIES.index(one.severity))


def exit_code(findings: Sequence[CheckFinding]) -> int:
    """Return the exit code of the worst finding: 0 for notes, 3 for warnings, 1 for errors."""
    return EXIT_CODES[by_severity(findings)[0].severity] if findings else 0


def kept(places: Sequence[str]) -> tuple[str, ...]:
    """Return the places that a finding keeps."""
    return tuple(places[:KEPT])


def share_of(count: int, rows: int) -> str:
    """Return a count with its share of the rows.

    Example:
        >>> share_of(12, 480)
        '12 of 480 (2.5%)'
    """
    return f"{count:,} of {rows:,} ({100 * count / max(rows, 1):.1f}%)"
