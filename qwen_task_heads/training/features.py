"""Features of a frozen backbone: computed once, kept on disk, read back by whoever trains a head on them.

A head that is trained on a frozen backbone sees the same pooled states in every epoch; computing them again
is nearly all of the work. Decisions:

- What comes out is what `model.score` gets: layer k, the backbone's final norm, `pool`. A head trained on
  features of layer k therefore works unchanged in a model built with `backbone_layers=k`. The pooling
  `attention` learns while it pools and needs every token: it has no features.
- All layers and poolings come from one pass over packed rows; where those are not exact
  (`model.fallback_reason`), from the padded batch. Rows that are equal are computed once.
- A file on disk is named by a hash of all that its numbers hang on: every byte of the backbone's weights, its
  config, the token ids (the template is part of them), layer, pooling, dtype, versions of torch and
  transformers. There is nothing to invalidate: whatever changes is another file. Files are
  written beside their place and renamed; one whose bytes are not those that were written is made again.
- With `dtype=torch.bfloat16` the backbone runs under autocast and half as many bytes are kept. Kernels of
  different machines differ by rounding, which no name tells.
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
from qwen_task_heads.hubcode.configuration_task_heads import CAN_EXIT
from qwen_task_heads.hubcode.encoding_task_heads import cut_row, pad_rows
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.packing_task_heads import common_length, pack
from qwen_task_heads.hubcode.pooling_task_heads import pool, real_tokens, rows_of
from qwen_task_heads.training.estimates import estimate_features
from qwen_task_heads.training.usage import Usage

logger = logging.get_logger(__name__)

FORMAT = 1  # of the files; raise it when the same inputs give other numbers
POOLINGS = ("last", "mean", "max")
DTYPES = (torch.float32, torch.bfloat16)
LONG = 1000  # rows from which a bar is shown
WORTH = 0.1  # of all tokens: what neighbours must share for their order to be kept
# Tokens of a pass. Those of larger passes leave the caches of a CPU between one operation and the next.
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
    """Give the pooled states of a frozen backbone, from its cache where they are known.

    They are held in memory: rows x width x bytes of the dtype, for each layer and pooling.

    Args:
        model: of either task, on the device that is to compute; its head plays no part.
        rows: N rows of token ids, template included, as `tokenization` makes them.
        layers: 1 to the number of layers of the backbone, which is what None stands for.
        poolings: `last`, `mean`, `max`.
        batch_tokens: padded tokens in a pass; bounds the memory. None: 8192, on a CPU 2048 to 8192, the more
            of the rows is a beginning that all of them share.
        cache_dir: folder of the files, made if need be; None keeps nothing.
        dtype: of the features, float32 or bfloat16; with the latter the backbone runs under autocast.
        progress: show a bar over more than a thousand rows.
        usage: prints beforehand what time and memory the backbone will take, and notes what it took.

    Returns:
        `(layer, pooling)` to (N, H) in `dtype` on the CPU, in the order of the rows.

    Raises:
        TaskHeadsError: layers, poolings or a dtype that there are not, rows without a token or too long for
            one pass, or a folder that cannot be written.

    Example:
        >>> from qwen_task_heads.models import build
        >>> from qwen_task_heads.training.features import extract_features
        >>> found = extract_features(build("embedded"), [[5, 6, 7], [8]], layers=[1, 2], poolings=["mean"])
        >>> {key: tuple(features.shape) for key, features in found.items()}
        {(1, 'mean'): (2, 192), (2, 'mean'): (2, 192)}
    """
    depth = model.model.config.num_hidden_layers
    layers = [depth] if layers is None else sorted(set(layers))
    _check(model, rows, layers=layers, poolings=poolings, dtype=dtype)
    wanted = [(layer, pooling) for layer in layers for pooling in dict.fromkeys(poolings)]
    paths: dict[tuple[int, str], Path] = {}
    found: Features = {}
    if cache_dir is not None:
        shared = {**_circumstances(model, dtype), "rows": hash_rows(rows)}
        for layer, pooling in wanted:
            name = _digest({**shared, "layer": layer, "pooling": pooling})[:32]
            paths[layer, pooling] = Path(cache_dir, f"layer{layer:03}-{pooling}-{name}.safetensors")
        read = {key: _read(path) for key, path in paths.items()}
        found = {key: features for key, features in read.items() if features is not None}
    if missing := [key for key in wanted if key not in found]:
        options: dict[str, Any] = {"dtype": dtype, "progress": progress, "usage": usage}
        made = _compute(model, rows, missing, batch_tokens=batch_tokens, **options)
        for key, features in made.items():
            if key in paths:
                _write(paths[key], features)
        found |= made
    return {key: found[key] for key in wanted}


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
    """Hash rows of token ids: where one ends and the next begins counts too."""
    digest = hashlib.sha256(np.array([len(row) for row in rows], np.int64).tobytes())
    for row in rows:
        digest.update(np.array(row, np.int64).tobytes())
    return digest.hexdigest()


def _circumstances(model: TaskHeadModel, dtype: torch.dtype) -> dict[str, Any]:
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
    """The bytes of a tensor of any dtype, as hashlib takes them."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _check(
    model: TaskHeadModel,
    rows: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    poolings: Sequence[str],
    dtype: torch.dtype,
) -> None:
    """Refuse what has no features, all at once."""
    config, depth, problems = model.config, model.model.config.num_hidden_layers, []
    if bad := [layer for layer in layers if not 1 <= layer <= depth]:
        accepted = f"1 to {depth}, the layers of the backbone"
        problems.append(Problem("--layers", f"found {bad}", accepted, "choose among them"))
    elif config.text_config.model_type not in CAN_EXIT and list(layers) != [depth]:
        found = f"found {list(layers)} of a {config.text_config.model_type} backbone"
        problems.append(Problem("--layers", found, f"{depth}, the last", "leave it out"))
    if bad_names := [pooling for pooling in poolings if pooling not in POOLINGS]:
        remedy = "the pooling attention learns while it pools: train it in the model"
        accepted = f"{', '.join(POOLINGS)}"
        problems.append(Problem("--poolings", f"found {bad_names}", accepted, remedy))
    if dtype not in DTYPES:
        accepted = "torch.float32, torch.bfloat16"
        problems.append(Problem("dtype", f"found {dtype}", accepted, "choose one of them"))
    if empty := [index for index, row in enumerate(rows) if not len(row)]:
        found = f"found no token in {len(empty)} rows, the first of them {empty[0]}"
        problems.append(Problem("rows", found, "at least one token", "drop empty texts"))
    limit = config.to_dict().get("max_seq_length")
    long = sum(len(row) > limit for row in rows) if limit is not None else 0
    if long and config.truncation == "windows":
        found = f"found {long} rows over {limit} tokens, and truncation 'windows'"
        remedy = "choose --truncation head, or train in the model"
        problems.append(Problem("rows", found, "rows of one pass", remedy))
    if problems:
        raise TaskHeadsError(problems)


