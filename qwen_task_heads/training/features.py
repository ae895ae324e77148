"""Features of a frozen backbone: computed once, cached on disk, and reused by every head trained on them.

A head on a frozen backbone gets the same pooled states in every epoch, and nearly all of the work is to
compute them. Design decisions:

- The features are the input of `model.score`: layer k, the backbone's final norm, `pool`. A head trained on
  features of layer k therefore works unchanged in a model built with `backbone_layers=k`. The pooling
  `attention` has trainable parameters and needs every token, so that it has no features.
- All layers and poolings are computed in one pass over packed rows. If packing is not exact for the backbone,
  the padded batch is used. Equal rows are computed once.
- The name of a file is a hash of everything that its numbers depend on: every byte of the backbone's weights,
  its config, the token ids (including the template), layer, pooling, dtype, versions of torch and
  transformers. No file needs to be invalidated, because any change gives another name. Files are written
  under a temporary name and renamed. A file whose content does not match its checksum is computed again.
- With `dtype=torch.bfloat16` the backbone runs under autocast, and the features take half the bytes. Kernels
  of different machines differ by rounding, which the file name does not contain.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.attention_task_heads import two_sided_mask
from qwen_task_heads.hubcode.encoding_task_heads import cut_row, pad_rows
from qwen_task_heads.hubcode.families_task_heads import family_of
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.packing_task_heads import common_length, pack
from qwen_task_heads.hubcode.pooling_task_heads import pool, real_tokens, rows_of
from qwen_task_heads.training.estimates import estimate_features
from qwen_task_heads.training.usage import Usage

logger = logging.get_logger(__name__)

FORMAT = 1  # of the files; increase it if the same inputs give other numbers
POOLINGS = ("last", "mean", "max")
DTYPES = (torch.float32, torch.bfloat16)
LONG = 1000  # rows above which a progress bar is shown
WORTH = 0.1  # share of all tokens that sorting by prefix must save to be preferred over sorting by length
# Tokens of a pass. On a CPU, the states of a larger pass do not stay in its caches between operations.
PASS, PASS_ON_CPU = 8192, 2048

Features = dict[tuple[int, str], torch.Tensor]


def extract_features(
    model: TaskHeadModel,
    rows: Sequence[Sequence[int]],
    *,
    layers: Sequence[int] | None = None,
    poolings: Sequence[str] = ("last",),
    batch_tokens: int | None = None,
    cache_dir: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    usage: Usage | None = None,
) -> Features:
    """Return the pooled states of a frozen backbone, from the cache if possible.

    They are kept in memory: rows x width x bytes of the dtype, for each layer and pooling.

    Args:
        model: of either task, on the device to compute on; its head is not used.
        rows: N rows of token ids, including the template, as `tokenization` creates them.
        layers: from 1 to the number of layers of the backbone; None for the last one.
        poolings: `last`, `mean`, `max`.
        batch_tokens: padded tokens in a pass, which bounds the memory. None: 8192; on a CPU 2048 to 8192,
            more if all rows share a longer prefix.
        cache_dir: folder of the files, created if needed; None disables the cache.
        dtype: of the features, float32 or bfloat16; with bfloat16 the backbone runs under autocast.
        progress: show a bar for more than a thousand rows.
        usage: prints an estimate of time and memory before the backbone runs, and records what it used.

    Returns:
        `(layer, pooling)` to (N, H) in `dtype` on the CPU, in the order of the rows.

    Raises:
        TaskHeadsError: unknown layers, poolings or dtype, rows without a token or too long for one pass, or a
            folder that cannot be written.

    Example:
        >>> from qwen_task_heads.models import build
        >>> from qwen_task_heads.training.features import extract_features
        >>> features = extract_features(build("embedded"), [[5, 6, 7], [8]], layers=[1, 2], poolings=["mean"])
        >>> {key: tuple(states.shape) for key, states in features.items()}
        {(1, 'mean'): (2, 192), (2, 'mean'): (2, 192)}
    """
    depth = model.model.config.num_hidden_layers
    layers = [depth] if layers is None else sorted(set(layers))
    _check(model, rows, layers=layers, poolings=poolings, dtype=dtype)
    requested = [(layer, pooling) for layer in layers for pooling in dict.fromkeys(poolings)]
    paths: dict[tuple[int, str], Path] = {}
    available: Features = {}
    if cache_dir is not None:
        shared = {**_cache_key(model, dtype), "rows": hash_rows(rows)}
        for layer, pooling in requested:
            name = _digest({**shared, "layer": layer, "pooling": pooling})[:32]
            paths[layer, pooling] = Path(cache_dir, f"layer{layer:03}-{pooling}-{name}.safetensors")
        cached = {key: _read(path) for key, path in paths.items()}
        available = {key: features for key, features in cached.items() if features is not None}
    if missing := [key for key in requested if key not in available]:
        computed = _compute(
            model,
            rows,
            missing,
            batch_tokens=batch_tokens,
            dtype=dtype,
            progress=progress,
            usage=usage,
        )
        for key, features in computed.items():
            if key in paths:
                _write(paths[key], features)
        available |= computed
    return {key: available[key] for key in requested}


def hash_backbone(model: TaskHeadModel) -> str:
    """Hash a backbone's tensors, by name, dtype, shape and bytes, and its config: 64 hexadecimal digits."""
    fields = model.model.config.to_dict()
    config = {name: value for name, value in fields.items() if not name.startswith(("_", "transformers_"))}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def hash_rows(rows: Sequence[Sequence[int]]) -> str:
    """Hash rows of token ids, including the lengths of the rows."""
    digest = hashlib.sha256(np.array([len(row) for row in rows], np.int64).tobytes())
    for row in rows:
        digest.update(np.array(row, np.int64).tobytes())
    return digest.hexdigest()


