"""Turn examples into data sets of token ids, and rows of data sets into padded batches.

A batch keeps the order of its rows, with the index of each row in its data set (`row`), so that an error or a
prediction can name its line. Only titles that have become equal (`equal_rows.py`) are left out, and only for
training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_task_heads.data.example_columns import are_soft, numbers_of
from qwen_task_heads.data.example_tables import have_second
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
from qwen_task_heads.hubcode.encoding_task_heads import (
    EncodedTexts,
    cut_row,
    encode,
    encode_texts,
    pad_rows,
    template_of,
)
from qwen_task_heads.hubcode.errors_task_heads import TaskHeadError
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS, UNANSWERED
from qwen_task_heads.sources.keys import repeated
from qwen_task_heads.tokenization.equal_rows import (
    check_equal,
    equal_classified,
    equal_pairs,
    merge_groups,
)
from qwen_task_heads.tokenization.templates import as_option, encode_pairs
from qwen_task_heads.tokenization.token_datasets import TokenDatasetBuilder, hash_ids, row_blocks
from qwen_task_heads.tokenization.truncation_reports import CutReport, TextCutReport

PREFERENCE_SIGNALS = ("margin", "preference", "weight")  # optional columns of a pair, floats


def pair_dataset(
    pairs: Sequence[PairExample], *, tokenizer: Any, max_length: int, drop_equal: bool = False
) -> tuple[Any, CutReport]:
    """Return a `datasets.Dataset` of pairs and a report on the cut.

    Args:
        pairs: from `data.pair_readers`, or constructed by the caller.
        tokenizer: with a template, see `tokenization.templates.compile_template`.
        max_length: longest row in tokens, template included; prompts are cut first.
        drop_equal: leave out pairs whose titles have become equal, for training; otherwise they stay, as
            ties. `row` counts all pairs in both cases.

    Returns:
        `(dataset, report)`: columns `chosen_ids`, `rejected_ids`, `row`, `length` (tokens of both titles, for
        `train_sampling_strategy`) and the preference signals that all pairs have. `check_equal` takes
        `report.equal`, returns its messages and refuses a data set with equal pairs only.

    Example:
        >>> from qwen_task_heads import load_tokenizer
        >>> from qwen_task_heads.tokenization.collators import pair_dataset
        >>> from qwen_task_heads.data.examples import PairExample
        >>> pairs = [PairExample(chosen="Tea in five minutes", rejected="On tea")]
        >>> pair_dataset(pairs, tokenizer=load_tokenizer("embedded"), max_length=64)[0].column_names
        ['chosen_ids', 'rejected_ids', 'row', 'length']
    """
    signals = _preference_signals(pairs)
    builder, reports = TokenDatasetBuilder(rows=len(pairs)), []
    for start, block in row_blocks(pairs):
        columns, report = encode_pairs(tokenizer, block, max_length=max_length)
        ids = columns["chosen_ids"], columns["rejected_ids"]
        equal = equal_pairs(
            block, ids, tokenizer=tokenizer, max_length=max_length, left_out=drop_equal, start=start
        )
        reports.append(replace(report, equal=equal))
        table: dict[str, list[Any]] = {
            **columns,
            "row": list(range(start, start + len(block))),
            "length": [len(chosen) + len(rejected) for chosen, rejected in zip(*ids, strict=True)],
            **{name: values[start : start + len(block)].tolist() for name, values in signals.items()},
        }
        if drop_equal and equal.places:
            kept = sorted({*range(len(block))} - {*equal.places})
            table = {name: [values[place] for place in kept] for name, values in table.items()}
        builder.add(table)
    return builder.finish(), CutReport.of(reports, max_length)


def _preference_signals(pairs: Sequence[PairExample]) -> dict[str, NDArray[np.float64]]:
    """Return the preference signals that all pairs have, without weights that are all 1."""
    stated = ((name, numbers_of(pairs, name)) for name in PREFERENCE_SIGNALS)
    columns = {name: values for name, values in stated if values is not None}
    if (columns["weight"] == 1).all():
        del columns["weight"]
    return columns


def group_dataset(
    groups: Sequence[GroupExample], *, tokenizer: Any, max_length: int
) -> tuple[Any, CutReport]:
    """Return a `datasets.Dataset` of groups and a report on the cut.

    Titles of a group that the cut has made equal count as one, with the sum of their clicks and impressions.
    Groups with one title left are left out.

    Returns:
        `(dataset, report)`: columns `title_ids` (k lists of ids), `gains` (k click rates), `row` and
        `length`. `row` counts all groups.

    Raises:
        TaskHeadsError: titles have no impressions; all of them are named. `preferences.comparable_groups`
            leaves them out.
    """
    builder, reports, problems = TokenDatasetBuilder(rows=len(groups)), [], list[Problem]()
    for start, block in row_blocks(groups):
        problems += _without_impressions(block)
        if problems:
            continue
        titles = [title for group in block for title in group.titles]
        prompts = [group.prompt for group in block for _ in group.titles]
        encoded = encode(tokenizer, titles, prompts=prompts if any(prompts) else None, max_length=max_length)
        ids = iter(encoded.input_ids)
        title_ids = [[next(ids) for _ in group.titles] for group in block]
        kept, equal = merge_groups(block, title_ids, tokenizer=tokenizer, max_length=max_length, start=start)
        builder.add(
            {
                "title_ids": [rows for _, rows, _ in kept],
                "length": [sum(map(len, rows)) for _, rows, _ in kept],
                "gains": [gains for _, _, gains in kept],
                "row": [start + place for place, _, _ in kept],
            }
        )
        counts = (encoded.cut_prompts, encoded.cut_titles)
        reports.append(CutReport(len(block), *counts, max_length, equal))
    if problems:
        raise TaskHeadsError(problems)
    return builder.finish(), CutReport.of(reports, max_length)


def _without_impressions(groups: Sequence[GroupExample]) -> list[Problem]:
    return [
        Problem(
            group.sources[place] if place < len(group.sources) else f"group {group.group!r}",
            f"found {group.titles[place]!r} with 0 impressions",
            "titles with impressions",
            "drop the title: it has no click rate",
            code="value-range",
        )
        for group in groups
        for place, impressions in enumerate(group.impressions)
        if not impressions
    ]


@dataclass(frozen=True)
class TitleCollator:
    """Pad pairs (chosen titles first, as in trl) or groups (title after title) into one batch.

    A batch of pairs has `input_ids` and `attention_mask` (2B, T), `row` (B,) and preference signals (B,),
    float32. A batch of groups has `input_ids` and `attention_mask` (N, T) over all N titles, with `sizes`
    (B,), `gains` (N,) and `row` (B,).
    """

    pad_id: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return one batch of rows of `pair_dataset` or of `group_dataset`."""
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
                for name in PREFERENCE_SIGNALS
                if name in examples[0]
            }
        rows = torch.tensor([example["row"] for example in examples])
        # `row` comes first, because Trainer takes the number of examples from the first tensor.
        return {"row": rows, **pad_rows(ids, pad_id=self.pad_id), **extra}


