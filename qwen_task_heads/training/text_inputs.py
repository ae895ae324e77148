"""Datasets of text for the trainers: validated, and encoded by the tokenizer of the run.

Like those of trl, the trainers accept datasets with columns of text and encode them. The recipes encode
before they build a trainer, because they report what was truncated. Datasets of token ids are not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.utils import logging

from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.data.label_schemes import Scheme, derive_scheme
from qwen_task_heads.data.pair_readers import pairs_of_rows
from qwen_task_heads.data.preferences import groups_to_pairs
from qwen_task_heads.data.sequences import Table, sources_of
from qwen_task_heads.data.text_readers import texts_of_rows
from qwen_task_heads.data.text_targets import resolve_all
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.tokenization.collators import group_dataset, pair_dataset, text_dataset
from qwen_task_heads.tokenization.equal_rows import EqualRows, check_equal
from qwen_task_heads.tokenization.templates import bind_template, compile_template

logger = logging.get_logger(__name__)

ENCODED = {"input_ids", "chosen_ids", "chosen_input_ids", "title_ids"}


def holds_rows(data: Any) -> bool:
    """Return whether a dataset has rows of text: dicts, or columns without token ids."""
    from datasets import Dataset

    if isinstance(data, Dataset):
        return not ENCODED & set(data.column_names)
    return isinstance(data, list) and all(isinstance(row, dict) and not ENCODED & row.keys() for row in data)


def holds_examples(data: Any, kinds: tuple[type, ...]) -> bool:
    """Return whether a dataset is a list or a table of examples."""
    if isinstance(data, Table):
        return len(data) > 0 and isinstance(data[0], kinds)
    return isinstance(data, list) and len(data) > 0 and all(isinstance(row, kinds) for row in data)


def encode_titles(
    data: Any,
    *,
    name: str,
    model: Any,
    tokenizer: Any,
    max_length: int | None,
    grouped: bool = False,
    training: bool = False,
) -> tuple[Any, Sequence[str]]:
    """Encode a dataset of titles.

    Args:
        data: `PairExample` or `GroupExample` objects; or rows, as dicts or a `datasets.Dataset`, with the
            columns of `data.pair_readers`; anything else is returned unchanged.
        name: of the dataset, for messages.
        model: a `TitleScorer`, or a `PeftModel` around one.
        tokenizer: the template is compiled into it unless it has one.
        max_length: longest row in tokens; None for no limit.
        grouped: True for groups, which losses over lists need.
        training: True leaves out pairs that are equal after truncation, with a warning; False keeps them.

    Returns:
        The encoded dataset, and file and line of each row, by the column `row`.

    Raises:
        TaskHeadsError: unknown columns or defective rows, all in one error; or all pairs are equal after
            truncation.
    """
    if holds_rows(data):
        data = _title_rows(data, name, grouped=grouped)
    elif not holds_examples(data, (PairExample, GroupExample)):
        return data, []
    compile_template(
        tokenizer, template=None, model_type=model.config.text_config.model_type, max_length=max_length
    )
    limit = tokenizer.model_max_length if max_length is None else max_length
    if isinstance(data[0], GroupExample):
        encoded, cut = group_dataset(data, tokenizer=tokenizer, max_length=limit)
    else:
        encoded, cut = pair_dataset(data, tokenizer=tokenizer, max_length=limit, drop_equal=training)
    _warn_of_equal(name, cut.equal, option="max_length=")
    return encoded, sources_of(data)


def _warn_of_equal(name: str, equal: EqualRows | None, *, option: str) -> None:
    for line in check_equal({name: equal}, option=option):
        logger.warning(line)


def _title_rows(rows: Any, name: str, *, grouped: bool) -> list[Any]:
    read = pairs_of_rows(rows, name=name)
    if grouped and read.groups:
        return list(read.groups)
    return [*read.pairs, *groups_to_pairs(read.groups)]


def encode_texts(data: Any, *, name: str, config: Any, tokenizer: Any) -> tuple[Any, Sequence[str]]:
    """Encode a dataset of labelled texts.

    Args:
        data: `TextExample` objects; or rows, as dicts or a `datasets.Dataset`, with the columns of
            `data.text_readers`; anything else is returned unchanged.
        name: of the dataset, for messages.
        config: of the classifier, with the labels of the rows; its template is bound.
        tokenizer: the template is compiled into it unless it has one.

    Returns:
        The encoded dataset, and file and line of each row.

    Raises:
        TaskHeadsError: unknown columns, unknown labels or defective rows, all in one error; or every text
            equals a text of another label after truncation.
    """
    if isinstance(data, dict):  # several dev sets by name
        given = {"config": config, "tokenizer": tokenizer}
        return {key: encode_texts(rows, name=key, **given)[0] for key, rows in data.items()}, []
    if holds_rows(data):
        data = _text_rows(data, name, config)
    elif not holds_examples(data, (TextExample,)):
        return data, []
    pairs = any(example.text_b for example in data) or "between" in (config.template or {})
    bind_template(tokenizer, config, pairs=pairs)
    encoded, cut = text_dataset(data, tokenizer=tokenizer, config=config, num_labels=config.num_labels)
    _warn_of_equal(name, cut.equal, option="max_seq_length=")
    return encoded, sources_of(data)


def _text_rows(rows: Any, name: str, config: Any) -> Sequence[TextExample]:
    problem_type = config.problem_type or "single_label_classification"
    raw = texts_of_rows(rows, name=name, problem_type=problem_type)
    if raw.file_problems:
        raise TaskHeadsError(raw.file_problems)
    labels = LabelMap.of_config(config)
    if config.questions:
        scheme = Scheme(problem_type, labels, "the model", questions=tuple(config.questions))
    else:
        scheme = derive_scheme(
            raw.stated,
            problem_type=problem_type,
            source=name,
            count=len(raw),
            given=labels,
            given_by="the model",
            class_names=raw.class_names,
        )
    examples, report = resolve_all(raw, scheme, place=name)
    if report.refusals:
        raise TaskHeadsError(report.refusals)
    return examples
