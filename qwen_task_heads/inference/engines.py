"""Engines that give one schema of labels to texts: a trained head, a trained generator, a prompted one.

An engine is named on the command line as `kind=source`. All of them answer one call, `log_scores`, in the
order of the schema: labels are aligned by name, never by place. Rows that offer a choice of labels are
answered within it by all. What cannot be answered is refused before any model is loaded, because the others
may have run for hours by then: options (`engine_options.py`), data and labels (`check_engines`), prompts
(`check_prompts`).

| kind | source | labels |
|---|---|---|
| `head` | a trained `PooledClassifier` | its own |
| `sft` | what `recipes/sft_classify.py` saved, with `label_prompt.json` | its own, and its own instruction |
| `zero_shot` | a chat model | the schema's names, and descriptions where there are any |
| `few_shot` | a chat model | the same, with examples from train (`data/few_shot.py`) |
| `embeddings` | a model of sentence-transformers | the schema's, by logistic regression fitted on train |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.data.candidates import within
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.few_shot import Shots, with_shots
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.generators import file_of, load_generator
from qwen_task_heads.hubcode.encoding_task_heads import encode_texts
from qwen_task_heads.inference.embeddings import Embedder, EmbeddingClassifier, missing_library
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
from qwen_task_heads.inference.loading import ONE_LABEL
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.models import load_tokenizer, saved_task
from qwen_task_heads.modelscope import HUGGINGFACE
from qwen_task_heads.tokenization.label_prompts import (
    LABEL_PROMPT,
    AnswerPrompts,
    instruction_for,
    read_label_prompt,
)

SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Engine:
    """A loaded engine.

    Args:
        spec: what it is.
        device: where it runs.
        log_scores: examples (n) to (n, L) float64 in the order of the schema, held to the labels that a row
            offers (`data/candidates.py`).
        notes: of examples, what became of long ones, in plain words.
    """

    spec: EngineSpec
    device: torch.device
    log_scores: Callable[[Sequence[TextExample]], torch.Tensor]
    notes: Callable[[Sequence[TextExample]], list[str]]


def check_engines(specs: Sequence[EngineSpec], sets: TextSets, *, hub: str = HUGGINGFACE) -> None:
    """Refuse data that engines cannot answer, and trained models with other labels, before any is loaded.

    Labels are the same where the names are, in whatever order.

    Raises:
        TaskHeadsError: data of another problem type, pairs for a language model, and one problem per engine
            with the labels that only one side has; all at once.
    """
    labels, problems = sets.labels, []
    if sets.problem_type not in ONE_LABEL:
        found, accepted = f"found {sets.problem_type}", "one label per text"
        problems.append(Problem("--dataset_name", found, accepted, "compare the cards of its models"))
    parts = (sets.train, sets.dev, sets.test)
    if any(row.text_b for part in parts for row in part) and any(
        spec.kind not in (HEAD, EMBEDDINGS) for spec in specs
    ):
        found, accepted = "found pairs of texts", "single texts, where a language model answers"
        problems.append(Problem("--dataset_name", found, accepted, "compare heads and embeddings alone"))
    for spec in specs:
        try:
            own = _own_labels(spec, hub=hub)
        except TaskHeadsError as error:
            problems += error.problems
            continue
        if own is None:
            continue
        sides = []
        for names, other, where in ((own, labels, "the model"), (labels, own, "the data")):
            if only := [name for name in names.names if name not in other.label2id]:
                told = ", ".join(shorten(name, 40) for name in only[:SHOWN])
                sides.append(f"{len(only):,} only in {where} ({told}{', …' if len(only) > SHOWN else ''})")
        if sides:
            remedy = "give the file of its labels by --labels, or leave the engine out"
            accepted = "the same names, in any order"
            problems.append(Problem(spec.name, f"found labels {' and '.join(sides)}", accepted, remedy))
    if problems:
        raise TaskHeadsError(problems)


def check_prompts(
    specs: Sequence[EngineSpec], labels: LabelMap, examples: Sequence[TextExample], *, asking: PromptOptions
) -> None:
    """Refuse what language models cannot be asked, before any is loaded: every prompt is encoded once.

    Raises:
        TaskHeadsError: no tokenizer or chat template, an instruction that cannot be filled, a limit that
            leaves a text no room; of all engines at once, each by its name.
    """
    problems = []
    for spec in specs:
        if spec.kind in (HEAD, EMBEDDINGS):
            continue
        try:
            tokenizer = load_tokenizer(spec.source, hub=asking.hub)
            if spec.kind == SFT:
                path = file_of(spec.source, LABEL_PROMPT, hub=asking.hub) or ""
                prompts = AnswerPrompts.load(path, tokenizer=tokenizer, model_type="")
            else:  # the family moves no token: what ends a turn is in the chat template
                prompts = _prompts(spec, tokenizer, labels, asking=asking, model_type="")
            _cut(prompts, spec, examples, shots=asking.per_text(spec))
        except TaskHeadsError as error:
            options = {"max_length": "--max_length"} if spec.kind != SFT else {}  # a trained one has its own
            for one in error.problems:
                where = options.get(one.where, one.where)
                problems.append(replace(one, where=f"{spec.name}, {where}"))
    if problems:
        raise TaskHeadsError(problems)


def open_engine(
    spec: EngineSpec,
    labels: LabelMap,
    *,
    asking: PromptOptions | None = None,
    train: Sequence[TextExample] = (),
) -> Engine:
    """Load an engine; embeddings are fitted on train.

    Args:
        spec: what to load.
        labels: the schema; its order is that of the scores.
        asking: options; for `few_shot` with shots.
        train: rows that embeddings are fitted on.

    Raises:
        TaskHeadsError: no such model, a model that is not of its kind, or few-shot without examples.

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
    if asking.length_normalized or spec.kind != SFT:  # a trained one knows how it was measured
        common["length_normalized"] = asking.length_normalized
    if spec.kind == SFT:
        options: dict[str, Any] = {"hub": asking.hub, "dtype": asking.dtype, "device": asking.device}
        return _generator(spec, LabelScorer.from_pretrained(spec.source, **options, **common), labels)
    if spec.kind == FEW_SHOT and not asking.shots:
        found, accepted = "found no examples", "examples from train"
        raise TaskHeadsError(Problem(spec.name, found, accepted, "choose some, or use zero_shot"))
    model = load_generator(spec.source, hub=asking.hub, dtype=asking.dtype)
    device = device_of(asking.device)
    model = model if device is None else model.to(device)
    tokenizer, family = load_tokenizer(spec.source, hub=asking.hub), model.config.get_text_config().model_type
    prompts = _prompts(spec, tokenizer, labels, asking=asking, model_type=family)
    answers = LabelScorer(model, prompts=prompts, calibrate=asking.calibrate, **common)
    return _generator(spec, answers, labels, shots=asking.per_text(spec))


