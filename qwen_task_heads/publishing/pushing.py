"""Push a folder that an ordinary verb saved: `model.push_to_hub`, `trainer.push_to_hub` and the like.

`hubs.publish` does the work, so that these verbs refuse what it refuses, send one commit and the same files.
They follow transformers where it differs: a new repo has the hub's default visibility, and a token can be
given.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitInfo, hf_api
from transformers.utils import logging

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.hubcode.saving_task_heads import REFERENCE
from qwen_task_heads.hubs import HUGGINGFACE, MODELSCOPE
from qwen_task_heads.publishing.hubs import HUBS, publish

logger = logging.get_logger(__name__)


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
) -> CommitInfo:
    """Push a saved folder; compare it with the trained model first if the folder holds a reference.

    Inside ModelScope's `patch_hub` or `patch_context` the repo is one of ModelScope.

    Args:
        folder: as `save_pretrained` writes it.
        repo_id: `owner/name`, or a name of the user's own.
        commit_message, private, token, revision, create_pr: as in `transformers.PreTrainedModel.push_to_hub`.
        commit_description: added to the message.

    Returns:
        The commit, as huggingface_hub gives it.

    Raises:
        TaskHeadsError: what `publish` refuses; nothing was sent.
    """
    hub = MODELSCOPE if "_create_commit_origin" in vars(hf_api) else HUGGINGFACE
    repo_id = HUBS[hub](token=token).full_name(repo_id)
    verify = Path(folder, REFERENCE).is_file()
    message = commit_message or "Upload model"
    try:
        published = publish(
            folder, repo_id=repo_id, hub=hub, private=private, token=token, revision=revision, verify=verify,
            create_pr=create_pr, message="\n\n".join(filter(None, [message, commit_description])),
        )  # fmt: skip
    except TaskHeadsError as error:  # the folder is a temporary one that nobody named
        problems = [
            replace(problem, where=problem.where.replace(str(folder), repo_id)) for problem in error.problems
        ]
        raise TaskHeadsError(problems) from error
    done = "compared with the trained model in a clean process" if verify else (
        "not compared with a trained model; `recipes/publish.py --model FOLDER` does that for the folder of "
        "a finished run, and adds metrics with baselines"
    )  # fmt: skip
    logger.warning(f"{published.url}: pushed, {done}.")
    return CommitInfo(
        commit_url=str(published.url),
        commit_message=message,
        commit_description=commit_description or "",
        oid=str(published.commit),
    )