def text_dataset(
    examples: Sequence[TextExample], *, tokenizer: Any, config: PooledClassifierConfig, num_labels: int
) -> tuple[Any, TextCutReport]:
    """Return a `datasets.Dataset` of labelled texts and a report on the cut.

    Args:
        examples: n texts or pairs of texts.
        tokenizer: with the template of the config, see `tokenization.templates.bind_template`.
        config: of the classifier: `problem_type`, `max_seq_length`, `truncation`, `template`.
        num_labels: L, number of labels or scores.

    Returns:
        `(dataset, report)`: n rows, in their order, with `input_ids`, `row` (0 to n-1) and `labels`: an id
        (single-label, ordinal), L zeros and ones (multi-label), L scores (regression) or L probabilities, -1
        without an answer (questions). `weight` is present
        unless all are 1, and `soft` (L probabilities) if any row has them; hard labels are then 0 and 1. With
        `truncation: windows` rows are not cut, because the model makes the windows.

    Raises:
        TaskHeadsError: a target does not fit the problem type, the tokenizer has another template, or pairs
            have a policy for single texts.
    """

    problem_type = config.problem_type or "single_label_classification"
    pairs, soft = have_second(examples), are_soft(examples)
    weights = numbers_of(examples, "weight")
    weighted = weights is not None and bool((weights != 1).any())
    builder, problems = TokenDatasetBuilder(rows=len(examples)), list[Problem]()
    reports: list[TextCutReport] = []
    keys: list[NDArray[np.uint64]] = []  # of the ids of each row
    for start, block in row_blocks(examples):
        labels = []
        for index, example in enumerate(block, start):
            try:
                labels.append(_label(example.target, problem_type=problem_type, num_labels=num_labels))
            except ValueError as error:
                where, problem = example.source or f"examples[{index}]", f"found {example.target!r}"
                problems.append(Problem(where, problem, str(error), "correct the label", code="value-type"))
        if problems:
            continue
        encoded = _encode_all(block, tokenizer=tokenizer, config=config, pairs=pairs)
        table: dict[str, list[Any]] = {
            "input_ids": encoded.input_ids,
            "labels": labels,
            "row": list(range(start, start + len(block))),
        }
        if weights is not None and weighted:
            table["weight"] = weights[start : start + len(block)].tolist()
        if soft:
            table["soft"] = [
                list(example.soft or (label if isinstance(label, list) else _multi_hot([label], num_labels)))
                for example, label in zip(block, labels, strict=True)
            ]
        builder.add(table)
        reports.append(_text_report(encoded, tokenizer=tokenizer, config=config))
        keys.append(hash_ids(encoded.input_ids))
    if problems:
        raise TaskHeadsError(problems)
    dataset = builder.finish()
    subset = repeated(np.concatenate(keys)).tolist()
    ids = dataset[subset]["input_ids"] if subset else []
    equal = equal_classified(examples, ids, tokenizer=tokenizer, config=config, pairs=pairs, subset=subset)
    return dataset, replace(TextCutReport.of(reports), equal=equal)


