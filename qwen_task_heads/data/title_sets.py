"""Train, dev and test of a title scorer, from whatever the user has, with an account of all of it.

A folder or hub data set may hold its splits; separate files may be named; without a dev set one is cut
by a hash of the groups. Every defect of every file is collected before the one error is raised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.data.doctor import find_overlaps
from qwen_task_heads.data.evidence import groups_to_pairs
from qwen_task_heads.data.examples import GroupExample, PairExample
from qwen_task_heads.data.hub_sets import split_name
from qwen_task_heads.data.readers import PairData, read_pairs
from qwen_task_heads.data.splits import assign_groups, split_by_group
from qwen_task_heads.errors import Problem, TaskHeadsError

EMBEDDED_PAIRS = Path(__file__).parents[1] / "assets" / "upworthy"


@dataclass(frozen=True, kw_only=True)
class TitleSets:
    """Everything that a run trains and is measured on.

    Args:
        train: pairs, with arms of tests turned into pairs.
        groups: whole tests of the training set, for losses over lists; empty without arms.
        dev: pairs for choosing.
        test: pairs for reporting, perhaps none.
        lines: what was read, found and cut, in plain words.
        dev_was_cut: the dev set was cut from the training source.
    """

    train: list[PairExample]
    groups: list[GroupExample]
    dev: list[PairExample]
    test: list[PairExample]
    lines: list[str]
    dev_was_cut: bool


def read_title_sets(
    source: str,
    *,
    dev: str | None = None,
    test: str | None = None,
    dev_fraction: float = 0.1,
    hub: str = "huggingface",
    bad_rows: str = "raise",
    min_impressions: int = 0,
    max_p_value: float = 1.0,
) -> TitleSets:
    """Read the sets of a title scorer.

    Args:
        source: file, folder or data set id of the training set; `"embedded"` for the sample that ships
            with the package. Splits found in a folder are used where `dev` and `test` are None.
        dev: file, folder or id of the dev set.
        test: file, folder or id of the test set.
        dev_fraction: share of groups cut for dev where there is none.
        hub: `huggingface` or `modelscope`, for ids.
        bad_rows: `raise` or `skip`, as in `read_pairs`.
        min_impressions: of arms; both titles of a pair need as many.
        max_p_value: of arms; pairs whose clicks differ less clearly are left out.

    Raises:
        TaskHeadsError: all the problems of all the files, or an empty set.

    Example:
        >>> from qwen_task_heads.data.title_sets import read_title_sets
        >>> sets = read_title_sets("embedded")
        >>> len(sets.train) > len(sets.dev) > 0
        True
    """
    if source == EMBEDDED:
        source = str(EMBEDDED_PAIRS)
    wanted = {"train": source, "dev": dev, "test": test}
    for name in ("dev", "test"):
        if wanted[name] is None and _folder_has(source, name):
            wanted[name] = source
    read: dict[str, PairData] = {}
    problems: list[Problem] = []
    for name, place in wanted.items():
        if place is None:
            continue
        try:
            several = not Path(place).is_file() and (name == "train" or place == source)
            read[name] = read_pairs(place, split=name if several else None, hub=hub, bad_rows=bad_rows)
        except TaskHeadsError as error:
            problems += error.problems
    if problems:
        raise TaskHeadsError(problems)
    pairs = {}
    for name, data in read.items():
        made = groups_to_pairs(data.groups, min_impressions=min_impressions, max_p_value=max_p_value)
        pairs[name] = assign_groups([*data.pairs, *made])
    for name, found in pairs.items():
        if not found:
            raise TaskHeadsError(
                Problem(
                    str(wanted[name]),
                    "no pair is left",
                    "at least one",
                    "lower --min_impressions, or check the file",
                )
            )
    lines = []
    for name, data in read.items():
        # The card shows these lines: a file's name, not the folders of somebody's machine.
        place = str(wanted[name])
        report = replace(data.report, source=Path(place).name if Path(place).exists() else place)
        lines += [f"{name}: {line}" for line in report.lines()]
    train, groups, dev_was_cut = pairs["train"], read["train"].groups, "dev" not in pairs
    if dev_was_cut:
        train, pairs["dev"] = split_by_group(train, dev_fraction=dev_fraction)
        taken = {pair.group for pair in pairs["dev"]}
        groups = [group for group in groups if group.group not in taken]
        cut = f"{len(pairs['dev']):,} pairs of {len(taken):,} groups"
        lines.append(f"no dev set given: {cut} were cut from train by hash")
    for name in ("dev", "test"):
        overlaps = find_overlaps(train, pairs.get(name, []))
        if overlaps:
            first = overlaps[0]
            seen, source = (Path(place).name for place in (first.test_source, first.train_source))
            lines.append(
                f"{len(overlaps):,} pairs of {name} also stand in train: figures on {name} flatter (first: "
                f"{seen} as {source}, {first.kind})"
            )
    return TitleSets(
        train=train,
        groups=groups,
        dev=pairs["dev"],
        test=pairs.get("test", []),
        lines=lines,
        dev_was_cut=dev_was_cut,
    )


def _folder_has(source: str, split: str) -> bool:
    folder = Path(source)
    return folder.is_dir() and any(
        split_name(file.name) == split for file in folder.iterdir() if file.is_file()
    )
