"""Publish to ModelScope with modelscope_hub.

`upload_folder` of modelscope_hub commits what it could upload and the rest later or never, and deletes in
another commit: half a model would be visible. This module calls the steps instead: negotiate, upload, commit.
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
NOT_PUBLIC = (1, 3, "private", "internal")  # values of `Visibility`; 5 is public


class ModelScope(Hub):
    """ModelScope, by modelscope_hub; its address is in MODELSCOPE_ENDPOINT."""

    name, title, branch = MODELSCOPE, "ModelScope", BRANCH
    makes_branches = False
    login = "log in by `modelscope login`, or set MODELSCOPE_API_TOKEN"

    def __init__(self, *, token: bool | str | None = None) -> None:
        try:
            from modelscope_hub import HubApi
            from modelscope_hub.config import HubConfig
        except ImportError as error:
            raise TaskHeadsError(
                Problem(
                    "--hub modelscope",
                    f"modelscope is not installed ({error})",
                    "the client of ModelScope",
                    "pip install 'qwen-task-heads[modelscope]'",
                    code="package-missing",
                )
            ) from error
        # Without a config, HubApi keeps the environment of its first use.
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
        # `whoami` lists no organisations; the hub itself refuses a repo of another owner.
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
        """Return whether a repo is not public; a repo without a visibility counts as public."""
        visibility = self.api.legacy.get_repo_info(repo_id, "model").get("Visibility")
        if visibility is None:
            visibility = self.api.get_repo(repo_id, "model").visibility
        return visibility in NOT_PUBLIC

    def _create(self, repo_id: str, *, private: bool | None) -> None:
        visibility = "private" if private else "public"
        # Without a licence, the client would claim Apache-2.0; the card names the actual licence.
        self.api.create_repo(repo_id, "model", visibility=visibility, license="other")

    def _make_branch(self, repo_id: str, branch: str, *, head: str) -> None:
        """Do nothing: the client cannot create a branch, and `_check_state` refuses a new one."""

    def _fetch(self, repo_id: str, name: str, *, commit: str, folder: str) -> Path:
        return Path(self.api.download_file(repo_id, "model", name, revision=commit, local_dir=folder))

    def _is_same(self, path: Path, digest: str | None) -> bool:
        return bool(digest) and sha256(path) == digest

    def _commit(
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
        if create_pr:
            raise TaskHeadsError(
                Problem(
                    "create_pr",
                    "found True; ModelScope has no pull requests",
                    "False",
                    "drop it",
                    code="option-unsupported",
                )
            )
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

    def _tag(self, repo_id: str, tag: str, *, branch: str, commit: str) -> None:
        self.api.create_repo_tag(repo_id, "model", tag, revision=branch)

    def _url(self, repo_id: str, revision: str) -> str:
        return f"{self.config.endpoint}/models/{repo_id}/files?version={revision}"

    @contextmanager
    def _errors(self, repo_id: str) -> Iterator[None]:
        from modelscope_hub.errors import APIError, HubError, ServerError

        try:
            yield
        except TaskHeadsError:
            raise
        except APIError as error:
            status = error.status_code
            if isinstance(error, ServerError) and status is not None and status < 500:
                status = CONFLICT  # the client raises ServerError for concurrent commits
            if status is None and "too many 429 error responses" in error.message:
                status = 429  # the client retried; the message is all that is left of the last response
            raise self._failed(repo_id, error, status, message=error.message) from None
        except (HubError, OSError, ValueError) as error:  # an error of requests is an OSError
            raise self._failed(repo_id, error, None) from None


def _entry(action: str, path: str, **fields: Any) -> dict[str, Any]:
    """Return one operation of a commit with all fields that the hub reads."""
    defaults = {"type": "normal", "size": 0, "sha256": "", "content": "", "encoding": ""}
    return {"action": action, "path": path, **defaults, **fields}
