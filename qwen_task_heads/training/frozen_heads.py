"""Heads trained on features of a frozen backbone: thousands of steps in a second, no tokens in sight.

Decisions:

- The head is the module that the model has as `score` (`build_head`, the model's own initialisation), so
  its state goes into `model.score` unchanged and gives the same logits up to rounding.
- The losses are those of the trainers, one value a row, and a step is the mean over its rows. With the same
  order of rows a head ends where `ClassifierTrainer` with a frozen backbone ends (AdamW, a linear fall after
  a linear warm-up, gradients clipped, no decay of biases: transformers' defaults).
- After each epoch dev is looked at, and the best epoch is kept, as the recipes do it.
- One head after the other, on one process. What a head draws at random comes from its own seed, and the
  caller's generator is left where it was.
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
    """How a head is trained.

    Args:
        epochs: passes over the rows.
        batch_size: rows a step.
        learning_rate: of AdamW, after the warm-up.
        warmup: steps of the linear warm-up; below 1, a share of all steps.
        weight_decay: of matrices.
        max_grad_norm: gradients are scaled down to this norm; 0 for never.
        shuffle: draw the order of each epoch from the seed; else the rows' own.
    """

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    shuffle: bool = True

    def rates(self, steps: int) -> list[float]:
        """Learning rate of each step."""
        warm = int(self.warmup) if self.warmup >= 1 else math.ceil(self.warmup * steps)
        return [
            self.learning_rate
            * (step / max(1, warm) if step < warm else (steps - step) / max(1, steps - warm))
            for step in range(steps)
        ]


@dataclass(frozen=True, kw_only=True)
class FittedHead:
    """A trained head, at its best epoch on dev; without dev, at its last.

    Args:
        state: tensors on the CPU, for `model.score.load_state_dict`.
        value: the figure that picked the epoch; NaN without dev.
        epoch: that epoch, from 1.
        history: log entries as Trainer's: `step`, `epoch`, `loss`; `eval_loss` and figures.
        seconds: it took.
        penalty: of the L2 path of `convex_heads`; None for a head that was trained step by step.
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
    """Copy a config with another pooling, or another head: `[]` is the linear one, widths are an MLP.

    Raises:
        ValueError: no model could be built with it.
    """
    config = copy.deepcopy(config)
    if pooling is not None:
        config.pooling = pooling
    if head_sizes is not None:
        config.head, config.head_sizes = "mlp" if head_sizes else "linear", list(head_sizes)
    config._check()
    return config


def fresh_head(model: TaskHeadModel, config: TaskHeadConfig, *, layers: int = 1) -> nn.Module:
    """Draw the module `score` of a config, as `build` draws it; on the CPU, from the global generator.

    Args:
        model: names the backbone, and draws.
        config: of the head.
        layers: how many layers' states it reads at once.
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
        head: from `fresh_head`, or a trained one to go on with; changed in place, to its best epoch.
        rows: of training, on the device of the head.
        dev: looked at after every epoch.
        settings: how; `HeadTraining()` if None.
        seed: of the order of rows and of dropout.

    Raises:
        TaskHeadsError: no rows, or a loss that is not finite.

    Example:
        >>> import torch
        >>> from qwen_task_heads.models import build
        >>> from qwen_task_heads.training.text_losses import resolve_text_loss
        >>> from qwen_task_heads.training.feature_rows import TextRows
        >>> from qwen_task_heads.training.frozen_heads import fit_head, fresh_head
        >>> model = build("embedded", task="pooled_classifier", labels=["no", "yes"])
        >>> loss = resolve_text_loss(None, problem_type="single_label_classification", num_labels=2)
        >>> rows = TextRows(torch.randn(8, 192), torch.arange(8) % 2, loss, "single_label_classification")
        >>> found = fit_head(fresh_head(model, model.config), rows, dev=rows)
        >>> model.score.load_state_dict(found.state)
        <All keys matched successfully>
    """
    settings = settings or HeadTraining()
    if not len(rows):
        raise TaskHeadsError(Problem("rows", "found none", "at least one", "check the data"))
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
    """Give the history, the best state, its figure and its epoch."""
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
        # Once an epoch: a GPU would wait for the host at every look.
        history.append({"step": step, "epoch": float(epoch), "loss": float(total) / len(rows)})
        if not math.isfinite(history[-1]["loss"]):
            found, remedy = f"found {history[-1]['loss']} in epoch {epoch}", "lower --learning_rate"
            raise TaskHeadsError(Problem("loss", found, "finite numbers", remedy))
        better = dev is None
        if dev is not None:
            figures = dev.figures(head)
            history.append({"step": step, "epoch": float(epoch), **figures})
            key, greater = dev.best
            better = math.isnan(value) or (figures[key] > value if greater else figures[key] < value)
            value = figures[key] if better else value
        if better:
            best = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
            best_epoch = epoch
    return history, best, value, best_epoch


def _groups(head: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay: biases have none."""
    named = list(head.named_parameters())
    return [
        {"params": [p for name, p in named if name.endswith("bias") == is_bias], "weight_decay": amount}
        for is_bias, amount in ((False, decay), (True, 0.0))
    ]
