"""Packed rows: the real tokens of a padded batch in one row, and beginnings that rows share only once.

A padded batch spends half to four fifths of its work on padding and on the same prompt again. Here the
tokens that are real go through embeddings, linears, norms and MLP as one row of N tokens; attention alone
sees rows again. The batch itself stays what it was, so collators, samplers, trainers and pipelines need to
know nothing of it, and the numbers are those of the padded batch (up to rounding, 1e-6 in fp32).

Rows that begin alike (an instruction common to the batch, a prompt common to a pair or a list) are cut
into segments: the common beginning stands once, and each remainder has it as its parent. Under causal
attention a token's state depends on what stands before it alone, so states, losses and gradients are those
of the full rows. Beginnings may nest: an instruction, then prompts, then titles.

Sources: packing without cross-contamination, Krell et al. 2021, https://arxiv.org/abs/2107.02027; prefix
sharing in training, https://arxiv.org/abs/2410.20305. This file travels with every published model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch

MIN_SHARED = 8  # tokens; a shorter common beginning costs more in attention than it saves in linears
MIN_SAVED = 0.1  # of a batch's tokens; sharing less is not worth its second kind of attention
# Scores per head that a grid may compute for padding, rather than to be cut into two grids.
GRID_WASTE = 16_384

KeysAndValues = dict[int, tuple[torch.Tensor, torch.Tensor]]


class Store:
    """Takes the keys and values of a pass. No dict: who moves a layer's inputs would hand it a copy."""

    def __init__(self) -> None:
        self.layers: KeysAndValues = {}


# Tuples, because whoever moves a model's inputs between devices (accelerate, FSDP) looks into tuples.
class Grid(NamedTuple):
    """Queries of similar reach, as R rows of L, and the K keys that each row may see.

    Args:
        shape: (R, L, K).
        mask: (R, 1, L or 1, K) bool, True where a query sees a key; None for all, or for causal.
        causal: whether a query sees the keys up to its own place; there is no `mask` then, and K is L.
    """

    shape: tuple[int, int, int]
    mask: torch.Tensor | None = None
    causal: bool = False


class Ragged(NamedTuple):
    """The same attention for kernels of variable length: queries in packed order, keys row after row.

    Args:
        keys: (M,) place of each key, cached prefix first; None where they are the queries.
        q_ends: (S + 1,) int32, cumulative numbers of queries of the S segments.
        k_ends: (S + 1,) int32, of keys. A causal mask is aligned at the last key.
        longest: most queries and most keys of a segment.
    """

    keys: torch.Tensor | None
    q_ends: torch.Tensor
    k_ends: torch.Tensor
    longest: tuple[int, int]


class Attention(NamedTuple):
    """Who sees whom.

    Args:
        grids: G grids.
        queries: places of the queries of all grids, one after the other (sum of R * L,), in the packed row or
            among the last tokens; filled up with any place. One gather serves all grids, forwards and back.
        keys: of the keys (sum of R * K,), cached prefix first; None where they are the queries' places.
        restore: (Q,) leads from the grids' outputs, one after the other, to packed order; None if it is that.
        ragged: the same for other kernels.
    """

    grids: tuple[Grid, ...]
    queries: torch.Tensor
    keys: torch.Tensor | None
    restore: torch.Tensor | None
    ragged: Ragged | None


class PackedRows(NamedTuple):
    """A batch of B rows as one row of N tokens. Made by `pack`.

    Args:
        source: (N,) place of each token in the flattened padded batch (B * T,).
        position_ids: (1, N), those of the padded rows.
        attention: of all tokens.
        rows: (B, T') place in the packed row of each token of each row, filled up with 0; None if only the
            last tokens are asked for.
        row_mask: (B, T') bool, what of `rows` is real.
        last: (B,) place in the packed row of the last token of each row.
        pooled: attention of the last tokens alone, for a last layer that computes nothing else.
        prefix: (keys, values) per layer, (heads, P, D) each, of tokens before every row; {} for none.
        apart: whether attention to the prefix is computed apart, over all queries at once, and merged; else
            its keys stand before those of the packed row.
        store: which the layers fill with their keys and values; None where nobody wants them.
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
        """Give states (1, N, H), or (1, B, H) of the last tokens, as `pooling_task_heads.pool` takes them."""
        if self.rows is not None and self.row_mask is not None:
            # A shared beginning may be followed by a gap before a row's own tokens: look, do not count.
            place = torch.arange(self.row_mask.shape[1], device=self.row_mask.device)
            return states[0][self.rows], self.row_mask, (self.row_mask * place).argmax(1)
        # By their number and not by `pooled`: a last layer that was put in later may give all tokens.
        last = states[0] if states.shape[1] == len(self.last) else states[0].index_select(0, self.last)
        one = torch.ones(len(last), 1, dtype=torch.bool, device=last.device)
        return last[:, None], one, torch.zeros_like(self.last)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows of ids begin with in common."""
    unequal = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(unequal, min(len(first), len(second)))


