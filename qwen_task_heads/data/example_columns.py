"""Columns of examples, whether they stand in a list or in a table: what checks and splits are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qwen_task_heads.data.example_tables import (
    Example,
    GroupTable,
    Joined,
    PairTable,
    Table,
    Target,
    TextTable,
    spans,
)
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.data.keys import KEYS, Hashes, hash_keys
from qwen_task_heads.data.stores import Numbers


def joined(parts: Sequence[Sequence[Example]]) -> Sequence[Example]:
    """Return sequences one after the other, as a table where one of them is a table."""
    full = [part for part in parts if len(part)]
    if len(full) == 1:
        return full[0]
    if any(isinstance(part, Table) for part in full):
        return Joined(full)
    return [example for part in full for example in part]


def hashed(examples: Sequence[Any], name: str) -> Hashes:
    """Return 64 bits per example of one of its texts, equal where the texts count as the same (`KEYS`)."""
    if isinstance(examples, Joined):
        return np.concatenate([np.zeros(0, np.uint64), *(hashed(part, name) for part in examples.parts)])
    if isinstance(examples, TextTable | PairTable | GroupTable):
        return examples.hashes(name)
    key = KEYS[name]
    return hash_keys(key(vars(example)[name]) for example in examples)


def arm_hashes(groups: Sequence[GroupExample]) -> tuple[Hashes, Hashes]:
    """Return the hashes of group and title of every arm of some tests."""
    if isinstance(groups, GroupTable):
        arms, tests = groups.arms()
        return groups.hashes("group")[tests], groups.title.hashes()[arms]
    titles = [KEYS["chosen"](title) for group in groups for title in group.titles]
    names = [KEYS["group"](group.group) for group in groups for _ in group.titles]
    return hash_keys(names), hash_keys(titles)


def with_groups(pairs: Sequence[PairExample], groups: Mapping[int, str]) -> Sequence[PairExample]:
    """Return the same pairs, some of them with another group.

    Args:
        pairs: a table or list.
        groups: row -> its group.
    """
    if isinstance(pairs, Joined):
        starts = [0, *pairs.ends.tolist()]
        parts = [
            {row - start: group for row, group in groups.items() if start <= row < start + len(part)}
            for start, part in zip(starts, pairs.parts, strict=False)
        ]
        return Joined([with_groups(part, own) for part, own in zip(pairs.parts, parts, strict=True)])
    if isinstance(pairs, PairTable):
        return pairs.with_groups(groups) if groups else pairs
    return [replace(pair, group=groups[row]) if row in groups else pair for row, pair in enumerate(pairs)]


def label_rows(examples: Sequence[TextExample]) -> tuple[Numbers, Numbers]:
    """Return `(rows, labels)`: a row of each label that a row has; -1 for scores, and for no label."""
    if isinstance(examples, Joined):
        found = [label_rows(part) for part in examples.parts]
        starts = [0, *examples.ends.tolist()]
        moved = [rows + start for (rows, _), start in zip(found, starts, strict=False)]
        return np.concatenate(moved), np.concatenate([labels for _, labels in found])
    targets = (
        [target for target, *_ in examples.targets]
        if isinstance(examples, TextTable)
        else [example.target for example in examples]
    )
    codes = examples.codes[examples.rows] if isinstance(examples, TextTable) else np.arange(len(targets))
    labels = [_labels(target) for target in targets]
    sizes = np.array([len(own) for own in labels], np.int64)
    flat = np.array([label for own in labels for label in own], np.int64)
    first = np.cumsum(sizes) - sizes
    places = spans(first[codes], first[codes] + sizes[codes])
    return np.repeat(np.arange(len(codes)), sizes[codes]), flat[places]


def _labels(target: Target) -> tuple[int, ...]:
    if isinstance(target, int):
        return (target,)
    return tuple(label for label in target if isinstance(label, int)) or (-1,)


def label_counts(examples: Sequence[TextExample]) -> Counter[int]:
    """Return the number of rows that have each label."""
    labels, counts = np.unique(label_rows(examples)[1], return_counts=True)
    return Counter(
        {label: n for label, n in zip(labels.tolist(), counts.tolist(), strict=True) if label >= 0}
    )


def are_soft(examples: Sequence[TextExample]) -> bool:
    """Return whether some row states probabilities."""
    if isinstance(examples, Joined):
        return any(map(are_soft, examples.parts))
    if isinstance(examples, TextTable):
        used = np.unique(examples.codes[examples.rows]).tolist()
        return any(examples.targets[code][1] for code in used)
    return any(example.soft for example in examples)


def rows_containing(examples: Sequence[TextExample], mark: str) -> Numbers:
    """Return the rows of which one of the texts contains `mark`, in their order."""
    if isinstance(examples, TextTable):
        stored = np.union1d(examples.text.containing(mark), examples.text_b.containing(mark))
        return np.flatnonzero(np.isin(examples.rows, stored)) if len(stored) else stored
    found = (row for row, one in enumerate(examples) if mark in one.text or mark in one.text_b)
    return np.fromiter(found, np.int64)