def text_datasets(
    train: Sequence[TextExample], dev: Sequence[TextExample], test: Sequence[TextExample], **options: Any
) -> tuple[tuple[Any, TextCutReport], tuple[Any, TextCutReport], list[str]]:
    """Return the data sets of a recipe, and messages on texts that the cut has made equal in any split.

    Args:
        train, dev, test: examples; test may be empty, and is only checked for equal texts.
        **options: of `text_dataset`.

    Returns:
        `(train, dev, messages)`: train and dev as from `text_dataset`.

    Raises:
        TaskHeadsError: see `text_dataset`; or all texts of a split are equal to a text of another label.
    """
    datasets = {
        name: text_dataset(rows, **options)
        for name, rows in (("train", train), ("dev", dev), ("test", test))
        if rows
    }
    equal = {name: report.equal for name, (_, report) in datasets.items()}
    return datasets["train"], datasets["dev"], check_equal(equal, option="--max_seq_length ")


def _label(target: Any, *, problem_type: str, num_labels: int) -> Any:
    """Return a target in the form of the column `labels`."""
    if problem_type in ("single_label_classification", "ordinal"):
        if type(target) is not int or not 0 <= target < num_labels:
            raise ValueError(f"the id of a label, 0 to {num_labels - 1}")
        return target
    if problem_type == QUESTIONS:
        if type(target) is not tuple or len(target) != num_labels or not all(map(_is_answer, target)):
            raise ValueError(f"{num_labels} probabilities as a tuple, -1 without an answer")
        return [float(share) for share in target]
    if problem_type == "multi_label_classification":
        if type(target) is not tuple or not set(target) <= set(range(num_labels)):
            raise ValueError(f"ids of labels, 0 to {num_labels - 1}, as a tuple")
        return _multi_hot(target, num_labels)
    if type(target) is not tuple or len(target) != num_labels or not all(map(math.isfinite, target)):
        raise ValueError(f"finite scores as a tuple of {num_labels}")
    return [float(score) for score in target]


def _is_answer(share: Any) -> bool:
    return share == UNANSWERED or 0 <= share <= 1


def _multi_hot(ids: Sequence[int], num_labels: int) -> list[float]:
    return [float(index in ids) for index in range(num_labels)]


def _encode_all(
    examples: Sequence[TextExample], *, tokenizer: Any, config: PooledClassifierConfig, pairs: bool
) -> EncodedTexts:
    """Check that tokenizer and config agree, and encode by the policy of the config."""
    before, between, after = template_of(tokenizer)
    wanted = {"before": before, **({"between": between} if pairs else {}), "after": after}
    if config.max_seq_length is not None and wanted != {
        part: ids for part, ids in (config.template or {"before": [], "after": []}).items() if part in wanted
    }:
        problem = "the template differs from that of the config" + (", which lacks pairs" if pairs else "")
        fix = f"call bind_template(..., {pairs=})"
        raise error_at("tokenizer", problem, "the template of the config", fix, code="tokenizer-invalid")
    try:
        return encode_texts(
            tokenizer,
            [example.text for example in examples],
            text_pairs=[example.text_b for example in examples] if pairs else None,
            max_length=config.max_seq_length,
            truncation=config.truncation,
        )
    except TaskHeadError as error:
        raise as_option(error) from error


def _text_report(encoded: EncodedTexts, *, tokenizer: Any, config: PooledClassifierConfig) -> TextCutReport:
    limit, windows = config.max_seq_length, 0
    if limit is not None and config.truncation == "windows":
        windows = sum(
            len(
                cut_row(
                    row,
                    max_length=limit,
                    truncation="windows",
                    overlap=config.window_overlap,
                    template=config.template,
                )
            )
            for row in encoded.input_ids
            if len(row) > limit
        )
    before, _, after = template_of(tokenizer)
    kept = sum(len(row) - len(before) - len(after) for row in encoded.input_ids)
    return TextCutReport(
        len(encoded.input_ids),
        encoded.cut,
        encoded.lost,
        kept + encoded.lost,
        windows,
        limit,
        config.truncation,
    )


@dataclass(frozen=True)
class TextCollator:
    """Pad rows of `text_dataset` into one batch of B rows.

    A batch has `row` (B,), `input_ids` and `attention_mask` (B, T), `labels` ((B,) int64 for single-label and
    ordinal, (B, L) float32 for multi-label and regression), and `soft` (B, L) and `weight` (B,), float32, if
    the data set has them. Rows to predict have no `labels`.
    """

    pad_id: int
    problem_type: str = "single_label_classification"

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return one batch."""
        whole = self.problem_type in ("single_label_classification", "ordinal")
        types = {"labels": torch.int64 if whole else torch.float32}
        names: list[str] = [name for name in ("labels", "soft", "weight") if name in examples[0]]
        extra = {
            name: torch.tensor([example[name] for example in examples], dtype=types.get(name, torch.float32))
            for name in names
        }
        rows = torch.tensor([example["row"] for example in examples])
        ids = [example["input_ids"] for example in examples]
        return {"row": rows, **pad_rows(ids, pad_id=self.pad_id), **extra}
