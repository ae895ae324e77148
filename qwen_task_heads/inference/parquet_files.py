"""Score Parquet files one by one, each into a file of the same name that appears when it is complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, reason_of

SUFFIX = ".parquet"
HASH, NO_ROWS = "predicted_model_hash", ""


def pending_files(source: str | Path, target: str | Path) -> list[tuple[Path, Path]]:
    """Return the input files without an output file, each with the path of its output; see `foreign_files`.

    Args:
        source: a Parquet file, or a folder with Parquet files at any depth.
        target: folder of the output; it is created.

    Raises:
        TaskHeadsError: no Parquet file, or an output inside of the input.
    """
    return [pair for pair in _pairs(Path(source), Path(target)) if not pair[1].exists()]


def foreign_files(
    source: str | Path, target: str | Path, *, model_hash: str, rescore: bool = False
) -> list[tuple[Path, Path]]:
    """Return the input files whose output has answers of another model, each with the path of its output.

    The hash is that of `BatchScorer.identity`: a new commit of a repo with the same weights and config is the
    same model. An output without rows has no answers.

    Args:
        source: a Parquet file, or a folder with Parquet files at any depth.
        target: folder of the output.
        model_hash: hash of the model now.
        rescore: return the files instead of an error.

    Raises:
        TaskHeadsError: outputs of another model, or outputs that cannot be read, unless `rescore`.
    """
    problems, foreign = [], []
    for path, output in _pairs(Path(source), Path(target)):
        found = _hash_of(output) if output.exists() else NO_ROWS
        if found in (model_hash, NO_ROWS):
            continue
        foreign.append((path, output))
        problems.append(
            Problem(
                str(output),
                f"found answers of the model {found[:12]}" if found else "found no answers of a model",
                f"answers of the model now, {model_hash[:12]}",
                "name another --output, or pass --rescore true to score the file again",
                code="checkpoint-foreign",
            )
        )
    if problems and not rescore:
        raise TaskHeadsError(problems)
    return foreign


def _hash_of(output: Path) -> str | None:
    """Return the hash in the first row of an output, `NO_ROWS`, or None for another file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(output) as file:
            for batch in file.iter_batches(1, columns=[HASH]):
                found = batch.column(HASH)[0].as_py() if HASH in batch.schema.names else None
                return None if found is None else str(found)
            return NO_ROWS if HASH in file.schema_arrow.names else None
    except (OSError, pa.ArrowException):
        return None


def _pairs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Return all input files, each with the path of its output; see `pending_files`."""
    files = (
        [source]
        if source.is_file()
        else sorted(path for path in source.rglob(f"*{SUFFIX}") if path.is_file())
    )
    if not files or any(path.suffix != SUFFIX for path in files):
        raise TaskHeadsError(
            Problem(
                str(source),
                "found no Parquet file",
                "a Parquet file, or a folder of them",
                "check the path; recipes/predict.py reads other formats",
                code="path-not-found",
            )
        )
    base = source.parent if source.is_file() else source
    if target.resolve() == base.resolve() or base.resolve() in target.resolve().parents:
        raise TaskHeadsError(
            Problem(
                str(target),
                f"found it inside of {base}",
                "a folder outside of the input",
                "choose another --output",
                code="path-exists",
            )
        )
    target.mkdir(parents=True, exist_ok=True)
    return [(path, target / path.relative_to(base)) for path in files]


def score_file(
    score: Callable[[Any], Any], source: str | Path, target: str | Path, *, batch_rows: int = 1024
) -> tuple[int, int]:
    """Score one Parquet file; return the numbers of its rows and of rows with an error.

    The output is written under another name and renamed at the end, so that a killed process leaves no
    incomplete output. What it leaves under the other name is removed by the next try.

    Args:
        score: from an Arrow table to an Arrow table with more columns, such as a `BatchScorer`.
        source: file to read.
        target: file to write.
        batch_rows: rows in memory at a time.

    Raises:
        TaskHeadsError: a file that cannot be read, or that `score` refuses, such as for a column; the places
            name the file.
    """
    import pyarrow.parquet as pq

    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    incomplete = target.with_name(f".{target.name}.{os.getpid()}.incomplete")
    for old in target.parent.glob(f".{target.name}.*.incomplete"):  # of processes that were killed
        old.unlink(missing_ok=True)
    rows = errors = 0
    writer: Any = None
    try:
        for table in _tables(Path(source), batch_rows):
            with _naming(source):
                answers = score(table)
            writer = writer or pq.ParquetWriter(incomplete, answers.schema)
            writer.write_table(answers.cast(writer.schema))
            rows += answers.num_rows
            added = [name for name in answers.column_names if name not in table.column_names]
            for name in added:
                if name.endswith("error"):
                    errors += answers.num_rows - answers[name].null_count
        writer.close()
        incomplete.replace(target)
    finally:
        incomplete.unlink(missing_ok=True)
    return rows, errors


def _tables(source: Path, rows: int) -> Iterator[Any]:
    """Yield tables of a Parquet file; one without rows for a file without rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file:
            empty = pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
            for batch in file.iter_batches(rows) if file.metadata.num_rows else [empty]:
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise error_at(
            str(source),
            f"the file cannot be read ({reason_of(error)})",
            "a complete Parquet file",
            "write it again, or remove it",
            code="file-format",
        ) from error


@contextmanager
def _naming(source: str | Path) -> Iterator[None]:
    """Put the file before the places of problems."""
    try:
        yield
    except TaskHeadsError as error:
        places = [replace(problem, where=f"{source}: {problem.where}") for problem in error.problems]
        raise TaskHeadsError(places) from error
