"""A linear last-token model to a plain `<Family>ForSequenceClassification` folder, opened without our code.

What the stock class computes is one matrix on the last token, so a model that does anything else is
refused rather than approximated. The stock head finds the last token by its id (the right-most one that
is not the pad id), so the pad id must differ from the token that ends every text. An export is compared
with the model it came from, by stock classes and in padded batches, before it appears under its name.

`config.json` has what vLLM reads: `architectures`, `id2label` (from which `num_labels` follows) and
`problem_type`, which chooses between softmax, sigmoid and the score itself; `serve_command` gives the line.
Stock pipelines cut nothing by themselves: pass `truncation=True` for texts over the limit of training.

What the other exports (`reward_model`, `onnx`) need as well is here: opening and merging, the texts of the
proof, and a folder that appears under its name only when it is whole and proven.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from qwen_task_heads.dtypes import store_in
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.encoding_task_heads import encode_texts, pad_rows, template_of
from qwen_task_heads.hubcode.saving_task_heads import embedding_rows
from qwen_task_heads.models import (
    PooledClassifier,
    TaskHeadModel,
    has_adapter,
    load,
    load_tokenizer,
    merge,
)
from qwen_task_heads.modelscope import HUGGINGFACE
from qwen_task_heads.verification.reference import PROOF

# Of logits in fp32, relative to the largest one where that is above 1: another order of the same sums, which
# in deep models and merged adapters is more than 1e-6.
TOLERANCE = 1e-5
# The last is longer than most limits. One with control tokens is left out: a tokenizer without a compiled
# template, which no recipe saves, reads them as such.
PROOF_TEXTS = (*(text for text in PROOF if "<|" not in text), "word " * 600)


def export_stock(
    model_or_folder: Any,
    *,
    tokenizer: Any = None,
    folder: str | Path,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
    dtype: str | None = None,
) -> Path:
    """Write a model as transformers' own class of its family, with labels, problem type and pad id.

    Args:
        model_or_folder: a `PooledClassifier` or `TitleScorer`, a `PeftModel` around one, or the folder or
            repo of one. An adapter is merged first, into a given model in place.
        tokenizer: with the compiled template; None for the one in the folder.
        folder: where to; new or empty.
        revision: of a repo.
        hub: where ids are looked up, that of an adapter's base too: `huggingface` or `modelscope`.
        dtype: of the backbone's weights in the files, as `dtypes.store_in` takes it; None for that of the
            model, which of an adapter is that of its base.

    Returns:
        The folder, which `AutoModelForSequenceClassification` and servers open.

    Raises:
        TaskHeadsError: a model that is more than one matrix on the last token, all reasons at once; a family
            without a stock class; or logits that differ after the export.

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
    model, tokenizer = open_merged(model_or_folder, tokenizer=tokenizer, revision=revision, hub=hub)
    problems = [*_reasons(model), *_choose_pad(tokenizer, rows=embedding_rows(model)), *taken(folder)]
    if problems:
        raise TaskHeadsError(problems)
    if dtype is not None:
        store_in(model, dtype=dtype)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"
    with appearing(folder) as staged:
        _convert(model, pad_id=tokenizer.pad_token_id).save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        _prove(model, tokenizer, staged)
    return folder


