"""Checks that need a model: tokens of the texts, what a limit cuts, and the time and memory of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from qwen_task_heads.adapters import adapter_config, with_adapter
from qwen_task_heads.data.examples import full_text
from qwen_task_heads.data_checks.checked_data import CheckedData, sampled
from qwen_task_heads.data_checks.findings import NOTE, WARNING, CheckFinding
from qwen_task_heads.models import build, load_tokenizer
from qwen_task_heads.throughput import linear_shapes, matrix_peak
from qwen_task_heads.training.estimates import utilization
from qwen_task_heads.training.pass_costs import batch_shape, pass_costs, trained_bytes, weight_bytes
from qwen_task_heads.training.usage import duration, size

MOST_CUT = 0.1  # share of cut rows from which the finding is a warning
SAMPLE = 2_000  # rows whose tokens are counted
BATCH = 16  # rows of the batches of the estimates
ADAM = 8  # bytes of the moments of AdamW per trained parameter, in fp32


def check_characters(data: CheckedData) -> list[CheckFinding]:
    """State the quantiles of the length of the training rows in characters."""
    lengths = np.array([len(text) for text in _texts(data)])
    middle, high = (int(np.quantile(lengths, share)) for share in (0.5, 0.95))
    message = (
        f"training texts have {middle:,} characters (median), {high:,} (95%) and at most {lengths.max():,}"
    )
    values = {"median": middle, "p95": high, "max": int(lengths.max())}
    return [CheckFinding(code="lengths", severity=NOTE, message=message, values=values)]


def check_tokens(data: CheckedData, *, model: str, hub: str, max_length: int | None) -> list[CheckFinding]:
    """Count the tokens of a sample of the training rows, and the rows that a limit cuts."""
    tokenizer = load_tokenizer(model, hub=hub)
    texts = sampled(_texts(data), SAMPLE)
    lengths = np.array([len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]])
    quantiles = {f"p{share}": int(np.quantile(lengths, share / 100)) for share in (50, 95, 99)}
    message = (
        f"training texts have {quantiles['p50']:,} tokens (median), {quantiles['p95']:,} (95%) and at most "
        f"{lengths.max():,}, without template"
    )
    values: dict[str, Any] = {**quantiles, "max": int(lengths.max()), "sample": len(lengths)}
    if max_length is None:
        return [CheckFinding(code="tokens", severity=NOTE, message=message, values=values)]
    cut = lengths > max_length
    lost = float(np.maximum(lengths - max_length, 0).sum() / max(1, lengths.sum()))
    share = float(cut.mean())
    message += (
        f"; a limit of {max_length:,} cuts {100 * share:.1f}% of them and {100 * lost:.1f}% of the tokens"
    )
    option = "--max_seq_length" if data.noun == "texts" else "--max_length"
    windows = " or --truncation windows" if data.noun == "texts" else ""
    is_much = share > MOST_CUT
    return [
        CheckFinding(
            code="tokens",
            severity=WARNING if is_much else NOTE,
            message=message,
            fix=f"give {option} {quantiles['p95']}{windows}" if is_much else "",
            values={**values, "limit": max_length, "cut": share, "lost": lost},
        )
    ]


def check_cost(data: CheckedData, *, model: str, hub: str, max_length: int | None) -> list[CheckFinding]:
    """Estimate time and memory on this machine: frozen features, and an epoch with LoRA and in full.

    The weights are loaded, and the speed of their matrix products is measured.
    """
    tokenizer, backbone = load_tokenizer(model, hub=hub), build(model, hub=hub)
    texts = sampled(_texts(data), SAMPLE)
    rows = [ids[:max_length] or [0] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    sides = 1 if data.noun == "texts" else 2
    total = sum(len(part) for part in data.splits.values())
    peak = matrix_peak(backbone.device, dtype=torch.float32, shapes=linear_shapes(backbone.model))
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    every = max(1, len(batches) // 16)
    weights, values, parts = weight_bytes(backbone), {}, []
    for name, kind, count in (
        ("frozen features", "score", total),
        ("an epoch with LoRA", "lora", len(data.sets.train)),
        ("an epoch in full", "full", len(data.sets.train)),
    ):
        own: Any = backbone
        if kind == "lora":
            own = with_adapter(build(model, hub=hub), adapter_config(backbone))
        backbone.requires_grad_(kind == "full")
        inner = own.get_base_model() if kind == "lora" else own
        costs = pass_costs(inner, training=kind != "score")
        shapes = [batch_shape(inner, batch, pools=kind != "score") for batch in batches[::every]]
        operations = np.mean([costs.operations(shape) for shape in shapes]) / BATCH * count * sides
        seconds = float(operations / (peak * utilization(kind, inner, torch.float32)))
        trained = trained_bytes(own) if kind != "score" else 0
        held = costs.kept * max(shape.tokens for shape in shapes)
        memory = int(weights + max(trained, held) + trained * ADAM / 4)
        values[kind] = {"seconds": seconds, "memory": memory}
        parts.append(f"{name} {duration(seconds)} and {size(memory)}")
    message = f"estimated on this machine with {model}: {', '.join(parts)}"
    return [CheckFinding(code="cost", severity=NOTE, message=message, values=values)]


def _texts(data: CheckedData) -> Sequence[str]:
    """Return the texts of the training rows; for pairs, prompt and title of both sides."""
    if data.noun == "texts":
        return [full_text(row) for row in data.sample]
    titles = [(row.prompt, title) for row in data.sample for title in (row.chosen, row.rejected)]
    return [f"{prompt}\n{title}" if prompt else title for prompt, title in titles]
