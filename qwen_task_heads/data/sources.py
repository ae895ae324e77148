"""A source -> rows: a file, a folder of files, a data set id of the Hugging Face Hub or ModelScope.

Design:
- An existing local path always wins over an id. What is neither is refused with near names, so that a
  misspelt path is never looked up on a hub.
- The kind of a file is its suffix; the content must agree (`parsers.py`).
- A folder is read flat, sorted by name, links to other files included. Names such as `train.jsonl`,
  `pairs_dev.csv` or `test-00000-of-00002.parquet` are split files: where a folder holds several splits,
  `split` must say which. Reading train and test together by accident is the worst that could happen here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from qwen_task_heads.data.batches import Item, Row, RowSource, TextRow, in_batches
from qwen_task_heads.data.class_files import read_class_lines
from qwen_task_heads.data.excel import read_excel
from qwen_task_heads.data.file_options import PLAIN, FileOptions
from qwen_task_heads.data.hub_datasets import (
    NoSuchSplit,
    canonical_split,
    error_at,
    first_few,
    is_saved_dataset,
    open_arrow,
    open_huggingface,
    open_saved,
    split_name,
)
from qwen_task_heads.data.json_files import FileProblem, read_json, read_jsonl, wrong_kind
from qwen_task_heads.data.table_files import parquet_class_names, read_csv, read_parquet, read_tsv
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.modelscope import HUBS, MODELSCOPE, fetch_modelscope

__all__ = [
    "HUBS",
    "KINDS",
    "TEXT_KINDS",
    "FileProblem",
    "Row",
    "TextRow",
    "open_source",
    "read_rows",
]

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".xlsx": "xlsx",
}
# Of texts with labels, `train.txt` is data too; of preferences it is somebody's notes.
TEXT_KINDS = {**KINDS, ".txt": "lines"}
PARSERS: dict[str, Callable[[str, FileOptions], Iterator[Item]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "xlsx": lambda path, options: in_batches(read_excel(path, options)),
    "lines": lambda path, options: in_batches(read_class_lines(path, options)),
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)


def read_rows(source: str, *, split: str | None = None, hub: str = "huggingface") -> Iterator[Row]:
    """Read all rows of a source, in order.

    Args:
        source: a file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`, `.xlsx`), a folder of such
            files or one by `save_to_disk`, a data set id `owner/name`, or `modelscope:owner/name`.
        split: `train`, `dev` (also `validation`), `test`, or another split name of a hub data set.
            None reads the only split there is.
        hub: where ids without a prefix are looked up, `huggingface` or `modelscope`.

    Yields:
        `(source, dict)`, or `(source, Problem)` for a row that cannot be read; the problem is a
        `FileProblem` where a whole file is at fault.

    Raises:
        TaskHeadsError: the source, the split or the hub does not exist or cannot be fetched.

    Example:
        >>> import pathlib, tempfile
        >>> from qwen_task_heads.data.sources import read_rows
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "rows.csv")
        ...     _ = path.write_text("label,text\\n1,hello\\n")
        ...     [row for _, row in read_rows(str(path))]
        [{'label': '1', 'text': 'hello'}]
    """
    for rows in open_source(source, split=split, hub=hub):
        yield from rows


def open_source(
    source: str,
    *,
    split: str | None = None,
    hub: str = "huggingface",
    kinds: Mapping[str, str] = KINDS,
    streaming: bool = False,
    options: FileOptions = PLAIN,
) -> list[RowSource]:
    """Like `read_rows`, one `RowSource` per file, because columns are checked file by file.

    `kinds` says which suffixes are data (`KINDS` or `TEXT_KINDS`), and `options` how files are read. With
    `streaming`, rows of the Hugging Face Hub are read as they arrive. Of ModelScope all files are fetched,
    and read as any folder (or its `data/`).
    """
    source = os.fspath(source)
    if hub not in HUBS:
        raise error_at("hub", f"found {shorten(hub)}", f"{', '.join(HUBS)}", "choose one of them")
    if os.path.isdir(source) and is_saved_dataset(source):
        return [open_saved(source, split)]
    if os.path.isdir(source):
        return [_open_path(path, kinds, options) for path in _folder_files(source, split, kinds)]
    if os.path.exists(source):
        _check_file_split(source, split)
        return [_open_path(source, kinds, options)]
    if source.startswith("modelscope:"):
        source, hub = source.removeprefix("modelscope:"), "modelscope"
    elif not _looks_like_id(source, kinds):
        raise _not_there(source)
    if not HUB_ID.fullmatch(source):
        raise error_at(source, "no data set id", "owner/name", "check the id")
    if hub == MODELSCOPE:
        return open_source(_modelscope_folder(source), split=split, kinds=kinds, options=options)
    return [open_huggingface(source, split, streaming=streaming)]


@lru_cache(maxsize=4)
def _modelscope_folder(name: str) -> str:
    """The files of a ModelScope data set, once per process: train and dev then are of one state of it."""
    folder, _ = fetch_modelscope(name, kind="dataset")
    at_top = any(os.path.splitext(path.name)[1].lower() in KINDS for path in folder.iterdir())
    return str(folder / "data" if not at_top and (folder / "data").is_dir() else folder)


def _open_path(path: str, kinds: Mapping[str, str], options: FileOptions) -> RowSource:
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".arrow" and os.path.isfile(path):
        return open_arrow(path)
    named = (lambda: parquet_class_names(path)) if suffix == ".parquet" else dict
    return RowSource(path, lambda: _read_path(path, kinds, options), named)


def _read_path(path: str, kinds: Mapping[str, str], options: FileOptions) -> Iterator[Item]:
    kind = kinds.get(os.path.splitext(path)[1].lower())
    if kind is None:
        suffix = os.path.splitext(path)[1]
        found = f"the suffix {shorten(suffix)}" if suffix else "no suffix"
        accepted = "" + ", ".join(kinds)
        yield path, FileProblem(path, found, accepted, "unpack, convert or rename the file")
    elif not os.path.isfile(path):  # a pipe would block, a link in a circle has no content
        found = "a broken link" if os.path.islink(path) else "no regular file"
        yield path, FileProblem(path, found, "regular files", "remove it or replace it")
    else:
        yield from _read_file(path, kind, options)


def _read_file(path: str, kind: str, options: FileOptions) -> Iterator[Item]:
    """Read one file.

    Args:
        path: as the user gave it; it stands in every source.
        kind: a key of `PARSERS`.
        options: encoding, and columns of tables without a header.

    Yields:
        Batches of rows, and `(source, Problem)`; a `FileProblem` where the whole file is at fault.
    """
    try:
        problem = wrong_kind(path, kind)
        if problem:
            yield path, problem
            return
        yield from PARSERS[kind](path, options)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        yield (
            path,
            FileProblem(
                path,
                f"cannot be read ({reason})",
                "a readable file",
                "check the path and its rights",
            ),
        )


def _folder_files(folder: str, split: str | None, kinds: Mapping[str, str]) -> list[str]:
    there = [name for name in sorted(os.listdir(folder)) if not name.startswith((".", "_"))]
    names = [name for name in there if os.path.splitext(name)[1].lower() in KINDS]
    if not names and ".txt" in kinds:  # a README.txt is no data: only train.txt and the like, and only alone
        names = [name for name in there if name.lower().endswith(".txt") and split_name(name)]
    if not names:
        found = "the folder holds no file that can be read"
        raise error_at(
            folder,
            found,
            "" + ", ".join(kinds),
            "name the folder that holds the files itself, or convert them",
        )
    by_split: dict[str | None, list[str]] = {}
    for name in names:
        by_split.setdefault(split_name(name), []).append(name)
    stated = sorted(key for key in by_split if key is not None)
    if split is None:
        if len(stated) > 1:
            found = f"the folder holds several splits ({', '.join(stated)})"
            raise error_at(folder, found, "one split at a time", "name one by split=, or name its file")
        chosen = names
    else:
        wanted = canonical_split(split)
        chosen = by_split.get(wanted, [])
        if not stated and wanted == "train":
            chosen = names  # without split files, all of a folder is for training
        if not chosen:
            found = f"no file for the split {shorten(split)} (files: {first_few(names)})"
            remedy = f"add {split}.jsonl, or name a file of this folder"
            raise NoSuchSplit(Problem(folder, found, "names with train, dev or test", remedy))
    return [os.path.join(folder, name) for name in chosen]


def _check_file_split(path: str, split: str | None) -> None:
    """A file is one split: the one in its name, else train."""
    stated = split_name(os.path.basename(path)) or "train"
    if split is not None and canonical_split(split) != stated:
        found = f"the split {shorten(split)} of a single file"
        raise error_at(path, found, f"{stated!r}, or none", "name the file of that split, or a folder")


def _looks_like_id(source: str, kinds: Mapping[str, str]) -> bool:
    """`owner/name`, unless it reads like a misspelt path: a known suffix, or a folder for an owner."""
    if not HUB_ID.fullmatch(source) or os.path.splitext(source)[1].lower() in kinds:
        return False
    return not os.path.isdir(source.split("/", 1)[0])


def _not_there(source: str) -> TaskHeadsError:
    folder = os.path.dirname(source) or "."
    name = os.path.basename(source)
    there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    near = difflib.get_close_matches(name[:200], there[:10_000], n=3, cutoff=0.6) if len(name) < 256 else []
    found = "there is no such file or folder"
    if os.path.islink(source):
        found = "a broken link"
    elif not os.path.isdir(folder):
        found += f", and no folder {shorten(folder, 120)}"
    remedy = f"did you mean {first_few(near)}?" if near else "check the path"
    if not near and there:
        remedy += f"; the folder holds {first_few(there)}"
    accepted = "an existing path, a data set id owner/name, or modelscope:owner/name"
    return error_at(source if len(source) < 300 else source[:299] + "…", found, accepted, remedy)
