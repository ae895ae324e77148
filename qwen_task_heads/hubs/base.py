"""Interface of a hub: resolve and fetch repos, read and change the state of a repo, and explain its errors.

Tokens come from the environment, a login, or the `token` argument in Python; no option of a recipe takes one.
No code of a repo runs: files are fetched and then read like those of any other folder.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from qwen_task_heads.errors import TaskHeadsError, error_at
from qwen_task_heads.hubcode.hashes_task_heads import sha256

Kind = Literal["model", "dataset"]
# Files that are not read: other formats of the same weights; code and metadata of data sets.
UNREAD: dict[Kind, list[str]] = {
    "model": ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.pth", "original/*"],
    "dataset": ["*.py", "*.md", "dataset_infos.json", "configuration.json"],
}
DENIED, ABSENT = (401, 403), 404  # HTTP status


@dataclass(frozen=True, kw_only=True)
class State:
    """State of a model repo on a hub.

    Args:
        private: whether the repo is private.
        head: commit of the branch, or the commit that a new branch starts at.
        branches, tags: name -> commit.
        files: path -> the hub's digest of the file at `head`.
    """

    private: bool
    head: str | None = None
    branches: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


class Hub(ABC):
    """A hub: where its models and data sets are read, and how a repo is created and changed.

    The methods from `user` to `tag` raise the errors of the hub's client; `publishing.upload` turns them into
    problems by `failures` and `status_of`.

    Args:
        token: token of the hub; None for that of the login.

    Attributes:
        name: value of `--hub`.
        title: name of the hub in messages.
        branch: its main branch.
        login: how to log in, as a fix in the imperative.
        library: Python package with the hub's `snapshot_download`, for the code on a card.
        by_id: transformers and `datasets` open ids of this hub by themselves, and its ids are valid in the
            metadata of a card.
        makes_branches: the client can create a branch.
        makes_pull_requests: a commit can be a pull request.
        token_shapes: regular expressions of the hub's tokens, by what they find. Each starts with literal
            characters, which Python finds a hundred times as fast.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    branch: ClassVar[str]
    login: ClassVar[str]
    library: ClassVar[str]
    by_id: ClassVar[bool] = False
    makes_branches: ClassVar[bool] = False
    makes_pull_requests: ClassVar[bool] = False
    token_shapes: ClassVar[Mapping[str, tuple[bytes, ...]]] = {}

    @abstractmethod
    def __init__(self, *, token: bool | str | None = None) -> None: ...

    @classmethod
    def logins(cls) -> dict[str, str]:
        """Return the tokens of the logins of this machine by their source; "" for none."""
        return {}

    @classmethod
    def is_patched(cls) -> bool:
        """Return whether functions of huggingface_hub reach this hub in this process."""
        return False

    def resolve(
        self, repo_id: str, *, kind: Kind = "model", revision: str | None = None
    ) -> tuple[str, str | None]:
        """Fetch a repo, or find it in the cache, and return its folder and commit.

        Args:
            repo_id: `owner/name`.
            kind: kind of the repo.
            revision: branch, tag or commit; None for the main branch.

        Raises:
            TaskHeadsError: no such repo or revision, no permission, or no network and an empty cache.
        """
        try:
            folder, commit = self.snapshot(repo_id, kind=kind, revision=revision)
        except self.failures() as error:
            status, _ = self.status_of(error)
            code = "hub-denied" if status in DENIED else "hub-unreachable"
            if status == ABSENT:
                code = "model-not-found" if kind == "model" else "path-not-found"
            reason = str(error).split("\n", 1)[0][:160]
            raise error_at(
                repo_id,
                f"the {kind} cannot be fetched from {self.title} ({type(error).__name__}: {reason})",
                f"a {kind} that this machine can reach or has cached",
                f"check the id and the connection, {self.login}, or give the folder of a copy",
                code=code,
            ) from error
        return str(folder), commit

    @abstractmethod
    def snapshot(self, repo_id: str, *, kind: Kind, revision: str | None) -> tuple[Path, str]:
        """Return the folder in the cache with all files except `UNREAD`, and its commit."""

    @abstractmethod
    def download(self, repo_id: str, name: str, *, revision: str | None, folder: str | None = None) -> Path:
        """Return the path of one file of a model, in the cache or in `folder`."""

    def failures(self) -> tuple[type[Exception], ...]:
        """Return the exceptions of the client and of the file system."""
        return (OSError, ValueError)

    def status_of(self, error: Exception) -> tuple[int | None, str | None]:
        """Return the HTTP status of a failure and the hub's own words, as far as they are known."""
        return None, None

    @abstractmethod
    def user(self) -> str:
        """Return the name of the logged-in user; without a login raise `not_logged_in`."""

    @abstractmethod
    def check_access(self, repo_id: str) -> None:
        """Raise for an invalid name, without a login, or without a permission to write."""

    @abstractmethod
    def state(self, repo_id: str, branch: str) -> State | None:
        """Return the state of a model repo; None if it does not exist."""

    @abstractmethod
    def create(self, repo_id: str, *, private: bool | None) -> None:
        """Create a model repo; `private=None` is the hub's default."""

    def make_branch(self, repo_id: str, branch: str, *, head: str) -> None:
        """Create a branch at a commit; never called without `makes_branches`."""
        raise NotImplementedError

    @abstractmethod
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
        """Change and delete files in one commit, visible as a whole or not at all; return its id.

        If the hub allows it, the commit is refused unless `head` is still the newest of its branch.
        """

    @abstractmethod
    def tag(self, repo_id: str, tag: str, *, branch: str, commit: str) -> None:
        """Tag a commit, which is the newest of its branch."""

    @abstractmethod
    def url(self, repo_id: str, revision: str) -> str:
        """Return the address of the files of a revision."""

    def is_same(self, path: Path, digest: str | None) -> bool:
        """Return whether a file has a digest of `State.files`, by default its SHA-256."""
        return bool(digest) and sha256(path) == digest

    @classmethod
    def card_notes(cls, repo_id: str, pinned: str) -> str:
        """Return Markdown that the card has below "How to load".

        Args:
            repo_id: `owner/name`.
            pinned: the argument `, revision="..."` of a model that is not on the main branch, or "".
        """
        return ""

    @classmethod
    def extra_files(cls, *, generates: bool) -> dict[str, dict[str, Any]]:
        """Return JSON files that the hub reads next to a model, by name; `generates`: it writes text."""
        return {}

    def commit_info(self, **fields: str) -> Any:
        """Return the `CommitInfo` that `push_to_hub` returns; the fields are those of huggingface_hub."""
        from huggingface_hub import CommitInfo

        return CommitInfo(**fields)

    def not_logged_in(self, problem: str = "not logged in") -> TaskHeadsError:
        """Return the error of a missing or refused token."""
        return error_at(self.title, problem, "a token with write access", self.login, code="hub-denied")

    def no_right(self, repo_id: str, problem: str) -> TaskHeadsError:
        """Return the error of a login that may not write to a repo."""
        return error_at(
            repo_id,
            problem,
            "a repo of your own or of an organisation with write access",
            "name another owner, or log in with a token that may write",
            code="hub-denied",
        )

    def bad_name(self, repo_id: str, reason: str) -> TaskHeadsError:
        """Return the error of a name that no repo of the hub can have."""
        words = [re.sub(r"[^\w.]+", "-", part, flags=re.ASCII).strip("-.") for part in repo_id.split("/")]
        example = "/".join(["owner", *filter(None, words)][-2:])
        return error_at(
            "--hub_model_id",
            f"found {repo_id!r} ({reason})",
            "owner/name of letters, digits, '-', '_' and '.'",
            f"choose such as {example}",
            code="hub-invalid",
        )
