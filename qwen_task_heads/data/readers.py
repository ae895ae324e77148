"""Preference files -> validated pairs and groups, with an account of every row.

Design:
- One pass reads, validates and collects; one exception at the end names every defect of the source
  (`bad_rows="raise"`), or the defects are counted and kept in the report (`bad_rows="skip"`).
- Whole-file defects (kind, columns, swapped evidence) always raise: skipping them would skip the file.
- Evidence (votes, clicks) only sets `preference`; whether training uses it is the recipe's choice.
- Which columns make which rows stands in `columns.py`, which bytes make which rows in `formats.py`.

Accepted rows (`prompt`, `margin`, `weight` and one of `group_id`, `test_id`, `group` are optional):

| row | columns |
|---|---|
| pair | chosen, rejected: text, with or without <title>…</title>; other layouts: `pair_texts.py` |
| pair with votes | … votes_chosen, votes_rejected, perhaps votes_skip |
| pair with clicks | … chosen_clicks, chosen_impressions, rejected_clicks, rejected_impressions |
| pair with a probability | … preference, from 0 to 1 |
| arm of a test | headline or title, impressions, clicks, and one of the group columns |
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qwen_task_heads.data.columns import (
    MAX_NUMBER,
    RowReader,
    collapse,
    read_evidence,
    refuse_misspelt,
    require,
)
from qwen_task_heads.data.doctor import Finding, ReadReport, examine, swapped_problem
from qwen_task_heads.data.evidence import groups_to_pairs
from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.data.file_options import PLAIN, FileOptions
from qwen_task_heads.data.formats import Row, collect_rows, open_source
from qwen_task_heads.data.hub_sets import HubRows
from qwen_task_heads.data.layout import GROUP, HEADLINE, Layout, read_layout
from qwen_task_heads.data.pair_texts import read_prompt, read_texts
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

__all__ = ["PairData", "groups_to_pairs", "pair_to_row", "pairs_of_rows", "read_pairs"]


@dataclass(frozen=True, kw_only=True)
class PairData:
    """What a source holds.

    Args:
        pairs: pairs, in reading order.
        groups: tests with their arms, in order of first appearance; empty unless a file holds arms.
        report: the account of every row.
        unread: columns that mean nothing here, in order of appearance.
    """

    pairs: list[PairExample]
    groups: list[GroupExample]
    report: ReadReport
    unread: tuple[str, ...] = ()


@dataclass
class _Arm:
    """A headline of a test; equal headlines are pooled into the first."""

    title: str
    clicks: int
    impressions: int
    prompt: str
    sources: list[str]


@dataclass
class _Collected:
    """Everything read so far, over all files of a source."""

    pairs: list[PairExample] = field(default_factory=list)
    tests: dict[str, dict[str, _Arm]] = field(default_factory=dict)
    rows_read: int = 0
    refused: int = 0
    problems: list[Problem] = field(default_factory=list)
    file_problems: list[Problem] = field(default_factory=list)
    swapped: list[str] = field(default_factory=list)
    with_evidence: int = 0
    pooled: list[str] = field(default_factory=list)
    lone: list[str] = field(default_factory=list)
    conversations: list[str] = field(default_factory=list)
    unread: dict[str, None] = field(default_factory=dict)
    several: int = 0  # pairs beyond the first of their row


def read_pairs(
    source: str,
    *,
    split: str | None = None,
    hub: str = "huggingface",
    bad_rows: str = "raise",
    options: FileOptions = PLAIN,
) -> PairData:
    """Read preferences from a file, a folder, or a data set id.

    The earlier messages of a conversation become the prompt: their contents, joined by line ends, without
    their roles, and no chat template is applied. The report counts such rows.

    Args:
        source: JSONL, JSON, CSV, TSV, Parquet, Arrow or Excel; a folder of these, or one by `save_to_disk`;
            `owner/name` of a hub, also as `modelscope:owner/name`. An existing path wins over an id.
        split: `train`, `dev` or `test` of a folder or hub data set that holds several.
        hub: where an id without prefix is looked up, `huggingface` or `modelscope`.
        bad_rows: `raise` names every refused row in one error; `skip` leaves them out and counts them.
        options: encoding of text files, and columns of tables without a header.

    Returns:
        Pairs, groups and the report, with `report.rows_read == report.used + report.refused`.

    Raises:
        TaskHeadsError: the source cannot be read, has unknown or misspelt columns, no usable row, evidence
            that mostly speaks against the columns, or (with `raise`) any refused row. All of them at once.

    Example:
        >>> import pathlib, tempfile
        >>> from qwen_task_heads.data.readers import read_pairs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "train.jsonl")
        ...     row = '{"chosen": "<title>A</title>", "rejected": "B", "preference": 0.75}'
        ...     _ = path.write_text(row)
        ...     pair = read_pairs(str(path)).pairs[0]
        >>> pair.chosen, pair.rejected, pair.preference
        ('A', 'B', 0.75)
    """
    if bad_rows not in ("raise", "skip"):
        found = f"found {shorten(bad_rows)}"
        raise TaskHeadsError(Problem("bad_rows", found, "accepted: raise, skip", "choose one of them"))
    found_so_far = _Collected()
    for name, rows in open_source(source, split=split, hub=hub, options=options):
        _read_part(name, rows, found_so_far)
    groups = _close_groups(found_so_far)
    return _finish(os.fspath(source), found_so_far, groups, skip=bad_rows == "skip")


def pairs_of_rows(rows: Any, *, name: str) -> PairData:
    """Read preferences from rows in memory, held against the same rules as those of a file.

    Args:
        rows: a data set of `datasets`, or dicts, with the columns that are listed above.
        name: what the rows are called in messages: `name:row 17`, counted from 1.

    Raises:
        TaskHeadsError: as `read_pairs`; any refused row is named.

    Example:
        >>> from qwen_task_heads.data.readers import pairs_of_rows
        >>> pairs_of_rows([{"chosen": "A", "rejected": "B"}], name="train_dataset").pairs[0].source
        'train_dataset:row 1'
    """
    collected = _Collected()
    _read_part(name, HubRows(name, rows), collected)
    return _finish(name, collected, _close_groups(collected), skip=False)


def _read_part(name: str, rows: Iterator[Row], collected: _Collected) -> None:
    """One file: its layout is known once all its rows are read, so they are held until then."""
    part = collect_rows(rows)
    collected.file_problems += part.file_problems
    collected.rows_read += part.rows_read
    collected.refused += len(part.problems)
    collected.problems += part.problems
    good = part.good
    if not good:
        return
    layout = read_layout(good[0][0], part.columns)
    collected.file_problems += layout.problems
    collected.unread.update(dict.fromkeys(layout.unread))
    for where, values in good:
        reader = RowReader(where, values)
        if layout.kind == "pairs":
            _read_pairs(reader, layout, collected)
        elif layout.kind == "arms":
            _read_arm(reader, layout, collected)
        if reader.problems:
            collected.refused += 1
            collected.problems += reader.problems


def _read_pairs(row: RowReader, layout: Layout, collected: _Collected) -> None:
    """Add the pairs of a row, one for each rejected title, or fill `row.problems`."""
    refuse_misspelt(row, layout, layout.titles)
    texts = read_texts(row, layout) if require(row, layout, layout.titles) else None
    margin = row.number(
        "margin", low=-MAX_NUMBER, high=MAX_NUMBER, accepted="a finite number to 1e6 either way"
    )
    weight = row.number("weight", low=1e-6, high=MAX_NUMBER, accepted="a number over 0, to 1e6")
    preference, swapped = read_evidence(row, layout)
    group = row.group()
    if texts is not None and len(texts.rejected) > 1 and preference is not None:
        found = f"votes, clicks or a preference beside {len(texts.rejected):,} rejected titles"
        row.refuse(found, "evidence on one pair", "write one pair per row")
    if row.problems or texts is None:
        return
    for rejected in texts.rejected:
        pair = PairExample(
            chosen=texts.chosen,
            rejected=rejected,
            prompt=texts.prompt,
            margin=margin,
            preference=preference,
            weight=1.0 if weight is None else weight,
            group=group,
            source=row.where,
        )
        collected.pairs.append(pair)
    collected.several += len(texts.rejected) - 1
    collected.with_evidence += swapped is not None
    collected.swapped += [row.where] if swapped else []
    collected.conversations += [row.where] if texts.spoken else []


def _read_arm(row: RowReader, layout: Layout, collected: _Collected) -> None:
    """Add an arm to its test, or fill `row.problems`."""
    headline = next((name for name in HEADLINE if name in row.values), HEADLINE[0])
    group = next((name for name in GROUP if name in row.values), _first_present(GROUP, layout))
    needed = (headline, "impressions", "clicks", group)
    refuse_misspelt(row, layout, needed)
    complete = require(row, layout, needed)
    title = row.title(headline) if headline in row.values else ""
    clicks, impressions = row.count("clicks"), row.count("impressions")
    prompt, key = "\n".join(read_prompt(row, layout)[0]).strip(), row.group()
    for column, value in (("clicks", clicks), ("impressions", impressions)):
        if column in row.values and value is None and not row.problems:
            row.refuse(f"{column!r} is empty", "a whole number from 0", "fill in the count")
    if group in row.values and not key and not row.problems:
        row.refuse(f"{group!r} is empty", "the key of the test", "fill in the key")
    if clicks is not None and impressions is not None and clicks > impressions:
        found = f"{clicks:,} clicks of {impressions:,} impressions"
        row.refuse(found, "clicks up to the impressions", "correct the counts")
    if row.problems or not complete or clicks is None or impressions is None:
        return
    test = collected.tests.setdefault(key, {})
    first = next(iter(test.values()), None)
    if first is not None and first.prompt != prompt:
        found = f"test {shorten(key)} has another prompt at {first.sources[0]}"
        row.refuse(found, "one prompt per test", "give the tests different keys")
        return
    arm = test.get(collapse(title))
    if arm is None:
        test[collapse(title)] = _Arm(title, clicks, impressions, prompt, [row.where])
        return
    arm.clicks += clicks
    arm.impressions += impressions
    arm.sources.append(row.where)
    collected.pooled.append(row.where)


def _first_present(names: tuple[str, ...], layout: Layout) -> str:
    return next((name for name in names if name not in layout.absent), names[0])


def _close_groups(collected: _Collected) -> list[GroupExample]:
    """Tests with at least two headlines become groups; the arms of the others are left out and counted."""
    groups = []
    for key, test in collected.tests.items():
        arms = list(test.values())
        if len(arms) < 2:  # no defect of the file: tests of images have one headline, with nothing to compare
            collected.refused += len(arms[0].sources)
            collected.lone += arms[0].sources
            continue
        groups.append(
            GroupExample(
                titles=tuple(arm.title for arm in arms),
                clicks=tuple(arm.clicks for arm in arms),
                impressions=tuple(arm.impressions for arm in arms),
                prompt=arms[0].prompt,
                group=key,
                sources=tuple(arm.sources[0] for arm in arms),
            )
        )
    return groups


def _finish(source: str, collected: _Collected, groups: list[GroupExample], *, skip: bool) -> PairData:
    """Raise what must be raised, else report."""
    used = collected.rows_read - collected.refused
    against = swapped_problem(source, swapped=len(collected.swapped), with_evidence=collected.with_evidence)
    problems = collected.file_problems + ([against] if against else []) + ([] if skip else collected.problems)
    if not problems and not used:
        found = f"none of {collected.rows_read:,} rows can be used"
        if collected.lone:
            found += f" ({len(collected.lone):,} arms stand alone in their tests)"
        accepted = "accepted: at least one pair, or one test of two headlines"
        remedy = "correct the rows below" if collected.problems else "add the other headlines of a test"
        nothing = Problem(source, found, accepted, remedy)
        problems = [nothing, *collected.problems]
    if problems:
        raise TaskHeadsError(problems)
    findings = examine(collected.pairs, swapped=collected.swapped)
    lone = set(collected.lone)
    pooled = tuple(where for where in collected.pooled if where not in lone)
    extra = (
        Finding("conversation", tuple(collected.conversations)),
        Finding("pooled", pooled),
        Finding("lone", tuple(collected.lone)),
    )
    findings += tuple(finding for finding in extra if finding.count)
    keys = {pair.group for pair in collected.pairs if pair.group} | {group.group for group in groups}
    report = ReadReport(
        source=source,
        rows_read=collected.rows_read,
        used=used,
        refused=collected.refused,
        pairs=len(collected.pairs),
        several=collected.several,
        groups=len(keys),
        refusals=tuple(collected.problems),
        findings=findings,
    )
    return PairData(pairs=collected.pairs, groups=groups, report=report, unread=tuple(collected.unread))


def pair_to_row(pair: PairExample) -> dict[str, Any]:
    """A pair as a row that `read_pairs` reads back, equal up to `source` (which says where it is read).

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
