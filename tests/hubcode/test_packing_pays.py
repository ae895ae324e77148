"""Packing and prefix sharing save operations: padded ones over computed ones, counted by torch.

The count does not depend on the machine. The time saved is measured by `benchmarks/speed.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config

from qwen_task_heads import TitleScorer, TitleScorerConfig


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=1000, num_hidden_layers=4, **sizes)
    return TitleScorer(TitleScorerConfig(text_config=config))


def rows_of(kind: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(size: int) -> torch.Tensor:
        return torch.randint(3, 1000, (size,), generator=generator)

    if kind == "ragged":  # as in reviews: many short, few long
        return [draw(size) for size in (6, 8, 9, 11, 12, 14, 15, 18, 20, 24, 28, 33, 40, 52, 75, 160)]
    return [torch.cat([prompt, draw(8 + n)]) for prompt in (draw(100), draw(100)) for n in range(8)]


def operations(model: Any, inputs: dict[str, torch.Tensor], *, packing: bool) -> int:
    """Return the operations of the matrix products of one training step."""
    model.packing = packing
    with FlopCounterMode(display=False) as counter:
        model(**inputs).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["ragged", "lists with a prompt"])
def test_operations_shrink_at_least_as_much_as_tokens(model: Any, kind: str) -> None:
    rows = rows_of(kind)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    inputs = {"input_ids": ids, "attention_mask": mask}
    tokens = ids.numel() / len(model._pack(ids, mask.bool(), None).source)
    assert tokens > 3
    # More than the tokens: the last layer computes only the pooled ones.
    assert operations(model, inputs, packing=False) >= tokens * operations(model, inputs, packing=True)
