"""Memory peaks of training at the shapes of Qwen2.5-0.5B and 7B: computed, and measured on a GPU.

The computed peak includes weights, gradients, AdamW's two moments and the states that backward needs, with
and without gradient checkpointing. The batch is long news (8 rows, at most 2,048 tokens), padded for stock
and packed for ours. Full training is in fp32; LoRA (rank 16, all linear layers) has its frozen base and the
states in bf16. Fragmentation of the allocator, buffers of kernels and the states of the head are not
included. At the small shape, the computed states of a layer are compared with the tensors that autograd
saves.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from speed_measure import Bench, Result
from speed_rows import step_all
from speed_workloads import SHAPES, batches, classifier, lengths, real, rows_of, stock_of, with_labels
from transformers import Qwen2Config

from qwen_task_heads import PooledClassifier, PooledClassifierConfig, adapter_config

GIB = 2**30
RANK = 16
MODELS: dict[str, dict[str, int]] = {
    "0.5B": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "7B": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}


@dataclass(frozen=True)
class Case:
    """A training setup: the model, LoRA or all weights, with or without checkpointing."""

    model: str
    lora: bool
    checkpointing: bool

    @property
    def name(self) -> str:
        """Return the description of the setup."""
        how = "LoRA bf16" if self.lora else "all weights fp32"
        return f"memory, {self.model}, {how}, checkpointing {'on' if self.checkpointing else 'off'}"


def kept(sizes: dict[str, Any]) -> int:
    """Return the count of numbers that a layer saves per token for backward.

    Each of the two norms saves its input, the normalised input and its output, which is the input of the next
    matrices: 3 H each. Attention saves queries, keys, values, its output, and the input of the output
    projection. The MLP saves the gate, its activation, the up projection, and their product.
    """
    hidden = sizes["hidden_size"]
    pairs = 2 * hidden * sizes["num_key_value_heads"] // sizes["num_attention_heads"]
    return 6 * hidden + (3 * hidden + pairs) + 4 * sizes["intermediate_size"]


def parameters(sizes: dict[str, Any]) -> tuple[int, int]:
    """Return the number of weights of a backbone, and of its LoRA matrices."""
    hidden, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    part = hidden * sizes["num_key_value_heads"] // sizes["num_attention_heads"]
    linear = 2 * hidden * hidden + 2 * hidden * part + 3 * hidden * inner
    small = 2 * hidden + hidden + 2 * part  # norms, and the biases of queries, keys and values
    thin = RANK * (4 * hidden + 2 * (hidden + part) + 3 * (hidden + inner))
    return sizes["vocab_size"] * hidden + layers * (linear + small) + hidden, layers * thin


def peak(case: Case, tokens: int) -> float:
    """Return the computed peak in bytes."""
    sizes = MODELS[case.model]
    weights, thin = parameters(sizes)
    # Weight, gradient and two moments of each trained parameter, four bytes each.
    fixed = 2 * weights + 16 * thin if case.lora else 16 * weights
    layers, hidden = sizes["num_hidden_layers"], sizes["hidden_size"]
    numbers = layers * hidden + kept(sizes) if case.checkpointing else layers * kept(sizes)
    return fixed + tokens * numbers * (2 if case.lora else 4)


def saved_bytes(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """Return the bytes that autograd saves for backward, without weights and inputs, each storage once."""
    own = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *batch.values()]}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.train()(**batch).loss  # the reference prevents that a storage is freed and reused
    del loss
    return sum(saved.values())


def memory(bench: Bench) -> Iterator[Result]:
    """Count the states of the small shape, then compute all cases and, on a GPU, measure them."""
    sizes = lengths(bench, "longnews-7", rows=8, longest=2048)
    rows = rows_of(sizes)
    [batch] = batches(bench, rows, size=len(rows))
    tokens = {"peer": batch["input_ids"].numel(), "ours": real([batch])}
    model = classifier(bench, "small", labels=7)
    [labelled] = with_labels([batch], model)
    counted = {"peer": saved_bytes(stock_of(model), labelled), "ours": saved_bytes(model, labelled)}
    formula = 4 * SHAPES["small"]["num_hidden_layers"] * kept(SHAPES["small"])
    yield Result(
        workload="states kept for backward, longnews-7 lengths, batch of 8",
        peer="transformers Qwen2ForSequenceClassification, right-padded",
        ratio=counted["peer"] / counted["ours"],
        settings={"shape": "small", "bytes": counted, "formula": {k: n * formula for k, n in tokens.items()}},
        limit=tokens["peer"] / tokens["ours"],
        note=f"counted over formula: {counted['peer'] / (tokens['peer'] * formula):.2f} stock, "
        f"{counted['ours'] / (tokens['ours'] * formula):.2f} ours",
    )
    for case in [Case(name, lora, on) for name in MODELS for lora in (False, True) for on in (False, True)]:
        gib = {side: round(peak(case, count) / GIB, 2) for side, count in tokens.items()}
        settings = {"shape": case.model, "computed_gib": gib, "tokens": tokens}
        note = f"computed: {gib['peer']:.1f} GiB stock, {gib['ours']:.1f} GiB ours"
        if not bench.on_cpu:
            measured = {side: _measure(bench, case, rows, ours=side == "ours") for side in tokens}
            settings["measured_gib"] = measured
            texts = {side: "does not fit" if gib is None else f"{gib:.1f}" for side, gib in measured.items()}
            note += f"; measured: {texts['peer']} and {texts['ours']}"
        yield Result(
            workload=case.name,
            peer="transformers Qwen2ForSequenceClassification, right-padded",
            ratio=gib["peer"] / gib["ours"],
            settings=settings,
            limit=tokens["peer"] / tokens["ours"],
            note=note,
        )


def _measure(bench: Bench, case: Case, rows: list[list[int]], *, ours: bool) -> float | None:
    """Return the peak in GiB of one update on the GPU, or None if it does not fit."""
    gc.collect()
    torch.cuda.empty_cache()
    dtype = torch.bfloat16 if case.lora else torch.float32
    config = PooledClassifierConfig(
        text_config=Qwen2Config(**MODELS[case.model], use_cache=False, pad_token_id=0), num_labels=7
    )
    try:
        with torch.device(bench.device):
            model: Any = PooledClassifier(config).to(dtype)
        if not ours:
            model = stock_of(model)
        if case.lora:
            from peft import get_peft_model

            bare = model if ours else PooledClassifier(_narrow(config))
            model = get_peft_model(model, adapter_config(bare, r=RANK, dropout=0.0))
        if case.checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
        inputs = [
            {**batch, "labels": torch.zeros(len(rows), dtype=torch.long, device=bench.device)}
            for batch in batches(bench, rows, size=len(rows))
        ]
        torch.cuda.reset_peak_memory_stats()
        step_all(model, inputs, optimizer)
        step_all(model, inputs, optimizer)  # the first update allocates the moments
        return round(torch.cuda.max_memory_allocated() / GIB, 2)
    except torch.OutOfMemoryError:
        return None


def _narrow(config: PooledClassifierConfig) -> PooledClassifierConfig:
    """Return a small config with the same module names, which determine the options of an adapter."""
    small = Qwen2Config(**SHAPES["small"], vocab_size=8)
    return PooledClassifierConfig(text_config=small, num_labels=config.num_labels)
