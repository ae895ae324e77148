"""Train and dev by a hash of the group, so that shuffling or reordering the file moves nothing.

What is promised: a group stands on one side only, and so does every title (up to case, width and spacing):
groups that share a title go together, over any chain of shared titles. Without this, a headline tested twice
would be trained on and measured. What is not promised: the exact fraction, because whole components move;
and that adding rows moves nothing, because a new row may join two components.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b, sha256

from qwen_task_heads.data.doctor import text_key
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
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
) -> tuple[list[PairExample], list[PairExample]]:
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
    shares = {name: _share(salt, name) for name in {*names.values()}}
    dev_names = {name for name, share in shares.items() if share < dev_fraction}
    if len(shares) > 1:  # of few groups the draw may leave a side empty: the nearest one goes there
        dev_names = dev_names or {min(shares, key=lambda name: (shares[name], name))}
        dev_names -= (
            {max(shares, key=lambda name: (shares[name], name))} if len(dev_names) == len(shares) else set()
        )
    train: list[PairExample] = []
    dev: list[PairExample] = []
    for pair in grouped:
        (dev if names["group:" + pair.group] in dev_names else train).append(pair)
    if not train or not dev:
        found = f"the {held_out if train else 'train'} split of {len(grouped):,} pairs would be empty"
        found += f" ({len(set(names.values())):,} independent groups)"
        remedy = f"give a {held_out} file (--{held_out}_dataset), or add pairs of other titles"
        if titles_apart and len({pair.group for pair in grouped}) > 1:
            remedy += ", or pass titles_apart=False, as stock titles tie the groups together"
        raise TaskHeadsError(Problem("split", found, "accepted: pairs on both sides", remedy))
    return train, dev


def titles_tie(pairs: Sequence[PairExample], groups: Sequence[GroupExample] = ()) -> bool:
    """Return whether shared titles tie more than half of the groups together, so that no split is left.

    Example:
        >>> pairs = [PairExample(chosen=f"a{i}", rejected="A plain title", group=f"t{i}") for i in range(9)]
        >>> titles_tie(pairs)
        True
    """
    apart = _group_names(pairs, (), titles_apart=False)
    tied = _group_names(pairs, groups, titles_apart=True)
    sizes = Counter(tied[key] for key in apart)
    return max(sizes.values(), default=0) > max(len(apart) / 2, 1)


def _group_names(
    pairs: Sequence[PairExample], groups: Sequence[GroupExample], *, titles_apart: bool
) -> dict[str, str]:
    """`group:KEY` -> the name of what the group stays together with."""
    union = _Union()
    for pair in pairs:
        union.join("group:" + pair.group, "group:" + pair.group)
        if titles_apart:
            union.join("group:" + pair.group, "title:" + text_key(pair.chosen))
            union.join("group:" + pair.group, "title:" + text_key(pair.rejected))
    for group in groups:
        for title in group.titles:
            union.join("group:" + group.group, "title:" + text_key(title))
    return union.names()


def assign_groups(pairs: Sequence[PairExample]) -> list[PairExample]:
    """Fill missing groups: the prompt where there is one, else pairs connected by shared titles.

    The key is a hash of the prompt, or the smallest hash of the connected titles, so that the order of the
    pairs does not matter. Groups that are there stay as they are.

    Example:
        >>> pairs = [PairExample(chosen="A", rejected="B"), PairExample(chosen="b", rejected="C")]
        >>> one, two = assign_groups(pairs)
        >>> one.group == two.group
        True
    """
    union = _Union()
    for pair in pairs:
        if not pair.group and not pair.prompt:
            union.join(text_key(pair.chosen), text_key(pair.rejected))
    names = union.names()
    return [pair if pair.group else replace(pair, group=_group_of(pair, names)) for pair in pairs]


def _group_of(pair: PairExample, names: dict[str, str]) -> str:
    if pair.prompt:
        return "prompt-" + _hash(text_key(pair.prompt))
    return "titles-" + names[text_key(pair.chosen)]


def split_texts(
    examples: Sequence[TextExample], *, dev_fraction: float = 0.1, salt: str = "", held_out: str = "dev"
) -> tuple[list[TextExample], list[TextExample], str]:
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
    names, note = _components(examples, second=True), ""
    if 2 * max(Counter(names).values(), default=0) > max(len(examples), 40):
        looser = _components(examples, second=False)
        if len(set(looser)) > len(set(names)):
            names, note = looser, "second texts of pairs tie most rows together, and are not kept apart"
    labels = [_labels(example) for example in examples]
    counts = Counter(label for row in labels for label in row)
    rows: dict[str, list[int]] = {}  # component -> its rows
    for place, name in enumerate(names):
        rows.setdefault(name, []).append(place)
    strata: dict[int, list[str]] = {}  # label -> components, each under the rarest label of its rows
    for name, places in rows.items():
        label = min((counts[label], label) for place in places for label in labels[place])[1]
        strata.setdefault(label, []).append(name)
    left = dict(counts)  # rows of each label that are still in train
    dev_names: set[str] = set()
    quota = 0.0
    for label in sorted(strata):
        quota += dev_fraction * sum(len(rows[name]) for name in strata[label])
        for name in sorted(strata[label], key=lambda name: (_share(salt, name), name)):
            taken = Counter(label for place in rows[name] for label in labels[place])
            if quota < len(rows[name]) - 0.5 or any(left[label] <= count for label, count in taken.items()):
                continue
            dev_names.add(name)
            quota -= len(rows[name])
            for label, count in taken.items():
                left[label] -= count
    train = [example for example, name in zip(examples, names, strict=True) if name not in dev_names]
    dev = [example for example, name in zip(examples, names, strict=True) if name in dev_names]
    if not train or not dev:
        found = f"no rows for {held_out} among {len(examples):,} ({len(rows):,} independent groups)"
        remedy = f"give a {held_out} file (--{held_out}_dataset), or add rows"
        if dev_fraction < 0.5 and any(  # taking it would leave every label a row
            all(counts[label] > count for label, count in Counter(own).items())
            for own in ([label for place in places for label in labels[place]] for places in rows.values())
        ):
            remedy += f", or raise {held_out}_fraction"
        raise TaskHeadsError(Problem("split", found, "accepted: rows on both sides", remedy))
    return train, dev, note


def _components(examples: Sequence[TextExample], *, second: bool) -> list[str]:
    """The name of what each row stays together with, through any chain of groups and texts."""
    union = _Union()
    keys = []
    for example in examples:
        key = "text:" + text_key(example.text)
        if example.text_b and not second:  # pairs of texts as a whole, in either order
            key = "\0".join(sorted((key, "text:" + text_key(example.text_b))))
        union.join(key, key)
        if example.text_b and second:
            union.join(key, "text:" + text_key(example.text_b))
        if example.group:
            union.join(key, "group:" + example.group)
        keys.append(key)
    names = union.names()
    return [names[key] for key in keys]


def _labels(example: TextExample) -> tuple[int, ...]:
    """The labels of a row for counting; -1 for scores, and for no label."""
    if isinstance(example.target, int):
        return (example.target,)
    whole = tuple(label for label in example.target if isinstance(label, int))
    return whole or (-1,)


def check_fraction(fraction: float, where: str) -> None:
    """Refuse a share that leaves one side of a split empty."""
    if not 0 < fraction < 1:
        raise TaskHeadsError.of(where, str(fraction), "between 0 and 1", "choose such as 0.1")


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


def _hash(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _share(salt: str, name: str) -> float:
    """A number in [0, 1) that depends on the salt and the name only.

    The name of a component is the smallest hash of its members; hashing it again removes the bias that
    would send large components to dev.
    """
    return int(_hash(f"{salt}\0{name}"), 16) / 2**64


class _Union:
    """Union-find over texts; a component is named by the smallest hash of its members."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, item: str) -> str:
        """The root of an item, halving the path on the way (no recursion: chains may be long)."""
        parent = self.parent
        parent.setdefault(item, item)
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, one: str, other: str) -> None:
        """Put two items into one component."""
        self.parent[self.find(one)] = self.find(other)

    def names(self) -> dict[str, str]:
        """Item -> name of its component."""
        smallest: dict[str, str] = {}
        for item in self.parent:
            root, name = self.find(item), _hash(item)
            smallest[root] = min(name, smallest.get(root, name))
        return {item: smallest[self.find(item)] for item in self.parent}
