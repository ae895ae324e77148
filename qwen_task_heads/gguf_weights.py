"""GGUF files as backbones: dequantised once into a folder of the user's cache, and loaded from there.

transformers reads GGUF (`from_pretrained(..., gguf_file=...)`) and dequantises it at every load. Here the
result is saved as an ordinary folder in fp32, because loading, training, hashing and verification read
folders. The folder is written under another name and then renamed, so that it is complete or absent. Its
`gguf.json` stores the SHA-256 of the GGUF file. An adapter is pinned to that hash, because other versions of
transformers would write other files.

Source: https://huggingface.co/docs/transformers/gguf; the format:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import TaskHeadsError, error_at
from qwen_task_heads.hubcode.hashes_task_heads import (
    GGUF_SOURCE,
    hash_folder,
    is_dequantized,
    models_cache,
    sha256,
)

MAGIC = b"GGUF"
GGUF_FILE = "model.gguf"  # name of the file of an export, see `export/gguf.py`
SPARE = 64 << 20  # bytes in addition to the weights: tokenizer, config and overhead of the file system
SHOWN = 8  # names of other files in a message
INSTALL = "pip install 'gguf>=0.17'"


def dequantize(path: str | Path, *, name: str | None = None, expected: str | None = None) -> Path:
    """Write a GGUF file as a transformers folder in fp32, unless it is cached, and return the folder.

    A 4-bit file of one gigabyte becomes a folder of about six.

    Args:
        path: path of the file; tokenizer and config are read from it.
        name: name of the folder in the cache; if None, the file's name and the prefix of its SHA-256.
        expected: SHA-256 that the file must have.

    Returns:
        A folder with `config.json`, `model.safetensors` and the tokenizer, in `models_cache()`.

    Raises:
        TaskHeadsError: no GGUF file, another SHA-256 than `expected`, a truncated file, an architecture that
            transformers does not read, not enough disk space, or the package `gguf` is not installed. The
            cache is not changed.
    """
    path = Path(path)
    if not path.is_file():
        names = ", ".join(sorted(file.name for file in path.parent.glob("*.gguf"))[:SHOWN]) or "none"
        raise error_at(
            str(path),
            "the file does not exist",
            "a GGUF file",
            f"check the path and --gguf_file (GGUF files there: {names})",
            code="path-not-found",
        )
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise error_at(
                str(path),
                "the file has another format",
                "a GGUF file",
                "fetch it again (a git-lfs file that was not fetched is a few lines of text)",
                code="file-format",
            )
    digest = sha256(path)
    if expected is not None and digest != expected:
        raise error_at(
            str(path),
            f"found SHA-256 {digest}",
            f"SHA-256 {expected}, that of the tested file",
            "delete it and fetch it again; if the hash is still different, do not use it",
            code="model-corrupted",
        )
    folder = models_cache() / (name or f"{path.stem}-{digest[:16]}")
    if is_dequantized(folder, digest):
        return folder
    try:
        with _draft_of(folder, digest) as draft:
            _convert(path, draft)
            source = {"file": path.name, "sha256": digest, "files": hash_folder(draft)}
            (draft / GGUF_SOURCE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def require_gguf(where: str) -> None:
    """Raise if the package `gguf`, which reads and writes the files, is not installed.

    Args:
        where: place of the message: an option or a function.

    Raises:
        TaskHeadsError: the package is not installed.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise error_at(
            where,
            "the package gguf is not installed",
            "the package gguf, which reads and writes GGUF files",
            INSTALL,
            code="package-missing",
        ) from error


@contextmanager
def _draft_of(folder: Path, digest: str) -> Iterator[Path]:
    """Yield a draft of the folder, which replaces the folder on success and is removed on failure."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir()
        yield draft
        if is_dequantized(folder, digest):  # another process was faster, and may be reading it
            return
        shutil.rmtree(folder, ignore_errors=True)  # incomplete, or from another file
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _convert(path: Path, folder: Path) -> None:
    """Dequantise a file into a folder."""
    tensors, size = _contents(path)
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise OSError(errno.ENOSPC, f"{free:,} bytes free; the model takes {size:,} in fp32")
    print(
        f"Dequantising {path.name} ({tensors} tensors) into {folder.parent} ...", file=sys.stderr, flush=True
    )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        where = {"gguf_file": path.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
        model, info = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, output_loading_info=True, **where
        )
    except OSError:
        raise
    except Exception as error:  # the GGUF reader raises errors of its parser: KeyError, IndexError, ...
        reason = " ".join(str(error).split())[:200]
        raise error_at(
            str(path),
            f"transformers cannot read it ({type(error).__name__}: {reason})",
            "a decoder whose GGUF files transformers reads (Llama, Qwen2, Qwen3, Mistral, Gemma, ...)",
            "fetch the file again if it may be truncated, or use the checkpoint in safetensors",
            code="model-unsupported",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    _check_loaded(path, model, info)
    # transformers 5.23 does not save a model while it is marked as loaded from GGUF.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    # A path of this machine does not belong in a saved config.
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _contents(path: Path) -> tuple[int, int]:
    """Return the number of tensors of a file, and their bytes in fp32.

    Raises:
        TaskHeadsError: a file that ends before its tensors do, or `gguf` is not installed.
    """
    require_gguf("--gguf_file")
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors
        return len(tensors), 4 * sum(int(tensor.n_elements) for tensor in tensors)
    except Exception as error:  # errors of numpy for a memory map that is too short, and of the parser
        reason = " ".join(str(error).split())[:160]
        raise error_at(
            str(path),
            f"the file is truncated or corrupted ({reason})",
            "a complete GGUF file",
            "fetch it again",
            code="file-truncated",
        ) from error


def _check_loaded(path: Path, model: Any, info: dict[str, Any]) -> None:
    """Raise for tensors that the file lacks, which transformers would initialise at random."""
    import torch

    missing = sorted(info["missing_keys"]) + sorted(map(str, info.get("mismatched_keys") or []))
    if missing:
        raise error_at(
            str(path),
            f"{len(missing)} tensors of the model have no weights, such as {missing[0]}",
            "weights for each tensor",
            "use a file that transformers reads completely, or the checkpoint in safetensors",
            code="model-corrupted",
        )
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise error_at(
                str(path),
                f"{name} contains NaN or inf",
                "finite weights",
                "fetch it again",
                code="number-not-finite",
            )


def _unwritable(folder: Path, error: OSError) -> TaskHeadsError:
    reason = error.strerror or " ".join(str(error).split())[:160]
    return error_at(
        str(folder.parent),
        f"the fp32 copy cannot be written ({reason})",
        "a writable folder with enough space",
        "free some space, or set QWEN_TASK_HEADS_CACHE to a folder on another disk",
        code="disk-full" if error.errno == errno.ENOSPC else "path-access",
    )
