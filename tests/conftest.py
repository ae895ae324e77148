"""The whole suite: its order, what it may warn of, and a machine without a network.

Sockets may reach loopback only, the hub client is told to be offline, and its cache is a fresh
folder, so that no test can pass because of what an earlier run downloaded.
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

# Rooms whose files take longest, in the order in which they start.
LONG = ("training", "recipes", "hubcode", "faults", "publishing")
LOOPBACK = ("127.0.0.1", "::1", "localhost", "", b"127.0.0.1", b"localhost", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache of this run."""
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    """Silence the warnings of other libraries that we cannot act on; take the models' fixtures.

    Those import torch and transformers, for which a process that only hands tests to workers has no use.
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
    """What runs on one worker: a file, or all files that need the same server of processes.

    Such a server takes long to start, and lives as long as the worker.
    """
    text = path.read_text(encoding="utf-8")
    if re.search(r"\blaunching\.(fork|fork_two|start|finished|killed)\b", text):
        return "fork"
    return "clean" if re.search(r"\b(clean|open_in)(: |,|\))|\"quick_proof\"", text) else str(path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need a server first, then long ones: the short ones fill the gaps at the end."""

    def order(item: pytest.Item) -> int:
        if group_of(item.path) in ("fork", "clean"):
            return -1
        return LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG)

    items.sort(key=order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand whole groups to workers. (pytest 9.2 loses the groups of xdist 3.8's own `loadgroup`.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(config.rootpath / nodeid.split("::")[0])

    return Groups(config, log)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the garbage collector pass over the modules of the libraries from here on.

    Every training ends with a full collection, and looking through a million objects takes 0.3 s.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Refuse to connect, to send or to look up a name anywhere but on this machine."""
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
