"""Heads trained by gradient steps on features of a frozen backbone, thousands of steps a second.

Design decisions:

- The head is the module that the model has as `score` (`build_head`, the model's own initialisation). Its
  state is loaded into `model.score` unchanged and gives the same logits up to rounding.
- The losses are those of the trainers, one value per row, and a step uses the mean over its rows. With the
  same order of rows, the result equals that of `ClassifierTrainer` with a frozen backbone (AdamW, linear
  decay after a linear warm-up, clipped gradients, no weight decay of biases: transformers' defaults).
- The head is evaluated on dev after each epoch, and the best epoch is kept, as in the recipes.
- Heads are trained one after the other, on one process. The random numbers of a head come from its own seed,
  and the caller's generator is not changed.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import TaskHeadConfig
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.pooling_task_heads import build_head
from qwen_task_heads.training.feature_rows import FeatureRows


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """Settings for training a head.

    Args:
        epochs: passes over the rows.
        batch_size: rows per step.
        learning_rate: of AdamW, after the warm-up.
        warmup: steps of the linear warm-up; below 1, a share of all steps.
        weight_decay: of matrices.
        max_grad_norm: gradients are clipped to this norm; 0 disables clipping.
        shuffle: draw the order of each epoch from the seed; otherwise keep the order of the rows.
    """

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    shuffle: bool = True

    def rates(self, steps: int) -> list[float]:
        """Return the learning rate of each step."""
        warm = int(self.warmup) if self.warmup >= 1 else math.ceil(self.warmup * steps)
        return [
            self.learning_rate
            * (step / max(1, warm) if step < warm else (steps - step) / max(1, steps - warm))
            for step in range(steps)
        ]


@dataclass(frozen=True, kw_only=True)
class FittedHead:
    """A trained head, at its best epoch on dev; without dev, at its last epoch.

    Args:
        state: tensors on the CPU, for `model.score.load_state_dict`.
        value: the metric that selected the epoch; NaN without dev.
        epoch: the selected epoch, from 1.
        history: log entries with Trainer's names: `step`, `epoch`, `loss`; `eval_loss` and metrics.
        seconds: duration of the training.
        penalty: of the L2 path of `convex_heads`; None for a head that was trained by gradient steps.
    """

    state: dict[str, Tensor]
    value: float
    epoch: int
    history: tuple[dict[str, float], ...]
    seconds: float
    penalty: float | None = None


def head_config(
    config: TaskHeadConfig, *, pooling: str | None = None, head_sizes: Sequence[int] | None = None
) -> TaskHeadConfig:
    """Copy a config with another pooling, or another head: `[]` for linear, widths for an MLP.

    Raises:
        ValueError: the config is not valid.
    """
    config = copy.deepcopy(config)
    if pooling is not None:
        config.pooling = pooling
    if head_sizes is not None:
        config.head, config.head_sizes = "mlp" if head_sizes else "linear", list(head_sizes)
    config._check()
    return config


def fresh_head(model: TaskHeadModel, config: TaskHeadConfig, *, layers: int = 1) -> nn.Module:
    """Initialise the module `score` of a config, as `build` does; on the CPU, from the global generator.

    Args:
        model: the model whose width and initialisation are used.
        config: of the head.
        layers: number of layers whose states the head reads.
    """
    head = build_head(config, hidden_size=layers * model.model.config.hidden_size)
    return head.apply(model._init_weights)


def fit_head(
    head: nn.Module,
    rows: FeatureRows,
    *,
    dev: FeatureRows | None = None,
    settings: HeadTraining | None = None,
    seed: int = 0,
) -> FittedHead:
    """Train a head on features.

    Args:
        head: from `fresh_head`, or a trained head to continue with; changed in place, to its best epoch.
        rows: training rows, on the device of the head.
        dev: rows for the evaluation after every epoch.
        settings: of the training; `HeadTraining()` if None.
        seed: for the order of rows and for dropout.

    Raises:
        TaskHeadsError: no rows, or a loss that is not finite.

    Example:
        >>> import torch
        >>> from qwen_task_heads.models import build
        >>> from qwen_task_heads.losses.registry import resolve_text_loss
        >>> from qwen_task_heads.training.feature_rows import TextRows
        >>> from qwen_task_heads.training.frozen_heads import fit_head, fresh_head
        >>> model = build("embedded", task="pooled_classifier", labels=["no", "yes"])
        >>> loss = resolve_text_loss(None, problem_type="single_label_classification", num_labels=2)
        >>> rows = TextRows(torch.randn(8, 192), torch.arange(8) % 2, loss, "single_label_classification")
        >>> fitted = fit_head(fresh_head(model, model.config), rows, dev=rows)
        >>> model.score.load_state_dict(fitted.state)
        <All keys matched successfully>
    """
    settings = settings or HeadTraining()
    if not len(rows):
        raise TaskHeadsError(
            Problem("rows", "found no rows", "at least one row", "check the data", code="file-empty")
        )
    start = time.monotonic()
    device = next(head.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        history, best, value, epoch = _train(head, rows, dev, settings, device)
    head.load_state_dict(best)
    seconds = time.monotonic() - start
    state = {name: tensor.detach().cpu() for name, tensor in best.items()}
    return FittedHead(state=state, value=value, epoch=epoch, history=tuple(history), seconds=seconds)


def _train(
    head: nn.Module,
    rows: FeatureRows,
    dev: FeatureRows | None,
    settings: HeadTraining,
    device: torch.device,
) -> tuple[list[dict[str, float]], dict[str, Tensor], float, int]:
    """Return the history, the best state, its metric and its epoch."""
    parameters = list(head.parameters())
    optimizer = torch.optim.AdamW(_groups(head, settings.weight_decay), lr=settings.learning_rate, fused=True)
    rates = settings.rates(settings.epochs * -(-len(rows) // settings.batch_size))
    history: list[dict[str, float]] = []
    step, best, value, best_epoch = 0, {}, math.nan, settings.epochs
    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(len(rows)) if settings.shuffle else torch.arange(len(rows))
        total = torch.zeros((), dtype=torch.float64, device=device)
        head.train()
        for index in order.to(device).split(settings.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
            losses = rows.losses(head, index)
            total += losses.detach().sum()
            optimizer.zero_grad()
            losses.mean().backward()
            if settings.max_grad_norm:
                nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm, foreach=True)
            optimizer.step()
            step += 1
        # The loss is read once per epoch: every read synchronises with the GPU.
        history.append({"step": step, "epoch": float(epoch), "loss": float(total) / len(rows)})
        if not math.isfinite(history[-1]["loss"]):
            problem = f"found {history[-1]['loss']} in epoch {epoch}"
            raise TaskHeadsError(
                Problem("loss", problem, "finite numbers", "lower --learning_rate", code="number-not-finite")
            )
        is_better = dev is None
        if dev is not None:
            metrics = dev.metrics(head)
            history.append({"step": step, "epoch": float(epoch), **metrics})
            key, greater = dev.best
            is_better = math.isnan(value) or (metrics[key] > value if greater else metrics[key] < value)
            value = metrics[key] if is_better else value
        if is_better:
            best = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
            best_epoch = epoch
    return history, best, value, best_epoch


def _groups(head: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Return parameter groups with and without weight decay: biases have none."""
    named = list(head.named_parameters())
    return [
        {"params": [p for name, p in named if name.endswith("bias") == is_bias], "weight_decay": amount}
        for is_bias, amount in ((False, decay), (True, 0.0))
    ]
