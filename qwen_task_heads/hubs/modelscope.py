"""ModelScope, by modelscope_hub.

Its client fetches a repo into its cache, pinned to the commit of the branch (token from MODELSCOPE_API_TOKEN,
address from MODELSCOPE_ENDPOINT, cache in MODELSCOPE_CACHE).

`upload_folder` of modelscope_hub commits what it could upload and the rest later or never, and deletes in
another commit: half a model would be visible. This module calls the steps instead: negotiate, upload, commit.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from qwen_task_heads.errors import error_at
from qwen_task_heads.hubcode.hashes_task_heads import sha256
from qwen_task_heads.hubs.base import UNREAD, Hub, Kind, State

CONFLICT, TOO_MANY = 409, 429  # HTTP status
NOT_PUBLIC = (1, 3, "private", "internal")  # values of `Visibility`; 5 is public
# Inside the context, an adapter finds its base on ModelScope. Pipelines of a repo need a snapshot folder.
LOADING = """
From ModelScope (`pip install modelscope`), the same calls on a snapshot, inside its context:

```python
from modelscope import snapshot_download
from modelscope.utils.hf_util.patcher import patch_context

with patch_context():
    folder = snapshot_download("%s"%s)
    ...  # the lines below, with `folder` in place of the name
```
"""


class ModelScope(Hub):
    """ModelScope; its address is in MODELSCOPE_ENDPOINT."""

    name, title, branch = "modelscope", "ModelScope", "master"
    login = "log in by `modelscope login`, or set MODELSCOPE_API_TOKEN"
    library = "modelscope"
    token_shapes: ClassVar = {"a ModelScope token": (rb"ms-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",)}

    def __init__(self, *, token: bool | str | None = None) -> None:
        try:
            from modelscope_hub import HubApi
            from modelscope_hub.config import HubConfig
        except ImportError as error:
            raise error_at(
                f"--hub {self.name}",
                f"modelscope is not installed ({error})",
                "the client of ModelScope, or the folder of a copy",
                "pip install 'qwen-task-heads[modelscope]'",
                code="package-missing",
            ) from error
        # Without a config, HubApi keeps the environment of its first use.
        self.config = HubConfig(token=token) if isinstance(token, str) else HubConfig()
        self.api = HubApi(self.config)

    @classmethod
    def logins(cls) -> dict[str, str]:
        """Return the tokens of `modelscope login`."""
        try:
            from modelscope_hub.config import HubConfig
        except ImportError:
            return {}  # without the package there is no login
        config = HubConfig()
        return {
            "the login of ModelScope": config.token or "",
            "the git token of ModelScope": config.load_git_token() or "",
        }

    @classmethod
    def is_patched(cls) -> bool:
        """Return whether this is inside `patch_hub` or `patch_context` of modelscope."""
        from huggingface_hub import hf_api

        return "_create_commit_origin" in vars(hf_api)

    def snapshot(self, repo_id: str, *, kind: Kind, revision: str | None) -> tuple[Path, str]:
        """Return folder and commit; without a network, those of the cache."""

        def fetch() -> tuple[Path, str]:
            named = {entry.get("Revision"): entry for entry in self.api.list_repo_revisions(repo_id, kind)}
            wanted = revision or self.branch
            commit = named.get(wanted, {}).get("CommitId") or wanted
            folder = self.api.download_repo(repo_id, kind, revision=commit, ignore_patterns=UNREAD[kind])
            return folder, commit

        def cached() -> tuple[Path, str]:
            folder = self.api.download_repo(repo_id, kind, revision=revision, local_files_only=True)
            return folder, folder.name

        return _or_cached(fetch, cached)

    def download(self, repo_id: str, name: str, *, revision: str | None, folder: str | None = None) -> Path:
        """Return the path of one file; without a network, that of the cache."""
        fetch = partial(self.api.download_file, repo_id, "model", name, revision=revision, local_dir=folder)
        return Path(_or_cached(fetch, partial(fetch, local_files_only=True)))

    def failures(self) -> tuple[type[Exception], ...]:
        """Return the exceptions of the client; an error of requests is an OSError."""
        from modelscope_hub.errors import HubError

        return (HubError, OSError, ValueError)

    def status_of(self, error: Exception) -> tuple[int | None, str | None]:
        """Return status and words of an answer of the hub."""
        from modelscope_hub import errors

        if not isinstance(error, errors.APIError):
            return None, None
        status = error.status_code
        if isinstance(error, errors.NotExistError):  # also raised by the client itself, without a status
            status = 404
        elif isinstance(error, errors.AuthenticationError):
            status = 401
        elif isinstance(error, errors.ServerError) and status is not None and status < 500:
            status = CONFLICT  # the client raises ServerError for concurrent commits
        if status is None and "too many 429 error responses" in error.message:
            status = TOO_MANY  # the client retried; the message is all that is left of the last response
        return status, error.message

    def user(self) -> str:
        """Return the name of the logged-in user."""
        if not self.config.token:
            raise self.not_logged_in()
        return str(self.api.whoami().username)

    def check_access(self, repo_id: str) -> None:
        """Check name and login; the hub itself refuses another owner, as `whoami` lists no organisations."""
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id, flags=re.ASCII):
            raise self.bad_name(repo_id, "not of the form owner/name")
        self.user()

    def state(self, repo_id: str, branch: str) -> State | None:
        """Return the state of a repo."""
        from modelscope_hub.errors import NotExistError

        try:
            private = self._is_private(repo_id)
            branches, tags = self.api.legacy.list_revisions_detail(repo_id, "model")
        except NotExistError:
            return None
        heads = {entry["Revision"]: entry.get("CommitId", "") for entry in branches}
        files = self.api.list_repo_files(repo_id, "model", revision=branch) if branch in heads else []
        return State(
            private=private,
            head=heads.get(branch),
            branches=heads,
            tags={entry["Revision"]: entry.get("CommitId", "") for entry in tags},
            files={file.path: file.sha256 or "" for file in files if file.type != "tree"},
        )

    def _is_private(self, repo_id: str) -> bool:
        """Return whether a repo is not public; a repo without a visibility counts as public."""
        visibility = self.api.legacy.get_repo_info(repo_id, "model").get("Visibility")
        if visibility is None:
            visibility = self.api.get_repo(repo_id, "model").visibility
        return visibility in NOT_PUBLIC

    def create(self, repo_id: str, *, private: bool | None) -> None:
        """Create a repo; without a licence, the client would claim Apache-2.0, and the card names ours."""
        visibility = "private" if private else "public"
        self.api.create_repo(repo_id, "model", visibility=visibility, license="other")

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, Path],
        *,
        deleted: list[str],
        branch: str,
        head: str | None,
        message: str,
        create_pr: bool,
    ) -> str:
        """Upload the large files, then make one commit; commits of this hub have no parent to compare."""
        operations = [self._operation(repo_id, name, path) for name, path in files.items()]
        operations += [_entry("delete", name) for name in deleted]
        answer = self.api.legacy.create_commit(
            repo_id, "model", operations=operations, commit_message=message, revision=branch
        )
        return str(answer.get("CommitId") or answer.get("Id") or "")

    def _operation(self, repo_id: str, name: str, path: Path) -> dict[str, Any]:
        """Return one entry of a commit; a large file is uploaded first if the hub does not have it."""
        from modelscope_hub.constants import (
            MODEL_LFS_SUFFIX,
            UPLOAD_INLINE_METADATA_PATHS,
            UPLOAD_LFS_FORCE_THRESHOLD_BYTES,
        )

        size = path.stat().st_size
        large = size > UPLOAD_LFS_FORCE_THRESHOLD_BYTES or path.suffix in MODEL_LFS_SUFFIX
        if path.name.upper() in UPLOAD_INLINE_METADATA_PATHS or not large:
            content = base64.b64encode(path.read_bytes()).decode()
            return _entry("create", name, size=size, content=content, encoding="base64")
        digest = sha256(path)
        blob = {"oid": digest, "size": size}
        if url := self.api.legacy.validate_blobs(repo_id, "model", [blob]).get(digest):
            with path.open("rb") as file:
                self.api.legacy.upload_blob(url, file, size)
        return _entry("create", name, type="lfs", size=size, sha256=digest)

    def tag(self, repo_id: str, tag: str, *, branch: str, commit: str) -> None:
        """Tag the newest commit of a branch."""
        self.api.create_repo_tag(repo_id, "model", tag, revision=branch)

    def url(self, repo_id: str, revision: str) -> str:
        """Return the address of the files of a revision."""
        return f"{self.config.endpoint}/models/{repo_id}/files?version={revision}"

    @classmethod
    def card_notes(cls, repo_id: str, pinned: str) -> str:
        """Return how to load a snapshot inside the context of modelscope."""
        return LOADING % (repo_id, pinned)

    @classmethod
    def extra_files(cls, *, generates: bool) -> dict[str, dict[str, Any]]:
        """Return the file in which ModelScope's library reads the kind of a model."""
        task = "text-generation" if generates else "text-classification"
        return {"configuration.json": {"framework": "pytorch", "task": task}}

    def commit_info(self, **fields: str) -> Any:
        """Return the class of modelscope, as that of huggingface_hub rejects the URL of another hub."""
        from modelscope.utils.repo_utils import CommitInfo

        return CommitInfo(**fields)


def _or_cached(fetch: Callable[[], Any], cached: Callable[[], Any]) -> Any:
    """Return the result of `fetch`; without a network that of `cached`, else raise the first error."""
    import requests
    from modelscope_hub.errors import CacheNotFound, NetworkError

    try:
        return fetch()
    except (NetworkError, requests.ConnectionError, requests.Timeout) as offline:
        try:
            return cached()
        except CacheNotFound:
            raise offline from None


def _entry(action: str, path: str, **fields: Any) -> dict[str, Any]:
    """Return one operation of a commit with all fields that the hub reads."""
    defaults = {"type": "normal", "size": 0, "sha256": "", "content": "", "encoding": ""}
    return {"action": action, "path": path, **defaults, **fields}
