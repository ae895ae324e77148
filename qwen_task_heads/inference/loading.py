"""A trained model by its name, whatever it is: a head is opened by `Scorer`, a label writer by `LabelScorer`.

Also the labels that rows of a file offer, to which the answers of either are held.
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
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.pair_columns import RowReader
from qwen_task_heads.data.text_columns import read_candidates
from qwen_task_heads.data.text_readers import InputProblem, TextInput
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.generators import file_of
from qwen_task_heads.inference.inputs import candidate_rows, rows_of
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.predictions import Prediction, to_predictions
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.models import saved_task
from qwen_task_heads.modelscope import HUGGINGFACE
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
    """Open what a recipe trained.

    Args:
        name: repo id or folder.
        revision: branch, tag or commit.
        hub: where ids are looked up.
        batch_tokens: as of the scorer; its own default when None.
        int8: as of `Scorer`.
        **options: of the scorer: `dtype`, `device`, `progress`.

    Raises:
        TaskHeadsError: no such model, one that neither scorer opens, or int8 with a label writer.

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
    with suppress(TaskHeadsError):  # no such model: `Scorer` says which there are
        path = file_of(name, LABEL_PROMPT, revision=revision, hub=hub)
    if path is None:
        return Scorer(name, revision=revision, hub=hub, int8=int8, **options)
    if int8:
        found, accepted = "true with a model that writes its labels", "a model with a head"
        raise TaskHeadsError(Problem("int8", f"found {found}", accepted, "drop it"))
    return LabelScorer.from_pretrained(name, revision=revision, hub=hub, **options)


def labels_to_choose(
    model: str | Path | Scorer | LabelScorer, *, revision: str | None = None, hub: str = HUGGINGFACE
) -> LabelMap:
    """The labels of which a model gives every text one; of a name, without loading its weights.

    Raises:
        TaskHeadsError: no such model, or one that does something else.
    """
    if isinstance(model, LabelScorer):
        return model.prompts.labels
    if isinstance(model, Scorer):
        config = model.config
        task = {} if model.is_title_scorer else {"labels": LabelMap.of_config(config)}
        kind = None if model.is_title_scorer else config.problem_type
    elif path := file_of(str(model), LABEL_PROMPT, revision=revision, hub=hub):
        written: LabelMap = read_label_prompt(path)["labels"]
        return written
    else:
        task = saved_task(str(model), revision=revision, hub=hub)
        kind = task.get("problem_type")
    labels: LabelMap | None = task.get("labels")
    if labels is not None and (kind or (ONE_LABEL[0] if len(labels) > 1 else None)) in ONE_LABEL:
        return labels
    found = f"found with {kind or 'a model without labels'}"
    raise TaskHeadsError(Problem("--candidates", found, f"with {', '.join(ONE_LABEL)}", "drop it"))


def with_candidates(
    items: Iterable[tuple[str, TextInput | Problem]], *, column: str, labels: LabelMap
) -> Iterator[tuple[str, TextInput | Problem]]:
    """Texts with the labels that their rows offer; a row whose column is empty offers all.

    Args:
        items: of `read_inputs`.
        column: holds names or aliases of labels, as a list or separated by commas.
        labels: those of the model.

    Returns:
        The same items; in the place of a row that offers something else, an `InputProblem`.
    """
    for where, item in items:
        yield where, offer_of(item, column=column, labels=labels) if isinstance(item, TextInput) else item


def offer_of(item: TextInput, *, column: str, labels: LabelMap) -> TextInput | InputProblem:
    """A text with the labels that its row offers, or what is wrong with them."""
    value = item.row.get(column)
    if value is None or value == [] or (isinstance(value, str) and value.strip() in ("", "[]")):
        return item
    reader = RowReader(item.source, item.row)
    names = read_candidates(reader, None, column=column)
    if not reader.problems:
        reader.problems += _wrong_names(names, where=item.source, column=column, labels=labels)
    if reader.problems:
        first = reader.problems[0]
        return InputProblem(first.where, first.problem, first.expected, first.fix, item.row)
    places = sorted(labels.spelled[name] for name in names)
    return replace(item, candidates=tuple(labels.names[place] for place in places))


def _wrong_names(names: Iterable[str], *, where: str, column: str, labels: LabelMap) -> list[Problem]:
    """Names that the model does not know, or that mean one label."""
    known: dict[int, str] = {}
    for name in names:
        place = labels.spelled.get(name)
        if place is None:
            near = labels.near(name)
            remedy = "correct the row" if near is None else f"did you mean {shorten(near)}?"
            accepted = f"labels of the model: {shorten(labels.names)}"
            return [Problem(where, f"found {shorten(name)} in {column!r}", accepted, remedy)]
        if place in known:
            both = f"{shorten(known[place])} and {shorten(name)}, both {shorten(labels.names[place])}"
            return [
                Problem(where, f"found {both}, in {column!r}", "each label once", "remove one of the two")
            ]
        known[place] = name
    return []


def choose(
    scorer: Scorer | LabelScorer,
    texts: Iterable[str],
    *,
    candidates: Iterable[Iterable[str]],
    text_pairs: Iterable[str] | None = None,
    **options: Any,
) -> list[Prediction]:
    """Answers that are held to what each text offers: the probabilities are over these labels.

    Args:
        scorer: of n texts.
        candidates: per text, names of labels; () for all.
        text_pairs: as of `Scorer.predict`.
        **options: of `predict`.

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
    offered = [tuple(one) if one else () for one in candidate_rows(candidates, count=len(given))]
    if isinstance(scorer, LabelScorer):
        options = {name: value for name, value in options.items() if value is not None}
        return scorer.predict(given, candidates=[one or None for one in offered], **options)
    if not any(offered):
        return scorer.predict(given, text_pairs=pairs, **options)
    offers = zip(given, offered, strict=True)
    rows = [TextExample(text=text, target=0, candidates=one) for text, one in offers]
    logits = scorer.logits(given, text_pairs=pairs)
    held = torch.from_numpy(within(logits.numpy(), rows, labels=LabelMap.of_config(scorer.config)))
    return to_predictions(held, scorer.config, texts=given, text_pairs=pairs, **options)
