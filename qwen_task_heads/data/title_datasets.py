"""Read the train, dev and test splits of a title scorer, with a summary of the data.

A folder or hub dataset may contain several splits, and the user may name separate files. Without a dev split,
one is cut from train by a hash of the groups; a test split is cut on request, before dev. One error names the
defects of all files.
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
    """The train, dev and test splits of a title scorer.

    Args:
        train: pairs, including those of the arms of experiments.
        groups: experiments of the training set, for losses over lists, without arms of too few impressions
            and without experiments that give no pair; empty without arms.
        dev: pairs that select the checkpoint.
        test: pairs of the final metrics; may be empty.
        lines: summary of the data, one message per line.
        dev_was_cut: whether the dev split was cut from the training source.
        test_was_cut: whether the test split was cut from the training source.
        test_seen: number of pairs of test that are also in train.
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
        """Names of the splits that were cut from the training source."""
        return ("dev",) * self.dev_was_cut + ("test",) * self.test_was_cut

    def fingerprint(self) -> dict[str, str]:
        """Return SHA-256 of train and dev; a run resumes only if they are unchanged."""
        return {
            "train_pairs": hash_pairs(self.train),
            "train_groups": hash_groups(self.groups),
            "dev_pairs": hash_pairs(self.dev),
        }


def hash_pairs(pairs: Iterable[PairExample]) -> str:
    """Return SHA-256 over the prompts, titles, preferences, margins and weights of pairs, in their order.

    Example:
        >>> hash_pairs([PairExample(chosen="A", rejected="B")])[:8]
        '309cc89d'
    """
    return hash_rows(
        (pair.prompt, pair.chosen, pair.rejected, pair.margin, pair.preference, pair.weight) for pair in pairs
    )


