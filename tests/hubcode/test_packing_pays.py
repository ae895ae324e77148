"""That packing and prefix sharing still pay: ratios of times in one process, held against what is possible.

No time is asserted, and no ratio of a loaded machine either: both sides take turns, the best of several
tries counts, and the bar is far below what is measured (see the benchmarks), but above what padding gives.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import Qwen2Config

from qwen_task_heads import TitleScorer, TitleScorerConfig

TRIES, TURNS = 5, 3
BAR = 0.6  # of the padded tokens over the computed ones; measured are 0.9 and more


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=1000, num_hidden_layers=4, **sizes)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield TitleScorer(TitleScorerConfig(text_config=config))
    torch.set_num_threads(threads)


def rows_of(kind: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(size: int) -> torch.Tensor:
        return torch.randint(3, 1000, (size,), generator=generator)

    if kind == "ragged":  # as reviews are: many short, few long
        return [draw(size) for size in (6, 8, 9, 11, 12, 14, 15, 18, 20, 24, 28, 33, 40, 52, 75, 160)]
    return [torch.cat([prompt, draw(8 + n)]) for prompt in (draw(100), draw(100)) for n in range(8)]


def seconds(model: Any, inputs: dict[str, torch.Tensor], *, packing: bool) -> float:
    model.packing = packing
    begin = time.perf_counter()
    model(**inputs).logits.sum().backward()
    return time.perf_counter() - begin


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ragged", "lists with a prompt"])
def test_the_ratio_is_near_that_of_the_tokens(model: Any, kind: str) -> None:
    rows = rows_of(kind)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    inputs = {"input_ids": ids, "attention_mask": mask}
    limit = ids.numel() / len(model._pack(ids, mask.bool(), None).source)
    assert limit > 3
    ratios = []
    for _ in range(TRIES):
        turns = [
            (seconds(model, inputs, packing=False), seconds(model, inputs, packing=True))
            for _ in range(TURNS)
        ]
        padded, packed = (statistics.median(side) for side in zip(*turns, strict=True))
        ratios.append(padded / packed)
        if ratios[-1] >= BAR * limit:
            return
    raise AssertionError(f"ratios {[round(r, 2) for r in ratios]}, and the tokens say {limit:.2f}")
