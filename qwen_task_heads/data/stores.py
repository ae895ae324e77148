"""Store columns of many rows outside of Python objects: texts in Arrow, numbers in arrays, places as numbers.

Design:
- Texts are in chunks of `CHUNK` rows. Above `SPOOL_BYTES`, chunks are written to an unnamed file in the cache
  of `datasets`, and read back one at a time. The system removes the file when the process ends.
- Stored rows never change. A table of examples is a store with the numbers of its rows (`example_tables.py`).
- pyarrow comes with `datasets`, of the extra `train`, and is imported on use.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.errors import TaskHeadsError, error_at
from qwen_task_heads.sources.keys import KEYS, Hashes, hash_keys

CHUNK = 4096
SPOOL_BYTES = 64 * 2**20
Numbers = NDArray[np.int64]


class Texts:
    """A column of texts that grows at its end; it takes no memory while all rows are empty.

    Args:
        key: returns the part of a text that `hashes` hashes; None for a column without hashes.

    Example:
        >>> texts = Texts()
        >>> texts.extend(["Tea", "On tea"])
        >>> len(texts), texts[1], texts.take(np.array([1, 0]))
        (2, 'On tea', ['On tea', 'Tea'])
    """

    def __init__(self, key: Callable[[str], str] | None = None) -> None:
        self._key = key
        self._empty = 0  # number of rows while all of them are empty
        self._pending: list[str] = []
        self._chunks: list[Any] = []  # Arrow arrays, or (position, sizes of offsets and data) in the file
        self._hashes = array("Q")
        self._bytes = 0
        self._file: Any = None
        self._lock = Lock()  # for the position in the file
        self._load = lru_cache(maxsize=4)(self._load_chunk)

    def __reduce__(self) -> tuple[Any, ...]:
        return texts_with, (self._key, self.take(np.arange(len(self))))

    def __len__(self) -> int:
        return self._empty + CHUNK * len(self._chunks) + len(self._pending)

    @property
    def are_empty(self) -> bool:
        """Whether all rows are empty."""
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
        """Remove all rows except the first `rows`."""
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
        for run in np.split(rows, bounds):  # consecutive rows of one chunk
            chunk = int(run[0]) // CHUNK
            if chunk == len(self._chunks):
                result += [self._pending[place] for place in (run - CHUNK * chunk).tolist()]
            elif len(run) == 1:
                result.append(self._load(chunk)[int(run[0]) - CHUNK * chunk].as_py())
            else:
                result += self._load(chunk).take(run - CHUNK * chunk).to_pylist()
        return result

    def containing(self, mark: str) -> Numbers:
        """Return the rows whose text contains `mark`, in their order."""
        import pyarrow.compute as pc

        stored = [
            np.flatnonzero(pc.match_substring(self._load(number), mark)) + CHUNK * number
            for number in range(len(self._chunks))
        ]
        start = CHUNK * len(self._chunks)
        last = [start + place for place, text in enumerate(self._pending) if mark in text]
        return np.concatenate([*stored, np.array(last, np.int64)])

    def hashes(self) -> Hashes:
        """Return 64 bits per row, equal for rows with an equal key."""
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
    column = Texts(key)
    column.extend(texts)
    return column


def cache_folder() -> str:
    """Return a folder in the cache of `datasets`, or that of temporary files if it cannot be written."""
    from datasets import config

    folder = os.path.join(config.HF_DATASETS_CACHE, "qwen_task_heads")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return tempfile.gettempdir()
    return folder if os.access(folder, os.W_OK) else tempfile.gettempdir()


def no_room(error: OSError) -> TaskHeadsError:
    """Return the error of a full disk."""
    problem = f"there is no space for the data of the run ({error.strerror or type(error).__name__})"
    expected = "a folder on a disk with about as much free space as the size of the data"
    fix = "set HF_DATASETS_CACHE to such a folder"
    return error_at(cache_folder(), problem, expected, fix, code="disk-full")


class Places:
    """The file and number of each row, such as `train.jsonl:17`. Consecutive rows are one entry.

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
        """Remove all rows except the first `rows`."""
        runs = bisect_right(self._starts, rows - 1)
        del self._starts[runs:], self._numbers[runs:], self._files[runs:]
        self._rows = rows

    def __getitem__(self, row: int) -> str:
        run = bisect_right(self._starts, row) - 1
        return f"{self._sources[self._files[run]]}{self._numbers[run] + row - self._starts[run]}"


class Column:
    """A column of numbers; it takes no memory while all rows have the default.

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
        """Remove all rows except the first `rows`."""
        self._rows = rows
        del self._values[rows:]

    def values(self) -> NDArray[Any]:
        """Return all rows, without a copy."""
        if self.is_constant:
            return np.broadcast_to(np.array(self.default, self._kind), (self._rows,))
        return np.frombuffer(self._values, self._kind)


class Rows:
    """Rows in columns of texts and numbers, with their places, in reading order.

    Args:
        texts: names of the columns of texts, whose keys are in `KEYS`.
        numbers: column of numbers -> its default.
        keys: column of texts -> its name in `KEYS`, if it has another one.

    Example:
        >>> rows = Rows(["text"], {"weight": 1.0})
        >>> rows.extend({"text": ["Tea"], "weight": [2.0]}, source="a.jsonl:", numbers=[3])
        >>> len(rows), rows.texts["text"][0], rows.values("weight").tolist(), rows.places[0]
        (1, 'Tea', [2.0], 'a.jsonl:3')
    """

    def __init__(
        self, texts: Sequence[str], numbers: Mapping[str, float], *, keys: Mapping[str, str] | None = None
    ) -> None:
        self.texts = {name: Texts(KEYS[(keys or {}).get(name, name)]) for name in texts}
        kinds = {name: "q" if isinstance(default, int) else "d" for name, default in numbers.items()}
        self._numbers = {name: Column(kinds[name], default) for name, default in numbers.items()}
        self.places = Places()

    def __len__(self) -> int:
        return len(self.places)

    def extend(self, columns: Mapping[str, Sequence[Any]], *, source: str, numbers: Sequence[int]) -> None:
        """Add rows of one file; `source` and `numbers` are those of a `Batch`."""
        for name, texts in self.texts.items():
            texts.extend(columns[name])
        for name, values in self._numbers.items():
            values.extend(columns[name])
        self.places.extend(source, numbers)

    def truncate(self, rows: int) -> None:
        """Remove all rows except the first `rows`."""
        for texts in self.texts.values():
            texts.truncate(rows)
        for values in self._numbers.values():
            values.truncate(rows)
        self.places.truncate(rows)

    def values(self, name: str) -> NDArray[Any]:
        """Return a column of numbers, without a copy."""
        return self._numbers[name].values()

    def is_constant(self, name: str) -> bool:
        """Return whether all rows have the default of a column of numbers."""
        return self._numbers[name].is_constant
