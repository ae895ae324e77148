"""Checks across splits: equal and nearly equal rows, leaks, shared groups, and exchanged columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from qwen_task_heads.data.checks import find_overlaps
from qwen_task_heads.data.example_columns import group_keys
from qwen_task_heads.data.examples import one_text
from qwen_task_heads.data_checks.checked_data import CheckedData, sampled
from qwen_task_heads.data_checks.findings import ERROR, NOTE, WARNING, CheckFinding, kept, share_of
from qwen_task_heads.data_checks.near_duplicates import near_duplicates
from qwen_task_heads.metrics.ranking import pair_credit
from qwen_task_heads.metrics.shares import share_of_rows
from qwen_task_heads.metrics.title_baselines import TfidfBradleyTerry
from qwen_task_heads.sources.keys import within

FEW = 0.01  # share of a split up to which overlaps are a warning, and not an error
FEW_NEAR = 0.1  # share up to which nearly equal rows are a note
SEPARATE = "leave these rows out of train, or cut the splits again from one file: --test_fraction 0.1"


def check_overlaps(data: CheckedData) -> list[CheckFinding]:
    """Find rows of dev and test that are in train, exactly or up to case, width, spacing and order."""
    findings = []
    for split in ("dev", "test"):
        rows = data.splits.get(split, [])
        overlaps = find_overlaps(data.sets.train, rows)
        for kind in ("exact", "normalised", "swapped"):
            places = [one.test_source for one in overlaps if one.kind == kind]
            if not places:
                continue
            changed = {"normalised": " up to case, width and spacing", "swapped": " in the other order"}
            findings.append(
                CheckFinding(
                    code=f"overlap-{kind}",
                    severity=ERROR if len(places) > FEW * len(rows) else WARNING,
                    message=f"{share_of(len(places), len(rows))} {data.noun} of {split} are in train"
                    f"{changed.get(kind, '')}, so metrics on {split} are too high",
                    fix=SEPARATE,
                    places=kept(places),
                    values={"split": split, "rows": len(places), "of": len(rows)},
                )
            )
    return findings


def check_near_overlaps(data: CheckedData) -> list[CheckFinding]:
    """Find rows of dev and test that are nearly equal to a training row (`near_duplicates`).

    Short questions resemble each other. It is a warning only if the share is twice that within train.
    """
    findings = []
    own = len({row for twin in data.twins for row in (twin.first, twin.second)}) / len(data.sample)
    train = [one_text(row) for row in data.sample]
    for split in ("dev", "test"):
        rows = sampled(data.splits.get(split, []))
        equal = {one.test_source for one in find_overlaps(data.sets.train, rows)}
        pairs = [
            (row, data.sample[match.first], match.similarity)
            for match in near_duplicates(train, [one_text(row) for row in rows])
            if (row := rows[match.second]).source not in equal
        ]
        if not pairs:
            continue
        row, twin, similarity = pairs[0]
        is_much = len(pairs) > max(FEW_NEAR, 2 * own) * len(rows)
        findings.append(
            CheckFinding(
                code="overlap-near",
                severity=WARNING if is_much else NOTE,
                message=f"{share_of(len(pairs), len(rows))} {data.noun} of {split} are nearly equal to a "
                f"row of train, such as {PurePath(row.source).name} and {PurePath(twin.source).name} "
                f"({100 * similarity:.0f}% of their character n-grams)",
                fix=SEPARATE if is_much else "",
                places=kept([row.source for row, _, _ in pairs]),
                values={"split": split, "rows": len(pairs), "of": len(rows)},
            )
        )
    return findings


def check_near_contradictions(data: CheckedData) -> list[CheckFinding]:
    """Find training texts that are nearly equal but have different labels."""
    if not data.has_classes:
        return []
    rows = data.sample
    pairs = [one for one in data.twins if rows[one.first].target != rows[one.second].target]
    if not pairs:
        return []
    first = pairs[0]
    names = [data.labels[rows[row].target] for row in (first.first, first.second)]
    return [
        CheckFinding(
            code="near-contradiction",
            severity=WARNING if len(pairs) > FEW * len(rows) else NOTE,
            message=f"{share_of(len(pairs), len(rows))} training texts are nearly equal to an earlier one "
            f"with another label, the first two as {names[0]} and {names[1]}",
            fix="label them again: qth audit lists them",
            places=kept([rows[one.second].source for one in pairs]),
            values={"rows": len(pairs), "of": len(rows)},
        )
    ]


def check_leaks(data: CheckedData) -> list[CheckFinding]:
    """Find leaks: a lookup of the training rows that reads no words and is right on dev or test."""
    return [
        CheckFinding(
            code="leak",
            severity=ERROR,
            message=report.message(),
            fix=report.fix(was_cut=split in data.sets.were_cut),
            values={"split": split, **report.as_dict()},
        )
        for split, report in data.sets.lookups.items()
        if report.leaks
    ]


def check_shared_groups(data: CheckedData) -> list[CheckFinding]:
    """Find groups, such as experiments or documents, with rows in train and in dev or test."""
    train = group_keys(data.sets.train)
    findings = []
    for split in ("dev", "test"):
        keys = group_keys(data.splits.get(split, []))
        shared = int(within(keys, train).sum())
        if shared:
            findings.append(
                CheckFinding(
                    code="shared-groups",
                    severity=WARNING,
                    message=f"{share_of(shared, len(keys))} groups of {split} have rows in train",
                    fix="cut the splits from one file, by groups: --test_fraction 0.1",
                    values={"split": split, "groups": shared, "of": len(keys)},
                )
            )
    return findings


def check_direction(data: CheckedData) -> list[CheckFinding]:
    """Find a dev or test split whose titles are exchanged, against a linear model of the training pairs.

    The split is exchanged if TF-IDF with a Bradley-Terry head is right on significantly less than half of it.
    """
    if data.noun == "texts" or not {"dev", "test"} & data.splits.keys():
        return []
    model = TfidfBradleyTerry().fit(data.sample)
    findings = []
    for split in ("dev", "test"):
        rows: Sequence[Any] = sampled(data.splits.get(split, []))
        if not rows or split in data.sets.were_cut:
            continue
        credit = pair_credit(
            model.score([row.chosen for row in rows]), model.score([row.rejected for row in rows])
        )
        accuracy = share_of_rows(credit, rows)
        if accuracy.high < 0.5:
            findings.append(
                CheckFinding(
                    code="swapped-columns",
                    severity=ERROR,
                    message=f"a linear model of train is right on {accuracy} of the pairs of {split}, so "
                    f"'chosen' and 'rejected' are exchanged in {split} or in train",
                    fix=f"exchange the two columns of {split}, or those of train",
                    values={"split": split, "accuracy": accuracy},
                )
            )
    return findings
