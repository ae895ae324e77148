"""Export a linear last-token model to `<Family>ForSequenceClassification`, a class of transformers.

The stock class computes one matrix on the state of the last token, and any other model is refused. The stock
head finds the last token by its id: the right-most one that is not the pad id. The pad id must therefore
differ from the token that ends every text. An export is verified against its model with the stock class, in
padded batches, before it gets its final name.

`config.json` has the fields that vLLM reads: `architectures`, `id2label` (which implies `num_labels`) and
`problem_type`, which chooses between softmax, sigmoid and the score itself. `servers.serve_command` has the
command. Stock pipelines do not truncate by default: pass `truncation=True` for texts over the limit of
training.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from qwen_task_heads.dtypes import store_in
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.export.shared import (
    TOLERANCE,
    VERIFICATION_TEXTS,
    check_difference,
    float_logits,
    folder_problems,
    last_token_problems,
    load_merged,
    make_portable,
    server_config,
    staging_folder,
    verification_limit,
    verification_rows,
)
from qwen_task_heads.hubcode.encoding_task_heads import pad_rows, template_of
from qwen_task_heads.hubcode.saving_task_heads import embedding_rows
from qwen_task_heads.hubs import HUGGINGFACE

FIX = "publish the model with save(), or publish.py --form saved"


def export_stock(
    model_or_folder: Any,
    *,
    tokenizer: Any = None,
    folder: str | Path,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
    dtype: str | None = None,
) -> Path:
    """Export a model as the transformers class of its family, with labels, problem type and pad id.

    Args:
        model_or_folder: a `PooledClassifier` or `TitleScorer`, a `PeftModel` around one, or the folder or
            repo of one. An adapter is merged first, into a given model in place.
        tokenizer: with the compiled template; None for the one in the folder.
        folder: new or empty folder to write.
        revision: branch, tag or commit of a repo.
        hub: hub of the ids, also of an adapter's base: `huggingface` or `modelscope`.
        dtype: dtype of the backbone's weights in the files, see `dtypes.store_in`; None for that of the
            model, which for an adapter is that of its base.

    Returns:
        The folder, which `AutoModelForSequenceClassification` and servers load.

    Raises:
        TaskHeadsError: an unsupported model, with all reasons; a family without a stock class; or logits
            that differ after the export.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import build, load_tokenizer
        >>> from qwen_task_heads.export.stock import export_stock
        >>> model = build("embedded", task="pooled_classifier", labels=["no", "yes"])
        >>> with tempfile.TemporaryDirectory() as root:
        ...     folder = export_stock(model, tokenizer=load_tokenizer("embedded"), folder=f"{root}/stock")
        ...     AutoModelForSequenceClassification.from_pretrained(folder).config.id2label
        {0: 'no', 1: 'yes'}
    """
    folder = Path(folder)
    model, tokenizer = load_merged(model_or_folder, tokenizer=tokenizer, revision=revision, hub=hub)
    problems = [
        *_unsupported(model),
        *choose_pad(tokenizer, rows=embedding_rows(model)),
        *folder_problems(folder),
    ]
    if problems:
        raise TaskHeadsError(problems)
    if dtype is not None:
        store_in(model, dtype=dtype)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"
    with staging_folder(folder) as staged:
        _convert(model, pad_id=tokenizer.pad_token_id).save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        make_portable(staged)
        _verify(model, tokenizer, staged)
    return folder


def _unsupported(model: Any) -> list[Problem]:
    """Return the settings of a model that the stock class does not support."""
    config = model.config
    problems = last_token_problems(model, fix=FIX)
    if config.head != "linear":
        problems.append(
            Problem(
                "head",
                f"found {config.head!r}",
                "linear",
                "export a two-layer head with export_reward_model(), or publish the model with save()",
                code="model-unsupported",
            )
        )
    if type(config.text_config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        problems.append(
            Problem(
                "text_config",
                f"found {config.text_config.model_type!r}",
                "a family with a ForSequenceClassification class in transformers",
                "publish the model with save()",
                code="model-unsupported",
            )
        )
    return problems


def choose_pad(tokenizer: Any, *, rows: int) -> list[Problem]:
    """Choose a pad token that ends no text, because the stock head skips pad tokens."""
    _, _, after = template_of(tokenizer)
    boundary = after[-1] if after else None
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != boundary:
        return []
    special = [
        (("pad" not in token.content, index), token.content)  # tokens named as padding first
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and index != boundary and index < rows
    ]
    if not special:
        return [
            Problem(
                "tokenizer",
                f"found {shorten(tokenizer.pad_token)} as pad token and as the end of every text",
                "two tokens, because the stock head skips all pad tokens",
                "train with another --boundary, or add a pad token before training",
                code="tokenizer-invalid",
            )
        ]
    tokenizer.pad_token = min(special)[1]
    return []


def _convert(model: Any, *, pad_id: int) -> Any:
    """Return the stock model with the same tensors, each under its stock name."""
    stock_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(model.config.text_config)]
    default = "regression" if model.config.num_labels == 1 else "single_label_classification"
    kind = model.config.problem_type or default
    config = server_config(model, architecture=stock_class.__name__, problem_type=kind, pad_id=pad_id)
    if model.config.__dict__.get("label_thresholds"):  # for callers; the stock class ignores it
        config.label_thresholds = list(model.config.label_thresholds)
    if model.config.calibration:
        config.calibration = copy.deepcopy(model.config.calibration)
    linear: Any = model.score[-1] if isinstance(model.score, torch.nn.Sequential) else model.score
    prefix = stock_class.base_model_prefix
    tensors = {f"{prefix}.{name}": tensor for name, tensor in model.model.state_dict().items()}
    tensors["score.weight"] = linear.weight.detach()
    with torch.device("meta"):
        stock = stock_class(config)
    expected = stock.state_dict()
    wrong = sorted(expected.keys() ^ tensors.keys())
    wrong += [
        name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape
    ]
    if wrong:
        raise error_at(
            "text_config",
            f"{stock_class.__name__} differs in {shorten(wrong[0])}",
            "a stock class of a backbone and one matrix `score`",
            "publish the model with save()",
            code="model-unsupported",
        )
    stock = stock_class(config).to(model.dtype)
    # The head stays in fp32, so that servers that compute it in fp32 give the logits of this model.
    stock.score.float()
    stock.load_state_dict({name: tensor.cpu() for name, tensor in tensors.items()}, strict=True)
    return stock.eval()


@torch.no_grad()
def _verify(model: Any, tokenizer: Any, folder: Path) -> None:
    """Compare the stock class, loaded from the folder, with the model: logits in fp32 of padded batches."""
    # Padded as the tokenizer pads below, so that only the classes differ.
    padded = pad_rows(verification_rows(model, tokenizer), pad_id=tokenizer.pad_token_id)
    expected = float_logits(model, padded)
    # Loaded with transformers alone, as by users of the export.
    stock = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    saved_tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = saved_tokenizer(
        list(VERIFICATION_TEXTS),
        padding=True,
        truncation=True,
        max_length=verification_limit(model, tokenizer),
        return_tensors="pt",
    )
    logits = stock(**batch).logits
    check_difference(logits, expected, tolerance=TOLERANCE, where=str(folder), runtime=type(stock).__name__)
