"""Base class of hubs: permission checks, and the upload of a staged folder as one commit.

`Hub.push` reads the state of the repo, validates the request and uploads the changed files in one commit. The
commit also deletes stale files of an earlier publish (`staging.is_stale`); files added by hand are kept. LFS
files are uploaded before the commit and are invisible until it exists. A failure at any call therefore leaves
the old state or the new one. If the response to the commit was lost, the next publish finds no changes, makes
no second commit and only sets the tag.

A summary of replaced and removed files is logged before the upload. A repo with a model of another task or
other labels is refused without `replace`, because the repo name may be mistyped.

Tokens come from the environment, a login, or the `token` argument in Python; no option of a recipe takes one.
Errors of the clients are raised without a chain, because their texts may quote a header.
"""

from __future__ import annotations

import json
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.hashes_task_heads import matches_any
from qwen_task_heads.publishing.records import Published, State
from qwen_task_heads.publishing.staging import (
    CODE,
    DESCRIBED,
    MANIFEST,
    files_of,
    is_publishable,
    is_stale,
    task_of,
)
from qwen_task_heads.redaction import redact

# HTTP status -> (code, problem, expected, fix); {title} and {reason} are filled in.
_CONFLICT = (
    "hub-invalid",
    "another commit was made during the upload ({reason})",
    "a branch without other commits during the upload",
    "check the current files of the repo and publish again",
)
STATUS_PROBLEMS = {
    400: (
        "hub-invalid",
        "{title} rejected the request ({reason})",
        "a model card and files that the hub accepts",
        "if the reason names the card, correct the metadata at the top of README.md; else publish again",
    ),
    403: (
        "hub-denied",
        "{title} denied the request ({reason})",
        "a repo with write permission and enough storage",
        "check the permissions of the token and the storage quota of the repo's owner",
    ),
    404: (
        "hub-invalid",
        "the repo, branch or commit does not exist ({reason})",
        "an existing repo, branch or commit",
        "check the names",
    ),
    409: _CONFLICT,
    412: _CONFLICT,
    429: (
        "hub-unreachable",
        "too many requests ({reason})",
        "a request rate below the limit of the hub",
        "wait some minutes and publish again",
    ),
}
NOT_LOGGED_IN = 401
NAMED = 5  # removed files listed by name; the rest is counted


def discard(line: str) -> None:
    """Ignore a progress message."""


