"""Defaults of a run that replace those of trl and transformers.

They differ where the original ones fail or mislead. bf16 is on only on a GPU, and gradient checkpointing is
off. Dev metrics are computed every epoch, and the best checkpoint is kept. The logging steps follow the
length of the run: with the 500 of transformers a short run logs no training loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers.trainer_utils import SaveStrategy

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.training.option_checks import prefers_less
from qwen_task_heads.training.run_folders import default_folder

# Shares of the optimizer steps of a run; transformers rounds them up to whole steps.
LOG_EVERY = 0.025  # 21 to 40 points of the training loss, or one per step
EVAL_EVERY = 0.1


@dataclass
class RunDefaults:
    """Defaults that replace those of trl or transformers: `class Config(RunDefaults, Parent)`.

    A subclass sets the name of its runs (`RECIPE`, also the key of `backbone_defaults.py`) and of its model.
    """

    RECIPE: ClassVar[str]
    FOLDER: ClassVar[str | None] = None  # in runs/, if a run names none; RECIPE if None
    TRAINS: ClassVar[str]
    SAMPLE: ClassVar[str]
    METRICS: ClassVar[tuple[str, ...] | None] = None  # of its evaluation; None if they depend on the data

    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the run, new or empty; a numbered one in runs/ if None."},
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Old name of activation_checkpointing."}
    )
    bf16: bool | None = field(default=None, metadata={"help": "bf16 autocast; on a GPU by default."})
    logging_steps: float | None = field(
        default=None, metadata={"help": "Steps between logged losses; a fortieth of the run if None."}
    )
    eval_strategy: str = field(
        default="epoch", metadata={"help": "When to evaluate on dev: no, steps, epoch."}
    )
    save_strategy: str | None = field(
        default=None, metadata={"help": "When to save: no, steps, epoch, best; like eval_strategy if None."}
    )
    save_steps: float | None = field(
        default=None, metadata={"help": "Steps between checkpoints; eval_steps if eval_strategy is steps."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of newest checkpoints to keep, in addition to the best one."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Load the best checkpoint on dev at the end."}
    )
    packing: bool = field(
        default=True,
        metadata={"help": "Compute no padding, and shared prefixes once; the results are the same."},
    )
    freeze_embeddings: bool = field(
        default=False,
        metadata={"help": "Full training: do not train the token embeddings, which saves memory and time."},
    )

    def __post_init__(self) -> None:
        self.greater_is_better: bool | None
        self.metric_for_best_model: str | None
        if self.output_dir is None:  # transformers writes every run into ./trainer_output
            self.output_dir = default_folder(self.FOLDER or self.RECIPE, self.resume_from_checkpoint)  # type: ignore[attr-defined]
        if self.bf16 is None:  # `use_cpu` and `fp16` are fields of the parent
            self.bf16 = torch.cuda.is_available() and not self.use_cpu and not self.fp16  # type: ignore[attr-defined]
        if self.logging_steps is None:
            self.logging_steps = LOG_EVERY
            no_steps = self.eval_steps is None  # type: ignore[has-type]  # a field of the parent
            if self.eval_strategy == "steps" and no_steps:  # transformers uses the logging steps
                self.eval_steps = EVAL_EVERY
        self._resolve_saving()
        if self.greater_is_better is None and prefers_less(self.metric_for_best_model):
            self.greater_is_better = False  # transformers keeps the largest mse and mae
        super().__post_init__()  # type: ignore[misc]

    def announce(self, task: Any, model: Any) -> None:
        """Print model, data and output folder as the first line of a run, and the options that change them.

        Args:
            task: options of the data, with `dataset_name`.
            model: options of the model, with `model_name_or_path`.
        """
        if self.process_index:  # type: ignore[attr-defined]
            return
        name, source = model.model_name_or_path, task.dataset_name
        data = f"the embedded sample ({self.SAMPLE})" if source == EMBEDDED else source
        backbone = "the embedded backbone" if name == EMBEDDED else name
        line = f"Train {self.TRAINS} on {data} with {backbone}; output in {self.output_dir}."
        if EMBEDDED in (name, source):
            line += " Change it by --dataset_name, --model_name_or_path and --output_dir; all options: --help"
        print(line, flush=True)

    def _resolve_saving(self) -> None:
        """Save when dev is evaluated, unless given otherwise; refuse options that cannot save the best."""
        eval_steps = self.eval_steps or self.logging_steps or LOG_EVERY  # as transformers does
        if self.save_strategy is None:
            self.save_strategy = "epoch" if self.eval_strategy == "no" else self.eval_strategy
        in_steps = self.eval_strategy == self.save_strategy == "steps"
        if self.save_steps is None:
            self.save_steps = eval_steps if in_steps else 500
        names = [one.value for one in SaveStrategy]
        if self.eval_strategy not in names or self.save_strategy not in names:
            return  # transformers reports unknown strategies
        if not self.load_best_model_at_end or self.save_strategy == "best":
            return
        fix = "drop it, or give --load_best_model_at_end false"
        if self.eval_strategy == "no":
            problem = "found 'no', with which no checkpoint is the best on dev"
            raise TaskHeadsError(
                Problem("--eval_strategy", problem, "epoch or steps", fix, code="option-conflict")
            )
        if self.eval_strategy != self.save_strategy:
            problem = f"found {str(self.save_strategy)!r} with --eval_strategy {self.eval_strategy!s}"
            expected = f"{self.eval_strategy!s}, so that the best checkpoint is saved"
            raise TaskHeadsError(Problem("--save_strategy", problem, expected, fix, code="option-conflict"))
        if in_steps and eval_steps > 0 and not _is_multiple(self.save_steps, of=eval_steps):
            problem = (
                f"found {self.save_steps:g} with an evaluation every {eval_steps:g} steps (--eval_steps)"
            )
            expected = "a multiple of --eval_steps, so that the best checkpoint is saved"
            raise TaskHeadsError(Problem("--save_steps", problem, expected, fix, code="option-conflict"))


def _is_multiple(saved: float, *, of: float) -> bool:
    """Return whether saving steps are a multiple of evaluation steps; shares (below 1) are not steps."""
    return (saved < 1) == (of < 1) and abs(saved / of - round(saved / of)) <= 1e-6
