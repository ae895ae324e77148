"""Columns of many rows outside of Python objects: texts in Arrow, numbers in arrays, places as numbers.

Design:
- Texts stand in chunks of `CHUNK` rows. Beyond `SPOOL_BYTES` of them, chunks go to a file without a name in
  the cache of `datasets`, which the system removes when the process ends, and are read back one at a time.
- Nothing changes once it is stored; a table of examples is a store and the numbers of its rows
  (`example_tables.py`).
- pyarrow comes with `datasets`, of the extra `train`, and is imported on use.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.keys import Hashes, hash_keys
from qwen_task_heads.errors import Problem, TaskHeadsError

CHUNK = 4096
SPOOL_BYTES = 64 * 2**20
Numbers = NDArray[np.int64]


class Texts:
    """A column of texts, to which rows are added at the end. Rows that are all empty take no memory.

    Args:
        key: text -> what is hashed of it, for `hashes`; None for a column without.

    Example:
        >>> texts = Texts()
        >>> texts.extend(["Tea", "On tea"])
        >>> len(texts), texts[1], texts.take(np.array([1, 0]))
        (2, 'On tea', ['On tea', 'Tea'])
    """

    def __init__(self, key: Callable[[str], str] | None = None) -> None:
        self._key = key
        self._empty = 0  # rows of a column that is empty so far
        self._pending: list[str] = []
        self._chunks: list[Any] = []  # Arrow arrays, or (position, sizes of offsets and data) in the file
        self._hashes = array("Q")
        self._bytes = 0
        self._file: Any = None
        self._lock = Lock()  # of the place in the file
        self._load = lru_cache(maxsize=4)(self._load_chunk)

    def __reduce__(self) -> tuple[Any, ...]:
        return texts_with, (self._key, self.take(np.arange(len(self))))

    def __len__(self) -> int:
        return self._empty + CHUNK * len(self._chunks) + len(self._pending)

    @property
    def are_empty(self) -> bool:
        """Whether no row has a text."""
        return not self._chunks and not self._pending

    def extend(self, texts: Sequence[str]) -> None:
        """Add rows."""
        if self.are_empty and not any(texts):
            self._empty += len(texts)
            return
        self._append([""] * self._empty)
        self._empty = 0
        self._append(texts)

    def _append(self, texts: Sequence[str]) -> None:
        if self._key is not None:
            self._hashes.frombytes(hash_keys(map(self._key, texts)).tobytes())
        held = [*self._pending, *texts]
        whole = len(held) - len(held) % CHUNK
        for start in range(0, whole, CHUNK):
            self._store(held[start : start + CHUNK])
        self._pending = held[whole:]

    def truncate(self, rows: int) -> None:
        """Forget all rows but the first ones."""
        self._empty = min(self._empty, rows)
        if rows < CHUNK * len(self._chunks):
            whole = rows // CHUNK
            self._pending = self._load(whole).to_pylist()
            del self._chunks[whole:]
            self._load.cache_clear()
        del self._pending[max(rows - CHUNK * len(self._chunks), 0) :]
        del self._hashes[rows:]

    def __getitem__(self, place: int) -> str:
        chunk, offset = divmod(place, CHUNK)
        if self._empty:
            return ""
        if chunk == len(self._chunks):
            return self._pending[offset]
        return self._load(chunk)[offset].as_py()

    def take(self, rows: Numbers) -> list[str]:
        """Return the texts of some rows, in their order."""
        if self.are_empty or not len(rows):
            return [""] * len(rows)
        chunks = rows // CHUNK
        bounds = np.flatnonzero(np.diff(chunks)) + 1
        result: list[str] = []
        for part in np.split(rows, bounds):
            chunk = int(part[0]) // CHUNK
            if chunk == len(self._chunks):
                result += [self._pending[place] for place in (part - CHUNK * chunk).tolist()]
            elif len(part) == 1:
                result.append(self._load(chunk)[int(part[0]) - CHUNK * chunk].as_py())
            else:
                result += self._load(chunk).take(part - CHUNK * chunk).to_pylist()
        return result

    def containing(self, mark: str) -> Numbers:
        """Return the rows whose text contains a text, in their order."""
        import pyarrow.compute as pc

        found = [
            np.flatnonzero(pc.match_substring(self._load(number), mark)) + CHUNK * number
            for number in range(len(self._chunks))
        ]
        start = CHUNK * len(self._chunks)
        last = [start + place for place, text in enumerate(self._pending) if mark in text]
        return np.concatenate([*found, np.array(last, np.int64)])

    def hashes(self) -> Hashes:
        """Return 64 bits per row, equal for rows of an equal key."""
        if self._key is None:
            raise ValueError("a column without a key")
        if self.are_empty:
            return np.broadcast_to(hash_keys([self._key("")]), (self._empty,))
        return np.frombuffer(self._hashes, np.uint64)

    def _store(self, texts: list[str]) -> None:
        import pyarrow as pa

        chunk = pa.array(texts, pa.large_string())
        self._chunks.append(chunk)
        self._bytes += chunk.nbytes
        if self._file is None and self._bytes > SPOOL_BYTES:
            self._file = tempfile.TemporaryFile(dir=cache_folder())  # noqa: SIM115 (closed below)
            weakref.finalize(self, self._file.close)
            self._chunks = [self._write(chunk) for chunk in self._chunks]
        elif self._file is not None:
            self._chunks[-1] = self._write(chunk)

    def _write(self, chunk: Any) -> tuple[int, int, int]:
        _, offsets, data = (b"" if buffer is None else buffer for buffer in chunk.buffers())
        try:
            with self._lock:
                position = self._file.seek(0, os.SEEK_END)
                self._file.write(offsets)
                self._file.write(data)
                self._file.flush()
        except OSError as error:
            raise no_room(error) from error
        return position, len(offsets), len(data)

    def _load_chunk(self, number: int) -> Any:
        chunk = self._chunks[number]
        if not isinstance(chunk, tuple):
            return chunk
        import pyarrow as pa

        position, offsets, data = chunk
        with self._lock:
            self._file.seek(position)
            content = self._file.read(offsets + data)
        buffers = [None, pa.py_buffer(content[:offsets]), pa.py_buffer(content[offsets:])]
        return pa.Array.from_buffers(pa.large_string(), CHUNK, buffers)


def texts_with(key: Callable[[str], str] | None, texts: Sequence[str]) -> Texts:
    """Return a column of some texts."""
    made = Texts(key)
    made.extend(texts)
    return made


def cache_folder() -> str:
    """Return our folder in the cache of `datasets`, or that of temporary files if it cannot be written."""
    from datasets import config

    folder = os.path.join(config.HF_DATASETS_CACHE, "qwen_task_heads")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return tempfile.gettempdir()
    return folder if os.access(folder, os.W_OK) else tempfile.gettempdir()


def no_room(error: OSError) -> TaskHeadsError:
    """Return the error of a disk that takes no more."""
    found = f"no room for the data of the run ({error.strerror or type(error).__name__})"
    accepted = "a folder on a disk with about as much room as the data take"
    return TaskHeadsError(
        Problem(cache_folder(), f"found {found}", accepted, "set HF_DATASETS_CACHE to such a folder")
    )


class Places:
    """Where each row stands: a file and a number, as `train.jsonl:17`. Consecutive rows are one entry.

    Example:
        >>> places = Places()
        >>> places.extend("train.jsonl:", [1, 2, 4])
        >>> places.extend("more.parquet:row ", [1])
        >>> [places[row] for row in range(4)]
        ['train.jsonl:1', 'train.jsonl:2', 'train.jsonl:4', 'more.parquet:row 1']
    """

    def __init__(self) -> None:
        self._sources: list[str] = []
        self._starts, self._numbers, self._files = array("q"), array("q"), array("q")  # of each run
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def extend(self, source: str, numbers: Sequence[int]) -> None:
        """Add rows of a file."""
        if not len(numbers):
            return
        if not self._sources or self._sources[-1] != source:
            self._sources.append(source)
        file = len(self._sources) - 1
        given = np.asarray(numbers, np.int64)
        first = np.flatnonzero(np.diff(given, prepend=given[0] - 2) != 1)  # of each run
        if self._follows(file, int(given[0])):
            first = first[1:]
        self._starts.extend((first + self._rows).tolist())
        self._numbers.extend(given[first].tolist())
        self._files.extend([file] * len(first))
        self._rows += len(given)

    def _follows(self, file: int, number: int) -> bool:
        if not self._starts or self._files[-1] != file:
            return False
        return self._numbers[-1] + self._rows - self._starts[-1] == number

    def truncate(self, rows: int) -> None:
        """Forget all rows but the first ones."""
        runs = bisect_right(self._starts, rows - 1)
        del self._starts[runs:], self._numbers[runs:], self._files[runs:]
        self._rows = rows

    def __getitem__(self, row: int) -> str:
        run = bisect_right(self._starts, row) - 1
        return f"{self._sources[self._files[run]]}{self._numbers[run] + row - self._starts[run]}"


class Column:
    """A column of numbers. Rows that all have the default take no memory.

    Example:
        >>> weights = Column("d", 1.0)
        >>> weights.extend([1.0, 1.0]); weights.is_constant
        True
        >>> weights.extend([2.0]); weights.values().tolist()
        [1.0, 1.0, 2.0]
    """

    def __init__(self, kind: str, default: float) -> None:
        self._kind, self.default = kind, default
        self._values: Any = array(kind)
        self._rows = 0
        self.is_constant = True

    def __len__(self) -> int:
        return self._rows

    def extend(self, values: Sequence[float]) -> None:
        """Add rows."""
        default, nan = self.default, self.default != self.default
        if self.is_constant and any(value != default and not (nan and value != value) for value in values):
            self._values = array(self._kind, [self.default]) * self._rows
            self.is_constant = False
        self._rows += len(values)
        if not self.is_constant:
            self._values.extend(values)

    def truncate(self, rows: int) -> None:
        """Forget all rows but the first ones."""
        self._rows = rows
        del self._values[rows:]

    def values(self) -> NDArray[Any]:
        """Return all rows, without a copy."""
        if self.is_constant:
            return np.broadcast_to(np.array(self.default, self._kind), (self._rows,))
        return np.frombuffer(self._values, self._kind)
