"""Messages on the labels of a run: their number, origin and names, and unusual labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen_task_heads.data.example_columns import are_soft, label_counts
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.label_schemes import Scheme
from qwen_task_heads.data.question_records import question_lines
from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.labels.label_map import LabelMap, few_names
from qwen_task_heads.sources.keys import text_key


def one_class(train: Sequence[TextExample], scheme: Scheme, source: str) -> list[Problem]:
    """Return the problem of training rows that all have the same label, if any."""
    if scheme.problem_type in ("regression", QUESTIONS) or are_soft(train):
        return []
    counts = label_counts(train) - Counter({-1: len(train)})
    if scheme.problem_type == "multi_label_classification":
        problem = "no row has a label" if not counts else ""
    elif len(counts) == 1:
        problem = f"every row has the label {shorten(scheme.labels.names[next(iter(counts))])}"
    else:
        problem = ""
    expected, fix = "rows of at least two labels", "add rows of other labels"
    return [Problem(source, problem, expected, fix, code="rows-too-few")] if problem else []


def label_lines(train: Sequence[TextExample], scheme: Scheme) -> list[str]:
    """Return messages on the number, origin and names of the labels, and on unusual labels."""
    names = scheme.labels.names
    if scheme.questions:
        return question_lines(scheme.questions, [row.target for row in train])
    if scheme.problem_type == "regression":
        scores = f"{len(names):,} score{'' if len(names) == 1 else 's'}"
        return [f"labels: {scores} ({few_names(names)}), by {scheme.origin}"]
    lines = [f"labels: {len(names):,} by {scheme.origin} ({few_names(names)})"]
    counts = label_counts(train)
    never = [name for place, name in enumerate(names) if place not in counts]
    if never:
        lines.append(f"labels: {len(never):,} without rows in train ({few_names(never)})")
    joined = [name for name in names if "|" in name and {*map(str.strip, name.split("|"))} <= {*names}]
    if joined and scheme.problem_type != "multi_label_classification":
        lines.append(
            f"labels: {len(joined):,} are others joined by '|' ({few_names(joined)}); for several labels in "
            "a row, name the column 'labels'"
        )
    folded = scheme.labels.folded
    if len(folded) < len(names):
        similar = [name for name in names if folded[text_key(name)] != name]
        differ = f"{len(similar):,} differ from others only in case, width or spacing"
        lines.append(f"labels: {differ} ({few_names(similar)})")
    return lines


def example_lines(splits: Mapping[str, Sequence[TextExample]], labels: LabelMap) -> list[str]:
    """Return a message for each of dev and test that has examples of the labels among its texts."""
    own = zip(labels.names, labels.examples, strict=False)  # `examples` is () without any
    examples = [(name, text_key(text)) for name, texts in own for text in texts]
    lines: list[str] = []
    for split in ("dev", "test") if examples else ():
        texts_of_split = {
            # `few_shot` joins the texts of a pair in the same way
            text_key(f"{row.text}\n{row.text_b}" if row.text_b else row.text): row.source
            for row in reversed(splits.get(split, []))  # so that the first of equal texts is named
        }
        seen = [(name, texts_of_split[key]) for name, key in examples if key in texts_of_split]
        if seen:
            subject = "example of a label is" if len(seen) == 1 else "examples of labels are"
            name, where = seen[0]
            lines.append(
                f"labels: {len(seen):,} {subject} in {split}: with {{examples}} in the instruction, metrics "
                f"on {split} are too high (first: of {shorten(name, 40)}, as {Path(where).name})"
            )
    return lines
