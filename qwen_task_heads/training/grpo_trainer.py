"""`TitleGeneratorTrainer`: trl's GRPOTrainer, whose folders can be published without changes.

Trainer writes `training_args.bin`, a pickle that contains `hub_token` in plain text, into every folder that
it saves. trl writes the draft of a card before each checkpoint. This trainer removes the pickle, which
resuming does not need, and writes the card of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl import GRPOTrainer

from qwen_task_heads.hubcode.hashes_task_heads import CARD
from qwen_task_heads.training.hub_saving import WithoutTrainingArgs


class TitleGeneratorTrainer(WithoutTrainingArgs, GRPOTrainer):
    """trl's `GRPOTrainer` without `training_args.bin`, with the card of the recipe.

    Args:
        *args: of `GRPOTrainer`.
        card: returns the card as Markdown, from `log_history` and `steps` of the run so far.
        **options: of `GRPOTrainer`.
    """

    def __init__(self, *args: Any, card: Callable[..., str], **options: Any) -> None:
        self._card = card
        super().__init__(*args, **options)

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Write the card of the run so far instead of trl's draft; the arguments are not used."""
        if self.is_world_process_zero():
            text = self._card(log_history=self.state.log_history, steps=self.state.global_step)
            Path(self.args.output_dir, CARD).write_text(text, encoding="utf-8")
