"""A fake ModelScope on loopback for the real clients: models and data sets to read, models to write.

It answers the routes of modelscope 1.40 (and modelscope_hub 0.5): whoami, the revisions of a repo, its
file list, its files, new repos, large files, commits and tags. Private repos need the token. Files to read
may be in folders; written files are in memory, and a commit is one change of state.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from loopback import LoopbackHandler, LoopbackHub, serve_hub

NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"
REPO = rf"/api/v1/(?P<kind>models|datasets)/{NAME}"
PRIVATE, PUBLIC = 1, 5
Files = dict[str, bytes]


@dataclass
class Repo:
    """A repo in memory; a new one has one commit with a card of the hub's own."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Files) -> str:
        listed = [self.branches.get(branch), sorted((name, _sha256(data)) for name, data in files.items())]
        sha = hashlib.sha1(json.dumps(listed).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha


class Hub(LoopbackHub):
    """State of the server, and its requests.

    `folders` maps (kind, repo) to a folder, `repos` has written repos; `private` names folders that
    need `token`, `me` is its owner.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folders: dict[tuple[str, str], Path] = {}
        self.repos: dict[str, Repo] = {}
        self.private: set[str] = set()
        self.me = "me"

    def commit(self, kind: str, repo: str) -> str:
        """Return the commit of a repo; for a folder, a hash of its files."""
        if kind == "models" and repo in self.repos:
            return self.repos[repo].branches["master"]
        digest = hashlib.sha1()
        for path in sorted(self.folders[kind, repo].rglob("*")):
            if path.is_file():
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def create(self, repo: str, *, private: bool = False) -> Repo:
        self.repos[repo] = Repo(private)
        self.repos[repo].commit("master", {".gitattributes": b"", "README.md": b"A new model.\n"})
        return self.repos[repo]

    def files(self, repo: str, revision: str = "master") -> Files:
        """Return the visible files of a written repo, without those of a new repo."""
        found = self.repos.get(repo)
        files = self.at("models", repo, revision) if found else None
        first = next(iter(found.commits.values())) if found else {}
        return {} if files in (None, first) else {n: d for n, d in files.items() if n != ".gitattributes"}

    def put(self, repo: str, files: Files) -> str:
        """Commit files as if another user had pushed them."""
        there = self.repos.get(repo) or self.create(repo)
        return there.commit("master", {**there.commits[there.branches["master"]], **files})

    def duplicate(self, repo: str, new: str) -> None:
        self.create(new, private=self.repos[repo].private)
        self.put(new, self.files(repo))

    def at(self, kind: str, repo: str, revision: str) -> Files | None:
        """Return all files at a revision; None without such a revision."""
        if kind == "models" and repo in self.repos:
            there = self.repos[repo]
            sha = there.branches.get(revision) or there.tags.get(revision) or revision
            return there.commits.get(sha)
        if revision not in (self.commit(kind, repo), "master"):
            return None
        folder = self.folders[kind, repo]
        return {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
        }


class _Handler(LoopbackHandler):
    hub: Hub

    def answer(self, path: str, body: bytes) -> None:
        if path == "/openapi/v1/users/me":
            known = {"username": self.hub.me, "email": "me@example.org"}
            return self.ok(known) if self._known() else self.fail(401, "invalid token")
        if self.command == "PUT" and path.startswith("/_blob/"):
            whole = _sha256(body) == path.rsplit("/", 1)[1]
            return self.ok({"oid": self.hub.keep(body)}) if whole else self.fail(400, "a broken upload")
        if self.command == "POST":
            return self._write(path, body) if self._known() else self.fail(401, "invalid token")
        found = re.fullmatch(REPO + r"(?P<rest>/.*)?", path)
        return self._read(found["kind"], found["repo"], found["rest"] or "") if found else self.fail()

    def _read(self, kind: str, repo: str, rest: str) -> None:
        written = self.hub.repos.get(repo) if kind == "models" else None
        if written is None and (kind, repo) not in self.hub.folders:
            return self.fail(404, "no such repo")
        private = written.private if written else repo in self.hub.private
        if private and not self._known():
            return self.fail(403, "access denied")
        if rest == "":
            owner, name = repo.split("/")
            shown = PRIVATE if private else PUBLIC
            return self.ok({"Id": 1, "Path": owner, "Name": name, "Visibility": shown})
        head = self.hub.commit(kind, repo)
        if rest == "/revisions":
            branches = written.branches if written else {"master": head}
            return self.ok(
                {
                    "RevisionMap": {
                        "Branches": [_ref(*item) for item in branches.items()],
                        "Tags": [_ref(*item) for item in written.tags.items()] if written else [],
                    }
                }
            )
        files = self.hub.at(kind, repo, self.query.get("Revision", "master"))
        if files is None:
            return self.fail(404, "no such revision")
        if rest in ("/repo/files", "/repo/tree"):
            return self.ok({"Files": [_entry(name, data) for name, data in sorted(files.items())]})
        wanted = files.get(self.query.get("FilePath", ""))
        return (
            self.send_part(wanted)
            if rest == "/repo" and wanted is not None
            else self.fail(404, "no such file")
        )

    def _write(self, path: str, body: bytes) -> None:
        asked = json.loads(body)
        if path == "/api/v1/models":
            name = f"{asked['Path']}/{asked['Name']}"
            if asked["Path"] != self.hub.me:
                return self.fail(403, "you have no right to create this repo")
            if name in self.hub.repos:
                return self.fail(400, "the repo already exists")
            self.hub.create(name, private=asked["Visibility"] == PRIVATE)
            return self.ok({"Id": 1, "Path": asked["Path"], "Name": asked["Name"]})
        found = re.fullmatch(rf"/api/v1/(?:repos/)?models/{NAME}(?P<rest>/.+)", path)
        repo = self.hub.repos.get(found["repo"]) if found else None
        if found is None or repo is None:
            return self.fail(404, "no such repo")
        if found["repo"].split("/")[0] != self.hub.me:
            return self.fail(403, "you have no right to write here")
        if found["rest"] == "/info/lfs/objects/batch":
            missing = [blob for blob in asked["objects"] if blob["oid"] not in self.hub.blobs]
            href = f"{self.hub.endpoint}/_blob/"
            return self.ok(
                {
                    "objects": [
                        {**blob, "actions": {"upload": {"href": href + blob["oid"]}}} for blob in missing
                    ]
                }
            )
        if found["rest"] == "/repo/tag":
            repo.tags[asked["TagName"]] = repo.branches.get(asked["Ref"], asked["Ref"])
            return self.ok({"TagName": asked["TagName"]})
        branch = found["rest"].removeprefix("/commit/")
        if branch not in repo.branches:
            return self.fail(404, "no such branch")
        return self._commit(repo, branch, asked["actions"])

    def _commit(self, repo: Repo, branch: str, actions: list[dict[str, Any]]) -> None:
        files = dict(repo.commits[repo.branches[branch]])
        for action in actions:
            if action["action"] == "delete":
                del files[action["path"]]
            elif action["type"] == "normal":
                files[action["path"]] = base64.b64decode(action["content"])
            elif action["sha256"] in self.hub.blobs:
                files[action["path"]] = self.hub.blobs[action["sha256"]]
            else:
                return self.fail(400, "no such blob")
        sha = repo.commit(branch, files)
        return self.ok({"CommitId": sha, "Id": sha})

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def ok(self, data: Any) -> None:
        self.send(200, {"Code": 200, "Success": True, "Message": "", "Data": data})

    def fail(self, code: int = 404, message: str = "no such route") -> None:
        self.send(code, {"Code": code, "Success": False, "Message": message, "Data": None})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _ref(name: str, commit: str) -> dict[str, Any]:
    return {"Revision": name, "CommitId": commit, "CreatedAt": 1}


def _entry(name: str, content: bytes) -> dict[str, Any]:
    last = name.rsplit("/", 1)[-1]
    return {"Path": name, "Name": last, "Type": "blob", "Size": len(content), "Sha256": _sha256(content)}


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the server on a free port of loopback."""
    with serve_hub(Hub(), _Handler) as hub:
        yield hub


def point_client(hub: Hub, patch: pytest.MonkeyPatch, *, cache: Path, login: bool = True) -> None:
    """Point the clients of this process to the server, with a separate home."""
    patch.setenv("MODELSCOPE_ENDPOINT", hub.endpoint)
    patch.setenv("MODELSCOPE_CACHE", str(cache))
    patch.setenv("MODELSCOPE_HOME", str(cache.with_name(cache.name + "-home")))
    if login:
        patch.setenv("MODELSCOPE_API_TOKEN", hub.token)
    else:
        patch.delenv("MODELSCOPE_API_TOKEN", raising=False)
