"""A trained model by its name, whatever it is: a head is opened by `Scorer`, a label writer by `LabelScorer`.

Also the labels that rows of a file offer, which label writers alone are asked to choose from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from qwen_task_heads.batching.answers import LABEL_PROMPT, read_label_prompt
from qwen_task_heads.data.columns import RowReader
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.text_columns import read_candidates
from qwen_task_heads.data.text_readers import InputProblem, TextInput
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.generators import file_of
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.inference.generative import LabelScorer
from qwen_task_heads.inference.scorer import Scorer


def written_labels(name: str, *, revision: str | None = None, hub: str = HUGGINGFACE) -> LabelMap | None:
    """The labels that a model was trained to write; None for a model with a head, or of somebody else.

    Example:
        >>> from qwen_task_heads.inference.opening import written_labels
        >>> written_labels("embedded") is None
        True
    """
    path = file_of(name, LABEL_PROMPT, revision=revision, hub=hub)
    labels: LabelMap | None = None if path is None else read_label_prompt(path)["labels"]
    return labels


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
        >>> from qwen_task_heads.inference.opening import open_scorer
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
        raise TaskHeadsError.of("int8", found, accepted, "drop it")
    return LabelScorer.from_pretrained(name, revision=revision, hub=hub, **options)


def with_offers(
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
        yield where, _offer(item, column, labels) if isinstance(item, TextInput) else item


def _offer(item: TextInput, column: str, labels: LabelMap) -> TextInput | InputProblem:
    value = item.row.get(column)
    if value is None or value == [] or (isinstance(value, str) and value.strip() in ("", "[]")):
        return item
    reader = RowReader(item.source, item.row)
    names = read_candidates(reader, None, column=column)
    problems = reader.problems
    if unknown := [name for name in names if name not in labels.spelled]:
        found = f"{column!r} offers {', '.join(map(shorten, unknown))}"
        accepted = f"labels of the model: {shorten(labels.names)}"
        problems = [Problem.of(item.source, found, accepted, "correct the row, or leave the column empty")]
    places = {labels.spelled[name]: name for name in names if name in labels.spelled}
    if not problems and len(places) < len(names):
        one = next(name for name in names if places[labels.spelled[name]] != name)
        place = labels.spelled[one]
        both = f"{shorten(one)} and {shorten(places[place])}, both {shorten(labels.names[place])}"
        found = f"{column!r} offers {both}"
        problems = [Problem.of(item.source, found, "each label once", "remove one of the two")]
    if problems:
        first = problems[0]
        return InputProblem(first.where, first.found, first.accepted, first.remedy, item.row)
    return replace(item, candidates=tuple(labels.names[place] for place in sorted(places)))
