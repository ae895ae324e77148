"""Build data sets of token ids, in memory or in a file.

Data sets of up to `IN_MEMORY` rows are in memory. Larger ones are written to the cache of `datasets` and
mapped into memory, so that a data set may be larger than the memory.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.stores import cache_folder, no_room
from qwen_task_heads.hubcode.hashes_task_heads import sha256

IN_MEMORY = 100_000  # rows
Example = TypeVar("Example")


def row_blocks(examples: Sequence[Example], rows: int = 4096) -> Iterator[tuple[int, Sequence[Example]]]:
    """Yield `(start, examples)` of consecutive rows; an empty data set has one empty block.

    Example:
        >>> list(row_blocks(["a", "b", "c"], 2))
        [(0, ['a', 'b']), (2, ['c'])]
    """
    for start in range(0, max(len(examples), 1), rows):
        yield start, [*examples[start : start + rows]]


def hash_ids(rows: Sequence[Sequence[int]]) -> NDArray[np.uint64]:
    """Return 64 bits per row of token ids, equal for equal rows."""
    digests = [blake2b(np.array(row, np.int32).tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), np.uint64)


class TokenDatasetBuilder:
    """Build a `datasets.Dataset` block by block.

    Args:
        rows: approximate number of rows, which decides between memory and a file.

    Example:
        >>> builder = TokenDatasetBuilder(rows=2)
        >>> builder.add({"input_ids": [[1, 2], [3]], "row": [0, 1]})
        >>> builder.finish()["input_ids"][1]
        [3]
    """

    def __init__(self, *, rows: int) -> None:
        self._columns: dict[str, list[Any]] = {}
        self._in_memory = rows <= IN_MEMORY
        self._writer: Any = None

    def add(self, columns: dict[str, list[Any]]) -> None:
        """Add rows; every call must have the same columns."""
        if self._in_memory or not any(columns.values()):
            for name, values in columns.items():
                self._columns.setdefault(name, []).extend(values)
            return
        try:
            if self._writer is None:
                self._open()
            self._writer.write_batch(columns)
        except OSError as error:
            raise no_room(error) from error

    def _open(self) -> None:
        from datasets.arrow_writer import ArrowWriter

        handle, self._unfinished = tempfile.mkstemp(
            dir=cache_folder(), prefix="tokens-", suffix=".unfinished"
        )
        os.close(handle)
        weakref.finalize(self, Path(self._unfinished).unlink, missing_ok=True)
        self._writer = ArrowWriter(path=self._unfinished)

    def finish(self) -> Any:
        """Return the data set.

        The file name is a hash of its content: data sets with the same ids share a file, and no run changes
        the file of another run.
        """
        from datasets import Dataset

        if self._writer is None:
            return Dataset.from_dict(self._columns)
        self._writer.finalize()
        name = f"tokens-{sha256(self._unfinished)[:32]}.arrow"
        path = os.path.join(os.path.dirname(self._unfinished), name)
        if not os.path.exists(path):
            os.replace(self._unfinished, path)
        return Dataset.from_file(path)
