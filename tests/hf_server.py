"""A fake Hugging Face Hub on loopback for the real client: models, commits, branches, tags.

It answers the routes of huggingface_hub 2.4 without xet: whoami, repos, metadata check, LFS uploads and their
verification, commits, branches, tags, files. Private repos need the token. All data are in memory, and a
commit is one change of state.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import pytest
import yaml
from loopback import LoopbackHandler, LoopbackHub, serve_hub
from pathspec import GitIgnoreSpec

LFS = (".safetensors", ".bin", ".onnx", ".png")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Return the id of git; for an LFS file, that of its pointer."""
        data = b"pointer to " + self.sha256.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """`commits` maps an id to its files; a new repo has one commit with only git's attributes."""

    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> str | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return sha if sha in self.commits else None

    def commit(self, branch: str, files: dict[str, File], message: str = "") -> str:
        listed = sorted((name, file.oid) for name, file in files.items())
        parent = self.branches.get(branch, "")
        sha = hashlib.sha1(json.dumps([parent, message, listed]).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha


class HfHub(LoopbackHub):
    """State of the server. `me` is the owner of `token`; `role` is that of the token."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.me, self.role = "hf_" + "t" * 34, "me", "write"
        self.orgs: list[dict[str, str]] = []
        self.grants: dict[str, Any] = {}  # of a fine-grained token
        self.repos: dict[str, Repo] = {}

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Return the visible files of a repo, without those of git."""
        found = self.repos.get(repo)
        sha = found.find(revision) if found else None
        if found is None or sha is None:
            return {}
        return {n: f.content for n, f in found.commits[sha].items() if n != ".gitattributes"}

    def create(self, repo: str, *, private: bool = False) -> Repo:
        self.repos[repo] = Repo(private)
        self.repos[repo].commit(
            "main", {".gitattributes": File(b"*.bin filter=lfs", False)}, "initial commit"
        )
        return self.repos[repo]

    def put(self, repo: str, files: dict[str, bytes]) -> str:
        """Commit files as if another user had pushed them."""
        there = self.repos.get(repo) or self.create(repo)
        new = {name: File(content, name.endswith(LFS)) for name, content in files.items()}
        return there.commit("main", {**there.commits[there.branches["main"]], **new})

    def duplicate(self, repo: str, new: str) -> None:
        """Duplicate a repo, as on the website."""
        self.create(new, private=self.repos[repo].private)
        self.put(new, self.files(repo))


class _Handler(LoopbackHandler):
    hub: HfHub

    def answer(self, path: str, body: bytes) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, respond in ROUTES:
            if wanted == method and (found := re.fullmatch(pattern, path)):
                named = found.groupdict()
                repo = self.hub.repos.get(named["repo"]) if "repo" in named else None
                if "repo" in named and (repo is None or (repo.private and not self._known())):
                    code = 404 if self._known() else 401
                    return self.error(code, "RepoNotFound", f"Repository {named['repo']} not found")
                # an upload goes to a signed address, without the token
                if wanted == "POST" and not self._may_write(named.get("repo")):
                    return self.error(403, "Forbidden", "you have no right to write here")
                sha = repo.find(named["revision"] or "main") if repo and "revision" in named else None
                if repo and "revision" in named and sha is None:
                    return self.error(404, "RevisionNotFound", f"Invalid rev id: {named['revision']}")
                return respond(self, repo, sha, named, body)
        return self.error(404, "EntryNotFound", f"no route for {self.command} {path}")

    def error(self, code: int, name: str, message: str, **headers: str) -> None:
        self.send(code, {"error": message}, X_Error_Code=name, X_Error_Message=message, **headers)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _may_write(self, repo: str | None) -> bool:
        owners = {self.hub.me, *(org["name"] for org in self.hub.orgs)}
        return self._known() and self.hub.role != "read" and (repo is None or repo.split("/")[0] in owners)

    def who(self, repo: Any, sha: Any, named: dict[str, str], body: bytes) -> None:
        if not self._known():
            return self.error(401, "", "Invalid credentials in Authorization header")
        token = {"role": self.hub.role, "displayName": "x", "fineGrained": self.hub.grants}
        me = {"type": "user", "name": self.hub.me, "orgs": self.hub.orgs}
        return self.send(200, {**me, "auth": {"type": "access_token", "accessToken": token}})

    def info(self, repo: Repo, sha: str, named: dict[str, str], body: bytes) -> None:
        name = named["repo"]
        self.send(200, {
            "_id": "0", "id": name, "modelId": name, "sha": sha, "private": repo.private, "gated": False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [], "lastModified": DATE,
            "createdAt": DATE, "siblings": [{"rfilename": path} for path in repo.commits[sha]],
        })  # fmt: skip

    def latest(self, repo: Repo, sha: None, named: dict[str, str], body: bytes) -> None:
        self.info(repo, repo.branches["main"], named, body)

    def refs(self, repo: Repo, sha: None, named: dict[str, str], body: bytes) -> None:
        def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [
                {"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": commit} for n, commit in refs.items()
            ]

        branches, tags = listed("heads", repo.branches), listed("tags", repo.tags)
        self.send(200, {"branches": branches, "tags": tags, "converts": []})

    def tree(self, repo: Repo, sha: str, named: dict[str, str], body: bytes) -> None:
        below = named.get("folder") or ""
        files = sorted(repo.commits[sha].items())
        self.send(200, [_entry(path, file) for path, file in files if path.startswith(below)])

    def paths(self, repo: Repo, sha: str, named: dict[str, str], body: bytes) -> None:
        is_json = "json" in self.headers.get("Content-Type", "")
        wanted = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
        self.send(200, [_entry(path, file) for path, file in repo.commits[sha].items() if path in wanted])

    def resolve(self, repo: Repo, sha: str, named: dict[str, str], body: bytes) -> None:
        file = repo.commits[sha].get(named["path"])
        if file is None:
            return self.error(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        etag = file.sha256 if file.lfs else file.oid
        return self.send_part(file.content, X_Repo_Commit=sha, ETag=f'"{etag}"')

    def create(self, repo: None, sha: None, named: dict[str, str], body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or self.hub.me}/{asked['name']}"
        if not self._may_write(name):
            return self.error(403, "Forbidden", "you have no right to create this repo")
        url = {"url": f"{self.hub.endpoint}/{name}"}
        if name in self.hub.repos:
            return self.send(409, {"error": "You already created this model repo", **url})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.create(name, private=bool(private))
        return self.send(200, {**url, "name": name, "id": "0"})

    def validate(self, repo: None, sha: None, named: dict[str, str], body: bytes) -> None:
        card = json.loads(body)["content"]
        try:
            data = yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else {}
            errors = [] if isinstance(data, dict) else [{"message": "metadata is no table"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, repo: Repo, sha: str, named: dict[str, str], body: bytes) -> None:
        there, answers, asked = repo.commits[sha], [], json.loads(body)
        ignored = GitIgnoreSpec.from_lines(asked.get("gitIgnore", "").splitlines())
        for file in asked["files"]:
            path, large = file["path"], file["path"].endswith(LFS) or file["size"] > 100_000
            oid = there[path].oid if path in there else None
            mode = "lfs" if large else "regular"
            skip = ignored.match_file(path)
            answers.append({"path": path, "shouldIgnore": skip, "oid": oid, "uploadMode": mode})
        self.send(200, {"files": answers, "commitOid": sha})

    def batch(self, repo: Repo, sha: None, named: dict[str, str], body: bytes) -> None:
        objects = []
        for blob in json.loads(body)["objects"]:
            upload = {"href": f"{self.hub.endpoint}/_blob/{blob['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"{self.hub.endpoint}/_verify"}}
            objects.append(blob if blob["oid"] in self.hub.blobs else {**blob, "actions": actions})
        self.send(200, {"transfer": "basic", "objects": objects})

    def upload(self, repo: None, sha: None, named: dict[str, str], body: bytes) -> None:
        whole = hashlib.sha256(body).hexdigest() == named["digest"]
        if whole:
            self.hub.keep(body)
        self.send(200 if whole else 400)

    def verify(self, repo: None, sha: None, named: dict[str, str], body: bytes) -> None:
        self.send(200 if json.loads(body)["oid"] in self.hub.blobs else 404, {})

    def commit(self, repo: Repo, sha: str, named: dict[str, str], body: bytes) -> None:
        files, message = dict(repo.commits[sha]), ""
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value.get("summary", "")
                if value.get("parentCommit") not in (None, sha):
                    return self.error(412, "", "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    return self.error(400, "", f"no such LFS object: {value['oid']}")
                files[value["path"]] = File(self.hub.blobs[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
        new = repo.commit(named["revision"], files, message)
        url = f"{self.hub.endpoint}/{named['repo']}/commit/{new}"
        return self.send(200, {"success": True, "commitOid": new, "commitUrl": url, "hookOutput": ""})

    def branch(self, repo: Repo, sha: None, named: dict[str, str], body: bytes) -> None:
        if named["new"] in repo.branches:
            return self.error(409, "", "Reference already exists")
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        repo.branches[named["new"]] = str(repo.find(start))
        return self.send(200, {})

    def tag(self, repo: Repo, sha: str, named: dict[str, str], body: bytes) -> None:
        name = json.loads(body)["tag"]
        if name in repo.tags:
            return self.error(409, "", "Tag reference exists already")
        repo.tags[name] = sha
        return self.send(200, {})


def _entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": len(file.content), "path": path}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return entry


API = f"/api/models/{REPO}"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _Handler.who),
    ("GET", API, _Handler.latest),
    ("GET", f"{API}/revision/{REVISION}", _Handler.info),
    ("GET", f"{API}/refs", _Handler.refs),
    ("GET", f"{API}/tree/{REVISION}(?:/(?P<folder>.*))?", _Handler.tree),
    ("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", _Handler.resolve),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"{API}/paths-info/{REVISION}", _Handler.paths),
    ("POST", f"{API}/preupload/{REVISION}", _Handler.preupload),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", _Handler.batch),
    ("POST", "/_verify", _Handler.verify),
    ("PUT", "/_blob/(?P<digest>[0-9a-f]{64})", _Handler.upload),
    ("POST", f"{API}/commit/{REVISION}", _Handler.commit),
    ("POST", f"{API}/branch/(?P<new>[^/]+)", _Handler.branch),
    ("POST", f"{API}/tag/{REVISION}", _Handler.tag),
]


@contextmanager
def serve() -> Iterator[HfHub]:
    """Run the server on a free port of loopback."""
    with serve_hub(HfHub(), _Handler) as hub:
        yield hub


def point_client(hub: HfHub, patch: pytest.MonkeyPatch, *, cache: Any, login: bool = True) -> None:
    """Point the client of this process to the server; the client reads its environment only on import."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    close_session()  # connections to the server of an earlier test
    patch.setattr(constants, "ENDPOINT", hub.endpoint)
    # transformers keeps the client it made first, to list chat templates: that of an earlier server, which
    # it tries to reach for half a minute each time.
    patch.setattr("transformers.utils.hub._hf_api", None)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    if login:
        patch.setenv("HF_TOKEN", hub.token)
    else:
        patch.delenv("HF_TOKEN", raising=False)
