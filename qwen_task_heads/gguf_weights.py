"""GGUF files as backbones: dequantised once into a folder of the user's cache, and opened from there.

transformers reads GGUF (`from_pretrained(..., gguf_file=...)`) and dequantises it at every load. Here the
result is saved as an ordinary folder in fp32, because everything that opens, trains, hashes and verifies a
backbone reads folders. The folder is written beside its place and renamed, so that it is whole or absent.
`gguf.json` in it names the file by its SHA-256; an adapter is pinned to that hash and not to files that other
versions of transformers would write differently.

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

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.hashes_task_heads import (
    GGUF_SOURCE,
    hash_folder,
    is_dequantized,
    models_cache,
    sha256,
)

MAGIC = b"GGUF"
SPARE = 64 << 20  # bytes beside the weights: tokenizer, config and what the file system takes
SHOWN = 8  # names of other files in a message
INSTALL = "pip install 'gguf>=0.10'"


def dequantize(path: str | Path, *, name: str | None = None, expected: str | None = None) -> Path:
    """Write a GGUF file as a transformers folder in fp32, unless that was done before, and return the folder.

    A file of a gigabyte in 4 bits becomes a folder of about six.

    Args:
        path: of the file; its tokenizer and config are read from it.
        name: of the folder in the cache; the file's name and the beginning of its SHA-256 if None.
        expected: SHA-256 that the file must have.

    Returns:
        A folder with `config.json`, `model.safetensors` and the tokenizer, in `models_cache()`.

    Raises:
        TaskHeadsError: no GGUF file, another SHA-256 than `expected`, a truncated file, an architecture that
            transformers does not read, no room on the disk, or the package `gguf` is not installed. Nothing
            is left in the cache.
    """
    path = Path(path)
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.gguf"))[:SHOWN]) or "none"
        remedy = f"check the path and --gguf_file (GGUF files there: {there})"
        raise TaskHeadsError(Problem(str(path), "found no such file", "a GGUF file", remedy))
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            remedy = "fetch it again (a file of git-lfs that was not fetched is a few lines of text)"
            raise TaskHeadsError(Problem(str(path), "found a file of another format", "a GGUF file", remedy))
    digest = sha256(path)
    if expected is not None and digest != expected:
        remedy = "delete it and fetch it again; if the hash stays different, do not use it"
        raise TaskHeadsError(
            Problem(
                str(path), f"found SHA-256 {digest}", f"SHA-256 {expected}, that of the tested file", remedy
            )
        )
    folder = models_cache() / (name or f"{path.stem}-{digest[:16]}")
    if is_dequantized(folder, digest):
        return folder
    try:
        with _beside(folder, digest) as draft:
            _convert(path, draft)
            source = {"file": path.name, "sha256": digest, "files": hash_folder(draft)}
            (draft / GGUF_SOURCE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


@contextmanager
def _beside(folder: Path, digest: str) -> Iterator[Path]:
    """Give a draft of the folder; it takes the folder's place if all went well and is removed otherwise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir()
        yield draft
        if is_dequantized(folder, digest):  # another process was faster, and may be reading it
            return
        shutil.rmtree(folder, ignore_errors=True)  # what was cut short, or another file's
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
    except Exception as error:  # the reader of GGUF raises what its parser meets: KeyError, IndexError, ...
        reason = " ".join(str(error).split())[:200]
        accepted = "a decoder whose GGUF files transformers reads (Llama, Qwen2, Qwen3, Mistral, Gemma, ...)"
        remedy = "fetch the file again if it may be truncated, or use the checkpoint in safetensors"
        raise TaskHeadsError(
            Problem(str(path), f"found {type(error).__name__}: {reason}", accepted, remedy)
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    _check_loaded(path, model, info)
    # transformers 5.23 refuses to save what came from GGUF until nothing says so.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    # A path of this machine is part of no model; `dtype` and architecture are.
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _contents(path: Path) -> tuple[int, int]:
    """Return the number of tensors of a file, and their bytes in fp32.

    Raises:
        TaskHeadsError: a file that ends before its tensors do, or `gguf` is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise TaskHeadsError(
            Problem(
                "--gguf_file", "found the package gguf is not installed", "it, to read GGUF files", INSTALL
            )
        ) from error
    try:
        tensors = GGUFReader(path).tensors
        return len(tensors), 4 * sum(int(tensor.n_elements) for tensor in tensors)
    except Exception as error:  # numpy's errors of a memory map that is too short, and those of the parser
        reason = " ".join(str(error).split())[:160]
        raise TaskHeadsError(
            Problem(
                str(path),
                f"found a truncated or damaged file ({reason})",
                "a whole GGUF file",
                "fetch it again",
            )
        ) from error


def _check_loaded(path: Path, model: Any, info: dict[str, Any]) -> None:
    """Refuse a model that the file did not fill: transformers would draw the rest at random."""
    import torch

    missing = sorted(info["missing_keys"]) + sorted(map(str, info.get("mismatched_keys") or []))
    if missing:
        found = f"no weights for {len(missing)} tensors of the model, such as {missing[0]}"
        remedy = "use a file that transformers reads whole, or the checkpoint in safetensors"
        raise TaskHeadsError(Problem(str(path), f"found {found}", "a weight for each tensor", remedy))
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise TaskHeadsError(
                Problem(str(path), f"found {name} with NaN or inf", "finite weights", "fetch it again")
            )


def _unwritable(folder: Path, error: OSError) -> TaskHeadsError:
    reason = error.strerror or " ".join(str(error).split())[:160]
    remedy = "free some space, or set QWEN_TASK_HEADS_CACHE to a folder on another disk"
    return TaskHeadsError(
        Problem(
            str(folder.parent),
            f"found the fp32 copy cannot be written ({reason})",
            "a folder with room for it",
            remedy,
        )
    )
