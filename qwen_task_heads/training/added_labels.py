"""Data of a run that goes on from a saved classifier: its labels, and those that the data add.

Design:
- The labels of the run are, by the first rule that applies:

  1. those of `labels`, which must name every label of the model, and may stand in any order if it adds some;
  2. those of a label file beside the data that does the same;
  3. those of the model, if the training rows state no other;
  4. names by id that the data declare (class names, `label_name`), if all of the model are among them;
  5. those of the model in their order, then the new names of the training rows, sorted.

- A number that a row states without a name adds no label to a model whose labels have names: nothing says
  which label is meant. Nor does a name that differs from a label in case, width or spacing alone.
- An ordinal model takes no further labels (`head_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_task_heads.data.embedded_datasets import locate_set
from qwen_task_heads.data.file_options import UTF_8, options_of
from qwen_task_heads.data.label_files import find_label_file, is_whole
from qwen_task_heads.data.label_schemes import labels_of
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.raw_texts import RawTexts
from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.data.text_readers import read_texts
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.head_rows import added_summary, check_added, relabeled

READING = ("hub", "problem_type", "max_samples", "streaming")  # options of `read_texts`


def read_sets_for(source: str, saved: Mapping[str, Any], **options: Any) -> TextSets:
    """Read the sets of a text classifier that may go on from a saved model.

    Args:
        source: as of `read_text_sets`.
        saved: `models.saved_task` of the model: its `labels` and `problem_type`; {} for a plain backbone.
        **options: as of `read_text_sets`.

    Returns:
        The sets; if labels are added, one of the `lines` says which, and how their rows of the head start.

    Raises:
        TaskHeadsError: as of `read_text_sets`; or labels that the model cannot take over.

    Example:
        >>> import pathlib, tempfile
        >>> from qwen_task_heads.data.labels import LabelMap
        >>> from qwen_task_heads.training.added_labels import read_sets_for
        >>> saved = {"labels": LabelMap(("red", "blue")), "problem_type": "single_label_classification"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "train.csv")
        ...     names = ("red", "blue", "grey", "azure")
        ...     rows = [f"text {number},{names[number % 4]}\\n" for number in range(40)]
        ...     _ = path.write_text("text,label\\n" + "".join(rows))
        ...     read_sets_for(str(path), saved).labels.names
        ('red', 'blue', 'azure', 'grey')
    """
    if not saved:
        return read_text_sets(source, **options)
    own, given = saved["labels"], {**saved, **options}
    stated = options.get("labels")
    if stated is None and (beside := find_label_file(locate_set(source, "texts"))):
        adds = LabelMap.read(beside).label2id.keys() > own.label2id.keys()
        stated = beside if adds else None
    if stated is None:
        sets = _read_rows(source, own, given)
    else:
        told = stated if isinstance(stated, LabelMap) else LabelMap.read(stated)
        check_added(told, own, problem_type=given["problem_type"], where=_place(stated))
        sets = read_text_sets(source, **{**given, "labels": stated})
    sets.lines.extend(filter(None, [added_summary(sets.labels, own, name="the saved model")]))
    return sets


def _place(stated: LabelMap | str) -> str:
    return "labels" if isinstance(stated, LabelMap) else str(stated)


def _read_rows(source: str, own: LabelMap, given: dict[str, Any]) -> TextSets:
    """Read with the labels of the model, or, where training rows state others, with these beside them."""
    refused: TaskHeadsError | None = None
    if given.get("bad_rows", "raise") == "raise":  # else rows with new names would be left out
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
    """The training rows with the labels they state; None of what cannot be opened."""
    place = locate_set(source, "texts")
    options = {name: given[name] for name in READING if name in given}
    options["options"] = options_of(given.get("encoding", UTF_8), given.get("columns", ()))
    try:
        return read_texts(place, split=None if Path(place).is_file() else "train", **options)
    except TaskHeadsError:  # with a message of `read_text_sets`
        return None


def _names_with(own: LabelMap, train: RawTexts | None) -> tuple[str, ...]:
    """Labels of the model and those that training rows add, in the order of the run."""
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
        numbered = together == {*range(len(together))}  # a gap is a mistake, and refused by the reader
        return tuple(map(str, sorted(together))) if numbered else own.names
    new = {name for name in stated if own.near(name) is None and not is_whole(name)}
    declared = tuple(by_id[place] for place in sorted(by_id))
    if new and sorted(by_id) == [*range(len(by_id))] and {*own.names} | new == {*declared}:
        return declared
    return (*own.names, *sorted(new))
