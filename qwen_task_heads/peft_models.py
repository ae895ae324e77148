"""PEFT's model around a task head, saved and pushed in the layout of this library.

PEFT writes an `adapter_config.json` that names the base, but neither config nor code of the head. Such a
folder loads as the stock class of the base. After `register`, `get_peft_model` and
`PeftModel.from_pretrained` wrap the models of this library in `TaskHeadPeftModel`; other models are not
affected.
"""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from peft import PeftModelForSequenceClassification
from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

from qwen_task_heads.hubcode.folder_task_heads import is_checkpoint
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.pushing_task_heads import push


class TaskHeadPeftModel(PeftModelForSequenceClassification):
    """A `PeftModel` around a task head, created by `peft.get_peft_model`.

    Example:
        >>> from peft import get_peft_model
        >>> from qwen_task_heads import adapter_config, build
        >>> model = build("embedded")
        >>> type(get_peft_model(model, adapter_config(model))).__name__
        'TaskHeadPeftModel'
    """

    def save_pretrained(
        self,
        save_directory: Any,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the adapter with its head as a folder that loads in one line.

        A checkpoint of a Trainer keeps PEFT's layout, from which the Trainer resumes. Its adapter names no
        base, so that no loader puts it on another class.

        Args:
            save_directory: created if absent.
            is_main_process: whether this process writes.
            safe_serialization, selected_adapters, save_embedding_layers: as in PEFT, for checkpoints. In
                other folders there is one adapter, in safetensors, and embeddings are saved if they were
                trained.
            path_initial_model_for_weight_conversion: as in PEFT, for checkpoints.
            **kwargs: `state_dict`, the tensors collected from sharded training.
        """
        if not is_checkpoint(save_directory):
            if is_main_process:
                self.get_base_model().save_around(self, save_directory, state_dict=kwargs.get("state_dict"))
            return
        super().save_pretrained(
            save_directory,
            safe_serialization=safe_serialization,
            selected_adapters=selected_adapters,
            # "auto" asks the hub whether the base has the same vocabulary
            save_embedding_layers=save_embedding_layers is True,
            is_main_process=is_main_process,
            path_initial_model_for_weight_conversion=path_initial_model_for_weight_conversion,
            **kwargs,
        )
        Path(save_directory, "README.md").unlink(missing_ok=True)  # PEFT's card with placeholders

    def push_to_hub(self, repo_id: str, *, max_shard_size: Any = None, **options: Any) -> CommitInfo:
        """Push the adapter with its head, as `TaskHeadModel.push_to_hub` does; an adapter is one file."""
        return push(self.get_base_model(), self.save_pretrained, repo_id=repo_id, **options)


@wraps(PeftModelForSequenceClassification, updated=())
def _wrap(model: Any, *args: Any, **kwargs: Any) -> PeftModelForSequenceClassification:
    """Wrap a model for `task_type="SEQ_CLS"`; PEFT compares the name of the entry in its table."""
    around = TaskHeadPeftModel if isinstance(model, TaskHeadModel) else PeftModelForSequenceClassification
    return around(model, *args, **kwargs)


def register() -> None:
    """Add `TaskHeadPeftModel` to PEFT's table of classes; a second call has no effect."""
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING["SEQ_CLS"] = _wrap  # type: ignore[assignment]
