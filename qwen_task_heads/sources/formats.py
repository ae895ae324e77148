"""Read the rows of a source: a file, a folder, or the id of a data set on a hub.

Design:
- An existing local path takes precedence over an id. A name that is neither is refused with near names, so
  that a misspelt path is never looked up on a hub.
- The kind of a file is its suffix, and the content must agree with it (`json_files.wrong_kind`).
- A folder is read without its subfolders, sorted by name, with links to other files. Names such as
  `train.jsonl`, `pairs_dev.csv` or `test-00000-of-00002.parquet` are split files. If a folder has several
  splits, `split` must name one, so that train and test are never read together by accident.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.hubs import HUBS, HUGGINGFACE, hub_named, resolve
from qwen_task_heads.sources.batches import Item, Row, RowSource, in_batches
from qwen_task_heads.sources.class_files import read_class_lines
from qwen_task_heads.sources.excel import read_excel
from qwen_task_heads.sources.file_options import PLAIN, FileOptions
from qwen_task_heads.sources.hub_datasets import (
    NoSuchSplit,
    canonical_split,
    first_few,
    is_saved_dataset,
    open_arrow,
    open_huggingface,
    open_saved,
    split_name,
)
from qwen_task_heads.sources.json_files import FileProblem, read_json, read_jsonl, wrong_kind
from qwen_task_heads.sources.table_files import parquet_class_names, read_parquet, read_table

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
# Labelled texts may be in `train.txt`. No preference format uses this suffix.
TEXT_KINDS = {**KINDS, ".txt": "lines"}
PARSERS: dict[str, Callable[[str, FileOptions], Iterator[Item]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_table,
    "tsv": partial(read_table, delimiter="\t"),
    "parquet": read_parquet,
    "xlsx": lambda path, options: in_batches(read_excel(path, options)),
    "lines": lambda path, options: in_batches(read_class_lines(path, options)),
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)


def read_rows(source: str, *, split: str | None = None, hub: str = HUGGINGFACE) -> Iterator[Row]:
    """Read all rows of a source, in order.

    Args:
        source: a file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`, `.xlsx`), a folder of such
            files or one by `save_to_disk`, a data set id `owner/name`, or one with its hub, such as
            `modelscope:owner/name`.
        split: `train`, `dev` (also `validation`), `test`, or another split name of a hub data set.
            None reads the only split.
        hub: where ids without a prefix are looked up, a name in `hubs.HUBS`.

    Yields:
        `(source, dict)`, or `(source, Problem)` for a row that cannot be read; the problem is a
        `FileProblem` if a whole file is defective.

    Raises:
        TaskHeadsError: the source, the split or the hub does not exist or cannot be fetched.

    Example:
        >>> import pathlib, tempfile
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
    hub: str = HUGGINGFACE,
    kinds: Mapping[str, str] = KINDS,
    streaming: bool = False,
    options: FileOptions = PLAIN,
) -> list[RowSource]:
    """Return one `RowSource` per file, because columns are checked file by file.

    Args:
        source: see `read_rows`.
        split: see `read_rows`.
        hub: see `read_rows`.
        kinds: suffixes of data files, `KINDS` or `TEXT_KINDS`.
        streaming: read rows of the Hugging Face Hub as they arrive. A data set of another hub is always
            fetched with all its files, and its folder (or the `data/` in it) is read.
        options: encoding, and columns of tables without a header.

    Raises:
        TaskHeadsError: see `read_rows`.
    """
    source = os.fspath(source)
    hub_named(hub)  # an unknown hub is an error, also with a path
    if os.path.isdir(source) and is_saved_dataset(source):
        return [open_saved(source, split)]
    if os.path.isdir(source):
        return [_open_path(path, kinds, options) for path in _folder_files(source, split, kinds)]
    if os.path.exists(source):
        _check_file_split(source, split)
        return [_open_path(source, kinds, options)]
    name, hub = split_hub(source, hub)
    if name == source and not _looks_like_id(source, kinds):
        raise _not_found(source)
    if not HUB_ID.fullmatch(name):
        raise error_at(name, "this is not a data set id", "owner/name", "check the id", code="hub-invalid")
    if hub_named(hub).by_id:
        return [open_huggingface(name, split, streaming=streaming)]
    return open_source(_fetched_folder(name, hub), split=split, kinds=kinds, options=options)


def split_hub(source: str, hub: str) -> tuple[str, str]:
    """Return an id and its hub: that of a prefix, else the given one.

    Example:
        >>> from qwen_task_heads.sources.formats import split_hub
        >>> split_hub("modelscope:owner/name", "huggingface"), split_hub("owner/name", "huggingface")
        (('owner/name', 'modelscope'), ('owner/name', 'huggingface'))
    """
    prefix, _, name = source.partition(":")
    return (name, prefix) if prefix in HUBS and name else (source, hub)


@lru_cache(maxsize=4)
def _fetched_folder(name: str, hub: str) -> str:
    """Fetch a data set once per process, so that all splits come from one revision."""
    folder, _ = resolve(name, hub=hub, kind="dataset")
    at_top = any(os.path.splitext(file)[1].lower() in KINDS for file in os.listdir(folder))
    data = os.path.join(folder, "data")
    return data if not at_top and os.path.isdir(data) else folder


def _open_path(path: str, kinds: Mapping[str, str], options: FileOptions) -> RowSource:
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".arrow" and os.path.isfile(path):
        return open_arrow(path)
    named = (lambda: parquet_class_names(path)) if suffix == ".parquet" else dict
    return RowSource(path, lambda: _read_path(path, kinds, options), named)


def _read_path(path: str, kinds: Mapping[str, str], options: FileOptions) -> Iterator[Item]:
    """Yield batches of rows, and `(source, Problem)`; a `FileProblem` if the whole file is defective."""
    suffix = os.path.splitext(path)[1]
    kind = kinds.get(suffix.lower())
    if kind is None:
        problem = f"found the suffix {shorten(suffix)}" if suffix else "the file name has no suffix"
        expected, fix = ", ".join(kinds), "unpack, convert or rename the file"
        yield path, FileProblem(path, problem, expected, fix, code="file-format")
        return
    if not os.path.isfile(path):  # a pipe would block, and a circular link has no content
        problem = "found a broken link" if os.path.islink(path) else "this is not a regular file"
        fix = "remove it or replace it"
        yield path, FileProblem(path, problem, "regular files", fix, code="path-not-found")
        return
    try:
        if other_kind := wrong_kind(path, kind):
            yield path, other_kind
        else:
            yield from PARSERS[kind](path, options)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        problem, fix = f"the file cannot be read ({reason})", "check the path and its rights"
        yield path, FileProblem(path, problem, "a readable file", fix, code="path-access")


def _folder_files(folder: str, split: str | None, kinds: Mapping[str, str]) -> list[str]:
    visible = [name for name in sorted(os.listdir(folder)) if not name.startswith((".", "_"))]
    names = [name for name in visible if os.path.splitext(name)[1].lower() in KINDS]
    if not names and ".txt" in kinds:
        # Only names with a split, and only without other data files: README.txt is not data.
        names = [name for name in visible if name.lower().endswith(".txt") and split_name(name)]
    if not names:
        raise error_at(
            folder,
            "the folder has no file that can be read",
            ", ".join(kinds),
            "name the folder of the files itself, or convert them",
            code="file-format",
        )
    by_split: dict[str | None, list[str]] = {}
    for name in names:
        by_split.setdefault(split_name(name), []).append(name)
    stated = sorted(key for key in by_split if key is not None)
    if split is None:
        if len(stated) > 1:
            problem = f"the folder has several splits ({', '.join(stated)})"
            fix = "name one by split=, or name its file"
            raise error_at(folder, problem, "one split at a time", fix, code="split-missing")
        chosen = names
    else:
        wanted = canonical_split(split)
        chosen = by_split.get(wanted, [])
        if not stated and wanted == "train":
            chosen = names  # without split files, all files of a folder are for training
        if not chosen:
            problem = f"found no file for the split {shorten(split)} (files: {first_few(names)})"
            fix = f"add {split}.jsonl, or name a file of this folder"
            raise NoSuchSplit(
                Problem(folder, problem, "names with train, dev or test", fix, code="split-missing")
            )
    return [os.path.join(folder, name) for name in chosen]


def _check_file_split(path: str, split: str | None) -> None:
    """Refuse another split than that of the file: the one in its name, or train."""
    stated = split_name(os.path.basename(path)) or "train"
    if split is not None and canonical_split(split) != stated:
        problem = f"found the split {shorten(split)} for a single file"
        fix = "name the file of that split, or a folder"
        raise error_at(path, problem, f"{stated!r}, or none", fix, code="split-missing")


def _looks_like_id(source: str, kinds: Mapping[str, str]) -> bool:
    """Return whether a source is `owner/name` without a known suffix, and no folder has the owner's name."""
    if not HUB_ID.fullmatch(source) or os.path.splitext(source)[1].lower() in kinds:
        return False
    return not os.path.isdir(source.split("/", 1)[0])


def _not_found(source: str) -> TaskHeadsError:
    folder = os.path.dirname(source) or "."
    name = os.path.basename(source)
    files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    near = difflib.get_close_matches(name[:200], files[:10_000], n=3, cutoff=0.6) if len(name) < 256 else []
    prefixed = " or ".join(f"{name}:owner/name" for name, hub in HUBS.items() if not hub.by_id)
    problem = "there is no such file or folder"
    if os.path.islink(source):
        problem = "found a broken link"
    elif not os.path.isdir(folder):
        problem += f", and no folder {shorten(folder, 120)}"
    fix = f"did you mean {first_few(near)}?" if near else "check the path"
    if not near and files:
        fix += f"; the folder has {first_few(files)}"
    return error_at(
        source if len(source) < 300 else source[:299] + "…",
        problem,
        f"an existing path, a data set id owner/name, or {prefixed}",
        fix,
        code="path-not-found",
    )
