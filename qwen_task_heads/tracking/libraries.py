"""What the libraries of trackers do: where they send what they hear, and what they raise when they fail.

Where it goes: the open run is asked first, then the environment and the logins. A run that somebody started
in this process goes where they said, whatever the environment says; what is not known to stay counts as sent
away. Only a library that is already imported can have an open run, so that asking imports none.
"""

from __future__ import annotations

import netrc
import os
import sys
from importlib.util import find_spec
from pathlib import Path

SWANLAB_HERE = ("local", "offline", "disabled")
WANDB_HERE = ("offline", "dryrun", "disabled")
_TRACKIO_ERRORS = (
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
    ("trackio.exceptions", "TrackioAPIError"),
)


def swanlab_mode() -> str:
    """Mode of SwanLab's open run; else SWANLAB_MODE by its name of today; else one that writes here only.

    Example:
        >>> from qwen_task_heads.tracking.libraries import swanlab_mode
        >>> swanlab_mode() in ("local", "offline", "online", "disabled")
        True
    """
    if sys.modules.get("swanlab") is not None:
        import swanlab

        if swanlab.has_run():
            return swanlab.get_run().mode
    asked = os.environ.get("SWANLAB_MODE") or ("local" if find_spec("swanboard") else "offline")
    return "online" if asked == "cloud" else asked


def wandb_mode() -> str:
    """Mode of wandb's open run; else WANDB_MODE; else `online` with a login and `offline` without.

    `run.settings.mode` is what https://docs.wandb.ai/models/support/run_wandb_offline says to look at.

    Example:
        >>> from qwen_task_heads.tracking.libraries import wandb_mode
        >>> wandb_mode() in ("online", "offline", "dryrun", "disabled", "shared")
        True
    """
    if sys.modules.get("wandb") is not None:
        import wandb

        if wandb.run is not None:
            return wandb.run.settings.mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_wandb_login() else "offline")


def failures_of(module: str) -> tuple[type[Exception], ...]:
    """What a tracker raises where a network, a server, a disk or its own state fails.

    All of them raise OSError (what `requests` and the Hugging Face Hub raise is one too), ValueError, and
    RuntimeError where no run is open. What else they raise derives from Exception alone, and is named here.
    Nothing wider: a TypeError or AttributeError would be an error of ours.

    Args:
        module: of an installed tracker.

    Example:
        >>> from qwen_task_heads.tracking.libraries import failures_of
        >>> OSError in failures_of("tensorboard")
        True
    """
    found: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError)
    if module == "swanlab":
        from swanlab.exceptions import AuthenticationError, DataStoreError

        return (*found, AuthenticationError, DataStoreError)
    if module == "wandb":
        import wandb

        return (*found, wandb.Error)
    if module == "trackio":
        import sqlite3

        found = (*found, sqlite3.Error)  # of its data base
        # Of its own and of the client below it, by versions; only what is imported can have raised.
        for source, name in _TRACKIO_ERRORS:
            if source in sys.modules:
                found = (*found, vars(sys.modules[source])[name])
    return found


def _has_wandb_login() -> bool:
    """Whether wandb would find a key: in the environment, or where its login leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / (".netrc" if os.name == "posix" else "_netrc"))
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        return netrc.netrc(str(path)).authenticators(address.split("://")[-1].strip("/")) is not None
    except (OSError, netrc.NetrcParseError):
        return False
