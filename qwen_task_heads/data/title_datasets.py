"""Read the train, dev and test splits of a title scorer, with a summary of the data.

Arms of experiments become pairs. Splits are cut by a hash of the groups (`splits.split_by_group`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwen_task_heads.data.click_pairs import arms_of
from qwen_task_heads.data.datasets import (
    SALTS,
    SplitSets,
    cut_line,
    name_of,
    overlap_lines,
    read_splits,
    shared_lines,
    splits_to_cut,
)
from qwen_task_heads.data.embedded_datasets import locate_dataset
from qwen_task_heads.data.example_columns import group_keys, hashed, joined
from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.data.lookups import LookupReport, report_titles
from qwen_task_heads.data.pair_readers import PairData, read_pairs
from qwen_task_heads.data.preferences import comparable_groups, groups_to_pairs
from qwen_task_heads.data.schema import unread_lines
from qwen_task_heads.data.sequences import pick
from qwen_task_heads.data.splits import (
    assign_groups,
    check_fraction,
    hash_rows,
    split_by_group,
    titles_tie,
)
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.sources.file_options import UTF_8, options_of
from qwen_task_heads.sources.keys import within


@dataclass(frozen=True, kw_only=True)
class TitleSets(SplitSets[PairExample]):
    """The train, dev and test splits of a title scorer: pairs, including those of the arms of experiments.

    Args:
        groups: experiments of the training set, for losses over lists, without arms of too few impressions
            and without experiments that give no pair; empty without arms.
    """

    groups: Sequence[GroupExample]

    def fingerprint(self) -> dict[str, str]:
        """Return SHA-256 of train and dev; a run resumes only if they are unchanged."""
        return {
            "train_pairs": hash_pairs(self.train),
            "train_groups": hash_groups(self.groups),
            "dev_pairs": hash_pairs(self.dev),
        }

    def look_up(self, split: str, rows: Sequence[PairExample]) -> LookupReport:
        """Measure a lookup of the training pairs on a split."""
        return report_titles(self.train, rows, split=split)


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
    for split, data in data_of.items():
        of_arms = groups_to_pairs(data.groups, min_impressions=min_impressions, max_p_value=max_p_value)
        pairs[split] = assign_groups(joined([data.pairs, of_arms]))
        pair_lines += _left_out(split, data, len(of_arms))
        _check_refused(data, places[split])
    for split, rows in pairs.items():
        if not rows:
            fixes = ["lower --min_impressions"] * (min_impressions > 0)
            fixes += ["raise --max_p_value"] * (max_p_value < 1)
            fix = ", or ".join([*fixes, "add experiments whose click rates differ"])
            problem, expected = "no pair is left", "at least one pair"
            raise error_at(places[split], problem, expected, fix, code="rows-too-few")
    lines = []
    for split, data in data_of.items():
        report = replace(data.report, source=name_of(places[split]))
        lines += [f"{split}: {line}" for line in report.lines()]
    unread = {split: data.unread for split, data in data_of.items()}
    lines += unread_lines(unread) + pair_lines
    groups, more_lines = _groups_with_pairs(data_of["train"], pairs["train"], min_impressions)
    lines += more_lines
    to_cut, more_lines = splits_to_cut(pairs, dev_fraction=dev_fraction, test_fraction=test_fraction)
    lines += more_lines
    apart = not titles_tie(pairs["train"], groups)
    if to_cut and not apart:
        lines.append("a few titles connect most groups, so splits are cut without keeping titles apart")
    for split, share in to_cut.items():
        pairs["train"], pairs[split] = split_by_group(
            pairs["train"],
            dev_fraction=share,
            salt=SALTS[split],
            titles_apart=apart,
            groups=groups,
            held_out=split,
        )
        taken = np.unique(hashed(pairs[split], "group"))
        groups = pick(groups, np.flatnonzero(~within(hashed(groups, "group"), taken)))
        lines.append(cut_line(split, f"{len(pairs[split]):,} pairs of {len(taken):,} groups", share))
    more_lines, test_seen = overlap_lines(pairs, noun="pair")
    lines += more_lines + _shared_groups(data_of) + shared_lines(pairs, to_cut)
    sets = TitleSets(
        train=pairs["train"],
        groups=groups,
        dev=pairs["dev"],
        test=pairs.get("test", []),
        lines=lines,
        dev_was_cut="dev" in to_cut,
        test_was_cut="test" in to_cut,
        test_seen=test_seen,
        unread=unread,
    )
    lines[:0] = sets.leak_lines()  # first, because a leak invalidates the metrics
    return sets


def _left_out(split: str, data: PairData, paired: int) -> list[str]:
    """Return the message on the pairs of arms without a clear difference."""
    sizes = np.bincount(arms_of(data.groups).experiments)
    possible = int((sizes * (sizes - 1) // 2).sum())
    if possible == paired:
        return []
    count = f"{possible - paired:,} of {possible:,} pairs of arms"
    return [f"{split}: {count} left out: equal click rates, --min_impressions or --max_p_value"]


def _check_refused(data: PairData, place: str) -> None:
    """Refuse a source with more than one defect in two rows, also with `bad_rows="skip"`."""
    if 2 * len(data.report.refusals) > data.report.rows_read:
        problem = f"found {len(data.report.refusals):,} defects in {data.report.rows_read:,} rows"
        expected, fix = "at most half as many defects as rows", "correct the rows below"
        mostly_refused = Problem(place, problem, expected, fix, code="rows-too-few")
        raise TaskHeadsError([mostly_refused, *data.report.refusals])


def _groups_with_pairs(
    train: PairData, pairs: Sequence[PairExample], min_impressions: int
) -> tuple[Sequence[GroupExample], list[str]]:
    """Return the experiments that give pairs, and messages on the other ones."""
    groups, lines = comparable_groups(train.groups, min_impressions=min_impressions)
    paired = within(hashed(groups, "group"), np.unique(hashed(pairs, "group")))
    if unclear := int((~paired).sum()):
        experiments = f"{unclear:,} experiment{'' if unclear == 1 else 's'}"
        lines.append(f"{experiments} without a clear difference (--max_p_value) left out of the groups")
    return pick(groups, np.flatnonzero(paired)), [f"train: {line}" for line in lines]


def _shared_groups(data_of: Mapping[str, PairData]) -> list[str]:
    """Return messages on the stated groups of dev and test that train has too."""
    keys = {
        split: np.union1d(group_keys(data.pairs), group_keys(data.groups)) for split, data in data_of.items()
    }
    lines = []
    for split in ("dev", "test"):
        shared = int(within(keys[split], keys["train"]).sum()) if split in keys else 0
        if shared:
            experiments = f"{shared:,} experiment{'' if shared == 1 else 's'} of {split}"
            lines.append(
                f"{experiments} with the key of an experiment of train: metrics on {split} may be too high"
            )
    return lines
