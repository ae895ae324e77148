"""Read the rows of a data set of `datasets`, on the Hugging Face Hub or saved to disk; define split names.

Design: `datasets` is imported on use. Code of a data set is never run (`trust_remote_code` is not passed).
Network errors become one `TaskHeadsError`. Rows are numbered from 1, as in `owner/name[train]:row 17`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.sources.batches import (
    ABSENT,
    Batch,
    Item,
    Kept,
    Row,
    RowSource,
    in_batches,
)
from qwen_task_heads.sources.json_files import FileProblem, check_object

SPLITS = {
    "train": ("train", "training"),
    "dev": ("dev", "val", "valid", "validation"),
    "test": ("test", "testing"),
}
HELD = 256  # rows in memory at a time: they may have columns of images


class NoSuchSplit(TaskHeadsError):
    """An existing folder or data set lacks the requested split."""


def split_name(name: str) -> str | None:
    """Return the split in a file name, `train`, `dev` or `test`: `dev` for `pairs_dev.jsonl`."""
    words = [word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", Path(name).stem.lower())]
    return next((split for split, names in SPLITS.items() for name in names if name in words), None)


def canonical_split(split: str) -> str:
    """Return `train`, `dev` or `test` for their synonyms, such as `validation`; other names are unchanged."""
    return next((key for key, names in SPLITS.items() if split.lower() in names), split)


def first_few(names: list[str]) -> str:
    """Return at most eight names, joined for a message."""
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def open_huggingface(name: str, split: str | None, *, streaming: bool = False) -> RowSource:
    """Return the rows of a data set on the Hugging Face Hub, or in its local cache."""
    return _pick_split(name, _load_huggingface(name, streaming=streaming), split)


@lru_cache(maxsize=2)
def _load_huggingface(name: str, *, streaming: bool) -> Any:
    """Load all splits once per process, so that they come from one revision."""
    try:
        import datasets
        from huggingface_hub.errors import HTTPError  # of the HTTP client that this version uses
    except ImportError as error:
        raise _missing(name, error) from error
    try:
        return datasets.load_dataset(name, streaming=streaming)
    except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
        raise _unfetched(name, "the Hugging Face Hub", error) from error


def is_saved_dataset(folder: str) -> bool:
    """Return whether a folder was written by `save_to_disk` of `datasets`."""
    single = (os.path.isfile(os.path.join(folder, name)) for name in ("dataset_info.json", "state.json"))
    return os.path.isfile(os.path.join(folder, "dataset_dict.json")) or all(single)


def open_saved(folder: str, split: str | None) -> RowSource:
    """Return the rows of a folder that was written by `save_to_disk`."""
    return _pick_split(folder, _load_saved(folder, "load_from_disk"), split)


def open_arrow(path: str) -> RowSource:
    """Return the rows of an Arrow file of `datasets`, such as a file of its cache."""
    try:
        return rows_of(path, _load_saved(path, "Dataset.from_file"))
    except TaskHeadsError as error:
        of_file = FileProblem(**vars(error.problems[0]))
        return RowSource(path, lambda: iter([(path, of_file)]))


def _load_saved(path: str, loader: str) -> Any:
    try:
        import datasets
        import pyarrow as pa
    except ImportError as error:
        raise _missing(path, error) from error
    try:
        return attrgetter(loader)(datasets)(path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = shorten(str(error).split("\n", 1)[0], 120)
        problem = f"datasets cannot open it ({type(error).__name__}: {reason})"
        expected = "all files that save_to_disk of datasets wrote"
        fix = "save it again, or as Parquet by to_parquet"
        raise error_at(path, problem, expected, fix, code="file-format") from error


def _missing(where: str, error: ImportError) -> TaskHeadsError:
    problem = f"found a data set, but datasets is not installed ({error})"
    expected, fix = "local files, or the package datasets", "pip install 'qwen-task-heads[train]'"
    return error_at(where, problem, expected, fix, code="package-missing")


def _unfetched(where: str, hub: str, error: Exception) -> TaskHeadsError:
    reason = shorten(str(error).split("\n", 1)[0], 160)
    problem = f"there is no such local path, and {hub} did not provide it ({type(error).__name__}: {reason})"
    fix = (
        "check the id and the connection, log in if it is private, or download the files and give their path"
    )
    expected = "a data set that this machine can reach or has cached"
    return error_at(where, problem, expected, fix, code="hub-unreachable")


def _pick_split(name: str, loaded: Any, split: str | None) -> RowSource:
    """Return one split of a loaded data set: a mapping of splits, or rows without splits."""
    splits: Mapping[str, Any] = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    wanted = [key for key in splits if split is not None and canonical_split(key) == canonical_split(split)]
    if split is None and len(splits) == 1:
        wanted = list(splits)
    if len(wanted) != 1:
        found = "several splits" if split is None or wanted else f"no split {shorten(split)}"
        expected = f"one of {first_few([shorten(key) for key in wanted or splits])}"
        fix = "name one by split=, or save it as a file of its own (to_parquet) and name that"
        problem = Problem(name, f"found {found}", expected, fix, code="split-missing")
        raise TaskHeadsError(problem) if split is None or wanted else NoSuchSplit(problem)
    return rows_of(f"{name}[{wanted[0]}]", splits[wanted[0]])


def rows_of(name: str, rows: Any) -> RowSource:
    """Return the rows of one split, with the class names that its columns declare.

    Args:
        name: of the split, for messages.
        rows: a data set of `datasets`, or plain rows.
    """
    once = iter(rows) is rows  # a generator, which can be read only once
    items: Any = Kept(in_batches(_hub_rows(name, rows), size=HELD)) if once else None
    return RowSource(name, lambda: iter(items) if once else _hub_items(name, rows), lambda: _declared(rows))


def _hub_items(name: str, rows: Any) -> Iterator[Item]:
    """Yield batches; of a data set by columns, which takes a tenth of the time of single rows."""
    try:
        import datasets
    except ImportError:  # plain rows need no datasets
        datasets = None  # type: ignore[assignment]
    if datasets is None or not isinstance(rows, datasets.Dataset) or not len(rows):
        yield from in_batches(_hub_rows(name, rows), size=HELD)
        return
    number = 0
    try:
        for columns in rows.iter(HELD):
            count = len(next(iter(columns.values()), ()))
            present = {
                column: [ABSENT if value is None else value for value in values]
                for column, values in columns.items()
                if any(value is not None for value in values)
            }
            yield Batch(present, range(number + 1, number + count + 1), f"{name}:row ")
            number += count
    except (OSError, ValueError) as error:
        yield _broken(name, number, error)


def _declared(rows: Any) -> dict[str, tuple[str, ...]]:
    try:
        import datasets
    except ImportError:  # plain rows need no datasets, and declare no names
        return {}
    is_dataset = isinstance(rows, datasets.Dataset | datasets.IterableDataset)
    # The features of a stream may be None.
    return names_of_classes(rows.features) if is_dataset and rows.features else {}


def names_of_classes(features: Any) -> dict[str, tuple[str, ...]]:
    """Return a map of columns to names, for columns of `ClassLabel` and of lists of these.

    Args:
        features: `Features` of `datasets`.
    """
    import datasets

    result = {}
    for column, feature in features.items():
        inner = feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else feature
        if isinstance(inner, datasets.ClassLabel) and inner.names:
            result[column] = tuple(inner.names)
    return result


def _hub_rows(name: str, rows: Any) -> Iterator[Row]:
    from huggingface_hub.errors import HTTPError

    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            # Arrow fills missing columns of a row with nulls, so nulls are absent values, as in Parquet.
            where = f"{name}:row {number}"
            yield where, check_object(where, {key: value for key, value in row.items() if value is not None})
    except (OSError, ValueError, HTTPError) as error:  # a stream that ends too early
        yield _broken(name, number, error)
        return
    if not number:
        fix = "add rows, or name another split"
        yield name, FileProblem(name, "the split has no rows", "at least one row", fix, code="file-empty")


def _broken(name: str, number: int, error: Exception) -> Row:
    reason = shorten(str(error).split("\n", 1)[0], 160)
    problem = f"the rows end with an error after row {number:,} ({type(error).__name__}: {reason})"
    fix = "run again, or download it first"
    return name, FileProblem(name, problem, "a whole split", fix, code="file-truncated")
