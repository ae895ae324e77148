"""Behaviour of the tracker libraries: the mode of a run, and the exceptions of failures.

The mode is read from the open run, then from the environment and the logins. A run started by other code of
this process keeps its mode, whatever the environment says. Any mode that is not known to be local counts as
remote. A library that is not imported has no open run, so it is not imported to find out.
"""

from __future__ import annotations

import netrc
import os
import sys
from importlib.util import find_spec
from pathlib import Path

SWANLAB_LOCAL = ("local", "offline", "disabled")
WANDB_LOCAL = ("offline", "dryrun", "disabled")
_TRACKIO_ERRORS = (
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
    ("trackio.exceptions", "TrackioAPIError"),
)


def swanlab_mode() -> str:
    """Return the mode of SwanLab's open run, else SWANLAB_MODE, else a local mode.

    Example:
        >>> from qwen_task_heads.tracking.libraries import swanlab_mode
        >>> swanlab_mode() in ("local", "offline", "online", "disabled")
        True
    """
    if sys.modules.get("swanlab") is not None:
        import swanlab

        if swanlab.has_run():
            return swanlab.get_run().mode
    mode = os.environ.get("SWANLAB_MODE") or ("local" if find_spec("swanboard") else "offline")
    return "online" if mode == "cloud" else mode  # `cloud` is the old name


def wandb_mode() -> str:
    """Return the mode of wandb's open run, else WANDB_MODE, else `online` with a login or `offline`.

    Source: https://docs.wandb.ai/models/support/run_wandb_offline, on `run.settings.mode`.

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
    """Return the exceptions that a tracker raises if a network, a server, a disk or its own state fails.

    All trackers raise OSError (also the base of errors of `requests` and the Hugging Face Hub), ValueError,
    and RuntimeError if no run is open. Their other errors derive from Exception directly and are named here.
    TypeError and AttributeError are not included, because they are bugs of this library.

    Args:
        module: name of an installed tracker's module.

    Example:
        >>> from qwen_task_heads.tracking.libraries import failures_of
        >>> OSError in failures_of("tensorboard")
        True
    """
    failures: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError)
    if module == "swanlab":
        from swanlab.exceptions import AuthenticationError, DataStoreError

        return (*failures, AuthenticationError, DataStoreError)
    if module == "wandb":
        import wandb

        return (*failures, wandb.Error)
    if module == "trackio":
        import sqlite3

        failures = (*failures, sqlite3.Error)  # of its database
        # Errors of trackio and its HTTP client, which depend on the version. Modules that are not imported
        # cannot have raised.
        for source, name in _TRACKIO_ERRORS:
            if source in sys.modules:
                failures = (*failures, vars(sys.modules[source])[name])
    return failures


def _has_wandb_login() -> bool:
    """Return whether wandb would find a key, in the environment or in the netrc file of its login."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / (".netrc" if os.name == "posix" else "_netrc"))
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        return netrc.netrc(str(path)).authenticators(address.split("://")[-1].strip("/")) is not None
    except (OSError, netrc.NetrcParseError):
        return False
