"""Upload a staged folder to a hub as one commit, after checks of permissions and of the repo.

`upload` reads the state of the repo, validates the request and uploads the changed files in one commit. The
commit also deletes stale files of an earlier publish (`staging.is_stale`); files added by hand are kept. LFS
files are uploaded before the commit and are invisible until it exists. A failure at any call therefore leaves
the old state or the new one. If the response to the commit was lost, the next publish finds no changes, makes
no second commit and only sets the tag.

A summary of replaced and removed files is logged before the upload. A repo with a model of another task or
other labels is refused without `replace`, because the repo name may be mistyped.

Errors of the hubs' clients are raised without a chain, because their texts may quote a header.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.hubcode.hashes_task_heads import matches_any
from qwen_task_heads.hubs.base import Hub, State
from qwen_task_heads.publishing.records import Published
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

NOT_LOGGED_IN = 401  # HTTP status
_CONFLICT = (
    "hub-invalid",
    "another commit was made during the upload ({reason})",
    "a branch without other commits during the upload",
    "check the current files of the repo and publish again",
)
# HTTP status -> (code, problem, expected, fix); {title} and {reason} are filled in.
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
_UNREACHABLE = (
    "hub-unreachable",
    "the hub failed or did not answer ({reason})",
    "an answer of {title}",
    "check the network and publish again; a commit is never published in part",
)
NAMED = 5  # removed files listed by name; the rest is counted


def discard(line: str) -> None:
    """Ignore a progress message."""


def full_name(hub: Hub, repo_id: str) -> str:
    """Return `owner/name`; a name without owner is a repo of the logged-in user.

    Raises:
        TaskHeadsError: a name without owner and without a login.
    """
    if "/" in repo_id:
        return repo_id
    with _problems_of(hub, repo_id):
        return f"{hub.user()}/{repo_id}"


def check_repo(
    hub: Hub,
    repo_id: str,
    *,
    private: bool | None = True,
    revision: str | None = None,
    tag: str | None = None,
    again: bool = False,
) -> None:
    """Check, before any work, whether the hub would accept a later `upload` of a new model.

    Args:
        hub, repo_id, private, revision, tag: see `upload`.
        again: the repo may have the same model and its tag already.

    Raises:
        TaskHeadsError: an invalid name, no login, no write permission, an unreachable hub, a public repo, a
            branch that cannot be created, or an existing tag.
    """
    branch = revision or hub.branch
    with _problems_of(hub, repo_id):
        hub.check_access(repo_id)
        state = hub.state(repo_id, branch) or State(private=bool(private))
    new_commit = not again or state.tags.get(tag or "") != state.head
    _check_state(hub, repo_id, state, private=private, branch=branch, tag=tag, new_commit=new_commit)


def check_task(hub: Hub, staged: str | Path, *, repo_id: str, revision: str | None = None) -> None:
    """Raise if an `upload` would replace a model of another task or with other labels."""
    branch = revision or hub.branch
    with _problems_of(hub, repo_id):
        state = hub.state(repo_id, branch)
        if state is not None and branch in state.branches:
            _check_task(hub, repo_id, state, Path(staged))


def upload(
    hub: Hub,
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
        hub: the hub.
        staged: from `stage`; all its files are published.
        repo_id: `owner/name`.
        private: visibility of a new repo; None for the hub's default. An existing repo keeps its visibility;
            a public one is refused if a private one was requested.
        revision: branch; None for the main branch of the hub.
        tag: tag of the commit, or None.
        message: commit message.
        replace: allow replacing a model of another task.
        create_pr: open a pull request with the commit, if the hub supports it.
        log: called with a summary of replaced and removed files before the upload.

    Raises:
        TaskHeadsError: see `check_repo` and `check_task`, a pull request on a hub without them, or a failed
            call.
    """
    if create_pr and not hub.makes_pull_requests:
        problem = f"found True; {hub.title} has no pull requests"
        raise error_at("create_pr", problem, "False", "drop it", code="option-unsupported")
    staged = Path(staged)
    files = {name: staged / name for name in files_of(staged)}
    branch = revision or hub.branch
    options: dict[str, Any] = {"private": private, "branch": branch, "tag": tag}
    with _problems_of(hub, repo_id):
        hub.check_access(repo_id)
        state = hub.state(repo_id, branch)
        is_new = state is None
        if state is None:
            _check_state(hub, repo_id, State(private=bool(private)), new_commit=True, **options)
            hub.create(repo_id, private=private)
            state = hub.state(repo_id, branch) or State(private=bool(private))
        changed = {name: path for name, path in files.items() if not hub.is_same(path, state.files.get(name))}
        unlisted = [name for name in state.files if is_publishable(name, rows=True) and name not in files]
        earlier = _earlier_files(hub, repo_id, state) if unlisted else {}
        deleted = [name for name in unlisted if is_stale(name, earlier=earlier)]
        new_commit = bool(changed or deleted) or state.tags.get(tag or "") != state.head
        _check_state(hub, repo_id, state, new_commit=new_commit, **options)
        if branch in state.branches and not is_new:
            if not replace:
                _check_task(hub, repo_id, state, staged)
            if summary := _summary(state.files, changed=changed, deleted=deleted):
                log(f"{repo_id} ({branch}): {summary}.")
        log(f"Sending {len(changed)} of {len(files)} files to {hub.title} ...")
        if state.head is not None and branch not in state.branches:
            hub.make_branch(repo_id, branch, head=state.head)
        commit = str(state.head)
        if changed or deleted:
            commit = hub.commit(
                repo_id,
                changed,
                deleted=deleted,
                branch=branch,
                head=state.head,
                message=message or "Publish",
                create_pr=create_pr,
            )
        if tag is not None and tag not in state.tags:
            hub.tag(repo_id, tag, branch=branch, commit=commit)
    stays_private = state.private and private is False
    return Published(
        repo_id=repo_id,
        hub=hub.name,
        url=hub.url(repo_id, tag or branch),
        commit=commit,
        private=state.private,
        unchanged=not (changed or deleted),
        notes=("The repo stays private; make it public on its page.",) * stays_private,
    )


