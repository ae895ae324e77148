"""ModelScope as a place to publish to, through modelscope_hub.

Its `upload_folder` commits what it could upload and the rest later or never, and deletes in a commit of
its own: half a model would be visible. So its calls are made one by one: negotiate, upload, one commit.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.modelscope import BRANCH, MODELSCOPE
from qwen_task_heads.publishing.hub import Hub
from qwen_task_heads.publishing.records import State
from qwen_task_heads.publishing.staging import sha256

CONFLICT = 409
HIDDEN_FROM_MOST = (1, 3, "private", "internal")  # as ModelScope writes who sees a repo; 5 is everybody


class ModelScope(Hub):
    """ModelScope, by modelscope_hub; address in MODELSCOPE_ENDPOINT."""

    name, title, branch = MODELSCOPE, "ModelScope", BRANCH
    makes_branches = False
    login = "log in by `modelscope login`, or set MODELSCOPE_API_TOKEN"

    def __init__(self, *, token: bool | str | None = None) -> None:
        try:
            from modelscope_hub import HubApi
            from modelscope_hub.config import HubConfig
        except ImportError as error:
            remedy = "pip install 'qwen-task-heads[modelscope]'"
            found = f"modelscope is not installed ({error})"
            raise TaskHeadsError(
                Problem("--hub modelscope", f"found {found}", "its own client", remedy)
            ) from error
        # Without a config it would keep the environment of its first use.
        self.config = HubConfig(token=token) if isinstance(token, str) else HubConfig()
        self.api = HubApi(self.config)

    def _user(self) -> str:
        if not self.config.token:
            raise self._not_logged_in()
        return str(self.api.whoami().username)

    def _check(self, repo_id: str) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id, flags=re.ASCII):
            raise self._bad_name(repo_id, "not of the form owner/name")
        if not self.config.token:
            raise self._not_logged_in()
        # Organisations are not listed there; of another owner the hub itself says no, when it is asked.
        self.api.whoami()

    def _state(self, repo_id: str, branch: str) -> State | None:
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
        """Whether only some may see a repo; one that does not say counts as public."""
        visibility = self.api.legacy.get_repo_info(repo_id, "model").get("Visibility")
        if visibility is None:
            visibility = self.api.get_repo(repo_id, "model").visibility
        return visibility in HIDDEN_FROM_MOST

    def _create(self, repo_id: str, *, private: bool | None) -> None:
        visibility = "private" if private else "public"
        # Without a licence its client would claim Apache-2.0; the card says which it is.
        self.api.create_repo(repo_id, "model", visibility=visibility, license="other")

    def _make_branch(self, repo_id: str, branch: str, *, head: str) -> None:
        """Its client makes none, and a push that wants one is refused before."""

    def _fetch(self, repo_id: str, name: str, *, commit: str, folder: str) -> Path:
        return Path(self.api.download_file(repo_id, "model", name, revision=commit, local_dir=folder))

    def _same(self, path: Path, digest: str | None) -> bool:
        return bool(digest) and sha256(path) == digest

    def _commit(
        self,
        repo_id: str,
        files: Mapping[str, Path],
        *,
        stale: list[str],
        branch: str,
        head: str | None,
        message: str,
        create_pr: bool,
    ) -> str:
        if create_pr:
            raise TaskHeadsError(
                Problem("create_pr", "found True", "False: ModelScope takes commits alone", "drop it")
            )
        operations = [self._operation(repo_id, name, path) for name, path in files.items()]
        operations += [{"action": "delete", "path": name, "type": "normal", "size": 0, "sha256": "",
                        "content": "", "encoding": ""} for name in stale]  # fmt: skip
        answer = self.api.legacy.create_commit(
            repo_id, "model", operations=operations, commit_message=message, revision=branch
        )
        return str(answer.get("CommitId") or answer.get("Id") or "")

    def _operation(self, repo_id: str, name: str, path: Path) -> dict[str, Any]:
        """One entry of a commit; a large file is uploaded first, where the hub does not have it."""
        from modelscope_hub.constants import (
            MODEL_LFS_SUFFIX,
            UPLOAD_INLINE_METADATA_PATHS,
            UPLOAD_LFS_FORCE_THRESHOLD_BYTES,
        )

        size = path.stat().st_size
        large = size > UPLOAD_LFS_FORCE_THRESHOLD_BYTES or path.suffix in MODEL_LFS_SUFFIX
        if path.name.upper() in UPLOAD_INLINE_METADATA_PATHS or not large:
            content = base64.b64encode(path.read_bytes()).decode()
            return {"action": "create", "path": name, "type": "normal", "size": size, "sha256": "",
                    "content": content, "encoding": "base64"}  # fmt: skip
        digest = sha256(path)
        blob = {"oid": digest, "size": size}
        if url := self.api.legacy.validate_blobs(repo_id, "model", [blob]).get(digest):
            with path.open("rb") as file:
                self.api.legacy.upload_blob(url, file, size)
        return {"action": "create", "path": name, "type": "lfs", "size": size, "sha256": digest,
                "content": "", "encoding": ""}  # fmt: skip

    def _tag(self, repo_id: str, tag: str, *, branch: str, commit: str) -> None:
        self.api.create_repo_tag(repo_id, "model", tag, revision=branch)

    def _url(self, repo_id: str, revision: str) -> str:
        return f"{self.config.endpoint}/models/{repo_id}/files?version={revision}"

    @contextmanager
    def _told(self, repo_id: str) -> Iterator[None]:
        from modelscope_hub.errors import APIError, HubError, ServerError

        try:
            yield
        except TaskHeadsError:
            raise
        except APIError as error:
            status = error.status_code
            if isinstance(error, ServerError) and status is not None and status < 500:
                status = CONFLICT  # its client tells two commits at once from other bad requests
            if status is None and "too many 429 error responses" in error.message:
                status = 429  # it has tried again by itself, and of the last answer that alone is left
            raise self._failed(repo_id, error, status, said=error.message) from None
        except (HubError, OSError, ValueError) as error:  # an error of requests is an OSError
            raise self._failed(repo_id, error, None) from None
