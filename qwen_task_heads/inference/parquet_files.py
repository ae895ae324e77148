"""Score Parquet files one by one, each into a file of the same name that appears when it is complete."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError

SUFFIX = ".parquet"


def pending_files(source: str | Path, target: str | Path) -> list[tuple[Path, Path]]:
    """Return the input files without an output file, each with the path of its output.

    Args:
        source: a Parquet file, or a folder with Parquet files at any depth.
        target: folder of the output; it is created.

    Raises:
        TaskHeadsError: no Parquet file, or an output inside of the input.
    """
    source, target = Path(source), Path(target)
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
    pairs = [(path, target / path.relative_to(base)) for path in files]
    return [(path, output) for path, output in pairs if not output.exists()]


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
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    incomplete = target.with_name(f".{target.name}.{os.getpid()}.incomplete")
    for old in target.parent.glob(f".{target.name}.*.incomplete"):  # of processes that were killed
        old.unlink(missing_ok=True)
    rows = errors = 0
    writer: Any = None
    try:
        file = pq.ParquetFile(source)
        empty = pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
        for batch in file.iter_batches(batch_rows) if file.metadata.num_rows else [empty]:
            table = pa.Table.from_batches([batch])
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
