"""Packed rows: the real tokens of a padded batch in one row, with prefixes that rows share only once.

A padded batch spends half to four fifths of its work on padding and on repeated prompts. Here only the real
tokens go through embeddings, linears, norms and MLP, as one row of N tokens; only attention separates the
rows. The batch itself is not changed, so collators, samplers, trainers and pipelines work as before. The
results are those of the padded batch (up to rounding, 1e-6 in fp32).

Rows with a common prefix (an instruction of the whole batch, a prompt of a pair or a list) are cut into
segments. The prefix is stored once and is the parent of each remainder. Under causal attention the state of a
token depends only on the tokens before it, so states, losses and gradients are those of the full rows.
Prefixes may nest: an instruction, then prompts, then titles.

Sources: packing without cross-contamination, Krell et al. 2021, https://arxiv.org/abs/2107.02027; prefix
sharing in training, https://arxiv.org/abs/2410.20305. This file is copied into every published model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch

MIN_SHARED = 8  # tokens; a shorter common prefix costs more in attention than it saves in linears
MIN_SAVED = 0.1  # share of a batch's tokens; sharing less does not pay for the second kind of attention
# Attention scores per head that a grid may compute for padding before it is split into two grids.
GRID_WASTE = 16_384

KeysAndValues = dict[int, tuple[torch.Tensor, torch.Tensor]]


class Store:
    """Stores the keys and values of a pass. Not a dict: code that moves a layer's inputs would copy it."""

    def __init__(self) -> None:
        self.layers: KeysAndValues = {}


# Tuples, because accelerate and FSDP, which move a model's inputs between devices, look into tuples.
class Grid(NamedTuple):
    """Queries with similar numbers of keys, as R rows of L, and the K keys that each row may see.

    Args:
        shape: (R, L, K).
        mask: (R, 1, L or 1, K) bool, True if a query sees a key; None for all, or for causal.
        causal: whether a query sees the keys up to its own position; `mask` is None then, and K is L.
    """

    shape: tuple[int, int, int]
    mask: torch.Tensor | None = None
    causal: bool = False


class Ragged(NamedTuple):
    """The same attention for kernels of variable length: queries in packed order, keys row after row.

    Args:
        keys: (M,) position of each key, cached prefix first; None if they are the queries.
        q_ends: (S + 1,) int32, cumulative numbers of queries of the S segments.
        k_ends: (S + 1,) int32, of keys. A causal mask is aligned at the last key.
        longest: most queries and most keys of a segment.
    """

    keys: torch.Tensor | None
    q_ends: torch.Tensor
    k_ends: torch.Tensor
    longest: tuple[int, int]


class Attention(NamedTuple):
    """Assignment of keys to queries.

    Args:
        grids: G grids.
        queries: positions of the queries of all grids, concatenated (sum of R * L,), in the packed row or
            among the last tokens; padded with any position. One gather serves all grids, forward and
            backward.
        keys: positions of the keys (sum of R * K,), cached prefix first; None if they are those of the
            queries.
        restore: (Q,) index from the concatenated outputs of the grids to packed order; None if they have it.
        ragged: the same attention for kernels of variable length.
    """

    grids: tuple[Grid, ...]
    queries: torch.Tensor
    keys: torch.Tensor | None
    restore: torch.Tensor | None
    ragged: Ragged | None


