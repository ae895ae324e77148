"""ModelScope as a source: an id to a folder in its cache, pinned to the commit that its branch points to.

The Hugging Face Hub needs nothing here, because transformers and `datasets` take its ids themselves.
ModelScope's own client fetches the files (token from MODELSCOPE_API_TOKEN, address from
MODELSCOPE_ENDPOINT, cache in MODELSCOPE_CACHE), and our readers open the folder as any other: no code of
a repo runs, and the rest of the package does not know of a second hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qwen_task_heads.errors import Problem, TaskHeadsError

HUGGINGFACE, MODELSCOPE = "huggingface", "modelscope"
HUBS = (HUGGINGFACE, MODELSCOPE)
BRANCH = "master"  # ModelScope's `main`
# What nothing here reads: other formats of the same weights; of data sets, code and what looks like data.
UNREAD = {
    "model": ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.pth", "original/*"],
    "dataset": ["*.py", "*.md", "dataset_infos.json", "configuration.json"],
}


def fetch_modelscope(
    name: str, *, kind: Literal["model", "dataset"] = "model", revision: str | None = None
) -> tuple[Path, str]:
    """Fetch all files of a ModelScope repo, or find them in its cache when there is no network.

    Args:
        name: `owner/name`.
        kind: of the repo.
        revision: branch, tag or commit; None for the branch `master`.

    Returns:
        The folder, and the revision it holds: the commit where the hub says which.

    Raises:
        TaskHeadsError: modelscope is not installed, there is no such repo or revision, or no network.
    """
    try:
        import requests
        from modelscope_hub import HubApi
        from modelscope_hub.config import HubConfig
        from modelscope_hub.errors import CacheNotFound, HubError, NetworkError
    except ImportError as error:
        found = f"the {kind} is on ModelScope, and modelscope is not installed ({error})"
        remedy = "pip install 'qwen-task-heads[modelscope]', or fetch it otherwise and give its folder"
        raise TaskHeadsError(Problem(name, found, f"a local {kind} without it", remedy)) from error
    api = HubApi(HubConfig())  # without one it would keep the environment of its first use
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
    reason = str(error).split("\n", 1)[0][:160]
    found = f"the {kind} cannot be fetched from ModelScope ({type(error).__name__}: {reason})"
    remedy = "check the id, the connection and MODELSCOPE_API_TOKEN, or give the folder of a copy"
    return Problem(name, found, f"a {kind} that this machine can reach or has cached", remedy)
