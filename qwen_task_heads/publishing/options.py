"""Options of `recipes/publish.py`, as a dataclass for trl's `TrlParser`."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.inference.arguments import CommandLineOptions
from qwen_task_heads.reports.card_facts import STATED, CardFacts
from qwen_task_heads.training.publish_arguments import EXPORT_FORMATS, CardArguments


@dataclass(kw_only=True)
class PublishOptions(CommandLineOptions, CardArguments):
    """Options of publishing a finished run; none accepts a token.

    Example:
        >>> from qwen_task_heads import PublishOptions
        >>> words = ["--model", "runs/news", "--hub_model_id", "me/news", "--license", "mit"]
        >>> options = PublishOptions.from_command_line(words)
        >>> options.form, options.public, options.card_facts().license
        ('saved', False, 'mit')
    """

    model: str = field(metadata={"help": "Folder of a finished run."})
    hub_model_id: str = field(metadata={"help": "owner/name of the repo; created if it does not exist."})
    hub: str = field(default=HUGGINGFACE, metadata={"help": "Hub to publish to.", "choices": list(HUBS)})
    form: str = field(
        default="saved",
        metadata={
            "help": "As trained, merged, a class of transformers, or a GGUF file for llama.cpp.",
            "choices": EXPORT_FORMATS,
        },
    )
    public: bool = field(default=False, metadata={"help": "Make a new repo public."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch; the main branch of the hub if None."}
    )
    tag: str | None = field(default=None, metadata={"help": "Tag of the published commit."})
    message: str | None = field(default=None, metadata={"help": "Commit message."})
    rows: bool = field(
        default=False,
        metadata={"help": "Publish predictions.jsonl and errors.md, which contain texts of the data."},
    )
    onnx: bool = field(default=False, metadata={"help": "Add onnx/model.onnx."})
    int8: bool = field(
        default=False,
        metadata={"help": "Add onnx/model_int8.onnx too, with its agreement with the model."},
    )
    replace: bool = field(
        default=False, metadata={"help": "Allow to replace a model of another task in the repo."}
    )
    dry_run: str | None = field(
        default=None, metadata={"help": "Stage and verify in this folder, and publish nothing."}
    )

    def card_facts(self) -> CardFacts:
        """Return the facts that the options state for the published card."""
        return CardFacts(**{name: value for name, value in vars(self).items() if name in STATED and value})
