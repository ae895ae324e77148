"""The blocks of a large result on disk: written whole or not at all, and only ever of one input and model.

`OUTPUT.parts/` holds a manifest and one file of JSON lines per block, each of which takes its name by
rename once its bytes are on the disk. A file with a block's name is therefore complete, whoever wrote it
and whenever, and a killed run is resumed by computing the blocks that are not there. The manifest says of
which input, model and options the blocks are; others are refused by name. The result takes its own name by
rename too, when all blocks are there, and the folder goes. Several machines need a shared file system.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest; raise it when its keys change meaning
SUFFIXES = (".jsonl", ".csv", ".tsv")


class Parts:
    """The blocks of one output.

    Args:
        output: the file to be made, `.jsonl`, `.csv` or `.tsv`.
        rows: rows of the whole input.
        block_rows: rows of a block; the last one has the rest.
        identity: what the blocks hang on (hash of the input, of the model, options), by name; JSON scalars.

    Example:
        >>> import pathlib, tempfile
        >>> from qwen_task_heads.inference.shards import Parts
        >>> output = pathlib.Path(tempfile.mkdtemp(), "out.jsonl")
        >>> parts = Parts(output, rows=3, block_rows=2, identity={"model": "a"})
        >>> parts.open()
        >>> for block in parts.missing():
        ...     parts.write(block, [{"row": block}] * (2 if block == 0 else 1))
        >>> parts.assemble(columns=["row"])
        >>> output.read_text().split("\\n")[0], parts.folder.exists()
        ('{"row": 0}', False)
    """

    def __init__(self, output: Path, *, rows: int, block_rows: int, identity: dict[str, Any]) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        self.rows = rows
        self.block_rows = block_rows
        self.identity = {**identity, "rows": rows, "block_rows": block_rows}

    def check(self) -> None:
        """Look whether this run may write here; change nothing.

        Raises:
            TaskHeadsError: an output that is there already, or blocks of another input, model or option.
        """
        path = self.folder / MANIFEST
        if not path.is_file():
            if self.output.exists():
                raise _problem(
                    self.output,
                    "the file is there already",
                    "a new file",
                    "name another --output, or remove it",
                )
            return
        try:
            found = json.loads(path.read_bytes())
            known, stated = found["format"], dict(found["identity"])
        except (ValueError, KeyError, TypeError) as error:
            raise _problem(path, "damaged", "a manifest of this program", f"remove {self.folder}") from error
        differing = [
            f"{name} was {shorten(stated.get(name))} and is {shorten(self.identity.get(name))}"
            for name in sorted({*stated, *self.identity})
            if stated.get(name) != self.identity.get(name)
        ]
        if known != FORMAT:
            differing = [f"format {shorten(known)}"]
        if differing:
            raise _problem(
                self.folder,
                f"parts of another run ({'; '.join(differing)})",
                "parts of the same input, model and options",
                f"repeat that command to finish it, name another --output, or remove {self.folder}",
            )

    def open(self) -> None:
        """Make the folder and its manifest; the main process does, after every process has checked."""
        path = self.folder / MANIFEST
        if path.is_file():
            return
        content = json.dumps({"format": FORMAT, "identity": self.identity}, indent=1)
        try:
            if self.folder.exists():  # of a run that was killed while it cleared up: blocks of who knows what
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            _write(path, [content])
        except OSError as error:
            raise _disk_problem(path, error) from error

    def missing(self) -> list[int]:
        """Numbers of the blocks that are not there yet."""
        count = -(-self.rows // self.block_rows)
        there = {path.name for path in self.folder.glob("*.jsonl")}
        return [block for block in range(count) if self._path(block).name not in there]

    def write(self, block: int, rows: Sequence[dict[str, Any]]) -> None:
        """Write one block, whole.

        Raises:
            TaskHeadsError: what the disk refused.
        """
        path = self._path(block)
        try:
            _write(path, [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows])
        except OSError as error:
            raise _disk_problem(path, error) from error

    def read(self) -> Iterator[dict[str, Any]]:
        """All rows, in order.

        Raises:
            TaskHeadsError: a block that is not there, or has another number of rows.
        """
        for start in range(0, self.rows, self.block_rows):
            path, expected = self._path(start // self.block_rows), min(self.block_rows, self.rows - start)
            remedy = "remove this part and start the same command again"
            try:
                with path.open("rb") as stream:
                    rows = [json.loads(line) for line in stream]
            except (OSError, ValueError) as error:
                found = f"a damaged part ({shorten(str(error))})"
                raise _problem(path, found, f"{expected} rows", remedy) from error
            if len(rows) != expected:
                raise _problem(path, f"a part of {len(rows)} rows", f"{expected} rows", remedy)
            yield from rows

    def assemble(self, *, columns: Sequence[str], rows: Iterator[dict[str, Any]] | None = None) -> None:
        """Make the output of all blocks, and remove them.

        Args:
            columns: the header of `.csv` and `.tsv`, in which lists and dictionaries stand as JSON.
            rows: what to write instead of `read()`, such as a generator that counts as it passes on.

        Raises:
            TaskHeadsError: a damaged block, or what the disk refused; the blocks stay.
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
            raise _disk_problem(self.output, error) from error
        shutil.rmtree(self.folder, ignore_errors=True)  # the result is safe; what is left harms nobody

    def _path(self, block: int) -> Path:
        return self.folder / f"{block:08d}.jsonl"


def _write(path: Path, lines: list[str]) -> None:
    """Write a file that is there whole or not at all; two processes may write the same one."""
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


def _problem(where: Path, found: str, accepted: str, remedy: str) -> TaskHeadsError:
    return TaskHeadsError(Problem(str(where), found, f"{accepted}", remedy))


def _disk_problem(path: Path, error: OSError) -> TaskHeadsError:
    if isinstance(error, FileNotFoundError):
        found, accepted = "its folder is gone", "one run of a command at a time"
        return _problem(path, found, accepted, "look whether another run has finished, or start again")
    found = f"cannot be written ({error.strerror or error})"
    return _problem(
        path, found, "a disk that takes it", "free some space or check the rights, and start again"
    )
