"""The seal of a checkpoint: which files it has, and which it must have, to the byte.

`seal.json` holds bytes and sha256 of every file and is written last, by rename. A folder without it is
incomplete by definition; one that does not fit it is damaged. When to seal and what to do with the answer
is decided in `checkpoints.py`; nothing here imports torch or transformers.

Bytes are flushed to the disk before the seal vouches for them, so that it also holds after a power cut.
A hash guards against accidents, not against an attacker, who could write a new seal.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

SEAL = "seal.json"
FORMAT = 1  # of seal.json; raise it when its keys change meaning
CHUNK = 1 << 20  # bytes hashed at a time

RunValue = str | int | float | bool | None  # of the settings that identify a run; JSON scalars

# What Trainer needs to go on exactly where it stopped. It looks for these names in
# `_load_from_checkpoint`, `_load_optimizer_and_scheduler` and `_load_rng_state` (transformers 5.23).
WEIGHTS = re.compile(
    r"(.*/)?(adapter_model|model|pytorch_model)[^/]*\.(safetensors|bin)|pytorch_model_fsdp.*"
)
OPTIMIZER = re.compile(r"optimizer\.(pt|bin)|optimizer[^/]*/.+")
# A stray file of these kinds could be loaded in place of a sealed one; others (a note, a cache) are ignored.
LOADED = {".bin", ".json", ".pt", ".pth", ".safetensors"}


def seal(folder: str | Path, *, processes: int = 1, run: Mapping[str, RunValue] | None = None) -> Path:
    """Hash every file of a complete checkpoint and write `seal.json`, last and atomically.

    Args:
        folder: the checkpoint; files in sub-folders are sealed too.
        processes: number of training processes that wrote it; a resumed run must have as many.
        run: what identifies the run (seed, data hash, learning rate ...); compared on resume.

    Returns:
        The path of the seal.

    Raises:
        TaskHeadsError: a file cannot be read or the seal cannot be written; no half seal is left behind.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "model.safetensors").write_bytes(b"weights")
        >>> seal(folder).name, verify(folder)
        ('seal.json', [])
    """
    folder = Path(folder)
    path, temporary = folder / SEAL, folder / f"{SEAL}.tmp"
    # An old seal must not vouch for files that are being replaced.
    path.unlink(missing_ok=True)
    temporary.unlink(missing_ok=True)
    files = {}
    for name in _files(folder):
        try:
            size, digest = _digest(folder / name, durable=True)
        except OSError as error:
            raise TaskHeadsError(disk_problem(error, folder / name)) from error
        files[name] = {"bytes": size, "sha256": digest}
    content = {"format": FORMAT, "processes": processes, "run": dict(run or {}), "files": files}
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False).encode()
    try:
        with temporary.open("wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TaskHeadsError(disk_problem(error, path, wanted=len(text))) from error
    return path


def verify(folder: str | Path) -> list[Problem]:
    """Compare a checkpoint with its seal; an empty list means that every sealed byte is there.

    A file that was added later is a problem only if its kind is one that Trainer could load.

    Args:
        folder: the checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [Problem(str(folder), "there is no such folder", "a sealed checkpoint", "check the path")]
    try:
        content = read_seal(folder)
    except TaskHeadsError as error:
        return list(error.problems)
    problems, present, sealed = [], set(_files(folder)), content["files"]
    for name in sorted(set(sealed) | present):
        where, found = str(folder / name), ""
        if name not in present:
            found = "the file is missing"
        elif name not in sealed:
            found = "the file was added after sealing" if Path(name).suffix in LOADED else ""
        else:
            bytes_sealed = sealed[name]["bytes"]
            try:
                size = (folder / name).stat().st_size
                if size != bytes_sealed:
                    found = f"{size:,} bytes where {bytes_sealed:,} were sealed"
                elif _digest(folder / name)[1] != sealed[name]["sha256"]:
                    found = f"its {size:,} bytes were changed after sealing"
            except OSError as error:
                found = f"cannot be read ({error.strerror})"
        if found:
            problems.append(Problem(where, found, "the bytes that were sealed", "use another checkpoint"))
    return problems


def missing_parts(folder: str | Path, *, processes: int = 1, weights_only: bool = False) -> list[Problem]:
    """Name the parts without which Trainer would resume in silence to other weights.

    Args:
        folder: the checkpoint.
        processes: number of training processes, each of which writes an RNG state.
        weights_only: True for `save_only_model`: only weights and `trainer_state.json` are asked for.
    """
    folder = Path(folder)
    names = _files(folder)
    rng = [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"]
    wanted = {"trainer_state.json": "trainer_state.json" in names}
    wanted["weights (model or adapter)"] = any(WEIGHTS.fullmatch(name) for name in names)
    if not weights_only:
        wanted["optimizer.pt"] = any(OPTIMIZER.fullmatch(name) for name in names)
        wanted["scheduler.pt"] = "scheduler.pt" in names
        wanted |= {name: name in names for name in rng}
    return [
        Problem(str(folder), f"{part} is missing", "a complete checkpoint", "use an older checkpoint")
        for part, there in wanted.items()
        if not there
    ]


def _files(folder: Path) -> list[str]:
    """Relative posix paths of all files but the seal itself."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if name not in (SEAL, f"{SEAL}.tmp"))


def read_seal(folder: Path) -> dict:
    """Read `seal.json`: its format, the processes, the run and the files, as `seal` was given them.

    Raises:
        TaskHeadsError: there is none, it is damaged, or it is of another format.
    """
    path, remedy = folder / SEAL, "use another checkpoint, or start afresh in another --output_dir"
    try:
        content = json.loads(path.read_bytes())
        entries = [(entry["bytes"], entry["sha256"]) for entry in content["files"].values()]
        if (
            content["format"] == FORMAT
            and isinstance(content["run"], dict)
            and content["processes"] >= 1
            and entries
        ):
            return content
        found = f"format {shorten(content['format'])}, {len(entries)} files"
    except FileNotFoundError:
        found = "no seal: the run was killed while it saved, or the folder is not from this package"
    except OSError as error:
        found = f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        found = "the seal is damaged"
    raise TaskHeadsError(Problem(str(path), found, f"a seal of format {FORMAT}", remedy))


def _digest(path: Path, *, durable: bool = False) -> tuple[int, str]:
    """Size and sha256 of a file; `durable` also flushes it to the disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
        if durable and os.name == "posix":  # Windows refuses fsync on a file opened for reading
            os.fsync(stream.fileno())
    return size, digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def disk_problem(error: OSError, path: Path, *, wanted: int | None = None) -> Problem:
    """Say what the disk refused: the path, the reason and how many bytes were wanted, where that is known."""
    found = error.strerror or str(error)
    remedy = "check the disk and its permissions; older sealed checkpoints are untouched"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some space and resume; older sealed checkpoints are untouched"
    amount = f" ({wanted:,} bytes wanted)" if wanted is not None else ""
    return Problem(str(path), f"{found}{amount}", "a disk that takes the checkpoint", remedy)
