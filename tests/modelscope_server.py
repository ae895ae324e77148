"""A stand-in for ModelScope on loopback, read-only: models and data sets that lie in folders.

It answers the routes of modelscope 1.40 (and modelscope_hub 0.5): the revisions of a repo, its file
list, and its files, with the token of a private repo checked.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPO = r"/api/v1/(?P<kind>models|datasets)/(?P<repo>[\w.-]+/[\w.-]+)"


class Hub:
    """What the server has, and what was asked of it.

    `folders` maps (kind, repo) to a folder, `private` holds repos that want `token`, `log` the requests.
    """

    def __init__(self) -> None:
        self.folders: dict[tuple[str, str], Path] = {}
        self.private: set[str] = set()
        self.token = "a-token"
        self.log: list[str] = []
        self.endpoint = ""

    def commit(self, kind: str, repo: str) -> str:
        """Commit of a repo: a hash of its files."""
        digest = hashlib.sha1()
        for path in sorted(self.folders[kind, repo].rglob("*")):
            if path.is_file():
                digest.update(path.read_bytes())
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.hub.log.append(f"{self.command} {self.path}")
        found = re.fullmatch(REPO + r"(?P<rest>/.*)?", unquote(url.path))
        folder = self.hub.folders.get((found["kind"], found["repo"])) if found else None
        if found is None or folder is None:
            return self._fail(404, "no such repo")
        if (
            found["repo"] in self.hub.private
            and self.headers.get("Authorization") != f"Bearer {self.hub.token}"
        ):
            return self._fail(403, "access denied")
        commit, rest = self.hub.commit(found["kind"], found["repo"]), found["rest"] or ""
        if query.get("Revision", commit) not in (commit, "master"):
            return self._fail(404, "no such revision")
        if rest == "":
            return self._answer({"Id": 1, "Name": found["repo"].split("/")[1]})
        if rest == "/revisions":
            branch = {"Revision": "master", "CommitId": commit, "CreatedAt": 1}
            return self._answer({"RevisionMap": {"Branches": [branch], "Tags": []}})
        if rest in ("/repo/files", "/repo/tree"):
            return self._answer({"Files": [_entry(folder, path) for path in _files(folder)]})
        path = folder / query.get("FilePath", "")
        if rest == "/repo" and path.is_file():
            return self._send(200, path.read_bytes(), "application/octet-stream")
        return self._fail(404, "no such file")

    do_HEAD = do_GET

    def _answer(self, data: Any) -> None:
        self._send(200, json.dumps({"Code": 200, "Success": True, "Message": "", "Data": data}).encode())

    def _fail(self, code: int, message: str) -> None:
        body = {"Code": code, "Success": False, "Message": message, "Data": None}
        self._send(code, json.dumps(body).encode())

    def _send(self, code: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    name = path.relative_to(folder).as_posix()
    return {
        "Path": name, "Name": path.name, "Type": "blob", "Size": len(content),
        "Sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the server on a free port of loopback."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
