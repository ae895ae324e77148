"""Train, dev and test of a title scorer, from whatever the user has, with an account of all of it.

A folder or hub data set may hold its splits; separate files may be named; without a dev set one is cut
by a hash of the groups, and on request a test set before it. Every defect of every file is collected before
the one error is raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qwen_task_heads.data.checks import find_overlaps, shared_lines
from qwen_task_heads.data.click_pairs import arms_of
from qwen_task_heads.data.embedded_datasets import locate_dataset
from qwen_task_heads.data.example_columns import hashed, joined
from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.data.file_options import UTF_8, options_of
from qwen_task_heads.data.keys import KEYS, Hashes, hash_keys, within
from qwen_task_heads.data.lookups import leak_lines, report_titles
from qwen_task_heads.data.pair_layout import unread_lines
from qwen_task_heads.data.pair_readers import PairData, read_pairs
from qwen_task_heads.data.preferences import comparable_groups, groups_to_pairs
from qwen_task_heads.data.sequences import pick
from qwen_task_heads.data.split_sources import read_splits
from qwen_task_heads.data.splits import (
    TEST_GIVEN,
    assign_groups,
    check_fraction,
    cut_line,
    hash_rows,
    split_by_group,
    titles_tie,
)
from qwen_task_heads.errors import Problem, TaskHeadsError


@dataclass(frozen=True, kw_only=True)
class TitleSets:
    """Everything that a run trains and is measured on.

    Args:
        train: pairs, with arms of tests turned into pairs.
        groups: tests of the training set, for losses over lists, without arms of too few impressions and
            without tests that give no pair; empty without arms.
        dev: pairs for choosing.
        test: pairs for reporting, perhaps none.
        lines: what was read, found and cut, in plain words.
        dev_was_cut: the dev set was cut from the training source.
        test_was_cut: the test set was cut from the training source.
        test_seen: pairs of test that also stand in train.
    """

    train: Sequence[PairExample]
    groups: Sequence[GroupExample]
    dev: Sequence[PairExample]
    test: Sequence[PairExample]
    lines: list[str]
    dev_was_cut: bool
    test_was_cut: bool = False
    test_seen: int = 0

    @property
    def were_cut(self) -> tuple[str, ...]:
        """Names of the sets that were cut from the training source."""
        return ("dev",) * self.dev_was_cut + ("test",) * self.test_was_cut

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of all that trains a model or picks its checkpoint; a run resumes on the same data only."""
        return {
            "train_pairs": hash_pairs(self.train),
            "train_groups": hash_groups(self.groups),
            "dev_pairs": hash_pairs(self.dev),
        }


def hash_pairs(pairs: Iterable[PairExample]) -> str:
    """SHA-256 over the pairs in their order: texts, prompts and evidence, not where they were read.

    Example:
        >>> hash_pairs([PairExample(chosen="A", rejected="B")])[:8]
        '309cc89d'
    """
    return hash_rows(
        (pair.prompt, pair.chosen, pair.rejected, pair.margin, pair.preference, pair.weight) for pair in pairs
    )


def hash_groups(groups: Iterable[GroupExample]) -> str:
    """SHA-256 over the groups in their order: prompts, titles, clicks and impressions."""
    return hash_rows((group.prompt, group.titles, group.clicks, group.impressions) for group in groups)


