"""`Scorer`: texts in; scores and ranks, or labels and probabilities out. Imports neither trl nor datasets.

The ids come from the encoder of training, the one place where texts become ids, by the length and the
truncation that the model was saved with. So an answer here is the answer of training, of the pipelines
and of any server that uses the saved tokenizer.

Nothing is computed twice: rows are packed, batches hold rows that begin alike, what all rows of a call
begin with is kept for the next call, and an adapter is merged into its base when it is loaded by name.
None of it but `int8` moves a score by more than rounding.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import TitleScorerConfig
from qwen_task_heads.hubcode.encoding_task_heads import (
    encode,
    encode_texts,
    pad_rows,
    strip_title,
    template_of,
)
from qwen_task_heads.inference.identity import Samples, Stored, sample_weights
from qwen_task_heads.inference.inputs import RAISE, check_rows, device_of, in_place, rows_of, without
from qwen_task_heads.inference.int8 import to_int8
from qwen_task_heads.inference.predictions import (
    Prediction,
    check_options,
    confidence_for,
    problem_type_of,
    to_predictions,
)
from qwen_task_heads.inference.prefix_cache import PrefixCache, state_of
from qwen_task_heads.models import load, load_tokenizer, merge
from qwen_task_heads.throughput import Throughput

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class RankedTitle:
    """A title as it was given, with its score, its rank (1 is best) and P(it is the best of its list).

    A bad row that was kept has an `error`, no rank, and NaN for score and probability.
    """

    title: str
    score: float
    probability: float
    rank: int | None
    error: str | None = None


class FailedScore(float):
    """The score of a bad row that was kept: NaN, with its `error`.

    Example:
        >>> from qwen_task_heads.inference.scorer import FailedScore
        >>> score = FailedScore("titles[0]: found ''")
        >>> score == score, score.error
        (False, "titles[0]: found ''")
    """

    error: str

    def __new__(cls, error: str) -> FailedScore:
        """Make NaN with an error."""
        score = super().__new__(cls, "nan")
        score.error = error
        return score

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]  # float's gives its value
        return (self.error,)

    def __repr__(self) -> str:
        return f"FailedScore({self.error!r})"


class Scorer:
    """Score and rank titles with a trained `TitleScorer`, or label texts with a `PooledClassifier`.

    `score`, `rank` and `prefer` are of title scorers, `logits` and `predict` of classifiers. All take lists,
    tuples, generators, NumPy and Arrow arrays and Series. Titles are read without `<title>` tags. With
    `on_error="keep"` a bad row keeps its place as an answer with an `error`, and the others are answered.

    Args:
        model: repo id, folder, or a loaded model (then give `tokenizer`).
        tokenizer: the tokenizer saved with the model.
        batch_tokens: tokens per batch; bounds the memory, changes no score but with `int8`.
        device: where to run; the model's own device when None, the GPU if there is one when `auto`.
        progress: show a bar over more than a thousand texts.
        revision: of a repo id: branch, tag or commit.
        hub: where ids are looked up, `huggingface` or `modelscope`.
        dtype: of the backbone's weights; as they were saved when `auto`. `torch.bfloat16` halves the memory,
            and the time where the processor has it.
        int8: on a CPU, multiply the backbone's matrices in int8. Scores change a little: see the card, or
            `inference.int8.agreement`, for how often the answers stay.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import Scorer, build, load_tokenizer, save
        >>> folder = save(build("embedded"), tokenizer=load_tokenizer("embedded"), folder=tempfile.mkdtemp())
        >>> ranked = Scorer(str(folder)).rank(["A plain title", "You won't believe this title"])
        >>> [title.rank for title in ranked]
        [1, 2]
        >>> model = build("embedded", task="pooled_classifier", labels=["sport", "trade"])
        >>> [answer] = Scorer(model, tokenizer=load_tokenizer("embedded")).predict(["A match"])
        >>> answer.label in ("sport", "trade")
        True
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        batch_tokens: int = 8192,
        device: str | torch.device | None = None,
        progress: bool = True,
        revision: str | None = None,
        hub: str = "huggingface",
        dtype: torch.dtype | str = "auto",
        int8: bool = False,
    ) -> None:
        if batch_tokens < 1:
            found, remedy = f"found {batch_tokens}", "choose such as 8192"
            raise TaskHeadsError(Problem("batch_tokens", found, "1 or more", remedy))
        device = device_of("cpu" if int8 and device == "auto" else device)
        samples: Samples = {}
        if isinstance(model, (str, Path)):
            tokenizer = tokenizer or load_tokenizer(str(model), revision=revision, hub=hub)
            model = load(str(model), revision=revision, hub=hub, dtype=dtype)
            samples = sample_weights(model)
            if model._hf_peft_config_loaded:
                model = merge(model)
        if tokenizer is None:
            raise TaskHeadsError(
                Problem("Scorer", "found a model without a tokenizer", "both", "pass tokenizer=")
            )
        self.model = model.eval() if device is None else model.eval().to(device)
        self.int8 = int8
        if int8:
            self.model = to_int8(self.model)
        self.stored: Stored = (state_of(self.model) if samples else None, samples)
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.progress = progress
        self.prefixes = PrefixCache(self.model, template=template_of(tokenizer)[0])
        self.throughput = Throughput()  # of all calls

    @property
    def config(self) -> Any:
        """The model's, with its labels and problem type."""
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the backbone's weights."""
        dtype: torch.dtype = self.model.model.dtype
        return dtype

    @property
    def is_title_scorer(self) -> bool:
        """Whether the model gives one score per title, and no labels."""
        return isinstance(self.model.config, TitleScorerConfig)

    @property
    def takes_pairs(self) -> bool:
        """Whether the model reads pairs of texts; one without a template, which no recipe trained, may."""
        template = None if self.is_title_scorer else self.model.config.template
        return not self.is_title_scorer and (not template or "between" in template)

    @property
    def needs_pairs(self) -> bool:
        """Whether the model was trained on pairs, so that who gives single texts alone has to say so."""
        return not self.is_title_scorer and "between" in (self.model.config.template or {})

    def score(
        self, titles: Iterable[str], *, prompts: Iterable[str] | None = None, on_error: str = RAISE
    ) -> list[float]:
        """Score n titles, higher is better, in their order.

        Args:
            titles: n texts, not empty.
            prompts: n contexts, "" for none; or None.
            on_error: `raise` refuses bad rows; `keep` gives a `FailedScore` in their place.

        Raises:
            TaskHeadsError: an empty title, another number of prompts, or a model that is no title scorer.
        """
        rows = rows_of("titles", titles)
        contexts = None if prompts is None else rows_of("prompts", prompts)
        scores, bad = self._score(rows, contexts, on_error=on_error)
        return in_place(scores, {place: FailedScore(error) for place, error in bad.items()})

    def _score(
        self, titles: list[Any], prompts: list[Any] | None, *, on_error: str | None, of_list: bool = False
    ) -> tuple[list[float], Mapping[int, str]]:
        """Scores of the good rows, and the errors of the bad ones by their place."""
        self._check_model("score", of_titles=True)
        bad = check_rows(titles, prompts, names=("titles", "prompts"), on_error=on_error, titles=True)
        good, contexts = without(titles, bad), None if prompts is None else without(prompts, bad)
        bare = [strip_title(title) for title in good]  # as the readers of training give them
        encoded = encode(self.tokenizer, bare, prompts=contexts)
        if encoded.cut_prompts or encoded.cut_titles:
            limit = self.tokenizer.model_max_length
            cut = f"{encoded.cut_prompts:,} prompts and {encoded.cut_titles:,} titles"
            logger.warning(f"{cut} of {len(good):,} rows were cut to {limit:,} tokens, as in training")
        return self._run(encoded.input_ids, of_list=of_list)[:, 0].tolist(), bad

    def rank(
        self, titles: Iterable[str], *, prompt: str = "", top_k: int | None = None, on_error: str = RAISE
    ) -> list[RankedTitle]:
        """Rank the titles of one list, best first; equal scores keep their order.

        Args:
            titles: n texts, not empty.
            prompt: the context that all share.
            top_k: how many of the best to give; all when None.
            on_error: `raise` refuses bad rows; `keep` gives them after the ranked ones, in their order, with
                an `error`.

        Raises:
            TaskHeadsError: as of `score`.
        """
        if prompt and not isinstance(prompt, str):
            raise TaskHeadsError(
                Problem("prompt", f"found a {type(prompt).__name__}", "a text", 'use "" for none')
            )
        rows = rows_of("titles", titles)
        contexts = [prompt] * len(rows) if prompt else None
        scores, bad = self._score(rows, contexts, on_error=on_error, of_list=bool(prompt))
        good = without(rows, bad)
        probabilities = torch.tensor(scores).softmax(0).tolist() if scores else []
        best = sorted(range(len(good)), key=lambda index: -scores[index])
        ranked = [
            RankedTitle(good[index], scores[index], probabilities[index], rank)
            for rank, index in enumerate(best, start=1)
        ]
        nan = float("nan")
        failed = [RankedTitle(rows[place], nan, nan, None, error) for place, error in bad.items()]
        return ranked[:top_k] + failed

    def prefer(self, first: str, second: str, *, prompt: str = "") -> float:
        """P(first preferred to second) = sigmoid(score difference)."""
        contexts = [prompt, prompt] if prompt else None
        (a, b), _ = self._score([first, second], contexts, on_error=None)
        return float(torch.sigmoid(torch.tensor(a - b)))

    def logits(self, texts: Iterable[str], *, text_pairs: Iterable[str] | None = None) -> torch.Tensor:
        """Logits of n texts: (n, labels) fp32 on the CPU, in their order.

        Args:
            texts: n texts, not empty; cut or read in windows as the model's config says.
            text_pairs: n second texts of pairs, "" for none; None for a model of single texts only.

        Raises:
            TaskHeadsError: an empty text, another number of second texts, pairs for a model of single texts,
                none for a model of pairs, or a title scorer.
        """
        self._check_model("logits", of_titles=False)
        rows = rows_of("texts", texts)
        return self._logits(rows, None if text_pairs is None else rows_of("text_pairs", text_pairs))[0]

    def _logits(
        self, texts: list[Any], text_pairs: list[Any] | None, *, on_error: str | None = None
    ) -> tuple[torch.Tensor, Mapping[int, str]]:
        """Logits of the good rows, and the errors of the bad ones by their place."""
        bad = check_rows(texts, text_pairs, names=("texts", "text_pairs"), on_error=on_error)
        good, pairs = without(texts, bad), None if text_pairs is None else without(text_pairs, bad)
        if any(pairs or ()) and not self.takes_pairs:
            accepted, remedy = "single texts, as in training", "drop them"
            raise TaskHeadsError(Problem("text_pairs", "found second texts", accepted, remedy))
        if texts and text_pairs is None and self.needs_pairs:
            accepted, remedy = (
                "pairs, as in training",
                'give text_pairs=[...], "" where there is none',
            )
            raise TaskHeadsError(Problem("text_pairs", "found no second texts", accepted, remedy))
        return self._run(self._encode_texts(good, pairs)), bad

    def predict(
        self,
        texts: Iterable[str],
        *,
        text_pairs: Iterable[str] | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        abstain: float | None = None,
        max_error: float | None = None,
        on_error: str = RAISE,
    ) -> list[Prediction]:
        """Answers with label names and probabilities (or scores) for n texts, in their order.

        Args:
            texts: n texts, not empty.
            text_pairs: as of `logits`.
            top_k: how many labels `ranked` holds; all when None, or if there are fewer.
            threshold: of multi-label models: labels at or over it are predicted; when None those that the
                model's run chose on dev, one per label, or 0.5.
            abstain: of single-label and ordinal models: no label where the best probability is below it.
            max_error: in place of `abstain`: no label where the best probability is below the one from which
                at most this share of the answers on dev was wrong; see `predictions.confidence_for`.
            on_error: `raise` refuses bad rows; `keep` gives a `Prediction` with an `error` in their place.

        Raises:
            TaskHeadsError: as of `logits`, or an option that the problem type does not have.
        """
        self._check_model("predict", of_titles=False)
        config = self.model.config
        options: dict[str, Any] = {"top_k": top_k, "threshold": threshold, "abstain": abstain}
        options["max_error"] = max_error
        # Before the logits, which may take hours.
        check_options(problem_type_of(config), **options)
        if max_error is not None:
            confidence_for(max_error, config)
        rows = rows_of("texts", texts)
        pairs = None if text_pairs is None else rows_of("text_pairs", text_pairs)
        logits, bad = self._logits(rows, pairs, on_error=on_error)
        return to_predictions(logits, config, texts=rows, text_pairs=pairs, errors=bad, **options)

    def _encode_texts(self, texts: Sequence[str], text_pairs: Sequence[str] | None) -> list[list[int]]:
        config = self.model.config
        return encode_texts(
            self.tokenizer,
            texts,
            text_pairs=text_pairs,
            max_length=config.max_seq_length,
            truncation=config.truncation,
        ).input_ids

    def _check_model(self, method: str, *, of_titles: bool) -> None:
        if self.is_title_scorer == of_titles:
            return
        remedy = "call predict() or logits()" if of_titles else "call score(), rank() or prefer()"
        accepted = f"a {'title_scorer' if of_titles else 'pooled_classifier'}"
        found = f"found a {self.model.config.model_type}"
        raise TaskHeadsError(Problem(f"Scorer.{method}", found, accepted, remedy))

    def _run(self, rows: list[list[int]], *, of_list: bool = False) -> torch.Tensor:
        """Logits (n, L) of n rows of ids, fp32 on the CPU, in their order.

        Equal rows are computed once: in another batch one would differ by rounding, and not be a tie.
        """
        places: dict[tuple[int, ...], int] = {}
        index = [places.setdefault(tuple(row), len(places)) for row in rows]
        if len(places) < len(rows):
            return self._run([list(row) for row in places], of_list=of_list)[index]
        result = torch.empty(len(rows), self.model.config.num_labels)
        limit = None if self.is_title_scorer else self.model.config.max_seq_length
        # The model cuts longer rows itself, and has to see them whole.
        fits = limit is None or max(map(len, rows), default=0) <= limit
        known, prefix = self.prefixes.take(rows, of_list=of_list) if fits else (0, None)
        options = {"prefix": prefix} if prefix else {}
        begin = time.monotonic()
        with self.throughput.listening(self.model), torch.inference_mode():
            for batch in self._batches(rows, known=known):
                parts = [rows[index][known:] for index in batch]
                tensors = pad_rows(parts, pad_id=self.tokenizer.pad_token_id or 0)
                inputs = {name: value.to(self.model.device) for name, value in tensors.items()}
                result[batch] = self.model(**inputs, **options).logits.float().cpu()
        self.throughput.seconds += time.monotonic() - begin
        return result

    def _batches(self, rows: list[list[int]], *, known: int) -> Iterable[list[int]]:
        """Cut the indices into batches of at most `batch_tokens` tokens, `known` ones of each row apart.

        Rows that begin alike stand together where last tokens are pooled; else rows of similar length do.
        """
        # The other poolings look at padded rows of states, (rows, longest, H), and memory holds these.
        packs = self.model.fallback_reason is None and self.model.config.pooling == "last"
        batches: list[list[int]] = []
        tokens = 0  # of the last batch
        for index in sorted(range(len(rows)), key=lambda index: rows[index] if packs else len(rows[index])):
            size = len(rows[index]) - known
            tokens = tokens + size if packs else size * (len(batches[-1]) + 1 if batches else 1)
            if not batches or tokens > self.batch_tokens:
                batches.append([])
                tokens = size
            batches[-1].append(index)
        if not self.progress or len(rows) <= 1000:
            return batches
        from tqdm.auto import tqdm

        return tqdm(batches, desc="Scoring", unit="batch")
