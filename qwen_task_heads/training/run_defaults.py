"""Defaults of a run, laid over those of trl or transformers.

They differ where the stock ones would fail or mislead: bf16 only where there is a GPU, no gradient
checkpointing for small models, dev metrics every epoch and the best checkpoint kept, and logging steps that
follow the length of the run: with transformers' 500 a short run logs no training loss at all.
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

# Shares of the optimizer steps of a run, which transformers rounds up to a step.
LOG_EVERY = 0.025  # 21 to 40 points of the training loss, or one per step
LOOK_EVERY = 0.1


@dataclass
class RunDefaults:
    """Defaults of a run, laid over those of trl or transformers: `class Config(RunDefaults, Parent)`.

    A subclass names its runs (`RECIPE`, also the key of `backbone_defaults.py`) and what it trains.
    """

    RECIPE: ClassVar[str]
    FOLDER: ClassVar[str | None] = None  # in runs/, where a run names none; that of the recipe if None
    TRAINS: ClassVar[str]
    SAMPLE: ClassVar[str]
    METRICS: ClassVar[tuple[str, ...] | None] = None  # that its evaluation gives; None if data tell

    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the run, new or empty; a numbered one in runs/ if None."},
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Old name of activation_checkpointing."}
    )
    bf16: bool | None = field(default=None, metadata={"help": "bf16 autocast; on where there is a GPU."})
    logging_steps: float | None = field(
        default=None, metadata={"help": "Steps between logged losses; a fortieth of the run if None."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to look at dev: no, steps, epoch."})
    save_strategy: str | None = field(
        default=None, metadata={"help": "When to save: no, steps, epoch, best; as eval_strategy if None."}
    )
    save_steps: float | None = field(
        default=None, metadata={"help": "Steps between checkpoints; with eval_strategy steps its eval_steps."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Newest checkpoints kept, beside the best."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "End with the best checkpoint on dev."}
    )
    packing: bool = field(
        default=True,
        metadata={"help": "Compute real tokens alone, and shared beginnings once; same numbers."},
    )
    freeze_embeddings: bool = field(
        default=False,
        metadata={"help": "Full training: keep the token embeddings, their memory and their time."},
    )

    def __post_init__(self) -> None:
        self.greater_is_better: bool | None
        self.metric_for_best_model: str | None
        if self.output_dir is None:  # transformers would write into ./trainer_output, run over run
            self.output_dir = default_folder(self.FOLDER or self.RECIPE, self.resume_from_checkpoint)  # type: ignore[attr-defined]
        if self.bf16 is None:  # `use_cpu` and `fp16` are fields of the parent
            self.bf16 = torch.cuda.is_available() and not self.use_cpu and not self.fp16  # type: ignore[attr-defined]
        if self.logging_steps is None:
            self.logging_steps = LOG_EVERY
            no_steps = self.eval_steps is None  # type: ignore[has-type]  # a field of the parent
            if self.eval_strategy == "steps" and no_steps:  # transformers would take the logging steps
                self.eval_steps = LOOK_EVERY
        self._resolve_saving()
        if self.greater_is_better is None and prefers_less(self.metric_for_best_model):
            self.greater_is_better = False  # of mse and mae transformers would keep the largest
        super().__post_init__()  # type: ignore[misc]

    def announce(self, task: Any, model: Any) -> None:
        """Print, as the first line of a run, what it trains on what, where to, and how to change that.

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
        """Save where dev is looked at, unless told otherwise; refuse what could not save the best."""
        looks = self.eval_steps or self.logging_steps or LOG_EVERY  # as transformers does
        if self.save_strategy is None:
            self.save_strategy = "epoch" if self.eval_strategy == "no" else self.eval_strategy
        in_steps = self.eval_strategy == self.save_strategy == "steps"
        if self.save_steps is None:
            self.save_steps = looks if in_steps else 500
        names = [one.value for one in SaveStrategy]
        if self.eval_strategy not in names or self.save_strategy not in names:
            return  # transformers names those that there are
        if not self.load_best_model_at_end or self.save_strategy == "best":
            return
        remedy = "drop it, or give --load_best_model_at_end false"
        if self.eval_strategy == "no":
            found, accepted = "found 'no': no checkpoint would be the best on dev", "epoch, steps"
            raise TaskHeadsError(Problem("--eval_strategy", found, accepted, remedy))
        if self.eval_strategy != self.save_strategy:
            found = f"found {str(self.save_strategy)!r} beside --eval_strategy {self.eval_strategy!s}"
            accepted = f"{self.eval_strategy!s}, so that the best on dev is saved"
            raise TaskHeadsError(Problem("--save_strategy", found, accepted, remedy))
        if in_steps and looks > 0 and _odd(self.save_steps, of=looks):
            found = f"found {self.save_steps:g}, and dev is looked at every {looks:g} steps (--eval_steps)"
            accepted = "a multiple of it, so that the best step is saved"
            raise TaskHeadsError(Problem("--save_steps", found, accepted, remedy))


def _odd(saved: float, *, of: float) -> bool:
    """Whether steps of saving are no multiple of those of looking; shares of a run (below 1) are no steps."""
    return (saved < 1) != (of < 1) or abs(saved / of - round(saved / of)) > 1e-6
