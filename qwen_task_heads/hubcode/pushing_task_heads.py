"""Push a saved folder as a repo of the Hugging Face Hub. This file is copied into every published model.

If the package is installed, its publisher pushes the folder after it has checked repo and model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi

from .card_task_heads import name_card
from .errors_task_heads import TaskHeadError, refuse
from .folder_task_heads import PRIVATE, carry_reference, weights_of
from .hashes_task_heads import CARD, DRAFT, RUN, read_manifest, write_manifest

# Weights that a push replaces: with two export formats in one repo, a loader could not choose.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter/*", "adapter_config.json")


def push(
    model: Any,
    save: Callable[[Path], None],
    *,
    repo_id: str,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: list[str] | None = None,
) -> CommitInfo:
    """Save a model to a temporary folder and push it in one commit.

    Args:
        model: a task-head model; its `publisher` pushes, or huggingface_hub if there is none.
        save: function that writes the folder.
        repo_id: `owner/name`, or a name without owner for the account of the token.
        commit_message, commit_description, private, token, revision, create_pr: as in transformers.
        tags: added to the card.

    Raises:
        ValueError: no login, no permission to write, a repo that holds another model, or an adapter of a
            base that is on no hub. Nothing was uploaded.
    """
    options: dict[str, Any] = {
        "commit_message": commit_message,
        "commit_description": commit_description,
        "private": private,
        "token": token,
        "revision": revision,
        "create_pr": create_pr,
    }
    with tempfile.TemporaryDirectory(prefix="push-") as root:
        folder = Path(root)
        save(folder)
        # The package renders the card of a run for the repo.
        if tags or model.publisher is None or RUN not in read_manifest(folder):
            name_folder(folder, repo_id, tags=tags)
        carry_reference(model, folder)
        if model.publisher is not None:
            return model.publisher.push(folder, repo_id=repo_id, **options)
        return _push_alone(folder, repo_id, **options)


def name_folder(folder: Path, repo_id: str, *, tags: list[str] | None = None) -> None:
    """Set the repo name on the card of a saved folder, and mark its manifest as final."""
    card, manifest = folder / CARD, read_manifest(folder)
    card.write_text(name_card(card.read_text(encoding="utf-8"), repo_id, tags=tags), encoding="utf-8")
    final = {key: manifest[key] for key in manifest if key != DRAFT}
    write_manifest(folder, final, known=weights_of(manifest))


def _push_alone(
    folder: Path,
    repo_id: str,
    *,
    token: bool | str | None,
    revision: str | None,
    private: bool | None,
    commit_message: str | None,
    **options: Any,
) -> CommitInfo:
    """Push without the package, through huggingface_hub."""
    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(repo).private:
        raise TaskHeadError(
            repo,
            "the repo is public",
            "a private repo, as requested",
            "name another repo",
            code="hub-invalid",
        )
    _refuse_other_model(api, repo, folder, revision=revision)
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo, branch=revision, exist_ok=True)
    return api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        revision=revision,
        commit_message=commit_message or "Upload model",
        ignore_patterns=[*PRIVATE, ".gitignore"],
        delete_patterns=list(WEIGHTS),
        **options,
    )


def _refuse_other_model(api: HfApi, repo: str, folder: Path, *, revision: str | None) -> None:
    """Raise before the upload if the repo holds a model of another task or with other labels."""
    if not api.file_exists(repo, "config.json", revision=revision):
        return
    names = ("model_type", "architectures", "id2label")
    with tempfile.TemporaryDirectory(prefix="there-") as place:
        path = api.hf_hub_download(repo, "config.json", revision=revision, local_dir=place)
        there, ours = (
            json.loads(Path(file).read_text(encoding="utf-8")) for file in (path, folder / "config.json")
        )
    if any(there.get(name) != ours.get(name) for name in names):
        raise refuse(
            repo,
            {name: there.get(name) for name in names},
            "a repo without a model, or with the same task and labels",
            "name another repo",
            code="path-exists",
        )
