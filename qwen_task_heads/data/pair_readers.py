"""Preference files -> validated pairs and groups, with a report on every row.

Design:
- One pass reads, validates and collects. At the end, one exception names every defect of the source
  (`bad_rows="raise"`), or the report counts and keeps the defects (`bad_rows="skip"`).
- Defects of a whole file (kind, columns, swapped titles) always raise: skipping them would skip the file.
- Preference signals (votes, clicks) only set `preference`; the recipe decides whether training uses it.
- `sources` turns bytes into rows; `pair_scan.py` turns their columns (`schema.py`) into pairs and arms.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_task_heads.data.checks import Finding, ReadReport, bad_rows_problems, examine, swapped_problem
from qwen_task_heads.data.example_columns import group_keys
from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.data.pair_layout import read_layout
from qwen_task_heads.data.pair_scan import PairScan
from qwen_task_heads.data.raw_pairs import RawPairs
from qwen_task_heads.data.scanning import scan_file
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.sources.batches import RowSource
from qwen_task_heads.sources.file_options import PLAIN, FileOptions
from qwen_task_heads.sources.formats import open_source
from qwen_task_heads.sources.hub_datasets import rows_of


@dataclass(frozen=True, kw_only=True)
class PairData:
    """The pairs and experiments of a source, with the report on its rows.

    Args:
        pairs: pairs, in reading order.
        groups: experiments with their arms, in order of first appearance; empty unless a file has arms.
        report: the report on every row.
        unread: columns that are ignored, in order of appearance.
    """

    pairs: Sequence[PairExample]
    groups: Sequence[GroupExample]
    report: ReadReport
    unread: tuple[str, ...] = ()


def read_pairs(
    source: str,
    *,
    split: str | None = None,
    hub: str = "huggingface",
    bad_rows: str = "raise",
    options: FileOptions = PLAIN,
) -> PairData:
    """Read preferences from a file, a folder, or a dataset id.

    The earlier messages of a conversation become the prompt: their contents, joined by newlines, without
    roles and chat template. The report counts such rows.

    Args:
        source: JSONL, JSON, CSV, TSV, Parquet, Arrow or Excel; a folder of these, or one by `save_to_disk`;
            `owner/name` of a hub, also as `modelscope:owner/name`. An existing path takes precedence over an
            id.
        split: `train`, `dev` or `test` of a folder or hub dataset with several splits.
        hub: the hub of an id without prefix, `huggingface` or `modelscope`.
        bad_rows: `raise` names every refused row in one error; `skip` leaves them out and counts them.
        options: encoding of text files, and columns of tables without a header.

    Returns:
        Pairs, groups and the report, with `report.rows_read == report.used + report.refused`.

    Raises:
        TaskHeadsError: the source cannot be read, has unknown or misspelt columns, no usable row, preference
            signals that mostly contradict the columns, or (with `raise`) any refused row. The error names
            all of these problems.

    Example:
        >>> import pathlib, tempfile
        >>> from qwen_task_heads.data.pair_readers import read_pairs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "train.jsonl")
        ...     row = '{"chosen": "<title>A</title>", "rejected": "B", "preference": 0.75}'
        ...     _ = path.write_text(row)
        ...     pair = read_pairs(str(path)).pairs[0]
        >>> pair.chosen, pair.rejected, pair.preference
        ('A', 'B', 0.75)
    """
    if problems := bad_rows_problems(bad_rows):
        raise TaskHeadsError(problems)
    raw = RawPairs(source=os.fspath(source))
    for rows in open_source(source, split=split, hub=hub, options=options):
        _read_file(rows, raw)
    return _finish(raw, skip=bad_rows == "skip")


def pairs_of_rows(rows: Any, *, name: str) -> PairData:
    """Read preferences from rows in memory, validated as those of a file.

    Args:
        rows: a `datasets.Dataset`, or dicts, with the columns of `schema.py`.
        name: name of the rows in messages: `name:row 17`, counted from 1.

    Raises:
        TaskHeadsError: as in `read_pairs`, with every refused row.

    Example:
        >>> from qwen_task_heads.data.pair_readers import pairs_of_rows
        >>> pairs_of_rows([{"chosen": "A", "rejected": "B"}], name="train_dataset").pairs[0].source
        'train_dataset:row 1'
    """
    raw = RawPairs(source=name)
    _read_file(rows_of(name, rows), raw)
    return _finish(raw, skip=False)


def _read_file(rows: RowSource, raw: RawPairs) -> None:
    scan_file(rows, raw, start=lambda where, columns: PairScan(raw, read_layout(where, columns)))


def _finish(raw: RawPairs, *, skip: bool) -> PairData:
    """Raise the collected problems, or return the data with its report."""
    experiments = raw.arms.experiments()
    # A lone arm is not a defect: experiments on images have one headline, which gives no pair.
    refused = raw.refused + len(experiments.conflicts) + len(experiments.lone)
    refusals = [*raw.problems, *experiments.conflicts]
    used = raw.rows_read - refused
    problems = raw.file_problems + swapped_problem(
        raw.source, swapped=len(raw.swapped), with_signals=raw.with_signals
    )
    problems += [] if skip else refusals
    if not problems and not used:
        problem = f"none of {raw.rows_read:,} rows can be used"
        if experiments.lone:
            problem += f" ({len(experiments.lone):,} arms are alone in their experiments)"
        expected = "at least one pair, or one experiment of two headlines"
        fix = "correct the rows below" if refusals else "add the other headlines of an experiment"
        problems = [Problem(raw.source, problem, expected, fix, code="rows-too-few"), *refusals]
    if problems:
        raise TaskHeadsError(problems)
    pairs = raw.pairs.table()
    extra = (
        Finding("conversation", tuple(raw.conversations)),
        Finding("pooled", tuple(experiments.pooled)),
        Finding("lone", tuple(experiments.lone)),
    )
    report = ReadReport(
        source=raw.source,
        rows_read=raw.rows_read,
        used=used,
        refused=refused,
        pairs=len(pairs),
        several=raw.several,
        groups=len(np.union1d(group_keys(pairs), group_keys(experiments.table))),
        refusals=tuple(refusals),
        findings=(*examine(pairs, swapped=raw.swapped), *(finding for finding in extra if finding.count)),
    )
    return PairData(pairs=pairs, groups=experiments.table, report=report, unread=tuple(raw.unread))
