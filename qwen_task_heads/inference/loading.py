"""Load a trained model by its name: `Scorer` for a head, `LabelScorer` for a generative classifier.

The module also reads the candidate labels of rows, and restricts the predictions of either scorer to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.data.candidates import within
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.row_reader import RowReader
from qwen_task_heads.data.text_columns import read_candidates
from qwen_task_heads.data.text_readers import InputProblem, TextInput
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.generators import file_of
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.inference.inputs import candidate_rows, rows_of
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.predictions import Prediction, to_predictions
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.models import saved_task
from qwen_task_heads.tokenization.label_prompts import LABEL_PROMPT, read_label_prompt

ONE_LABEL = ("single_label_classification", "ordinal")


def open_scorer(
    name: str,
    *,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
    batch_tokens: int | None = None,
    int8: bool = False,
    **options: Any,
) -> Scorer | LabelScorer:
    """Load the scorer of a model that a recipe trained.

    Args:
        name: repo id or folder.
        revision: branch, tag or commit.
        hub: hub of the id.
        batch_tokens: see the scorer; its default if None.
        int8: see `Scorer`.
        **options: options of the scorer: `dtype`, `device`, `progress`.

    Raises:
        TaskHeadsError: no such model, a model that neither scorer loads, or int8 with a generative
            classifier.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import build, load_tokenizer, save
        >>> from qwen_task_heads.inference.loading import open_scorer
        >>> folder = save(build("embedded"), tokenizer=load_tokenizer("embedded"), folder=tempfile.mkdtemp())
        >>> type(open_scorer(str(folder))).__name__
        'Scorer'
    """
    if batch_tokens is not None:
        options["batch_tokens"] = batch_tokens
    path = None
    with suppress(TaskHeadsError):  # if the model does not exist, `Scorer` raises
        path = file_of(name, LABEL_PROMPT, revision=revision, hub=hub)
    if path is None:
        return Scorer(name, revision=revision, hub=hub, int8=int8, **options)
    if int8:
        raise error_at(
            "int8",
            "found true with a generative classifier",
            "a model with a head",
            "drop it",
            code="option-unsupported",
        )
    return LabelScorer.from_pretrained(name, revision=revision, hub=hub, **options)


def labels_to_choose(
    model: str | Path | Scorer | LabelScorer, *, revision: str | None = None, hub: str = HUGGINGFACE
) -> LabelMap:
    """Return the labels of a model with one label per text; for a name, without loading its weights.

    Raises:
        TaskHeadsError: no such model, or a model without exactly one label per text.
    """
    if isinstance(model, LabelScorer):
        return model.prompts.labels
    if isinstance(model, Scorer):
        config = model.config
        task = {} if model.is_title_scorer else {"labels": LabelMap.of_config(config)}
        kind = None if model.is_title_scorer else config.problem_type
    elif path := file_of(str(model), LABEL_PROMPT, revision=revision, hub=hub):
        saved_labels: LabelMap = read_label_prompt(path)["labels"]
        return saved_labels
    else:
        task = saved_task(str(model), revision=revision, hub=hub)
        kind = task.get("problem_type")
    labels: LabelMap | None = task.get("labels")
    if labels is not None and (kind or (ONE_LABEL[0] if len(labels) > 1 else None)) in ONE_LABEL:
        return labels
    raise error_at(
        "--candidates",
        f"found with {f'a {kind} model' if kind else 'a model without labels'}",
        f"a {' or '.join(ONE_LABEL)} model",
        "drop it",
        code="option-unsupported",
    )


def with_candidates(
    items: Iterable[tuple[str, TextInput | Problem]], *, column: str, labels: LabelMap
) -> Iterator[tuple[str, TextInput | Problem]]:
    """Add the candidate labels of the rows to the texts; an empty cell means all labels.

    Args:
        items: items of `read_inputs`.
        column: column with names or aliases of labels, as a list or separated by commas.
        labels: labels of the model.

    Returns:
        The same items, with an `InputProblem` in place of a row with invalid candidates.
    """
    for where, item in items:
        if isinstance(item, TextInput):
            item = resolve_candidates(item, column=column, labels=labels)
        yield where, item


def resolve_candidates(item: TextInput, *, column: str, labels: LabelMap) -> TextInput | InputProblem:
    """Return a text with the candidate labels of its row, or the problem of invalid candidates."""
    value = item.row.get(column)
    if value is None or value == [] or (isinstance(value, str) and value.strip() in ("", "[]")):
        return item
    reader = RowReader(item.source, item.row)
    names = read_candidates(reader, None, column=column)
    if not reader.problems:
        _check_names(names, reader, column=column, labels=labels)
    if reader.problems:
        first = reader.problems[0]
        return InputProblem(first.where, first.problem, first.expected, first.fix, item.row, code=first.code)
    places = sorted(labels.spelled[name] for name in names)
    return replace(item, candidates=tuple(labels.names[place] for place in places))


def _check_names(names: Iterable[str], row: RowReader, *, column: str, labels: LabelMap) -> None:
    """Refuse a row at its first name that is unknown or repeats a label."""
    known: dict[int, str] = {}
    for name in names:
        place = labels.spelled.get(name)
        if place is None:
            near = labels.near(name)
            expected = f"labels of the model: {shorten(labels.names)}"
            fix = "correct the row" if near is None else f"write {shorten(near)}"
            row.refuse(f"found {shorten(name)} in {column!r}", expected, fix, code="label-unknown")
            return
        if place in known:
            both = f"{shorten(known[place])} and {shorten(name)}, both {shorten(labels.names[place])}"
            fix = "remove one of the two"
            row.refuse(f"found {both}, in {column!r}", "each label once", fix, code="label-conflict")
            return
        known[place] = name


def choose(
    scorer: Scorer | LabelScorer,
    texts: Iterable[str],
    *,
    candidates: Iterable[Iterable[str]],
    text_pairs: Iterable[str] | None = None,
    **options: Any,
) -> list[Prediction]:
    """Predict within the candidate labels of each text; probabilities are over the candidates.

    Args:
        scorer: the scorer.
        texts: n texts.
        candidates: per text, names of labels; () for all.
        text_pairs: see `Scorer.predict`.
        **options: options of `predict`.

    Example:
        >>> from qwen_task_heads import build, load_tokenizer
        >>> from qwen_task_heads.inference.loading import choose
        >>> model = build("embedded", task="pooled_classifier", labels=["sport", "trade", "art"])
        >>> scorer = Scorer(model, tokenizer=load_tokenizer("embedded"))
        >>> [answer] = choose(scorer, ["A match"], candidates=[("trade",)])
        >>> answer.label, answer.probabilities["trade"]
        ('trade', 1.0)
    """
    given = rows_of("texts", texts)
    pairs = None if text_pairs is None else rows_of("text_pairs", text_pairs)
    restrictions = [tuple(names) if names else () for names in candidate_rows(candidates, count=len(given))]
    if isinstance(scorer, LabelScorer):
        options = {name: value for name, value in options.items() if value is not None}
        return scorer.predict(given, candidates=[names or None for names in restrictions], **options)
    if not any(restrictions):
        return scorer.predict(given, text_pairs=pairs, **options)
    rows = [
        TextExample(text=text, target=0, candidates=names)
        for text, names in zip(given, restrictions, strict=True)
    ]
    logits = scorer.logits(given, text_pairs=pairs)
    restricted = torch.from_numpy(within(logits.numpy(), rows, labels=LabelMap.of_config(scorer.config)))
    return to_predictions(restricted, scorer.config, texts=given, text_pairs=pairs, **options)
