"""Score and rank titles, or classify texts, with a trained model. Imports neither trl nor datasets.

`Scorer` encodes texts as training does, with the length limit and the truncation of the saved model. Its
results equal those of training, of the pipelines and of servers that use the saved tokenizer.

For speed, rows are packed, batches have rows with common prefixes, the prefix of all rows is cached for the
next call, and an adapter is merged when a model is loaded by name. Except `int8`, none of these changes a
score by more than rounding.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from qwen_task_heads.errors import error_at
from qwen_task_heads.hubcode.configuration_task_heads import TitleScorerConfig
from qwen_task_heads.hubcode.encoding_task_heads import (
    encode,
    encode_texts,
    pad_rows,
    strip_title,
    template_of,
)
from qwen_task_heads.inference.identity import Samples, Stored, sample_weights
from qwen_task_heads.inference.inputs import (
    RAISE,
    batches_by_length,
    check_count,
    check_rows,
    device_of,
    in_place,
    rows_of,
    with_progress,
    without,
)
from qwen_task_heads.inference.int8 import to_int8
from qwen_task_heads.inference.predictions import (
    FailedScore,
    Prediction,
    RankedTitle,
    check_options,
    to_predictions,
)
from qwen_task_heads.inference.prefix_cache import PrefixCache, state_of
from qwen_task_heads.models import load, load_tokenizer, merge
from qwen_task_heads.throughput import Throughput

logger = logging.get_logger(__name__)


class Scorer:
    """Score and rank titles with a trained `TitleScorer`, or classify texts with a `PooledClassifier`.

    `score`, `rank` and `prefer` are for title scorers, `logits` and `predict` for classifiers. All take
    lists, tuples, generators, NumPy and Arrow arrays and Series. `<title>` tags of titles are removed. With
    `on_error="keep"` an invalid row gives an answer with an `error`, and the other rows are scored.

    Args:
        model: repo id, folder, or a loaded model, which needs `tokenizer`.
        tokenizer: the tokenizer saved with the model.
        batch_tokens: tokens per batch; limits the memory, and changes scores only with `int8`.
        device: device of the model; its current device if None; with `auto`, the GPU if there is one.
        progress: whether to show a progress bar for more than a thousand texts.
        revision: branch, tag or commit of a repo id.
        hub: hub of ids, `huggingface` or `modelscope`.
        dtype: dtype of the backbone's weights; the saved dtype with `auto`. `torch.bfloat16` halves the
            memory, and the time on processors that support it.
        int8: on a CPU, multiply the backbone's matrices in int8. This changes scores slightly: for the share
            of equal predictions see the card or `inference.int8.agreement`.

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
        check_count("batch_tokens", batch_tokens, example=8192)
        device = device_of("cpu" if int8 and device == "auto" else device)
        samples: Samples = {}
        if isinstance(model, (str, Path)):
            tokenizer = tokenizer or load_tokenizer(str(model), revision=revision, hub=hub)
            model = load(str(model), revision=revision, hub=hub, dtype=dtype)
            samples = sample_weights(model)
            if model._hf_peft_config_loaded:
                model = merge(model)
        if tokenizer is None:
            raise error_at(
                "Scorer",
                "found a model without a tokenizer",
                "a model and its tokenizer",
                "pass tokenizer=",
                code="option-missing",
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
        """Config of the model, with labels and problem type."""
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the backbone's weights."""
        dtype: torch.dtype = self.model.model.dtype
        return dtype

    @property
    def is_title_scorer(self) -> bool:
        """Whether the model is a title scorer."""
        return isinstance(self.model.config, TitleScorerConfig)

    @property
    def takes_pairs(self) -> bool:
        """Whether the model reads pairs of texts; a model without a template may."""
        template = None if self.is_title_scorer else self.model.config.template
        return not self.is_title_scorer and (not template or "between" in template)

    @property
    def needs_pairs(self) -> bool:
        """Whether the model was trained on pairs, so that single texts need explicit empty second texts."""
        return not self.is_title_scorer and "between" in (self.model.config.template or {})

    def score(
        self, titles: Iterable[str], *, prompts: Iterable[str] | None = None, on_error: str = RAISE
    ) -> list[float]:
        """Score n titles in their order; higher is better.

        Args:
            titles: n texts, not empty.
            prompts: n contexts, "" for none; or None.
            on_error: `raise` raises for invalid rows; `keep` gives them a `FailedScore`.

        Raises:
            TaskHeadsError: an empty title, another number of prompts, or a model that is not a title scorer.
        """
        rows = rows_of("titles", titles)
        contexts = None if prompts is None else rows_of("prompts", prompts)
        scores, bad = self._score(rows, contexts, on_error=on_error)
        return in_place(scores, {place: FailedScore(error) for place, error in bad.items()})

    def _score(
        self, titles: list[Any], prompts: list[Any] | None, *, on_error: str | None, of_list: bool = False
    ) -> tuple[list[float], Mapping[int, str]]:
        """Return the scores of the valid rows, and the errors of the invalid ones by their index."""
        self._check_model("score", of_titles=True)
        bad = check_rows(titles, prompts, names=("titles", "prompts"), on_error=on_error, titles=True)
        good, contexts = without(titles, bad), None if prompts is None else without(prompts, bad)
        bare = [strip_title(title) for title in good]  # as the readers of training do
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
            prompt: the context of all titles.
            top_k: number of titles to return; all if None.
            on_error: `raise` raises for invalid rows; `keep` appends them in their order, with an `error`.

        Raises:
            TaskHeadsError: see `score`.
        """
        if prompt and not isinstance(prompt, str):
            raise error_at(
                "prompt",
                f"found a {type(prompt).__name__}",
                "a text",
                'use "" for none',
                code="argument-type",
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
        """Return P(first preferred to second) = sigmoid(score difference)."""
        contexts = [prompt, prompt] if prompt else None
        (a, b), _ = self._score([first, second], contexts, on_error=None)
        return float(torch.sigmoid(torch.tensor(a - b)))

    def logits(self, texts: Iterable[str], *, text_pairs: Iterable[str] | None = None) -> torch.Tensor:
        """Return the logits of n texts: (n, labels) fp32 on the CPU, in their order.

        Args:
            texts: n texts, not empty; truncated or read in windows by the config of the model.
            text_pairs: n second texts of pairs, "" for none; None only for a model of single texts.

        Raises:
            TaskHeadsError: an empty text, another number of second texts, pairs for a model of single texts,
                no pairs for a model of pairs, or a title scorer.
        """
        self._check_model("logits", of_titles=False)
        rows = rows_of("texts", texts)
        return self._logits(rows, None if text_pairs is None else rows_of("text_pairs", text_pairs))[0]

    def _logits(
        self, texts: list[Any], text_pairs: list[Any] | None, *, on_error: str | None = None
    ) -> tuple[torch.Tensor, Mapping[int, str]]:
        """Return the logits of the valid rows, and the errors of the invalid ones by their index."""
        bad = check_rows(texts, text_pairs, names=("texts", "text_pairs"), on_error=on_error)
        good, pairs = without(texts, bad), None if text_pairs is None else without(text_pairs, bad)
        if any(pairs or ()) and not self.takes_pairs:
            raise error_at(
                "text_pairs",
                "found second texts",
                "single texts, as in training",
                "drop them",
                code="option-unsupported",
            )
        if texts and text_pairs is None and self.needs_pairs:
            raise error_at(
                "text_pairs",
                "the second texts are missing",
                "pairs, as in training",
                'give text_pairs=[...], with "" for none',
                code="option-missing",
            )
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
        """Predict labels and probabilities (or scores) for n texts, in their order.

        Args:
            texts: n texts, not empty.
            text_pairs: see `logits`.
            top_k: number of labels in `ranked`; all if None or if there are fewer.
            threshold: for multi-label models, labels at or over it are predicted; if None, the thresholds
                per label chosen on dev in training, or 0.5.
            abstain: for single-label and ordinal models, predict no label if the best probability is below
                it.
            max_error: instead of `abstain`, the maximal share of wrong answers, from which the confidence
                threshold is chosen; see `predictions.confidence_for`.
            on_error: `raise` raises for invalid rows; `keep` gives them a `Prediction` with an `error`.

        Raises:
            TaskHeadsError: see `logits`, or an option that the problem type does not have.
        """
        self._check_model("predict", of_titles=False)
        config = self.model.config
        options: dict[str, Any] = {"top_k": top_k, "threshold": threshold, "abstain": abstain}
        options["max_error"] = max_error
        check_options(config, **options)  # before the logits, which may take hours
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
        raise error_at(
            f"Scorer.{method}",
            f"found a {self.model.config.model_type}",
            "a title_scorer" if of_titles else "a pooled_classifier",
            "call predict() or logits()" if of_titles else "call score(), rank() or prefer()",
            code="model-type",
        )

    def run_ids(self, rows: list[list[int]]) -> torch.Tensor:
        """Return logits (n, L) of n rows of ids with the template, fp32 on the CPU, in their order."""
        return self._run(rows)

    def _run(self, rows: list[list[int]], *, of_list: bool = False) -> torch.Tensor:
        """Return logits (n, L) of n rows of ids, fp32 on the CPU, in their order.

        Equal rows are computed once, because rounding differs between batches and would break ties.
        """
        places: dict[tuple[int, ...], int] = {}
        index = [places.setdefault(tuple(row), len(places)) for row in rows]
        if len(places) < len(rows):
            return self._run([list(row) for row in places], of_list=of_list)[index]
        result = torch.empty(len(rows), self.model.config.num_labels)
        limit = None if self.is_title_scorer else self.model.config.max_seq_length
        # The model truncates longer rows itself, and needs the whole rows.
        fits = limit is None or max(map(len, rows), default=0) <= limit
        known, prefix = self.prefixes.take(rows, of_list=of_list) if fits else (0, None)
        options = {"prefix": prefix} if prefix else {}
        start = time.monotonic()
        with self.throughput.listening(self.model), torch.inference_mode():
            for batch in self._batches(rows, known=known):
                suffixes = [rows[index][known:] for index in batch]
                tensors = pad_rows(suffixes, pad_id=self.tokenizer.pad_token_id or 0)
                inputs = {name: value.to(self.model.device) for name, value in tensors.items()}
                result[batch] = self.model(**inputs, **options).logits.float().cpu()
        self.throughput.seconds += time.monotonic() - start
        return result

    def _batches(self, rows: list[list[int]], *, known: int) -> Iterable[list[int]]:
        """Split the indices into batches of at most `batch_tokens` tokens, without `known` ones of each row.

        With last-token pooling, rows with a common prefix are batched together; else rows of similar length.
        """
        # The other poolings need the padded states, (rows, longest, H), in memory.
        packs = self.model.fallback_reason is None and self.model.config.pooling == "last"
        sizes = [len(row) - known for row in rows]
        batches: list[list[int]] = []
        if packs:
            tokens = 0  # of the last batch
            for index in sorted(range(len(rows)), key=lambda index: rows[index]):
                tokens += sizes[index]
                if not batches or tokens > self.batch_tokens:
                    batches.append([])
                    tokens = sizes[index]
                batches[-1].append(index)
        else:
            batches = batches_by_length(sizes, limit=self.batch_tokens)
        return with_progress(batches, rows=len(rows), shown=self.progress, name="Scoring")
