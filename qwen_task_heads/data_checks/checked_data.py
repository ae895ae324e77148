"""The splits of a source, and the columns of its training rows that training does not read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qwen_task_heads.data.examples import one_text
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.data.title_datasets import TitleSets
from qwen_task_heads.data_checks.near_duplicates import NearDuplicate, near_duplicates
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.sources.batches import ABSENT, Batch
from qwen_task_heads.sources.file_options import FileOptions
from qwen_task_heads.sources.formats import open_source
from qwen_task_heads.sources.hub_datasets import NoSuchSplit

ROWS = 50_000  # rows of a split that slow checks read; they take a random sample of larger splits
MAX_COLUMNS = 50  # unread columns that are compared with the answers
MAX_CELLS = 200_000  # cells that are kept of such a column


@dataclass(frozen=True, kw_only=True)
class CheckedData:
    """What the checks read.

    Args:
        sets: the splits as training reads them.
        columns: column that training does not read -> place of a training row -> its cell.
        names: all columns of the training source.
    """

    sets: TextSets | TitleSets
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()

    @property
    def noun(self) -> str:
        """Name of the rows: `texts` or `pairs`."""
        return "texts" if isinstance(self.sets, TextSets) else "pairs"

    @property
    def splits(self) -> dict[str, Sequence[Any]]:
        """The splits that have rows."""
        every = {"train": self.sets.train, "dev": self.sets.dev, "test": self.sets.test}
        return {split: rows for split, rows in every.items() if len(rows)}

    @cached_property
    def sample(self) -> list[Any]:
        """At most `ROWS` rows of train, in reading order, drawn with a fixed seed."""
        return sampled(self.sets.train)

    @cached_property
    def twins(self) -> list[NearDuplicate]:
        """Rows of `sample` that are nearly equal to an earlier one."""
        return near_duplicates([one_text(row) for row in self.sample])

    @property
    def labels(self) -> Sequence[str]:
        """Names of the labels, () for pairs, scores and several questions."""
        if not isinstance(self.sets, TextSets) or self.problem_type in ("regression", QUESTIONS):
            return ()
        return self.sets.labels.names

    @property
    def problem_type(self) -> str:
        """The problem type of texts, "" for pairs."""
        return self.sets.problem_type if isinstance(self.sets, TextSets) else ""

    @property
    def has_classes(self) -> bool:
        """Whether each row has one label."""
        return self.problem_type in ("single_label_classification", "ordinal")


def sampled(rows: Sequence[Any], limit: int = ROWS) -> list[Any]:
    """Return all rows, or a random sample of `limit` in reading order."""
    if len(rows) <= limit:
        return list(rows)
    chosen = np.sort(np.random.default_rng(0).choice(len(rows), limit, replace=False))
    return [rows[int(index)] for index in chosen]


def read_columns(
    source: str, unread: Collection[str], *, hub: str, options: FileOptions
) -> tuple[dict[str, dict[str, Any]], frozenset[str]]:
    """Read columns of the training source that training ignores.

    Args:
        source: file, folder or dataset id.
        unread: names of the columns; the first `MAX_COLUMNS` are read.
        hub: of an id.
        options: encoding, and columns of tables without a header.

    Returns:
        Column -> place of a row -> its cell, for at most `MAX_CELLS` rows; and the names of all columns.
    """
    cells: dict[str, dict[str, Any]] = {name: {} for name in [*unread][:MAX_COLUMNS]}
    names: set[str] = set()
    try:
        files = open_source(
            source, split=None if Path(source).is_file() else "train", hub=hub, options=options
        )
    except NoSuchSplit:
        files = open_source(source, hub=hub, options=options)
    for item in (item for rows in files for item in rows.items()):
        if not isinstance(item, Batch):
            continue
        names.update(item.names)
        for name, known in cells.items():
            if name in item.names and len(known) < MAX_CELLS:
                values = enumerate(item.column(name))
                known.update({item.where(row): value for row, value in values if value is not ABSENT})
    return cells, frozenset(names)
