"""Titles to token ids, and `pipeline("title-ranking")`. This file travels with every published model.

The template (what stands before a title, between prompt and title, and after) is compiled into the
saved tokenizer, so a plain `tokenizer(title)` gives the ids of training. `encode` gives the same ids
and decides what happens to texts that are too long: the prompt is cut first, then the title, and the
template never. It is the only place where texts become ids; training and scoring both call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Pipeline

from .configuration_task_heads import refuse

TEMPLATE_KEY = "task_template"  # in tokenizer_config.json: {"before": ids, "between": ids, "after": ids}


@dataclass(frozen=True)
class Encoded:
    """Token ids per text, and how many texts lost tokens to the limit."""

    input_ids: list[list[int]]
    cut_prompts: int
    cut_titles: int


def encode(
    tokenizer: Any,
    titles: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    max_length: int | None = None,
) -> Encoded:
    """Encode titles, each with its prompt if there is one, by the template in the tokenizer.

    Args:
        tokenizer: a fast tokenizer, with or without a compiled template.
        titles: n texts. Control tokens in them stay plain text.
        prompts: n texts, "" for none; or None.
        max_length: longest row in tokens, template included; None for the tokenizer's own limit.

    Raises:
        ValueError: a limit that leaves no token for the title.
    """
    template = tokenizer.init_kwargs.get(TEMPLATE_KEY) or {"before": [], "between": [], "after": []}
    before, between, after = (list(template[part]) for part in ("before", "between", "after"))
    limit = max_length or tokenizer.model_max_length
    fixed = len(before) + len(after)
    if limit < fixed + len(between) + 1:
        raise refuse(
            "max_length", limit, f"at least {fixed + len(between) + 1}", "the template alone is that long"
        )
    title_ids = _plain_ids(tokenizer, titles)
    prompt_ids = _plain_ids(tokenizer, prompts) if prompts is not None else [[]] * len(titles)
    rows, cut_prompts, cut_titles = [], 0, 0
    for title, prompt, has_prompt in zip(title_ids, prompt_ids, prompts or [""] * len(titles), strict=True):
        joint = between if has_prompt else []
        room = limit - fixed - len(joint)
        kept = title[:room]
        context = prompt[: room - len(kept)]
        cut_titles += len(kept) < len(title)
        cut_prompts += len(context) < len(prompt)
        rows.append(before + context + joint + kept + after)
    return Encoded(rows, cut_prompts, cut_titles)


def _plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of the texts alone, with control tokens split into characters."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)[
        "input_ids"
    ]


def pad_rows(rows: Sequence[Sequence[int]], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Right-pad rows to `input_ids` and `attention_mask`, both (B, T) int64."""
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
        attention_mask[index, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


class TitleRankingPipeline(Pipeline):
    """Rank titles, best first.

    One input is a list of titles, or `{"titles": [...], "prompt": "..."}`; a list of such dictionaries
    is a list of inputs. Each answer is a list of `{"title", "score", "probability", "rank"}`:
    `probability` is the softmax of the scores, P(this title is the best of the list) under the
    Plackett-Luce model, which for two titles is P(preferred).

    Example:
        ranker = pipeline("title-ranking", model="me/title-scorer", trust_remote_code=True)
        ranker(["A plain title", "One Weird Title"])[0]["title"]
    """

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Rank one list of titles, or several inputs."""
        if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], str):
            inputs = {"titles": list(inputs)}
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs:
            raise refuse("title-ranking", sorted(kwargs), "top_k", "drop the others")
        return {}, {}, ({} if top_k is None else {"top_k": top_k})

    def preprocess(self, inputs: Any) -> dict[str, Any]:
        """Tokenize the titles of one input into a right-padded batch."""
        titles = inputs.get("titles") if isinstance(inputs, dict) else None
        if not titles or not all(isinstance(title, str) and title.strip() for title in titles):
            raise refuse(
                "title-ranking", inputs, '["title", ...] or {"titles": [...], "prompt": "..."}', "give texts"
            )
        prompts = [inputs["prompt"]] * len(titles) if inputs.get("prompt") else None
        encoded = encode(self.tokenizer, titles, prompts=prompts)
        pad_id = self.tokenizer.pad_token_id or 0  # masked out, so any id will do
        return {"titles": list(titles), **pad_rows(encoded.input_ids, pad_id=pad_id)}

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