def serve_command(folder: str | Path) -> str:
    """The line that serves an export with vLLM: `/classify` of a stock class, `/pooling` of a reward model.

    Of a reward model vLLM gives a value per token, and the last one is the score; it would be the sigmoid of
    it, if the line did not switch that off. A prompt over the tokenizer's limit is refused by the server
    (`--max-model-len`) rather than read whole, which training never did.

    Args:
        folder: written by `export_stock` or `export_reward_model`.

    Raises:
        TaskHeadsError: a folder that is no such export.

    Source: https://docs.vllm.ai/en/latest/models/pooling_models/
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    classes = config.get("architectures") or [None]
    if not str(classes[0]).endswith(("ForSequenceClassification", "ForRewardModel")):
        found = f"found {shorten(classes[0])}" if config else "found no config.json"
        accepted = "a folder of export_stock() or export_reward_model()"
        raise TaskHeadsError(Problem(str(folder), found, accepted, "export the model first"))
    words = ["vllm", "serve", str(folder), "--runner", "pooling"]
    saved = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if saved["model_max_length"] < config["max_position_embeddings"]:
        words += ["--max-model-len", str(saved["model_max_length"])]
    if classes[0].endswith("ForRewardModel"):
        words += ["--pooler-config", '{"use_activation": false}']
    return shlex.join(words)


def open_merged(
    model_or_folder: Any, *, tokenizer: Any, revision: str | None = None, hub: str = HUGGINGFACE
) -> tuple[Any, Any]:
    """Open what an export is given: `(model, tokenizer)`, without an adapter, the tokenizer a copy.

    Args:
        model_or_folder: as of `export_stock`.
        tokenizer: None for the one in the folder.
        revision: of a repo.
        hub: where ids are looked up.

    Raises:
        TaskHeadsError: a model without a tokenizer, or nothing there.
    """
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
            Problem("tokenizer", "found none", "the tokenizer of the model", "pass tokenizer=")
        )
    return model, copy.deepcopy(tokenizer)  # its pad token may change


def last_token_reasons(model: Any, *, remedy: str) -> list[Problem]:
    """Why a server that reads the last token's state, and no more, cannot compute what this model does."""
    config = model.config
    rules = [
        ("pooling", config.pooling, config.pooling == "last", "last"),
        ("head_layers", config.head_layers, not config.lower_layers, "one layer, the last that is kept"),
        ("bidirectional", config.bidirectional, not config.bidirectional, "false"),
        (
            "problem_type",
            config.problem_type,
            config.problem_type != "ordinal",
            "single-label, multi-label or regression",
        ),
    ]
    rules += truncation_rules(model)
    return [
        Problem(field, f"found {value!r}", f"{accepted}", remedy)
        for field, value, fits, accepted in rules
        if not fits
    ]


def truncation_rules(model: Any) -> list[tuple[str, Any, bool, str]]:
    """`(field, value, fits, accepted)` of a policy that a tokenizer cannot follow; none for title scorers."""
    if not isinstance(model, PooledClassifier):
        return []
    policy = model.config.truncation
    fits = policy not in ("head_tail", "windows")
    return [("truncation", policy, fits, "head or tail, which a tokenizer can do")]


