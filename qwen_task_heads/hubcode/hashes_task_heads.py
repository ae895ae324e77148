"""Hashes of files: the manifest of a model, and the base of an adapter. Copied into every published model.

`manifest.json` lists the SHA-256 of the files of a folder.

A base on a hub is pinned by its commit. A folder has no commit, and a copy fetched from ModelScope may not
record it. In these cases the config of the trained model stores a hash of every file that affects its
predictions, and an adapter does not load on a base with other files. The stored probe also finds most such
bases. It does not tell which file differs, and it misses a fine-tuned copy that differs only in rare tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from .errors_task_heads import TaskHeadError

CARD, MANIFEST = "README.md", "manifest.json"
RUN = "run"  # key of a manifest: the record of the run, from which the package renders the card
DRAFT = "draft"  # key of a manifest: the folder was only saved, and its files may be edited
GGUF_SOURCE = "gguf.json"  # in a dequantised folder: the GGUF file, and the files that were written
INSIDE = ("adapter", "onnx", ".eval_results")  # subfolders that belong to a model
PINNED = ("config.json", "tokenizer.json", "model.safetensors.index.json", "*.safetensors")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, which is read in chunks: about a second for each gigabyte."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def hash_base(folder: str | Path) -> dict[str, str]:
    """Return the SHA-256 by name of the files of a base that affect predictions.

    A dequantised base that was not changed is identified by its GGUF file, because other versions of
    transformers write other bytes around the same dequantised weights. After a change its files are hashed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from qwen_task_heads.hubcode.hashes_task_heads import hash_base
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "README.md").touch()
        ...     Path(folder, "config.json").touch()
        ...     sorted(hash_base(folder))
        ['config.json']
    """
    files, source = hash_folder(folder), read_gguf_source(folder)
    return {source["file"]: source["sha256"]} if source and source["files"] == files else files


def hash_folder(folder: str | Path) -> dict[str, str]:
    """Return the SHA-256 by name of the files of a folder that affect predictions."""
    found = {path.name: path for pattern in PINNED for path in Path(folder).glob(pattern) if path.is_file()}
    return {name: sha256(path) for name, path in sorted(found.items())}


def models_cache() -> Path:
    """Return the cache folder of dequantised models: `models` in `QWEN_TASK_HEADS_CACHE` or the user's cache.

    Example:
        >>> from qwen_task_heads.hubcode.hashes_task_heads import models_cache
        >>> models_cache().name
        'models'
    """
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "qwen-task-heads")
    return Path(os.environ.get("QWEN_TASK_HEADS_CACHE") or user).expanduser() / "models"


def is_dequantized(folder: str | Path, digest: str) -> bool:
    """Return whether a folder is the complete result of the GGUF file with this SHA-256."""
    source = read_gguf_source(folder)
    return source is not None and source["sha256"] == digest


def read_gguf_source(folder: str | Path) -> dict[str, Any] | None:
    """Return the record of the GGUF file that a folder was dequantised from; None for any other folder."""
    try:
        source = json.loads(Path(folder, GGUF_SOURCE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_source = isinstance(source, dict) and {"file", "sha256", "files"} <= source.keys()
    return source if is_source else None


def check_base(folder: str | Path, files: dict[str, str] | None) -> None:
    """Raise if the files of a base are not those of training; without hashes nothing is compared.

    Raises:
        ValueError: files that changed, are missing or are new; all of them are named.
    """
    if not files:
        return
    if wrong := differences(files, hash_base(folder)):
        raise refused_base(folder, wrong)


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return the files that changed, are missing or are new, as one text for each file.

    Example:
        >>> from qwen_task_heads.hubcode.hashes_task_heads import differences
        >>> differences({"a": "1", "b": "2"}, {"a": "3"})
        ['a has changed', 'b is missing']
    """
    how = {name: "is new" if name not in wanted else "is missing" for name in wanted.keys() ^ found.keys()}
    how |= {name: "has changed" for name in wanted.keys() & found.keys() if wanted[name] != found[name]}
    return [f"{name} {how[name]}" for name in sorted(how)]


def refused_base(folder: str | Path, wrong: list[str]) -> TaskHeadError:
    """Return the error of a base that differs from the base of training."""
    return TaskHeadError(
        f"base {folder}",
        ", ".join(wrong),
        "the files that the adapter was trained on",
        "restore the base, or pass verify=False and expect other predictions",
        code="base-changed",
    )


def matches_any(name: str, patterns: Collection[str]) -> bool:
    """Return whether a path with `/` matches one of the patterns of `fnmatch`, folder by folder.

    Example:
        >>> from qwen_task_heads.hubcode.hashes_task_heads import matches_any
        >>> matches_any("a/b.png", ["*.png"]), matches_any("b.png", ["*.png"])
        (False, True)
    """
    parts = PurePosixPath(name).parts
    wanted = [PurePosixPath(pattern).parts for pattern in patterns]
    return any(len(w) == len(parts) and all(map(fnmatchcase, parts, w)) for w in wanted)


def hash_files(folder: str | PathLike[str], *, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the SHA-256 of the files of a model by their path with `/`, without the manifest itself.

    Subfolders that are not part of a model, such as the checkpoints of a run, are left out.

    Args:
        folder: folder of the model.
        known: digests of files that have not changed, which are not read again.
    """
    root = Path(folder)
    places = [root, *(root / name for name in INSIDE if (root / name).is_dir())]
    files = {
        path.relative_to(root).as_posix(): path
        for place in places
        for path in sorted(place.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    return {name: (known or {}).get(name) or sha256(path) for name, path in files.items()}


def read_manifest(folder: str | PathLike[str]) -> dict[str, Any]:
    """Return the content of `manifest.json`; {} without such a file or without its table of files."""
    try:
        content = json.loads(Path(folder, MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("files"), dict) else {}


def write_manifest(
    folder: str | PathLike[str], content: dict[str, Any], *, known: Mapping[str, str] | None = None
) -> None:
    """Write `manifest.json` with the hashes of the current files.

    The record of a run is kept only with the card that was rendered from it.

    Args:
        folder: folder of the model.
        content: other fields of the manifest; the table of files is replaced.
        known: as in `hash_files`.
    """
    files = hash_files(folder, known=known)
    if content.get("files", {}).get(CARD) != files.get(CARD):
        content = {key: value for key, value in content.items() if key != RUN}
    text = json.dumps({**content, "files": files}, indent=2, ensure_ascii=False)
    Path(folder, MANIFEST).write_text(text + "\n", encoding="utf-8")
