"""Checks of the rows of a split: repeated and contradictory rows, cycles of preferences, damaged text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from qwen_task_heads.data.checks import Finding, examine, examine_texts
from qwen_task_heads.data.examples import PairExample, full_text
from qwen_task_heads.data.title_datasets import TitleSets
from qwen_task_heads.data_checks.checked_data import CheckedData
from qwen_task_heads.data_checks.findings import NOTE, WARNING, CheckFinding, kept, share_of
from qwen_task_heads.errors import shorten
from qwen_task_heads.sources.keys import text_key

FEW = 0.01  # share of rows up to which a defect of single rows is a note
OFTEN = 5  # rows of one text from which it is named
# Text that was decoded with the wrong encoding: the replacement character, UTF-8 read as Latin-1 or
# Windows-1252, and UTF-8 read as GBK.
DAMAGED = re.compile('�|Ã[\\x80-\\xbf©¨¤¶¼ª]|â€[™œ“"¦]|锟斤拷|ï¼|å[\\x80-\\xbf]{2}')

# Kind of a finding of `data.checks` -> code, what the rows do, and the fix.
EQUAL = ("duplicate", "repeat an earlier row", "drop the repeated rows, or give the first one a weight")
REPEATED = {
    "duplicate": EQUAL,
    "duplicate_text": EQUAL,
    "contradictory": (
        "contradiction",
        "reverse an earlier pair",
        "keep the row of the better source, or leave all of them out",
    ),
    "contradictory_text": (
        "contradiction",
        "have another label than an earlier equal text",
        "label these texts again, or leave them out",
    ),
    "near_equal": (
        "equal-titles",
        "have titles that differ only in case, width or spacing",
        "leave the rows out",
    ),
    "swapped": (
        "swapped-rows",
        "have votes or clicks that prefer the rejected title",
        "exchange the titles of these rows, or leave them out",
    ),
}


def check_repeats(data: CheckedData) -> list[CheckFinding]:
    """Find rows that repeat or contradict an earlier row of their split."""
    findings = []
    found: Sequence[Finding]
    for split, rows in data.splits.items():
        if data.noun == "texts":
            found = examine_texts(rows)
        else:
            # Arms of experiments are compared by their rates, so that their pairs are never turned round.
            turned = [row.source for row in rows if row.preference is not None and row.preference < 0.5]
            turned = [] if isinstance(data.sets, TitleSets) and len(data.sets.groups) else turned
            found = examine(rows, swapped=turned)
        for one in found:
            if one.kind not in REPEATED:
                continue
            code, verb, fix = REPEATED[one.kind]
            message = f"{share_of(one.count, len(rows))} {data.noun} of {split} {verb}"
            findings.append(
                CheckFinding(
                    code=code,
                    severity=WARNING if one.count > FEW * len(rows) else NOTE,
                    message=message,
                    fix=fix,
                    places=kept(one.sources),
                    values={"split": split, "rows": one.count, "of": len(rows)},
                )
            )
    return findings


def check_frequent_texts(data: CheckedData) -> list[CheckFinding]:
    """Find the texts, or titles, that most rows share although their answers differ."""
    answers: dict[str, Counter[object]] = defaultdict(Counter)
    shown: dict[str, str] = {}
    if data.noun == "pairs":
        return []
    for row in data.sample:
        key = text_key(full_text(row))
        shown.setdefault(key, full_text(row))
        answers[key][row.target] += 1
    key, counts = max(answers.items(), key=lambda item: item[1].total())
    if counts.total() < OFTEN:
        return []
    several = f" with {len(counts)} different labels" if len(counts) > 1 else ""
    return [
        CheckFinding(
            code="frequent-text",
            severity=WARNING if len(counts) > 1 and data.has_classes else NOTE,
            message=f"{counts.total():,} training rows have the text {shorten(shown[key], 60)}{several}",
            fix="check whether it is a placeholder of missing texts" if len(counts) > 1 else "",
            values={"rows": counts.total(), "labels": len(counts)},
        )
    ]


def check_cycles(data: CheckedData) -> list[CheckFinding]:
    """Find preferences that go in a circle: A over B, B over C, C over A, under one prompt.

    A circle is a strongly connected component of at least three titles. Two rows that reverse each other are
    contradictions, which `check_repeats` finds.
    """
    if data.noun == "texts":
        return []
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    rows: Sequence[PairExample] = data.sample
    numbers: dict[tuple[str, str], int] = {}
    ends: tuple[list[int], list[int]] = ([], [])
    for row in rows:
        for side, title in zip(ends, (row.chosen, row.rejected), strict=True):
            side.append(numbers.setdefault((text_key(row.prompt), text_key(title)), len(numbers)))
    edges = csr_matrix((np.ones(len(rows)), ends), shape=(len(numbers),) * 2)
    _, part = connected_components(edges, directed=True, connection="strong")
    large = np.bincount(part) >= 3
    start, end = part[np.array(ends[0])], part[np.array(ends[1])]
    places = [
        row.source for row, own, other in zip(rows, start, end, strict=True) if own == other and large[own]
    ]
    if not places:
        return []
    circles = int(large.sum())
    return [
        CheckFinding(
            code="preference-cycle",
            severity=WARNING if len(places) > FEW * len(rows) else NOTE,
            message=f"{share_of(len(places), len(rows))} pairs prefer titles in a circle ({circles:,})",
            fix="leave the weakest preference of each circle out, or train on votes or clicks: --loss soft",
            places=kept(places),
            values={"rows": len(places), "of": len(rows), "circles": circles},
        )
    ]


def check_damaged_text(data: CheckedData) -> list[CheckFinding]:
    """Find text that was decoded with the wrong encoding."""
    findings = []
    for split, rows in data.splits.items():
        places = []
        for row in rows:
            text = full_text(row) if data.noun == "texts" else f"{row.prompt}\n{row.chosen}\n{row.rejected}"
            if DAMAGED.search(text):
                places.append(row.source)
        if places:
            findings.append(
                CheckFinding(
                    code="damaged-text",
                    severity=WARNING if len(places) > FEW * len(rows) else NOTE,
                    message=f"{share_of(len(places), len(rows))} {data.noun} of {split} were decoded wrongly",
                    fix="read the original file with its encoding: --encoding gb18030 or cp1252",
                    places=kept(places),
                    values={"split": split, "rows": len(places), "of": len(rows)},
                )
            )
    return findings
