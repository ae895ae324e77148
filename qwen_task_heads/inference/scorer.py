"""`Scorer`: titles in, scores and ranks out. Imports neither trl nor datasets.

The ids come from `encode`, the one place where texts become ids, so a score here is the score of
training, of `pipeline("title-ranking")` and of any server that uses the saved tokenizer. Batches are
formed by length, because padding costs time; padding cannot change a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.pipeline_task_heads import encode, pad_rows
from qwen_task_heads.models import load, load_tokenizer


@dataclass(frozen=True)
class RankedTitle:
    """A title with its score, its rank (1 is best) and P(it is the best of its list)."""

    title: str
    score: float
    probability: float
    rank: int


class Scorer:
    """Score and rank titles with a trained `TitleScorer`.

    Args:
        model: repo id, folder, or a loaded model (then give `tokenizer`).
        tokenizer: the tokenizer saved with the model.
        batch_tokens: padded tokens per batch; bounds the memory, changes no score.
        device: where to run; the model's own device when None.
        progress: show a bar over more than a thousand titles.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import Scorer, build, load_tokenizer, save
        >>> folder = save(build("embedded"), tokenizer=load_tokenizer("embedded"), folder=tempfile.mkdtemp())
        >>> ranked = Scorer(str(folder)).rank(["A plain title", "You won't believe this title"])
        >>> [title.rank for title in ranked]
        [1, 2]
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        batch_tokens: int = 8192,
        device: str | torch.device | None = None,
        progress: bool = True,
    ) -> None:
        if isinstance(model, (str, Path)):
            tokenizer = tokenizer or load_tokenizer(str(model))
            model = load(str(model))
        if tokenizer is None:
            raise TaskHeadsError(
                Problem("Scorer", "found a model without a tokenizer", "accepted: both", "pass tokenizer=")
            )
        self.model = model.eval() if device is None else model.eval().to(device)
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.progress = progress

    def score(self, titles: Sequence[str], *, prompts: Sequence[str] | None = None) -> list[float]:
        """Score n titles, higher is better, in their order.

        Args:
            titles: n texts, not empty.
            prompts: n contexts, "" for none; or None.

        Raises:
            TaskHeadsError: an empty title, or another number of prompts.
        """
        self._check(titles, prompts)
        if not titles:
            return []
        rows = encode(self.tokenizer, titles, prompts=prompts).input_ids
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        scores = [0.0] * len(rows)
        for batch in self._batches(order, rows):
            tensors = pad_rows([rows[index] for index in batch], pad_id=self.tokenizer.pad_token_id or 0)
            with torch.inference_mode():
                logits = self.model(
                    **{name: value.to(self.model.device) for name, value in tensors.items()}
                ).logits
            for index, score in zip(batch, logits[:, 0].float().tolist(), strict=True):
                scores[index] = score
        return scores

    def rank(self, titles: Sequence[str], *, prompt: str = "", top_k: int | None = None) -> list[RankedTitle]:
        """Rank the titles of one list, best first; equal scores keep their order."""
        scores = self.score(titles, prompts=[prompt] * len(titles) if prompt else None)
        probabilities = torch.tensor(scores).softmax(0).tolist() if scores else []
        best = sorted(range(len(titles)), key=lambda index: -scores[index])
        ranked = [
            RankedTitle(titles[index], scores[index], probabilities[index], rank)
            for rank, index in enumerate(best, start=1)
        ]
        return ranked[:top_k]

    def prefer(self, first: str, second: str, *, prompt: str = "") -> float:
        """P(first preferred to second) = sigmoid(score difference)."""
        a, b = self.score([first, second], prompts=[prompt, prompt] if prompt else None)
        return float(torch.sigmoid(torch.tensor(a - b)))

    def _check(self, titles: Sequence[str], prompts: Sequence[str] | None) -> None:
        problems = [
            Problem(
                f"titles[{index}]", f"found {shorten(title)}", "accepted: a text that is not empty", "drop it"
            )
            for index, title in enumerate(titles)
            if not isinstance(title, str) or not title.strip()
        ]
        if isinstance(titles, str):
            problems = [
                Problem("titles", "found one text", "accepted: a list of texts", "put it into a list")
            ]
        if prompts is not None and len(prompts) != len(titles):
            found = f"found {len(prompts)} prompts for {len(titles)} titles"
            problems.append(Problem("prompts", found, "accepted: one each", 'use "" where there is none'))
        problems += [
            Problem(f"prompts[{index}]", f"found {shorten(prompt)}", "accepted: a text", 'use "" for none')
            for index, prompt in enumerate(prompts or [])
            if not isinstance(prompt, str)
        ]
        if problems:
            raise TaskHeadsError(problems)

    def _batches(self, order: list[int], rows: list[list[int]]) -> Any:
        """Cut the indices, shortest row first, into batches of at most `batch_tokens` padded tokens."""
        batches: list[list[int]] = [[]]
        for index in order:
            if batches[-1] and (len(batches[-1]) + 1) * len(rows[index]) > self.batch_tokens:
                batches.append([])
            batches[-1].append(index)
        if not self.progress or len(order) <= 1000:
            return batches
        from tqdm.auto import tqdm

        return tqdm(batches, desc="Scoring", unit="batch")