class _Segments(NamedTuple):
    """S segments of the packed row, each with what stands before it.

    Args:
        place: (S,) where they begin in the packed row.
        size: (S,) their tokens.
        parent: (S,) row of `chains` that stands before them.
        chains: (U, P) places of keys, cached prefix first, filled up with 0.
        reach: (U,) how many of them are real.
        before: tokens of the cached prefix.
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
        mask: (B, T) bool, True for real tokens, at least one a row, anywhere in it.
        input_ids: (B, T); with them, beginnings that rows share stand once. None keeps all rows whole.
        causal: False lets every token of a row see the whole row; nothing can be shared then.
        last_only: whether only the last token of a row is pooled.
        pooled_only: whether the last layer computes the pooled tokens alone; needs `last_only`.
        prefix: keys and values of tokens that stand before every row, from a pass that stored them. Their
            states are gone, so it goes with `last_only` alone.
        apart: see `PackedRows`; needs a prefix.
        ragged: whether kernels of variable length are told too; on CUDA if None.

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
    # (row, begin, end, parent) of what is shared, then of each row its own remainder.
    parts = [*shared, *((row, begin, lengths[row], parent) for row, (begin, parent) in enumerate(own))]
    row, begin, end, parent = torch.tensor(parts).T
    size = end - begin
    place = size.cumsum(0) - size
    within = torch.arange(int(size.sum())) - place.repeat_interleave(size)
    starts = torch.tensor([0, *accumulate(lengths)])[row]
    source = flat[(starts + begin).repeat_interleave(size) + within]
    position_ids = before + begin.repeat_interleave(size) + within
    before = 0 if apart else before  # from here on, the places of keys
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
    """Find beginnings that rows share.

    Args:
        ids: (N,) of all rows, one after the other.
        lengths: of the rows.

    Returns:
        Shared segments `(row, begin, end, parent)`, parents first, parent -1 for none; and of each row where
        its own remainder begins, at least one token, and its parent. With too little to gain, nothing.
    """
    parts = ids.to(torch.int32).split(lengths)
    keys = [part.numpy().tobytes() for part in parts]
    # In the order of their bytes, rows that begin with the same tokens stand beside each other.
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
    """Grids over all tokens of the segments; with `last`, over S queries, the last token of each."""
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
    """Segments that share a grid: one more kernel call costs more than some padding."""
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
    """Places of all keys of each segment, its chain and then itself, (R, K), and which of them are real."""
    longest, chain = int(segments.size.max()), int(segments.reach[segments.parent].max())
    offset = torch.arange(longest)[None]
    real = offset < segments.size[:, None]
    own = segments.before + (segments.place[:, None] + offset).where(real, segments.place[:, None])
    seen = torch.arange(chain)[None] < segments.reach[segments.parent][:, None]
    return torch.cat([segments.chains[segments.parent, :chain], own], 1), torch.cat([seen, real], 1)


def _ragged(segments: _Segments, *, last: bool) -> Ragged:
    """The segments for kernels of variable length."""
    keys, real = _whole_rows(segments)
    counts, size = real.sum(1), torch.ones_like(segments.size) if last else segments.size
    q_ends, k_ends = (torch.nn.functional.pad(n.cumsum(0), (1, 0)).to(torch.int32) for n in (size, counts))
    alone = not last and torch.equal(counts, segments.size)
    return Ragged(None if alone else keys[real], q_ends, k_ends, (int(size.max()), int(counts.max())))


def _fill(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different length as (R, longest), filled with 0, and their lengths (R,)."""
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), lengths


def _move(item: Any, device: torch.device) -> Any:
    """The same on a device; whole numbers, flags and the cached prefix stay as they are."""
    if isinstance(item, torch.Tensor):
        return item.to(device, non_blocking=True)
    if isinstance(item, tuple):
        parts = [_move(part, device) for part in item]
        return type(item)(*parts) if isinstance(item, _TUPLES) else tuple(parts)
    return item


_TUPLES = (Grid, Ragged, Attention, PackedRows)
