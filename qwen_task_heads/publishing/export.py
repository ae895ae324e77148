"""A trained model to a folder that anyone opens: weights or adapter, config, code, tokenizer.

The layout is the one that every loader takes (AutoModel, AutoModelForSequenceClassification,
`PeftModel.from_pretrained`, `pipeline`), with the package installed and without it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from qwen_task_heads import hubcode
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.loading_task_heads import WEIGHTS

ADAPTER = ("adapter_config.json",)
CODE = sorted(Path(hubcode.__file__).parent.glob("*_task_heads.py"))


def save(model: Any, *, tokenizer: Any, folder: str | Path) -> Path:
    """Write a full model, or an adapter with its head, and all that is needed to open it.

    Args:
        model: a `TitleScorer` or `PooledClassifier`, or a `PeftModel` around one.
        tokenizer: with the compiled template; its pad id is written into the config.
        folder: created when absent; files of the same names are replaced.

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
    _check(inner, tokenizer=tokenizer, folder=folder, other=ADAPTER if inner is model else WEIGHTS)
    folder.mkdir(parents=True, exist_ok=True)
    inner.config.text_config.pad_token_id = tokenizer.pad_token_id
    if isinstance(model, PeftModel):
        _save_adapter(model, inner, folder)
    else:
        inner.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in CODE:
        shutil.copyfile(file, folder / file.name)
    return folder


def _check(inner: Any, *, tokenizer: Any, folder: Path, other: tuple[str, ...]) -> None:
    """Refuse what would be saved and could not be opened, before anything is written."""
    problems = []
    rows = inner.get_input_embeddings().num_embeddings
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


def _save_adapter(model: Any, inner: Any, folder: Path) -> None:
    """Adapter at the root beside our own config; PEFT's README is left out, the card replaces it."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    # In a local folder the true base is named here too, so that PeftModel and AutoPeftModel find it.
    path = folder / "adapter_config.json"
    adapter = json.loads(path.read_text())
    adapter["base_model_name_or_path"] = inner.config.backbone_name_or_path
    adapter["revision"] = inner.config.backbone_revision
    path.write_text(json.dumps(adapter, indent=2, sort_keys=True))
    inner.config.architectures = [type(inner).__name__]
    inner.config.dtype = str(inner.dtype).split(".")[-1]
    inner.config.probe = inner.make_probe()
    inner.config.save_pretrained(folder)
