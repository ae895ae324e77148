"""Save a trained model to a folder: weights or adapter, config, code and tokenizer.

The folder loads with AutoModel, AutoModelForSequenceClassification, `PeftModel.from_pretrained` and
`pipeline`, with or without this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.card_task_heads import name_card
from qwen_task_heads.hubcode.folder_task_heads import ADAPTER
from qwen_task_heads.hubcode.hashes_task_heads import CARD, read_manifest, write_manifest
from qwen_task_heads.hubcode.saving_task_heads import ADAPTER_CONFIG, WEIGHTS, embedding_rows

ADAPTERS = (f"{ADAPTER}/{ADAPTER_CONFIG}", ADAPTER_CONFIG)  # the current layout, and that of version 0.1


def save(model: Any, *, tokenizer: Any, folder: str | Path, repo_id: str | None = None) -> Path:
    """Save a full model, or an adapter with its head, with all files that loading needs.

    Args:
        model: a `TitleScorer` or `PooledClassifier`, with or without a loaded adapter, or a `PeftModel`
            around one.
        tokenizer: with the compiled template; its pad id is written into the config.
        folder: created if absent; files of the same names are replaced.
        repo_id: the repo that the folder will be uploaded to; the card names it.

    Returns:
        The folder.

    Raises:
        TaskHeadsError: a tokenizer with ids above the rows of the embeddings, or a folder that would have
            both full weights and an adapter, which is ambiguous for loaders.

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
    _check(inner, tokenizer=tokenizer, folder=folder, other=WEIGHTS if is_adapter else ADAPTERS)
    inner.config.text_config.pad_token_id = tokenizer.pad_token_id
    inner.tokenizer = tokenizer
    if inner is model:
        inner.save_pretrained(folder)
    else:
        inner.save_around(model, folder)
    if repo_id is not None:
        card = folder / CARD
        card.write_text(name_card(card.read_text(encoding="utf-8"), repo_id), encoding="utf-8")
        write_manifest(folder, read_manifest(folder))
    return folder


def _check(inner: Any, *, tokenizer: Any, folder: Path, other: tuple[str, ...]) -> None:
    """Raise if the saved folder could not be loaded; called before anything is written."""
    problems = []
    rows = embedding_rows(inner)
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        problems.append(
            Problem(
                "tokenizer",
                f"found id {largest} ({shorten(tokenizer.convert_ids_to_tokens(largest))})",
                f"ids below {rows}, the number of rows of the model's embeddings",
                "save the tokenizer of this model, or call resize_token_embeddings before training",
                code="tokenizer-invalid",
            )
        )
    problems += [
        Problem(
            str(folder),
            f"found {name}",
            "either full weights or an adapter",
            "save to a new folder",
            code="model-ambiguous",
        )
        for name in other
        if (folder / name).exists()
    ]
    if problems:
        raise TaskHeadsError(problems)
