"""What a folder or repo says of its own files, and whether it is true.

`manifest.json` lists the SHA-256 of every file that was saved with it. Before a model is opened, the files
that its answers hang on are held against it: config, weights or adapter, tokenizer and code. A card or a
plot may be edited. That finds a byte that changed in the storage, and half an upload; it is no signature,
because who can change the files can change the list.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

from transformers.utils import cached_file

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.hashes_task_heads import DRAFT, MANIFEST, hash_files, sha256

__all__ = ["MANIFEST", "check_manifest", "hash_files"]

MATTERS = (
    "config.json", "adapter_config.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    "*.safetensors", "model.safetensors.index.json", "*.py",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "label_prompt.json", "decision.json", "decision_template.jinja",
)  # fmt: skip
LARGEST = 10_000_000  # bytes of a manifest; ours have some thousands
REMEDY = (
    "fetch it again; if the change is yours, open it with verify=False and save() the model to a new folder"
)


def check_manifest(repo: str, *, revision: str | None = None) -> None:
    """Compare the files of a folder or repo with its `manifest.json`, if it has one.

    Raises:
        TaskHeadsError: every file that changed or is missing, or a manifest that cannot be read.
    """
    path = _find(repo, MANIFEST, revision)
    if path is None:
        return
    where = f"{repo}/{MANIFEST}"
    if path.stat().st_size > LARGEST:
        found = f"found {path.stat().st_size:,} bytes"
        raise TaskHeadsError(Problem(where, found, f"at most {LARGEST:,}", REMEDY))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, no JSON, or nested without end
        found = f"found no JSON ({type(error).__name__})"
        raise TaskHeadsError(Problem(where, found, "what save wrote", REMEDY)) from error
    files = content.get("files") if isinstance(content, dict) else None
    # Of earlier releases names alone; a folder that was only saved may still be edited.
    if not isinstance(files, dict) or content.get(DRAFT):
        return
    problems = []
    for name, digest in sorted(files.items()):
        # Of subfolders by their whole names only, so that no name can lead out of the folder.
        below = "/" in name or "\\" in name
        if name not in MATTERS and (below or not any(fnmatchcase(name, pattern) for pattern in MATTERS)):
            continue
        file = _find(repo, name, revision)
        if file is None:
            problems.append(Problem(f"{repo}/{name}", "found no such file", f"{digest}", REMEDY))
        elif (found := sha256(file)) != digest:
            accepted = f"{digest}, which {MANIFEST} lists"
            problems.append(Problem(f"{repo}/{name}", f"found SHA-256 {found}", accepted, REMEDY))
    if problems:
        raise TaskHeadsError(problems)


def _find(repo: str, name: str, revision: str | None) -> Path | None:
    if Path(repo).is_dir():
        path = Path(repo, name)
        return path if path.is_file() else None
    found = cached_file(repo, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
