"""Utilisation of the machine, and growth of time with the amount of work."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from speed_measure import Bench, Result, clocked, exponent, matmul_peak, take_turns
from speed_rows import score_all, step_all
from speed_workloads import (
    SHAPES,
    batches,
    classifier,
    lengths,
    padded,
    real,
    rows_of,
    scorer,
    stock_of,
    texts,
    titles,
    with_labels,
)

from qwen_task_heads import Scorer, build, load_tokenizer
from qwen_task_heads.losses.groups import all_pairs

SIDE = 1024  # of the matrices whose product is the peak; no other shape was faster


def operations(sizes: dict[str, Any], rows: list[int], *, pooled_only: bool) -> float:
    """Return the floating point operations of one pass over rows of these lengths: matrices and attention.

    With `pooled_only`, the last layer counts keys and values of all tokens, and all other operations of the
    pooled tokens only.
    """
    hidden, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    pairs = 2 * hidden * hidden * sizes["num_key_value_heads"] // sizes["num_attention_heads"]
    rest = 2 * hidden * hidden + 3 * hidden * inner
    tokens, seen = sum(rows), sum(row * (row + 1) / 2 for row in rows)
    full_layers = layers - 1 if pooled_only else layers
    count = full_layers * (2 * tokens * (pairs + rest) + 4 * hidden * seen)
    if pooled_only:
        count += 2 * tokens * pairs + 2 * len(rows) * rest + 4 * hidden * tokens
    return count


def utilisation(bench: Bench) -> Iterator[Result]:
    """Measure the operations per second for the real tokens, relative to those of a matrix product."""
    peak = matmul_peak(bench.device)
    left = torch.randn(SIDE, SIDE, device=bench.device)
    product = 2 * SIDE**3
    for shape, count, target in (("small", 128, 0.65), ("0.5b", 48, 0.85)):
        rows = lengths(bench, "waimai-10k", rows=count, longest=512)
        model = classifier(bench, shape, labels=2)
        stock = stock_of(model)
        inputs = batches(bench, rows_of(rows), size=count)
        needed = operations(SHAPES[shape], rows, pooled_only=True)
        named = operations(SHAPES[shape], rows, pooled_only=False)

        def share(side: Any, flops: float, inputs: Any = inputs) -> tuple[float, float]:
            score_all(side, inputs)
            # The peak is measured in the same turn, so that other work on the machine lowers both.
            timing = take_turns(
                bench,
                peer=lambda: clocked(bench, lambda: [left @ left for _ in range(8)]) / (8 * product) * flops,
                ours=lambda: clocked(bench, lambda: score_all(side, inputs)),
            )
            return statistics.median(timing.ratios), timing.result_fields()["spread"]

        ratio, spread = share(model, needed)
        # A padded pass at the large shape takes half a minute, which is too long for the short suite.
        theirs = share(stock, named)[0] if bench.full or shape == "small" else None
        yield Result(
            workload="utilisation on real tokens, packed fp32, inference, waimai-10k lengths",
            peer=f"the product of two matrices of {SIDE}",
            ratio=ratio,
            settings={"shape": shape, "batch": count, "tokens": real(inputs), "stock": theirs},
            target=target,
            limit=1.0,
            spread=spread,
            note=("" if theirs is None else f"stock: {theirs:.2f}; ")
            + f"fastest product: {peak / 1e9:.0f} G operations a second. "
            "Counted is what pooled-only needs, so that skipped work is no use of the machine",
        )


def growth(bench: Bench) -> Iterator[Result]:
    """Measure exponents of time over the amount of work, ours and the peer's."""
    yield from (
        _lengths(bench),
        _labels(bench),
        _groups(bench),
        _rows(bench),
    )


def _fit(bench: Bench, sizes: list[int], calls: list[Callable[[], Any]]) -> float:
    """Return the exponent of time over size; each time is the median of three."""
    seconds = []
    for call in calls:
        call()
        seconds.append(statistics.median(clocked(bench, call) for _ in range(3)))
    return exponent([float(size) for size in sizes], seconds)


def _result(name: str, sizes: list[int], ours: float, theirs: float | None, **settings: Any) -> Result:
    note = f"stock: {theirs:.2f}" if theirs is not None else ""
    return Result(
        workload=f"exponent of time over {name} ({', '.join(map(str, sizes))})",
        peer="1 is linear",
        ratio=ours,
        settings={"shape": "small", "stock": None if theirs is None else round(theirs, 3), **settings},
        note=note,
    )


def _lengths(bench: Bench) -> Result:
    """Measure rows whose lengths vary by a factor of four, with doubled lengths at each size."""
    sizes = [64, 128, 256, 512] if bench.full else [32, 64, 128]
    model = classifier(bench, "small", labels=10)
    stock = stock_of(model)
    inputs = [
        with_labels([padded(bench, rows_of(titles(8, low=size // 4, high=size)))], model) for size in sizes
    ]
    ours = _fit(bench, sizes, [lambda batch=batch: step_all(model, batch) for batch in inputs])
    theirs = _fit(bench, sizes, [lambda batch=batch: step_all(stock, batch) for batch in inputs])
    return _result("lengths, training", sizes, ours, theirs, batch=8)


def _labels(bench: Bench) -> Result:
    """Measure a growing number of labels; only the head grows."""
    sizes = [10, 100, 1000, 10_000]
    rows, calls = rows_of(titles(32)), []
    for size in sizes:
        model = classifier(bench, "small", labels=size)
        inputs = with_labels([padded(bench, rows)], model)
        calls.append(lambda model=model, inputs=inputs: step_all(model, inputs))
    return _result("labels, training", sizes, _fit(bench, sizes, calls), None, batch=32)


def _groups(bench: Bench) -> Result:
    """Measure growing groups of titles after one prompt, with the loss over all their pairs."""
    sizes = [4, 8, 16, 32] if bench.full else [4, 8, 16]
    model, calls = scorer(bench, "small").train(), []

    def step(inputs: dict[str, torch.Tensor], count: int) -> None:
        model.zero_grad()
        gains = torch.arange(count, device=bench.device).float()
        all_pairs(model(**inputs).logits[:, 0], sizes=[count], gains=gains).sum().backward()

    for size in sizes:
        inputs = padded(bench, rows_of(titles(size), prompt=100))
        calls.append(lambda inputs=inputs, size=size: step(inputs, size))
    return _result(
        "titles of a group, all pairs, training", sizes, _fit(bench, sizes, calls), None, prompt=100
    )


def _rows(bench: Bench) -> Result:
    """Measure `Scorer` on real titles, including tokenisation."""
    sizes = [50, 500, 2500] if bench.full else [50, 500]
    ours = Scorer(
        build("embedded"), tokenizer=load_tokenizer("embedded"), device=bench.device, progress=False
    )
    rows = texts(bench, "upworthy", rows=sizes[-1])
    calls = [lambda size=size: ours.score(rows[:size]) for size in sizes]
    return _result("rows, Scorer on real titles", sizes, _fit(bench, sizes, calls), None)
