"""Rows against the stock class of transformers, with the same weights and right-padded batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from speed_measure import Bench, Result, compare, largest_difference
from speed_workloads import (
    DATASETS,
    batches,
    classifier,
    computed,
    lengths,
    padded,
    real,
    rows_of,
    scorer,
    stock_of,
    titles,
    with_labels,
)

OF_LIMIT = 0.95  # target of classification, relative to padded / real tokens
Batches = list[dict[str, torch.Tensor]]


def score_all(model: Any, inputs: Batches) -> list[torch.Tensor]:
    """Return the logits of all batches."""
    with torch.inference_mode():
        return [model(**batch).logits for batch in inputs]


def step_all(model: Any, inputs: Batches, optimizer: torch.optim.Optimizer | None = None) -> torch.Tensor:
    """Run one update per batch, or only backward without an optimizer; return the last loss."""
    model.train()
    for batch in inputs:
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
    return loss


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor | None]:
    """Return loss and gradients of one batch, in the order of the parameters' names."""
    loss = step_all(model, [batch])
    return [loss, *(value.grad for _, value in sorted(model.named_parameters()) if value.requires_grad)]


def inference_row(bench: Bench, model: Any, stock: Any, inputs: Batches, **fields: Any) -> Result:
    """Measure scoring of the batches on both sides."""
    model.eval()
    stock.eval()
    timing = compare(bench, peer=lambda: score_all(stock, inputs), ours=lambda: score_all(model, inputs))
    difference = largest_difference(score_all(stock, inputs), score_all(model, inputs))
    return Result(peer=STOCK, difference=difference, compared="logits", **timing.result_fields(), **fields)


def training_row(bench: Bench, model: Any, stock: Any, inputs: Batches, **fields: Any) -> Result:
    """Compare loss and gradients of both sides, and measure AdamW updates."""
    difference = largest_difference(gradients(stock, inputs[0]), gradients(model, inputs[0]))
    # With a learning rate of zero the weights stay equal over all turns; the work is the same.
    optimizers = [torch.optim.AdamW(side.parameters(), lr=0.0, fused=True) for side in (stock, model)]
    timing = compare(
        bench,
        peer=lambda: step_all(stock, inputs, optimizers[0]),
        ours=lambda: step_all(model, inputs, optimizers[1]),
    )
    return Result(peer=STOCK, difference=difference, compared=GRADIENTS, **timing.result_fields(), **fields)


STOCK = "transformers Qwen2ForSequenceClassification, right-padded"
GRADIENTS = "loss and gradients"


def classification(bench: Bench) -> Iterator[Result]:
    """Measure lengths of real texts, in random order as in Trainer."""
    for name, spec in DATASETS.items():
        size, longest = spec["batch"], spec["longest"]
        count = size * (12 if bench.full else 3) if name != "longnews-7" else size * (3 if bench.full else 1)
        model = classifier(bench, "small", labels=spec["labels"])
        stock = stock_of(model)
        row_lengths = lengths(bench, name, rows=count, longest=longest if bench.full else min(longest, 1024))
        inputs = with_labels(batches(bench, rows_of(row_lengths), size=size), model)
        limit = computed(inputs) / real(inputs)
        settings = {"shape": "small", "lengths": name, "batch": size, "batches": len(inputs)}
        common: dict[str, Any] = {"target": OF_LIMIT * limit, "limit": limit, "settings": settings}
        yield training_row(
            bench, model, stock, inputs, workload=f"classification, training, {name} lengths", **common
        )
        yield inference_row(
            bench, model, stock, inputs, workload=f"classification, inference, {name} lengths", **common
        )
        if bench.full:
            yield _sorted_row(bench, model, stock, row_lengths, size, name=name)


def _sorted_row(
    bench: Bench, model: Any, stock: Any, row_lengths: list[int], size: int, *, name: str
) -> Result:
    """Measure the peer in its fastest setting: batches of rows of similar length."""
    inputs = batches(bench, rows_of(row_lengths), size=size)
    similar = batches(bench, rows_of(sorted(row_lengths)), size=size)
    timing = compare(bench, peer=lambda: score_all(stock, similar), ours=lambda: score_all(model, inputs))
    difference = largest_difference(score_all(stock, inputs), score_all(model, inputs))
    return Result(
        workload=f"classification, inference, {name} lengths",
        peer="the same, its rows sorted by length",
        settings={"shape": "small", "lengths": name, "batch": size},
        limit=computed(similar) / real(inputs),
        difference=difference,
        compared="logits",
        **timing.result_fields(),
    )


def lists(bench: Bench) -> Iterator[Result]:
    """Measure scoring of titles after one prompt, one list per call, as in a ranking service."""
    for count, prompt, target in ((8, 100, 4.5), (16, 300, 8.0)):
        model = scorer(bench, "small")
        inputs = [
            padded(bench, rows_of(titles(count, seed=seed), prompt=prompt, seed=seed))
            for seed in range(8 if bench.full else 4)
        ]
        needed = real(inputs) - len(inputs) * (count - 1) * prompt
        yield inference_row(
            bench,
            model,
            stock_of(model),
            inputs,
            workload=f"scoring a list of {count} titles, prompt of {prompt}",
            settings={"shape": "small", "titles": "8 to 40 tokens", "lists": len(inputs)},
            target=target,
            limit=computed(inputs) / needed,
        )


def instruction(bench: Bench) -> Iterator[Result]:
    """Measure classification of rows that share an instruction."""
    model = classifier(bench, "small", labels=10)
    sizes = titles(32 * (2 if bench.full else 1))
    inputs = with_labels(batches(bench, rows_of(sizes, prompt=120), size=32), model)
    needed = real(inputs) - len(inputs) * 31 * 120
    yield training_row(
        bench,
        model,
        stock_of(model),
        inputs,
        workload="classification, training, instruction of 120 common to all rows",
        settings={"shape": "small", "titles": "8 to 40 tokens", "batch": 32, "batches": len(inputs)},
        target=5.0,
        limit=computed(inputs) / needed,
    )
