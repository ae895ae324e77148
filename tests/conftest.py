"""Configuration of the whole suite: order of tests, accepted warnings, and no network.

Sockets may reach only loopback. The hub client is offline and its cache is a new folder, so that no test can
pass because of files that an earlier run downloaded.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Before transformers is imported: huggingface_hub and torch read these once.
_CACHE = tempfile.mkdtemp(prefix="task-heads-cache-")
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HOME=_CACHE, HF_MODULES_CACHE=f"{_CACHE}/modules", TOKENIZERS_PARALLELISM="false"
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

# Folders whose files take longest, in the order in which they start.
LONG = ("training", "recipes", "hubcode", "faults", "publishing")
# Files whose tests take minutes each and share nothing.
SEPARATE = ("test_pages_run.py",)
LOOPBACK = ("127.0.0.1", "::1", "localhost", "", b"127.0.0.1", b"localhost", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache of this run."""
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    """Silence warnings of other libraries that this project cannot fix, and load the fixtures of models.

    The fixtures import torch and transformers, which a process that only distributes tests does not need.
    """
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("model_fixtures")
    # peft 0.21 asks transformers 5.23 for a property by its old name when it wraps a model.
    config.addinivalue_line(
        "filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers"
    )
    # Forks of a process with threads: the launchers' own code.
    config.addinivalue_line("filterwarnings", r"ignore::DeprecationWarning:multiprocessing\..*")


@cache
def group_of(path: Path) -> str:
    """Return the group of a file: files that need the same server of processes run on one worker.

    Such a server is slow to start and runs as long as the worker.
    """
    text = path.read_text(encoding="utf-8")
    if re.search(r"\blaunching\.(fork|fork_two|start|finished|killed)\b", text):
        return "fork"
    return "clean" if re.search(r"\b(clean|open_in)(: |,|\))|\"quick_proof\"", text) else str(path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files: those that need a server first, then long ones, so that short ones fill gaps at the end."""

    def order(item: pytest.Item) -> int:
        if group_of(item.path) in ("fork", "clean"):
            return -1
        return LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG)

    items.sort(key=order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute whole groups to workers. (pytest 9.2 loses the groups of `loadgroup` in xdist 3.8.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = config.rootpath / nodeid.split("::")[0]
            return nodeid if path.name in SEPARATE else group_of(path)

    return Groups(config, log)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Exclude the modules of the libraries from garbage collection.

    Every training ends with a full collection, which takes 0.3 s for a million objects.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Raise for connections, packets and name look-ups beyond this machine."""
    originals = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
    lookup = socket.getaddrinfo

    def guard(name: str) -> Callable[..., Any]:
        def call(self: socket.socket, *args: Any) -> Any:
            address = args[-1]
            if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
                raise OSError(f"tests have no network: {name} to {address!r}")
            return originals[name](self, *args)

        return call

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in LOOPBACK:
            raise OSError(f"tests have no network: getaddrinfo of {host!r}")
        return lookup(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in originals:
            patch.setattr(socket.socket, name, guard(name))
        patch.setattr(socket, "getaddrinfo", guarded_lookup)
        yield
