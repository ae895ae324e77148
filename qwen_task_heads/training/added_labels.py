"""Datasets of a run that continues from a saved classifier: its labels, and labels that the data add.

The labels of the run follow from the first rule that applies:

1. the labels of `labels`, which must name every label of the model, in any order if it adds some;
2. the labels of a label file next to the data that does the same;
3. the labels of the model, if the training rows have no others;
4. names by id that the data declare (class names, `label_name`), if they include all of the model;
5. the labels of the model in their order, then the new names of the training rows, sorted.

A number without a name adds no label to a model whose labels have names, because its meaning is unknown. A
name that differs from a label only in case, width or spacing adds no label either. Ordinal models take no
further labels (`head_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_task_heads.data.embedded_datasets import locate_dataset
from qwen_task_heads.data.label_schemes import labels_of
from qwen_task_heads.data.raw_texts import RawTexts
from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.data.text_readers import read_texts
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.head_rows import added_summary, check_added, relabeled
from qwen_task_heads.labels.label_files import find_label_file, is_whole
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.sources.file_options import UTF_8, options_of

READING = ("hub", "problem_type", "max_samples", "streaming")  # options of `read_texts`


def read_datasets_for(source: str, saved: Mapping[str, Any], **options: Any) -> TextSets:
    """Read the datasets of a text classifier that may continue from a saved model.

    Args:
        source: as of `read_text_sets`.
        saved: `models.saved_task` of the model: its `labels` or `questions`, and `problem_type`; {} for a
            plain backbone.
        **options: as of `read_text_sets`.

    Returns:
        The datasets. If labels are added, their `lines` name them and the initial values of their rows of the
        head.

    Raises:
        TaskHeadsError: as `read_text_sets`; or the model cannot take the labels.

    Example:
        >>> import pathlib, tempfile
        >>> from qwen_task_heads.labels.label_map import LabelMap
        >>> from qwen_task_heads.training.added_labels import read_datasets_for
        >>> saved = {"labels": LabelMap(("red", "blue")), "problem_type": "single_label_classification"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "train.csv")
        ...     names = ("red", "blue", "grey", "azure")
        ...     rows = [f"text {number},{names[number % 4]}\\n" for number in range(40)]
        ...     _ = path.write_text("text,label\\n" + "".join(rows))
        ...     read_datasets_for(str(path), saved).labels.names
        ('red', 'blue', 'azure', 'grey')
    """
    if not saved or "questions" in saved:  # a head of several questions takes no others
        return read_text_sets(source, **{**saved, **options})
    own, given = saved["labels"], {**saved, **options}
    stated = options.get("labels")
    if stated is None and (label_file := find_label_file(locate_dataset(source, "texts"))):
        adds = LabelMap.read(label_file).label2id.keys() > own.label2id.keys()
        stated = label_file if adds else None
    if stated is None:
        sets = _read_rows(source, own, given)
    else:
        labels = stated if isinstance(stated, LabelMap) else LabelMap.read(stated)
        check_added(labels, own, problem_type=given["problem_type"], where=_place(stated))
        sets = read_text_sets(source, **{**given, "labels": stated})
    sets.lines.extend(filter(None, [added_summary(sets.labels, own, name="the saved model")]))
    return sets


def _place(stated: LabelMap | str) -> str:
    return "labels" if isinstance(stated, LabelMap) else str(stated)


def _read_rows(source: str, own: LabelMap, given: dict[str, Any]) -> TextSets:
    """Read with the labels of the model, and with the other labels of the training rows if there are any."""
    refused: TaskHeadsError | None = None
    if given.get("bad_rows", "raise") == "raise":  # otherwise rows with new labels are skipped
        try:
            return read_text_sets(source, **given)
        except TaskHeadsError as error:
            refused = error
    names = _names_with(own, _train_rows(source, given))
    if refused is not None and names == own.names:
        raise refused
    labels = relabeled(own, names)
    check_added(labels, own, problem_type=given["problem_type"], where=source)
    return read_text_sets(source, **{**given, "labels": labels})


def _train_rows(source: str, given: Mapping[str, Any]) -> RawTexts | None:
    """Return the training rows with their labels; None if they cannot be read."""
    place = locate_dataset(source, "texts")
    options = {name: given[name] for name in READING if name in given}
    options["options"] = options_of(given.get("encoding", UTF_8), given.get("columns", ()))
    try:
        return read_texts(place, split=None if Path(place).is_file() else "train", **options)
    except TaskHeadsError:  # `read_text_sets` reports it
        return None


def _names_with(own: LabelMap, train: RawTexts | None) -> tuple[str, ...]:
    """Return the labels of the model and those that training rows add, in the order of the run."""
    if train is None or train.kind == "regression":
        return own.names
    by_id = dict(enumerate(train.class_names))
    stated: set[str] = set()
    ids: set[int] = set()
    for row in train.stated:
        if row.name and isinstance(row.value, int):
            by_id.setdefault(row.value, row.name)
        for label in (*labels_of(row), *row.candidates):
            if isinstance(label, str):
                stated.add(label)
            else:
                ids.add(label)
    stated.update(by_id.values())
    own_ids = {*range(len(own))}
    if not stated and [*own.names] == [*map(str, sorted(own_ids))]:
        together = own_ids | ids
        numbered = together == {*range(len(together))}  # the reader refuses gaps
        return tuple(map(str, sorted(together))) if numbered else own.names
    new = {name for name in stated if own.near(name) is None and not is_whole(name)}
    declared = tuple(by_id[place] for place in sorted(by_id))
    if new and sorted(by_id) == [*range(len(by_id))] and {*own.names} | new == {*declared}:
        return declared
    return (*own.names, *sorted(new))
