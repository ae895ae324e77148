"""Shards of a large result on disk: each is written atomically, for one input and model.

`OUTPUT.parts/` has a manifest and one JSON Lines file per shard. A shard is renamed to its final name after
its bytes are on the disk, so a file with that name is complete. A killed run is resumed by computing the
missing shards. The manifest has the input, the model and the options of the shards; a run with others is
refused. After all shards are written, the result is renamed to its final name too, and the folder is removed.
Several machines need a shared file system.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import TaskHeadsError, error_at, shorten

MANIFEST = "manifest.json"
FORMAT = 1  # version of the manifest; increase it if the meaning of a key changes
SUFFIXES = (".jsonl", ".csv", ".tsv")


class Shards:
    """The shards of one output.

    Args:
        output: the file to write, `.jsonl`, `.csv` or `.tsv`.
        rows: number of rows of the whole input.
        block_rows: rows of a shard; the last one may have fewer.
        identity: values that determine the shards (hash of the input and the model, options), by name; JSON
            scalars.

    Example:
        >>> import pathlib, tempfile
        >>> from qwen_task_heads.inference.shards import Shards
        >>> output = pathlib.Path(tempfile.mkdtemp(), "out.jsonl")
        >>> shards = Shards(output, rows=3, block_rows=2, identity={"model": "a"})
        >>> shards.open()
        >>> for index in shards.missing():
        ...     shards.write(index, [{"row": index}] * (2 if index == 0 else 1))
        >>> shards.assemble(columns=["row"])
        >>> output.read_text().split("\\n")[0], shards.folder.exists()
        ('{"row": 0}', False)
    """

    def __init__(self, output: Path, *, rows: int, block_rows: int, identity: dict[str, Any]) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        self.rows = rows
        self.block_rows = block_rows
        self.identity = {**identity, "rows": rows, "block_rows": block_rows}

    def check(self) -> None:
        """Check whether this run may write here, without changing files.

        Raises:
            TaskHeadsError: an existing output, or shards of another input, model or option.
        """
        path = self.folder / MANIFEST
        if not path.is_file():
            if self.output.exists():
                raise error_at(
                    str(self.output),
                    "the file exists already",
                    "a new file",
                    "name another --output, or remove it",
                    code="path-exists",
                )
            return
        try:
            content = json.loads(path.read_bytes())
            version, stated = content["format"], dict(content["identity"])
        except (ValueError, KeyError, TypeError) as error:
            raise error_at(
                str(path),
                "the manifest is corrupted",
                "a manifest of this library",
                f"remove {self.folder}",
                code="checkpoint-incomplete",
            ) from error
        differences = [
            f"{name} was {shorten(stated.get(name))} and is {shorten(self.identity.get(name))}"
            for name in sorted({*stated, *self.identity})
            if stated.get(name) != self.identity.get(name)
        ]
        if version != FORMAT:
            differences = [f"format {shorten(version)}"]
        if differences:
            raise error_at(
                str(self.folder),
                f"found shards of another run ({'; '.join(differences)})",
                "shards of the same input, model and options",
                f"repeat that command to finish it, name another --output, or remove {self.folder}",
                code="checkpoint-foreign",
            )

    def open(self) -> None:
        """Create the folder and its manifest; called by the main process after all processes have checked."""
        path = self.folder / MANIFEST
        if path.is_file():
            return
        content = json.dumps({"format": FORMAT, "identity": self.identity}, indent=1)
        try:
            if self.folder.exists():  # shards without a manifest, of a run that was killed during its cleanup
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            _write(path, [content])
        except OSError as error:
            raise _disk_error(path, error) from error

    def missing(self) -> list[int]:
        """Return the indices of the missing shards."""
        count = -(-self.rows // self.block_rows)
        existing = {path.name for path in self.folder.glob("*.jsonl")}
        return [index for index in range(count) if self._path(index).name not in existing]

    def count_rows(self, indices: Iterable[int]) -> int:
        """Return the number of rows of some shards."""
        return sum(min(self.block_rows, self.rows - index * self.block_rows) for index in indices)

    def write(self, index: int, rows: Sequence[dict[str, Any]]) -> None:
        """Write one shard atomically.

        Raises:
            TaskHeadsError: an error of the disk.
        """
        path = self._path(index)
        try:
            _write(path, [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows])
        except OSError as error:
            raise _disk_error(path, error) from error

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield all rows in order.

        Raises:
            TaskHeadsError: a shard that is missing, corrupted or has another number of rows.
        """
        for start in range(0, self.rows, self.block_rows):
            path, count = self._path(start // self.block_rows), min(self.block_rows, self.rows - start)
            fix = "remove this shard and start the same command again"
            code = "checkpoint-incomplete"
            try:
                with path.open("rb") as stream:
                    rows = [json.loads(line) for line in stream]
            except (OSError, ValueError) as error:
                problem = f"the shard cannot be read ({shorten(str(error))})"
                raise error_at(str(path), problem, f"{count} rows", fix, code=code) from error
            if len(rows) != count:
                raise error_at(str(path), f"the shard has {len(rows)} rows", f"{count} rows", fix, code=code)
            yield from rows

    def assemble(self, *, columns: Sequence[str], rows: Iterator[dict[str, Any]] | None = None) -> None:
        """Write the output of all shards, and remove them.

        Args:
            columns: header of `.csv` and `.tsv`; their lists and dictionaries are written as JSON.
            rows: rows to write instead of `read()`, such as a generator that counts them.

        Raises:
            TaskHeadsError: a corrupted shard, or an error of the disk; the shards are kept.
        """
        temporary = self.folder / f"{self.output.name}.tmp"
        rows = self.read() if rows is None else rows
        try:
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                if self.output.suffix == ".jsonl":
                    stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                else:
                    delimiter = "\t" if self.output.suffix == ".tsv" else ","
                    table = csv.DictWriter(stream, columns, delimiter=delimiter, lineterminator="\n")
                    table.writeheader()
                    table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
                _flush(stream)
            os.replace(temporary, self.output)
        except OSError as error:
            raise _disk_error(self.output, error) from error
        shutil.rmtree(self.folder, ignore_errors=True)  # the result is complete without the shards

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:08d}.jsonl"


def _write(path: Path, lines: list[str]) -> None:
    """Write a file atomically; two processes may write the same one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(lines)
        _flush(stream)
    os.replace(temporary, path)


def _flush(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _disk_error(path: Path, error: OSError) -> TaskHeadsError:
    if isinstance(error, FileNotFoundError):
        return error_at(
            str(path),
            "the folder was removed during the run",
            "one run of a command at a time",
            "check whether another run has finished, or start again",
            code="path-not-found",
        )
    return error_at(
        str(path),
        f"the file cannot be written ({error.strerror or error})",
        "a writable disk with enough space",
        "free some space or check the permissions, and start again",
        code="disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "path-access",
    )