class PackedRows(NamedTuple):
    """A batch of B rows as one row of N tokens, created by `pack`.

    Args:
        source: (N,) position of each token in the flattened padded batch (B * T,).
        position_ids: (1, N), those of the padded rows.
        attention: attention of all tokens.
        rows: (B, T') position in the packed row of each token of each row, padded with 0; None if only the
            last tokens are needed.
        row_mask: (B, T') bool, True for real entries of `rows`.
        last: (B,) position in the packed row of the last token of each row.
        pooled: attention of only the last tokens, for a last layer that computes no others.
        prefix: (keys, values) per layer, (heads, P, D) each, of tokens before every row; {} for none.
        apart: whether attention to the prefix is computed separately, over all queries at once, and merged;
            otherwise its keys precede those of the packed row.
        store: object that the layers fill with their keys and values; None if they are not needed.
    """

    source: torch.Tensor
    position_ids: torch.Tensor
    attention: Attention
    rows: torch.Tensor | None
    row_mask: torch.Tensor | None
    last: torch.Tensor
    pooled: Attention | None
    prefix: KeysAndValues
    apart: bool = False
    store: Store | None = None

    def unpack(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the arguments of `pool` from states (1, N, H), or (1, B, H) of the last tokens."""
        if self.rows is not None and self.row_mask is not None:
            # A gap may follow a shared prefix, so the last position is found by the mask, not by counting.
            place = torch.arange(self.row_mask.shape[1], device=self.row_mask.device)
            return states[0][self.rows], self.row_mask, (self.row_mask * place).argmax(1)
        # Decided by shape and not by `pooled`: a replaced last layer may return all tokens.
        last = states[0] if states.shape[1] == len(self.last) else states[0].index_select(0, self.last)
        one = torch.ones(len(last), 1, dtype=torch.bool, device=last.device)
        return last[:, None], one, torch.zeros_like(self.last)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of tokens in the common prefix of two rows of ids."""
    unequal = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(unequal, min(len(first), len(second)))


class _Segments(NamedTuple):
    """S segments of the packed row, each with the tokens before it.

    Args:
        place: (S,) start of each segment in the packed row.
        size: (S,) number of tokens of each segment.
        parent: (S,) row of `chains` that precedes each segment.
        chains: (U, P) positions of keys, cached prefix first, padded with 0.
        reach: (U,) number of real keys of each chain.
        before: number of tokens of the cached prefix.
    """

    place: torch.Tensor
    size: torch.Tensor
    parent: torch.Tensor
    chains: torch.Tensor
    reach: torch.Tensor
    before: int


def pack(
    mask: torch.Tensor,
    *,
    input_ids: torch.Tensor | None = None,
    causal: bool = True,
    last_only: bool = True,
    pooled_only: bool = False,
    prefix: KeysAndValues | None = None,
    apart: bool = False,
    ragged: bool | None = None,
) -> PackedRows:
    """Pack the real tokens of a padded batch.

    Args:
        mask: (B, T) bool, True for real tokens, at least one per row, at any position.
        input_ids: (B, T); with them, prefixes that rows share are stored once. None: nothing is shared.
        causal: False lets every token of a row see the whole row; nothing can be shared then.
        last_only: whether only the last token of a row is pooled.
        pooled_only: whether the last layer computes only the pooled tokens; needs `last_only`.
        prefix: keys and values of tokens before every row, from a pass that stored them. Needs `last_only`,
            because their states are not kept.
        apart: see `PackedRows`; needs a prefix.
        ragged: whether to describe the rows for kernels of variable length too; if None, on CUDA only.

    Example:
        >>> import torch
        >>> from qwen_task_heads.hubcode.packing_task_heads import pack
        >>> packed = pack(torch.tensor([[True, True, False], [True, True, True]]))
        >>> packed.source.tolist(), packed.position_ids.tolist(), packed.last.tolist()
        ([0, 1, 3, 4, 5], [[0, 1, 0, 1, 2]], [1, 4])
    """
    device, mask = mask.device, mask.cpu()
    flat = mask.flatten().nonzero()[:, 0]  # (real tokens,)
    lengths = mask.sum(1).tolist()
    before = next(iter(prefix.values()))[0].shape[1] if prefix else 0
    shared: list[tuple[int, int, int, int]] = []
    own = [(0, -1)] * len(lengths)
    if input_ids is not None and causal and len(lengths) > 1:
        shared, own = _share(input_ids.cpu()[mask], lengths)
    # (row, begin, end, parent) of shared segments, then of the remainder of each row.
    parts = [*shared, *((row, begin, lengths[row], parent) for row, (begin, parent) in enumerate(own))]
    row, begin, end, parent = torch.tensor(parts).T
    size = end - begin
    place = size.cumsum(0) - size
    within = torch.arange(int(size.sum())) - place.repeat_interleave(size)
    starts = torch.tensor([0, *accumulate(lengths)])[row]
    source = flat[(starts + begin).repeat_interleave(size) + within]
    position_ids = before + begin.repeat_interleave(size) + within
    before = 0 if apart else before  # below, the offset of key positions
    chains = [torch.arange(before)]
    for index, (_, _, _, above) in enumerate(shared):
        chains.append(torch.cat([chains[above + 1], before + place[index] + torch.arange(int(size[index]))]))
    table, reach = _fill(chains)
    segments = _Segments(place, size, parent + 1, table, reach, before)
    owned = segments._replace(
        place=place[len(shared) :], size=size[len(shared) :], parent=segments.parent[len(shared) :]
    )
    ragged = causal and (device.type == "cuda" if ragged is None else ragged)
    rows = row_mask = None
    if not last_only:
        rows, row_mask = _whole_rows(owned)
    packed = PackedRows(
        source=source,
        position_ids=position_ids[None],
        attention=_attention(segments, causal=causal, ragged=ragged),
        rows=rows,
        row_mask=row_mask,
        last=owned.place + owned.size - 1,
        pooled=_attention(owned, causal=causal, last=True, ragged=ragged)
        if last_only and pooled_only
        else None,
        prefix=prefix or {},
        apart=apart,
    )
    return packed if device.type == "cpu" else _move(packed, device)


def _share(
    ids: torch.Tensor, lengths: list[int]
) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int]]]:
    """Find prefixes that rows share.

    Args:
        ids: (N,) ids of all rows, concatenated.
        lengths: lengths of the rows.

    Returns:
        Shared segments `(row, begin, end, parent)`, parents first, parent -1 for none; and for each row the
        start of its remainder, which has at least one token, and its parent. Nothing is shared if less than
        `MIN_SAVED` of the tokens would be saved.
    """
    parts = ids.to(torch.int32).split(lengths)
    keys = [part.numpy().tobytes() for part in parts]
    # Sorted by their bytes, rows with the same first tokens are neighbours.
    order = sorted(range(len(parts)), key=keys.__getitem__)
    table, _ = _fill([parts[row] for row in order])
    equal = (table[1:] == table[:-1]).to(torch.int8).cumprod(1).sum(1).tolist()
    limits = [lengths[row] - 1 for row in order]
    common = [min(found) for found in zip(equal, limits, limits[1:], strict=False)]
    shared: list[tuple[int, int, int, int]] = []
    own = [(0, -1)] * len(parts)
    stack, saved = [(0, len(order), 0, -1)], 0
    while stack:
        low, high, depth, parent = stack.pop()
        if high - low == 1:
            own[order[low]] = (depth, parent)
            continue
        least = min(common[low : high - 1])
        if least - depth >= MIN_SHARED:
            shared.append((order[low], depth, least, parent))
            saved += (high - low - 1) * (least - depth)
            depth, parent = least, len(shared) - 1
        for place in range(low, high - 1):
            if common[place] == least:
                stack.append((low, place + 1, depth, parent))
                low = place + 1
        stack.append((low, high, depth, parent))
    if saved < MIN_SAVED * len(ids):
        return [], [(0, -1)] * len(parts)
    return shared, own


