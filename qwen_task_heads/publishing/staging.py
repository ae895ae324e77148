"""Stage the files of a published model: a copy of the run folder by an allow-list.

A run folder also has files that must not be published: checkpoints, optimizer states, `training_args.bin`
(with the hub token in clear text), rows of the data. Therefore only the files listed here are copied.

The `manifest.json` in a repo lists the files of the earlier publish, which become stale. Files added by hand
are kept, except weights and adapters, because a loader could pick either.

The staged bytes depend only on the folder, the names of repo and hub, and the installed package, whose code
is copied. A retry gives the identical repo. A merged model and its probe are computed: their last bits may
differ on another processor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.files import MANIFEST
from qwen_task_heads.gguf_weights import GGUF_FILE
from qwen_task_heads.hubcode import CODE as OWN_CODE
from qwen_task_heads.hubcode.card_task_heads import read_card
from qwen_task_heads.hubcode.folder_task_heads import REFERENCE, ROWS, TERMS
from qwen_task_heads.hubcode.hashes_task_heads import CARD, DRAFT, matches_any, read_manifest, sha256
from qwen_task_heads.hubcode.saving_task_heads import ADAPTER_CONFIG, move_adapter
from qwen_task_heads.hubs import hub_named
from qwen_task_heads.loading_errors import as_our_errors
from qwen_task_heads.reports.card_facts import NOTHING_STATED, CardFacts
from qwen_task_heads.reports.eval_results import EVAL_RESULTS
from qwen_task_heads.reports.records import write_json
from qwen_task_heads.tokenization.label_prompts import LABEL_PROMPT

CODE = ("*_task_heads.py", "handler.py")
WEIGHTS = (
    "adapter/adapter_model.safetensors",
    "adapter_model.safetensors",
    "model.safetensors",
    "model-*-of-*.safetensors",
    GGUF_FILE,
    "onnx/*.onnx",
)
MODEL = (
    *CODE,
    *WEIGHTS,
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "adapter/adapter_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "requirements.txt",
    "configuration.json",
    "onnx/*.data",
    "onnx/*.onnx_data",
    "label_prompt.json",
    "decision.json",
    "decision_template.jinja",
)
# The record of a run, published with every export format.
RECORD = ("README.md", "*.png", "metrics.json", "parity.json", "manifest.json", EVAL_RESULTS, *TERMS)
# A repo with the files of two export formats would be ambiguous for loaders.
ONE_FORM = (
    *WEIGHTS,
    "adapter/adapter_config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
)
HEADS = ("TitleScorer", "PooledClassifier", "title_scorer", "pooled_classifier")
DESCRIBED = ("config.json", LABEL_PROMPT)  # the files that state the task of a model
# Files that only a run writes. Without a manifest, it is unknown whether they belong to the model.
OF_A_RUN = ("metrics.json", EVAL_RESULTS)
RESTORE = (
    "put back what the run wrote, or train again; to publish without metrics, pass "
    "save(load(folder, verify=False), ...) to a new folder"
)


def is_publishable(name: str, *, rows: bool = False, model: bool = True) -> bool:
    """Return whether a file belongs to a published model.

    Args:
        name: path relative to the root of the model, with `/`.
        rows: include the files with rows of the data.
        model: include the files of the model itself, next to the record of its run.

    Example:
        >>> from qwen_task_heads.publishing.staging import is_publishable
        >>> names = ("config.json", "training_args.bin", "checkpoint-5/config.json")
        >>> [is_publishable(name) for name in names]
        [True, False, False]
    """
    return matches_any(name, RECORD + MODEL * model + ROWS * rows)


def is_stale(name: str, *, earlier: Collection[str]) -> bool:
    """Return whether a file of a repo that is not staged is left from an earlier publish.

    Args:
        name: path in the repo, with `/`.
        earlier: names in the `files` table of the manifest in the repo.

    Example:
        >>> from qwen_task_heads.publishing.staging import is_stale
        >>> [is_stale(n, earlier=["old.png"]) for n in ("old.png", "by_hand.png", "model.safetensors")]
        [True, False, True]
    """
    if matches_any(name, ONE_FORM):
        return True
    return name in earlier and is_publishable(name, rows=True) and not matches_any(name, TERMS)


def check_run(folder: str | Path, *, facts: CardFacts = NOTHING_STATED) -> tuple[str, ...]:
    """Compare a folder with the manifest of its run, so that model, labels and metrics belong together.

    The card may be edited by hand. A folder saved without the record of a run is not checked.

    Args:
        folder: output folder of a finished run, or of `save`.
        facts: that its card should state.

    Returns:
        Messages for the user: the card was edited, or the folder has no record of a run.

    Raises:
        TaskHeadsError: every changed or missing file, a missing manifest, no card for the facts, or a card
            with front matter that cannot be read.
    """
    folder = Path(folder)
    if (stated := facts.stated()) and not (folder / CARD).is_file():
        problem, expected = f"the card that should state {', '.join(stated)} is missing", "a README.md"
        fix = "write one, with the facts in it, and do not state them"
        raise TaskHeadsError(Problem(str(folder / CARD), problem, expected, fix, code="path-not-found"))
    if (folder / CARD).is_file():
        _check_card(folder / CARD)
    names, notes = files_of(folder), []
    if MANIFEST not in names or read_manifest(folder).get(DRAFT):  # none, or that of `save`
        problems = [
            Problem(
                str(folder / name),
                f"{MANIFEST} is missing next to this file",
                "the files of a finished run",
                RESTORE,
                code="path-not-found",
            )
            for name in names
            if matches_any(name, OF_A_RUN)
        ]
        if problems:
            raise TaskHeadsError(problems)
        return ("The folder has no record of a run: the model is published without metrics.",)
    try:
        table = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        listed = {str(name): str(digest) for name, digest in table.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TaskHeadsError(
            Problem(
                str(folder / MANIFEST),
                "the table of files is missing or malformed",
                "the manifest with files and hashes that the run wrote",
                RESTORE,
                code="file-format",
            )
        ) from error
    problems = []
    for name, digest in sorted(listed.items()):
        exists = name in names
        # A missing reference is allowed: the card then states what the model was compared with.
        matters = is_publishable(name, rows=True) or (name == REFERENCE and exists)
        if not matters or (exists and sha256(folder / name) == digest):
            continue
        if name == CARD and exists:
            notes.append(
                f"{name} was edited after the run: its text is published as it is, only the metadata and the "
                "name of the repo are updated."
            )
            continue
        problem = "the file changed after the run" if exists else "the file is missing"
        problems.append(
            Problem(
                str(folder / name),
                problem,
                f"a file with SHA-256 {digest[:12]}…",
                RESTORE,
                code="model-corrupted",
            )
        )
    if problems:
        raise TaskHeadsError(problems)
    return tuple(notes)


def _check_card(path: Path) -> None:
    """Raise for a card that cannot be read, before the export that it belongs to."""
    try:
        with as_our_errors():
            read_card(path.read_text(encoding="utf-8"), where=str(path))
    except UnicodeDecodeError as error:
        raise error_at(
            str(path),
            f"found a byte that is not UTF-8 at {error.start}",
            "text in UTF-8",
            "save it in UTF-8",
            code="file-encoding",
        ) from error


def stage(
    folder: str | Path,
    destination: str | Path,
    *,
    hub: str,
    rows: bool = False,
) -> Path:
    """Copy the files of a finished run that are published, and adapt them to the hub.

    The card is copied as it is; `publishing.cards` writes that of the repo. The manifest lists the staged
    files with their SHA-256. An adapter in the layout of version 0.1 is moved to its subfolder;
    `hubcode.saving_task_heads` has the reason.

    Args:
        folder: output folder of a finished run; not changed.
        destination: folder to stage in; must be absent or empty.
        hub: a name in `hubs.HUBS`; the hub adds its own files.
        rows: publish `predictions.jsonl` and `errors.md` too.

    Returns:
        The destination.

    Raises:
        TaskHeadsError: the folder has no model or has links, or the destination is not empty.
    """
    folder, destination = Path(folder), Path(destination)
    names = files_of(folder)
    chosen = [name for name in names if is_publishable(name, rows=rows)]
    problems = [
        Problem(
            str(folder / name),
            "found a symbolic link",
            "a regular file, because a link may point to any file",
            "replace the link by a copy of the file",
            code="file-format",
        )
        for name in chosen
        if (folder / name).is_symlink() or (folder / name).parent.is_symlink()
    ]
    # An adapter of a generative classifier has no config.json.
    described = {"config.json", "label_prompt.json"} & set(chosen)
    if not described or not any(name.endswith((".safetensors", GGUF_FILE)) for name in chosen):
        problems.append(
            Problem(
                str(folder),
                "the folder has no model",
                "config.json with weights or an adapter",
                "pass the output folder of a finished run",
                code="model-not-found",
            )
        )
    if destination.exists() and any(destination.iterdir()):
        problems.append(
            Problem(
                str(destination),
                "the folder is not empty",
                "a new or empty folder",
                "name another one",
                code="path-exists",
            )
        )
    if problems:
        raise TaskHeadsError(problems)
    for name in chosen:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        # Verification runs the code of the installed package, and the run may be older.
        own = {file.name: file for file in OWN_CODE}.get(name, folder / name)
        shutil.copyfile(own, destination / name)
    if {"config.json", ADAPTER_CONFIG} <= set(chosen):  # an adapter of a head, in the layout of 0.1
        move_adapter(destination)
    for name, content in hub_named(hub).extra_files(generates="label_prompt.json" in chosen).items():
        write_json(destination / name, content)
    return update_manifest(destination)


def update_manifest(staged: str | Path) -> Path:
    """Update `manifest.json` to the current files of the folder; its other keys are kept.

    `files` maps each path to its SHA-256, without the manifest itself; `code` is the executable subset.
    """
    staged = Path(staged)
    path = staged / MANIFEST
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    files = {name: sha256(staged / name) for name in files_of(staged) if name != MANIFEST}
    content["code"] = {
        name: digest for name, digest in files.items() if any(fnmatchcase(name, code) for code in CODE)
    }
    content["files"] = files
    content.pop(DRAFT, None)  # the set of files is complete now
    write_json(path, content)
    return staged


def files_of(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it, with `/`, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def task_of(folder: str | Path) -> str | None:
    """Describe the task of a model in a folder, whatever its export format; None if it is not stated.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from qwen_task_heads.publishing.staging import task_of
        >>> folder = Path(tempfile.mkdtemp())
        >>> config = {"model_type": "title_scorer", "problem_type": "regression", "id2label": {"0": "score"}}
        >>> _ = (folder / "config.json").write_text(json.dumps(config))
        >>> task_of(folder)
        'a regression head of score'
    """
    config, prompt = (_object(Path(folder, name)) for name in DESCRIBED)
    if labels := prompt.get("labels"):
        names: list[Any] = labels.get("names", []) if isinstance(labels, dict) else []
        return "a generative classifier of " + ", ".join(map(str, names))
    kind = next(iter(config.get("architectures") or []), None) or config.get("model_type")
    if not isinstance(kind, str):
        return None
    if not kind.endswith("ForSequenceClassification") and kind not in HEADS:
        return f"a {kind}"
    table = config.get("id2label")
    names = []
    if isinstance(table, dict) and all(str(index).isdecimal() for index in table):
        names = [table[index] for index in sorted(table, key=int)]
    problem = str(config.get("problem_type") or "single_label_classification").replace("_", " ")
    return f"a {problem} head of {', '.join(map(str, names))}"


def _object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; {} if the file is missing or has no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
