"""Push a saved folder for `model.push_to_hub`, `trainer.push_to_hub` and related methods.

`publishing.publish` does the work, with the same checks, the same files and one commit. As in transformers, a
new repo has the hub's default visibility, and a token can be passed.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils import logging

from qwen_task_heads.errors import TaskHeadsError, error_at
from qwen_task_heads.hubcode.folder_task_heads import REFERENCE
from qwen_task_heads.hubs import HUBS, HUGGINGFACE, Hub
from qwen_task_heads.publishing.formats import refuse_local_base
from qwen_task_heads.publishing.publish import publish
from qwen_task_heads.publishing.upload import check_repo, check_task, full_name
from qwen_task_heads.reports.records import keep_reference
from qwen_task_heads.verification.reference import take_reference

logger = logging.get_logger(__name__)


def hub_of_process() -> type[Hub]:
    """Return the hub that huggingface_hub's functions reach: ModelScope inside its `patch_hub`."""
    return next((hub for hub in HUBS.values() if hub.is_patched()), HUBS[HUGGINGFACE])


def check_push(model: Any, *, repo_id: str, token: bool | str | None, private: bool | None) -> str:
    """Check, before training, whether a push after it would succeed; return `owner/name`.

    Args:
        model: a model with a task head, or a `PeftModel` around one.
        repo_id: `owner/name`, or a name without owner for a repo of the user.
        token: token of the hub; None for that of the login.
        private: visibility of a new repo; None for the hub's default.

    Raises:
        TaskHeadsError: no login, no write permission, a repo of another visibility or with another model,
            or an adapter of a local base.
    """
    from peft import PeftModel

    hub = hub_of_process()(token=token)
    repo_id = full_name(hub, repo_id)
    check_repo(hub, repo_id, private=private)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if inner is not model and not inner.on_plain_base:
        raise error_at(
            "push_to_hub",
            "found an adapter on a model that is trained already",
            "an adapter on a plain backbone",
            "train in full, or start from the backbone",
            code="option-unsupported",
        )
    if inner is not model:
        refuse_local_base("push_to_hub", inner.config.backbone_name_or_path)
    with tempfile.TemporaryDirectory(prefix="check-") as folder:
        inner.config.save_pretrained(folder)
        check_task(hub, folder, repo_id=repo_id)
    return repo_id


def push_folder(
    folder: str | Path,
    *,
    repo_id: str,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    trained: Any = None,
    tokenizer: Any = None,
) -> Any:
    """Push a saved folder; verify it first if the trained model or its reference is available.

    Inside ModelScope's `patch_hub` or `patch_context` the repo is on ModelScope.

    Args:
        folder: as `save_pretrained` writes it.
        repo_id: `owner/name`, or a name without owner for a repo of the user.
        commit_message, private, token, revision, create_pr: as in `transformers.PreTrainedModel.push_to_hub`.
        commit_description: added to the message.
        trained: the model that was saved, if it is in memory.
        tokenizer: the tokenizer of `trained`.

    Returns:
        The `CommitInfo` of the hub's library.

    Raises:
        TaskHeadsError: see `publish`; nothing was uploaded.
    """
    hub = hub_of_process()(token=token)
    repo_id = full_name(hub, repo_id)
    if trained is not None:
        template = trained.config.to_dict().get("template") or {}
        paired: dict[str, Any] = {"text_pairs": []} if "between" in template else {}
        take = partial(take_reference, trained, tokenizer=tokenizer, **paired)
        keep_reference(Path(folder), take=take)
    verify = Path(folder, REFERENCE).is_file()
    message = commit_message or "Upload model"
    try:
        published = publish(
            folder,
            repo_id=repo_id,
            hub=hub.name,
            private=private,
            token=token,
            revision=revision,
            verify=verify,
            create_pr=create_pr,
            message="\n\n".join(filter(None, [message, commit_description])),
        )
    except TaskHeadsError as error:  # the folder is temporary, so the messages name the repo instead
        problems = [
            replace(problem, where=problem.where.replace(str(folder), repo_id)) for problem in error.problems
        ]
        raise TaskHeadsError(problems) from error
    if verify:
        done = "compared with the trained model in a clean process"
    else:
        done = (
            "not compared with a trained model; `recipes/publish.py --model FOLDER` does that for the "
            "folder of a finished run, and adds metrics with baselines"
        )
    visibility = "private" if published.private else "public"
    logger.warning(f"{published.url} ({visibility}): pushed, {done}.")
    return hub.commit_info(
        commit_url=str(published.url),
        commit_message=message,
        commit_description=commit_description or "",
        oid=str(published.commit),
    )
