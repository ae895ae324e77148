"""Engines that prefer one of two titles: a trained scorer, a base model before training, embeddings.

| kind | source | score of a title |
|---|---|---|
| `scorer` | what `recipes/reward_titles.py` or `sweep_heads.py` saved | its own |
| `zero_shot` | a causal language model | mean log-probability of its tokens, after the prompt of its row |
| `embeddings` | a model of sentence-transformers | Bradley-Terry on embeddings, fitted on train |

All answer one call, `scores`: the score of the chosen and of the rejected title, whose difference is the
logit of P(preferred). A base model has read many titles and no clicks: how likely it finds a title is what it
knows of titles before training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
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
from qwen_task_heads.inference.embeddings import Embedder, EmbeddingScorer, missing_library
from qwen_task_heads.inference.engine_options import EMBEDDINGS, SCORER, EngineSpec, PromptOptions
from qwen_task_heads.inference.inputs import device_of
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.modelscope import HUGGINGFACE

LOGITS = 2**27  # of a batch of a language model: half a GiB in fp32
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TitleEngine:
    """A loaded engine.

    Args:
        spec: what it is.
        device: where it runs.
        scores: pairs (n) to (n, 2) float64, chosen first.
        notes: of pairs, what became of long ones, in plain words.
    """

    spec: EngineSpec
    device: torch.device
    scores: Callable[[Sequence[PairExample]], Floats]
    notes: Callable[[Sequence[PairExample]], list[str]] = lambda pairs: []


def check_title_engines(specs: Sequence[EngineSpec], *, hub: str = HUGGINGFACE) -> None:
    """Refuse what is no engine of its kind, before any is loaded.

    Raises:
        TaskHeadsError: no such model, a scorer without a title head, or embeddings without the library; all
            at once.
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
            accepted, remedy = "a title scorer", "name what recipes/reward_titles.py saved"
            problems.append(Problem(spec.name, "found no title scorer of this library", accepted, remedy))
    if problems:
        raise TaskHeadsError(problems)


def open_title_engine(
    spec: EngineSpec, train: Sequence[PairExample], *, asking: PromptOptions | None = None
) -> TitleEngine:
    """Load an engine; embeddings are fitted on train.

    Raises:
        TaskHeadsError: no such model, or a model that is not of its kind.

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
        return TitleEngine(spec, scorer.model.device, lambda pairs: _both(scorer, pairs))
    if spec.kind == EMBEDDINGS:
        encode = Embedder(spec.source, hub=asking.hub, device=asking.device)
        fitted = EmbeddingScorer(encode).fit(train)

        def embedded(pairs: Sequence[PairExample]) -> Floats:
            found = fitted.score([title for pair in pairs for title in (pair.chosen, pair.rejected)])
            return found.reshape(-1, 2)

        def cut(pairs: Sequence[PairExample]) -> list[str]:
            return encode.cut_line([title for pair in pairs for title in (pair.chosen, pair.rejected)])

        return TitleEngine(spec, encode.device, embedded, cut)
    model = load_generator(spec.source, hub=asking.hub, dtype=asking.dtype)
    device = device_of(asking.device)
    model = model if device is None else model.to(device)
    likelihood = TitleLikelihood(
        model,
        load_tokenizer(spec.source, hub=asking.hub),
        max_length=asking.max_length,
        batch_tokens=asking.batch_tokens,
    )
    return TitleEngine(spec, model.device, likelihood.pairs, likelihood.cut_line)


class TitleLikelihood:
    """Mean log-probability per token of titles under a causal language model, in nats.

    A title follows its prompt and a line end, or else the token that separates texts, if the tokenizer has
    one; without either its first token is not counted. A mean, because a sum would prefer short titles.

    Args:
        model: a causal language model.
        tokenizer: its own, without a template.
        max_length: tokens of prompt and title; a longer prompt keeps its end, a longer title its beginning.
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
        """Scores (n, 2) of chosen and rejected titles."""
        titles = [title for pair in pairs for title in (pair.chosen, pair.rejected)]
        prompts = [pair.prompt for pair in pairs for _ in range(2)]
        return self.score(titles, prompts=prompts).reshape(-1, 2)

    def score(self, titles: Sequence[str], *, prompts: Sequence[str] | None = None) -> Floats:
        """Scores (n,) of n titles; equal rows are computed once."""
        rows = [self._ids(*row) for row in zip(titles, prompts or [""] * len(titles), strict=True)]
        places = {row: place for place, row in enumerate(dict.fromkeys(rows))}
        unique = [*places]
        found = np.empty(len(unique))
        with torch.inference_mode():
            for batch in self._batches(unique):
                found[batch] = self._means([unique[place] for place in batch])
        return found[[places[row] for row in rows]]

    def cut_line(self, pairs: Sequence[PairExample]) -> list[str]:
        """How many pairs were cut."""
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
        """Ids of a row, and how many of them are context."""
        own = self._encode(title)[: max(1, self.max_length - 1)]
        start = [] if self._start is None else [self._start]
        before = self._encode(f"{prompt}\n")[-max(1, self.max_length - len(own)) :] if prompt else start
        return (*before, *own), len(before)

    def _batches(self, rows: Sequence[tuple[tuple[int, ...], int]]) -> Iterator[list[int]]:
        batch: list[int] = []
        for place in sorted(range(len(rows)), key=lambda place: len(rows[place][0])):
            if batch and len(rows[place][0]) * (len(batch) + 1) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _means(self, rows: Sequence[tuple[tuple[int, ...], int]]) -> Floats:
        """Mean log-probability of the tokens after the context, (n,)."""
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


def _both(scorer: Scorer, pairs: Sequence[PairExample]) -> Floats:
    """Scores (n, 2) of a trained scorer."""
    titles = [title for pair in pairs for title in (pair.chosen, pair.rejected)]
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    found = scorer.score(titles, prompts=prompts if any(prompts) else None)
    return np.array(found, np.float64).reshape(-1, 2)


def _kind_of(file: str | None) -> str | None:
    """`model_type` of a config; None without one."""
    if file is None:
        return None
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("model_type") if isinstance(found, dict) else None
