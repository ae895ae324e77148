"""Read columns of examples, from lists and tables, for checks and splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.example_tables import GroupTable, PairTable, Target, TextTable
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.data.keys import KEYS, Hashes, hash_keys
from qwen_task_heads.data.sequences import Example, Joined, Table
from qwen_task_heads.data.stores import Numbers

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


def labels_at(examples: Sequence[TextExample], row: int) -> tuple[int, ...]:
    """Return the labels of a row, or -1 for scores and for rows without a label."""
    if isinstance(examples, Joined):
        part = int(np.searchsorted(examples.ends, row, side="right"))
        return labels_at(examples.parts[part], row - (int(examples.ends[part - 1]) if part else 0))
    if isinstance(examples, TextTable):
        return _labels(examples.targets[examples.row_codes_at(row)][0])
    return _labels(examples[row].target)


def label_counts(examples: Sequence[TextExample]) -> Counter[int]:
    """Return the number of rows with each label; -1 counts scores and rows without a label."""
    if isinstance(examples, Joined):
        return sum(map(label_counts, examples.parts), Counter())
    counts: Counter[int] = Counter()
    if isinstance(examples, TextTable):
        for code, count in enumerate(np.bincount(examples.row_codes()).tolist()):
            counts.update(dict.fromkeys(_labels(examples.targets[code][0]) if count else (), count))
        return counts
    for example in examples:
        counts.update(_labels(example.target))
    return counts


def rarest_labels(examples: Sequence[TextExample], counts: Mapping[int, int]) -> NDArray[np.int64 | np.int32]:
    """Return the rarest label of each row; of several, the smallest number."""

    def rarest(target: Target) -> int:
        return min(_labels(target), key=lambda label: (counts[label], label))

    if isinstance(examples, Joined):
        return np.concatenate([rarest_labels(part, counts) for part in examples.parts])
    if isinstance(examples, TextTable):
        codes = examples.row_codes()
        used = set(np.flatnonzero(np.bincount(codes)).tolist())
        of_code = [
            rarest(target) if code in used else -1 for code, (target, *_) in enumerate(examples.targets)
        ]
        return np.array(of_code, np.int32)[codes]
    return np.array([rarest(example.target) for example in examples], np.int32)


def _labels(target: Target) -> tuple[int, ...]:
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


def are_soft(examples: Sequence[TextExample]) -> bool:
    """Return whether any row has probabilities."""
    if isinstance(examples, Joined):
        return any(map(are_soft, examples.parts))
    if isinstance(examples, TextTable):
        used = np.unique(examples.row_codes()).tolist()
        return any(examples.targets[code][1] for code in used)
    return any(example.soft for example in examples)


def rows_containing(examples: Sequence[TextExample], mark: str) -> Numbers:
    """Return the rows with `mark` in one of their texts, in their order."""
    if isinstance(examples, TextTable):
        stored = np.union1d(examples.text.containing(mark), examples.text_b.containing(mark))
        if examples.rows is None or not len(stored):
            return stored
        return np.flatnonzero(np.isin(examples.rows, stored))
    rows = (row for row, one in enumerate(examples) if mark in one.text or mark in one.text_b)
    return np.fromiter(rows, np.int64)
