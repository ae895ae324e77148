"""Callbacks and checks that stop a run or warn: non-finite numbers, swapped labels, missing processes.

Trainer hides each of these. It logs a NaN loss as the average of the others (`logging_nan_inf_filter`),
clipping then makes every gradient NaN, and the run ends with exit code 0. A file with chosen and rejected
exchanged trains without a warning. `accelerate launch --cpu --num_processes 2` starts one process. The checks
are plain methods and functions, so that a trainer subclass, a callback or a test can call them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.metrics.ranking import wilson_interval

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.get_logger(__name__)

ROWS_SHOWN = 10  # sources named in one message


class NonFiniteGuard(TrainerCallback):
    """Stop at the step whose loss, scores or gradients are NaN or infinite, before the weights change.

    Callbacks have no access to batch and loss. The trainer therefore calls `check_finite` in `compute_loss`
    and adds the guard to its callbacks, which checks the accumulated gradients before the optimizer step.
    Under several processes the one with the problem raises, and the launcher ends the others.

    Example:
        >>> guard = NonFiniteGuard()
        >>> guard.check_finite(torch.tensor(0.7), scores=torch.zeros(2, 1), sources=["train.jsonl:1"], step=1)
    """

    def __init__(self) -> None:
        self._sources: list[str] = []  # rows of the batches accumulated since the last optimizer step

    def check_finite(
        self, loss: torch.Tensor, *, scores: torch.Tensor, sources: Sequence[str], step: int
    ) -> None:
        """Raise if the loss or a score is not finite. Call it before the backward pass.

        Args:
            loss: scalar, or losses of the rows (B,), which identify the row of a bad margin or weight.
            scores: any shape whose first dimension is a multiple of B, such as (B, C), or (2B, 1) with the
                chosen half first.
            sources: file and line of each of the B rows, `train.jsonl:17`.
            step: the current optimizer step, counted from 1 (`state.global_step + 1`).

        Raises:
            TaskHeadsError: names the affected rows, or all rows of the batch if only the mean is not finite.
        """
        self._sources.extend(sources)
        loss, scores = loss.detach(), scores.detach()
        # One reduction to one number, so that a GPU waits for the host once per batch.
        if bool(torch.isfinite(loss).all() & torch.isfinite(scores).all()):
            return
        rows = torch.zeros(len(sources), dtype=torch.bool)
        if sources and scores.dim() > 0 and len(scores) % len(sources) == 0:
            finite = torch.isfinite(scores).reshape(len(scores), -1).all(1).cpu()
            rows |= ~finite.view(-1, len(sources)).all(0)  # (halves, B) → (B,)
        if loss.dim() == 1 and len(loss) == len(sources):
            rows |= ~torch.isfinite(loss).cpu()
        named = [source for source, is_bad in zip(sources, rows.tolist(), strict=True) if is_bad]
        name, value = ("the loss", loss) if bool(torch.isfinite(scores).all()) else ("a score", scores)
        where = _name_rows(named or list(sources))
        problem = f"{name} is {_describe(value)} at step {step}, which was not applied"
        fix = "check the margins and weights of these rows; if they are correct, lower --learning_rate"
        raise TaskHeadsError(Problem(where, problem, "finite numbers", fix, code="number-not-finite"))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Clear the rows of the previous step."""
        self._sources.clear()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """Check the gradients of the step after clipping, which spreads one bad gradient to all."""
        # Overflows are normal with fp16: the gradient scaler skips the step and lowers its scale.
        if model is None or args.fp16:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not gradients or bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
            return
        where = _name_rows(self._sources)
        problem = f"the gradient is not finite at step {state.global_step + 1}, which was not applied"
        fix = "lower --learning_rate, or train in fp32 or bf16; resume from the last checkpoint"
        raise TaskHeadsError(Problem(where, problem, "finite numbers", fix, code="number-not-finite"))


