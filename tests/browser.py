"""Drive headless Chromium by the DevTools protocol over two pipes, without a package.

The protocol: https://chromedevtools.github.io/devtools-protocol. Names are not resolved, so that pages reach
only this machine; `requests` has every address that they asked for.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio",
    "--hide-scrollbars", "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


class Page:
    """One page of a browser."""

    def __init__(self, reads: Any, writes: Any) -> None:
        self._reads, self._writes, self._last = reads, writes, 0
        self.session: str | None = None
        self.requests: list[str] = []
        self.errors: list[str] = []  # exceptions of scripts
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events until then are recorded."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        self._writes.write(json.dumps(message).encode() + b"\0")
        self._writes.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            elif answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"])[:500])

    def _read(self) -> dict[str, Any]:
        parts = bytearray()
        while (byte := self._reads.read(1)) != b"\0":
            assert byte, "the browser has ended"
            parts += byte
        answer: dict[str, Any] = json.loads(parts)
        return answer

    def run(self, script: str) -> Any:
        """Return the value of an expression of JavaScript."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str, *, seconds: float = 60) -> Any:
        """Return the value of an expression once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.05)
        text = self.run("document.body.innerText")
        raise AssertionError(f"{script} stays false after {seconds} seconds; {self.errors}\n{text}")

    def open(self, address: str, *, width: int, height: int = 900) -> None:
        """Open an address in a window of this size, in CSS pixels."""
        mobile = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=mobile,
        )  # fmt: skip
        self.send("Page.navigate", url=address)

    def write(self, element: str, text: str) -> None:
        """Replace the text of a field, given by an expression, as if it were pasted."""
        self.run(f"(() => {{ const field = {element}; field.focus(); field.select(); }})()")
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG or, by the ending of the name, as WebP."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self.send(
            "Page.captureScreenshot", format=path.suffix[1:], captureBeyondViewport=True, clip=clip
        )
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """Start a browser with a new profile in a folder, and end it."""
    from_us, to_us = os.pipe(), os.pipe()
    flags = [*FLAGS, f"--user-data-dir={profile}"]
    # The browser reads commands from descriptor 3 and writes answers to 4.
    shell = f'exec "$0" "$@" 3<&{from_us[0]} 4>&{to_us[1]}'
    process = subprocess.Popen(
        ["bash", "-c", shell, str(CHROMIUM), *flags],
        pass_fds=(from_us[0], to_us[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us[0])
    os.close(to_us[1])
    with os.fdopen(to_us[0], "rb") as reads, os.fdopen(from_us[1], "wb") as writes:
        try:
            yield Page(reads, writes)
        finally:
            process.terminate()
            process.wait(30)
