"""Train and dev by a hash of the group, so that shuffling or reordering the file moves nothing.

What is promised: a group stands on one side only, and so does every title (up to case, width and spacing):
groups that share a title go together, over any chain of shared titles. Without this, a headline tested twice
would be trained on and measured. What is not promised: the exact fraction, because whole components move;
and that adding rows moves nothing, because a new row may join two components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from qwen_task_heads.data.doctor import text_key
from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.errors import Problem, TaskHeadsError


def split_by_group(
    pairs: Sequence[PairExample],
    *,
    dev_fraction: float = 0.1,
    salt: str = "",
    titles_apart: bool = True,
    groups: Sequence[GroupExample] = (),
) -> tuple[list[PairExample], list[PairExample]]:
    """Split into train and dev.

    Args:
        pairs: any order; those without a group get one by `assign_groups`.
        dev_fraction: expected share of groups in dev, between 0 and 1, both excluded.
        salt: another salt gives another split.
        titles_apart: also keep every title on one side. False keeps groups apart only: for data in which
            a few stock titles stand under many prompts and tie everything together.
        groups: tests of the same data; their titles are kept apart too, also those that no pair has.

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
    if not 0 < dev_fraction < 1:
        found = f"found {dev_fraction}"
        raise TaskHeadsError(
            Problem("dev_fraction", found, "accepted: between 0 and 1", "choose such as 0.1")
        )
    grouped = assign_groups(pairs)
    union = _Union()
    for pair in grouped:
        union.join("group:" + pair.group, "group:" + pair.group)
        if titles_apart:
            union.join("group:" + pair.group, "title:" + text_key(pair.chosen))
            union.join("group:" + pair.group, "title:" + text_key(pair.rejected))
    for group in groups if titles_apart else ():
        for title in group.titles:
            union.join("group:" + group.group, "title:" + text_key(title))
    names = union.names()
    dev_names = {name for name in set(names.values()) if _share(salt, name) < dev_fraction}
    train: list[PairExample] = []
    dev: list[PairExample] = []
    for pair in grouped:
        (dev if names["group:" + pair.group] in dev_names else train).append(pair)
    if not train or not dev:
        found = f"the {'dev' if train else 'train'} split of {len(grouped):,} pairs would be empty"
        found += f" ({len(set(names.values())):,} independent groups)"
        remedy = "give a dev file, another dev_fraction or salt"
        remedy += ", or titles_apart=False where stock titles tie the groups together" if titles_apart else ""
        raise TaskHeadsError(Problem("split", found, "accepted: pairs on both sides", remedy))
    return train, dev


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
