"""The hubs that models and data sets come from and are published to: one class each, and one table.

`HUBS` is the only list of hubs. Every `--hub` option, check and message reads it. A new hub is a subclass of
`Hub` in a module of this package and a row here.

The package is below everything that loads a model or reads data, because all of it accepts ids of a hub. It
therefore knows no file of a published model: `publishing.upload` decides what a push sends and removes.
"""

from __future__ import annotations

from pathlib import Path

from qwen_task_heads.errors import error_at, shorten
from qwen_task_heads.hubs.base import Hub, Kind
from qwen_task_heads.hubs.huggingface import HuggingFace
from qwen_task_heads.hubs.modelscope import ModelScope

__all__ = ["HUBS", "HUGGINGFACE", "Hub", "HuggingFace", "hub_named", "resolve"]

HUBS: dict[str, type[Hub]] = {hub.name: hub for hub in (HuggingFace, ModelScope)}
HUGGINGFACE = HuggingFace.name  # the default of every option and argument


def hub_named(name: str) -> type[Hub]:
    """Return the class of a hub.

    Raises:
        TaskHeadsError: no hub has this name.

    Example:
        >>> from qwen_task_heads.hubs import hub_named
        >>> hub_named("modelscope").branch
        'master'
    """
    if name not in HUBS:
        raise error_at(
            "--hub", f"found {shorten(name)}", ", ".join(HUBS), "choose one of them", code="option-value"
        )
    return HUBS[name]


def resolve(
    name: str, *, hub: str, kind: Kind = "model", revision: str | None = None
) -> tuple[str, str | None]:
    """Return what transformers and `datasets` open for a name, and the commit if it had to be fetched.

    An existing path and an id of a hub that they read by themselves are returned as they are, with None. For
    another hub this is the fetched folder. The arguments and errors are those of `Hub.resolve`.

    Example:
        >>> from qwen_task_heads.hubs import resolve
        >>> resolve("Qwen/Qwen2.5-0.5B", hub="huggingface")
        ('Qwen/Qwen2.5-0.5B', None)
    """
    found = hub_named(hub)
    if found.by_id or Path(name).exists():
        return name, None
    return found().resolve(name, kind=kind, revision=revision)
