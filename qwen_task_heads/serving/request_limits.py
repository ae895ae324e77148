"""Limits of one request. Imports nothing, so that vLLM, which has no trl, can use it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one request.

    Args:
        body_bytes: largest body.
        rows: most texts or titles.
        tokens: most tokens of all of them.
        questions: most questions about a state, as in `transformers serve`.
        read_seconds: time in which headers, and then the body, must arrive.
        answer_seconds: time from the body to the answer, waiting included.
    """

    body_bytes: int = 4 * 2**20
    rows: int = 1000
    tokens: int = 200_000
    questions: int = 64
    read_seconds: float = 10.0
    answer_seconds: float = 60.0
