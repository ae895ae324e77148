"""Features of a frozen backbone: computed once, cached (`feature_cache`), and reused by every head on them.

A head on a frozen backbone gets the same pooled states in every epoch, and nearly all of the work is to
compute them. Design decisions:

- The features are the input of `model.score`: layer k, the backbone's final norm, `pool`. A head trained on
  features of layer k therefore works unchanged in a model built with `backbone_layers=k`. The pooling
  `attention` has trainable parameters and needs every token, so that it has no features.
- All layers and poolings are computed in one pass over packed rows. If packing is not exact for the backbone,
  the padded batch is used. Equal rows are computed once.
- With `dtype=torch.bfloat16` the backbone runs under autocast, and the features take half the bytes. Kernels
  of different machines differ by rounding, which the file name does not contain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.attention_task_heads import two_sided_mask
from qwen_task_heads.hubcode.encoding_task_heads import cut_row, pad_rows
from qwen_task_heads.hubcode.families_task_heads import family_of
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.packing_task_heads import common_length, pack
from qwen_task_heads.hubcode.pooling_task_heads import pool, real_tokens, rows_of
from qwen_task_heads.training.estimates import estimate_features
from qwen_task_heads.training.feature_cache import FeatureCache, Features
from qwen_task_heads.training.usage import Usage

POOLINGS = ("last", "mean", "max")
DTYPES = (torch.float32, torch.bfloat16)
LONG = 1000  # rows above which a progress bar is shown
WORTH = 0.1  # share of all tokens that sorting by prefix must save to be preferred over sorting by length
# Tokens of a pass. On a CPU, the states of a larger pass do not stay in its caches between operations.
PASS, PASS_ON_CPU = 8192, 2048


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
    cache = None if cache_dir is None else FeatureCache(cache_dir, model, rows, dtype=dtype)
    available: Features = {} if cache is None else cache.read(requested)
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
        if cache is not None:
            cache.write(computed)
        available |= computed
    return {key: available[key] for key in requested}


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
    family, limit = config.text_config.model_type, config.to_dict().get("max_seq_length")
    unknown = [pooling for pooling in poolings if pooling not in POOLINGS]
    empty = [index for index, row in enumerate(rows) if not len(row)]
    long = sum(len(row) > limit for row in rows) if limit is not None else 0
    problems: list[Problem] = []
    if outside := [layer for layer in layers if not 1 <= layer <= depth]:
        expected, fix = f"1 to {depth}, the layers of the backbone", "choose one of them"
        problems.append(Problem("--layers", f"found {outside}", expected, fix, code="option-range"))
    elif not family_of(family).early_exit and list(layers) != [depth]:
        problem, expected = f"found {list(layers)} of a {family} backbone", f"{depth}, the last layer"
        problems.append(Problem("--layers", problem, expected, "leave it out", code="option-unsupported"))
    if unknown:
        expected, fix = ", ".join(POOLINGS), "choose one of them, or train the pooling attention in the model"
        problems.append(Problem("--poolings", f"found {unknown}", expected, fix, code="option-value"))
    if dtype not in DTYPES:
        expected, fix = "torch.float32 or torch.bfloat16", "choose one of them"
        problems.append(Problem("dtype", f"found {dtype}", expected, fix, code="option-value"))
    if empty:
        problem = f"found no token in {len(empty)} rows, the first of them {empty[0]}"
        expected, fix = "at least one token", "drop empty texts"
        problems.append(Problem("rows", problem, expected, fix, code="text-empty"))
    if long and config.truncation == "windows":
        problem = f"found {long} rows over {limit} tokens, and truncation 'windows'"
        expected, fix = "rows that fit into one pass", "choose --truncation head, or train in the model"
        problems.append(Problem("rows", problem, expected, fix, code="text-too-long"))
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
        hidden = not progress or len(distinct) <= LONG
        for batch in tqdm(batches, desc="Features", unit="batch", disable=hidden):
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


def _order(rows: Sequence[Sequence[int]]) -> list[int]:
    """Sort rows by length, or by their tokens if enough of them share prefixes such as prompts."""
    by_tokens = sorted(range(len(rows)), key=lambda index: list(rows[index]))
    shared = [common_length(rows[left], rows[right]) for left, right in pairwise(by_tokens)]
    # A prefix of all rows is shared in any order.
    saved = sum(shared) - min(shared, default=0) * len(shared)
    if saved >= WORTH * sum(len(row) for row in rows):
        return by_tokens
    return sorted(range(len(rows)), key=lambda index: len(rows[index]))
