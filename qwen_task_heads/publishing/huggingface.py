"""Publish to the Hugging Face Hub with huggingface_hub.

Permissions are read from the login before the upload: the role of the token, the organisations of the user
and the grants of a fine-grained token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.modelscope import HUGGINGFACE
from qwen_task_heads.publishing.hub import Hub
from qwen_task_heads.publishing.records import State
from qwen_task_heads.publishing.staging import sha256


class HuggingFace(Hub):
    """The Hugging Face Hub, by huggingface_hub; its address is in HF_ENDPOINT."""

    name, title, branch = HUGGINGFACE, "the Hugging Face Hub", "main"
    makes_branches = True
    login = "log in by `hf auth login`, or set HF_TOKEN to a token with write access"

    def __init__(self, *, token: bool | str | None = None) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi(token=token)

    def _user(self) -> str:
        self._check_login()
        return str(self.api.whoami()["name"])

    def _check_login(self) -> None:
        from huggingface_hub import get_token

        if not isinstance(self.api.token, str) and get_token() is None:
            raise self._not_logged_in()

    def _check(self, repo_id: str) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise self._bad_name(repo_id, str(error).split(":")[0]) from None
        owner, slash, _ = repo_id.partition("/")
        if not slash:
            raise self._bad_name(repo_id, "no owner")
        self._check_login()
        me = self.api.whoami()
        token = me.get("auth", {}).get("accessToken", {})
        organisations = {org["name"]: org.get("roleInOrg") for org in me.get("orgs", [])}
        if token.get("role") == "read":
            raise self._no_right(repo_id, "the token may only read")
        if owner != me["name"] and organisations.get(owner, "read") == "read":
            writable = [name for name, role in organisations.items() if role != "read"]
            raise self._no_right(repo_id, f"the login may write for {', '.join([me['name'], *writable])}")
        if token.get("role") == "fineGrained" and not _may_write(
            token.get("fineGrained", {}), owner, repo_id
        ):
            raise self._no_right(repo_id, "the fine-grained token has no repo.write for the repo")

    def _state(self, repo_id: str, branch: str) -> State | None:
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            info = self.api.model_info(repo_id)
        except RepositoryNotFoundError:
            return None
        refs = self.api.list_repo_refs(repo_id)
        branches = {ref.name: ref.target_commit for ref in refs.branches}
        # A new branch starts at the main one.
        head = branches.get(branch, info.sha)
        tree = self.api.list_repo_tree(repo_id, recursive=True, revision=head)
        entries = [entry for entry in tree if isinstance(entry, RepoFile)]
        return State(
            private=bool(info.private),
            head=head,
            branches=branches,
            tags={ref.name: ref.target_commit for ref in refs.tags},
            files={entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in entries},
        )

    def _create(self, repo_id: str, *, private: bool | None) -> None:
        self.api.create_repo(repo_id, private=private, exist_ok=True)

    def _make_branch(self, repo_id: str, branch: str, *, head: str) -> None:
        self.api.create_branch(repo_id, branch=branch, revision=head, exist_ok=True)

    def _fetch(self, repo_id: str, name: str, *, commit: str, folder: str) -> Path:
        return Path(self.api.hf_hub_download(repo_id, name, revision=commit, local_dir=folder))

    def _is_same(self, path: Path, digest: str | None) -> bool:
        if digest is None or len(digest) == 64:  # LFS: the SHA-256 of the file
            return digest is not None and sha256(path) == digest
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == digest  # git's own

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
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        operations += [CommitOperationDelete(name, is_folder=False) for name in deleted]
        # With `parent_commit` the hub rejects the commit if another one was made in between.
        commit = self.api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            revision=branch,
            parent_commit=head,
            create_pr=create_pr,
        )
        return str(commit.oid)

    def _tag(self, repo_id: str, tag: str, *, branch: str, commit: str) -> None:
        self.api.create_tag(repo_id, tag=tag, revision=commit)

    def _url(self, repo_id: str, revision: str) -> str:
        return f"{self.api.endpoint}/{repo_id}/tree/{revision}"

    @contextmanager
    def _errors(self, repo_id: str) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        try:
            yield
        except TaskHeadsError:
            raise
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            answer: BaseException | None = error
            while answer is not None and not isinstance(answer, HfHubHTTPError):
                answer = answer.__cause__  # failed uploads and card validation wrap the response
            if answer is None:
                raise self._failed(repo_id, error, None) from None
            message = answer.server_message or str(answer)
            raise self._failed(repo_id, error, answer.response.status_code, message=message) from None


def _may_write(grants: Mapping[str, Any], owner: str, repo_id: str) -> bool:
    """Return whether a fine-grained token may write to a repo: globally, to its owner's, or to this one."""
    if "repo.write" in grants.get("global", []):
        return True
    return any(
        "repo.write" in grant.get("permissions", [])
        and str(grant.get("entity", {}).get("name", "")).removeprefix("models/") in (owner, repo_id)
        for grant in grants.get("scoped", [])
    )
