"""A data set id of the Hugging Face Hub or ModelScope -> rows; and the names that splits go by.

Design: `datasets` and `modelscope` are imported on use, code of a data set is never run
(`trust_remote_code` is not passed), and whatever the network does becomes one `TaskHeadsError`.
Rows are numbered from 1, as in `owner/name[train]:row 17`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from qwen_task_heads.data.parsers import FileProblem, Row
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

SPLITS = {
    "train": ("train", "training"),
    "dev": ("dev", "val", "valid", "validation"),
    "test": ("test", "testing"),
}


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


def open_huggingface(name: str, split: str | None) -> tuple[str, Iterator[Row]]:
    """`(name, rows)` of a data set on the Hugging Face Hub, or in its local cache."""
    return _pick_split(name, _load_huggingface(name), split)


@lru_cache(maxsize=2)
def _load_huggingface(name: str) -> Any:
    """All splits, once per process: train and dev are then of one state of the hub."""
    try:
        import datasets
        from huggingface_hub.errors import HTTPError  # of whichever HTTP client this version uses
    except ImportError as error:
        raise _missing(name, "datasets", "train", error) from error
    try:
        return datasets.load_dataset(name)
    except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
        raise _unfetched(name, "the Hugging Face Hub", error) from error


def open_modelscope(name: str, split: str | None) -> tuple[str, Iterator[Row]]:
    """`(name, rows)` of a data set on ModelScope."""
    return _pick_split(f"modelscope:{name}", _load_modelscope(name), split)


@lru_cache(maxsize=2)
def _load_modelscope(name: str) -> Any:
    """All splits, once per process."""
    try:
        import requests
        from modelscope.msdatasets import MsDataset
    except ImportError as error:
        raise _missing(f"modelscope:{name}", "modelscope", "modelscope", error) from error
    try:
        return MsDataset.load(name)
    except (OSError, ValueError, RuntimeError, requests.RequestException) as error:
        raise _unfetched(f"modelscope:{name}", "ModelScope", error) from error


def _missing(where: str, package: str, extra: str, error: ImportError) -> TaskHeadsError:
    found = f"a data set id, but {package} is not installed ({error})"
    return error_at(
        where, found, "accepted: local files without it", f"pip install 'qwen-task-heads[{extra}]'"
    )


def _unfetched(where: str, hub: str, error: Exception) -> TaskHeadsError:
    reason = shorten(str(error).split("\n", 1)[0], 160)
    found = f"no such path here, and it cannot be fetched from {hub} ({type(error).__name__}: {reason})"
    remedy = (
        "check the id and the connection, log in if it is private, or download the files and give their path"
    )
    return error_at(where, found, "accepted: a data set that this machine can reach or has cached", remedy)


def _pick_split(name: str, found: Any, split: str | None) -> tuple[str, Iterator[Row]]:
    """One split of what a hub gave: a mapping of splits, or rows without splits."""
    splits: Mapping[str, Any] = found if isinstance(found, Mapping) else {"train": found}
    wanted = [key for key in splits if split is not None and canonical_split(key) == canonical_split(split)]
    if split is None and len(splits) == 1:
        wanted = list(splits)
    if len(wanted) != 1:
        what = "several splits" if split is None or wanted else f"no split {shorten(split)}"
        accepted = f"accepted: one of {first_few([shorten(key) for key in wanted or splits])}"
        problem = Problem(name, f"found {what}", accepted, "name one by split=")
        raise TaskHeadsError(problem) if split is None or wanted else NoSuchSplit(problem)
    part = f"{name}[{wanted[0]}]"
    return part, _hub_rows(part, splits[wanted[0]])


def _hub_rows(part: str, rows: Any) -> Iterator[Row]:
    empty = True
    for number, row in enumerate(rows, start=1):
        empty = False
        # Arrow fills columns that a row left out with nulls: absent, as in Parquet.
        yield f"{part}:row {number}", {key: value for key, value in row.items() if value is not None}
    if empty:
        yield (
            part,
            FileProblem(part, "the split holds no rows", "accepted: at least one row", "name another split"),
        )
