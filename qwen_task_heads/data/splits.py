"""Train and dev by a hash of the group, so that shuffling or reordering the file moves nothing.

What is promised: a group stands on one side only, and so does every title (up to case, width and spacing):
groups that share a title go together, over any chain of shared titles. Without this, a headline tested twice
would be trained on and measured. What is not promised: the exact fraction, because whole components move;
and that adding rows moves nothing, because a new row may join two components.
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
    arm_hashes,
    hashed,
    label_counts,
    labels_at,
    rarest_labels,
    with_groups,
)
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.data.keys import (
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
from qwen_task_heads.data.sequences import blocks, index, pick
from qwen_task_heads.data.stores import Numbers
from qwen_task_heads.errors import Problem, TaskHeadsError

TEST_GIVEN = "test_fraction is not used: there is a test set"


def split_by_group(
    pairs: Sequence[PairExample],
    *,
    dev_fraction: float = 0.1,
    salt: str = "",
    titles_apart: bool = True,
    groups: Sequence[GroupExample] = (),
    held_out: str = "dev",
) -> tuple[Sequence[PairExample], Sequence[PairExample]]:
    """Split into train and dev.

    Args:
        pairs: any order; those without a group get one by `assign_groups`.
        dev_fraction: expected share of groups in dev, between 0 and 1, both excluded.
        salt: another salt gives another split.
        titles_apart: also keep every title on one side. False keeps groups apart only: for data in which
            a few stock titles stand under many prompts and tie everything together.
        groups: tests of the same data; their titles are kept apart too, also those that no pair has.
        held_out: name of the second side, for messages: `dev` or `test`.

    Returns:
        `(train, dev)`, each in the order of `pairs`, with every `group` filled.

    Raises:
        TaskHeadsError: the fraction is out of range, or a side would be empty.

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
    if len(units) > 1 and in_dev.all() | ~in_dev.any():  # of few groups the draw may leave a side empty:
        order = np.lexsort((units, shares))  # the nearest one goes there
        in_dev[order[0]], in_dev[order[-1]] = True, False
    dev_rows = in_dev[np.searchsorted(units, names)]
    train, dev = pick(grouped, np.flatnonzero(~dev_rows)), pick(grouped, np.flatnonzero(dev_rows))
    if not train or not dev:
        found = f"the {held_out if train else 'train'} split of {len(grouped):,} pairs would be empty"
        found += f" ({len(units):,} independent groups)"
        remedy = f"give a {held_out} file (--{held_out}_dataset), or add pairs of other titles"
        if titles_apart and len({pair.group for pair in grouped}) > 1:
            remedy += ", or pass titles_apart=False, as stock titles tie the groups together"
        raise TaskHeadsError(Problem("split", found, "pairs on both sides", remedy))
    return train, dev


def titles_tie(pairs: Sequence[PairExample], groups: Sequence[GroupExample] = ()) -> bool:
    """Return whether shared titles tie more than half of the groups together, so that no split is left.

    Example:
        >>> pairs = [PairExample(chosen=f"a{i}", rejected="A plain title", group=f"t{i}") for i in range(9)]
        >>> titles_tie(pairs)
        True
    """
    groups_apart, places = np.unique(hashed(pairs, "group"), return_index=True)
    tied = _group_names(pairs, groups, titles_apart=True)[places]
    largest = np.unique(tied, return_counts=True)[1].max(initial=0)
    return bool(largest > max(len(groups_apart) / 2, 1))


def _group_names(
    pairs: Sequence[PairExample], groups: Sequence[GroupExample], *, titles_apart: bool
) -> Hashes:
    """Per pair, the name of what its group stays together with."""
    own = hashed(pairs, "group")
    edges = [_once(own, own)]
    known = np.zeros(0, np.uint64)  # edges of arms, among which are those of their pairs
    if len(groups):
        edges.append(arm_hashes(groups))
        known = np.sort(combine(*edges[-1]))
    for part in blocks(pairs) if titles_apart else ():
        for name in ("chosen", "rejected"):
            one, other = _once(hashed(part, "group"), hashed(part, name))
            new = ~within(combine(one, other), known)
            edges.append((one[new], other[new]))
    nodes, names = components(edges)
    return names[np.searchsorted(nodes, own)]


def _once(one: Hashes, other: Hashes) -> tuple[Hashes, Hashes]:
    """Edges without those that repeat others."""
    _, first = np.unique(combine(one, other), return_index=True)
    return one[first], other[first]


def assign_groups(pairs: Sequence[PairExample]) -> Sequence[PairExample]:
    """Fill missing groups: the prompt where there is one, else pairs connected by shared titles.

    The key is a hash of the prompt, or the smallest hash of the connected titles, so that the order of the
    pairs does not matter. Groups that are there stay as they are.

    Example:
        >>> pairs = [PairExample(chosen="A", rejected="B"), PairExample(chosen="b", rejected="C")]
        >>> one, two = assign_groups(pairs)
        >>> one.group == two.group
        True
    """
    bare = hash_keys([KEYS["group"]("")])[0]
    missing = np.flatnonzero(hashed(pairs, "group") == bare)
    if not len(missing):
        return pairs
    lacking = pick(pairs, missing)
    prompts = hashed(lacking, "prompt")
    alone = prompts == hash_keys([""])[0]
    names = [f"prompt-{key:016x}" for key in prompts.tolist()]
    if alone.any():
        titles = [
            (text_key(pair.chosen), text_key(pair.rejected)) for pair in pick(lacking, np.flatnonzero(alone))
        ]
        chosen, rejected = (hash_keys(side) for side in zip(*titles, strict=True))
        nodes, smallest = components([(chosen, rejected)])
        for place, key in zip(
            np.flatnonzero(alone), smallest[np.searchsorted(nodes, chosen)].tolist(), strict=True
        ):
            names[place] = f"titles-{key:016x}"
    return with_groups(pairs, dict(zip(missing.tolist(), names, strict=True)))


