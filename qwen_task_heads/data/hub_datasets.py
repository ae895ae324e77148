"""A data set of `datasets`, on the Hugging Face Hub or saved to disk -> rows; and the names of splits.

Design: `datasets` is imported on use, code of a data set is never run
(`trust_remote_code` is not passed), and whatever the network does becomes one `TaskHeadsError`.
Rows are numbered from 1, as in `owner/name[train]:row 17`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from qwen_task_heads.data.batches import (
    ABSENT,
    ColumnBatch,
    Item,
    Kept,
    Row,
    RowSource,
    in_batches,
)
from qwen_task_heads.data.json_files import FileProblem, check_object
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

SPLITS = {
    "train": ("train", "training"),
    "dev": ("dev", "val", "valid", "validation"),
    "test": ("test", "testing"),
}
HELD = 256  # rows that are held at a time: they may have columns of images


class NoSuchSplit(TaskHeadsError):
    """A folder or data set that is there, without the split that was asked for."""


def error_at(where: str, found: str, accepted: str, remedy: str) -> TaskHeadsError:
    """One problem as an error."""
    return TaskHeadsError(Problem(where, found, accepted, remedy))


def split_name(name: str) -> str | None:
    """The split that a file name states, as `train`, `dev` or `test`: `pairs_dev.jsonl` -> `dev`."""
    words = [word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", Path(name).stem.lower())]
    return next((split for split, names in SPLITS.items() for name in names if name in words), None)


def canonical_split(split: str) -> str:
    """`validation` -> `dev`; a name of another kind stays as it is."""
    return next((key for key, names in SPLITS.items() if split.lower() in names), split)


def first_few(names: list[str]) -> str:
    """Names for a message, at most eight."""
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def open_huggingface(name: str, split: str | None, *, streaming: bool = False) -> RowSource:
    """The rows of a data set on the Hugging Face Hub, or in its local cache."""
    return _pick_split(name, _load_huggingface(name, streaming=streaming), split)


@lru_cache(maxsize=2)
def _load_huggingface(name: str, *, streaming: bool) -> Any:
    """All splits, once per process: train and dev are then of one state of the hub."""
    try:
        import datasets
        from huggingface_hub.errors import HTTPError  # of whichever HTTP client this version uses
    except ImportError as error:
        raise _missing(name, "datasets", "train", error) from error
    try:
        return datasets.load_dataset(name, streaming=streaming)
    except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
        raise _unfetched(name, "the Hugging Face Hub", error) from error


def is_saved_dataset(folder: str) -> bool:
    """Return whether a folder was written by `save_to_disk` of `datasets`."""
    there = (os.path.isfile(os.path.join(folder, name)) for name in ("dataset_info.json", "state.json"))
    return os.path.isfile(os.path.join(folder, "dataset_dict.json")) or all(there)


def open_saved(folder: str, split: str | None) -> RowSource:
    """The rows of a folder that was written by `save_to_disk`."""
    return _pick_split(folder, _load_saved(folder, "load_from_disk"), split)


def open_arrow(path: str) -> RowSource:
    """Rows of an Arrow file of `datasets`, such as one of its cache."""
    try:
        return rows_of(path, _load_saved(path, "Dataset.from_file"))
    except TaskHeadsError as error:
        (problem,) = error.problems
        found = FileProblem(problem.where, problem.problem, problem.expected, problem.fix)
        return RowSource(path, lambda: iter([(path, found)]))


def _load_saved(path: str, loader: str) -> Any:
    try:
        import datasets
        import pyarrow as pa
    except ImportError as error:
        raise _missing(path, "datasets", "train", error) from error
    try:
        return attrgetter(loader)(datasets)(path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = shorten(str(error).split("\n", 1)[0], 120)
        found = f"what datasets cannot open ({type(error).__name__}: {reason})"
        accepted = "what save_to_disk of datasets wrote, as a whole"
        raise error_at(path, found, accepted, "save it again, or as Parquet by to_parquet") from error


def _missing(where: str, package: str, extra: str, error: ImportError) -> TaskHeadsError:
    found = f"a data set id, but {package} is not installed ({error})"
    return error_at(where, found, "local files without it", f"pip install 'qwen-task-heads[{extra}]'")


def _unfetched(where: str, hub: str, error: Exception) -> TaskHeadsError:
    reason = shorten(str(error).split("\n", 1)[0], 160)
    found = f"no such path here, and it cannot be fetched from {hub} ({type(error).__name__}: {reason})"
    remedy = (
        "check the id and the connection, log in if it is private, or download the files and give their path"
    )
    return error_at(where, found, "a data set that this machine can reach or has cached", remedy)


def _pick_split(name: str, found: Any, split: str | None) -> RowSource:
    """One split of what a hub gave: a mapping of splits, or rows without splits."""
    splits: Mapping[str, Any] = found if isinstance(found, Mapping) else {"train": found}
    wanted = [key for key in splits if split is not None and canonical_split(key) == canonical_split(split)]
    if split is None and len(splits) == 1:
        wanted = list(splits)
    if len(wanted) != 1:
        what = "several splits" if split is None or wanted else f"no split {shorten(split)}"
        accepted = f"one of {first_few([shorten(key) for key in wanted or splits])}"
        remedy = "name one by split=, or save it as a file of its own (to_parquet) and name that"
        problem = Problem(name, f"found {what}", accepted, remedy)
        raise TaskHeadsError(problem) if split is None or wanted else NoSuchSplit(problem)
    part = f"{name}[{wanted[0]}]"
    return rows_of(part, splits[wanted[0]])


def rows_of(part: str, rows: Any) -> RowSource:
    """Return the rows of one split, with the class names that its columns declare.

    Args:
        part: name of the split, for messages.
        rows: a data set of `datasets`, or plain rows.
    """
    once = iter(rows) is rows  # a generator, which no second pass could read
    items: Any = Kept(in_batches(_hub_rows(part, rows), size=HELD)) if once else None
    return RowSource(part, lambda: iter(items) if once else _hub_items(part, rows), lambda: _declared(rows))


def _hub_items(part: str, rows: Any) -> Iterator[Item]:
    """Rows in batches: of a data set by its columns, which costs a tenth of its rows one by one."""
    try:
        import datasets
    except ImportError:  # plain rows need no datasets
        datasets = None  # type: ignore[assignment]
    if datasets is None or not isinstance(rows, datasets.Dataset) or not len(rows):
        yield from in_batches(_hub_rows(part, rows), size=HELD)
        return
    number = 0
    try:
        for columns in rows.iter(HELD):
            count = len(next(iter(columns.values()), ()))
            made = {
                name: [ABSENT if value is None else value for value in values]
                for name, values in columns.items()
                if any(value is not None for value in values)
            }
            yield ColumnBatch(made, range(number + 1, number + count + 1), f"{part}:row ")
            number += count
    except (OSError, ValueError) as error:
        yield _broken(part, number, error)


def _declared(rows: Any) -> dict[str, tuple[str, ...]]:
    try:
        import datasets
    except ImportError:  # plain rows need no datasets, and declare nothing
        return {}
    is_set = isinstance(rows, datasets.Dataset | datasets.IterableDataset)
    return names_of_classes(rows.features) if is_set and rows.features else {}  # a stream may not say


def names_of_classes(features: Any) -> dict[str, tuple[str, ...]]:
    """Return column -> names, for the columns of `ClassLabel`, and for lists of these.

    Args:
        features: of `datasets`.
    """
    import datasets

    result = {}
    for column, feature in features.items():
        inner = feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else feature
        if isinstance(inner, datasets.ClassLabel) and inner.names:
            result[column] = tuple(inner.names)
    return result


def _hub_rows(part: str, rows: Any) -> Iterator[Row]:
    from huggingface_hub.errors import HTTPError

    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            # Arrow fills columns that a row left out with nulls: absent, as in Parquet.
            where = f"{part}:row {number}"
            yield where, check_object(where, {key: value for key, value in row.items() if value is not None})
    except (OSError, ValueError, HTTPError) as error:  # a stream that breaks off
        yield _broken(part, number, error)
        return
    if not number:
        problem = FileProblem(
            part, "the split holds no rows", "at least one row", "add rows, or name another split"
        )
        yield part, problem


def _broken(part: str, number: int, error: Exception) -> Row:
    reason = shorten(str(error).split("\n", 1)[0], 160)
    found = f"broke off after row {number:,} ({type(error).__name__}: {reason})"
    return part, FileProblem(part, found, "a whole split", "run again, or download it first")
