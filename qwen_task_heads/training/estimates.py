"""Estimates of the time and memory of a run before its first step, to be compared with what it used.

The time is that of the operations of all passes: training, evaluations on dev, and scoring dev and test at
the end. The operations are counted on a sample of the batches. They are divided by the measured matrix peak
of this machine and by the share of the peak that models of this width reach (`UTILIZATION`). The memory is
that of the process now, plus gradients, optimizer states and stored activations of the largest batch. All
values are for one process. Reading data, baselines, the heads of a sweep and writing checkpoints are not
included.
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

SAMPLE = 16  # batches of a dataset that are packed to count their tokens
# Share of the matrix peak of its dtype that passes and their updates reach, by the width of the model, with
# interpolation between widths. Measured on one thread of an AMD EPYC with AVX-512 in seconds of the process,
# with batches of 16 rows of 10 to 30 tokens (64 in `score`): the embedded backbone (192), a Llama of 135M
# (576), and four layers of a Qwen2 of 0.5B (896). Whole layers of bfloat16 gain less than their matrices do.
# The share of a finished run is operations / seconds of `train.used` / peak in its `metrics.json`.
WIDTHS = (192, 576, 896)
UTILIZATION = {
    ("full", torch.float32): (0.35, 0.71, 0.70),
    ("lora", torch.float32): (0.24, 0.58, 0.70),
    ("score", torch.float32): (0.38, 0.78, 0.86),
    ("full", torch.bfloat16): (0.11, 0.32, 0.47),
    ("lora", torch.bfloat16): (0.07, 0.32, 0.47),
    ("score", torch.bfloat16): (0.22, 0.58, 0.73),
}
UNMEASURED = 0.3  # share on other devices
PAGE = 4096  # bytes of a memory page


def estimate_run(trainer: Any, flow: Flow, *, done: int = 0, scored: int = 0) -> Estimate | None:
    """Estimate time and memory of a run of a trainer of this library.

    Args:
        trainer: ready to train.
        flow: steps of the run.
        done: steps of the checkpoint from which the run resumes.
        scored: rows of dev and test that are scored at the end.

    Returns:
        The estimate; None for datasets without a length.
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
    training = pass_costs(model, training=True, **options)
    inference = pass_costs(model, training=False, half=half)
    order = "shuffled" if args.train_sampling_strategy == "random" else str(args.train_sampling_strategy)
    batches = _batches(lengths_of(train), size=args.train_batch_size, order=order, seed=args.seed)
    shapes, largest = _shapes(model, train, batches)
    passes = (flow.steps - done) / flow.steps_of_epoch * len(batches) / args.world_size
    evaluations = sum(step > done for step in flow.evaluations) / args.world_size
    trained, tokens = _mean(shapes), 0.0
    linear, operations = passes * training.linear(trained), passes * training.operations(trained)
    tokens += passes * trained.tokens
    scoring, held = 0.0, training.kept * largest.tokens
    for table in devs:
        batches = _batches(lengths_of(table), size=args.eval_batch_size, order="sequential")
        shapes, longest = _shapes(model, table, batches)
        rows = evaluations * len(table) + scored / len(devs)
        share, one = rows * len(batches) / max(1, len(table)), _mean(shapes)
        scoring += share * inference.operations(one)
        tokens += share * one.tokens
        held = max(held, inference.kept * longest.tokens)
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.model.dtype
    peak = matrix_peak(model.device, dtype=dtype, shapes=linear_shapes(model.model))
    kind = ("lora" if adapted else "full") if training.flows else "score"
    seconds = operations / (peak * utilization(kind, model, dtype))
    seconds += scoring / (peak * utilization("score", model, dtype))
    gradients, moments = trained_bytes(outer), optimizer_bytes(outer, args)
    if args.world_size > 1:
        gradients *= 2  # buckets that the processes exchange
    if args.fsdp or args.deepspeed:
        gradients, moments = gradients // args.world_size, moments // args.world_size
    # Backward frees activations while it allocates gradients. With several batches in an update, the
    # gradients are allocated before the activations.
    waits = args.gradient_accumulation_steps > 1
    needed = int(moments + (gradients + held if waits else max(gradients, held)))
    if half and model.model.dtype == torch.float32:  # copies of the weights that autocast rounds
        needed += sum(2 * one.weight.numel() for one in linear_layers(model.model))
    return Estimate(
        seconds=seconds,
        needed=needed,
        tokens=round(tokens),
        linear=linear,
        operations=operations + scoring,
        processes=args.world_size,
        memory_options=_memory_options(args, full=not adapted),
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
    """Estimate time and memory of the features of a frozen backbone.

    Args:
        model: of either task.
        rows: distinct rows of token ids, truncated.
        batches: indices of rows, by batch.
        features: bytes of all features that are kept.
        dtype: of the features; bfloat16 runs the backbone under autocast.
        scored: further rows that are scored at the end.
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
    memory_options = () if half else ("--feature_dtype bfloat16",)
    return Estimate(
        seconds=passes * costs.operations(one) / (peak * share),
        needed=needed,
        tokens=round(passes * one.tokens),
        linear=len(batches) * costs.linear(one),
        operations=passes * costs.operations(one),
        memory_options=memory_options,
        **_machine(model, needed, peak),
    )


def utilization(kind: str, model: TaskHeadModel, dtype: torch.dtype) -> float:
    """Return the share of the matrix peak that passes are expected to reach.

    Args:
        kind: `full`, `lora`, or `score` without a backward pass through the backbone.
        model: whose width and device are read.
        dtype: of the matrix products.
    """
    if model.device.type != "cpu":
        return UNMEASURED
    shares = UTILIZATION[kind, torch.float32 if dtype == torch.float32 else torch.bfloat16]
    return float(np.interp(np.log(model.model.config.hidden_size), np.log(WIDTHS), shares))


def _machine(model: TaskHeadModel, needed: int, peak: float) -> dict[str, Any]:
    """Return the fields of an estimate that depend on the memory of the process now."""
    device = model.device
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        # Memory that torch has reserved and does not use is available.
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
    """Read a value of each page of the weights, so that mapped files are loaded into memory."""
    for weight in model.parameters():
        weight.flatten()[:: max(1, PAGE // weight.element_size())].sum()


def _memory_options(args: Any, *, full: bool) -> tuple[str, ...]:
    """Return options that reduce the memory of a run and keep its updates, as they can be typed."""
    options = []
    if (rows := args.per_device_train_batch_size) > 1:
        more = args.gradient_accumulation_steps * 2
        options.append(f"--per_device_train_batch_size {rows // 2} --gradient_accumulation_steps {more}")
    if not args.gradient_checkpointing:
        name = "activation_checkpointing" if "activation_checkpointing" in vars(args) else None
        options.append(f"--{name or 'gradient_checkpointing'} true")
    if full:
        options.append("--use_peft true")
    return tuple(options)


def lengths_of(table: Any) -> NDArray[np.int64]:
    """Return the number of tokens of each row (N,) of a `datasets.Dataset` of this library."""
    import pyarrow.compute as pc

    if "length" in table.column_names:
        return np.asarray(table.with_format("numpy")["length"][:], np.int64)
    column = table.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"]
    return np.asarray(pc.list_value_length(column).to_numpy(), np.int64)


def _batches(lengths: NDArray[np.int64], *, size: int, order: str, seed: int = 0) -> list[NDArray[np.int64]]:
    """Divide the rows of a dataset into batches like an epoch; the batch with most tokens is first."""
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
    """Return the shapes of evenly spaced batches, and that of the batch with most tokens."""
    shapes = [batch_shape(model, _rows(table, batches[place])) for place in _spread(len(batches))]
    return shapes, max([batch_shape(model, _rows(table, batches[0])), *shapes], key=lambda one: one.tokens)


def _rows(table: Any, places: NDArray[np.int64]) -> list[list[int]]:
    """Return rows of token ids in the order of the collators."""
    part = table[places.tolist()]
    if "title_ids" in part:
        return [title for titles in part["title_ids"] for title in titles]
    return [*part["chosen_ids"], *part["rejected_ids"]] if "chosen_ids" in part else list(part["input_ids"])


def _spread(total: int) -> list[int]:
    """Return the indices of at most `SAMPLE` evenly spaced batches."""
    number = min(SAMPLE, total)
    return [int((place + 0.5) * total / number) for place in range(number)]


def _mean(shapes: Sequence[BatchShape]) -> BatchShape:
    names = ("real", "tokens", "last", "scores")
    return BatchShape(**{name: float(np.mean([vars(one)[name] for one in shapes])) for name in names})