def split_texts(
    examples: Sequence[TextExample], *, dev_fraction: float = 0.1, salt: str = "", held_out: str = "dev"
) -> tuple[Sequence[TextExample], Sequence[TextExample], str]:
    """Split texts into train and dev, every label in about its share.

    Rows of one `group`, rows with an equal text (up to case, width, spacing) and rows with an equal second
    text stay together. Within a label, what stays together is ordered by its hash and dev takes the first
    ones up to the fraction; what is too little for one row is carried over to the next label. So dev figures
    per label rest on rows (a draw by hash alone leaves a label of 10 rows out of dev in a third of all
    cases), no label loses its last rows to dev, shuffling moves nothing, and new rows move few.

    Args:
        examples: any order. Several labels in a row count as the rarest of them; scores as one label.
        dev_fraction: expected share of rows in dev, between 0 and 1, both excluded.
        salt: another salt gives another split.
        held_out: name of the second side, for messages: `dev` or `test`.

    Returns:
        `(train, dev, note)`, both in the order of `examples`. The note is "", or says that second texts are
        not kept apart, because a few of them stand in so many rows that they tie most of the data together.

    Raises:
        TaskHeadsError: the fraction is out of range, or a side would be empty.

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
            units, note = looser, "second texts of pairs tie most rows together, and are not kept apart"
    dev_rows = _draw(examples, units, dev_fraction=dev_fraction, salt=salt)
    train, dev = pick(examples, index(~dev_rows)), pick(examples, index(dev_rows))
    if not train or not dev:
        found = f"no rows for {held_out} among {len(examples):,} ({units.count:,} independent groups)"
        remedy = f"give a {held_out} file (--{held_out}_dataset), or add rows"
        if dev_fraction < 0.5 and _may_go(examples, units):
            remedy += f", or raise {held_out}_fraction"
        raise TaskHeadsError(Problem("split", found, "rows on both sides", remedy))
    return train, dev, note


class _Units:
    """What stays together: each unit goes by its first row. Units of one row take no memory.

    Args:
        names: of what each row stays together with.
    """

    def __init__(self, names: Hashes) -> None:
        self.names = names
        self.tied = repeated(names)  # rows that are not alone
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
        """Give each row the label of its unit that the fewest rows have, in place; return the tied units."""
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
    """Which rows go to dev."""
    left = label_counts(examples)  # rows of each label that are still in train
    stratum = rarest_labels(examples, left)  # each unit under the rarest label of its rows
    alike = units.give_rarest(stratum, left)
    shares = _shares(salt, units.names)
    shares[units.tied] = np.inf  # but of the first row of each unit
    shares[alike] = _shares(salt, units.names[alike])
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
            if quota < 0.5 or shares[unit] == np.inf:  # too little for one row, or no unit is left
                break
            rows = units.rows(unit)
            taken = Counter(label for row in rows for label in labels_at(examples, row))
            if quota < len(rows) - 0.5 or any(left[label] <= count for label, count in taken.items()):
                continue
            in_dev[unit] = True
            quota -= len(rows)
            left.subtract(taken)
    in_dev[units.tied] = in_dev[units.first_of_tied]
    return in_dev


def _may_go(examples: Sequence[TextExample], units: _Units) -> bool:
    """Whether there is a unit without which every label keeps a row."""
    counts = label_counts(examples)
    taken = (Counter(label for row in rows for label in labels_at(examples, row)) for rows in units)
    return any(all(counts[label] > count for label, count in own.items()) for own in taken)


def _components(examples: Sequence[TextExample], *, second: bool) -> Hashes:
    """The name of what each row stays together with, through any chain of groups and texts."""
    keys, edges = hashed(examples, "text"), []
    others, groups = hashed(examples, "text_b"), hashed(examples, "group")
    has_b = others != hash_keys([KEYS["text_b"]("")])[0]
    in_group = groups != hash_keys([KEYS["group"]("")])[0]
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
    """Refuse a share that leaves one side of a split empty."""
    if not 0 < fraction < 1:
        raise TaskHeadsError(Problem(where, f"found {fraction!s}", "between 0 and 1", "choose such as 0.1"))


def cut_line(role: str, cut: str, fraction: float) -> str:
    """The line of a run's account on a set that was cut from the training data.

    Example:
        >>> cut_line("test", "150 texts", 0.15)
        'no test set given: 150 texts were cut from train by hash (test_fraction 0.15)'
    """
    return f"no {role} set given: {cut} were cut from train by hash ({role}_fraction {fraction:g})"


def hash_rows(rows: Iterable[tuple[object, ...]]) -> str:
    """SHA-256 over rows of plain values, in their order."""
    digest = sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _shares(salt: str, names: Hashes) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on the salt and the names only.

    The name of a component is the smallest hash of its members; hashing it again removes the bias that
    would send large components to dev.
    """
    shares = np.empty(len(names))
    for part in slices(len(names)):
        shares[part] = hash_keys(f"{salt}\0{name:016x}" for name in names[part].tolist()) / 2.0**64
    return shares
