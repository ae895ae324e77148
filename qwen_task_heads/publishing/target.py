"""Where a run's model goes when it is finished: read from the options, asked of the hub, used at the end.

The hub is asked before training starts (login, name, right to write, what the repo is), and the options are
held against the form that was asked for, because a run of hours that ends in "401" or "found pooling mean"
has told its user too late. What leaves is decided in `hubs.publish`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import PROBLEM_TYPES
from qwen_task_heads.modelscope import HUGGINGFACE
from qwen_task_heads.reports.finishing import python_command
from qwen_task_heads.training.arguments import HeadArguments


@dataclass(frozen=True, kw_only=True)
class PublishTarget:
    """A repo and how to publish to it; the arguments of `publish`.

    Args:
        repo_id: `owner/name`.
        hub: `huggingface` or `modelscope`.
        form: `saved`, `merged` or `stock`.
        private: whether a new repo is private.
        revision: branch; None for the hub's own.
        tag: of the commit, or None.
        rows: publish the files that hold texts of the data.
    """

    repo_id: str
    hub: str = HUGGINGFACE
    form: str = "saved"
    private: bool = True
    revision: str | None = None
    tag: str | None = None
    rows: bool = False

    def push(self, folder: str | Path) -> None:
        """Prove the finished model in `folder` equal, publish it and say where it is.

        Raises:
            TaskHeadsError: why nothing was published; the model in the folder is as it was, and the last
                problem names the command that publishes it.
        """
        from qwen_task_heads.publishing.publish import publish

        try:
            published = publish(folder, **vars(self), say=partial(print, flush=True))
        except TaskHeadsError as error:
            again = Problem(
                str(folder), "found the model finished and saved here, and not published",
                "the reasons above mended", f"then type: {self.command(folder)}",
            )  # fmt: skip
            raise TaskHeadsError([*error.problems, again]) from error
        print("\n".join(["", *published.lines()]), flush=True)

    def command(self, folder: str | Path) -> str:
        """What publishes a finished folder here."""
        words = [python_command(), "recipes/publish.py", "--model", str(folder)]
        words += ["--hub_model_id", self.repo_id, "--hub", self.hub, "--form", self.form]
        words += [] if self.private else ["--public"]
        words += ["--revision", self.revision] if self.revision else []
        words += ["--tag", self.tag] if self.tag else []
        return shlex.join(words + ["--rows"] * self.rows)


# What a stock class computes, by the options that may ask for something else, of one run and of a sweep,
# which may choose any of its values. The trained model is held to the same by `stock.export_stock`.
_STOCK_TAKES = {
    "pooling": ("last",),
    "poolings": ("last",),
    "head": ("linear",),
    "heads": ("linear",),
    "bidirectional": (False,),
    "truncation": ("head", "tail"),
    "problem_type": tuple(kind for kind in PROBLEM_TYPES if kind != "ordinal"),
}


def _not_stock(task: Any) -> list[Problem]:
    """Why a model trained with these options will not go into a stock class; what was not given fits.

    A saved model that is trained further may still have such a head: that is found at the end.
    """
    remedy = "give --publish_form saved, or choose one of them"
    if not isinstance(task, HeadArguments):
        found, accepted = "found 'stock' of a model that writes labels", "saved, merged"
        remedy = "drop it: what such a run saves is a class of transformers already"
        return [Problem("--publish_form", found, accepted, remedy)]
    options = vars(task)  # a recipe has some of these
    problems = []
    for name, takes in _STOCK_TAKES.items():
        given = options.get(name)
        values = given if isinstance(given, list) else [given]
        problems += [
            Problem(f"--{name}", f"found {value!r}", f"{_listed(takes)} in a stock class", remedy)
            for value in values
            if value is not None and value not in takes
        ]
    if len(options.get("head_layers") or []) > 1:
        found, accepted = f"found {options['head_layers']}", "one layer in a stock class"
        problems.append(Problem("--head_layers", found, accepted, "give --publish_form saved, or drop it"))
    return problems


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(str(value).lower() for value in values)


def publish_target_of(task: Any, training: Any, model: Any) -> PublishTarget | None:
    """Take up the options of publishing and ask the hub; None where nothing is to be published.

    Trainer's own upload is switched off, also where this gives None: see `PublishArguments`.

    Args:
        task: a `PublishArguments` with `hub`.
        training: `TrainingArguments`; `push_to_hub` is set to False.
        model: `ModelConfig`; names the base, and whether the model is an adapter.

    Raises:
        TaskHeadsError: a repo that this login cannot write or that is not as asked for, a model that nobody
            else could open, or one that the form cannot hold.
    """
    from qwen_task_heads.publishing.formats import STOCK
    from qwen_task_heads.publishing.publish import HUBS, check_publishable

    if not training.push_to_hub:
        return None
    training.push_to_hub = False
    found = PublishTarget(
        repo_id=training.hub_model_id,
        hub=task.hub,
        form=task.publish_form,
        private=training.hub_private_repo is not False,
        revision=training.hub_revision,
        tag=task.hub_tag,
        rows=task.publish_rows,
    )
    if training.process_index == 0:
        if found.form == STOCK and (problems := _not_stock(task)):
            raise TaskHeadsError(problems)
        options = vars(task)  # a recipe has some of these
        is_adapter = model.use_peft or options.get("freeze_backbone") or options.get("save_as") == "adapter"
        check_publishable(model.model_name_or_path, adapter=bool(is_adapter) and found.form == "saved")
        HUBS[found.hub]().check(found.repo_id, private=found.private, revision=found.revision, tag=found.tag)
    return found