def _cache_key(model: TaskHeadModel, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "backbone": hash_backbone(model),
        "bidirectional": model.config.bidirectional,
        "dtype": str(dtype),
        "versions": [torch.__version__, transformers.__version__],
    }


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    """Return the bytes of a tensor of any dtype, in a form that hashlib takes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _check(
    model: TaskHeadModel,
    rows: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    poolings: Sequence[str],
    dtype: torch.dtype,
) -> None:
    """Raise one error for all options and rows without features."""
    config, depth = model.config, model.model.config.num_hidden_layers
    problems: list[Problem] = []
    if out_of_range := [layer for layer in layers if not 1 <= layer <= depth]:
        problems.append(
            Problem(
                "--layers",
                f"found {out_of_range}",
                f"1 to {depth}, the layers of the backbone",
                "choose one of them",
                code="option-range",
            )
        )
    elif not family_of(config.text_config.model_type).early_exit and list(layers) != [depth]:
        problems.append(
            Problem(
                "--layers",
                f"found {list(layers)} of a {config.text_config.model_type} backbone",
                f"{depth}, the last layer",
                "leave it out",
                code="option-unsupported",
            )
        )
    if unknown := [pooling for pooling in poolings if pooling not in POOLINGS]:
        problems.append(
            Problem(
                "--poolings",
                f"found {unknown}",
                ", ".join(POOLINGS),
                "choose one of them, or train the pooling attention in the model",
                code="option-value",
            )
        )
    if dtype not in DTYPES:
        problems.append(
            Problem(
                "dtype",
                f"found {dtype}",
                "torch.float32 or torch.bfloat16",
                "choose one of them",
                code="option-value",
            )
        )
    if empty := [index for index, row in enumerate(rows) if not len(row)]:
        problems.append(
            Problem(
                "rows",
                f"found no token in {len(empty)} rows, the first of them {empty[0]}",
                "at least one token",
                "drop empty texts",
                code="text-empty",
            )
        )
    limit = config.to_dict().get("max_seq_length")
    long = sum(len(row) > limit for row in rows) if limit is not None else 0
    if long and config.truncation == "windows":
        problems.append(
            Problem(
                "rows",
                f"found {long} rows over {limit} tokens, and truncation 'windows'",
                "rows that fit into one pass",
                "choose --truncation head, or train in the model",
                code="text-too-long",
            )
        )
    if problems:
        raise TaskHeadsError(problems)


def _compute(
    model: TaskHeadModel,
    rows: Sequence[Sequence[int]],
    requested: Sequence[tuple[int, str]],
    *,
    batch_tokens: int | None,
    dtype: torch.dtype,
    progress: bool,
    usage: Usage | None,
) -> Features:
    """Run the backbone once over each distinct row, and pool."""
    width, device = model.model.config.hidden_size, model.device
    # A title occurs in several pairs of an experiment: half of the rows of a data set of pairs are
    # duplicates.
    numbers: dict[tuple[int, ...], int] = {}
    positions = [numbers.setdefault(tuple(_truncate(model, row)), len(numbers)) for row in rows]
    distinct = list(numbers)
    features = {key: torch.empty(len(distinct), width, dtype=dtype) for key in requested}
    batch_tokens = batch_tokens or pass_tokens(distinct, device_type=device.type)
    was_training, measurement = model.training, ExitStack()
    model.eval()
    batches = token_batches(distinct, batch_tokens=batch_tokens)
    if usage is not None:
        # The features of duplicates are copied, one layer and pooling after the other.
        size = sum(states.nbytes for states in features.values()) * max(1, len(positions) / len(distinct))
        usage.state(
            estimate_features(model, distinct, batches, features=int(size), dtype=dtype, scored=usage.scored)
        )
        measurement.enter_context(usage.measured(device))
    try:
        for batch in _with_bar(batches, rows=len(distinct) if progress else 0):
            tensors = pad_rows([distinct[index] for index in batch], pad_id=0)
            ids, mask = (tensors[name].to(device) for name in ("input_ids", "attention_mask"))
            autocast = dtype == torch.bfloat16
            with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                pooled = _pooled(model, ids, real_tokens(mask, ids), requested)
            for key, values in pooled.items():
                features[key][batch] = values.to("cpu", dtype)
    finally:
        model.train(was_training)
        measurement.close()
    if len(distinct) < len(positions):
        for key in requested:
            features[key] = features[key][positions]
    return features


def _pooled(
    model: TaskHeadModel, ids: torch.Tensor, mask: torch.Tensor, requested: Sequence[tuple[int, str]]
) -> Features:
    """Return pooled states (B, H) in fp32 of a padded batch, ids and mask (B, T)."""
    backbone = model.model
    depth = backbone.config.num_hidden_layers
    unpack: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    with _states_below(backbone, {layer for layer, _ in requested} - {depth}) as states:
        if model._can_pack(mask):
            packed = pack(
                mask,
                input_ids=ids if model.prefix_sharing else None,
                causal=not model.config.bidirectional,
                last_only=all(pooling == "last" for _, pooling in requested),
            )
            last, unpack = model._states_of(packed, input_ids=ids), packed.unpack
        else:
            last, unpack = _padded_states(model, ids, mask), lambda padded: rows_of(padded, mask)
    features: Features = {}
    for layer in sorted({layer for layer, _ in requested}):
        rows = unpack(last if layer == depth else backbone.norm(states.pop(layer)))
        for pooling in (pooling for number, pooling in requested if number == layer):
            features[layer, pooling] = pool(*rows, pooling=pooling)
    return features


@contextmanager
def _states_below(backbone: Any, layers: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Capture the output of the given layers only: all states of a large model may not fit into memory."""
    states: dict[int, torch.Tensor] = {}

    def capture(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            states[layer] = output[0] if isinstance(output, tuple) else output

        return backbone.layers[layer - 1].register_forward_hook(hook)

    handles = [capture(layer) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _padded_states(model: TaskHeadModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the last states (B, T, H), as the model's forward computes them without packing."""
    positions = {}
    if model._takes_positions:
        positions["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    attention = mask.long()
    if model.config.bidirectional:
        attention = two_sided_mask(model.model.config, mask, dtype=model.dtype)
    return model.model(
        input_ids=ids, attention_mask=attention, use_cache=False, **positions
    ).last_hidden_state


def _truncate(model: TaskHeadModel, row: Sequence[int]) -> list[int]:
    """Truncate a row as `forward` does."""
    config = model.config
    limit = config.to_dict().get("max_seq_length")
    if limit is None or len(row) <= limit:
        return list(row)
    options = {"truncation": config.truncation, "overlap": 0, "template": config.template}
    return cut_row(list(row), max_length=limit, **options)[0]


def pass_tokens(rows: Sequence[Sequence[int]], *, device_type: str) -> int:
    """Return the padded tokens of a pass.

    A prefix that all rows share is computed once per pass; on a CPU it does not count.

    Example:
        >>> from qwen_task_heads.training.features import pass_tokens
        >>> pass_tokens([[1, 2, 3, 4], [1, 2, 5, 6]], device_type="cpu")
        4096
    """
    if device_type != "cpu" or not rows:
        return PASS
    mean = sum(map(len, rows)) / len(rows)
    # The prefix that the first and the last row in lexicographic order share is common to all rows.
    shared = common_length(min(rows, key=list), max(rows, key=list))
    return min(PASS, int(PASS_ON_CPU * mean / max(mean - shared, 1)))


def token_batches(rows: Sequence[Sequence[int]], *, batch_tokens: int) -> list[list[int]]:
    """Return row indices in batches of at most `batch_tokens` padded tokens.

    Rows of similar length, or with a shared prefix, are in one batch.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in _order(rows):
        longest = max(longest, len(rows[index]))
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
            longest = len(rows[index])
        batches[-1].append(index)
    return batches


def _with_bar(batches: list[list[int]], *, rows: int) -> Iterable[list[int]]:
    """Return the batches, with a progress bar for many rows."""
    if rows <= LONG:
        return batches
    from tqdm.auto import tqdm

    return tqdm(batches, desc="Features", unit="batch")


def _order(rows: Sequence[Sequence[int]]) -> list[int]:
    """Sort rows by length, or by their tokens if enough of them share prefixes such as prompts."""
    by_tokens = sorted(range(len(rows)), key=lambda index: list(rows[index]))
    shared = [common_length(rows[left], rows[right]) for left, right in pairwise(by_tokens)]
    # A prefix of all rows is shared in any order.
    saved = sum(shared) - min(shared, default=0) * len(shared)
    if saved >= WORTH * sum(len(row) for row in rows):
        return by_tokens
    return sorted(range(len(rows)), key=lambda index: len(rows[index]))


def _read(path: Path) -> torch.Tensor | None:
    """Return the features of a file; None if it is absent or does not match its checksum."""
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


def _write(path: Path, features: torch.Tensor) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    metadata = {"format": str(FORMAT), "sha256": hashlib.sha256(_bytes(features)).hexdigest()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features.contiguous()}, temporary, metadata=metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise TaskHeadsError(
            Problem(
                str(path),
                f"cannot write the file ({error})",
                f"a folder with room for {features.nbytes:,} bytes",
                "free some space, or choose another folder",
                code="path-access",
            )
        ) from error