def _check_task(hub: Hub, repo_id: str, state: State, staged: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="published-") as folder:
        for name in DESCRIBED:
            if name in state.files:
                hub.download(repo_id, name, revision=state.head, folder=folder)
        there = task_of(Path(folder))
    ours = task_of(staged)
    if there is not None and there != ours:
        raise error_at(
            repo_id,
            f"the repo has {there}",
            f"a repo without a model, or with {ours}",
            "name another repo, or replace that model with --replace",
            code="path-exists",
        )


def _earlier_files(hub: Hub, repo_id: str, state: State) -> Mapping[str, Any]:
    """Return the `files` table of the manifest in the repo; {} without one."""
    if MANIFEST not in state.files or state.head is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="earlier-") as folder:
        path = hub.download(repo_id, MANIFEST, revision=state.head, folder=folder)
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return {}  # not a manifest of this library
    table = manifest.get("files") if isinstance(manifest, dict) else None
    return table if isinstance(table, dict) else {}


def _check_state(
    hub: Hub,
    repo_id: str,
    state: State,
    *,
    private: bool | None,
    branch: str,
    tag: str | None,
    new_commit: bool,
) -> None:
    """Raise if the state of a repo does not allow the upload, with all reasons at once."""
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
    if branch not in {hub.branch, *state.branches} and not hub.makes_branches:
        problems.append(
            Problem(
                repo_id,
                f"branch {branch!r} does not exist, and the client of {hub.title} cannot create one",
                ", ".join(sorted(state.branches)) or hub.branch,
                f"create it on the repo's page, or publish to {hub.branch} with a tag",
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


@contextmanager
def _problems_of(hub: Hub, repo_id: str) -> Iterator[None]:
    """Turn an error of the hub's client into a problem, without secrets and without its traceback."""
    try:
        yield
    except TaskHeadsError:
        raise
    except hub.failures() as error:
        root: BaseException = error
        while root.__cause__ is not None:  # the client wraps the cause: "error while uploading x"
            root = root.__cause__
        status, message = hub.status_of(error)
        reason = redact(" ".join((message or f"{type(root).__name__}: {root}").split()))[:200]
        if status == NOT_LOGGED_IN:
            raise hub.not_logged_in(f"{hub.title} does not accept the token ({reason})") from None
        code, problem, expected, fix = STATUS_PROBLEMS.get(status or 0, _UNREACHABLE)
        words = {"title": hub.title, "reason": reason}
        raise error_at(repo_id, problem.format(**words), expected.format(**words), fix, code=code) from None


def _summary(existing: Mapping[str, str], *, changed: Collection[str], deleted: Collection[str]) -> str:
    """Return how a commit changes the existing files of a repo; "" if it changes none.

    Example:
        >>> from qwen_task_heads.publishing.upload import _summary
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
