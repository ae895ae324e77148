"""Options of publishing that every recipe takes, and what of transformers' own is refused.

`--push_to_hub`, `--hub_model_id`, `--hub_private_repo` and `--hub_revision` are transformers' names and
mean what they mean there, with one difference: only a finished model leaves the machine, after it was
opened again and found equal (`publishing/gate.py`). Trainer's own upload is switched off: it takes the
folder as it is, without config and code, and with `training_args.bin`, which holds the token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers.trainer_utils import HubStrategy

from qwen_task_heads.errors import Problem

FORMS = ("saved", "merged", "stock")
# Strategies of transformers that would publish weights nobody has measured yet.
DURING_TRAINING = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)


@dataclass
class PublishArguments:
    """What the card says that no run can know, and in which form the model goes to its hub."""

    license: str | None = field(
        default=None, metadata={"help": "Licence of the model for its card, as hubs write it: apache-2.0."}
    )
    language: list[str] = field(
        default_factory=list, metadata={"help": "Languages of the texts for the card, such as zh en."}
    )
    dataset_license: str | None = field(default=None, metadata={"help": "Licence of the data for the card."})
    dataset_url: str | None = field(default=None, metadata={"help": "Where the data are from, for the card."})
    dataset_id: str | None = field(
        default=None, metadata={"help": "owner/name of the data on the Hugging Face Hub, if read from files."}
    )
    intended_use: str = field(
        default="", metadata={"help": "What the model is for, in sentences, for the card."}
    )
    citation: str = field(default="", metadata={"help": "BibTeX of the model or its data, for the card."})
    publish_form: str = field(
        default="saved",
        metadata={"help": "saved: as trained; merged: without adapter; stock: transformers' own class."},
    )
    publish_rows: bool = field(
        default=False,
        metadata={"help": "Publish predictions.jsonl and errors.md too: they hold texts of the data."},
    )
    hub_tag: str | None = field(default=None, metadata={"help": "Tag of the published commit."})


def publish_problems(task: PublishArguments, training: Any) -> list[Problem]:
    """Problems of the options of publishing.

    Args:
        task: holds the options above.
        training: `TrainingArguments`; their `push_to_hub` and `hub_*`.
    """
    problems = []
    if task.publish_form not in FORMS:
        accepted = "accepted: " + ", ".join(FORMS)
        problems.append(
            Problem("--publish_form", f"found {task.publish_form!r}", accepted, "choose one of them")
        )
    if training.hub_token is not None:
        # Not quoted: it is a secret, and this message goes to logs.
        remedy = "take it back there, and log in by `hf auth login` or set HF_TOKEN or MODELSCOPE_API_TOKEN"
        problems.append(
            Problem("--hub_token", "found a token", "accepted: none on a command line or in a file", remedy)
        )
    if not training.push_to_hub:
        return problems
    if training.hub_model_id is None:
        problems.append(Problem("--hub_model_id", "found none", "accepted: owner/name of the repo", "add it"))
    if HubStrategy(training.hub_strategy) in DURING_TRAINING:
        accepted = "accepted: end; what is published is the finished model, proven equal"
        problems.append(Problem("--hub_strategy", f"found {training.hub_strategy!s}", accepted, "drop it"))
    return problems
