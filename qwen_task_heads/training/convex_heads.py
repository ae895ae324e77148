"""Linear heads on frozen features, solved: one convex problem for each strength of an L2 penalty.

A linear head on features that do not change is logistic regression, Bradley-Terry or ridge regression. Each
has one solution, so there is nothing to draw, no rate to choose and no epoch to stop at: L-BFGS runs to
convergence, and dev picks the strength of the penalty. Decisions:

- Features are divided by their standard deviations on the training rows, so that one penalty fits all
  channels; the division is folded into the weights, and the saved head reads features as they are. They are
  not centred: a head without a bias, which stock serving stacks expect, could not take that back, and the
  mean of the features already acts as a constant channel.
- The objective is `mean loss + penalty / 2 * |W|^2` over standardised features. Any loss of the registries
  works; of a loss that is not convex (`focal`) or a head that is not linear in its parameters (`ordinal`) the
  solution is a local one, from a start at zero.
- The path goes from the strongest penalty to the weakest, each from the solution of the one before (Friedman,
  Hastie and Tibshirani 2010, https://doi.org/10.18637/jss.v033.i01), and ends where dev has become worse for
  some steps: the weakest penalties cost most and win nothing.
- The solver is SciPy's L-BFGS-B (Byrd et al. 1995), in fp64 around losses in fp32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.training.feature_rows import FeatureRows
from qwen_task_heads.training.frozen_heads import FittedHead

PENALTIES = tuple(float(10.0**power) for power in np.arange(1.0, -6.01, -0.5))
PATIENCE = 4  # penalties in a row without a better loss on dev, after which the path ends
ITERATIONS = 500  # of L-BFGS for one penalty
TOLERANCE = 1e-6  # relative change of the objective at which a penalty is done; losses are fp32
SMALLEST = 1e-6  # of a standard deviation, relative to the largest: constant channels are left out


def fit_path(
    head: nn.Module,
    rows: FeatureRows,
    *,
    dev: FeatureRows,
    penalties: Sequence[float] = PENALTIES,
) -> FittedHead:
    """Fit a linear head for each penalty, and keep the one that dev picks: best metric, then least loss.

    Args:
        head: linear in the features, from `fresh_head`; its values are not read. Changed in place.
        rows: of training, on the device of the head.
        dev: picks the penalty.
        penalties: strengths of the L2 penalty on the weights, each 0 or more.

    Returns:
        The head of the penalty picked, `penalty` among its fields, its history one entry a penalty.

    Raises:
        TaskHeadsError: no rows, a penalty below 0, or a loss that is not finite.

    Example:
        >>> import torch
        >>> from qwen_task_heads.models import build
        >>> from qwen_task_heads.training.classification_losses import resolve_text_loss
        >>> from qwen_task_heads.training.convex_heads import fit_path
        >>> from qwen_task_heads.training.feature_rows import TextRows
        >>> model = build("embedded", task="pooled_classifier", labels=["no", "yes"])
        >>> loss = resolve_text_loss(None, problem_type="single_label_classification", num_labels=2)
        >>> rows = TextRows(torch.randn(64, 192), torch.arange(64) % 2, loss, "single_label_classification")
        >>> found = fit_path(model.score, rows, dev=rows, penalties=[1.0, 0.01])
        >>> found.penalty in (1.0, 0.01), found.value > 0.5
        (True, True)
    """
    _check(rows, penalties)
    start, parameters = time.monotonic(), [*head.parameters()]
    scale = _scale(rows.features_of())
    scaled, scaled_dev = rows.scaled(1 / scale), dev.scaled(1 / scale)
    weights = _weights(head)
    vector = np.zeros(sum(parameter.numel() for parameter in parameters))
    history: list[dict[str, float]] = []
    best: dict[str, Any] = {}
    least, since = math.inf, 0
    key, greater = dev.best
    for penalty in sorted(set(penalties), reverse=True):
        vector, value, iterations = _solve(head, scaled, vector, weights=weights, penalty=penalty)
        _set(parameters, vector)
        metrics = scaled_dev.figures(head)
        step = len(history) + 1
        history.append({"step": step, "penalty": penalty, "loss": value, "iterations": iterations, **metrics})
        order = (metrics[key] if greater else -metrics[key], -metrics["eval_loss"])
        if not best or order > best["order"]:
            state = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
            best = {"order": order, "penalty": penalty, "value": metrics[key], "state": state, "step": step}
        since = 0 if metrics["eval_loss"] < least else since + 1
        least = min(least, metrics["eval_loss"])
        if since >= PATIENCE:
            break
    head.load_state_dict(best["state"])
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name in weights:
                parameter.div_(scale.to(parameter.device))
    state = {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}
    return FittedHead(
        state=state, value=best["value"], epoch=best["step"], history=tuple(history),
        seconds=time.monotonic() - start, penalty=best["penalty"],
    )  # fmt: skip


def _check(rows: FeatureRows, penalties: Sequence[float]) -> None:
    if not len(rows):
        raise TaskHeadsError(Problem.of("rows", "none", "at least one", "check the data"))
    if not penalties or any(not math.isfinite(penalty) or penalty < 0 for penalty in penalties):
        remedy = "choose such as 1 0.1 0.01"
        raise TaskHeadsError(Problem.of("--penalties", f"{list(penalties)}", "numbers of 0 or more", remedy))


def _weights(head: nn.Module) -> set[str]:
    """Names of the matrices that read features; other parameters (a bias, thresholds) are not penalised."""
    return {name for name, parameter in head.named_parameters() if parameter.dim() == 2}


def _scale(features: Sequence[Tensor]) -> Tensor:
    """Standard deviations (H,) over all rows; infinite for a constant channel, which then counts nothing."""
    count = sum(len(part) for part in features)
    mean = sum(part.double().sum(0) for part in features) / count
    squares = sum(((part.double() - mean) ** 2).sum(0) for part in features)
    found = (torch.as_tensor(squares) / count).sqrt()
    return torch.where(found > SMALLEST * found.max(), found, math.inf).float()


def _solve(
    head: nn.Module, rows: FeatureRows, start: NDArray[np.float64], *, weights: set[str], penalty: float
) -> tuple[NDArray[np.float64], float, int]:
    """Minimise from a start; give the parameters, the mean loss without the penalty, and the iterations."""
    from scipy.optimize import minimize

    named = list(head.named_parameters())
    parameters = [parameter for _, parameter in named]
    sizes = [np.full(p.numel(), penalty if name in weights else 0.0) for name, p in named]
    strength = np.concatenate(sizes)

    def objective(vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        _set(parameters, vector)
        loss = rows.losses(head, slice(None)).mean()
        slopes = torch.autograd.grad(loss, parameters)
        slope = np.concatenate([part.double().cpu().numpy().ravel() for part in slopes])
        return loss.item() + 0.5 * float(strength @ vector**2), slope + strength * vector

    head.eval()  # dropout has no place in a convex problem
    options = {"maxiter": ITERATIONS, "maxfun": 4 * ITERATIONS, "ftol": TOLERANCE, "gtol": 1e-6}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    if not math.isfinite(found.fun):
        text, remedy = f"{found.fun} at penalty {penalty:g}", "check the features and the labels"
        raise TaskHeadsError(Problem.of("loss", text, "finite numbers", remedy))
    return found.x, float(found.fun) - 0.5 * float(strength @ found.x**2), int(found.nit)


@torch.no_grad()
def _set(parameters: Sequence[nn.Parameter], vector: NDArray[np.float64]) -> None:
    """Set the parameters from one flat vector."""
    values = torch.from_numpy(vector).split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, values, strict=True):
        parameter.copy_(part.view_as(parameter))