def _compute(
    model: TaskHeadModel,
    rows: Sequence[Sequence[int]],
    wanted: Sequence[tuple[int, str]],
    *,
    batch_tokens: int | None,
    dtype: torch.dtype,
    progress: bool,
    usage: Usage | None,
) -> Features:
    """Run the backbone once over each different row and pool."""
    width, device = model.model.config.hidden_size, model.device
    # Titles recur in several pairs of a test: half of the rows of a set of pairs are repetitions.
    numbers: dict[tuple[int, ...], int] = {}
    places = [numbers.setdefault(tuple(_cut(model, row)), len(numbers)) for row in rows]
    repeated, rows = len(numbers) < len(places), list(numbers)
    features = {key: torch.empty(len(rows), width, dtype=dtype) for key in wanted}
    batch_tokens = batch_tokens or pass_tokens(rows, device_type=device.type)
    was_training, watch = model.training, ExitStack()
    model.eval()
    batches = token_batches(rows, batch_tokens=batch_tokens)
    if usage is not None:
        # Of repeated rows the features are copied, one layer and pooling after the other.
        size = sum(one.nbytes for one in features.values()) * max(1, len(places) / len(rows))
        usage.state(
            estimate_features(model, rows, batches, features=int(size), dtype=dtype, scored=usage.scored)
        )
        watch.enter_context(usage.measured(device))
    try:
        for batch in _shown(batches, rows=len(rows) if progress else 0):
            tensors = pad_rows([rows[index] for index in batch], pad_id=0)
            ids, mask = (tensors[name].to(device) for name in ("input_ids", "attention_mask"))
            half = dtype == torch.bfloat16
            with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                pooled = _pooled(model, ids, real_tokens(mask, ids), wanted)
            for key, values in pooled.items():
                features[key][batch] = values.to("cpu", dtype)
    finally:
        model.train(was_training)
        watch.close()
    if repeated:
        for key in wanted:
            features[key] = features[key][places]
    return features


