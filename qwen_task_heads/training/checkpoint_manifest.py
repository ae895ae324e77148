"""The manifest of a checkpoint: which files it has, and which files it must have.

`seal.json` holds bytes and sha256 of every file. It is written last, by rename. A folder without it is
incomplete by definition, and a folder that differs from it is corrupted. `checkpoints.py` decides when to
write and when to verify it. This module imports neither torch nor transformers.

Files are flushed to the disk before the manifest is written, so that it remains valid after a power cut. The
hashes detect accidents, not an attacker, who could write a new manifest.
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

CHECKPOINT_MANIFEST = "seal.json"  # name of the manifest
FORMAT = 1  # of the manifest; to be increased when its keys change meaning
CHUNK = 1 << 20  # bytes hashed at a time

RunValue = str | int | float | bool | None  # value of a setting that identifies a run; a JSON scalar

# Files that Trainer needs to resume exactly. It looks for these names in
# `_load_from_checkpoint`, `_load_optimizer_and_scheduler` and `_load_rng_state` (transformers 5.23).
WEIGHTS = re.compile(
    r"(.*/)?(adapter_model|model|pytorch_model)[^/]*\.(safetensors|bin)|pytorch_model_fsdp.*"
)
OPTIMIZER = re.compile(r"optimizer\.(pt|bin)|optimizer[^/]*/.+")
# Trainer could load an added file of these types; other files (a note, a cache) are ignored.
LOADED = {".bin", ".json", ".pt", ".pth", ".safetensors"}


def write_manifest(
    folder: str | Path, *, processes: int = 1, run: Mapping[str, RunValue] | None = None
) -> Path:
    """Hash every file of a complete checkpoint and write the manifest `seal.json` atomically.

    Args:
        folder: the checkpoint; files in sub-folders are included.
        processes: number of training processes that wrote it; a resumed run must have as many.
        run: settings that identify the run (seed, data hash, learning rate ...), compared on resume.

    Returns:
        The path of the manifest.

    Raises:
        TaskHeadsError: a file cannot be read or the manifest cannot be written. No partial manifest is left.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "model.safetensors").write_bytes(b"weights")
        >>> write_manifest(folder).name, verify(folder)
        ('seal.json', [])
    """
    folder = Path(folder)
    path, temporary = folder / CHECKPOINT_MANIFEST, folder / f"{CHECKPOINT_MANIFEST}.tmp"
    # An old manifest must not describe files that are being replaced.
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
    """Compare a checkpoint with its manifest, and return the differences.

    A file that was added later is a problem only if its type is one that Trainer could load.

    Returns:
        One problem per file; an empty list if every recorded byte is unchanged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem, expected = "the folder does not exist", "the folder of a checkpoint"
        return [Problem(str(folder), problem, expected, "check the path", code="path-not-found")]
    try:
        content = read_manifest(folder)
    except TaskHeadsError as error:
        return list(error.problems)
    problems, present, recorded = [], set(_files(folder)), content["files"]
    for name in sorted(set(recorded) | present):
        problem = ""
        if name not in present:
            problem = "the file is missing"
        elif name not in recorded:
            problem = "the file was added after the manifest" if Path(name).suffix in LOADED else ""
        else:
            recorded_size = recorded[name]["bytes"]
            try:
                size = (folder / name).stat().st_size
                if size != recorded_size:
                    problem = f"found {size:,} bytes, but {recorded_size:,} in the manifest"
                elif _digest(folder / name)[1] != recorded[name]["sha256"]:
                    problem = f"its {size:,} bytes differ from the manifest"
            except OSError as error:
                problem = f"cannot be read ({error.strerror})"
        if problem:
            problems.append(
                Problem(
                    str(folder / name),
                    problem,
                    "the file that the manifest records",
                    "use another checkpoint",
                    code="checkpoint-incomplete",
                )
            )
    return problems


def missing_files(folder: str | Path, *, processes: int = 1, weights_only: bool = False) -> list[Problem]:
    """Return a problem per missing file that Trainer needs to resume to the same weights.

    Args:
        folder: the checkpoint.
        processes: number of training processes, each of which writes an RNG state.
        weights_only: True for `save_only_model`: only weights and `trainer_state.json` are required.
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
    expected, fix = "a complete checkpoint", "use an older checkpoint"
    return [
        Problem(str(folder), f"{name} is missing", expected, fix, code="checkpoint-incomplete")
        for name, is_present in wanted.items()
        if not is_present
    ]


def _files(folder: Path) -> list[str]:
    """Return the relative posix paths of all files other than the manifest."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if name not in (CHECKPOINT_MANIFEST, f"{CHECKPOINT_MANIFEST}.tmp"))


def read_manifest(folder: Path) -> dict:
    """Read `seal.json`: format, processes, run and files, as given to `write_manifest`.

    Raises:
        TaskHeadsError: the manifest is missing, corrupted, or of another format.
    """
    path, fix = (
        folder / CHECKPOINT_MANIFEST,
        "use another checkpoint, or start a new run in another --output_dir",
    )
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
        problem = f"found format {shorten(content['format'])} with {len(entries)} files"
    except FileNotFoundError:
        problem = "the file is missing: the run was killed during a save, or another package wrote the folder"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        problem = "the manifest is corrupted"
    expected = f"a checkpoint manifest of format {FORMAT}"
    raise TaskHeadsError(Problem(str(path), problem, expected, fix, code="checkpoint-incomplete"))


def _digest(path: Path, *, durable: bool = False) -> tuple[int, str]:
    """Return size and sha256 of a file; `durable` also flushes it to the disk."""
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
    """Return the problem of a failed write or read.

    Args:
        error: of the operating system.
        path: file or folder of the operation.
        wanted: number of bytes to be written, if known.
    """
    code, fix = "path-access", "check the disk and its permissions"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        code, fix = "disk-full", "free some space and resume"
    amount = f" ({wanted:,} bytes wanted)" if wanted is not None else ""
    problem = f"{error.strerror or error}{amount}; older verified checkpoints are unchanged"
    return Problem(str(path), problem, "a disk that can hold the checkpoint", fix, code=code)
