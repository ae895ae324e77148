"""Cache of the features of a frozen backbone: one safetensors file per layer and pooling.

The name of a file is a hash of everything that its numbers depend on: every byte of the backbone's weights,
its config, the token ids (including the template), layer, pooling, dtype, versions of torch and transformers.
No file needs to be invalidated, because any change gives another name. Files are written under a temporary
name and renamed. A file whose content does not match its checksum is computed again. Kernels of different
machines differ by rounding, which the name does not contain.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel

logger = logging.get_logger(__name__)

FORMAT = 1  # of the files; increase it if the same inputs give other numbers

Features = dict[tuple[int, str], torch.Tensor]  # (layer, pooling) to (N, H)


class FeatureCache:
    """Files of the features of some rows and one backbone.

    Args:
        folder: of the files; created if needed.
        model: whose backbone computes the features.
        rows: of token ids.
        dtype: of the features.
    """

    def __init__(
        self,
        folder: str | Path,
        model: TaskHeadModel,
        rows: Sequence[Sequence[int]],
        *,
        dtype: torch.dtype,
    ) -> None:
        self.folder = Path(folder)
        self._key = {
            "format": FORMAT,
            "backbone": _hash_backbone(model),
            "bidirectional": model.config.bidirectional,
            "dtype": str(dtype),
            "versions": [torch.__version__, transformers.__version__],
            "rows": _hash_rows(rows),
        }

    def read(self, keys: Iterable[tuple[int, str]]) -> Features:
        """Return the features of the files that exist and match their checksums."""
        found = {key: self._read(self._path(key)) for key in keys}
        return {key: features for key, features in found.items() if features is not None}

    def write(self, features: Features) -> None:
        """Write each file atomically.

        Raises:
            TaskHeadsError: a file cannot be written.
        """
        for key, values in features.items():
            path = self._path(key)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            metadata = {"format": str(FORMAT), "sha256": hashlib.sha256(_bytes(values)).hexdigest()}
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file({"features": values.contiguous()}, temporary, metadata=metadata)
                os.replace(temporary, path)
            except (OSError, SafetensorError) as error:
                temporary.unlink(missing_ok=True)
                problem = f"cannot write the file ({error})"
                expected = f"a folder with room for {values.nbytes:,} bytes"
                fix = "free some space, or choose another folder"
                raise TaskHeadsError(
                    Problem(str(path), problem, expected, fix, code="path-access")
                ) from error

    def _path(self, key: tuple[int, str]) -> Path:
        layer, pooling = key
        content = json.dumps({**self._key, "layer": layer, "pooling": pooling}, sort_keys=True)
        name = hashlib.sha256(content.encode()).hexdigest()[:32]
        return self.folder / f"layer{layer:03}-{pooling}-{name}.safetensors"

    @staticmethod
    def _read(path: Path) -> torch.Tensor | None:
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                features, checksum = file.get_tensor("features"), (file.metadata() or {}).get("sha256")
        except (SafetensorError, OSError) as error:
            logger.warning(f"{path} cannot be read ({error}): it is computed again")
            return None
        if hashlib.sha256(_bytes(features)).hexdigest() != checksum:
            logger.warning(f"{path} was changed after it was written: it is computed again")
            return None
        return features


def _hash_backbone(model: TaskHeadModel) -> str:
    """Hash a backbone's tensors, by name, dtype, shape and bytes, and its config: 64 hexadecimal digits."""
    fields = model.model.config.to_dict()
    config = {name: value for name, value in fields.items() if not name.startswith(("_", "transformers_"))}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _hash_rows(rows: Sequence[Sequence[int]]) -> str:
    """Hash rows of token ids, including the lengths of the rows."""
    digest = hashlib.sha256(np.array([len(row) for row in rows], np.int64).tobytes())
    for row in rows:
        digest.update(np.array(row, np.int64).tobytes())
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    """Return the bytes of a tensor of any dtype, in a form that hashlib takes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
