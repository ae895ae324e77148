"""Hash texts to 64 bits, equal if the texts count as the same, and find rows connected by shared texts.

Design: a split must not change if a file is shuffled, read on another machine or read in batches. Keys are
therefore hashes of the text alone. Two of ten million texts share a hash with a probability below 1e-5. The
texts of two rows are compared before a message names them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, as of Fibonacci hashing (Knuth 6.4)
BLOCK = 2**16


def text_key(text: str) -> str:
    """Return the normal form of a text: NFKC, case folded, with runs of white space as one blank.

    Example:
        >>> text_key("Ｈello   World")
        'hello world'
    """
    if text.isascii():
        folded = text.lower()
    else:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if folded.isprintable() and "  " not in folded and folded[:1] != " " != folded[-1:]:
        return folded  # all other white space is not printable
    return " ".join(folded.split())


def _of_text(text: str) -> str:
    return "text:" + text_key(text)


def _of_title(title: str) -> str:
    return "title:" + text_key(title)


def _of_group(group: str) -> str:
    return "group:" + group


# Column of an example -> string to hash. The prefixes keep titles, texts and groups distinct.
KEYS: Mapping[str, Callable[[str], str]] = {
    "text": _of_text,
    "text_b": _of_text,
    "chosen": _of_title,
    "rejected": _of_title,
    "prompt": text_key,
    "group": _of_group,
}


def hash_keys(texts: Iterable[str]) -> Hashes:
    """Return the first 64 bits of BLAKE2b of each text.

    Example:
        >>> [f"{key:016x}" for key in hash_keys(["Tea"])]
        ['6fdd9d86fe2fc3cc']
    """
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)
    digests = b"".join([blake2b(text, digest_size=8).digest() for text in encoded])
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def combine(*columns: Hashes) -> Hashes:
    """Return 64 bits per row of several hashes, in their order.

    Example:
        >>> one, two = np.array([1, 2], np.uint64), np.array([2, 1], np.uint64)
        >>> mixed, turned = combine(one, two), combine(two, one)
        >>> bool(mixed[0] == turned[1]), bool(mixed[0] == turned[0])
        (True, False)
    """
    mixed = np.zeros(len(columns[0]), np.uint64)
    for part in slices(len(mixed)):
        block = mixed[part]
        for column in columns:
            block = (block ^ column[part]) * FACTOR
            block ^= block >> np.uint64(29)
        mixed[part] = block
    return mixed


def slices(rows: int) -> Iterator[slice]:
    """Yield blocks of rows, because intermediate results of whole columns would double the memory.

    Example:
        >>> [part.stop for part in slices(100_000)]
        [65536, 131072]
    """
    yield from (slice(start, start + BLOCK) for start in range(0, rows, BLOCK))


def repeated(keys: Hashes) -> NDArray[np.int64]:
    """Return the rows whose key occurs in several rows, in their order."""
    ordered = np.sort(keys)
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not len(several):
        return np.zeros(0, np.int64)
    return np.flatnonzero(within(keys, several))


def within(keys: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Return which keys are in the sorted array `known`."""
    if not len(known):
        return np.zeros(len(keys), bool)
    result = np.zeros(len(keys), bool)
    for part in slices(len(keys)):
        places = np.minimum(np.searchsorted(known, keys[part]), len(known) - 1)
        result[part] = known[places] == keys[part]
    return result


def components(edges: Sequence[tuple[Hashes, Hashes]]) -> tuple[Hashes, Hashes]:
    """Return `(nodes, names)`: every node once, sorted, and the smallest node that it is connected to.

    Args:
        edges: arrays of the two ends.

    Example:
        >>> ends = np.array([5, 7, 9], np.uint64), np.array([7, 8, 9], np.uint64)
        >>> [array.tolist() for array in components([ends])]
        [[5, 7, 8, 9], [5, 5, 5, 9]]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = (np.concatenate([edge[side] for edge in edges]) for side in (0, 1))
    nodes = np.union1d(np.unique(one), np.unique(other))
    ends = [np.searchsorted(nodes, side).astype(np.int32) for side in (one, other)]
    del one, other
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(len(nodes), len(nodes)))
    count, labels = connected_components(graph, directed=False)
    smallest = np.empty(count, np.uint64)
    smallest[labels[::-1]] = nodes[::-1]  # in descending order, so that the smallest node is assigned last
    return nodes, smallest[labels]
