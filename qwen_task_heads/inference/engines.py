"""Engines for text classification: a trained head, a trained or prompted generator, or embeddings.

An engine is named on the command line as `kind=source`. All engines implement `log_scores`, in the order of
the schema: labels are aligned by name. Rows with candidate labels are scored within these. Everything is
validated before any model is loaded, because the other engines may run for hours: options
(`engine_options.py`), data, labels and prompts (`engine_checks.py`).

| kind | source | labels |
|---|---|---|
| `head` | a trained `PooledClassifier` | its own |
| `sft` | a generative classifier of `recipes/sft_classify.py` | its own, with its own instruction |
| `zero_shot` | a chat model | the schema's names, and descriptions if there are any |
| `few_shot` | a chat model | the same, with examples from train (`data/few_shot.py`) |
| `embeddings` | a model of sentence-transformers | the schema's, by logistic regression fitted on train |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.data.candidates import within
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.few_shot import Shots
from qwen_task_heads.errors import error_at
from qwen_task_heads.generators import file_of, load_generator
from qwen_task_heads.hubcode.encoding_task_heads import encode_texts
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.inference.embeddings import Embedder, EmbeddingClassifier
from qwen_task_heads.inference.engine_checks import count_truncated, prompts_of
from qwen_task_heads.inference.engine_options import (
    EMBEDDINGS,
    FEW_SHOT,
    HEAD,
    SFT,
    TRAINED,
    EngineSpec,
    PromptOptions,
)
from qwen_task_heads.inference.inputs import device_of
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.models import load_tokenizer


@dataclass(frozen=True)
class Engine:
    """A loaded engine.

    Args:
        spec: kind and source.
        device: device of the model.
        log_scores: examples (n) -> (n, L) float64 in the order of the schema, restricted to the candidates of
            each row (`data/candidates.py`).
        notes: examples -> messages on truncated texts.
    """

    spec: EngineSpec
    device: torch.device
    log_scores: Callable[[Sequence[TextExample]], torch.Tensor]
    notes: Callable[[Sequence[TextExample]], list[str]]


def open_engine(
    spec: EngineSpec,
    labels: LabelMap,
    *,
    asking: PromptOptions | None = None,
    train: Sequence[TextExample] = (),
) -> Engine:
    """Load an engine; embeddings are fitted on train.

    Args:
        spec: kind and source.
        labels: the schema, whose order the scores have.
        asking: options; for `few_shot` with shots.
        train: rows that embeddings are fitted on.

    Raises:
        TaskHeadsError: no such model, a model of another kind, or few-shot without examples.

    Example:
        >>> from qwen_task_heads.data.examples import TextExample
        >>> from qwen_task_heads.inference.engine_options import EngineSpec
        >>> from qwen_task_heads.inference.engines import open_engine
        >>> engine = open_engine(EngineSpec("zero_shot", "embedded"), LabelMap(("sport", "trade")))
        >>> engine.log_scores([TextExample(text="A match", target=0)]).shape
        torch.Size([1, 2])
    """
    asking = asking or PromptOptions()
    common: dict[str, Any] = {"batch_tokens": asking.batch_tokens}
    if spec.kind == HEAD:
        scorer = Scorer(spec.source, hub=asking.hub, dtype=asking.dtype, device=asking.device, **common)
        return _head(spec, scorer, labels)
    if spec.kind == EMBEDDINGS:
        return _embeddings(spec, labels, train, asking=asking)
    if asking.length_normalized or spec.kind != SFT:  # a trained model has its own default
        common["length_normalized"] = asking.length_normalized
    if spec.kind == SFT:
        options: dict[str, Any] = {"hub": asking.hub, "dtype": asking.dtype, "device": asking.device}
        return _generator(spec, LabelScorer.from_pretrained(spec.source, **options, **common), labels)
    if spec.kind == FEW_SHOT and not asking.shots:
        raise error_at(
            spec.name,
            "found no examples",
            "examples from train",
            "choose some, or use zero_shot",
            code="rows-too-few",
        )
    model = load_generator(spec.source, hub=asking.hub, dtype=asking.dtype)
    device = device_of(asking.device)
    model = model if device is None else model.to(device)
    tokenizer, family = load_tokenizer(spec.source, hub=asking.hub), model.config.get_text_config().model_type
    prompts = prompts_of(spec, tokenizer, labels, asking=asking, model_type=family)
    answers = LabelScorer(model, prompts=prompts, calibrate=asking.calibrate, **common)
    return _generator(spec, answers, labels, shots=asking.per_text(spec))


def training_cost(spec: EngineSpec, *, hub: str = HUGGINGFACE) -> dict[str, Any] | None:
    """Return the training cost in `metrics.json` of a trained model; {} without one, None if prompted.

    Returns:
        `rows`, `sha256`, `labels`, `seconds`, `device`, `processes`, `resumed`.
    """
    if spec.kind not in TRAINED:
        return None
    path = file_of(spec.source, "metrics.json", hub=hub)
    try:
        if path is None:
            return {}
        metrics = json.loads(Path(path).read_text(encoding="utf-8"))
        data = metrics["data"]["train"]
        rows = data.get("rows", data.get("pairs"))
        return {
            **metrics["train"],
            "rows": rows,
            "sha256": data.get("sha256"),
            "labels": metrics.get("labels"),
        }
    except (OSError, ValueError, TypeError, AttributeError, KeyError):  # not a file of this library
        return {}


def _head(spec: EngineSpec, scorer: Scorer, labels: LabelMap) -> Engine:
    config = scorer.model.config
    order = _order(LabelMap.of_config(config), labels)

    def columns(examples: Sequence[TextExample]) -> tuple[list[str], list[str] | None]:
        second = [example.text_b for example in examples]
        has_pairs = any(second) or scorer.needs_pairs
        return [example.text for example in examples], second if has_pairs else None

    def log_scores(examples: Sequence[TextExample]) -> torch.Tensor:
        texts, pairs = columns(examples)
        logits = scorer.logits(texts, text_pairs=pairs)
        scores = logits.double().log_softmax(-1)[:, order].numpy()
        return torch.from_numpy(within(scores, examples, labels=labels))

    def notes(examples: Sequence[TextExample]) -> list[str]:
        texts, pairs = columns(examples)
        limits: dict[str, Any] = {"max_length": config.max_seq_length, "truncation": config.truncation}
        cut = encode_texts(scorer.tokenizer, texts, text_pairs=pairs, **limits).cut
        action = "were read in windows" if config.truncation == "windows" else "were cut, for rows"
        return (
            [f"{cut:,} of {len(texts):,} texts {action} of {config.max_seq_length:,} tokens"] if cut else []
        )

    return Engine(spec, scorer.model.device, log_scores, notes)


def _embeddings(
    spec: EngineSpec, labels: LabelMap, train: Sequence[TextExample], *, asking: PromptOptions
) -> Engine:
    encode = Embedder(spec.source, hub=asking.hub, device=asking.device)
    fitted = EmbeddingClassifier(encode, len(labels)).fit(train)

    def log_scores(examples: Sequence[TextExample]) -> torch.Tensor:
        return torch.from_numpy(within(fitted.log_scores(examples), examples, labels=labels))

    def notes(examples: Sequence[TextExample]) -> list[str]:
        texts = [text for row in examples for text in (row.text, row.text_b) if text]
        return encode.truncation_messages(texts)

    return Engine(spec, encode.device, log_scores, notes)


def _generator(
    spec: EngineSpec, answers: LabelScorer, labels: LabelMap, *, shots: Mapping[str, Shots] | None = None
) -> Engine:
    order = _order(answers.prompts.labels, labels)

    def log_scores(examples: Sequence[TextExample]) -> torch.Tensor:
        # The examples have all labels, so few-shot scores all, and `within` restricts them afterwards.
        options: dict[str, Any] = {"shots": None if shots is None else [shots[row.text] for row in examples]}
        if spec.kind != FEW_SHOT:
            options = {"candidates": [example.candidates or None for example in examples]}
        scores = answers.log_scores([example.text for example in examples], **options)
        return torch.from_numpy(within(scores[:, order].numpy(), examples, labels=labels))

    def notes(examples: Sequence[TextExample]) -> list[str]:
        cut, fewer = count_truncated(answers.prompts, spec, examples, shots=shots)
        reason = answers.fallback_reason
        messages = [f"labels are scored one by one: {reason}"] if reason else []
        limit = f"{answers.prompts.max_length:,} tokens"
        if cut:
            messages.append(f"{cut:,} of {len(examples):,} texts were cut, for prompts of {limit}")
        if fewer:
            messages.append(f"{fewer:,} prompts of {len(examples):,} have fewer examples, to fit {limit}")
        return messages

    return Engine(spec, answers.model.device, log_scores, notes)


def _order(own: LabelMap, labels: LabelMap) -> list[int]:
    """Return the indices of the schema's labels in the model's scores."""
    return [own.label2id[name] for name in labels.names]
