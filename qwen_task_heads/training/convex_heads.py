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
- The solver is SciPy's L-BFGS-B (Byrd et al. 1995), in fp64 around losses in fp32. It works on the principal
  axes of the features, each in a unit of its share of the curvature. Hidden states are correlated and far
  from zero: on the channels themselves L-BFGS needs hundreds of steps and ends before the minimum. The
  rotation leaves the penalty as it is.
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
PATIENCE = 4  # penalties in a row without a better loss on dev, after which the path ends
ITERATIONS = 500  # of L-BFGS for one penalty
TOLERANCE = 1e-9  # change of the objective at which a penalty is done; losses are means of fp32
SLOPE = 1e-6  # largest slope along an axis of unit curvature at which a penalty is done
CURVATURE = 0.25  # of a loss, times the second moment of an axis: that of Bradley-Terry at a gap of 0
SMALLEST = 1e-5  # of a standard deviation, relative to the channel's largest value: others are constant


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
        >>> from qwen_task_heads.training.text_losses import resolve_text_loss
        >>> from qwen_task_heads.training.convex_heads import fit_path
        >>> from qwen_task_heads.training.feature_rows import TextRows
        >>> model = build("embedded", task="pooled_classifier", labels=["no", "yes"])
        >>> loss = resolve_text_loss(None, problem_type="single_label_classification", num_labels=2)
        >>> rows = TextRows(torch.randn(64, 192), torch.arange(64) % 2, loss, "single_label_classification")
        >>> found = fit_path(model.score, rows, dev=rows, penalties=[1.0, 0.01])
        >>> found.penalty in (1.0, 0.01), found.value > 0.5
        (True, True)
    """
    problems = penalty_problems(penalties)
    if not len(rows):
        problems.append(Problem("rows", "found none", "at least one", "check the data"))
    if problems:
        raise TaskHeadsError(problems)
    start = time.monotonic()
    axes = _axes(rows)
    turned, turned_dev = rows.mapped(axes.matrix), dev.mapped(axes.matrix)
    problem = _Problem(head, turned, moments=axes.moments)
    vector = np.zeros(problem.size)
    history: list[dict[str, float]] = []
    best: dict[str, Any] = {}
    least, since = math.inf, 0
    key, greater = dev.best
    for penalty in sorted(set(penalties), reverse=True):
        vector, value, iterations = problem.solve(vector, penalty=penalty)
        metrics = turned_dev.figures(head)
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
        state=state, value=best["value"], epoch=best["step"], history=tuple(history),
        seconds=time.monotonic() - start, penalty=best["penalty"],
    )  # fmt: skip


def penalty_problems(penalties: Sequence[float]) -> list[Problem]:
    """Return the problem of penalties that `fit_path` cannot use, if there is one.

    Example:
        >>> from qwen_task_heads.training.convex_heads import penalty_problems
        >>> penalty_problems([1.0, 0.0]), len(penalty_problems([-1.0]))
        ([], 1)
    """
    if penalties and all(math.isfinite(penalty) and penalty >= 0 for penalty in penalties):
        return []
    found, remedy = " ".join(f"{penalty:g}" for penalty in penalties) or "none", "choose such as 1 0.1 0.01"
    return [Problem("--penalties", f"found {found}", "numbers of 0 or more", remedy)]


def _reads_features(parameter: nn.Parameter) -> bool:
    """Whether this is a matrix on features; others (a bias, thresholds) are not penalised."""
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
        found, remedy = "values that are not finite", "check the backbone's dtype and the texts"
        raise TaskHeadsError(Problem("features", f"found {found}", "finite numbers", remedy))
    along, axes = torch.linalg.eigh(moments)
    return _Axes((axes * weight[:, None]).float(), along.clamp(min=0))


def _scale(features: Sequence[Tensor]) -> Tensor:
    """Standard deviations (H,) over all rows; infinite for a constant channel, which then counts nothing.

    Constant is what fp32 hardly tells from it: a deviation far below the values of the same channel. Those of
    other channels do not matter, because each is divided by its own.
    """
    parts = [part for whole in features for part in whole.split(ROWS_PER_PASS)]
    count = sum(map(len, parts))
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / count
    squares = torch.stack([((part.double() - mean) ** 2).sum(0) for part in parts]).sum(0)
    largest = torch.stack([part.abs().amax(0).double() for part in parts]).amax(0)
    found = (squares / count).sqrt()
    return torch.where(found <= SMALLEST * largest, math.inf, found)  # NaN stays, and is refused


def _one_blas_thread() -> AbstractContextManager[Any]:
    """Return a context in which SciPy's OpenBLAS uses one thread; torch's threads are not affected.

    SciPy's vectors are short. Its idle threads would spin on the cores that the loss needs next: on two cores
    a path over 9,220 rows and 77 labels takes 56 s with them, and 15 s without.
    """
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(internal_api="openblas").limit(limits=1)


class _Problem:
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
        # Units in which the curvature is about 1 along each axis. An axis without any stays as it is.
        unit = np.where(self.is_penalised, self.curvature + penalty, 1.0)
        unit = 1 / np.sqrt(np.maximum(unit, SMALLEST * unit.max()))

        def objective(vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            values = vector * unit
            loss, slopes = self._loss(values)
            return loss + 0.5 * float(strength @ values**2), (slopes + strength * values) * unit

        self.head.eval()  # dropout has no place in a convex problem
        options = {"maxiter": ITERATIONS, "maxfun": 4 * ITERATIONS, "ftol": TOLERANCE, "gtol": SLOPE}
        with _one_blas_thread():
            found = minimize(objective, start / unit, jac=True, method="L-BFGS-B", options=options)
        if not math.isfinite(found.fun):
            text, remedy = f"{found.fun} at penalty {penalty:g}", "check the features and the labels"
            raise TaskHeadsError(Problem("loss", f"found {text}", "finite numbers", remedy))
        values = found.x * unit
        self._set(values)
        return values, float(found.fun) - 0.5 * float(strength @ values**2), int(found.nit)

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
