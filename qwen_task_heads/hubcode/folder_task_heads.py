"""Add code, tokenizer, card and manifest to saved weights. This file is copied into every published model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from .card_task_heads import basic_card, card_text, read_card
from .hashes_task_heads import (
    CARD,
    DRAFT,
    MANIFEST,
    hash_files,
    matches_any,
    read_manifest,
    sha256,
    write_manifest,
)

ADAPTER = "adapter"  # subfolder of an adapter
REFERENCE = "reference.json"
ROWS = ("predictions.jsonl", "errors.md")  # files with texts of the data
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
TERMS = ("LICENSE", "LICENSE.*", "NOTICE", "NOTICE.*")
# Files that describe certain weights and are wrong for any others.
DESCRIBES = (CARD, "metrics.json", "parity.json", "*.png", ".eval_results/*.yaml")
# Files in the folder of a run that are not part of the model and are left out of an upload.
PRIVATE = (
    *ROWS,
    REFERENCE,
    "titles.jsonl",
    "completions/",
    "training_args.bin",
    "checkpoint-*/",
    ".task_heads_run",
    "runs/",
    "swanlab/",
    "swanlog/",
    "trackio/",
    "wandb/",
)
# A server with an older transformers installs these before it runs the code; it brings its own torch.
REQUIREMENTS = "transformers>=5.3,<6\n"
ADAPTER_REQUIREMENTS = REQUIREMENTS + "peft>=0.18\n"
# Marks of the draft cards that transformers, trl and PEFT write.
DRAFTS = ("generated_from_trainer", "More Information Needed")


def complete(model: Any, folder: str | PathLike[str]) -> None:
    """Write code, requirements, tokenizer, card and manifest next to saved weights.

    A card, metrics and plots of exactly these weights are kept, or copied from the folder or repo that the
    model was loaded from. Those of other weights are removed unless the folder's manifest shows that they
    were edited.

    Args:
        model: a task-head model, whose weights are in the folder.
        folder: folder with the weights.
    """
    folder = Path(folder)
    is_adapter = (folder / ADAPTER).is_dir()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem != "__init__":
            shutil.copyfile(file, folder / file.name)
    needed = ADAPTER_REQUIREMENTS if is_adapter else REQUIREMENTS
    (folder / "requirements.txt").write_text(needed, encoding="utf-8")
    if is_checkpoint(folder):  # a Trainer resumes from the files that it wrote itself
        return
    write_gitignore(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    earlier = read_manifest(folder)
    listed, found = earlier.get("files", {}), hash_files(folder)
    weights = {name: digest for name, digest in found.items() if name.endswith(".safetensors")}
    if not weights.items() <= listed.items():
        for name, digest in found.items():
            if listed.get(name) == digest and matches_any(name, (*DESCRIBES, REFERENCE, *ROWS)):
                (folder / name).unlink()
        earlier = _copy_from_source(model, folder, weights) or {DRAFT: True}
    write_manifest(folder, earlier, known=weights)
    write_card(model, folder, is_adapter=is_adapter)


def write_card(
    model: Any, folder: str | PathLike[str], *, is_adapter: bool, facts: Mapping[str, Any] | None = None
) -> None:
    """Write a card from the config and the recorded evaluation of these weights.

    The card of an evaluated run is kept. A card that was edited keeps its text and gets the facts.

    Args:
        model: a task-head model.
        folder: folder of the model.
        is_adapter: whether the folder contains an adapter.
        facts: fields of the metadata, such as `license` and `tags`; they are kept for later cards.
    """
    folder = Path(folder)
    path, manifest = folder / CARD, read_manifest(folder)
    model.card_facts = {**model.card_facts, **(facts or {})}
    metrics = model.recorded_evaluation()
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        is_draft = any(mark in text for mark in DRAFTS)
        if manifest and not manifest.get(DRAFT) and not is_draft:
            return
        if not is_draft and manifest.get("files", {}).get(CARD) != sha256(path):  # edited
            if facts:
                front, page = read_card(text, where=str(path))
                for name, value in facts.items():
                    page.data[name] = value
                path.write_text(card_text(page, front=front), encoding="utf-8")
            return
        # Keep metrics that another process measured.
        if metrics is None and not facts and not is_draft:
            return
    text = basic_card(model.config, is_adapter=is_adapter, evaluation=metrics, facts=model.card_facts)
    path.write_text(text, encoding="utf-8")
    write_manifest(folder, manifest or {DRAFT: True}, known=weights_of(manifest))


def weights_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the weights that a manifest lists."""
    listed = manifest.get("files", {})
    return {name: digest for name, digest in listed.items() if name.endswith(".safetensors")}


def write_gitignore(folder: str | PathLike[str]) -> None:
    """Write the `.gitignore` that keeps rows of the data and checkpoints out of a manual upload."""
    lines = ["# Files of a run that are not part of the model", *(f"/{name}" for name in PRIVATE)]
    Path(folder, ".gitignore").write_text("\n".join(lines) + "\n", encoding="utf-8")


def is_checkpoint(folder: str | PathLike[str]) -> bool:
    """Return whether a folder has the name that a Trainer gives its own checkpoints."""
    return re.fullmatch(r"checkpoint-\d+", Path(folder).name) is not None


def carry_reference(model: Any, folder: str | PathLike[str]) -> None:
    """Copy the reference predictions of the trained model from the run that the model was loaded from.

    They contain texts of the data, so they are copied only to a folder that is deleted after a push.

    Args:
        model: a task-head model.
        folder: folder with its saved weights.
    """
    if model.source is None:
        return
    listed, found = (read_manifest(place).get("files", {}) for place in (model.source[0], folder))
    same = all(listed.get(name) == found[name] for name in found if name.endswith(".safetensors"))
    path = Path(model.source[0], REFERENCE)
    if same and path.is_file():
        shutil.copyfile(path, Path(folder, REFERENCE))


def _copy_from_source(model: Any, folder: Path, weights: dict[str, str]) -> dict[str, Any]:
    """Copy missing files from the source of the model, and return its manifest if the weights are equal.

    Tokenizer, license and notice are always copied; files that describe weights only if the weights are
    byte-identical.
    """
    if model.source is None:
        return {}
    repo, hub = model.source
    offline = False

    def find(name: str) -> Path | None:
        nonlocal offline
        options = {**hub, "_raise_exceptions_for_missing_entries": False}
        if not offline:
            try:
                path = cached_file(repo, name, **options)
                return None if path is None else Path(path)
            except OSError:  # the hub does not answer: do not wait again for every other file
                offline = True
        path = cached_file(
            repo, name, **options, local_files_only=True, _raise_exceptions_for_connection_errors=False
        )
        return None if path is None else Path(path)

    there = find(MANIFEST)
    manifest = {} if there is None else read_manifest(there.parent)
    listed = manifest.get("files", {})
    same = bool(listed) and weights.items() <= listed.items()
    patterns = (*TOKENIZER, *TERMS, *(DESCRIBES if same else ()))
    for name in [name for name in listed if matches_any(name, patterns)] or TOKENIZER:
        if not (folder / name).exists() and (path := find(name)) is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
    return manifest if same else {}