def training_cost(spec: EngineSpec, *, hub: str = HUGGINGFACE) -> dict[str, Any] | None:
    """What `metrics.json` of a trained model says of its training, {} without one; None for prompted ones.

    Returns:
        `rows`, `sha256`, `labels`, `seconds`, `device`, `processes`, `resumed`.
    """
    if spec.kind not in TRAINED:
        return None
    path = file_of(spec.source, "metrics.json", hub=hub)
    try:
        if path is None:
            return {}
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        data = told["data"]["train"]
        rows = data.get("rows", data.get("pairs"))
        return {**told["train"], "rows": rows, "sha256": data.get("sha256"), "labels": told.get("labels")}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):  # a file of somebody else's
        return {}


def _own_labels(spec: EngineSpec, *, hub: str) -> LabelMap | None:
    """Labels that a trained model was saved with; None for prompted ones."""
    if spec.kind == HEAD:
        task = saved_task(spec.source, hub=hub)
        if not task or task["problem_type"] not in ONE_LABEL:
            found = f"found {task['problem_type']}" if task else "found no classifier of this library"
            accepted = "a head that gives every text one label"
            raise TaskHeadsError(Problem(spec.name, found, accepted, "name what recipes/classify.py saved"))
        labels: LabelMap = task["labels"]
        return labels
    path = file_of(spec.source, LABEL_PROMPT, hub=hub)
    if spec.kind == EMBEDDINGS:
        if problems := missing_library(spec.name):
            raise TaskHeadsError(problems)
        return None
    if spec.kind != SFT:
        if path is None:
            return None
        accepted = "a chat model that was not trained to write labels"
        raise TaskHeadsError(
            Problem(spec.name, f"found a {LABEL_PROMPT}", accepted, f"name it as sft={spec.source}")
        )
    if path is None:
        accepted, remedy = f"a model with {LABEL_PROMPT}", "ask a plain chat model by zero_shot="
        raise TaskHeadsError(Problem(spec.name, f"found no {LABEL_PROMPT}", accepted, remedy))
    written: LabelMap = read_label_prompt(path)["labels"]
    return written


