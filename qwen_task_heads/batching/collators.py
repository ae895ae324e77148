"""Examples to data sets of token ids, and data sets to padded batches.

A batch keeps the order of its rows and carries the index of each row in its data set (`row`), so that
an error or a prediction can name the line it came from. Nothing is dropped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwen_task_heads.batching.text import CutReport, encode_pairs
from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.encoding_task_heads import encode, pad_rows

EVIDENCE = ("margin", "preference", "weight")  # optional columns of a pair, floats


def pair_dataset(pairs: Sequence[PairExample], *, tokenizer: Any, max_length: int) -> tuple[Any, CutReport]:
    """Make a `datasets.Dataset`: `chosen_ids`, `rejected_ids`, `row` and the evidence that all rows have."""
    from datasets import Dataset

    columns, report = encode_pairs(tokenizer, pairs, max_length=max_length)
    table: dict[str, list[Any]] = {**columns, "row": list(range(len(pairs)))}
    for name, values in (
        ("margin", [pair.margin for pair in pairs]),
        ("preference", [pair.preference for pair in pairs]),
        ("weight", [pair.weight for pair in pairs]),
    ):
        constant_weight = name == "weight" and all(value == 1 for value in values)
        if all(value is not None for value in values) and not constant_weight:
            table[name] = values
    return Dataset.from_dict(table), report


def group_dataset(
    groups: Sequence[GroupExample], *, tokenizer: Any, max_length: int
) -> tuple[Any, CutReport]:
    """Give a `datasets.Dataset` with `title_ids` (k lists of ids), `gains` (k click rates) and `row`.

    Raises:
        TaskHeadsError: titles that nobody was shown, all of them; `evidence.comparable_groups` drops them.
    """
    from datasets import Dataset

    if problems := [
        Problem(
            group.sources[place] if place < len(group.sources) else f"group {group.group!r}",
            f"found {group.titles[place]!r} with 0 impressions",
            "accepted: titles that were shown",
            "drop the title: it has no click rate",
        )
        for group in groups
        for place, shown in enumerate(group.impressions)
        if not shown
    ]:
        raise TaskHeadsError(problems)
    titles = [title for group in groups for title in group.titles]
    prompts = [group.prompt for group in groups for _ in group.titles]
    encoded = encode(tokenizer, titles, prompts=prompts if any(prompts) else None, max_length=max_length)
    ids = iter(encoded.input_ids)
    table = {
        "title_ids": [[next(ids) for _ in group.titles] for group in groups],
        "gains": [
            [clicks / shown for clicks, shown in zip(group.clicks, group.impressions, strict=True)]
            for group in groups
        ],
        "row": list(range(len(groups))),
    }
    return Dataset.from_dict(table), CutReport(
        len(groups), encoded.cut_prompts, encoded.cut_titles, max_length
    )


@dataclass(frozen=True)
class TitleCollator:
    """Pad pairs (chosen half first, as trl does) or groups (title after title) into one batch.

    Pairs give `input_ids` and `attention_mask` (2B, T), `row` (B,) and the evidence (B,) floats.
    Groups give them as (N, T) over all N titles, with `sizes` (B,), `gains` (N,) and `row` (B,).
    """

    pad_id: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make one batch of rows of `pair_dataset` or of `group_dataset`."""
        if "title_ids" in examples[0]:
            ids = [title for example in examples for title in example["title_ids"]]
            extra = {
                "sizes": torch.tensor([len(example["title_ids"]) for example in examples]),
                "gains": torch.tensor([gain for example in examples for gain in example["gains"]]),
            }
        else:
            ids = [example["chosen_ids"] for example in examples] + [
                example["rejected_ids"] for example in examples
            ]
            extra = {
                name: torch.tensor([example[name] for example in examples], dtype=torch.float32)
                for name in EVIDENCE
                if name in examples[0]
            }
        rows = torch.tensor([example["row"] for example in examples])
        # The row comes first: Trainer takes the number of examples from the first tensor, which would be 2B.
        return {"row": rows, **pad_rows(ids, pad_id=self.pad_id), **extra}
