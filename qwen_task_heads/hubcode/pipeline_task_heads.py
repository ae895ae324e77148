"""`pipeline("title-ranking")`. This file is copied into every published title scorer.

The ids come from `encode`, as in training. In a published folder no module imports this file: the config
names it, and `folder_task_heads` copies it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from torch.utils.data import Dataset
from transformers import Pipeline

from .encoding_task_heads import as_list, encode, pad_rows, strip_title
from .errors_task_heads import refuse

ACCEPTED = '["title", ...] or {"titles": [...], "prompt": "..."}'


class TitleRankingPipeline(Pipeline):
    """Rank titles, best first.

    One input is a list of titles (or a Series or an array), or `{"titles": [...], "prompt": "..."}`. A list
    of such dictionaries is a list of inputs, and a generator of them is streamed. Each answer is a list of
    `{"title", "score", "probability", "rank"}`: `probability` is the softmax of the scores, P(this title is
    the best of the list) under the Plackett-Luce model, which for two titles is P(preferred).

    Example:
        ranker = pipeline("title-ranking", model="me/title-scorer", trust_remote_code=True)
        ranker(["A plain title", "One Weird Title"])[0]["title"]
    """

    def __call__(self, inputs: Any, *, prompt: str | None = None, **kwargs: Any) -> Any:
        """Rank one list of titles, optionally with a prompt, or several inputs."""
        # transformers streams generators and datasets, one input at a time.
        streams = isinstance(inputs, (Generator, Dataset))
        several = None if streams else as_list(inputs)
        if several is not None:
            inputs = several
        if several == []:  # transformers would read the first input
            raise refuse("title-ranking", inputs, ACCEPTED, "pass texts", code="argument-type")
        if several and isinstance(several[0], str):
            inputs = {"titles": several, "prompt": prompt or ""}
        elif prompt is not None:
            raise refuse(
                "title-ranking",
                inputs,
                "a list of titles with prompt=",
                'pass {"titles": [...], "prompt": "..."} without prompt=',
                code="option-conflict",
            )
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs:
            raise refuse("title-ranking", sorted(kwargs), "top_k", "drop the others", code="option-unknown")
        return {}, {}, ({} if top_k is None else {"top_k": top_k})

    def preprocess(self, inputs: Any) -> dict[str, Any]:
        """Tokenize the titles of one input into a right-padded batch."""
        titles = as_list(inputs.get("titles")) if isinstance(inputs, dict) else None
        if not titles or not all(isinstance(title, str) and strip_title(title) for title in titles):
            raise refuse("title-ranking", inputs, ACCEPTED, "pass texts", code="argument-type")
        prompts = [inputs["prompt"]] * len(titles) if inputs.get("prompt") else None
        encoded = encode(self.tokenizer, [strip_title(title) for title in titles], prompts=prompts)
        pad_id = self.tokenizer.pad_token_id or 0  # masked out, so any id works
        return {"titles": titles, **pad_rows(encoded.input_ids, pad_id=pad_id)}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        titles = model_inputs.pop("titles")
        return {"titles": titles, "scores": self.model(**model_inputs).logits[:, 0]}

    def postprocess(self, model_outputs: dict[str, Any], top_k: int | None = None) -> list[dict[str, Any]]:
        """Sort the titles by score; equal scores keep their order."""
        scores = model_outputs["scores"].float()
        rows = zip(model_outputs["titles"], scores.tolist(), scores.softmax(0).tolist(), strict=True)
        ranked = sorted(rows, key=lambda row: -row[1])
        answer = [
            {"title": title, "score": score, "probability": probability, "rank": rank}
            for rank, (title, score, probability) in enumerate(ranked, start=1)
        ]
        return answer[:top_k]
