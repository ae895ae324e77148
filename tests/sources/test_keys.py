from __future__ import annotations

import random
import unicodedata

import numpy as np
import pytest

from qwen_task_heads.sources.keys import combine, components, hash_keys, repeated, text_key, within


def spelled_out(text: str) -> str:
    """Compute `text_key` without its shortcuts."""
    once = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", once).split())


def test_shortcuts_do_not_change_the_key() -> None:
    rng = random.Random(0)
    marks = " \t\n\x0b\x1c\x85\xa0\u1680\u2003\u2028\u3000\u200b\ufeffAbßİΣﬁＡ中é\u0301\u00b4\ud800"
    for _ in range(20_000):
        text = "".join(rng.choices(marks, k=rng.randrange(6)))
        assert text_key(text) == spelled_out(text), repr(text)


def test_rows_that_repeat_others_are_found() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 40_000, 100_000).astype(np.uint64)
    counts = np.bincount(keys.astype(np.int64))
    assert (repeated(keys) == np.flatnonzero(counts[keys.astype(np.int64)] > 1)).all()
    assert len(repeated(np.arange(9, dtype=np.uint64))) == 0
    known = np.unique(keys[:500])
    assert (within(keys, known) == np.isin(keys, known)).all()
    assert not within(keys, known[:0]).any()


def test_components_are_named_by_their_smallest_node() -> None:
    rng = random.Random(0)
    edges = [(rng.randrange(400), rng.randrange(400)) for _ in range(250)]
    name = {node: node for edge in edges for node in edge}
    for _ in range(400):  # until nothing changes
        for one, other in edges:
            name[one] = name[other] = min(name[one], name[other])
    ends = [np.array(side, np.uint64) for side in zip(*edges, strict=True)]
    nodes, names = components([(ends[0][:100], ends[1][:100]), (ends[0][100:], ends[1][100:])])
    assert dict(zip(nodes.tolist(), names.tolist(), strict=True)) == name


@pytest.mark.parametrize("rows", [1, 65_536, 70_000])
def test_the_order_of_columns_matters_to_their_key(rows: int) -> None:
    one, other = (np.random.default_rng(seed).integers(0, 2**63, rows).astype(np.uint64) for seed in (0, 1))
    assert (combine(one, other) != combine(other, one)).all()
    assert (combine(one, other) == combine(one.copy(), other.copy())).all()
    assert len(np.unique(combine(one, other))) == rows


def test_hashes_are_platform_independent() -> None:
    assert [f"{key:016x}" for key in hash_keys(["", "Tea", "\ud800"]).tolist()] == [
        "e4a6a0577479b2b4",
        "6fdd9d86fe2fc3cc",
        "4208783e927d0d68",
    ]
