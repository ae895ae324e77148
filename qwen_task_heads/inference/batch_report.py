"""Report of a batch prediction: counts of its answers and a summary to print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ERROR = "error"  # the column of a row that could not be read
LABELS_SHOWN = 20


@dataclass
class FileReport:
    """Counts of a finished file; filled by `counted`.

    Args:
        output: the file of answers.
        rows: number of written rows.
        errors: number of rows with an error instead of an answer.
        labels: number of predictions of each label; None counts abstentions and rows without a label.
        scores: for models with one score: `least`, `mean` and `largest`.
        seconds: time from the start to the finished file.
        resumed: number of rows computed by an earlier start.
        notes: messages that help to interpret the answers.
        speed: a summary of the model's speed in this process; "" if it computed nothing.

    Example:
        >>> from pathlib import Path
        >>> from qwen_task_heads.inference.batch_report import FileReport
        >>> report = FileReport(Path("out.jsonl"), seconds=2.0)
        >>> list(report.counted([{"label": "sport"}, {"error": "..."}], prefix=""))
        [{'label': 'sport'}, {'error': '...'}]
        >>> print(report)
        2 rows in = 1 with an answer + 1 with an error, in 2.0 s (1 rows/s)
        labels: sport 1 (100.0%)
        the answers are in out.jsonl; next: head -n 3 'out.jsonl'
    """

    output: Path
    rows: int = 0
    errors: int = 0
    labels: Counter[str | None] = field(default_factory=Counter)
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    resumed: int = 0
    notes: list[str] = field(default_factory=list)
    speed: str = ""

    def counted(self, rows: Any, *, prefix: str) -> Iterator[dict[str, Any]]:
        """Yield the rows and count their answers, whose column names start with `prefix`."""
        label, labels, score = f"{prefix}label", f"{prefix}labels", f"{prefix}score"
        total, least, largest = 0.0, float("inf"), float("-inf")
        for row in rows:
            self.rows += 1
            if label in row:
                self.labels[row[label]] += 1
            elif labels in row:
                self.labels.update(row[labels] or [None])
            elif score in row:
                total += row[score]
                least, largest = min(least, row[score]), max(largest, row[score])
            elif ERROR in row:
                self.errors += 1
            yield row
        if largest >= least:
            self.scores = {"least": least, "mean": total / (self.rows - self.errors), "largest": largest}

    def __str__(self) -> str:
        answered = self.rows - self.errors
        rate = (self.rows - self.resumed) / max(self.seconds, 1e-9)
        lines = [
            f"{self.rows:,} rows in = {answered:,} with an answer + {self.errors:,} with an error, "
            f"in {self.seconds:,.1f} s ({rate:,.0f} rows/s)"
        ]
        if self.resumed:
            lines.append(f"{self.resumed:,} of them were computed by an earlier start: not in the rate")
        lines += [f"note: {note}" for note in self.notes]
        if self.labels:
            counts = [
                f"{'(none)' if name is None else name} {count:,} ({count / answered:.1%})"
                for name, count in self.labels.most_common(LABELS_SHOWN)
            ]
            rest = len(self.labels) - LABELS_SHOWN
            lines.append("labels: " + ", ".join(counts) + (f", and {rest} other labels" if rest > 0 else ""))
        if self.scores:
            lines.append("scores: " + ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items()))
        lines += [self.speed] * bool(self.speed)
        return "\n".join([*lines, f"the answers are in {self.output}; next: head -n 3 '{self.output}'"])
