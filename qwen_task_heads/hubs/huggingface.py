"""The Hugging Face Hub, by huggingface_hub.

Permissions are read from the login before an upload: the role of the token, the organisations of the user
and the grants of a fine-grained token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qwen_task_heads.hubs.base import UNREAD, Hub, Kind, State


class HuggingFace(Hub):
    """The Hugging Face Hub; its address is in HF_ENDPOINT."""

    name, title, branch = "huggingface", "the Hugging Face Hub", "main"
    login = "log in by `hf auth login`, or set HF_TOKEN to a token with write access"
    library = "huggingface_hub"
    by_id = makes_branches = makes_pull_requests = True
    token_shapes: ClassVar = {"a Hugging Face token": (rb"hf_[A-Za-z0-9]{30,}", rb"api_org_[A-Za-z0-9]{30,}")}

    def __init__(self, *, token: bool | str | None = None) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi(token=token)

    @classmethod
    def logins(cls) -> dict[str, str]:
        """Return the token of `hf auth login` or HF_TOKEN."""
        from huggingface_hub import get_token

        return {"the login of Hugging Face": get_token() or ""}

    def snapshot(self, repo_id: str, *, kind: Kind, revision: str | None) -> tuple[Path, str]:
        """Return the folder and the commit, which is the name of the folder in the client's cache."""
        folder = Path(
            self.api.snapshot_download(
                repo_id, repo_type=kind, revision=revision, ignore_patterns=UNREAD[kind]
            )
        )
        return folder, folder.name

    def download(self, repo_id: str, name: str, *, revision: str | None, folder: str | None = None) -> Path:
        """Return the path of one file."""
        return Path(self.api.hf_hub_download(repo_id, name, revision=revision, local_dir=folder))

    def failures(self) -> tuple[type[Exception], ...]:
        """Return the exceptions of the client; RuntimeError is that of its transfer library."""
        from huggingface_hub.errors import HTTPError

        return (HTTPError, OSError, ValueError, RuntimeError)

    def status_of(self, error: Exception) -> tuple[int | None, str | None]:
        """Return status and words of the response; failed uploads and card validation wrap it."""
        from huggingface_hub.errors import HfHubHTTPError

        answer: BaseException | None = error
        while answer is not None and not isinstance(answer, HfHubHTTPError):
            answer = answer.__cause__
        if answer is None:
            return None, None
        return answer.response.status_code, answer.server_message or str(answer)

    def user(self) -> str:
        """Return the name of the logged-in user."""
        return str(self._whoami()["name"])

    def _whoami(self) -> dict[str, Any]:
        if not isinstance(self.api.token, str) and not any(self.logins().values()):
            raise self.not_logged_in()
        return self.api.whoami()

    def check_access(self, repo_id: str) -> None:
        """Check the name, and the permissions of user and token."""
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise self.bad_name(repo_id, str(error).split(":")[0]) from None
        owner, slash, _ = repo_id.partition("/")
        if not slash:
            raise self.bad_name(repo_id, "no owner")
        me = self._whoami()
        token = me.get("auth", {}).get("accessToken", {})
        organisations = {org["name"]: org.get("roleInOrg") for org in me.get("orgs", [])}
        if token.get("role") == "read":
            raise self.no_right(repo_id, "the token may only read")
        if owner != me["name"] and organisations.get(owner, "read") == "read":
            writable = [name for name, role in organisations.items() if role != "read"]
            raise self.no_right(repo_id, f"the login may write for {', '.join([me['name'], *writable])}")
        if token.get("role") == "fineGrained" and not _may_write(
            token.get("fineGrained", {}), owner, repo_id
        ):
            raise self.no_right(repo_id, "the fine-grained token has no repo.write for the repo")

    def state(self, repo_id: str, branch: str) -> State | None:
        """Return the state of a repo; a new branch starts at the main one."""
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            info = self.api.model_info(repo_id)
        except RepositoryNotFoundError:
            return None
        refs = self.api.list_repo_refs(repo_id)
        branches = {ref.name: ref.target_commit for ref in refs.branches}
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

    def create(self, repo_id: str, *, private: bool | None) -> None:
        """Create a repo."""
        self.api.create_repo(repo_id, private=private, exist_ok=True)

    def make_branch(self, repo_id: str, branch: str, *, head: str) -> None:
        """Create a branch."""
        self.api.create_branch(repo_id, branch=branch, revision=head, exist_ok=True)

    def is_same(self, path: Path, digest: str | None) -> bool:
        """Compare with the SHA-256 of an LFS file, or with git's hash of another one."""
        if digest is None or len(digest) == 64:
            return super().is_same(path, digest)
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == digest

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
        """Make one commit; with `parent_commit` the hub rejects it if another one was made in between."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        operations += [CommitOperationDelete(name, is_folder=False) for name in deleted]
        commit = self.api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            revision=branch,
            parent_commit=head,
            create_pr=create_pr,
        )
        return str(commit.oid)

    def tag(self, repo_id: str, tag: str, *, branch: str, commit: str) -> None:
        """Tag a commit."""
        self.api.create_tag(repo_id, tag=tag, revision=commit)

    def url(self, repo_id: str, revision: str) -> str:
        """Return the address of the files of a revision."""
        return f"{self.api.endpoint}/{repo_id}/tree/{revision}"


def _may_write(grants: Mapping[str, Any], owner: str, repo_id: str) -> bool:
    """Return whether a fine-grained token may write to a repo: globally, to its owner's, or to this one."""
    if "repo.write" in grants.get("global", []):
        return True
    return any(
        "repo.write" in grant.get("permissions", [])
        and str(grant.get("entity", {}).get("name", "")).removeprefix("models/") in (owner, repo_id)
        for grant in grants.get("scoped", [])
    )
