"""What the ends of all recipes share: the account of a run, its notes, its manifest, its last words.

A model is saved before anything here runs: what cannot be computed or drawn is said and loses nothing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qwen_task_heads.backbones import EMBEDDED, locate
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.publishing.cards import plain
from qwen_task_heads.publishing.manifest import file_names, hash_code, versions

T = TypeVar("T")
MODEL = "this model"
SMALL = "The embedded backbone shows the workflow, not what a pretrained Qwen can do."


@dataclass(frozen=True, kw_only=True)
class Account:
    """What the end of any run needs to know of it.

    Args:
        settings: what was trained, name to value.
        log_history: of the trainer.
        seconds: training time.
        seed: of the run.
        backbone: as the user named it.
        resumed: `seconds` is the part after a checkpoint only.
        picked: the checkpoint was picked by its figures on dev; else it is the last one.
        warning: what the run found wrong with its data, or None.
        speed: a line on how fast it was and what it did not waste; "" if nobody measured.
    """

    settings: Mapping[str, Any]
    log_history: Sequence[Mapping[str, Any]]
    seconds: float
    seed: int
    backbone: str
    resumed: bool = False
    picked: bool = True
    warning: str | None = None
    speed: str = ""


def attempt(make: Callable[[], T], what: str, notes: list[str]) -> T | None:
    """Compute something the run can do without; note the reason where it cannot be."""
    try:
        return make()
    except TaskHeadsError as error:
        notes.append(f"{what}: {error}")
        return None


def first_notes(model: Any, run: Account) -> list[str]:
    """The run's own warning, and what to know of an adapter whose base is a folder."""
    from peft import PeftModel

    notes = [run.warning] if run.warning else []
    if isinstance(model, PeftModel) and Path(locate(run.backbone)).is_dir():
        notes.append(
            "this adapter needs its base, a folder of this machine: to hand it on, merge it "
            "(qwen_task_heads.merge) and save the full model"
        )
    return notes


def card_fields(model: Any, folder: Path, run: Account, *, reported: str, seen: int) -> dict[str, Any]:
    """The fields that the cards of all models have in common; `seen` rows of test stand in train too."""
    from peft import PeftModel

    adapter, local = isinstance(model, PeftModel), Path(locate(run.backbone)).is_dir()
    base = Path(run.backbone).name if local else run.backbone
    embedded = run.backbone == EMBEDDED
    return {
        "title": plain(folder.name),
        "kind": "An adapter with its head" if adapter else "A full model",
        "base": "the small backbone embedded in the package" if embedded else f"`{base}`",
        "revision": model.config.backbone_revision,
        "versions": versions(),
        "reported_on": _reported_on(reported, run, seen),
        "repo": "path/to/" + re.sub(r"[^\w./-]", "-", folder.name),
        "adapter": adapter,
        "picked": run.picked,
        "settings": {plain(name): plain(value) for name, value in run.settings.items()},
        "embedded": embedded,
    }


def base_of(model: Any, run: Account) -> dict[str, Any]:
    """Base and relation of the card's metadata; a folder of this machine is no base that a hub knows."""
    from peft import PeftModel

    base = None if Path(locate(run.backbone)).is_dir() else run.backbone
    return {"base": base, "relation": "adapter" if isinstance(model, PeftModel) else "finetune"}


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people read: indented, in UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_manifest(folder: Path, run: Account, *, data: Mapping[str, Any]) -> None:
    """Write `manifest.json`, last of all: it lists the files beside it."""
    content = {
        "versions": versions(),
        "seed": run.seed,
        "settings": dict(run.settings),
        "data": dict(data),
        "code": hash_code(),
        "files": file_names(folder),
    }
    write_json(folder / "manifest.json", content)


def trained_line(what: str, run: Account) -> str:
    """First lines on the screen: what was trained on what, in how long, and how fast."""
    since = " since the checkpoint it resumed from" if run.resumed else ""
    return f"Trained {what} in {run.seconds:.0f} s{since} (seed {run.seed})." + (
        run.speed and f"\n{run.speed}"
    )


def python_command() -> str:
    """This interpreter as a user would type it here: `.venv/bin/python`, or just `python`."""
    here = Path(sys.executable)
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else "python"


def _reported_on(reported: str, run: Account, seen: int) -> str:
    if reported == "test" and seen:
        rows = "one row of which was" if seen == 1 else f"{seen:,} rows of which were"
        return f"On the test set, {rows} trained on too: the figures flatter."
    if reported == "test":
        return "On the test set, which played no part in training or choosing:"
    if run.picked:
        return "On the dev set, on which the checkpoint was also chosen: expect a little less on new data."
    return "On the dev set, which chose nothing: these are the last weights of the run."
