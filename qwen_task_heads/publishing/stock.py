"""A linear last-token model to a plain `<Family>ForSequenceClassification` folder, opened without our code.

What the stock class computes is one matrix on the last token, so a model that does anything else is
refused rather than approximated. The stock head finds the last token by its id (the right-most one that
is not the pad id), so the pad id must differ from the token that ends every text. An export is compared
with the model it came from, by stock classes and in padded batches, before it appears under its name.

`config.json` has what vLLM reads for `--task classify`: `architectures`, `id2label` (from which
`num_labels` follows) and `problem_type`, which chooses between softmax, sigmoid and the score itself.
Stock pipelines cut nothing by themselves: pass `truncation=True` for texts over the limit of training.
"""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.encoding_task_heads import encode_texts, pad_rows, template_of
from qwen_task_heads.hubcode.loading_task_heads import embedding_rows
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.models import PooledClassifier, TaskHeadModel, has_adapter, load, load_tokenizer, merge

TOLERANCE = 1e-6  # of logits in fp32, relative to the largest one where that is above 1
# Of different lengths, so that a batch of them is padded; the last is longer than most limits.
PROOF = (
    "A plain title",
    "短い題",
    "Ten small ways to rest before a long day, and what they cost",
    "?",
    "word " * 600,
)


def export_stock(
    model_or_folder: Any,
    *,
    tokenizer: Any = None,
    folder: str | Path,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
) -> Path:
    """Write a model as transformers' own class of its family, with labels, problem type and pad id.

    Args:
        model_or_folder: a `PooledClassifier` or `TitleScorer`, a `PeftModel` around one, or the folder or
            repo of one. An adapter is merged first, into a given model in place.
        tokenizer: with the compiled template; None for the one in the folder.
        folder: where to; new or empty.
        revision: of a repo.
        hub: where ids are looked up, that of an adapter's base too: `huggingface` or `modelscope`.

    Returns:
        The folder, which `AutoModelForSequenceClassification` and servers open.

    Raises:
        TaskHeadsError: a model that is more than one matrix on the last token, all reasons at once; a family
            without a stock class; or logits that differ after the export.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import build, load_tokenizer
        >>> from qwen_task_heads.publishing.stock import export_stock
        >>> model = build("embedded", task="pooled_classifier", labels=["no", "yes"])
        >>> with tempfile.TemporaryDirectory() as root:
        ...     folder = export_stock(model, tokenizer=load_tokenizer("embedded"), folder=f"{root}/stock")
        ...     AutoModelForSequenceClassification.from_pretrained(folder).config.id2label
        {0: 'no', 1: 'yes'}
    """
    folder = Path(folder)
    if isinstance(model_or_folder, (str, Path)):
        source = str(model_or_folder)
        place: dict[str, Any] = {"revision": revision, "hub": hub}
        tokenizer = tokenizer or load_tokenizer(source, **place)
        model: Any = merge(source, **place) if has_adapter(source, **place) else load(source, **place)
    else:
        model = model_or_folder
        if not isinstance(model, TaskHeadModel) or model._hf_peft_config_loaded:
            model = merge(model)
    if tokenizer is None:
        raise TaskHeadsError(
            Problem("tokenizer", "found none", "accepted: the tokenizer of the model", "pass tokenizer=")
        )
    tokenizer = copy.deepcopy(tokenizer)  # its pad token may change below
    if problems := [*_reasons(model), *_choose_pad(tokenizer, rows=embedding_rows(model)), *_taken(folder)]:
        raise TaskHeadsError(problems)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        staged = Path(staging, "export")
        _convert(model, pad_id=tokenizer.pad_token_id).save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        _prove(model, tokenizer, staged)
        os.replace(staged, folder)
    return folder