class SwappedLabelsCallback(TrainerCallback):
    """Warn if chosen and rejected look exchanged in the training file.

    An evaluation warns if the upper end of the 95% Wilson interval of the accuracy is below one half: the
    model then ranks the dev pairs in reverse. Pairs of one group (an experiment) are not independent, so the
    interval counts groups if they are known. A later evaluation that is not below one half withdraws the
    warning.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.

    Args:
        pairs: number of dev pairs.
        groups: number of independent groups of these pairs; None counts each pair as a group.

    Attributes:
        finding: the warning for the report of the run, or None.
        step: optimizer step of the first warning, or None.

    Example:
        >>> callback = SwappedLabelsCallback(pairs=466, groups=300)
        >>> callback.finding is None
        True
    """

    def __init__(self, pairs: int, *, groups: int | None = None) -> None:
        self.count = pairs if groups is None else groups
        self.finding: str | None = None
        self.step: int | None = None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Check one evaluation; evaluations before the first step do not depend on the training file."""
        accuracy = (metrics or {}).get("eval_accuracy")
        if accuracy is None or state.global_step == 0:
            return
        low, high = wilson_interval(accuracy, count=self.count)
        if high >= 0.5:
            if self.finding is not None:
                logger.warning(f"step {state.global_step}: the dev pairs are no longer ranked in reverse")
            self.finding = self.step = None
            return
        problem = Problem(
            f"eval_accuracy at step {state.global_step}",
            f"{accuracy:.3f} (95% {low:.3f} to {high:.3f}, n = {self.count}): the model ranks the dev pairs "
            "in reverse; chosen and rejected look swapped in the training file",
            "training and dev pairs in which chosen is the preferred title",
            "compare a few rows of both files and exchange the two columns in the wrong one",
            code="pairs-swapped",
        )
        if self.finding is None:
            self.step = state.global_step
            if state.is_world_process_zero:
                logger.warning(str(problem))
        self.finding = str(problem)


def check_world(asked: int | None, *, running: int, environment: Mapping[str, str] | None = None) -> None:
    """Refuse to train with another number of processes than requested.

    Args:
        asked: number of processes of the option of the recipe; None checks only the launcher's variables.
        running: number of processes of the run (`TrainingArguments.world_size`).
        environment: variables set by the launcher; None reads those of this process.

    Raises:
        TaskHeadsError: names a command that starts the requested number of processes.

    Example:
        >>> check_world(1, running=1, environment={})
    """
    environment = os.environ if environment is None else environment
    mismatches = []
    if asked is not None and asked != running:
        mismatches.append((f"{running} running, but {asked} requested", "the requested number of processes"))
    declared = environment.get("WORLD_SIZE", "")
    if declared.isdecimal() and int(declared) != running:
        problem = f"{running} in the group, but the launcher started {declared} (WORLD_SIZE)"
        mismatches.append((problem, "one group of all processes"))
    # accelerate's one-process launcher sets a MASTER_PORT only if several processes are requested, and starts
    # one nevertheless (accelerate 1.15, `prepare_simple_launcher_cmd_env`).
    lost = "ACCELERATE_USE_CPU" in environment and "MASTER_PORT" in environment and not declared
    if lost and asked is None:
        problem = "accelerate launch was given several processes and started one"
        mismatches.append((problem, "a launcher that starts all processes"))
    wanted = asked or 2
    fix = (
        f"on GPUs: accelerate launch --multi_gpu --num_processes {wanted} --num_machines 1 "
        "--mixed_precision no --dynamo_backend no RECIPE; "
        f"on CPUs: torchrun --nproc_per_node {wanted} RECIPE --use_cpu true"
    )
    if mismatches:
        raise TaskHeadsError(
            [
                Problem("processes", problem, expected, fix, code="processes-differ")
                for problem, expected in mismatches
            ]
        )


def name_sources(rows: torch.Tensor, sources: Sequence[str]) -> list[str]:
    """Return the file and line of the rows (B,) of a batch; `row 7` for rows without a source."""
    return [sources[row] if row < len(sources) else f"row {row}" for row in rows.tolist()]


def _name_rows(sources: Sequence[str]) -> str:
    if not sources:
        return "training batch"
    more = f" and {len(sources) - ROWS_SHOWN} more" if len(sources) > ROWS_SHOWN else ""
    return ", ".join(sources[:ROWS_SHOWN]) + more


def _describe(values: torch.Tensor) -> str:
    return "nan" if bool(torch.isnan(values).any()) else "infinite"
