"""Label ids that a file writes in quotes, as published data sets with a class file do.

`"label": "5"` is refused elsewhere: without a list of names nothing says whether `5` is an id or a name.
Where a label file names the labels, none of them by a number, and every training row states a number in
quotes that is an id of that file, there is one reading. Rows that mix both ways of writing stay refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from qwen_task_heads.data.label_files import is_whole
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.text_columns import RawText
from qwen_task_heads.data.text_readers import RawTexts


def unquote_ids(train: RawTexts, others: Iterable[RawTexts], labels: LabelMap | None) -> bool:
    """Replace ids in quotes by whole numbers, in place, where that is the only reading.

    Args:
        train: the training rows, which decide.
        others: dev, test and other sets of the same run, read the same way.
        labels: names of a label file or of a model; None leaves all rows as they are.

    Returns:
        Whether rows were changed.

    Example:
        >>> rows = [RawText(text="a", value="1"), RawText(text="b", value="0")]
        >>> raw = RawTexts(source="train.json", rows=rows)
        >>> unquote_ids(raw, [], LabelMap(("sport", "trade"))), [row.value for row in raw.rows]
        (True, [1, 0])
    """
    if labels is None or any(map(is_whole, labels.names)) or not train.rows:
        return False
    ids = {str(place) for place in range(len(labels))}
    if not all(isinstance(row.value, str) and row.value.strip() in ids for row in train.rows):
        return False
    for raw in (train, *others):
        raw.rows[:] = map(_unquoted, raw.rows)
    return True


def _unquoted(row: RawText) -> RawText:
    quoted = isinstance(row.value, str) and is_whole(row.value.strip()) and len(row.value) < 10
    return replace(row, value=int(row.value)) if quoted else row
