"""`Loss` and `LossOption`: the rows of `losses.registry.LOSSES`, and checks of the tensors that losses share.

A row is below its function, in `pairs`, `groups` or `texts`. Options, help, checks,
documentation and tests read the rows, so that a new loss is one function and one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten


@dataclass(frozen=True, kw_only=True)
class LossOption:
    """An option of one or several losses, and the option of the command line that sets it.

    Args:
        name: in `loss_options` of the trainers.
        field: in the arguments of the recipes.
        help: one sentence; the losses that take it are added.
        parameter: argument of the function; the name if "".
        default: value of the functions if it is not given.
        per_label: True for `balanced` or a number per label; else it is one number.
        minimum: least number.
        above: numbers are greater than this.
        below: numbers are less than this.
        is_inherited: True if the arguments of transformers have the field already.
    """

    name: str
    field: str
    help: str
    parameter: str = ""
    default: float | None = None
    per_label: bool = False
    minimum: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    is_inherited: bool = False

    @property
    def argument(self) -> str:
        """Argument of the function that the option sets."""
        return self.parameter or self.name

    @property
    def flag(self) -> str:
        """Option of the command line, with its dashes."""
        return f"--{self.field}"

    def problems(self, value: Any) -> list[Problem]:
        """Return the problem of a value that is not a finite number within the bounds, if any.

        Example:
            >>> from qwen_task_heads.losses.pairs import NU
            >>> NU.problems(0.5), NU.problems(0.0)[0].expected
            ([], 'a number above 0')
        """
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and math.isfinite(value) and self.minimum <= value < self.below and value > self.above:
            return []
        limits = [
            f" of {self.minimum:g} or more" * math.isfinite(self.minimum),
            f" above {self.above:g}" * math.isfinite(self.above),
            f", less than {self.below:g}" * math.isfinite(self.below),
        ]
        code = "option-range" if is_number else "option-value"
        expected = f"a number{''.join(limits)}"
        return [Problem(self.flag, f"found {shorten(value)}", expected, "drop it", code=code)]


@dataclass(frozen=True)
class Loss:
    """A row of `LOSSES`: a function that returns one loss per row or group, and what it takes.

    Args:
        name: in recipes and configs.
        problem_type: of a classifier; `pairs` or `groups` for titles.
        function: `(chosen, rejected, **inputs) -> (B,)` for pairs, `(scores, **inputs) -> (G,)` for groups,
            `(logits, labels, **inputs) -> (B,)` for classifiers.
        formula: one line, for cards.
        source: paper or upstream code.
        paper: key of its entry in `model_cards/references.bib`; "" for none.
        uses: columns of the batch that the function takes.
        needs: columns of which the data must have at least one; empty if the loss needs none.
        options: options that the function takes.
        needs_counts: True if the function takes `class_counts`, the training rows with each label.
        needs_sizes: True if the function takes `sizes`, the number of outputs of each question.
    """

    name: str
    problem_type: str
    function: Callable[..., Tensor]
    formula: str
    source: str
    _: KW_ONLY
    paper: str = ""
    uses: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    options: tuple[LossOption, ...] = ()
    needs_counts: bool = False
    needs_sizes: bool = False

    def takes(self, option: str) -> bool:
        """Return whether the loss has an option of this name."""
        return any(one.name == option for one in self.options)

    def check(self, columns: Iterable[str], *, where: str = "--loss") -> None:
        """Validate, before training, that the data has the columns that this loss needs.

        Raises:
            TaskHeadsError: the columns contain none of `needs`.
        """
        present = set(columns)
        if self.needs and not present.intersection(self.needs):
            problem = f"found loss {self.name!r} with columns {', '.join(sorted(present)) or 'none'}"
            expected = f"a column {' or '.join(self.needs)} in every row"
            fix = "add the column to the data, or choose bradley_terry, which needs none"
            raise TaskHeadsError(Problem(where, problem, expected, fix, code="column-missing"))

    def inputs(
        self, options: Mapping[str, float], columns: Mapping[str, Tensor], *, like: Tensor
    ) -> dict[str, Any]:
        """Return the inputs of a batch: options, and the columns that the loss uses.

        Args:
            options: of the run; an option with the name of a column becomes a constant column.
            columns: of the batch, each (B,).
            like: (B,), for shape, dtype and device of constant columns.
        """
        given = {
            name: torch.full_like(like, value) if name in self.uses else value
            for name, value in options.items()
        }
        return given | {name: columns[name] for name in self.uses if name in columns}

    def __call__(self, *scores: Tensor, **inputs: Any) -> Tensor:
        """Return the losses; inputs that are None count as absent.

        Raises:
            TaskHeadsError: a required column is missing, or the loss does not use an input.
        """
        given = {key: value for key, value in inputs.items() if value is not None}
        self.check(given, where=f"loss {self.name!r}")
        known = (*self.uses, *(option.argument for option in self.options))
        # An input that is ignored without an error would train another loss than the one configured.
        if unknown := [key for key in given if key not in known]:
            expected = ", ".join(known) or "no further input"
            fix, where = "leave it out, or choose a loss that uses it", f"loss {self.name!r}"
            problem = f"found input {', '.join(unknown)}"
            raise TaskHeadsError(Problem(where, problem, expected, fix, code="argument-type"))
        return self.function(*scores, **given)


def at_least_fp32(*tensors: Tensor) -> torch.dtype:
    """Return the dtype of a loss of these tensors: fp32, or fp64 if one of them has it."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def as_column(values: Tensor, like: Tensor, name: str) -> Tensor:
    """Return a column of the batch with the dtype and device of `like`, whose shape it must have."""
    if values.shape != like.shape:
        raise shape_error(name, like.shape, values.shape)
    return values.to(like)


def shape_error(name: str, first: torch.Size, second: torch.Size) -> TaskHeadsError:
    """Build the error for two inputs that should have one shape `(B,)`; the caller raises it."""
    problem = f"found shapes {tuple(first)} and {tuple(second)}"
    expected, fix = "two tensors of one shape (B,)", "squeeze the last dimension of the logits"
    return TaskHeadsError(Problem(f"loss input {name!r}", problem, expected, fix, code="argument-type"))


def nan_of(values: Tensor) -> Tensor:
    """Return zero, or NaN if a value is not finite, which comparisons alone would treat as a tie."""
    return (0.0 * values).sum()


def reduce(losses: Tensor) -> Tensor:
    """Return the mean over the rows of losses (B,), weighted or not, a scalar.

    The divisor is the number of rows, not the sum of the weights. Gradient accumulation and several processes
    then give the same gradient as one large batch. Keep the mean weight of a data set near 1.

    Raises:
        TaskHeadsError: no rows.
    """
    if losses.ndim != 1 or losses.numel() == 0:
        problem = f"found losses of shape {tuple(losses.shape)}"
        expected = "shape (B,) with B of 1 or more"
        raise TaskHeadsError(Problem("reduce", problem, expected, "drop empty batches", code="argument-type"))
    return losses.mean()