def _reasons(model: Any) -> list[Problem]:
    """Why the stock class cannot compute what this model does; all reasons."""
    config = model.config
    rules = [
        ("pooling", config.pooling, config.pooling == "last", "last"),
        ("head", config.head, config.head == "linear", "linear"),
        ("bidirectional", config.bidirectional, not config.bidirectional, "false"),
        (
            "problem_type",
            config.problem_type,
            config.problem_type != "ordinal",
            "single-label, multi-label or regression",
        ),
    ]
    if isinstance(model, PooledClassifier):
        cuts = config.truncation in ("head_tail", "windows")
        rules.append(("truncation", config.truncation, not cuts, "head or tail, which a tokenizer can do"))
    problems = [
        Problem(
            field,
            f"found {value!r}",
            f"accepted: {accepted}",
            "the stock class has no such thing: publish the model with save()",
        )
        for field, value, fits, accepted in rules
        if not fits
    ]
    if type(config.text_config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        name = config.text_config.model_type
        accepted = "accepted: a family with a ForSequenceClassification class in transformers"
        problems.append(Problem("text_config", f"found {name!r}", accepted, "publish the model with save()"))
    return problems


def _choose_pad(tokenizer: Any, *, rows: int) -> list[Problem]:
    """Make sure that no text ends with the pad id, whose tokens the stock head takes for padding."""
    _, _, after = template_of(tokenizer)
    boundary = after[-1] if after else None
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != boundary:
        return []
    special = [
        (("pad" not in token.content, index), token.content)  # those meant for padding first
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and index != boundary and index < rows
    ]
    if not special:
        found = f"found {shorten(tokenizer.pad_token)} as pad token and as the end of every text"
        accepted = "accepted: two tokens, as the stock head skips pad tokens wherever they stand"
        remedy = "train with another --boundary, or add a pad token before training"
        return [Problem("tokenizer", found, accepted, remedy)]
    tokenizer.pad_token = min(special)[1]
    return []


def _taken(folder: Path) -> list[Problem]:
    if folder.is_dir() and not any(folder.iterdir()):
        return []
    if not folder.exists():
        return []
    return [
        Problem(str(folder), "found files", "accepted: a new or empty folder", "name another, or empty it")
    ]


def _convert(model: Any, *, pad_id: int) -> Any:
    """Give the stock model with the same tensors, every one of them under the stock name."""
    config = copy.deepcopy(model.config.text_config)
    stock_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    config.id2label, config.label2id = dict(model.config.id2label), dict(model.config.label2id)
    default = "regression" if model.config.num_labels == 1 else "single_label_classification"
    config.problem_type = model.config.problem_type or default
    config.pad_token_id = pad_id
    config.architectures = [stock_class.__name__]
    config._name_or_path = ""
    linear: Any = model.score[-1] if isinstance(model.score, torch.nn.Sequential) else model.score
    prefix = stock_class.base_model_prefix
    tensors = {f"{prefix}.{name}": tensor for name, tensor in model.model.state_dict().items()}
    tensors["score.weight"] = linear.weight.detach()
    with torch.device("meta"):
        stock = stock_class(config)
    wanted = stock.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    if wrong:
        found = f"found {stock_class.__name__}, which differs in {shorten(wrong[0])}"
        accepted = "accepted: a stock class of a backbone and one matrix `score`"
        raise TaskHeadsError(Problem("text_config", found, accepted, "publish the model with save()"))
    stock = stock_class(config).to(model.dtype)
    # As it was trained: servers that compute the head in fp32 then give the logits of this model.
    stock.score.float()
    stock.load_state_dict({name: tensor.cpu() for name, tensor in tensors.items()}, strict=True)
    return stock.eval()


@torch.no_grad()
def _prove(model: Any, tokenizer: Any, folder: Path) -> None:
    """Compare logits in fp32: stock classes from the folder, in padded batches, against the model itself."""
    ours = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    training, device = ours.training, ours.device
    ours.eval()
    limit = model.config.max_seq_length if isinstance(model, PooledClassifier) else None
    if limit is None:  # longer texts show nothing that these do not
        limit = min(tokenizer.model_max_length, 512 + sum(map(len, template_of(tokenizer))))
    side = tokenizer.truncation_side
    rows = encode_texts(
        tokenizer, PROOF, max_length=limit, truncation="tail" if side == "left" else "head"
    ).input_ids
    # Padded as the tokenizer pads below, so that nothing but the classes differs. That padding moves no
    # logit of ours is known; the stock class is compared with it.
    padded = pad_rows(rows, pad_id=tokenizer.pad_token_id)
    wanted = ours(**{name: tensor.to(device) for name, tensor in padded.items()}).logits.cpu()
    ours.train(training)
    # Not by our own loaders: as anyone opens it.
    stock = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    again = AutoTokenizer.from_pretrained(folder)
    batch = again(list(PROOF), padding=True, truncation=True, max_length=limit, return_tensors="pt")
    found = stock(**batch).logits
    allowed = TOLERANCE * max(1.0, float(wanted.abs().max()))
    difference = float((found - wanted).abs().max())
    if not difference <= allowed:  # also true for NaN
        raise TaskHeadsError(
            Problem(
                str(folder),
                f"found logits of {type(stock).__name__} that differ by {difference:.2g}",
                f"accepted: at most {allowed:.0e}",
                "this family computes something else in its stock class: publish the model with save()",
            )
        )
