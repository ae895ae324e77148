"""Seconds of a processor of one stated speed, for the checks that name seconds.

The machines that run the suite differ fourfold, and one machine from minute to minute; a check that names
seconds means an idle core of a few GHz. What is counted is processor time, divided by how much slower than
such a core this one is before and after.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = 40_000
IDLE = 0.0215  # seconds that these names take on an idle core of 2.5 GHz


def slowness() -> float:
    """How many times as long as on an idle core a little work takes now; never below 1.

    It fills memory as reading a file does, because a neighbour slows that down more than counting.
    """
    begin = time.process_time()
    places = {f"name {number}": number for number in range(NAMES)}
    assert len({name: places[name] for name in sorted(places)}) == NAMES
    return max(1.0, (time.process_time() - begin) / IDLE)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail where the block takes longer than this many seconds of an idle core."""
    before, begin = slowness(), time.process_time()
    yield
    spent = time.process_time() - begin
    slow = max(before, slowness())
    assert spent / slow < seconds, f"{spent:.2f} s of a core that is {slow:.1f} times as slow as an idle one"
