"""An artefact as it lies after a download, and the process that opens it and knows nothing else.

What is published is opened by its id, from a cache laid out as the hub's client lays it out: a load of the
plain folder would not show an adapter that jumps to the wrong base, or code that is not found. The process
is an isolated interpreter (`python -I`) with caches of its own, offline, and without the user's tokens.
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

from qwen_task_heads.modelscope import MODELSCOPE, fetch_modelscope
from qwen_task_heads.verification import fingerprint

# What the process must not inherit: tokens, and its part in a distributed launch.
HIDDEN = ("TOKEN", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_", "TORCHELASTIC_")
TIMEOUT = 3600  # seconds
# What loaders ask for and a repo need not have: after a download the cache knows what is not there, and an
# offline load of an adapter without `config.json` hangs on that.
OPTIONAL = (
    "adapter_config.json", "adapter/adapter_config.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json",
    "custom_generate/generate.py", "generation_config.json", "model.safetensors",
    "model.safetensors.index.json", "preprocessor_config.json", "processor_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip

KILLED = f"ended by signal {int(signal.SIGKILL)}"

# Runs fingerprint.py on a job file in a process without the package; gives "" or why that failed.
Opener = Callable[[Path], str]


def lay_out(folder: Path, *, cache: Path, repo_id: str) -> str:
    """Lay a folder out as the hub's client does after a download; its commit is a hash of its files."""
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


def bring_base(folder: Path, cache: Path) -> None:
    """Link the base that an adapter names, from the user's cache or ModelScope's, into the new cache."""
    cache.mkdir(parents=True, exist_ok=True)
    if not any((folder / name).is_file() for name in ("adapter_config.json", "adapter/adapter_config.json")):
        return
    if (folder / "label_prompt.json").is_file():  # of a language model, whose adapter has no config
        stated = json.loads((folder / "label_prompt.json").read_text(encoding="utf-8"))["base"]
        config = {f"backbone_{key}": stated[key] for key in ("hub", "revision")}
        base = stated["name"]
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        base = config.get("backbone_name_or_path")
    if not base or Path(base).is_absolute():
        return
    name = f"models--{base.replace('/', '--')}"
    if config.get("backbone_hub") == MODELSCOPE:
        found, _ = fetch_modelscope(base, revision=config.get("backbone_revision"))
        lay_out(found, cache=cache, repo_id=base)
    elif Path(constants.HF_HUB_CACHE, name).is_dir():
        (cache / name).symlink_to(Path(constants.HF_HUB_CACHE, name).resolve())


def in_subprocess(job: Path) -> str:
    """Run `fingerprint.py` on a job file in an isolated interpreter, without a network and without tokens."""
    kept = {name: value for name, value in os.environ.items() if not any(part in name for part in HIDDEN)}
    root = job.parent
    environment = {
        **kept,
        "HF_HOME": str(root / "home"), "HF_HUB_CACHE": str(root / "hub"),
        "HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    try:
        found = subprocess.run(
            [sys.executable, "-I", fingerprint.__file__, str(job)],
            env=environment, cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            timeout=TIMEOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT} s"
    if found.returncode == -signal.SIGKILL:  # the last line of stderr would be a warning of something else
        return f"{KILLED}: most likely out of memory"
    if found.returncode < 0:
        return f"ended by signal {-found.returncode}"
    return "" if found.returncode == 0 else found.stderr[-1000:] or f"exit code {found.returncode}"


def attempts(device: str, *, numbers: int, wide: bool = True) -> list[tuple[str, bool]]:
    """Ways to compute logits of a model, the exact first and the frugal last: `(device, in fp32)`.

    What is over a GPU's memory raises there, and the next way is tried. What is over the machine's own ends
    the process without a word, so fp32 is not tried there when there is no room for it.

    Args:
        device: `cpu`, or of an accelerator.
        numbers: how many the model holds.
        wide: try fp32 at all.
    """
    roomy = 4 * numbers <= room()
    found = [(place, True) for place in (device, "cpu") if wide and (place != "cpu" or roomy)]
    return list(dict.fromkeys([*found, (device, False), ("cpu", False)]))


def room() -> float:
    """Bytes of memory that processes may still take here; infinite where the system does not say."""
    found, group = [math.inf], Path("/sys/fs/cgroup")
    if (system := Path("/proc/meminfo")).is_file():
        told = dict(line.split(":") for line in system.read_text().splitlines())
        found.append(1024 * int(told["MemAvailable"].split()[0]))
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(told["inactive_file"])
        found.append(int(limit) - used)
    return min(found)
