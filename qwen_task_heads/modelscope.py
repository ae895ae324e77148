"""Fetch repos of ModelScope into its cache, pinned to the commit of their branch.

transformers and `datasets` resolve ids of the Hugging Face Hub themselves. For ModelScope its own client
fetches the files (token from MODELSCOPE_API_TOKEN, address from MODELSCOPE_ENDPOINT, cache in
MODELSCOPE_CACHE). The readers then use the folder as any other folder, and no code of a repo runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qwen_task_heads.errors import Problem, TaskHeadsError

HUGGINGFACE, MODELSCOPE = "huggingface", "modelscope"
HUBS = (HUGGINGFACE, MODELSCOPE)
BRANCH = "master"  # ModelScope's `main`
# Files that are not read: other formats of the same weights; code and metadata of data sets.
UNREAD = {
    "model": ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.pth", "original/*"],
    "dataset": ["*.py", "*.md", "dataset_infos.json", "configuration.json"],
}


def fetch_modelscope(
    name: str, *, kind: Literal["model", "dataset"] = "model", revision: str | None = None
) -> tuple[Path, str]:
    """Fetch all files of a ModelScope repo, or find them in its cache without a network.

    Args:
        name: `owner/name`.
        kind: kind of the repo.
        revision: branch, tag or commit; None for the branch `master`.

    Returns:
        The folder and its revision, which is the commit if the hub reports it.

    Raises:
        TaskHeadsError: modelscope is not installed, no such repo or revision, or no network.
    """
    try:
        import requests
        from modelscope_hub import HubApi
        from modelscope_hub.config import HubConfig
        from modelscope_hub.errors import CacheNotFound, HubError, NetworkError
    except ImportError as error:
        raise TaskHeadsError(
            Problem(
                name,
                f"the {kind} is on ModelScope, and modelscope is not installed ({error})",
                f"the package modelscope, or a local {kind}",
                "pip install 'qwen-task-heads[modelscope]', or fetch it otherwise and give its folder",
                code="package-missing",
            )
        ) from error
    api = HubApi(HubConfig())  # without a config it would keep the environment of its first use
    try:
        try:
            named = {entry.get("Revision"): entry for entry in api.list_repo_revisions(name, kind)}
            commit = named.get(revision or BRANCH, {}).get("CommitId") or revision or BRANCH
            folder = api.download_repo(name, kind, revision=commit, ignore_patterns=UNREAD[kind])
        except (NetworkError, requests.ConnectionError, requests.Timeout) as offline:
            try:
                folder = api.download_repo(name, kind, revision=revision, local_files_only=True)
            except CacheNotFound:
                raise offline from None
            commit = folder.name
    except (HubError, OSError, ValueError) as error:  # an error of requests is an OSError
        raise TaskHeadsError(_unfetched(name, kind, error)) from error
    return folder, commit


def _unfetched(name: str, kind: str, error: Exception) -> Problem:
    from modelscope_hub.errors import AuthenticationError, NotExistError, PermissionDeniedError

    reason = str(error).split("\n", 1)[0][:160]
    code = "hub-unreachable"
    if isinstance(error, NotExistError):
        code = "model-not-found" if kind == "model" else "path-not-found"
    elif isinstance(error, (AuthenticationError, PermissionDeniedError)):
        code = "hub-denied"
    return Problem(
        name,
        f"the {kind} cannot be fetched from ModelScope ({type(error).__name__}: {reason})",
        f"a {kind} that this machine can reach or has cached",
        "check the id, the connection and MODELSCOPE_API_TOKEN, or give the folder of a copy",
        code=code,
    )