def read_title_sets(
    source: str,
    *,
    dev: str | None = None,
    test: str | None = None,
    dev_fraction: float = 0.1,
    test_fraction: float | None = None,
    hub: str = "huggingface",
    bad_rows: str = "raise",
    min_impressions: int = 0,
    max_p_value: float = 1.0,
    encoding: str = UTF_8,
    columns: Sequence[str] = (),
) -> TitleSets:
    """Read the sets of a title scorer.

    Args:
        source: file, folder or data set id of the training set; `"embedded"` for the sample that ships
            with the package. Splits found in a folder or data set are used where `dev` and `test` are
            None.
        dev: file, folder or id of the dev set; of several splits, the one called dev or validation.
        test: file, folder or id of the test set; of several splits, the one called test.
        dev_fraction: share of groups cut for dev where there is none; of what a cut test set leaves.
        test_fraction: share of groups cut for test where there is none; None cuts no test set.
        hub: `huggingface` or `modelscope`, for ids.
        bad_rows: `raise` or `skip`, as in `read_pairs`.
        min_impressions: of arms; both titles of a pair need as many.
        max_p_value: of arms; pairs whose clicks differ less clearly are left out, and from the groups the
            tests without any other pair.
        encoding: of text files, such as `gb18030`.
        columns: names of the columns of CSV and TSV files without a header.

    Raises:
        TaskHeadsError: all the problems of all the files, or an empty set.

    Example:
        >>> from qwen_task_heads.data.title_datasets import read_title_sets
        >>> sets = read_title_sets("embedded")
        >>> len(sets.train) > len(sets.dev) > 0
        True
    """
    if test_fraction is not None:
        check_fraction(test_fraction, "test_fraction")
    source, options = locate_dataset(source, "titles"), options_of(encoding, columns)
    read, places, problems = read_splits(
        source,
        dev=dev,
        test=test,
        read=lambda place, split: read_pairs(place, split=split, hub=hub, bad_rows=bad_rows, options=options),
    )
    if problems:
        raise TaskHeadsError(problems)
    pairs, unmade = {}, []
    for name, data in read.items():
        made = groups_to_pairs(data.groups, min_impressions=min_impressions, max_p_value=max_p_value)
        pairs[name] = assign_groups(joined([data.pairs, made]))
        sizes = np.bincount(arms_of(data.groups).experiments)
        possible = int((sizes * (sizes - 1) // 2).sum())
        if possible > len(made):
            left = f"{possible - len(made):,} of {possible:,} pairs of arms"
            unmade.append(f"{name}: {left} left out: equal click rates, --min_impressions or --max_p_value")
        if 2 * len(data.report.refusals) > data.report.rows_read:
            defects = f"{len(data.report.refusals):,} defects in {data.report.rows_read:,} rows"
            problem = Problem(places[name], defects, "at most half of the rows", "correct the rows below")
            raise TaskHeadsError([problem, *data.report.refusals])
    for name, found in pairs.items():
        if not found:
            remedies = ["lower --min_impressions"] * (min_impressions > 0)
            remedies += ["raise --max_p_value"] * (max_p_value < 1)
            remedy = ", or ".join([*remedies, "add tests whose click rates differ"])
            raise TaskHeadsError(Problem(places[name], "no pair is left", "at least one", remedy))
    lines = []
    for name, data in read.items():
        # The card shows these lines: a file's name, not the folders of somebody's machine.
        place = places[name]
        report = replace(data.report, source=Path(place).name if Path(place).exists() else place)
        lines += [f"{name}: {line}" for line in report.lines()]
    lines += unread_lines({name: data.unread for name, data in read.items()})
    lines += unmade
    train, dev_was_cut = pairs["train"], "dev" not in pairs
    groups, left_out = comparable_groups(read["train"].groups, min_impressions=min_impressions)
    lines += [f"train: {line}" for line in left_out]
    paired = within(hashed(groups, "group"), np.unique(hashed(train, "group")))
    if unclear := int((~paired).sum()):
        tests = f"{unclear:,} test{'' if unclear == 1 else 's'}"
        lines.append(f"train: {tests} without a clear difference (--max_p_value) left out of the groups")
    groups = pick(groups, np.flatnonzero(paired))
    test_was_cut = "test" not in pairs and test_fraction is not None
    if test_fraction is not None and not test_was_cut:
        lines.append(TEST_GIVEN)
    apart = not titles_tie(train, groups)
    if not apart and (dev_was_cut or test_was_cut):
        lines.append("a few titles tie most groups together, and are not kept apart when sets are cut")
    for name, share in (("test", test_fraction if test_was_cut else None), ("dev", dev_fraction)):
        if share is None or name in pairs:
            continue
        salt = "test" if name == "test" else ""
        train, pairs[name] = split_by_group(
            train, dev_fraction=share, salt=salt, titles_apart=apart, groups=groups, held_out=name
        )
        taken = np.unique(hashed(pairs[name], "group"))
        groups = pick(groups, np.flatnonzero(~within(hashed(groups, "group"), taken)))
        lines.append(cut_line(name, f"{len(pairs[name]):,} pairs of {len(taken):,} groups", share))
    seen_before = {}
    for name in ("dev", "test"):
        overlaps = find_overlaps(train, pairs.get(name, []))
        seen_before[name] = len(overlaps)
        if overlaps:
            first = overlaps[0]
            seen, source = (Path(place).name for place in (first.test_source, first.train_source))
            lines.append(
                f"{len(overlaps):,} pairs of {name} also stand in train: figures on {name} flatter (first: "
                f"{seen} as {source}, {first.kind})"
            )
    known = _stated_groups(read["train"])
    for name in ("dev", "test"):
        shared = int(within(_stated_groups(read[name]), known).sum()) if name in read else 0
        if shared:
            tests = f"{shared:,} test{'' if shared == 1 else 's'} of {name}"
            lines.append(f"{tests} with the key of a test of train: metrics on {name} may flatter")
    if test_was_cut and not dev_was_cut:
        lines += shared_lines(pairs["dev"], pairs["test"])
    measured = {name: rows for name, rows in pairs.items() if name != "train"}
    lookups = {name: report_titles(train, rows, split=name) for name, rows in measured.items()}
    were_cut = ["dev"] * dev_was_cut + ["test"] * test_was_cut
    lines = [*leak_lines(lookups, were_cut=were_cut), *lines]  # first: nothing below counts with a leak
    return TitleSets(
        train=train,
        groups=groups,
        dev=pairs["dev"],
        test=pairs.get("test", []),
        lines=lines,
        dev_was_cut=dev_was_cut,
        test_was_cut=test_was_cut,
        test_seen=seen_before["test"],
    )


def _stated_groups(data: PairData) -> Hashes:
    """The keys of tests that the rows state, each once, sorted."""
    stated = np.union1d(hashed(data.pairs, "group"), hashed(data.groups, "group"))
    return stated[stated != hash_keys([KEYS["group"]("")])[0]]
