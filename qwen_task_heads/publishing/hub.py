"""What publishing to a hub is, whichever it is: may I write there, and one commit of a staged folder.

`Hub.push` is the same for both: look at what is there, refuse what would surprise, send only what
changed, and send it as one commit, which also deletes what an earlier publish left and this one has not
(`staging.stale`; files that people put there stay). Files
that go beside git (LFS) are uploaded before and are invisible until that commit, so a failure at any call
leaves the old state or the new one; where the answer to the commit was lost, the next try finds that
nothing changed, makes no second commit and only sets the tag.

What is replaced and removed is said before it is sent, and a repo that holds a model of another task (what
it answers, or its labels) is refused without `replace`: a mistyped name would cost somebody's model.

Tokens come from the environment, a login, or the argument of an ordinary verb; no option of a recipe takes
one. Errors of the clients are told in our words, without a chain: their own texts may quote a header.
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
    stale,
    task_of,
)
from qwen_task_heads.redaction import redact

# What a hub's status says, as (found, accepted, remedy); {title} and {reason} are filled in.
_CHECK_CARD = "where that names the card, mend the metadata on top of README.md; else publish again"
_MOVED_ON = (
    "another commit, made meanwhile ({reason})", "a branch that nobody else writes to meanwhile",
    "look at what is there now, and publish again",
)  # fmt: skip
TOLD = {
    400: ("a request that {title} does not take ({reason})", "card and files as it takes them", _CHECK_CARD),
    403: (
        "a refusal of {title} ({reason})", "a repo that this login may write to, with storage left",
        "check what the token may write, and what storage the owner of the repo has left",
    ),
    404: ("nothing there ({reason})", "a repo, branch or commit that is there", "check the names"),
    409: _MOVED_ON,
    412: _MOVED_ON,
    429: (
        "too many requests ({reason})", "fewer requests in the time", "wait some minutes and publish again",
    ),
}  # fmt: skip
NOT_LOGGED_IN = 401
NAMED = 5  # removed files by name; of more the number


def quiet(line: str) -> None:
    """Say nothing of what is being done."""


class Hub(ABC):
    """A hub to publish to. `check` early, `push` at the end; both say plainly what is wrong.

    Args:
        token: of the hub; None for that of the login.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    branch: ClassVar[str]
    login: ClassVar[str]
    makes_branches: ClassVar[bool]

    @abstractmethod
    def __init__(self, *, token: bool | str | None = None) -> None: ...

    def full_name(self, repo_id: str) -> str:
        """Return `owner/name`; a name alone is a repo of the user who is logged in.

        Raises:
            TaskHeadsError: a name alone without a login.
        """
        if "/" in repo_id:
            return repo_id
        with self._told(repo_id):
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
        """Ask the hub, before any work, whether a later `push` of a new model would be taken.

        Args:
            repo_id: `owner/name`.
            private, revision, tag: as of `push`.
            again: the very model may be there already, and its tag with it.

        Raises:
            TaskHeadsError: a bad name, nobody logged in, no right to write, a hub out of reach, a public
                repo, a branch that cannot be made, or a tag that is taken.
        """
        branch = revision or self.branch
        with self._told(repo_id):
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
        say: Callable[[str], None] = quiet,
    ) -> Published:
        """Publish a staged folder as one commit; create the repo and the branch where they are absent.

        Args:
            staged: from `stage`, with nothing in it that should stay.
            repo_id: `owner/name`.
            private: of a new repo; None for the hub's default. One that is there keeps what it is, and a
                public one is refused where a private one was asked for.
            revision: branch; None for the hub's own.
            tag: of the commit, or None.
            message: of the commit.
            replace: the repo's model may be replaced by one of another task.
            create_pr: propose the commit as a pull request, if the hub has them.
            say: takes a line on what is replaced and removed, before anything is sent.

        Raises:
            TaskHeadsError: what `check` and `check_task` name, or a failed call.
        """
        staged = Path(staged)
        files = {name: staged / name for name in files_of(staged)}
        branch = revision or self.branch
        notes = []
        with self._told(repo_id):
            self._check(repo_id)
            state = self._state(repo_id, branch)
            asked: dict[str, Any] = {"private": private, "branch": branch, "tag": tag}
            new = state is None
            if state is None:
                self._check_state(repo_id, State(private=bool(private)), new_commit=True, **asked)
                self._create(repo_id, private=private)
                state = self._state(repo_id, branch) or State(private=bool(private))
            if state.private and private is False:
                notes.append("The repo was private and is left so; make it public on its page.")
            changed = {n: path for n, path in files.items() if not self._same(path, state.files.get(n))}
            over = [name for name in state.files if is_publishable(name, rows=True) and name not in files]
            earlier = self._earlier(repo_id, state) if over else {}
            gone = [name for name in over if stale(name, earlier=earlier)]
            new_commit = bool(changed or gone) or state.tags.get(tag or "") != state.head
            self._check_state(repo_id, state, new_commit=new_commit, **asked)
            if branch in state.branches and not new:
                if not replace:
                    self._check_task(repo_id, state, staged)
                if line := _replaced(state.files, changed=changed, gone=gone):
                    say(f"{repo_id} ({branch}): {line}.")
            say(f"Sending {len(changed)} of {len(files)} files to {self.title} ...")
            if state.head is not None and branch not in state.branches:
                self._make_branch(repo_id, branch, head=state.head)
            if changed or gone:
                commit = self._commit(
                    repo_id, changed, stale=gone, branch=branch, head=state.head,
                    message=message or "Publish", create_pr=create_pr,
                )  # fmt: skip
            else:
                commit = str(state.head)
            if tag is not None and tag not in state.tags:
                self._tag(repo_id, tag, branch=branch, commit=commit)
        return Published(
            repo_id=repo_id, hub=self.name, url=self._url(repo_id, tag or branch), commit=commit,
            private=state.private, unchanged=not (changed or gone), notes=tuple(notes),
        )  # fmt: skip

    def check_task(self, staged: str | Path, *, repo_id: str, revision: str | None = None) -> None:
        """Refuse to put a staged model in the place of one of another task, before it is proven.

        Args:
            staged: from `stage`.
            repo_id, revision: as of `push`.

        Raises:
            TaskHeadsError: the repo holds a model that answers something else, or in other labels.
        """
        branch = revision or self.branch
        with self._told(repo_id):
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
    def _same(self, path: Path, digest: str | None) -> bool: ...

    @abstractmethod
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
    ) -> str: ...

    @abstractmethod
    def _tag(self, repo_id: str, tag: str, *, branch: str, commit: str) -> None: ...

    @abstractmethod
    def _url(self, repo_id: str, revision: str) -> str: ...

    @abstractmethod
    def _told(self, repo_id: str) -> AbstractContextManager[None]: ...

    def _check_task(self, repo_id: str, state: State, staged: Path) -> None:
        names = [name for name in DESCRIBED if name in state.files]
        with tempfile.TemporaryDirectory(prefix="there-") as folder:
            for name in names:
                self._fetch(repo_id, name, commit=str(state.head), folder=folder)
            there = task_of(Path(folder))
        ours = task_of(staged)
        if there is not None and there != ours:
            remedy = "name another repo; if that model shall go, publish with --replace"
            raise TaskHeadsError(
                Problem(repo_id, f"found {there}", f"a repo without a model, or with {ours}", remedy)
            )

    def _earlier(self, repo_id: str, state: State) -> Mapping[str, Any]:
        """What the publish before this one sent, by the manifest that lies in the repo; {} without one."""
        if MANIFEST not in state.files or state.head is None:
            return {}
        with tempfile.TemporaryDirectory(prefix="earlier-") as folder:
            path = self._fetch(repo_id, MANIFEST, commit=state.head, folder=folder)
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                return {}  # somebody's own file of that name
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
        """Refuse what a repo as it is does not take, with all reasons at once."""
        problems: list[Problem] = []
        if private and not state.private:
            remedy = (
                "give --public (of a training --hub_private_repo false), make the repo private on its page, "
                "or name another"
            )
            problems += TaskHeadsError(
                Problem(repo_id, "found a public repo", "a private one, as was asked for", remedy)
            ).problems
        if branch not in {self.branch, *state.branches} and not self.makes_branches:
            found = f"no branch {branch!r}, which its client cannot make"
            remedy = f"make it on the repo's page, or publish to {self.branch} with a tag"
            there = ", ".join(sorted(state.branches)) or self.branch
            problems += TaskHeadsError(Problem(repo_id, f"found {found}", there, remedy)).problems
        if tag is not None and tag in state.tags and new_commit:
            problems += TaskHeadsError(Problem(
                f"tag {tag!r} of {repo_id}", f"found it at commit {state.tags[tag]}, another state",
                "a tag that is not taken", "choose another, or delete that one on the repo's page",
            )).problems  # fmt: skip
        if problems:
            raise TaskHeadsError(problems)

    def _failed(
        self, repo_id: str, error: Exception, status: int | None, *, said: str | None = None
    ) -> TaskHeadsError:
        """A client's error in our words, without what it may quote; `said` is the hub's own message."""
        root: BaseException = error
        while root.__cause__ is not None:  # "error while uploading x", because ...
            root = root.__cause__
        reason = redact(" ".join((said or f"{type(root).__name__}: {root}").split()))[:200]
        if status == NOT_LOGGED_IN:
            return self._not_logged_in(f"a token that {self.title} does not accept ({reason})")
        if status in TOLD:
            found, accepted, remedy = TOLD[status]
            return TaskHeadsError(
                Problem(repo_id, f"found {found.format(title=self.title, reason=reason)}", accepted, remedy)
            )
        accepted = f"an answer of {self.title}"
        remedy = "nothing of this publish is visible, or all of it: check the network and publish again"
        return TaskHeadsError(
            Problem(repo_id, f"found a hub that failed or is out of reach ({reason})", accepted, remedy)
        )

    def _not_logged_in(self, found: str = "nobody logged in") -> TaskHeadsError:
        return TaskHeadsError(Problem(self.title, f"found {found}", "a token that may write", self.login))

    def _no_right(self, repo_id: str, found: str) -> TaskHeadsError:
        accepted = "a repo of your own or of an organisation that you may write to"
        return TaskHeadsError(
            Problem(
                repo_id,
                f"found {found}",
                accepted,
                "name another owner, or log in with a token that may write",
            )
        )

    def _bad_name(self, repo_id: str, reason: str) -> TaskHeadsError:
        accepted = "owner/name of letters, digits, '-', '_' and '.'"
        parts = [re.sub(r"[^\w.]+", "-", part, flags=re.ASCII).strip("-.") for part in repo_id.split("/")]
        name = "/".join(["owner", *filter(None, parts)][-2:])
        remedy = f"choose such as {name}"
        return TaskHeadsError(Problem("--hub_model_id", f"found {repo_id!r} ({reason})", accepted, remedy))


def _replaced(there: Mapping[str, str], *, changed: Collection[str], gone: Collection[str]) -> str:
    """What a commit does to the files that are there, in words; "" where it does nothing to them.

    Example:
        >>> from qwen_task_heads.publishing.hub import _replaced
        >>> _replaced({"a": "", "b": ""}, changed=["a", "c"], gone=["b", "pooling_task_heads.py"])
        'replaces 1 file, adds 1, removes b and 1 code file'
    """
    over = sum(name in there for name in changed)
    if not over and not gone:
        return ""
    code = [name for name in gone if matches_any(name, CODE)]
    named = [name for name in gone if name not in code]
    removed = named[:NAMED] + [f"{_files(len(named) - NAMED)} more"] * (len(named) > NAMED)
    removed += [_files(len(code), "code file")] * bool(code)
    parts = [f"replaces {_files(over)}", f"adds {len(changed) - over}"]
    if removed:
        *first, last = removed
        parts.append("removes " + (f"{', '.join(first)} and {last}" if first else last))
    return ", ".join(parts)


def _files(count: int, noun: str = "file") -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
