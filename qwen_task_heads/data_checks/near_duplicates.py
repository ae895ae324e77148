"""Find nearly equal texts: MinHash proposes pairs, and the exact similarity of their n-grams decides.

The similarity of two texts is the Jaccard index of their sets of character n-grams, after case, width and
spacing are normalised. Texts of fewer than `LEAST` n-grams are left out: two short texts resemble each other
by chance. Texts of scripts without spaces have n-grams of 2 characters, other texts of 3.
Source: Broder 1997, doi 10.1109/SEQUEN.1997.666900; candidates are found by the LSH index of datasketch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_task_heads.metrics.title_baselines import writes_without_spaces
from qwen_task_heads.sources.keys import text_key

SIMILAR = 0.7  # Jaccard index from which texts are nearly equal
PROPOSED = 0.5  # threshold of the index, so much lower that it misses few similar texts
PERMUTATIONS = 64
SIZES = (2, 3)  # characters of an n-gram, in scripts without spaces and in others
LEAST = (8, 20)  # n-grams of a text, in scripts without spaces and in others
LONGEST = 5_000  # characters of a text that are read


@dataclass(frozen=True)
class NearDuplicate:
    """Two nearly equal texts.

    Args:
        first: index in the first list.
        second: index in the second list, or a later one in the same list.
        similarity: Jaccard index of their n-grams.
    """

    first: int
    second: int
    similarity: float


def near_duplicates(texts: Sequence[str], others: Sequence[str] | None = None) -> list[NearDuplicate]:
    """Find the most similar text for each text that has one above `SIMILAR`.

    Args:
        texts: N texts.
        others: M texts to look up among `texts`; None looks up each text among the earlier ones.

    Returns:
        At most one entry for each text that is looked up, in their order. Equal texts are included.

    Example:
        >>> near_duplicates(["the train leaves at nine", "a dog"], ["The train leaves at nine!"])
        [NearDuplicate(first=0, second=0, similarity=0.95...)]
    """
    from datasketch import MinHash, MinHashLSH

    spaced = not writes_without_spaces(texts[:2000])
    size, least = SIZES[spaced], LEAST[spaced]
    index = MinHashLSH(threshold=PROPOSED, num_perm=PERMUTATIONS)
    known: dict[int, frozenset[str]] = {}
    found: list[NearDuplicate] = []
    blank = MinHash(num_perm=PERMUTATIONS)

    def hashed(grams: frozenset[str]) -> MinHash:
        own = blank.copy()
        own.update_batch([gram.encode() for gram in grams])
        return own

    def look_up(place: int, grams: frozenset[str], own: MinHash) -> None:
        best = max(((similarity(grams, known[one]), -one) for one in index.query(own)), default=(0.0, 0))
        if best[0] >= SIMILAR:
            found.append(NearDuplicate(-best[1], place, best[0]))

    for place, text in enumerate(texts):
        grams = ngrams(text, size)
        if len(grams) < least:
            continue
        own = hashed(grams)
        if others is None:
            look_up(place, grams, own)
        known[place] = grams
        index.insert(place, own, check_duplication=False)
    for place, text in enumerate(others or ()):
        grams = ngrams(text, size)
        if len(grams) >= least:
            look_up(place, grams, hashed(grams))
    return found


def ngrams(text: str, size: int) -> frozenset[str]:
    """Return the character n-grams of a normalised text; a shorter text is one n-gram.

    Example:
        >>> sorted(ngrams("Abcd", 3))
        ['abc', 'bcd']
    """
    text = text_key(text[:LONGEST])
    return frozenset(text[start : start + size] for start in range(max(1, len(text) - size + 1)))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the Jaccard index of two sets."""
    return len(one & other) / max(1, len(one | other))