class Hub(ABC):
    """A hub to publish to: `check` before any work, `push` at the end.

    Args:
        token: token of the hub; None for that of the login.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    branch: ClassVar[str]
    login: ClassVar[str]
    makes_branches: ClassVar[bool]

    @abstractmethod
    def __init__(self, *, token: bool | str | None = None) -> None: ...

    def full_name(self, repo_id: str) -> str:
        """Return `owner/name`; a name without owner is a repo of the logged-in user.

        Raises:
            TaskHeadsError: a name without owner and without a login.
        """
        if "/" in repo_id:
            return repo_id
        with self._errors(repo_id):
            return f"{self._user()}/{repo_id}"

    @abstractmethod
    def _user(self) -> str: ...

    def check(
        self,
        repo_id: str,
        *,
        private: bool | None = True,
        revision: str | None = None,
        tag: str | None = None,
        again: bool = False,
    ) -> None:
        """Check, before any work, whether the hub would accept a later `push` of a new model.

        Args:
            repo_id: `owner/name`.
            private, revision, tag: see `push`.
            again: the repo may have the same model and its tag already.

        Raises:
            TaskHeadsError: an invalid name, no login, no write permission, an unreachable hub, a public
                repo, a branch that cannot be created, or an existing tag.
        """
        branch = revision or self.branch
        with self._errors(repo_id):
            self._check(repo_id)
            state = self._state(repo_id, branch) or State(private=bool(private))
        new_commit = not again or state.tags.get(tag or "") != state.head
        self._check_state(repo_id, state, private=private, branch=branch, tag=tag, new_commit=new_commit)

    def push(
        self,
        staged: str | Path,
        *,
        repo_id: str,
        private: bool | None = True,
        revision: str | None = None,
        tag: str | None = None,
        message: str | None = None,
        replace: bool = False,
        create_pr: bool = False,
        log: Callable[[str], None] = discard,
    ) -> Published:
        """Publish a staged folder as one commit; create the repo and the branch if they are absent.

        Args:
            staged: from `stage`; all its files are published.
            repo_id: `owner/name`.
            private: visibility of a new repo; None for the hub's default. An existing repo keeps its
                visibility; a public one is refused if a private one was requested.
            revision: branch; None for the default branch of the hub.
            tag: tag of the commit, or None.
            message: commit message.
            replace: allow replacing a model of another task.
            create_pr: open a pull request with the commit, if the hub supports it.
            log: called with a summary of replaced and removed files before the upload.

        Raises:
            TaskHeadsError: see `check` and `check_task`, or a failed call.
        """
        staged = Path(staged)
        files = {name: staged / name for name in files_of(staged)}
        branch = revision or self.branch
        notes = []
        with self._errors(repo_id):
            self._check(repo_id)
            state = self._state(repo_id, branch)
            options: dict[str, Any] = {"private": private, "branch": branch, "tag": tag}
            new = state is None
            if state is None:
                self._check_state(repo_id, State(private=bool(private)), new_commit=True, **options)
                self._create(repo_id, private=private)
                state = self._state(repo_id, branch) or State(private=bool(private))
            if state.private and private is False:
                notes.append("The repo stays private; make it public on its page.")
            changed = {
                name: path for name, path in files.items() if not self._is_same(path, state.files.get(name))
            }
            unlisted = [name for name in state.files if is_publishable(name, rows=True) and name not in files]
            earlier = self._earlier(repo_id, state) if unlisted else {}
            deleted = [name for name in unlisted if is_stale(name, earlier=earlier)]
            new_commit = bool(changed or deleted) or state.tags.get(tag or "") != state.head
            self._check_state(repo_id, state, new_commit=new_commit, **options)
            if branch in state.branches and not new:
                if not replace:
                    self._check_task(repo_id, state, staged)
                if summary := _summary(state.files, changed=changed, deleted=deleted):
                    log(f"{repo_id} ({branch}): {summary}.")
            log(f"Sending {len(changed)} of {len(files)} files to {self.title} ...")
            if state.head is not None and branch not in state.branches:
                self._make_branch(repo_id, branch, head=state.head)
            if changed or deleted:
                commit = self._commit(
                    repo_id,
                    changed,
                    deleted=deleted,
                    branch=branch,
                    head=state.head,
                    message=message or "Publish",
                    create_pr=create_pr,
                )
            else:
                commit = str(state.head)
            if tag is not None and tag not in state.tags:
                self._tag(repo_id, tag, branch=branch, commit=commit)
        return Published(
            repo_id=repo_id,
            hub=self.name,
            url=self._url(repo_id, tag or branch),
            commit=commit,
            private=state.private,
            unchanged=not (changed or deleted),
            notes=tuple(notes),
        )

    def check_task(self, staged: str | Path, *, repo_id: str, revision: str | None = None) -> None:
        """Raise if a push would replace a model of another task; called before verification.

        Args:
            staged: from `stage`.
            repo_id, revision: see `push`.

        Raises:
            TaskHeadsError: the repo has a model of another task or with other labels.
        """
        branch = revision or self.branch
        with self._errors(repo_id):
            state = self._state(repo_id, branch)
            if state is not None and branch in state.branches:
                self._check_task(repo_id, state, Path(staged))

    @abstractmethod
    def _check(self, repo_id: str) -> None: ...

    @abstractmethod
    def _state(self, repo_id: str, branch: str) -> State | None: ...

    @abstractmethod
    def _create(self, repo_id: str, *, private: bool | None) -> None: ...

    @abstractmethod
    def _make_branch(self, repo_id: str, branch: str, *, head: str) -> None: ...

    @abstractmethod
    def _fetch(self, repo_id: str, name: str, *, commit: str, folder: str) -> Path: ...

    @abstractmethod
    def _is_same(self, path: Path, digest: str | None) -> bool: ...

    @abstractmethod
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
    ) -> str: ...

    @abstractmethod
    def _tag(self, repo_id: str, tag: str, *, branch: str, commit: str) -> None: ...

    @abstractmethod
    def _url(self, repo_id: str, revision: str) -> str: ...

    @abstractmethod
    def _errors(self, repo_id: str) -> AbstractContextManager[None]: ...

    def _check_task(self, repo_id: str, state: State, staged: Path) -> None:
        names = [name for name in DESCRIBED if name in state.files]
        with tempfile.TemporaryDirectory(prefix="published-") as folder:
            for name in names:
                self._fetch(repo_id, name, commit=str(state.head), folder=folder)
            there = task_of(Path(folder))
        ours = task_of(staged)
        if there is not None and there != ours:
            raise TaskHeadsError(
                Problem(
                    repo_id,
                    f"the repo has {there}",
                    f"a repo without a model, or with {ours}",
                    "name another repo, or replace that model with --replace",
                    code="path-exists",
                )
            )

    def _earlier(self, repo_id: str, state: State) -> Mapping[str, Any]:
        """Return the `files` table of the manifest in the repo; {} without one."""
        if MANIFEST not in state.files or state.head is None:
            return {}
        with tempfile.TemporaryDirectory(prefix="earlier-") as folder:
            path = self._fetch(repo_id, MANIFEST, commit=state.head, folder=folder)
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                return {}  # not a manifest of this library
        table = manifest.get("files") if isinstance(manifest, dict) else None
        return table if isinstance(table, dict) else {}

    def _check_state(
        self,
        repo_id: str,
        state: State,
        *,
        private: bool | None,
        branch: str,
        tag: str | None,
        new_commit: bool,
    ) -> None:
        """Raise if the state of a repo does not allow the push, with all reasons at once."""
        problems: list[Problem] = []
        if private and not state.private:
            problems.append(
                Problem(
                    repo_id,
                    "found a public repo",
                    "a private repo, as requested",
                    "pass --public (in training: --hub_private_repo false), make the repo private on its "
                    "page, or name another",
                    code="option-conflict",
                )
            )
        if branch not in {self.branch, *state.branches} and not self.makes_branches:
            problems.append(
                Problem(
                    repo_id,
                    f"branch {branch!r} does not exist, and the client of {self.title} cannot create one",
                    ", ".join(sorted(state.branches)) or self.branch,
                    f"create it on the repo's page, or publish to {self.branch} with a tag",
                    code="hub-invalid",
                )
            )
        if tag is not None and tag in state.tags and new_commit:
            problems.append(
                Problem(
                    f"tag {tag!r} of {repo_id}",
                    f"the tag exists at commit {state.tags[tag]}, which has other files",
                    "a new tag",
                    "choose another, or delete that one on the repo's page",
                    code="path-exists",
                )
            )
        if problems:
            raise TaskHeadsError(problems)

    def _failed(
        self, repo_id: str, error: Exception, status: int | None, *, message: str | None = None
    ) -> TaskHeadsError:
        """Return the problem of a client's error, redacted; `message` is the hub's own text."""
        root: BaseException = error
        while root.__cause__ is not None:  # the client wraps the cause: "error while uploading x"
            root = root.__cause__
        reason = redact(" ".join((message or f"{type(root).__name__}: {root}").split()))[:200]
        if status == NOT_LOGGED_IN:
            return self._not_logged_in(f"{self.title} does not accept the token ({reason})")
        if status in STATUS_PROBLEMS:
            code, problem, expected, fix = STATUS_PROBLEMS[status]
            problem = problem.format(title=self.title, reason=reason)
            return TaskHeadsError(Problem(repo_id, problem, expected, fix, code=code))
        return TaskHeadsError(
            Problem(
                repo_id,
                f"the hub failed or did not answer ({reason})",
                f"an answer of {self.title}",
                "check the network and publish again; a commit is never published in part",
                code="hub-unreachable",
            )
        )

    def _not_logged_in(self, problem: str = "not logged in") -> TaskHeadsError:
        return TaskHeadsError(
            Problem(self.title, problem, "a token with write access", self.login, code="hub-denied")
        )

    def _no_right(self, repo_id: str, problem: str) -> TaskHeadsError:
        return TaskHeadsError(
            Problem(
                repo_id,
                problem,
                "a repo of your own or of an organisation with write access",
                "name another owner, or log in with a token that may write",
                code="hub-denied",
            )
        )

    def _bad_name(self, repo_id: str, reason: str) -> TaskHeadsError:
        words = [re.sub(r"[^\w.]+", "-", part, flags=re.ASCII).strip("-.") for part in repo_id.split("/")]
        example = "/".join(["owner", *filter(None, words)][-2:])
        return TaskHeadsError(
            Problem(
                "--hub_model_id",
                f"found {repo_id!r} ({reason})",
                "owner/name of letters, digits, '-', '_' and '.'",
                f"choose such as {example}",
                code="hub-invalid",
            )
        )


def _summary(existing: Mapping[str, str], *, changed: Collection[str], deleted: Collection[str]) -> str:
    """Return how a commit changes the existing files of a repo; "" if it changes none.

    Example:
        >>> from qwen_task_heads.publishing.hub import _summary
        >>> _summary({"a": "", "b": ""}, changed=["a", "c"], deleted=["b", "pooling_task_heads.py"])
        'replaces 1 file, adds 1, removes b and 1 code file'
    """
    replaced = sum(name in existing for name in changed)
    if not replaced and not deleted:
        return ""
    code = [name for name in deleted if matches_any(name, CODE)]
    named = [name for name in deleted if name not in code]
    removed = named[:NAMED] + [f"{_count(len(named) - NAMED)} more"] * (len(named) > NAMED)
    removed += [_count(len(code), "code file")] * bool(code)
    parts = [f"replaces {_count(replaced)}", f"adds {len(changed) - replaced}"]
    if removed:
        *first, last = removed
        parts.append("removes " + (f"{', '.join(first)} and {last}" if first else last))
    return ", ".join(parts)


def _count(count: int, noun: str = "file") -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
