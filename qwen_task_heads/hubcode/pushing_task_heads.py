"""Push a saved folder as a repo of the Hugging Face Hub. This file travels with every published model.

With the package installed its publisher does that, and checks repo and model first.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi

from .card_task_heads import name_card
from .configuration_task_heads import refuse
from .trust_task_heads import DRAFT, read_manifest, write_manifest

CARD, REFERENCE = "README.md", "reference.json"
ROWS = ("predictions.jsonl", "errors.md")  # they hold texts of the data


def push(
    save: Callable[[Path], None],
    *,
    repo_id: str,
    publisher: Any,
    tags: list[str] | None = None,
    **options: Any,
) -> CommitInfo:
    """Save a model to a temporary folder and push it.

    Args:
        save: writes the folder.
        repo_id: of the repo.
        publisher: of the installed package; None pushes through huggingface_hub alone.
        tags: added to the card.
        **options: of `StrictSaving.push_to_hub`.
    """
    with tempfile.TemporaryDirectory(prefix="push-") as root:
        folder = Path(root)
        save(folder)
        card = folder / CARD
        card.write_text(name_card(card.read_text(encoding="utf-8"), repo_id, tags=tags), encoding="utf-8")
        manifest = read_manifest(folder)
        write_manifest(folder, {key: manifest[key] for key in manifest if key != DRAFT})
        if publisher is not None:
            return publisher.push(folder, repo_id=repo_id, **options)
        token, revision = options.pop("token"), options.pop("revision")
        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=options.pop("private"), exist_ok=True).repo_id
        _refuse_other_model(api, repo, folder, revision=revision)
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        options["commit_message"] = options["commit_message"] or "Upload model"
        return api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, ignore_patterns=[REFERENCE, *ROWS], **options
        )


def _refuse_other_model(api: HfApi, repo: str, folder: Path, *, revision: str | None) -> None:
    """Refuse to replace a model that answers something else, before anything is sent."""
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
        )
