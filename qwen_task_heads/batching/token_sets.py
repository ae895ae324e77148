"""Data sets of token ids, written as they are made.

Small sets stand in memory. From `IN_MEMORY` rows on they are written to the cache of `datasets` and mapped
into memory, so that a set larger than the memory can be trained on. A file of the cache is replaced by the
next run on data of the same name, and never by half a file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

IN_MEMORY = 100_000  # rows
Example = TypeVar("Example")


def parts(examples: Sequence[Example], rows: int = 4096) -> Iterator[tuple[int, Sequence[Example]]]:
    """Yield `(start, examples)` of consecutive rows; one part of an empty set.

    Example:
        >>> list(parts(["a", "b", "c"], 2))
        [(0, ['a', 'b']), (2, ['c'])]
    """
    for start in range(0, max(len(examples), 1), rows):
        yield start, [*examples[start : start + rows]]


def set_name(examples: Sequence[object]) -> str:
    """Return what tells a set from others: its number of rows, the first and the last one."""
    return repr((len(examples), *(examples[place] for place in (0, -1) if examples)))


def hash_ids(rows: Sequence[Sequence[int]]) -> NDArray[np.uint64]:
    """Return 64 bits per row of token ids, equal for equal rows."""
    digests = [blake2b(np.array(row, np.int32).tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), np.uint64)


class TokenSet:
    """A `datasets.Dataset` in the making.

    Args:
        rows: how many there will be, about.
        name: of the data, for the file in the cache.

    Example:
        >>> made = TokenSet(rows=2, name="train")
        >>> made.add({"input_ids": [[1, 2], [3]], "row": [0, 1]})
        >>> made.finish()["input_ids"][1]
        [3]
    """

    def __init__(self, *, rows: int, name: str) -> None:
        self._columns: dict[str, list[Any]] = {}
        self._writer: Any = None
        if rows <= IN_MEMORY:
            return
        from datasets import config
        from datasets.arrow_writer import ArrowWriter

        folder = os.path.join(config.HF_DATASETS_CACHE, "qwen_task_heads")
        os.makedirs(folder, exist_ok=True)
        self._path = os.path.join(folder, f"tokens-{blake2b(name.encode(), digest_size=8).hexdigest()}.arrow")
        handle, self._unfinished = tempfile.mkstemp(dir=folder, prefix="tokens-", suffix=".unfinished")
        os.close(handle)
        self._writer = ArrowWriter(path=self._unfinished)

    def add(self, columns: dict[str, list[Any]]) -> None:
        """Add rows; every call gives the same columns."""
        if self._writer is not None:
            self._writer.write_batch(columns)
            return
        for name, values in columns.items():
            self._columns.setdefault(name, []).extend(values)

    def finish(self) -> Any:
        """Return the data set."""
        from datasets import Dataset

        if self._writer is None:
            return Dataset.from_dict(self._columns)
        self._writer.finalize()
        os.replace(self._unfinished, self._path)
        return Dataset.from_file(self._path)
