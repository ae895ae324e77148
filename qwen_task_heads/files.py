"""Verification of the files of a folder or repo against its `manifest.json`.

`manifest.json` lists the SHA-256 of every file that was saved with it. Before a model is loaded, the files
that affect its predictions are verified: config, weights or adapter, tokenizer and code. A card or a plot may
be edited. The check finds changed bytes and incomplete uploads. It is not a signature, because the manifest
can be changed together with the files.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

from transformers.utils import cached_file

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.hubcode.hashes_task_heads import DRAFT, MANIFEST, hash_files, sha256

__all__ = ["MANIFEST", "check_manifest", "hash_files"]

VERIFIED = (
    "config.json",
    "adapter_config.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "*.safetensors",
    "model.safetensors.index.json",
    "*.py",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "label_prompt.json",
    "decision.json",
    "decision_template.jinja",
)
LARGEST = 10_000_000  # bytes of a manifest; ours have some thousands
FIX = "fetch it again; if you changed it, load it with verify=False and save() the model to a new folder"


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
        size = f"found {path.stat().st_size:,} bytes"
        raise error_at(where, size, f"at most {LARGEST:,}", FIX, code="file-format")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, no JSON, or nested without end
        reason = f"the file is not valid JSON ({type(error).__name__})"
        raise error_at(where, reason, "the file that save() wrote", FIX, code="file-format") from error
    files = content.get("files") if isinstance(content, dict) else None
    # Manifests of earlier releases list only names; a folder that was only saved may still be edited.
    if not isinstance(files, dict) or content.get(DRAFT):
        return
    problems = []
    for name, digest in sorted(files.items()):
        # Names in subfolders must match exactly, so that no pattern leads out of the folder.
        below = "/" in name or "\\" in name
        if name not in VERIFIED and (below or not any(fnmatchcase(name, pattern) for pattern in VERIFIED)):
            continue
        file = _find(repo, name, revision)
        found = None if file is None else sha256(file)
        if found != digest:
            problem = f"found SHA-256 {found}" if found else "the file is missing"
            expected = f"SHA-256 {digest}, as listed in {MANIFEST}"
            problems.append(Problem(f"{repo}/{name}", problem, expected, FIX, code="model-corrupted"))
    if problems:
        raise TaskHeadsError(problems)


def _find(repo: str, name: str, revision: str | None) -> Path | None:
    if Path(repo).is_dir():
        path = Path(repo, name)
        return path if path.is_file() else None
    found = cached_file(repo, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
