"""Lay an artifact out as after a download, and load it in an isolated process.

A published model is loaded by its id, from a cache in the layout of the hub's client. Loading the plain
folder would not detect an adapter that loads the wrong base, or code that is not found. The process is an
isolated interpreter (`python -I`) with its own caches, offline, and without the user's tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants

from qwen_task_heads.hubs import resolve

# Variables that the process must not inherit: tokens, and those of a distributed launch.
HIDDEN = ("TOKEN", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_", "TORCHELASTIC_")
TIMEOUT = 3600  # seconds
PROGRAM = Path(__file__).with_name("clean_process.py")
# Optional files that loaders ask for. After a download, the cache records which of them do not exist. An
# offline load of an adapter without `config.json` hangs without this record.
OPTIONAL = (
    "adapter_config.json",
    "adapter/adapter_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "custom_generate/generate.py",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

KILLED = f"ended by signal {int(signal.SIGKILL)}"

# Runs clean_process.py on a job file in a process without the package; returns "" or the reason of a failure.
Loader = Callable[[Path], str]


def lay_out(folder: Path, *, cache: Path, repo_id: str) -> str:
    """Lay a folder out in the cache as after a download; return its commit, a hash of the files."""
    digest = hashlib.sha1(usedforsecurity=False)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    commit = digest.hexdigest()
    root = cache / f"models--{repo_id.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit, encoding="utf-8")
    for path in files:
        link = root / "snapshots" / commit / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    for name in OPTIONAL:
        if not (folder / name).is_file():
            marker = root / ".no_exist" / commit / name
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
    return commit


def link_base(folder: Path, cache: Path) -> None:
    """Link the base of an adapter from the user's cache, or that of its hub, into the new cache."""
    cache.mkdir(parents=True, exist_ok=True)
    if not any((folder / name).is_file() for name in ("adapter_config.json", "adapter/adapter_config.json")):
        return
    if (folder / "label_prompt.json").is_file():  # the adapter of a generative classifier has no config
        stated = json.loads((folder / "label_prompt.json").read_text(encoding="utf-8"))["base"]
        config = {f"backbone_{key}": stated[key] for key in ("hub", "revision")}
        base = stated["name"]
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        base = config.get("backbone_name_or_path")
    if not base or Path(base).is_absolute():
        return
    name = f"models--{base.replace('/', '--')}"
    if hub := config.get("backbone_hub"):
        snapshot, _ = resolve(base, hub=hub, revision=config.get("backbone_revision"))
        lay_out(Path(snapshot), cache=cache, repo_id=base)
    elif Path(constants.HF_HUB_CACHE, name).is_dir():
        (cache / name).symlink_to(Path(constants.HF_HUB_CACHE, name).resolve())


def in_subprocess(job: Path) -> str:
    """Run `clean_process.py` on a job file in an isolated interpreter, without network and tokens."""
    inherited = {
        name: value for name, value in os.environ.items() if not any(part in name for part in HIDDEN)
    }
    root = job.parent
    environment = {
        **inherited,
        "HF_HOME": str(root / "home"),
        "HF_HUB_CACHE": str(root / "hub"),
        "HF_MODULES_CACHE": str(root / "modules"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        process = subprocess.run(
            [sys.executable, "-I", str(PROGRAM), str(job)],
            env=environment,
            cwd=root,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT} s"
    if process.returncode == -signal.SIGKILL:  # the last line of stderr would be an unrelated warning
        return f"{KILLED}: most likely out of memory"
    if process.returncode < 0:
        return f"ended by signal {-process.returncode}"
    return "" if process.returncode == 0 else process.stderr[-1000:] or f"exit code {process.returncode}"


def attempts(device: str, *, numbers: int, wide: bool = True) -> list[tuple[str, bool]]:
    """Return the ways to compute the logits of a model, the most exact first: `(device, in fp32)`.

    A GPU without enough memory raises, and the next way is tried. Without enough main memory, the system ends
    the process. Therefore fp32 is not tried on the CPU unless it fits.

    Args:
        device: `cpu` or an accelerator.
        numbers: number of parameters of the model.
        wide: whether to try fp32 at all.
    """
    fits = 4 * numbers <= available_memory()
    in_fp32 = [(place, True) for place in (device, "cpu") if wide and (place != "cpu" or fits)]
    return list(dict.fromkeys([*in_fp32, (device, False), ("cpu", False)]))


def available_memory() -> float:
    """Return the bytes of memory that are available here; infinity if the system does not report it."""
    limits, group = [math.inf], Path("/sys/fs/cgroup")
    if (system := Path("/proc/meminfo")).is_file():
        memory = dict(line.split(":") for line in system.read_text().splitlines())
        limits.append(1024 * int(memory["MemAvailable"].split()[0]))
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])
        limits.append(int(limit) - used)
    return min(limits)
