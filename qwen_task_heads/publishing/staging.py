"""What is published: a folder with exactly the files of a published model, copied by an allow-list.

A run folder also holds what must stay: checkpoints, optimizer states, `training_args.bin` (with the hub
token in clear), rows of the data. So nothing is left out by name; what is not named here stays.

Which files of an earlier publish are stale in a repo its own `manifest.json` says: what somebody put there
by hand is left, whatever its name, but for weights and adapters, of which loaders would pick one.

What is staged follows to the byte from the folder, the names of repo and hub, and the installed package,
whose code it is; a retry gives the identical repo. A merge and its probe are computed: on another processor
their last bits may differ.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.files import MANIFEST
from qwen_task_heads.hubcode import CODE as OWN_CODE
from qwen_task_heads.hubcode.card_task_heads import name_card
from qwen_task_heads.hubcode.folder_task_heads import CARD, REFERENCE, ROWS, TERMS
from qwen_task_heads.hubcode.hashes_task_heads import DRAFT, matches_any, read_manifest, sha256
from qwen_task_heads.hubcode.saving_task_heads import ADAPTER_CONFIG, move_adapter
from qwen_task_heads.modelscope import MODELSCOPE
from qwen_task_heads.reports.finishing import EVAL_RESULTS, write_json
from qwen_task_heads.tokenization.label_prompts import LABEL_PROMPT

CODE = ("*_task_heads.py", "handler.py")
WEIGHTS = (
    "adapter/adapter_model.safetensors", "adapter_model.safetensors", "model.safetensors",
    "model-*-of-*.safetensors", "onnx/*.onnx",
)  # fmt: skip
MODEL = (
    *CODE, *WEIGHTS, "config.json", "generation_config.json", "adapter_config.json",
    "adapter/adapter_config.json",
    "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "chat_template.jinja",
    "requirements.txt", "configuration.json", "onnx/*.data", "onnx/*.onnx_data",
    "label_prompt.json", "decision.json", "decision_template.jinja",
)  # fmt: skip
# What is told of a model, in whatever form it is published.
RECORD = (
    "README.md", "*.png", "metrics.json", "parity.json", "manifest.json", EVAL_RESULTS, *TERMS,
)  # fmt: skip
# Two of these in one repo, and no loader could tell which form is meant.
ONE_FORM = (
    *WEIGHTS, "adapter/adapter_config.json", "adapter_config.json", "model.safetensors.index.json",
)  # fmt: skip
HEADS = ("TitleScorer", "PooledClassifier", "title_scorer", "pooled_classifier")
DESCRIBED = ("config.json", LABEL_PROMPT)  # where a folder says what its model answers
# What only a run writes: with one of these and no manifest, nothing says that they belong together.
OF_A_RUN = ("metrics.json", EVAL_RESULTS)
AGAIN = (
    "put back what the run wrote, or train again; without its figures it is published by "
    "save(load(folder, verify=False), ...) to a new folder"
)
# Where ModelScope's own library looks for the kind of a model.
CONFIGURATION = {"framework": "pytorch", "task": "text-classification"}
# In its context an adapter finds its base there; the pipelines of a repo want the folder of a snapshot.
FROM_MODELSCOPE = """
From ModelScope (`pip install modelscope`), the same calls on a snapshot, inside its context:

```python
from modelscope import snapshot_download
from modelscope.utils.hf_util.patcher import patch_context

with patch_context():
    folder = snapshot_download("%s"%s)
    ...  # the lines below, with `folder` in place of the name
```
"""


def is_publishable(name: str, *, rows: bool = False, model: bool = True) -> bool:
    """Whether a file belongs to a published model; `name` is relative to its root.

    Args:
        name: with `/`.
        rows: count the files that hold rows of the data too.
        model: count the files of the model itself, beside what is told of it.

    Example:
        >>> from qwen_task_heads.publishing.staging import is_publishable
        >>> [is_publishable(name) for name in ("config.json", "training_args.bin", "checkpoint-5/config.json")]
        [True, False, False]
    """
    return matches_any(name, RECORD + MODEL * model + ROWS * rows)


def stale(name: str, *, earlier: Collection[str]) -> bool:
    """Whether a file of a repo, which is not staged, is what an earlier publish left there.

    Args:
        name: with `/`.
        earlier: names in the `files` table of the repo's own manifest.

    Example:
        >>> from qwen_task_heads.publishing.staging import stale
        >>> [stale(n, earlier=["old.png"]) for n in ("old.png", "by_hand.png", "model.safetensors")]
        [True, False, True]
    """
    if matches_any(name, ONE_FORM):
        return True
    return name in earlier and is_publishable(name, rows=True) and not matches_any(name, TERMS)


def check_run(folder: str | Path) -> tuple[str, ...]:
    """Hold a folder against what its run listed at its end: labels, figures and proof must belong together.

    The card may be edited by hand. A folder that was saved without the account of a run is taken as it is.

    Args:
        folder: of a finished run, or of `save`.

    Returns:
        What to say beside: a card that was edited, or no account of a run.

    Raises:
        TaskHeadsError: every file that changed or is missing, or a run whose manifest is.
    """
    folder = Path(folder)
    names, notes = files_of(folder), []
    if MANIFEST not in names or read_manifest(folder).get(DRAFT):  # none, or that of `save`
        problems = [
            Problem(str(folder / name), f"found it without {MANIFEST}", "a run as it ended", AGAIN)
            for name in names
            if matches_any(name, OF_A_RUN)
        ]
        if problems:
            raise TaskHeadsError(problems)
        return ("The folder holds no account of a run: it is published without figures.",)
    try:
        table = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        listed = {str(name): str(digest) for name, digest in table.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        wanted = "the list of files and hashes that the run wrote"
        raise TaskHeadsError(Problem(str(folder / MANIFEST), "found no such list", wanted, AGAIN)) from error
    problems = []
    for name, digest in sorted(listed.items()):
        there = name in names
        matters = is_publishable(name, rows=True) or (
            name == REFERENCE and there
        )  # without one the card says so
        if not matters or (there and sha256(folder / name) == digest):
            continue
        if name == CARD and there:
            notes.append(f"{name} was edited after the run, and is published as it is.")
            continue
        found = "another file than the run wrote" if there else "no such file"
        problems.append(Problem(str(folder / name), f"found {found}", f"SHA-256 {digest[:12]}…", AGAIN))
    if problems:
        raise TaskHeadsError(problems)
    return tuple(notes)


def stage(
    folder: str | Path,
    destination: str | Path,
    *,
    repo_id: str,
    hub: str,
    rows: bool = False,
    revision: str | None = None,
) -> Path:
    """Copy what travels of a finished folder, and make it that of a repo.

    The card names the repo, and the manifest lists the staged files with their SHA-256. An adapter in the
    layout of version 0.1 is moved to its subfolder (`hubcode.saving_task_heads` says why).

    Args:
        folder: of a finished run; left as it is.
        destination: created; must be absent or empty.
        repo_id: `owner/name` of the repo.
        hub: `huggingface` or `modelscope`, which wants a `configuration.json`.
        rows: publish `predictions.jsonl` and `errors.md` too.
        revision: the branch, where it is not the one that the hub gives unasked; the card's lines name it.

    Returns:
        The destination.

    Raises:
        TaskHeadsError: no model there, a link in place of a file, or a destination with files.
    """
    folder, destination = Path(folder), Path(destination)
    names = files_of(folder)
    chosen = [name for name in names if is_publishable(name, rows=rows)]
    problems = [
        Problem(
            str(folder / name), "found a link", "regular files: what it points to may be anything", "copy it"
        )
        for name in chosen
        if (folder / name).is_symlink() or (folder / name).parent.is_symlink()
    ]
    described = {"config.json", "label_prompt.json"} & set(chosen)  # PEFT's adapters have no config
    if not described or not any(name.endswith(".safetensors") for name in chosen):
        wanted = "config.json and weights or an adapter"
        problems.append(
            Problem(str(folder), "found no model", wanted, "name the folder that a run finished in")
        )
    if destination.exists() and any(destination.iterdir()):
        problems.append(Problem(str(destination), "found files", "a new or empty folder", "name another one"))
    if problems:
        raise TaskHeadsError(problems)
    for name in chosen:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        # Code is that of the installed package: the proof is of it, and a run may be older.
        own = {file.name: file for file in OWN_CODE}.get(name, folder / name)
        shutil.copyfile(own, destination / name)
    if {"config.json", ADAPTER_CONFIG} <= set(chosen):  # a label writer's has no config of ours
        move_adapter(destination)
    if "README.md" in chosen:
        card = (destination / "README.md").read_text(encoding="utf-8")
        (destination / "README.md").write_text(
            card_of_repo(card, repo_id, hub, rows=rows, revision=revision), encoding="utf-8"
        )
    if hub == MODELSCOPE:
        writes = {"task": "text-generation"} if "label_prompt.json" in chosen else {}
        write_json(destination / "configuration.json", CONFIGURATION | writes)
    return seal(destination)


def seal(staged: str | Path) -> Path:
    """Write `manifest.json` anew for the files that are there now; everything else in it stays.

    `files` becomes a table of path to SHA-256, without the manifest itself, and `code` the part of it
    that runs.
    """
    staged = Path(staged)
    path = staged / MANIFEST
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    files = {name: sha256(staged / name) for name in files_of(staged) if name != MANIFEST}
    content["code"] = {
        name: digest for name, digest in files.items() if any(fnmatchcase(name, code) for code in CODE)
    }
    content["files"] = files
    content.pop(DRAFT, None)  # from here on the files belong together
    write_json(path, content)
    return staged


def files_of(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, with `/`, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def task_of(folder: str | Path) -> str | None:
    """What the model of a folder or repo answers, in whatever form it is; None where nothing says so.

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
        return "a language model that writes " + ", ".join(map(str, names))
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
    """What a JSON file holds; {} where there is none, or it is somebody's own."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def card_of_repo(
    card: str, repo_id: str, hub: str, *, rows: bool = False, revision: str | None = None
) -> str:
    """Return the card of a run as that of a repo; arguments as of `stage`."""
    pinned = f", revision={json.dumps(revision)}" if revision else ""
    card = name_card(card, repo_id, revision=revision)
    if not rows:  # a sentence on files that are not published
        card = re.sub(r"^.*(?:\]\(errors\.md\)|`errors\.md`).*\n\n?", "", card, flags=re.MULTILINE)
    if hub == MODELSCOPE:
        card = re.sub(
            r"^## How to load.*\n",
            lambda m: m[0] + FROM_MODELSCOPE % (repo_id, pinned),
            card,
            flags=re.MULTILINE,
        )
    return card