def _reasons(model: Any) -> list[Problem]:
    """Why the stock class cannot compute what this model does; all reasons."""
    config = model.config
    remedy = "the stock class has no such thing: publish the model with save(), or publish.py --form saved"
    problems = last_token_reasons(model, remedy=remedy)
    if config.head != "linear":
        other = "export_reward_model() writes a two-layer head as vLLM reads it; or publish with save()"
        problems.append(Problem("head", f"found {config.head!r}", "linear", other))
    if type(config.text_config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        name = config.text_config.model_type
        accepted = "a family with a ForSequenceClassification class in transformers"
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
        accepted = "two tokens, as the stock head skips pad tokens wherever they stand"
        remedy = "train with another --boundary, or add a pad token before training"
        return [Problem("tokenizer", found, accepted, remedy)]
    tokenizer.pad_token = min(special)[1]
    return []


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Give a place to write to, which becomes `folder` at the end; after an error nothing is left of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        staged = Path(staging, "export")
        yield staged
        os.replace(staged, folder)


def taken(folder: Path) -> list[Problem]:
    """The problem of a folder that holds files, or none."""
    if folder.is_dir() and not any(folder.iterdir()):
        return []
    if not folder.exists():
        return []
    return [Problem(str(folder), "found files", "a new or empty folder", "name another, or empty it")]


def _convert(model: Any, *, pad_id: int) -> Any:
    """Give the stock model with the same tensors, every one of them under the stock name."""
    config = copy.deepcopy(model.config.text_config)
    stock_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    config.id2label, config.label2id = dict(model.config.id2label), dict(model.config.label2id)
    default = "regression" if model.config.num_labels == 1 else "single_label_classification"
    config.problem_type = model.config.problem_type or default
    if model.config.__dict__.get("label_thresholds"):  # the stock class gives probabilities alone
        config.label_thresholds = list(model.config.label_thresholds)
    if model.config.calibration:
        config.calibration = copy.deepcopy(model.config.calibration)
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
        accepted = "a stock class of a backbone and one matrix `score`"
        raise TaskHeadsError(Problem("text_config", found, accepted, "publish the model with save()"))
    stock = stock_class(config).to(model.dtype)
    # As it was trained: servers that compute the head in fp32 then give the logits of this model.
    stock.score.float()
    stock.load_state_dict({name: tensor.cpu() for name, tensor in tensors.items()}, strict=True)
    return stock.eval()


def proof_rows(model: Any, tokenizer: Any) -> list[list[int]]:
    """Token ids of `PROOF_TEXTS`, cut as the model was trained to cut."""
    limit, side = proof_limit(model, tokenizer), tokenizer.truncation_side
    return encode_texts(
        tokenizer, PROOF_TEXTS, max_length=limit, truncation="tail" if side == "left" else "head"
    ).input_ids


def proof_limit(model: Any, tokenizer: Any) -> int:
    """Longest row of the proof: longer texts show nothing that shorter ones do not."""
    limit = model.config.max_seq_length if isinstance(model, PooledClassifier) else None
    return limit or min(tokenizer.model_max_length, 512 + sum(map(len, template_of(tokenizer))))


@torch.no_grad()
def float_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (B, L) of a padded batch, computed in fp32 and in eval mode whatever the model is in."""
    ours = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    training, device = ours.training, ours.device
    ours.eval()
    logits = ours(**{name: tensor.to(device) for name, tensor in batch.items()}).logits.cpu()
    ours.train(training)
    return logits


def check_difference(
    found: torch.Tensor, wanted: torch.Tensor, *, tolerance: float, where: str, what: str
) -> float:
    """Give the largest difference of logits, absolute, if it is within the tolerance.

    Args:
        found: (B, L), of the export.
        wanted: (B, L), of the model.
        tolerance: relative to the largest logit where that is above 1.
        where: the folder.
        what: the class or runtime that computed `found`.

    Raises:
        TaskHeadsError: it is not.
    """
    allowed = tolerance * max(1.0, float(wanted.abs().max()))
    difference = float((found - wanted).abs().max())
    if difference <= allowed:  # false for NaN
        return difference
    found_text = f"found logits of {what} that differ by {difference:.2g}"
    remedy = "this family computes something else there: publish the model with save()"
    raise TaskHeadsError(Problem(where, found_text, f"at most {allowed:.0e}", remedy))


@torch.no_grad()
def _prove(model: Any, tokenizer: Any, folder: Path) -> None:
    """Compare logits in fp32: stock classes from the folder, in padded batches, against the model itself."""
    # Padded as the tokenizer pads below, so that nothing but the classes differs. That padding moves no
    # logit of ours is known; the stock class is compared with it.
    padded = pad_rows(proof_rows(model, tokenizer), pad_id=tokenizer.pad_token_id)
    wanted = float_logits(model, padded)
    # Not by our own loaders: as anyone opens it.
    stock = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    again = AutoTokenizer.from_pretrained(folder)
    limit = proof_limit(model, tokenizer)
    batch = again(list(PROOF_TEXTS), padding=True, truncation=True, max_length=limit, return_tensors="pt")
    found = stock(**batch).logits
    check_difference(found, wanted, tolerance=TOLERANCE, where=str(folder), what=type(stock).__name__)