def _head(spec: EngineSpec, scorer: Scorer, labels: LabelMap) -> Engine:
    config = scorer.model.config
    order = _order(LabelMap.of_config(config), labels)

    def given(examples: Sequence[TextExample]) -> tuple[list[str], list[str] | None]:
        pairs = [example.text_b for example in examples]
        told = pairs if any(pairs) or scorer.needs_pairs else None
        return [example.text for example in examples], told

    def log_scores(examples: Sequence[TextExample]) -> torch.Tensor:
        texts, pairs = given(examples)
        logits = scorer.logits(texts, text_pairs=pairs)
        found = logits.double().log_softmax(-1)[:, order].numpy()
        return torch.from_numpy(within(found, examples, labels=labels))

    def notes(examples: Sequence[TextExample]) -> list[str]:
        texts, pairs = given(examples)
        limits: dict[str, Any] = {"max_length": config.max_seq_length, "truncation": config.truncation}
        cut = encode_texts(scorer.tokenizer, texts, text_pairs=pairs, **limits).cut
        what = "were read in windows" if config.truncation == "windows" else "were cut, for rows"
        return [f"{cut:,} of {len(texts):,} texts {what} of {config.max_seq_length:,} tokens"] if cut else []

    return Engine(spec, scorer.model.device, log_scores, notes)


def _embeddings(
    spec: EngineSpec, labels: LabelMap, train: Sequence[TextExample], *, asking: PromptOptions
) -> Engine:
    encode = Embedder(spec.source, hub=asking.hub, device=asking.device)
    fitted = EmbeddingClassifier(encode, len(labels)).fit(train)

    def log_scores(examples: Sequence[TextExample]) -> torch.Tensor:
        return torch.from_numpy(within(fitted.log_scores(examples), examples, labels=labels))

    def notes(examples: Sequence[TextExample]) -> list[str]:
        return encode.cut_line([text for row in examples for text in (row.text, row.text_b) if text])

    return Engine(spec, encode.device, log_scores, notes)


def _generator(
    spec: EngineSpec, answers: LabelScorer, labels: LabelMap, *, shots: Mapping[str, Shots] | None = None
) -> Engine:
    order = _order(answers.prompts.labels, labels)

    def log_scores(examples: Sequence[TextExample]) -> torch.Tensor:
        # Examples are of all labels, so few-shot asks for all, and the choice is made afterwards.
        options: dict[str, Any] = {"shots": None if shots is None else [shots[row.text] for row in examples]}
        if spec.kind != FEW_SHOT:
            options = {"candidates": [example.candidates or None for example in examples]}
        scores = answers.log_scores([example.text for example in examples], **options)
        return torch.from_numpy(within(scores[:, order].numpy(), examples, labels=labels))

    def notes(examples: Sequence[TextExample]) -> list[str]:
        cut, fewer = _cut(answers.prompts, spec, examples, shots=shots)
        lines = (
            [f"labels are scored one by one: {answers.fallback_reason}"] if answers.fallback_reason else []
        )
        limit = f"{answers.prompts.max_length:,} tokens"
        if cut:
            lines.append(f"{cut:,} of {len(examples):,} texts were cut, for prompts of {limit}")
        if fewer:
            lines.append(f"{fewer:,} prompts of {len(examples):,} show fewer examples, to fit {limit}")
        return lines

    return Engine(spec, answers.model.device, log_scores, notes)


def _prompts(
    spec: EngineSpec, tokenizer: Any, labels: LabelMap, *, asking: PromptOptions, model_type: str
) -> AnswerPrompts:
    """Prompts of a model that is asked, with the examples that all texts share."""
    few = spec.kind == FEW_SHOT
    words = instruction_for(labels, few_shot=few) if asking.instruction is None else asking.instruction
    shown = with_shots(labels, next(iter(asking.shots.values()))) if few else labels
    options: dict[str, Any] = {"model_type": model_type, "max_length": asking.max_length}
    return AnswerPrompts(tokenizer, shown, instruction=words, **options)


def _cut(
    prompts: AnswerPrompts,
    spec: EngineSpec,
    examples: Sequence[TextExample],
    *,
    shots: Mapping[str, Shots] | None,
) -> tuple[int, int]:
    """Encode as scoring does; how many texts are cut, and how many prompts show fewer examples."""
    asked: dict[tuple[str, ...], list[TextExample]] = {}
    for example in examples:
        asked.setdefault(() if spec.kind == FEW_SHOT else example.candidates, []).append(example)
    cut = fewer = 0
    for offered, rows in asked.items():
        shown = None if shots is None else [shots[row.text] for row in rows]
        found = prompts.encode([row.text for row in rows], candidates=offered or None, shots=shown)
        cut, fewer = cut + found.cut, fewer + found.fewer
    return cut, fewer


def _order(own: LabelMap, labels: LabelMap) -> list[int]:
    """Places of the schema's labels in the model's scores."""
    return [own.label2id[name] for name in labels.names]