def _attention(segments: _Segments, *, causal: bool, ragged: bool, last: bool = False) -> Attention:
    """Build grids over all tokens of the segments; with `last`, over the last token of each of S segments."""
    grids, all_queries, all_keys, places, outputs, start = [], [], [], [], [], 0
    for group in _groups(segments, last=last):
        part = segments._replace(
            place=segments.place[group], size=segments.size[group], parent=segments.parent[group]
        )
        longest = int(part.size.max())
        offset = torch.arange(longest)[None]  # (1, L)
        real = offset < part.size[:, None]  # (R, L)
        own = (part.place[:, None] + offset).where(real, part.place[:, None])  # (R, L)
        queries, real_queries = own, real
        if last:
            queries, real_queries = torch.tensor(group)[:, None], real[:, :1]  # (R, 1)
        keys, mask = queries, None
        chained = int(segments.reach[part.parent].max()) > 0
        if chained or last:
            keys, seen = _whole_rows(part)  # (R, K)
            mask = seen[:, None, None]  # (R, 1, 1, K)
            if causal and not last:
                triangle = torch.ones(longest, longest, dtype=torch.bool).tril()
                chain = mask[..., : keys.shape[1] - longest].expand(-1, -1, longest, -1)
                mask = torch.cat([chain, triangle.expand(len(group), 1, -1, -1)], dim=3)
            mask = None if bool(mask.all()) else mask.contiguous()
        elif not causal and not bool(real.all()):
            mask = real[:, None, None]
        shape = (len(group), queries.shape[1], keys.shape[1])
        grids.append(Grid(shape, mask, causal and keys is queries))
        all_queries.append(queries.flatten())
        all_keys.append(keys.flatten())
        places.append(queries[real_queries])
        outputs.append(start + real_queries.flatten().nonzero()[:, 0])
        start += real_queries.numel()
    place, output = torch.cat(places), torch.cat(outputs)
    restore = torch.empty_like(output)
    restore[place] = output
    identity = len(restore) == start and torch.equal(restore, torch.arange(start))
    return Attention(
        grids=tuple(grids),
        queries=torch.cat(all_queries),
        keys=torch.cat(all_keys) if last or bool((segments.reach > 0).any()) else None,
        restore=None if identity else restore,
        ragged=_ragged(segments, last=last) if ragged else None,
    )


