"""Preference files -> validated pairs and groups, with a report on every row.

Design:
- One pass reads, validates and collects. At the end, one exception names every defect of the source
  (`bad_rows="raise"`), or the report counts and keeps the defects (`bad_rows="skip"`).
- Defects of a whole file (kind, columns, swapped titles) always raise: skipping them would skip the file.
- Preference signals (votes, clicks) only set `preference`; the recipe decides whether training uses it.
- `sources.py` turns bytes into rows; `pair_scan.py` turns the columns of rows into pairs and arms.

Accepted rows (`prompt`, `margin`, `weight` and one of `group_id`, `test_id`, `group` are optional):

| row | columns |
|---|---|
| pair | chosen, rejected: text, with or without <title>…</title>; other layouts: `pair_texts.py` |
| pair with votes | … votes_chosen, votes_rejected, optionally votes_skip |
| pair with clicks | … chosen_clicks, chosen_impressions, rejected_clicks, rejected_impressions |
| pair with a probability | … preference, from 0 to 1 |
| arm of an experiment | headline or title, impressions, clicks, and one of the group columns |
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen_task_heads.data.batches import RowSource
from qwen_task_heads.data.checks import Finding, ReadReport, examine, swapped_problem
from qwen_task_heads.data.example_columns import hashed
from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.data.file_options import PLAIN, FileOptions
from qwen_task_heads.data.hub_datasets import rows_of
from qwen_task_heads.data.keys import KEYS, hash_keys
from qwen_task_heads.data.pair_layout import read_layout
from qwen_task_heads.data.pair_scan import PairScan
from qwen_task_heads.data.preferences import groups_to_pairs
from qwen_task_heads.data.raw_pairs import ArmColumns, PairColumns
from qwen_task_heads.data.scanning import scan_file
from qwen_task_heads.data.sources import open_source
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

__all__ = ["PairData", "groups_to_pairs", "pair_to_row", "pairs_of_rows", "read_pairs"]


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


@dataclass
class _Collected:
    """Rows, counts and problems over all files of a source."""

    pairs: PairColumns = field(default_factory=PairColumns)
    arms: ArmColumns = field(default_factory=ArmColumns)
    rows_read: int = 0
    refused: int = 0
    problems: list[Problem] = field(default_factory=list)
    file_problems: list[Problem] = field(default_factory=list)
    swapped: list[str] = field(default_factory=list)
    with_signals: int = 0
    conversations: list[str] = field(default_factory=list)
    several: int = 0  # pairs beyond the first of their row


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
    if bad_rows not in ("raise", "skip"):
        problem = f"found {shorten(bad_rows)}"
        raise TaskHeadsError(
            Problem("bad_rows", problem, "raise, skip", "choose one of them", code="option-value")
        )
    collected, unread = _Collected(), dict[str, None]()
    for rows in open_source(source, split=split, hub=hub, options=options):
        unread.update(dict.fromkeys(_read_file(rows, collected)))
    return _finish(os.fspath(source), collected, unread, skip=bad_rows == "skip")


def pairs_of_rows(rows: Any, *, name: str) -> PairData:
    """Read preferences from rows in memory, validated as those of a file.

    Args:
        rows: a `datasets.Dataset`, or dicts, with the columns that are listed above.
        name: name of the rows in messages: `name:row 17`, counted from 1.

    Raises:
        TaskHeadsError: as in `read_pairs`, with every refused row.

    Example:
        >>> from qwen_task_heads.data.pair_readers import pairs_of_rows
        >>> pairs_of_rows([{"chosen": "A", "rejected": "B"}], name="train_dataset").pairs[0].source
        'train_dataset:row 1'
    """
    collected = _Collected()
    unread = _read_file(rows_of(name, rows), collected)
    return _finish(name, collected, unread, skip=False)


def _read_file(rows: RowSource, collected: _Collected) -> Iterable[str]:
    """Read one file, and return the columns that are ignored."""

    def start(where: str, columns: Collection[str]) -> PairScan:
        return PairScan(collected, read_layout(where, columns))

    scan, _ = scan_file(rows, collected, start=start)
    return () if scan is None else scan.layout.unread


def _finish(source: str, collected: _Collected, unread: Iterable[str], *, skip: bool) -> PairData:
    """Raise the collected problems, or return the data with its report."""
    experiments = collected.arms.experiments()
    # A lone arm is not a defect: experiments on images have one headline, which gives no pair.
    collected.refused += len(experiments.conflicts) + len(experiments.lone)
    collected.problems += experiments.conflicts
    used = collected.rows_read - collected.refused
    swapped = swapped_problem(source, swapped=len(collected.swapped), with_signals=collected.with_signals)
    problems = collected.file_problems + ([swapped] if swapped else []) + ([] if skip else collected.problems)
    if not problems and not used:
        problem = f"none of {collected.rows_read:,} rows can be used"
        if experiments.lone:
            problem += f" ({len(experiments.lone):,} arms are alone in their experiments)"
        expected = "at least one pair, or one experiment of two headlines"
        fix = "correct the rows below" if collected.problems else "add the other headlines of an experiment"
        problems = [Problem(source, problem, expected, fix, code="rows-too-few"), *collected.problems]
    if problems:
        raise TaskHeadsError(problems)
    pairs = collected.pairs.table()
    findings = examine(pairs, swapped=collected.swapped)
    extra = (
        Finding("conversation", tuple(collected.conversations)),
        Finding("pooled", tuple(experiments.pooled)),
        Finding("lone", tuple(experiments.lone)),
    )
    findings += tuple(finding for finding in extra if finding.count)
    keys = hashed(pairs, "group")
    keys = keys[keys != hash_keys([KEYS["group"]("")])[0]]
    groups = np.union1d(keys, hashed(experiments.table, "group"))
    report = ReadReport(
        source=source,
        rows_read=collected.rows_read,
        used=used,
        refused=collected.refused,
        pairs=len(pairs),
        several=collected.several,
        groups=len(groups),
        refusals=tuple(collected.problems),
        findings=findings,
    )
    return PairData(pairs=pairs, groups=experiments.table, report=report, unread=tuple(unread))


def pair_to_row(pair: PairExample) -> dict[str, Any]:
    """Convert a pair to a row that `read_pairs` reads back, equal up to `source`, the place of the row.

    Example:
        >>> pair_to_row(PairExample(chosen="A", rejected="B", group="t1"))
        {'chosen': 'A', 'rejected': 'B', 'group_id': 't1'}
    """
    row: dict[str, Any] = {"chosen": pair.chosen, "rejected": pair.rejected}
    if pair.prompt:
        row["prompt"] = pair.prompt
    if pair.margin is not None:
        row["margin"] = pair.margin
    if pair.preference is not None:
        row["preference"] = pair.preference
    if pair.weight != 1.0:
        row["weight"] = pair.weight
    if pair.group:
        row["group_id"] = pair.group
    return row