def _pooled(
    model: TaskHeadModel, ids: torch.Tensor, mask: torch.Tensor, wanted: Sequence[tuple[int, str]]
) -> Features:
    """Pooled states (B, H) in fp32 of a padded batch, ids and mask (B, T)."""
    backbone = model.model
    depth = backbone.config.num_hidden_layers
    unpack: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    with _states_below(backbone, {layer for layer, _ in wanted} - {depth}) as states:
        if model._can_pack(mask):
            packed = pack(
                mask,
                input_ids=ids if model.prefix_sharing else None,
                causal=not model.config.bidirectional,
                last_only=all(pooling == "last" for _, pooling in wanted),
            )
            normed, unpack = model._states_of(packed, input_ids=ids), packed.unpack
        else:
            normed, unpack = _padded_states(model, ids, mask), lambda found: rows_of(found, mask)
    result: Features = {}
    for layer in sorted({layer for layer, _ in wanted}):
        own = normed if layer == depth else backbone.norm(states.pop(layer))
        rows = unpack(own)
        for pooling in (pooling for key, pooling in wanted if key == layer):
            result[layer, pooling] = pool(*rows, pooling=pooling)
    return result


@contextmanager
def _states_below(backbone: Any, layers: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Keep what some layers give, and no other: all states of a large model would fill the memory."""
    states: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            states[layer] = output[0] if isinstance(output, tuple) else output

        return backbone.layers[layer - 1].register_forward_hook(hook)

    handles = [keep(layer) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _padded_states(model: TaskHeadModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Last states (B, T, H), as the model's own forward computes them without packing."""
    positions = {}
    if model._takes_positions:
        positions["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    attention = mask.long()
    if model.config.bidirectional:
        attention = two_sided_mask(model.model.config, mask, dtype=model.dtype)
    return model.model(
        input_ids=ids, attention_mask=attention, use_cache=False, **positions
    ).last_hidden_state


def _cut(model: TaskHeadModel, row: Sequence[int]) -> list[int]:
    """A row as `forward` would cut it."""
    config = model.config
    limit = config.to_dict().get("max_seq_length")
    if limit is None or len(row) <= limit:
        return list(row)
    options = {"truncation": config.truncation, "overlap": 0, "template": config.template}
    return cut_row(list(row), max_length=limit, **options)[0]


def pass_tokens(rows: Sequence[Sequence[int]], *, device_type: str) -> int:
    """Padded tokens of a pass. What all rows begin with is computed once a pass, and does not count on a CPU.

    Example:
        >>> from qwen_task_heads.training.features import pass_tokens
        >>> pass_tokens([[1, 2, 3, 4], [1, 2, 5, 6]], device_type="cpu")
        4096
    """
    if device_type != "cpu" or not rows:
        return PASS
    mean = sum(map(len, rows)) / len(rows)
    shared = common_length(min(rows, key=list), max(rows, key=list))  # in this order, the least alike
    return min(PASS, int(PASS_ON_CPU * mean / max(mean - shared, 1)))


def token_batches(rows: Sequence[Sequence[int]], *, batch_tokens: int) -> list[list[int]]:
    """Indices in batches of at most `batch_tokens` padded tokens, rows that fit each other together."""
    batches: list[list[int]] = []
    longest = 0
    for index in _order(rows):
        longest = max(longest, len(rows[index]))
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
            longest = len(rows[index])
        batches[-1].append(index)
    return batches


def _shown(batches: list[list[int]], *, rows: int) -> Iterable[list[int]]:
    """The batches, with a bar if they are of many rows."""
    if rows <= LONG:
        return batches
    from tqdm.auto import tqdm

    return tqdm(batches, desc="Features", unit="batch")


def _order(rows: Sequence[Sequence[int]]) -> list[int]:
    """By length; where rows share beginnings with some others (prompts), those that begin alike together."""
    alike = sorted(range(len(rows)), key=lambda index: list(rows[index]))
    shared = [common_length(rows[left], rows[right]) for left, right in pairwise(alike)]
    # What all rows begin with is shared in any order.
    gained = sum(shared) - min(shared, default=0) * len(shared)
    if gained >= WORTH * sum(len(row) for row in rows):
        return alike
    return sorted(range(len(rows)), key=lambda index: len(rows[index]))


def _read(path: Path) -> torch.Tensor | None:
    """The features of a file; None where there is none, or where it is not what was written."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            features, written = file.get_tensor("features"), (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        logger.warning(f"{path} cannot be read ({error}): it is made again")
        return None
    if hashlib.sha256(_bytes(features)).hexdigest() != written:
        logger.warning(f"{path} was changed after it was written: it is made again")
        return None
    return features


def _write(path: Path, features: torch.Tensor) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    metadata = {"format": str(FORMAT), "sha256": hashlib.sha256(_bytes(features)).hexdigest()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features.contiguous()}, temporary, metadata=metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        accepted = f"a folder that takes {features.nbytes:,} bytes"
        remedy = "free some space, or name another folder"
        raise TaskHeadsError(Problem(str(path), f"found that {error}", accepted, remedy)) from error
