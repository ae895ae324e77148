"""A base that is a folder is pinned by the hashes of its files. This file travels with every published model.

A base on a hub is pinned by its commit. A folder has none, and a copy fetched from ModelScope may not say
which it holds: there the config of what was trained on it keeps a hash of every file that answers hang on,
and an adapter is not put on a base with another byte. The stored probe would find most such bases too, but
not say which file it is, and not by a fine-tuned twin whose rare tokens alone differ.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .configuration_task_heads import TaskHeadError, refuse

PINNED = ("config.json", "tokenizer.json", "model.safetensors.index.json", "*.safetensors")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, read in parts: about a second for each gigabyte."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def hash_base(folder: str | Path) -> dict[str, str]:
    """SHA-256 of the files of a base that answers hang on, by name.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from qwen_task_heads.hubcode.trust_task_heads import hash_base
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "README.md").touch()
        ...     Path(folder, "config.json").touch()
        ...     sorted(hash_base(folder))
        ['config.json']
    """
    found = {path.name: path for pattern in PINNED for path in Path(folder).glob(pattern) if path.is_file()}
    return {name: sha256(path) for name, path in sorted(found.items())}


def check_base(folder: str | Path, files: dict[str, str] | None) -> None:
    """Refuse a base whose files are not those of training; without hashes nothing is held against it.

    Raises:
        ValueError: all files that changed, are missing or are new.
    """
    if not files:
        return
    if wrong := differences(files, hash_base(folder)):
        raise refused_base(folder, wrong)


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """What is changed, missing or new, one text for each file.

    Example:
        >>> from qwen_task_heads.hubcode.trust_task_heads import differences
        >>> differences({"a": "1", "b": "2"}, {"a": "3"})
        ['a has changed', 'b is missing']
    """
    how = {name: "is new" if name not in wanted else "is missing" for name in wanted.keys() ^ found.keys()}
    how |= {name: "has changed" for name in wanted.keys() & found.keys() if wanted[name] != found[name]}
    return [f"{name} {how[name]}" for name in sorted(how)]


def refused_base(folder: str | Path, wrong: list[str]) -> TaskHeadError:
    """The error of a base that is not that of training."""
    return refuse(
        f"base {folder}",
        ", ".join(wrong),
        "the files that the adapter was trained on",
        "restore the base, or pass verify=False and expect other answers",
    )