def hash_groups(groups: Iterable[GroupExample]) -> str:
    """Return SHA-256 over the prompts, titles, clicks and impressions of groups, in their order."""
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
    """Read the splits of a title scorer; `pair_readers.py` lists the accepted columns.

    Args:
        source: file, folder or dataset id of the training set; `"embedded"` for the sample in the package.
            If `dev` or `test` is None, the dev and test splits of a folder or dataset are used.
        dev: file, folder or id of the dev set; of several splits, the one called dev or validation.
        test: file, folder or id of the test set; of several splits, the one called test.
        dev_fraction: share of the groups that are cut for dev if there is no dev set, after the cut of test.
        test_fraction: share of the groups that are cut for test if there is no test set; None cuts none.
        hub: `huggingface` or `modelscope`, for ids.
        bad_rows: `raise` or `skip`, as in `read_pairs`.
        min_impressions: minimum number of impressions of both arms of a pair.
        max_p_value: maximum p-value of the difference in clicks of a pair of arms; other pairs, and
            experiments without any pair, are left out.
        encoding: encoding of text files, such as `gb18030`.
        columns: names of the columns of CSV and TSV files without a header.

    Raises:
        TaskHeadsError: the problems of all files, or an empty split.

    Example:
        >>> from qwen_task_heads.data.title_datasets import read_title_sets
        >>> sets = read_title_sets("embedded")
        >>> len(sets.train) > len(sets.dev) > 0
        True
    """
    if test_fraction is not None:
        check_fraction(test_fraction, "test_fraction")
    source, options = locate_dataset(source, "titles"), options_of(encoding, columns)
    data_of, places, problems = read_splits(
        source,
        dev=dev,
        test=test,
        read=lambda place, split: read_pairs(place, split=split, hub=hub, bad_rows=bad_rows, options=options),
    )
    if problems:
        raise TaskHeadsError(problems)
    pairs, pair_lines = {}, []
    for name, data in data_of.items():
        of_arms = groups_to_pairs(data.groups, min_impressions=min_impressions, max_p_value=max_p_value)
        pairs[name] = assign_groups(joined([data.pairs, of_arms]))
        sizes = np.bincount(arms_of(data.groups).experiments)
        possible = int((sizes * (sizes - 1) // 2).sum())
        if possible > len(of_arms):
            count = f"{possible - len(of_arms):,} of {possible:,} pairs of arms"
            reasons = "equal click rates, --min_impressions or --max_p_value"
            pair_lines.append(f"{name}: {count} left out: {reasons}")
        if 2 * len(data.report.refusals) > data.report.rows_read:
            problem = f"found {len(data.report.refusals):,} defects in {data.report.rows_read:,} rows"
            expected, fix = "at most half as many defects as rows", "correct the rows below"
            mostly_refused = Problem(places[name], problem, expected, fix, code="rows-too-few")
            raise TaskHeadsError([mostly_refused, *data.report.refusals])
    for name, rows in pairs.items():
        if not rows:
            fixes = ["lower --min_impressions"] * (min_impressions > 0)
            fixes += ["raise --max_p_value"] * (max_p_value < 1)
            fix = ", or ".join([*fixes, "add experiments whose click rates differ"])
            problem = "no pair is left"
            raise TaskHeadsError(
                Problem(places[name], problem, "at least one pair", fix, code="rows-too-few")
            )
    lines = []
    for name, data in data_of.items():
        # Model cards show these lines, so names of folders are removed.
        place = places[name]
        report = replace(data.report, source=Path(place).name if Path(place).exists() else place)
        lines += [f"{name}: {line}" for line in report.lines()]
    lines += unread_lines({name: data.unread for name, data in data_of.items()})
    lines += pair_lines
    train, dev_was_cut = pairs["train"], "dev" not in pairs
    groups, group_lines = comparable_groups(data_of["train"].groups, min_impressions=min_impressions)
    lines += [f"train: {line}" for line in group_lines]
    paired = within(hashed(groups, "group"), np.unique(hashed(train, "group")))
    if unclear := int((~paired).sum()):
        experiments = f"{unclear:,} experiment{'' if unclear == 1 else 's'}"
        lines.append(
            f"train: {experiments} without a clear difference (--max_p_value) left out of the groups"
        )
    groups = pick(groups, np.flatnonzero(paired))
    test_was_cut = "test" not in pairs and test_fraction is not None
    if test_fraction is not None and not test_was_cut:
        lines.append(TEST_GIVEN)
    apart = not titles_tie(train, groups)
    if not apart and (dev_was_cut or test_was_cut):
        lines.append("a few titles connect most groups, so splits are cut without keeping titles apart")
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
    seen = {}
    for name in ("dev", "test"):
        overlaps = find_overlaps(train, pairs.get(name, []))
        seen[name] = len(overlaps)
        if overlaps:
            first = overlaps[0]
            subject = f"pair of {name} is" if len(overlaps) == 1 else f"pairs of {name} are"
            where, train_where = (Path(place).name for place in (first.test_source, first.train_source))
            lines.append(
                f"{len(overlaps):,} {subject} also in train: metrics on {name} are too high (first: "
                f"{where} as {train_where}, {first.kind})"
            )
    known = _group_keys(data_of["train"])
    for name in ("dev", "test"):
        shared = int(within(_group_keys(data_of[name]), known).sum()) if name in data_of else 0
        if shared:
            experiments = f"{shared:,} experiment{'' if shared == 1 else 's'} of {name}"
            lines.append(
                f"{experiments} with the key of an experiment of train: metrics on {name} may be too high"
            )
    if test_was_cut and not dev_was_cut:
        lines += shared_lines(pairs["dev"], pairs["test"])
    lookups = {
        name: report_titles(train, rows, split=name) for name, rows in pairs.items() if name != "train"
    }
    were_cut = ["dev"] * dev_was_cut + ["test"] * test_was_cut
    lines = [*leak_lines(lookups, were_cut=were_cut), *lines]  # a leak invalidates the metrics
    return TitleSets(
        train=train,
        groups=groups,
        dev=pairs["dev"],
        test=pairs.get("test", []),
        lines=lines,
        dev_was_cut=dev_was_cut,
        test_was_cut=test_was_cut,
        test_seen=seen["test"],
    )


def _group_keys(data: PairData) -> Hashes:
    """Return the different keys of groups in the rows, sorted."""
    keys = np.union1d(hashed(data.pairs, "group"), hashed(data.groups, "group"))
    return keys[keys != hash_keys([KEYS["group"]("")])[0]]
