"""HTTP server on a free port of loopback for both fake hubs, which fails on request.

`hub.fail(at=3, how="cut")` makes the third of the next calls fail, and with `lasting` all later calls too:

- `503`, or any other status: the server answers with it, and does nothing.
- `cut`: the connection ends before anything was done.
- `lost`: everything was done, and the connection ends before the answer.
- `half`: everything was done, and the connection ends in the middle of the answer.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

FAULTS = ("503", "cut", "lost", "half")
SLEEP = time.sleep


def no_waiting(patch: pytest.MonkeyPatch) -> None:
    """Keep the number of retries of the clients, with a millisecond between retries."""
    patch.setattr(time, "sleep", lambda seconds: SLEEP(min(seconds, 0.001)))
    # ModelScope's client waits for an event in place of a sleep where it reads.
    patch.setattr(
        "modelscope_hub._download_control._DownloadControl.sleep", lambda self, seconds: self.check()
    )


class LoopbackHub:
    """State of both hubs: blobs by SHA-256, a log of the calls, and the next fault."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.token = "a-token"
        self.blobs: dict[str, bytes] = {}
        self.log: list[str] = []
        self.lock = threading.RLock()
        self.calm()

    def fail(self, *, at: int, how: str, lasting: bool = False) -> None:
        assert how in FAULTS or how.isdigit()
        self.calls, self.fault = 0, (at, how, lasting)

    def calm(self) -> None:
        self.calls, self.fault = 0, (0, "", False)

    def next_fault(self) -> str:
        """Count a call; return how it fails, or an empty string."""
        with self.lock:
            self.calls += 1
            at, how, lasting = self.fault
            return how if self.calls == at or (lasting and self.calls > at > 0) else ""

    def keep(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return digest


class LoopbackHandler(BaseHTTPRequestHandler):
    """Read whole requests, apply faults, send answers; a subclass implements `answer`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement
    hub: Any
    fault = ""

    def log_message(self, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):  # a client that gave up
            self.close_connection = True

    def _serve(self) -> None:
        body = self._body()  # read it all: what stays would be taken for the next request
        self.hub.log.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.fault = self.hub.next_fault()
        if self.fault == "cut":
            self.close_connection = True
        elif self.fault.isdigit():
            code, self.fault = int(self.fault), ""
            self.send(code, {"error": "no server here", "Message": "no server here"})
        else:
            with self.hub.lock:
                self.answer(unquote(url.path), body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def answer(self, path: str, body: bytes) -> None:
        raise NotImplementedError

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, code: int, content: Any = b"", **headers: Any) -> None:
        """Send JSON or bytes; `_` in names of headers means `-`."""
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        if self.fault == "lost":
            self.close_connection = True
            return
        self.send_response(code)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.fault == "half":
            self.close_connection = True
            data = data[: len(data) // 2]
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_part(self, content: bytes, **headers: Any) -> None:
        """Send a file, or the requested range of it."""
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if self.command == "HEAD" or not wanted:
            return self.send(200, content, Accept_Ranges="bytes", **headers)
        first, last = wanted.split("-")
        end = int(last) + 1 if last else len(content)
        place = f"bytes {first}-{end - 1}/{len(content)}"
        return self.send(206, content[int(first) : end], Content_Range=place, **headers)


Kind = TypeVar("Kind", bound=LoopbackHub)


@contextmanager
def serve_hub(hub: Kind, handler: type[LoopbackHandler]) -> Iterator[Kind]:
    """Run a hub on a free port of loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
