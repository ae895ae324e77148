"""A trained model to a folder that anyone opens: weights or adapter, config, code, tokenizer.

The layout is the one that every loader takes (AutoModel, AutoModelForSequenceClassification,
`PeftModel.from_pretrained`, `pipeline`), with the package installed and without it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from qwen_task_heads import hubcode
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.loading_task_heads import WEIGHTS, embedding_rows
from qwen_task_heads.manifests import MANIFEST

ADAPTER = ("adapter_config.json",)
CODE = sorted(path for path in Path(hubcode.__file__).parent.glob("*.py") if path.stem != "__init__")

# What a server installs before it runs the code of the repo: Inference Endpoints come with an older
# transformers, which has none of the classes that this code is written for. torch is theirs.
REQUIREMENTS = "transformers>=5.3,<6\n"
ADAPTER_REQUIREMENTS = REQUIREMENTS + "peft>=0.18\n"


def save(model: Any, *, tokenizer: Any, folder: str | Path, repo_id: str | None = None) -> Path:
    """Write a full model, or an adapter with its head, and all that is needed to open it.

    Args:
        model: a `TitleScorer` or `PooledClassifier`, with or without a loaded adapter, or a `PeftModel`
            around one.
        tokenizer: with the compiled template; its pad id is written into the config.
        folder: created when absent; files of the same names are replaced.
        repo_id: the hub repo that the folder becomes. An adapter names it as its base, or the Auto
            classes would open the plain backbone there; full weights need none.

    Returns:
        The folder.

    Raises:
        TaskHeadsError: a tokenizer with ids that the model has no row for, or a folder that holds an
            adapter where full weights should go, or the other way round: no loader could tell which.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import build, load, load_tokenizer, save
        >>> folder = save(build("embedded"), tokenizer=load_tokenizer("embedded"), folder=tempfile.mkdtemp())
        >>> load(str(folder)).config.model_type
        'title_scorer'
    """
    from peft import PeftModel

    folder = Path(folder)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    is_adapter = inner is not model or inner._hf_peft_config_loaded
    _check(inner, tokenizer=tokenizer, folder=folder, other=WEIGHTS if is_adapter else ADAPTER)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # of what was saved here before
    inner.config.text_config.pad_token_id = tokenizer.pad_token_id
    if isinstance(model, PeftModel):
        _save_adapter(model, inner, folder, repo_id=repo_id)
    else:
        inner.save_pretrained(folder)
        if is_adapter:
            inner.save_adapter_config(folder, repo_id=repo_id)
    tokenizer.save_pretrained(folder)
    for file in CODE:
        shutil.copyfile(file, folder / file.name)
    needed = ADAPTER_REQUIREMENTS if is_adapter else REQUIREMENTS
    (folder / "requirements.txt").write_text(needed, encoding="utf-8")
    return folder


def _check(inner: Any, *, tokenizer: Any, folder: Path, other: tuple[str, ...]) -> None:
    """Refuse what would be saved and could not be opened, before anything is written."""
    problems = []
    rows = embedding_rows(inner)
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        problems.append(
            Problem(
                "tokenizer",
                f"found id {largest} ({shorten(tokenizer.convert_ids_to_tokens(largest))})",
                f"accepted: ids below {rows}, the rows of the model's embeddings",
                "save the tokenizer of this model, or resize_token_embeddings before training",
            )
        )
    problems += [
        Problem(str(folder), f"found {name}", "accepted: full weights or an adapter", "save to a new folder")
        for name in other
        if (folder / name).exists()
    ]
    if problems:
        raise TaskHeadsError(problems)


def _save_adapter(model: Any, inner: Any, folder: Path, *, repo_id: str | None = None) -> None:
    """Adapter at the root beside our own config; PEFT's README is left out, the card replaces it.

    `AutoPeftModel` opens the base that it finds named: in a local folder the plain backbone in a stock
    class, so it is no way to open one of ours.
    """
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    inner.config.probe = inner.make_probe()
    inner.save_adapter_config(folder, repo_id=repo_id)
