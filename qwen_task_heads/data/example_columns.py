"""Read columns of examples, from lists and tables, for checks and splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.example_tables import GroupTable, PairTable, Target, TextTable
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.data.sequences import Example, Joined, Table
from qwen_task_heads.data.stores import Numbers
from qwen_task_heads.sources.keys import KEYS, Hashes, hash_keys

CodedTarget = tuple[Target, tuple[float, ...] | None, tuple[str, ...]]
EMPTY_GROUP, EMPTY_TEXT, EMPTY_PROMPT = hash_keys(KEYS[name]("") for name in ("group", "text_b", "prompt"))


def joined(parts: Sequence[Sequence[Example]]) -> Sequence[Example]:
    """Return sequences one after the other, as a table if any of them is a table."""
    filled = [part for part in parts if len(part)]
    if len(filled) == 1:
        return filled[0]
    if any(isinstance(part, Table) for part in filled):
        return Joined(filled)
    return [example for part in filled for example in part]


def hashed(examples: Sequence[Any], name: str) -> Hashes:
    """Return 64 bits per example for one of its texts, equal if the texts count as the same (`KEYS`)."""
    if isinstance(examples, Joined):
        return np.concatenate([np.zeros(0, np.uint64), *(hashed(part, name) for part in examples.parts)])
    if isinstance(examples, TextTable | PairTable | GroupTable):
        return examples.hashes(name)
    key = KEYS[name]
    return hash_keys(key(vars(example)[name]) for example in examples)


def group_keys(examples: Sequence[Any]) -> Hashes:
    """Return the different hashes of the stated groups, sorted."""
    keys = np.unique(hashed(examples, "group"))
    return keys[keys != EMPTY_GROUP]


def arm_hashes(groups: Sequence[GroupExample]) -> tuple[Hashes, Hashes]:
    """Return the hashes of group and title of every arm of some experiments."""
    if isinstance(groups, GroupTable):
        arms, experiments = groups.arms()
        return groups.hashes("group")[experiments], groups.title.hashes()[arms]
    titles = [KEYS["chosen"](title) for group in groups for title in group.titles]
    names = [KEYS["group"](group.group) for group in groups for _ in group.titles]
    return hash_keys(names), hash_keys(titles)


def with_groups(pairs: Sequence[PairExample], groups: Mapping[int, str]) -> Sequence[PairExample]:
    """Return the same pairs, some of them with another group.

    Args:
        pairs: a table or list.
        groups: map of rows to their new group.
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


def coded_targets(examples: Sequence[TextExample]) -> tuple[NDArray[np.int32], Sequence[CodedTarget]]:
    """Return a code for each row, and the `(target, soft, candidates)` of each code.

    The code of a score is that of all scores of its source.
    """
    if isinstance(examples, Joined):
        parts = [coded_targets(part) for part in examples.parts]
        starts = np.cumsum([0, *(len(targets) for _, targets in parts)]).tolist()
        codes = [part + start for (part, _), start in zip(parts, starts, strict=False)]
        empty = np.zeros(0, np.int32)
        return np.concatenate([empty, *codes]), [target for _, targets in parts for target in targets]
    if isinstance(examples, TextTable):
        return examples.row_codes(), examples.targets
    targets = [(example.target, example.soft, example.candidates) for example in examples]
    return np.arange(len(targets), dtype=np.int32), targets


def row_labels(examples: Sequence[TextExample]) -> Callable[[int], tuple[int, ...]]:
    """Return a function from a row to its labels, -1 for scores and for rows without a label."""
    codes, targets = coded_targets(examples)
    return lambda row: _labels(targets[codes[row]])


def label_counts(examples: Sequence[TextExample]) -> Counter[int]:
    """Return the number of rows with each label; -1 counts scores and rows without a label."""
    codes, targets = coded_targets(examples)
    counts: Counter[int] = Counter()
    for code, count in enumerate(np.bincount(codes).tolist()):
        counts.update(dict.fromkeys(_labels(targets[code]) if count else (), count))
    return counts


def rarest_labels(examples: Sequence[TextExample], counts: Mapping[int, int]) -> NDArray[np.int32]:
    """Return the rarest label of each row; of several, the smallest number."""
    codes, targets = coded_targets(examples)
    rarest = np.full(len(targets), -1, np.int32)
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        rarest[code] = min(_labels(targets[code]), key=lambda label: (counts[label], label))
    return rarest[codes]


def are_soft(examples: Sequence[TextExample]) -> bool:
    """Return whether any row has probabilities."""
    codes, targets = coded_targets(examples)
    return any(targets[code][1] for code in np.flatnonzero(np.bincount(codes)).tolist())


def _labels(coded: CodedTarget) -> tuple[int, ...]:
    target = coded[0]
    if isinstance(target, int):
        return (target,)
    return tuple(label for label in target if isinstance(label, int)) or (-1,)


def numbers_of(examples: Sequence[Any], name: str) -> NDArray[np.float64] | None:
    """Return `margin`, `preference` or `weight` of each example; None if any example has no value."""
    if isinstance(examples, Joined):
        parts = [numbers_of(part, name) for part in examples.parts]
        return None if any(part is None for part in parts) else np.concatenate(parts)  # type: ignore[arg-type]
    if isinstance(examples, PairTable | TextTable):
        values = examples.numbers(name)
        return None if np.isnan(values).any() else values
    given = [vars(example)[name] for example in examples]
    return None if any(value is None for value in given) else np.array(given, np.float64)


def rows_containing(examples: Sequence[TextExample], mark: str) -> Numbers:
    """Return the rows with `mark` in one of their texts, in their order."""
    if isinstance(examples, TextTable):
        stored = np.union1d(examples.text.containing(mark), examples.text_b.containing(mark))
        if examples.rows is None or not len(stored):
            return stored
        return np.flatnonzero(np.isin(examples.rows, stored))
    rows = (row for row, one in enumerate(examples) if mark in one.text or mark in one.text_b)
    return np.fromiter(rows, np.int64)
