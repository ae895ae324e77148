"""Run the rows of concurrent requests together, on one thread, at most `batch_tokens` tokens at a time.

While the model runs, further requests wait in a queue; the next batch takes as many of them as fit. A lone
request therefore starts at once, and the batches grow with the load. A request of more than `batch_tokens` is
split into pieces that take turns with other requests, so that it does not block them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from qwen_task_heads.errors import Problem, TaskHeadsError

Rows = list[list[int]]


@dataclass
class _Piece:
    """A part of a request that fits a batch, and the future of its logits."""

    rows: Rows
    future: asyncio.Future[torch.Tensor]
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = sum(map(len, self.rows))


class RowBatcher:
    """Compute the logits of rows of ids for concurrent callers.

    Args:
        run: computes logits (n, L) of n rows; called on one thread, never concurrently.
        batch_tokens: tokens per batch. A single longer row is a batch of its own.
        max_waiting: tokens that may wait; beyond it `logits` refuses, which limits memory and latency.
        observe: called after each batch with its number of rows, tokens and seconds.

    Example:
        >>> import asyncio, torch
        >>> from qwen_task_heads.serving.batcher import RowBatcher
        >>> async def lengths():
        ...     batcher = RowBatcher(lambda rows: torch.tensor([[float(len(row))] for row in rows]))
        ...     both = await asyncio.gather(batcher.logits([[1], [1, 2]]), batcher.logits([[1, 2, 3]]))
        ...     await batcher.close()
        ...     return [logits.tolist() for logits in both]
        >>> asyncio.run(lengths())
        [[[1.0], [2.0]], [[3.0]]]
    """

    def __init__(
        self,
        run: Callable[[Rows], torch.Tensor],
        *,
        batch_tokens: int = 8192,
        max_waiting: int = 1_000_000,
        observe: Callable[[int, int, float], None] | None = None,
    ) -> None:
        self._run, self._observe = run, observe
        self.batch_tokens, self.max_waiting = batch_tokens, max_waiting
        self._waiting: deque[_Piece] = deque()
        self._alone: deque[_Piece] = deque()  # of batches that failed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._worker: asyncio.Task[None] | None = None
        self.waiting_tokens = 0  # of all unfinished requests

    async def logits(self, rows: Rows) -> torch.Tensor:
        """Return the logits (n, L) of n rows, fp32 on the CPU, in their order.

        A cancelled call leaves the queue; a piece that is running is finished and dropped.

        Raises:
            TaskHeadsError: too many tokens are waiting (`server-busy`).
        """
        tokens = sum(map(len, rows))
        if self.waiting_tokens + tokens > self.max_waiting:
            raise TaskHeadsError(
                Problem(
                    "server",
                    f"{self.waiting_tokens:,} tokens are waiting",
                    f"at most {self.max_waiting:,}",
                    "send the request again later",
                    code="server-busy",
                )
            )
        self.waiting_tokens += tokens
        try:
            # The next piece is added when the last one has finished: other requests take their turn.
            return torch.cat([await self._piece(part) for part in _split(rows, self.batch_tokens)])
        finally:
            self.waiting_tokens -= tokens

    async def close(self) -> None:
        """Finish the waiting requests and end the thread."""
        while self._worker is not None and not self._worker.done():
            await self._worker
        self._thread.shutdown()

    async def _piece(self, rows: Rows) -> torch.Tensor:
        loop = asyncio.get_running_loop()
        piece = _Piece(rows, loop.create_future())
        self._waiting.append(piece)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await piece.future

    async def _work(self) -> None:
        """Run batches until no piece is waiting."""
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            start = time.monotonic()
            try:
                logits = await self._logits(loop, batch)
                if self._observe is not None:
                    tokens = sum(piece.tokens for piece in batch)
                    self._observe(len(logits), tokens, time.monotonic() - start)
                for piece, part in zip(
                    batch, logits.split([len(piece.rows) for piece in batch]), strict=True
                ):
                    if not piece.future.done():
                        piece.future.set_result(part)
            except Exception as error:  # noqa: BLE001 - it is raised in the callers
                if len(batch) > 1:  # one row may have failed them all: each request runs alone
                    self._alone.extend(piece for piece in batch if not piece.future.done())
                elif not batch[0].future.done():
                    batch[0].future.set_exception(error)

    async def _logits(self, loop: asyncio.AbstractEventLoop, batch: list[_Piece]) -> torch.Tensor:
        rows = [row for piece in batch for row in piece.rows]
        logits = await loop.run_in_executor(self._thread, self._run, rows)
        if len(logits) != len(rows):
            raise RuntimeError(f"{len(logits)} rows of logits for {len(rows)} rows")
        return logits

    def _next_batch(self) -> list[_Piece]:
        """Take waiting pieces in their order, as long as they fit; drop cancelled ones."""
        while self._alone:
            piece = self._alone.popleft()
            if not piece.future.done():
                return [piece]
        batch: list[_Piece] = []
        tokens = 0
        while self._waiting:
            piece = self._waiting[0]
            if piece.future.done():
                self._waiting.popleft()
                continue
            tokens += piece.tokens
            if batch and tokens > self.batch_tokens:
                break
            batch.append(self._waiting.popleft())
        return batch


def _split(rows: Rows, limit: int) -> Iterator[Rows]:
    """Split rows into parts of at most `limit` tokens, or of one row."""
    part: Rows = []
    tokens = 0
    for row in rows:
        if part and tokens + len(row) > limit:
            yield part
            part, tokens = [], 0
        part.append(row)
        tokens += len(row)
    yield part
