"""What a run is told of the labels of its texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from qwen_task_heads.data.example_columns import are_soft, label_counts
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.keys import text_key
from qwen_task_heads.data.label_schemes import SHOWN, Scheme
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.errors import Problem, shorten


def one_class(train: Sequence[TextExample], scheme: Scheme, source: str) -> list[Problem]:
    """Nothing can be learnt where all rows say the same."""
    if scheme.problem_type == "regression" or are_soft(train):
        return []
    counts = label_counts(train) - Counter({-1: len(train)})
    if scheme.problem_type == "multi_label_classification":
        found = "no row has a label" if not counts else ""
    else:
        found = f"every row is {shorten(scheme.labels.names[next(iter(counts))])}" if len(counts) == 1 else ""
    accepted = "rows of at least two labels"
    return [Problem(source, found, accepted, "add rows of other labels")] if found else []


def label_lines(train: Sequence[TextExample], scheme: Scheme) -> list[str]:
    """What the labels are, where they come from, and which of them are odd."""
    names = scheme.labels.names
    if scheme.problem_type == "regression":
        scores = f"{len(names):,} score{'' if len(names) == 1 else 's'}"
        return [f"labels: {scores} ({_few(names)}), by {scheme.origin}"]
    lines = [f"labels: {len(names):,} by {scheme.origin} ({_few(names)})"]
    counts = label_counts(train)
    never = [name for place, name in enumerate(names) if place not in counts]
    if never:
        lines.append(f"labels: {len(never):,} never stand in train ({_few(never)})")
    joined = [name for name in names if "|" in name and {*map(str.strip, name.split("|"))} <= {*names}]
    if joined and scheme.problem_type != "multi_label_classification":
        found = f"{len(joined):,} are others joined by '|' ({_few(joined)})"
        lines.append(f"labels: {found}: a column 'labels' has several in a row")
    folded = scheme.labels.folded
    if len(folded) < len(names):
        alike = [name for name in names if folded[text_key(name)] != name]
        found = f"{len(alike):,} differ from others only in case, width or spacing"
        lines.append(f"labels: {found} ({_few(alike)})")
    return lines


def shown_lines(sets: Mapping[str, Sequence[TextExample]], labels: LabelMap) -> list[str]:
    """Examples of labels that are also measured on, per set."""
    own = zip(labels.names, labels.examples, strict=False)  # without any, they are ()
    shown = [(name, text_key(text)) for name, texts in own for text in texts]
    lines: list[str] = []
    for role in ("dev", "test") if shown else ():
        measured = {
            # as few_shot shows a pair
            text_key(f"{row.text}\n{row.text_b}" if row.text_b else row.text): row.source
            for row in reversed(sets.get(role, []))  # the first of several is named
        }
        if seen := [(name, measured[key]) for name, key in shown if key in measured]:
            stand = "example of a label stands" if len(seen) == 1 else "examples of labels stand"
            name, where = seen[0]
            lines.append(
                f"labels: {len(seen):,} {stand} in {role}: with {{examples}} in the instruction, figures on "
                f"{role} flatter (first: of {shorten(name, 40)}, as {Path(where).name})"
            )
    return lines


def _few(names: Iterable[str]) -> str:
    listed = [shorten(name, 40) for name in islice(names, SHOWN + 1)]
    return ", ".join(listed[:SHOWN]) + (", …" if len(listed) > SHOWN else "")