def _groups(segments: _Segments, *, last: bool) -> list[list[int]]:
    """Group segments that share a grid: one more kernel call costs more than some padding."""
    before, size = segments.reach[segments.parent].tolist(), segments.size.tolist()
    groups: list[list[int]] = []
    longest = chain = cost = 0
    for s in sorted(range(len(size)), key=lambda s: (before[s], size[s])):
        joined = max(longest, size[s]), max(chain, before[s])
        grown = (1 if last else joined[0]) * sum(joined)
        fits = groups and len(groups[-1]) * (grown - cost) <= GRID_WASTE
        if not fits or (before[s] > 0) != (chain > 0):
            groups.append([])
            joined = size[s], before[s]
            grown = (1 if last else joined[0]) * sum(joined)
        groups[-1].append(s)
        (longest, chain), cost = joined, grown
    return [sorted(group) for group in groups]


def _whole_rows(segments: _Segments) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions (R, K) of all keys of each segment, its chain first, and a mask of real ones."""
    longest, chain = int(segments.size.max()), int(segments.reach[segments.parent].max())
    offset = torch.arange(longest)[None]
    real = offset < segments.size[:, None]
    own = segments.before + (segments.place[:, None] + offset).where(real, segments.place[:, None])
    seen = torch.arange(chain)[None] < segments.reach[segments.parent][:, None]
    return torch.cat([segments.chains[segments.parent, :chain], own], 1), torch.cat([seen, real], 1)


def _ragged(segments: _Segments, *, last: bool) -> Ragged:
    """Describe the segments for kernels of variable length."""
    keys, real = _whole_rows(segments)
    counts, size = real.sum(1), torch.ones_like(segments.size) if last else segments.size
    q_ends, k_ends = (torch.nn.functional.pad(n.cumsum(0), (1, 0)).to(torch.int32) for n in (size, counts))
    alone = not last and torch.equal(counts, segments.size)
    return Ragged(None if alone else keys[real], q_ends, k_ends, (int(size.max()), int(counts.max())))


def _fill(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of different length as (R, longest), padded with 0, and their lengths (R,)."""
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), lengths


def _move(item: Any, device: torch.device) -> Any:
    """Move the tensors of nested tuples to a device; numbers, flags and the cached prefix are not changed."""
    if isinstance(item, torch.Tensor):
        return item.to(device, non_blocking=True)
    if isinstance(item, tuple):
        parts = [_move(part, device) for part in item]
        return type(item)(*parts) if isinstance(item, _TUPLES) else tuple(parts)
    return item


_TUPLES = (Grid, Ragged, Attention, PackedRows)
