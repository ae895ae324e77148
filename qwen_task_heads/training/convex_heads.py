"""Linear heads on frozen features: the solution of one convex problem for each strength of an L2 penalty.

A linear head on fixed features is logistic regression, Bradley-Terry or ridge regression. Each has one
solution, which depends on no seed, learning rate or number of epochs. L-BFGS runs to convergence, and dev
selects the strength of the penalty. Design decisions:

- Features are divided by their standard deviations on the training rows, so that one penalty fits all
  channels. The division is folded into the weights, and the saved head reads unscaled features. Features are
  not centred: a head without a bias, which stock serving stacks expect, could not represent the shift. The
  mean of the features already acts as a constant channel.
- The objective is `mean loss + penalty / 2 * |W|^2` over standardised features. Any registered loss works.
  For a loss that is not convex (`focal`), or a head that is not linear in its parameters (`ordinal`), the
  solution is a local minimum found from a start at zero.
- The path goes from the strongest penalty to the weakest, and each solve starts from the previous solution
  (Friedman, Hastie and Tibshirani 2010, https://doi.org/10.18637/jss.v033.i01). It ends after several
  penalties without a better loss on dev, because the weakest penalties take the longest and do not improve
  the result.
- The solver is SciPy's L-BFGS-B (Byrd et al. 1995), in fp64 around losses in fp32. It works on the principal
  axes of the features, each scaled by its share of the curvature. Hidden states are correlated and far from
  zero: on the original channels L-BFGS needs hundreds of steps and ends before the minimum. The rotation does
  not change the penalty.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.training.feature_rows import ROWS_PER_PASS, FeatureRows
from qwen_task_heads.training.frozen_heads import FittedHead

PENALTIES = tuple(float(10.0**power) for power in np.arange(1.0, -6.01, -0.5))
PATIENCE = 4  # consecutive penalties without a better loss on dev, after which the path ends
ITERATIONS = 500  # of L-BFGS for one penalty
TOLERANCE = 1e-9  # change of the objective below which a solve ends; losses are means of fp32
SLOPE = 1e-6  # largest slope along an axis of unit curvature below which a solve ends
CURVATURE = 0.25  # of Bradley-Terry at a gap of 0; multiplied by the second moment of an axis
SMALLEST = 1e-5  # least standard deviation relative to the channel's largest value; below it, it is constant


def fit_path(
    head: nn.Module,
    rows: FeatureRows,
    *,
    dev: FeatureRows,
    penalties: Sequence[float] = PENALTIES,
) -> FittedHead:
    """Fit a linear head for each penalty; keep the one with the best metric on dev, then the least loss.

    Args:
        head: linear in the features, from `fresh_head`; its values are not read. Changed in place.
        rows: training rows, on the device of the head.
        dev: rows that select the penalty.
        penalties: strengths of the L2 penalty on the weights, each 0 or more.

    Returns:
        The head of the selected penalty, with the field `penalty`; its history has one entry per penalty.

    Raises:
        TaskHeadsError: no rows, a penalty below 0, or a loss that is not finite.

    Example:
        >>> import torch
        >>> from qwen_task_heads.models import build
        >>> from qwen_task_heads.losses.registry import resolve_text_loss
        >>> from qwen_task_heads.training.convex_heads import fit_path
        >>> from qwen_task_heads.training.feature_rows import TextRows
        >>> model = build("embedded", task="pooled_classifier", labels=["no", "yes"])
        >>> loss = resolve_text_loss(None, problem_type="single_label_classification", num_labels=2)
        >>> rows = TextRows(torch.randn(64, 192), torch.arange(64) % 2, loss, "single_label_classification")
        >>> fitted = fit_path(model.score, rows, dev=rows, penalties=[1.0, 0.01])
        >>> fitted.penalty in (1.0, 0.01), fitted.value > 0.5
        (True, True)
    """
    problems = penalty_problems(penalties)
    if not len(rows):
        problems.append(
            Problem("rows", "found no rows", "at least one row", "check the data", code="file-empty")
        )
    if problems:
        raise TaskHeadsError(problems)
    start = time.monotonic()
    axes = _axes(rows)
    rotated, rotated_dev = rows.mapped(axes.matrix), dev.mapped(axes.matrix)
    objective = _Objective(head, rotated, moments=axes.moments)
    vector = np.zeros(objective.size)
    history: list[dict[str, float]] = []
    best: dict[str, Any] = {}
    least, since = math.inf, 0
    key, greater = dev.best
    for penalty in sorted(set(penalties), reverse=True):
        vector, value, iterations = objective.solve(vector, penalty=penalty)
        metrics = rotated_dev.metrics(head)
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
        for parameter in filter(_reads_features, head.parameters()):
            parameter.copy_(parameter @ axes.matrix.T)
    state = {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}
    return FittedHead(
        state=state,
        value=best["value"],
        epoch=best["step"],
        history=tuple(history),
        seconds=time.monotonic() - start,
        penalty=best["penalty"],
    )


def penalty_problems(penalties: Sequence[float]) -> list[Problem]:
    """Return the problem of penalties that `fit_path` does not accept, if any.

    Example:
        >>> from qwen_task_heads.training.convex_heads import penalty_problems
        >>> penalty_problems([1.0, 0.0]), len(penalty_problems([-1.0]))
        ([], 1)
    """
    if penalties and all(math.isfinite(penalty) and penalty >= 0 for penalty in penalties):
        return []
    given = " ".join(f"{penalty:g}" for penalty in penalties) or "none"
    fix = "choose such as 1 0.1 0.01"
    return [Problem("--penalties", f"found {given}", "numbers of 0 or more", fix, code="option-range")]


def _reads_features(parameter: nn.Parameter) -> bool:
    """Return whether a parameter multiplies features; others (a bias, thresholds) are not penalised."""
    return parameter.dim() == 2


@dataclass(frozen=True)
class _Axes:
    """Principal axes of standardised features: `features @ matrix` (N, H), and their second moments (H,)."""

    matrix: Tensor
    moments: Tensor


def _axes(rows: FeatureRows) -> _Axes:
    weight = 1 / _scale(rows.features_of())
    contrasts = rows.contrasts()
    moments = torch.zeros(len(weight), len(weight), dtype=torch.float64, device=weight.device)
    for part in contrasts.split(ROWS_PER_PASS):
        scaled = part.double() * weight
        moments += scaled.T @ scaled / len(contrasts)
    if not bool(torch.isfinite(moments).all()):
        problem, fix = "found values that are not finite", "check the backbone's dtype and the texts"
        raise TaskHeadsError(Problem("features", problem, "finite numbers", fix, code="number-not-finite"))
    eigenvalues, axes = torch.linalg.eigh(moments)
    return _Axes((axes * weight[:, None]).float(), eigenvalues.clamp(min=0))


def _scale(features: Sequence[Tensor]) -> Tensor:
    """Return standard deviations (H,) over all rows; infinite for a constant channel, which has no effect.

    A channel is constant if its deviation is near the rounding of fp32, relative to its own values. Other
    channels do not matter, because each channel is divided by its own deviation.
    """
    parts = [part for whole in features for part in whole.split(ROWS_PER_PASS)]
    count = sum(map(len, parts))
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / count
    squares = torch.stack([((part.double() - mean) ** 2).sum(0) for part in parts]).sum(0)
    largest = torch.stack([part.abs().amax(0).double() for part in parts]).amax(0)
    deviations = (squares / count).sqrt()
    # NaN is kept; `_axes` raises an error for it.
    return torch.where(deviations <= SMALLEST * largest, math.inf, deviations)


def _one_blas_thread() -> AbstractContextManager[Any]:
    """Return a context in which SciPy's OpenBLAS uses one thread; torch's threads are not affected.

    SciPy's vectors are short, and its idle threads would occupy the cores that the loss needs. On two cores,
    a path over 9,220 rows and 77 labels takes 56 s with them, and 15 s without.
    """
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(internal_api="openblas").limit(limits=1)


class _Objective:
    """Mean loss of a head and its penalty, as functions of one vector: the parameters on the axes."""

    def __init__(self, head: nn.Module, rows: FeatureRows, *, moments: Tensor) -> None:
        self.head, self.rows, self.parameters = head, rows, [*head.parameters()]
        curvature = CURVATURE * moments.cpu().numpy()
        parts = [
            np.broadcast_to(curvature, parameter.shape).ravel()
            if _reads_features(parameter)
            else np.full(parameter.numel(), np.nan)
            for parameter in self.parameters
        ]
        self.curvature = np.concatenate(parts)
        self.is_penalised = ~np.isnan(self.curvature)
        self.size = len(self.curvature)

    def solve(self, start: NDArray[np.float64], *, penalty: float) -> tuple[NDArray[np.float64], float, int]:
        """Minimise from a start; return the parameters, the mean loss without the penalty, the iterations."""
        from scipy.optimize import minimize

        strength = np.where(self.is_penalised, penalty, 0.0)
        # Units in which the curvature is about 1 along each axis; an axis without curvature is not scaled.
        unit = np.where(self.is_penalised, self.curvature + penalty, 1.0)
        unit = 1 / np.sqrt(np.maximum(unit, SMALLEST * unit.max()))

        def function(vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            values = vector * unit
            loss, slopes = self._loss(values)
            return loss + 0.5 * float(strength @ values**2), (slopes + strength * values) * unit

        self.head.eval()  # with dropout the objective would be random
        options = {"maxiter": ITERATIONS, "maxfun": 4 * ITERATIONS, "ftol": TOLERANCE, "gtol": SLOPE}
        with _one_blas_thread():
            solution = minimize(function, start / unit, jac=True, method="L-BFGS-B", options=options)
        if not math.isfinite(solution.fun):
            problem, fix = f"found {solution.fun} at penalty {penalty:g}", "check the features and the labels"
            raise TaskHeadsError(Problem("loss", problem, "finite numbers", fix, code="number-not-finite"))
        values = solution.x * unit
        self._set(values)
        return values, float(solution.fun) - 0.5 * float(strength @ values**2), int(solution.nit)

    def _loss(self, values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        self._set(values)
        loss = self.rows.losses(self.head, slice(None)).double().mean()
        slopes = torch.autograd.grad(loss, self.parameters)
        return loss.item(), np.concatenate([part.double().cpu().numpy().ravel() for part in slopes])

    @torch.no_grad()
    def _set(self, values: NDArray[np.float64]) -> None:
        """Set the parameters from one flat vector."""
        parts = torch.from_numpy(values).split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))
