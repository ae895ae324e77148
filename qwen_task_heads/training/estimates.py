"""Time and memory of a run, estimated before its first step and held against what it used.

Time is that of the operations of all passes: training, looks at dev, and scoring dev and test at the end.
They are counted on a sample of the run's batches and divided by the matrix peak of this machine, measured
now, and by the share of it that passes of models of this width reached in `UTILIZATION`. Memory is what the
process holds, and the gradients, optimizer states and kept states of the largest batch. All of it is of one
process. Reading data, baselines, the heads of a sweep and writing checkpoints are not estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.throughput import linear_layers, linear_shapes, matrix_peak
from qwen_task_heads.training.pass_costs import (
    BatchShape,
    batch_shape,
    pass_costs,
    trained_bytes,
    weight_bytes,
)
from qwen_task_heads.training.run_checks import Flow, optimizer_bytes
from qwen_task_heads.training.usage import Estimate, peak_memory

SAMPLE = 16  # batches of a set that are packed to count their tokens
# Share of the matrix peak of its dtype that passes reach, and updates with them, by the width of the model;
# interpolated between. Measured on one thread of an AMD EPYC with AVX-512 in seconds of the process, batches
# of 16 rows of 10 to 30 tokens (64 in `score`): the embedded backbone (192), a Llama of 135M (576), and four
# layers of a Qwen2 of 0.5B (896). Whole layers of bfloat16 gain less than their matrices do. The share that
# a run reached is operations / seconds of `train.used` / peak in its `metrics.json`.
WIDTHS = (192, 576, 896)
UTILIZATION = {
    ("full", torch.float32): (0.35, 0.71, 0.70),
    ("lora", torch.float32): (0.24, 0.58, 0.70),
    ("score", torch.float32): (0.38, 0.78, 0.86),
    ("full", torch.bfloat16): (0.11, 0.32, 0.47),
    ("lora", torch.bfloat16): (0.07, 0.32, 0.47),
    ("score", torch.bfloat16): (0.22, 0.58, 0.73),
}
UNMEASURED = 0.3  # on other devices
PAGE = 4096  # bytes that are read from a file at once


def estimate_run(trainer: Any, flow: Flow, *, done: int = 0, scored: int = 0) -> Estimate | None:
    """Estimate a run of one of this library's trainers.

    Args:
        trainer: ready to train.
        flow: its steps.
        done: steps that a checkpoint has taken already.
        scored: rows of dev and test that are scored at the end.

    Returns:
        The estimate; None for data sets without a length.
    """
    from datasets import Dataset
    from peft import PeftModel

    args, outer = trainer.args, trainer.model
    adapted = isinstance(outer, PeftModel)
    model: TaskHeadModel = outer.get_base_model() if adapted else outer
    train, dev = trainer.train_dataset, trainer.eval_dataset
    devs = list(dev.values()) if isinstance(dev, dict) else [dev] * (dev is not None)
    if not all(isinstance(table, Dataset) for table in [train, *devs]):
        return None
    half, checkpointing = bool(args.bf16 or args.fp16), bool(args.gradient_checkpointing)
    options = {"half": half, "checkpointing": checkpointing, "inputs_train": adapted and checkpointing}
    forth_and_back = pass_costs(model, training=True, **options)
    forth = pass_costs(model, training=False, half=half)
    order = "shuffled" if args.train_sampling_strategy == "random" else str(args.train_sampling_strategy)
    batches = _batches(lengths_of(train), size=args.train_batch_size, order=order, seed=args.seed)
    shapes, largest = _shapes(model, train, batches)
    passes = (flow.steps - done) / flow.steps_of_epoch * len(batches) / args.world_size
    looks = sum(step > done for step in flow.looks) / args.world_size
    trained, tokens = _mean(shapes), 0.0
    linear, operations = passes * forth_and_back.linear(trained), passes * forth_and_back.operations(trained)
    tokens += passes * trained.tokens
    scoring, held = 0.0, forth_and_back.kept * largest.tokens
    for table in devs:
        batches = _batches(lengths_of(table), size=args.eval_batch_size, order="sequential")
        shapes, longest = _shapes(model, table, batches)
        rows = looks * len(table) + scored / len(devs)
        share, one = rows * len(batches) / max(1, len(table)), _mean(shapes)
        scoring += share * forth.operations(one)
        tokens += share * one.tokens
        held = max(held, forth.kept * longest.tokens)
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.model.dtype
    peak = matrix_peak(model.device, dtype=dtype, shapes=linear_shapes(model.model))
    kind = ("lora" if adapted else "full") if forth_and_back.flows else "score"
    seconds = operations / (peak * utilization(kind, model, dtype))
    seconds += scoring / (peak * utilization("score", model, dtype))
    gradients, moments = trained_bytes(outer), optimizer_bytes(outer, args)
    if args.world_size > 1:
        gradients *= 2  # buckets that are exchanged
    if args.fsdp or args.deepspeed:
        gradients, moments = gradients // args.world_size, moments // args.world_size
    # States go as gradients come; with several batches in an update, gradients are there first.
    waits = args.gradient_accumulation_steps > 1
    needed = int(moments + (gradients + held if waits else max(gradients, held)))
    if half and model.model.dtype == torch.float32:  # the weights that autocast has rounded
        needed += sum(2 * one.weight.numel() for one in linear_layers(model.model))
    return Estimate(
        seconds=seconds,
        needed=needed,
        tokens=round(tokens),
        linear=linear,
        operations=operations + scoring,
        processes=args.world_size,
        remedies=_remedies(args, full=not adapted),
        **_machine(model, needed, peak),
    )


def estimate_features(
    model: TaskHeadModel,
    rows: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    *,
    features: int,
    dtype: torch.dtype,
    scored: int = 0,
) -> Estimate:
    """Estimate the features of a frozen backbone.

    Args:
        model: of either task.
        rows: that differ, cut.
        batches: places of rows.
        features: bytes of all that are kept.
        dtype: of the features; bfloat16 runs the backbone under autocast.
        scored: rows that are scored at the end, beside them.
    """
    half = dtype == torch.bfloat16
    costs = pass_costs(model, training=False, half=half)
    chosen = [batches[place] for place in _spread(len(batches))]
    one = _mean([batch_shape(model, [rows[row] for row in batch], pools=False) for batch in chosen])
    longest = max(batches, key=lambda batch: sum(len(rows[row]) for row in batch))
    held = costs.kept * batch_shape(model, [rows[row] for row in longest], pools=False).tokens
    products = dtype if half else model.model.dtype
    peak = matrix_peak(model.device, dtype=products, shapes=linear_shapes(model.model))
    passes = len(batches) * (1 + scored / len(rows))
    share = utilization("score", model, products)
    on_device = model.device.type != "cpu"
    needed = int(held + features * (not on_device))
    remedies = () if half else ("--feature_dtype bfloat16",)
    return Estimate(
        seconds=passes * costs.operations(one) / (peak * share),
        needed=needed,
        tokens=round(passes * one.tokens),
        linear=len(batches) * costs.linear(one),
        operations=passes * costs.operations(one),
        remedies=remedies,
        **_machine(model, needed, peak),
    )


def utilization(kind: str, model: TaskHeadModel, dtype: torch.dtype) -> float:
    """Return the share of the matrix peak that passes are expected to reach.

    Args:
        kind: `full`, `lora`, or `score` without a backward pass through the backbone.
        model: names width and device.
        dtype: of the products.
    """
    if model.device.type != "cpu":
        return UNMEASURED
    shares = UTILIZATION[kind, torch.float32 if dtype == torch.float32 else torch.bfloat16]
    return float(np.interp(np.log(model.model.config.hidden_size), np.log(WIDTHS), shares))


def _machine(model: TaskHeadModel, needed: int, peak: float) -> dict[str, Any]:
    """Fields of an estimate that hang on what the process holds now."""
    device = model.device
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        # What torch has reserved and does not use is free to it.
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
    else:
        import psutil

        read_weights(model)
        held, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    memory = max(held + needed, peak_memory(device))
    weights = weight_bytes(model)
    return {"memory": memory, "weights": weights, "free": free, "peak": peak, "device": device.type}


@torch.no_grad()
def read_weights(model: nn.Module) -> None:
    """Read a number of each page of the weights: those of a mapped file are in memory only once read."""
    for weight in model.parameters():
        weight.flatten()[:: max(1, PAGE // weight.element_size())].sum()


def _remedies(args: Any, *, full: bool) -> tuple[str, ...]:
    """Options that lower the memory of a run and keep what it learns from, as they are typed."""
    found = []
    if (rows := args.per_device_train_batch_size) > 1:
        more = args.gradient_accumulation_steps * 2
        found.append(f"--per_device_train_batch_size {rows // 2} --gradient_accumulation_steps {more}")
    if not args.gradient_checkpointing:
        name = "activation_checkpointing" if "activation_checkpointing" in vars(args) else None
        found.append(f"--{name or 'gradient_checkpointing'} true")
    if full:
        found.append("--use_peft true")
    return tuple(found)


def lengths_of(table: Any) -> NDArray[np.int64]:
    """Tokens of each row of a `datasets.Dataset` of this library."""
    import pyarrow.compute as pc

    if "length" in table.column_names:
        return np.asarray(table.with_format("numpy")["length"][:], np.int64)
    column = table.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"]
    return np.asarray(pc.list_value_length(column).to_numpy(), np.int64)


def _batches(lengths: NDArray[np.int64], *, size: int, order: str, seed: int = 0) -> list[NDArray[np.int64]]:
    """Cut the rows of a set into batches as an epoch may have them, the one with most tokens first."""
    places = np.arange(len(lengths))
    if order != "sequential":
        places = np.random.default_rng(seed).permutation(places)
    if order == "group_by_length":
        places = places[np.argsort(-lengths[places], kind="stable")]
    batches = [places[start : start + size] for start in range(0, len(places), size)]
    return sorted(batches, key=lambda batch: -int(lengths[batch].sum()))


def _shapes(
    model: TaskHeadModel, table: Any, batches: Sequence[NDArray[np.int64]]
) -> tuple[list[BatchShape], BatchShape]:
    """Shapes of batches that are spread over all, and that of the one with most tokens."""
    shapes = [batch_shape(model, _rows(table, batches[place])) for place in _spread(len(batches))]
    return shapes, max([batch_shape(model, _rows(table, batches[0])), *shapes], key=lambda one: one.tokens)


def _rows(table: Any, places: NDArray[np.int64]) -> list[list[int]]:
    """Rows of token ids as the collators put them into a batch."""
    part = table[places.tolist()]
    if "title_ids" in part:
        return [title for titles in part["title_ids"] for title in titles]
    return [*part["chosen_ids"], *part["rejected_ids"]] if "chosen_ids" in part else list(part["input_ids"])


def _spread(total: int) -> list[int]:
    """Places of at most `SAMPLE` batches, each in the middle of its part."""
    number = min(SAMPLE, total)
    return [int((place + 0.5) * total / number) for place in range(number)]


def _mean(shapes: Sequence[BatchShape]) -> BatchShape:
    names = ("real", "tokens", "last", "scores")
    return BatchShape(**{name: float(np.mean([vars(one)[name] for one in shapes])) for name in names})
