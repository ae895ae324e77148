"""Publish target of a run: read from the options, checked before training, used at the end.

Before training starts, the hub is checked (login, repo name, write permission, state of the repo) and the
options are compared with the export format. Otherwise a run of hours could fail at its last step. The
published files are chosen in `publishing.staging`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import PROBLEM_TYPES
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.hubs import HUGGINGFACE, hub_named
from qwen_task_heads.reports.finishing import python_command
from qwen_task_heads.training.arguments import HeadArguments


@dataclass(frozen=True, kw_only=True)
class PublishTarget:
    """A repo and the options of publishing to it; the fields are arguments of `publish`.

    Args:
        repo_id: `owner/name`.
        hub: a name in `hubs.HUBS`.
        form: export format: `saved`, `merged`, `stock` or `gguf`.
        private: whether a new repo is private.
        revision: branch; None for the default branch of the hub.
        tag: tag of the commit, or None.
        rows: publish the files with texts of the data.
    """

    repo_id: str
    hub: str = HUGGINGFACE
    form: str = "saved"
    private: bool = True
    revision: str | None = None
    tag: str | None = None
    rows: bool = False

    def check_model(self, model: Any) -> None:
        """Raise before training for a model that the export format does not support.

        Args:
            model: as built for training, without an adapter.

        Raises:
            TaskHeadsError: a GGUF file cannot have this model, or the package `gguf` is not installed.
        """
        from qwen_task_heads.export.gguf import gguf_problems
        from qwen_task_heads.gguf_weights import require_gguf

        if self.form == "gguf":
            require_gguf("--publish_form gguf")
            if problems := gguf_problems(model, fix="give --publish_form saved"):
                raise TaskHeadsError(problems)

    def push(self, folder: str | Path) -> None:
        """Verify and publish the finished model in `folder`, and print its URL.

        Raises:
            TaskHeadsError: nothing was published. The folder is not changed, and the last problem names the
                command that publishes it.
        """
        from qwen_task_heads.publishing.publish import publish

        try:
            published = publish(folder, **vars(self), log=partial(print, flush=True))
        except TaskHeadsError as error:
            retry = Problem(
                str(folder),
                "the model was saved here but not published",
                "a run without the problems above",
                f"correct them, then type: {self.command(folder)}",
                code=error.problems[0].code,
            )
            raise TaskHeadsError([*error.problems, retry]) from error
        print("\n".join(["", *published.messages()]), flush=True)

    def command(self, folder: str | Path) -> str:
        """Return the command that publishes a finished folder to this target."""
        words = [python_command(), "recipes/publish.py", "--model", str(folder)]
        words += ["--hub_model_id", self.repo_id, "--hub", self.hub, "--form", self.form]
        words += [] if self.private else ["--public"]
        words += ["--revision", self.revision] if self.revision else []
        words += ["--tag", self.tag] if self.tag else []
        return shlex.join(words + ["--rows"] * self.rows)


# Values that a stock class and llama.cpp support, by option. A sweep may choose any of its values, so all are
# checked. The export checks the trained model itself.
_STOCK_VALUES = {
    "pooling": ("last",),
    "poolings": ("last",),
    "head": ("linear",),
    "heads": ("linear",),
    "bidirectional": (False,),
    "truncation": ("head", "tail"),
    "problem_type": tuple(kind for kind in PROBLEM_TYPES if kind not in ("ordinal", QUESTIONS)),
}


def _stock_problems(task: Any, *, form: str) -> list[Problem]:
    """Return the options that a stock class or a GGUF file does not support, among those that are given.

    A saved model that is trained further may still have such a head: the export checks that.
    """
    code = "option-unsupported"
    if not isinstance(task, HeadArguments):
        problem = f"found {form!r} for a generative classifier, which is a class of transformers already"
        return [Problem("--publish_form", problem, "saved, merged", "drop it", code=code)]
    options = vars(task)  # a recipe has a subset of these options
    place = "a GGUF file" if form == "gguf" else "a stock class"
    problems = []
    for name, supported in _STOCK_VALUES.items():
        given = options.get(name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value not in supported:
                expected = f"{', '.join(str(one).lower() for one in supported)} in {place}"
                fix = "give --publish_form saved, or choose one of them"
                problems.append(Problem(f"--{name}", f"found {value!r}", expected, fix, code=code))
    if len(layers := options.get("head_layers") or []) > 1:
        fix = "give --publish_form saved, or drop it"
        problems.append(Problem("--head_layers", f"found {layers}", f"one layer in {place}", fix, code=code))
    return problems


def publish_target_of(task: Any, training: Any, model: Any) -> PublishTarget | None:
    """Read the publish options and check the hub; None if nothing is to be published.

    The upload of `Trainer` is switched off, also if this returns None; see `PublishArguments`.

    Args:
        task: a `PublishArguments` with `hub`.
        training: `TrainingArguments`; `push_to_hub` is set to False.
        model: `ModelConfig`; names the base, and whether the model is an adapter.

    Raises:
        TaskHeadsError: a repo without write permission or of another visibility, an adapter on a local base,
            or a model that the export format does not support.
    """
    from qwen_task_heads.publishing.formats import GGUF, STOCK, refuse_local_base
    from qwen_task_heads.publishing.upload import check_repo

    if not training.push_to_hub:
        return None
    training.push_to_hub = False
    target = PublishTarget(
        repo_id=training.hub_model_id,
        hub=task.hub,
        form=task.publish_form,
        private=training.hub_private_repo is not False,
        revision=training.hub_revision,
        tag=task.hub_tag,
        rows=task.publish_rows,
    )
    if training.process_index == 0:
        if target.form in (STOCK, GGUF) and (problems := _stock_problems(task, form=target.form)):
            raise TaskHeadsError(problems)
        options = vars(task)  # a recipe has a subset of these options
        is_adapter = model.use_peft or options.get("freeze_backbone") or options.get("save_as") == "adapter"
        if is_adapter and target.form == "saved":
            refuse_local_base("--push_to_hub", model.model_name_or_path)
        hub = hub_named(target.hub)()
        check_repo(hub, target.repo_id, private=target.private, revision=target.revision, tag=target.tag)
    return target
