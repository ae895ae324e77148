"""Split data by a hash of the group, so that the split does not depend on the order of rows.

Each group is in one split only, and so is each title (up to case, width, spacing). Groups that share a title
stay together, also through a chain of shared titles, so that no headline is in both train and dev. The size
of a split is not exact, because connected groups move as a whole. New rows may move other rows, because they
may connect groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.example_columns import (
    EMPTY_GROUP,
    EMPTY_PROMPT,
    EMPTY_TEXT,
    arm_hashes,
    hashed,
    label_counts,
    rarest_labels,
    row_labels,
    with_groups,
)
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.data.sequences import blocks, index, pick
from qwen_task_heads.data.stores import Numbers
from qwen_task_heads.errors import error_at
from qwen_task_heads.sources.keys import (
    KEYS,
    Hashes,
    combine,
    components,
    hash_keys,
    repeated,
    slices,
    text_key,
    within,
)


def split_by_group(
    pairs: Sequence[PairExample],
    *,
    dev_fraction: float = 0.1,
    salt: str = "",
    titles_apart: bool = True,
    groups: Sequence[GroupExample] = (),
    held_out: str = "dev",
) -> tuple[Sequence[PairExample], Sequence[PairExample]]:
    """Split pairs into train and dev.

    Args:
        pairs: any order; `assign_groups` adds missing groups.
        dev_fraction: expected share of groups in dev, between 0 and 1, both excluded.
        salt: another salt gives another split.
        titles_apart: whether each title is in one split only. False keeps only groups apart, for data in
            which a few stock titles have many prompts and connect most groups.
        groups: experiments of the same data, whose titles are kept apart too, with or without pairs.
        held_out: name of the second split, for messages: `dev` or `test`.

    Returns:
        `(train, dev)`, each in the order of `pairs`, with every `group` filled.

    Raises:
        TaskHeadsError: the fraction is out of range, or a split would be empty.

    Example:
        >>> pairs = [PairExample(chosen=f"a{i}", rejected=f"b{i}", group=f"t{i}") for i in range(100)]
        >>> train, dev = split_by_group(pairs, dev_fraction=0.2)
        >>> len(train) + len(dev), {pair.group for pair in train} & {pair.group for pair in dev}
        (100, set())
    """
    check_fraction(dev_fraction, f"{held_out}_fraction")
    grouped = assign_groups(pairs)
    names = _group_names(grouped, groups if titles_apart else (), titles_apart=titles_apart)
    units = np.unique(names)
    shares = _shares(salt, units)
    in_dev = shares < dev_fraction
    if len(units) > 1 and in_dev.all() | ~in_dev.any():
        # With few groups, a split may be empty; it gets the group with the nearest hash.
        order = np.lexsort((units, shares))
        in_dev[order[0]], in_dev[order[-1]] = True, False
    dev_rows = in_dev[np.searchsorted(units, names)]
    train, dev = pick(grouped, np.flatnonzero(~dev_rows)), pick(grouped, np.flatnonzero(dev_rows))
    if not train or not dev:
        problem = f"the {held_out if train else 'train'} split of {len(grouped):,} pairs would be empty"
        problem += f" ({len(units):,} independent groups)"
        fix = f"give a {held_out} file (--{held_out}_dataset), or add pairs of other titles"
        if titles_apart and len({pair.group for pair in grouped}) > 1:
            fix += ", or pass titles_apart=False, as stock titles connect the groups"
        raise error_at("split", problem, "pairs in both splits", fix, code="rows-too-few")
    return train, dev


def titles_tie(pairs: Sequence[PairExample], groups: Sequence[GroupExample] = ()) -> bool:
    """Return whether shared titles connect more than half of the groups, which prevents a useful split.

    Example:
        >>> pairs = [PairExample(chosen=f"a{i}", rejected="A plain title", group=f"t{i}") for i in range(9)]
        >>> titles_tie(pairs)
        True
    """
    own_groups, places = np.unique(hashed(pairs, "group"), return_index=True)
    connected = _group_names(pairs, groups, titles_apart=True)[places]
    largest = np.unique(connected, return_counts=True)[1].max(initial=0)
    return bool(largest > max(len(own_groups) / 2, 1))


def _group_names(
    pairs: Sequence[PairExample], groups: Sequence[GroupExample], *, titles_apart: bool
) -> Hashes:
    """Return the name of the connected groups of each pair."""
    own = hashed(pairs, "group")
    edges = [_unique_edges(own, own)]
    known = np.zeros(0, np.uint64)  # edges of arms, which include those of their pairs
    if len(groups):
        edges.append(arm_hashes(groups))
        known = np.sort(combine(*edges[-1]))
    for part in blocks(pairs) if titles_apart else ():
        for name in ("chosen", "rejected"):
            one, other = _unique_edges(hashed(part, "group"), hashed(part, name))
            new = ~within(combine(one, other), known)
            edges.append((one[new], other[new]))
    nodes, names = components(edges)
    return names[np.searchsorted(nodes, own)]


def _unique_edges(one: Hashes, other: Hashes) -> tuple[Hashes, Hashes]:
    """Remove repeated edges."""
    _, first = np.unique(combine(one, other), return_index=True)
    return one[first], other[first]


def assign_groups(pairs: Sequence[PairExample]) -> Sequence[PairExample]:
    """Fill missing groups: by the prompt, and without a prompt by shared titles.

    The key is a hash of the prompt, or the smallest hash of the connected titles, so that it does not depend
    on the order of pairs. Existing groups are kept.

    Example:
        >>> pairs = [PairExample(chosen="A", rejected="B"), PairExample(chosen="b", rejected="C")]
        >>> one, two = assign_groups(pairs)
        >>> one.group == two.group
        True
    """
    missing = np.flatnonzero(hashed(pairs, "group") == EMPTY_GROUP)
    if not len(missing):
        return pairs
    ungrouped = pick(pairs, missing)
    prompts = hashed(ungrouped, "prompt")
    without_prompt = np.flatnonzero(prompts == EMPTY_PROMPT)
    names = [f"prompt-{key:016x}" for key in prompts.tolist()]
    if len(without_prompt):
        titles = [
            (text_key(pair.chosen), text_key(pair.rejected)) for pair in pick(ungrouped, without_prompt)
        ]
        chosen, rejected = (hash_keys(column) for column in zip(*titles, strict=True))
        nodes, smallest = components([(chosen, rejected)])
        keys = smallest[np.searchsorted(nodes, chosen)].tolist()
        for place, key in zip(without_prompt.tolist(), keys, strict=True):
            names[place] = f"titles-{key:016x}"
    return with_groups(pairs, dict(zip(missing.tolist(), names, strict=True)))


def split_texts(
    examples: Sequence[TextExample], *, dev_fraction: float = 0.1, salt: str = "", held_out: str = "dev"
) -> tuple[Sequence[TextExample], Sequence[TextExample], str]:
    """Split texts into train and dev, with about the same share of every label.

    A unit is a set of rows that stay together: rows of one `group`, with an equal text (up to case, width,
    spacing) or with an equal second text. The units of each label are ordered by their hash, and dev gets the
    first ones up to the fraction. A remainder of less than one row is carried over to the next label. Every
    label keeps rows in train. (A split by hash alone leaves a label of 10 rows out of dev in a third of all
    cases.) The split does not depend on the order of rows, and new rows move few others.

    Args:
        examples: any order. Several labels in a row count as the rarest of them; scores as one label.
        dev_fraction: expected share of rows in dev, between 0 and 1, both excluded.
        salt: another salt gives another split.
        held_out: name of the second split, for messages: `dev` or `test`.

    Returns:
        `(train, dev, note)`, both in the order of `examples`. The note is "", or states that second texts are
        not kept apart, because a few of them occur in so many rows that they connect most rows.

    Raises:
        TaskHeadsError: the fraction is out of range, or a split would be empty.

    Example:
        >>> texts = [TextExample(text=f"text {i}", target=i % 2) for i in range(100)]
        >>> train, dev, _ = split_texts(texts)
        >>> len(train), sorted(text.target for text in dev)
        (90, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    """
    check_fraction(dev_fraction, f"{held_out}_fraction")
    units, note = _Units(_components(examples, second=True)), ""
    if 2 * units.largest > max(len(examples), 40):
        looser = _Units(_components(examples, second=False))
        if looser.count > units.count:
            units, note = looser, "second texts of pairs connect most rows, and are not kept apart"
    dev_rows = _draw(examples, units, dev_fraction=dev_fraction, salt=salt)
    train, dev = pick(examples, index(~dev_rows)), pick(examples, index(dev_rows))
    if not train or not dev:
        problem = f"no rows for {held_out} among {len(examples):,} ({units.count:,} independent groups)"
        fix = f"give a {held_out} file (--{held_out}_dataset), or add rows"
        if dev_fraction < 0.5 and _has_spare_unit(examples, units):
            fix += f", or raise {held_out}_fraction"
        raise error_at("split", problem, "rows in both splits", fix, code="rows-too-few")
    return train, dev, note


class _Units:
    """Sets of rows that stay together, each identified by its first row. Units of one row use no memory.

    Args:
        names: name of the unit of each row.
    """

    def __init__(self, names: Hashes) -> None:
        self.names = names
        self.tied = repeated(names)  # rows of units with several rows
        _, first, places, sizes = np.unique(
            names[self.tied], return_index=True, return_inverse=True, return_counts=True
        )
        self.first_of_tied = self.tied[first][places]
        order = np.argsort(self.first_of_tied, kind="stable")
        self._members, self._units = self.tied[order], self.first_of_tied[order]
        self.count = len(names) - len(self.tied) + len(first)
        self.largest = int(sizes.max(initial=min(len(names), 1)))

    def rows(self, unit: int) -> list[int]:
        """Return the rows of a unit."""
        start, end = np.searchsorted(self._units, [unit, unit + 1])
        return self._members[start:end].tolist() or [unit]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows of each unit."""
        first = np.setdiff1d(np.arange(len(self.names)), self.tied)
        yield from (self.rows(unit) for unit in [*first.tolist(), *np.unique(self.first_of_tied).tolist()])

    def give_rarest(self, labels: NDArray[Any], counts: Mapping[int, int]) -> Numbers:
        """Set the label of each row to the rarest label of its unit, in place; return the larger units."""
        own = labels[self.tied]
        different, places = np.unique(own, return_inverse=True)
        rows = np.array([counts[label] for label in different.tolist()], np.int64)[places]
        order = np.lexsort((own, rows, self.first_of_tied))
        units, first = np.unique(self.first_of_tied[order], return_index=True)
        labels[units] = own[order][first]
        labels[self.tied] = labels[self.first_of_tied]
        return units


def _draw(
    examples: Sequence[TextExample], units: _Units, *, dev_fraction: float, salt: str
) -> NDArray[np.bool_]:
    """Return which rows are in dev."""
    left = label_counts(examples)  # rows of each label that remain in train
    stratum = rarest_labels(examples, left)  # the rarest label of the rows of each unit
    several = units.give_rarest(stratum, left)
    shares = _shares(salt, units.names)
    shares[units.tied] = np.inf  # except for the first row of each unit
    shares[several] = _shares(salt, units.names[several])
    labels_at = row_labels(examples)
    order = np.lexsort((units.names, shares, stratum))
    sizes = np.zeros(max(left, default=-1) + 2, np.int64)
    for part in slices(len(order)):
        sizes += np.bincount(stratum[part] + 1, minlength=len(sizes))
    bounds = np.cumsum([0, *sizes]).tolist()  # of the strata in `order`
    in_dev = np.zeros(len(examples), bool)
    quota = 0.0
    for start, end in pairwise(bounds):
        quota += dev_fraction * (end - start)
        for place in range(start, end):
            unit = int(order[place])
            if quota < 0.5 or shares[unit] == np.inf:  # the remainder is below one row, or no unit is left
                break
            rows = units.rows(unit)
            taken = Counter(label for row in rows for label in labels_at(row))
            if quota < len(rows) - 0.5 or any(left[label] <= count for label, count in taken.items()):
                continue
            in_dev[unit] = True
            quota -= len(rows)
            left.subtract(taken)
    in_dev[units.tied] = in_dev[units.first_of_tied]
    return in_dev


def _has_spare_unit(examples: Sequence[TextExample], units: _Units) -> bool:
    """Return whether any unit can leave train so that every label keeps a row."""
    counts, labels_at = label_counts(examples), row_labels(examples)
    taken = (Counter(label for row in rows for label in labels_at(row)) for rows in units)
    return any(all(counts[label] > count for label, count in own.items()) for own in taken)


def _components(examples: Sequence[TextExample], *, second: bool) -> Hashes:
    """Return the name of the unit of each row, connected through any chain of groups and texts."""
    keys, edges = hashed(examples, "text"), []
    others, groups = hashed(examples, "text_b"), hashed(examples, "group")
    has_b, in_group = others != EMPTY_TEXT, groups != EMPTY_GROUP
    if second and has_b.any():
        edges.append((keys[has_b], others[has_b]))
    elif has_b.any():  # pairs of texts as a whole, in either order
        keys = keys.copy()
        both = pick(examples, np.flatnonzero(has_b))
        sides = ((KEYS["text"](row.text), KEYS["text_b"](row.text_b)) for row in both)
        keys[has_b] = hash_keys("\0".join(sorted(side)) for side in sides)
    if in_group.any():
        edges.append((keys[in_group], groups[in_group]))
    if not edges:
        return keys
    nodes, names = components([(keys, keys), *edges])
    return names[np.searchsorted(nodes, keys)]


def check_fraction(fraction: float, where: str) -> None:
    """Refuse a fraction that is not between 0 and 1."""
    if not 0 < fraction < 1:
        problem, expected = f"found {fraction!s}", "a number between 0 and 1, both excluded"
        raise error_at(where, problem, expected, "choose such as 0.1", code="option-range")


def hash_rows(rows: Iterable[tuple[object, ...]]) -> str:
    """Return SHA-256 over rows of plain values, in their order."""
    digest = sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _shares(salt: str, names: Hashes) -> NDArray[np.float64]:
    """Return numbers in [0, 1) that depend only on the salt and the names.

    The name of a component is the smallest hash of its members. Hashing it again removes the bias of large
    components towards dev.
    """
    shares = np.empty(len(names))
    for part in slices(len(names)):
        shares[part] = hash_keys(f"{salt}\0{name:016x}" for name in names[part].tolist()) / 2.0**64
    return shares
