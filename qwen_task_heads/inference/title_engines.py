"""Engines for title pairs: a trained scorer, a base model before training, or embeddings.

| kind | source | score of a title |
|---|---|---|
| `scorer` | a title scorer of `recipes/reward_titles.py` or `sweep_heads.py` | its own |
| `zero_shot` | a causal language model | mean log-probability of its tokens, after the prompt of its row |
| `embeddings` | a model of sentence-transformers | Bradley-Terry on embeddings, fitted on train |

All engines implement `scores`: the scores of the chosen and of the rejected title, whose difference is the
logit of P(preferred). The likelihood of a base model is the baseline without training on preferences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.generators import file_of, load_generator
from qwen_task_heads.hubcode.configuration_task_heads import TitleScorerConfig
from qwen_task_heads.hubcode.encoding_task_heads import pad_rows
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.inference.embeddings import Embedder, EmbeddingScorer, missing_library
from qwen_task_heads.inference.engine_options import EMBEDDINGS, SCORER, EngineSpec, PromptOptions
from qwen_task_heads.inference.inputs import batches_by_length, device_of
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.models import load_tokenizer

LOGITS = 2**27  # logits of a batch of a language model: half a GiB in fp32
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TitleEngine:
    """A loaded engine.

    Args:
        spec: kind and source.
        device: device of the model.
        scores: pairs (n) -> (n, 2) float64, chosen first.
        notes: pairs -> messages on truncated pairs.
    """

    spec: EngineSpec
    device: torch.device
    scores: Callable[[Sequence[PairExample]], Floats]
    notes: Callable[[Sequence[PairExample]], list[str]] = lambda pairs: []


def check_title_engines(specs: Sequence[EngineSpec], *, hub: str = HUGGINGFACE) -> None:
    """Validate the sources of engines, before any model is loaded.

    Raises:
        TaskHeadsError: no such model, a scorer without a title head, or embeddings without the library; the
            problems of all engines are raised together.
    """
    problems: list[Problem] = []
    for spec in specs:
        try:
            file = file_of(spec.source, "config.json", hub=hub)
        except TaskHeadsError as error:
            problems += error.problems
            continue
        if spec.kind == EMBEDDINGS:
            problems += missing_library(spec.name)
        elif spec.kind == SCORER and _kind_of(file) != TitleScorerConfig.model_type:
            problems.append(
                Problem(
                    spec.name,
                    "found no title scorer of this library",
                    "a title scorer",
                    "name a model that recipes/reward_titles.py saved",
                    code="model-type",
                )
            )
    if problems:
        raise TaskHeadsError(problems)


def open_title_engine(
    spec: EngineSpec, train: Sequence[PairExample], *, asking: PromptOptions | None = None
) -> TitleEngine:
    """Load an engine; embeddings are fitted on train.

    Raises:
        TaskHeadsError: no such model, or a model of another kind.

    Example:
        >>> from qwen_task_heads.data.examples import PairExample
        >>> from qwen_task_heads.inference.engine_options import EngineSpec
        >>> from qwen_task_heads.inference.title_engines import open_title_engine
        >>> engine = open_title_engine(EngineSpec("zero_shot", "embedded"), [])
        >>> engine.scores([PairExample(chosen="A plain title", rejected="Title a plain")]).shape
        (1, 2)
    """
    asking = asking or PromptOptions()
    if spec.kind == SCORER:
        options: dict[str, Any] = {"hub": asking.hub, "dtype": asking.dtype, "device": asking.device}
        scorer = Scorer(spec.source, batch_tokens=asking.batch_tokens, progress=False, **options)
        return TitleEngine(spec, scorer.model.device, lambda pairs: _score_pairs(scorer, pairs))
    if spec.kind == EMBEDDINGS:
        encode = Embedder(spec.source, hub=asking.hub, device=asking.device)
        fitted = EmbeddingScorer(encode).fit(train)

        def scores(pairs: Sequence[PairExample]) -> Floats:
            return fitted.score(_titles(pairs)).reshape(-1, 2)

        def notes(pairs: Sequence[PairExample]) -> list[str]:
            return encode.truncation_messages(_titles(pairs))

        return TitleEngine(spec, encode.device, scores, notes)
    model = load_generator(spec.source, hub=asking.hub, dtype=asking.dtype)
    device = device_of(asking.device)
    model = model if device is None else model.to(device)
    likelihood = TitleLikelihood(
        model,
        load_tokenizer(spec.source, hub=asking.hub),
        max_length=asking.max_length,
        batch_tokens=asking.batch_tokens,
    )
    return TitleEngine(spec, model.device, likelihood.pairs, likelihood.truncation_messages)


class TitleLikelihood:
    """Mean log-probability per token of titles under a causal language model, in nats.

    A title follows its prompt and a newline, or the token that separates texts, if the tokenizer has one.
    Without either, its first token is not scored. The mean is used because a sum would prefer short titles.

    Args:
        model: a causal language model.
        tokenizer: the tokenizer of the model, without a template.
        max_length: tokens of prompt and title; a longer prompt keeps its end, a longer title its start.
        batch_tokens: tokens per batch.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int, batch_tokens: int = 8192) -> None:
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        vocabulary = model.config.get_text_config().vocab_size
        self.batch_tokens = max(1, min(batch_tokens, LOGITS // vocabulary))
        self._start = tokenizer.bos_token_id
        if self._start is None:
            self._start = tokenizer.eos_token_id

    def pairs(self, pairs: Sequence[PairExample]) -> Floats:
        """Return scores (n, 2) of chosen and rejected titles."""
        prompts = [pair.prompt for pair in pairs for _ in range(2)]
        return self.score(_titles(pairs), prompts=prompts).reshape(-1, 2)

    def score(self, titles: Sequence[str], *, prompts: Sequence[str] | None = None) -> Floats:
        """Return scores (n,) of n titles; equal rows are computed once."""
        rows = [self._ids(*row) for row in zip(titles, prompts or [""] * len(titles), strict=True)]
        places = {row: place for place, row in enumerate(dict.fromkeys(rows))}
        unique = [*places]
        scores = np.empty(len(unique))
        with torch.inference_mode():
            for batch in batches_by_length([len(ids) for ids, _ in unique], limit=self.batch_tokens):
                scores[batch] = self._means([unique[place] for place in batch])
        return scores[[places[row] for row in rows]]

    def truncation_messages(self, pairs: Sequence[PairExample]) -> list[str]:
        """Return a message with the number of truncated pairs, or []."""
        cut = sum(self._length(pair) > self.max_length for pair in pairs)
        return [f"{cut:,} of {len(pairs):,} pairs were cut to {self.max_length:,} tokens"] if cut else []

    def _length(self, pair: PairExample) -> int:
        ids = [self._encode(text) for text in (pair.chosen, pair.rejected)]
        before = self._encode(f"{pair.prompt}\n") if pair.prompt else [0]
        return len(before) + max(map(len, ids))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def _ids(self, title: str, prompt: str) -> tuple[tuple[int, ...], int]:
        """Return the ids of a row, and how many of them are context."""
        own = self._encode(title)[: max(1, self.max_length - 1)]
        start = [] if self._start is None else [self._start]
        before = self._encode(f"{prompt}\n")[-max(1, self.max_length - len(own)) :] if prompt else start
        return (*before, *own), len(before)

    def _means(self, rows: Sequence[tuple[tuple[int, ...], int]]) -> Floats:
        """Return the mean log-probability of the tokens after the context, (n,)."""
        ids = [list(row) for row, _ in rows]
        inputs = {name: value.to(self.model.device) for name, value in pad_rows(ids, pad_id=0).items()}
        logits = self.model(**inputs).logits
        targets = inputs["input_ids"][:, 1:]
        log_p = -torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), targets, reduction="none"
        )  # (n, T - 1)
        known = [(max(1, before), len(row)) for row, before in rows]
        means = [
            float(log_p[place, start - 1 : end - 1].double().mean()) if end > start else 0.0
            for place, (start, end) in enumerate(known)
        ]
        return np.array(means)


def _titles(pairs: Sequence[PairExample]) -> list[str]:
    """Return the chosen and the rejected title of each pair, in one list."""
    return [title for pair in pairs for title in (pair.chosen, pair.rejected)]


def _score_pairs(scorer: Scorer, pairs: Sequence[PairExample]) -> Floats:
    """Return scores (n, 2) of a trained scorer."""
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    scores = scorer.score(_titles(pairs), prompts=prompts if any(prompts) else None)
    return np.array(scores, np.float64).reshape(-1, 2)


def _kind_of(file: str | None) -> str | None:
    """Return `model_type` of a config; None without one."""
    if file is None:
        return None
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None
