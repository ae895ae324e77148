"""An update is the mean over its rows: what both trainers change in transformers' Trainer.

The parent takes the mean of the means of the accumulated batches, and of the processes' means, in which a
short last batch counts as much as a full one. So the result would hang on how rows are cut into batches.
"""

from __future__ import annotations

from typing import Any

import torch

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.training.pair_losses import reduce


def set_up(model: Any, args: Any) -> None:
    """Do to a model what the options `packing` and `freeze_embeddings` of a run say; others say neither.

    Args:
        model: of this library, or a `PeftModel` around one.
        args: the `TrainingArguments`.
    """
    from peft import PeftModel

    model = model.get_base_model() if isinstance(model, PeftModel) else model
    options = vars(args)
    if options.get("packing") is False:
        model.packing = False
    if options.get("freeze_embeddings"):
        model.get_input_embeddings().requires_grad_(False)


class ExactUpdates:
    """Mixed into a Trainer whose `compute_loss` ends in `mean_of_update`.

    On several processes, training after an evaluation of its own is refused.
    """

    # What `compute_loss` returns is to be divided by the number of accumulated batches.
    loss_is_scaled_for_ga = False
    _is_left_unwrapped = False

    # Of the Trainer it is mixed into.
    args: Any
    accelerator: Any
    model: Any
    model_wrapped: Any
    is_in_train: bool
    current_gradient_accumulation_steps: int

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as the parent does.

        Raises:
            TaskHeadsError: on several processes, after an evaluation: the parent has then noted the bare
                model as prepared, and every process would train its own, without a word.
        """
        if self._is_left_unwrapped:
            found = f"found an evaluation before it, on {self.args.world_size} processes"
            remedy = "use --eval_on_start true, or a new trainer"
            raise TaskHeadsError(Problem("train", found, "training first", remedy))
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent, remembering an evaluation outside of training on several processes."""
        if self.args.world_size > 1 and self.model_wrapped is self.model:
            self._is_left_unwrapped = not self.is_in_train
        return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Give the batches of one update, and how many rows they have on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        count = sum(map(self.rows_in, batches))
        return batches, self.accelerator.reduce(torch.tensor(count, device=device), reduction="sum")

    def rows_in(self, batch: dict[str, Any]) -> int:
        """How many rows, each with one loss, a batch of the collator has."""
        return len(batch["row"] if "row" in batch else batch["input_ids"])

    def mean_of_update(self, losses: torch.Tensor, rows_of_update: torch.Tensor | None) -> torch.Tensor:
        """The part of a batch in the mean over all rows of its update; the mean of the batch outside of one.

        Args:
            losses: (B,) one per row.
            rows_of_update: of all accumulated batches on all processes; None in evaluation.
        """
        if rows_of_update is None or not self.model.training:
            return reduce(losses)
        # Processes average their gradients, and the parent divides by the number of batches.
        batches = self.accelerator.num_processes * self.current_gradient_accumulation_steps
        return losses.sum() * batches / rows_of_update
