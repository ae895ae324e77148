"""Exact updates: each update is the mean over its rows, for both trainers.

transformers' Trainer averages the means of the accumulated batches and of the processes. A short last batch
then has the weight of a full one, and the result depends on how rows are divided into batches.
"""

from __future__ import annotations

from typing import Any

import torch

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.losses.rows import reduce


def set_up(model: Any, args: Any) -> None:
    """Apply the options `packing` and `freeze_embeddings` of a run to a model.

    Args:
        model: of this library, or a `PeftModel` around one.
        args: `TrainingArguments`; without these options, the model is not changed.
    """
    from peft import PeftModel

    model = model.get_base_model() if isinstance(model, PeftModel) else model
    options = vars(args)
    if options.get("packing") is False:
        model.packing = False
    if options.get("freeze_embeddings"):
        model.get_input_embeddings().requires_grad_(False)


class ExactUpdates:
    """Mixin of a Trainer whose `compute_loss` returns `mean_of_update`.

    On several processes, training after a separate evaluation is refused.
    """

    # The result of `compute_loss` is to be divided by the number of accumulated batches.
    loss_is_scaled_for_ga = False
    _is_left_unwrapped = False

    # Attributes of the Trainer.
    args: Any
    accelerator: Any
    model: Any
    model_wrapped: Any
    is_in_train: bool
    current_gradient_accumulation_steps: int

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train like the parent.

        Raises:
            TaskHeadsError: an evaluation ran before, on several processes. The parent then treats the
                unwrapped model as prepared, and every process silently trains its own copy.
        """
        if self._is_left_unwrapped:
            problem = f"found an evaluation before training, on {self.args.world_size} processes"
            fix = "use --eval_on_start true, or a new trainer"
            raise TaskHeadsError(Problem("train", problem, "training first", fix, code="processes-differ"))
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate like the parent, and record an evaluation outside of training on several processes."""
        if self.args.world_size > 1 and self.model_wrapped is self.model:
            self._is_left_unwrapped = not self.is_in_train
        return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the batches of one update, and their number of rows on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        count = sum(map(self.rows_in, batches))
        return batches, self.accelerator.reduce(torch.tensor(count, device=device), reduction="sum")

    def rows_in(self, batch: dict[str, Any]) -> int:
        """Return the number of rows of a batch of the collator; each row has one loss."""
        return len(batch["row"] if "row" in batch else batch["input_ids"])

    def mean_of_update(self, losses: torch.Tensor, rows_of_update: torch.Tensor | None) -> torch.Tensor:
        """Return the contribution of a batch to the mean over all rows of its update.

        Args:
            losses: (B,) one per row.
            rows_of_update: number of rows of all accumulated batches on all processes; None in evaluation,
                where the mean of the batch is returned.
        """
        if rows_of_update is None or not self.model.training:
            return reduce(losses)
        # Processes average their gradients, and the parent divides by the number of batches.
        batches = self.accelerator.num_processes * self.current_gradient_accumulation_steps
        return losses.sum() * batches / rows_of_update
