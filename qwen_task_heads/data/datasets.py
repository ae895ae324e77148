"""Assemble the train, dev and test splits of a run: what the data sets of all tasks share.

Design:
- A folder or hub dataset may contain several splits; a file is one split. The user may also name separate
  sources for dev and test, which may then contain a single split of another name. Train is never read as dev.
- Without a dev split, one is cut from train by a hash of its groups. A test split is cut on request, before
  dev and with another hash.
- One error names the defects of all files.
- Rows that several splits share, and leaks (`lookups.py`), are messages and not errors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from qwen_task_heads.data.checks import find_overlaps
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.lookups import LookupReport
from qwen_task_heads.data.sequences import Example
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.sources.hub_datasets import NoSuchSplit

Read = TypeVar("Read")
SALTS = {"dev": "", "test": "test"}  # of the hashes, so that the two cuts are independent


@dataclass(frozen=True, kw_only=True)
class SplitSets(ABC, Generic[Example]):
    """The train, dev and test splits of a run.

    Args:
        train: rows to train on.
        dev: rows that select the checkpoint.
        test: rows of the final metrics; may be empty.
        lines: summary of the data, one message per line.
        dev_was_cut: whether the dev split was cut from the training source.
        test_was_cut: whether the test split was cut from the training source.
        test_seen: number of rows of test that are also in train.
        unread: split -> columns that are ignored.
    """

    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    lines: list[str]
    dev_was_cut: bool
    test_was_cut: bool = False
    test_seen: int = 0
    unread: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def were_cut(self) -> tuple[str, ...]:
        """Names of the splits that were cut from the training source."""
        return ("dev",) * self.dev_was_cut + ("test",) * self.test_was_cut

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """Return SHA-256 of the rows that a run depends on; a run resumes only if they are unchanged."""

    @abstractmethod
    def look_up(self, split: str, rows: Sequence[Example]) -> LookupReport:
        """Measure a lookup of the training rows on a split."""

    @cached_property
    def lookups(self) -> dict[str, LookupReport]:
        """The lookup of the training rows for dev and test, without an empty split; measured once."""
        splits = {"dev": self.dev, "test": self.test}
        return {split: self.look_up(split, rows) for split, rows in splits.items() if rows}

    def leak_lines(self) -> list[str]:
        """Return the messages of the splits with a leak."""
        lines = (report.line(was_cut=split in self.were_cut) for split, report in self.lookups.items())
        return [line for line in lines if line]


def read_splits(
    source: str, *, dev: str | None, test: str | None, read: Callable[[str, str | None], Read]
) -> tuple[dict[str, Read], dict[str, str], list[Problem]]:
    """Read train, and dev and test if they are named or found in the source.

    Args:
        source: file, folder or dataset id of the training set.
        dev: file, folder or dataset id of the dev set; None looks for it in the source.
        test: file, folder or dataset id of the test set; None looks for it in the source.
        read: `(place, split)` -> the data of the split; split None reads the only split.

    Returns:
        `(split -> its data, split -> its place, all problems)`; with a problem, a split may be missing.
    """
    data: dict[str, Read] = {}
    places: dict[str, str] = {}
    problems: list[Problem] = []
    for split, place in {"train": source, "dev": dev, "test": test}.items():
        if place is None and (Path(source).is_file() or ("train" not in data and not Path(source).is_dir())):
            continue  # a file is one split; an id without train is not fetched again
        places[split] = place or source
        try:
            data[split] = read_split(
                split, place or source, read=read, is_source=Path(place or source) == Path(source)
            )
        except NoSuchSplit as error:
            problems += [] if place is None else error.problems
        except TaskHeadsError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    return data, places, problems


def read_split(
    split: str, place: str, *, read: Callable[[str, str | None], Read], is_source: bool = False
) -> Read:
    """Read a split of its place; if the place is not the source, it may have a single split of any name."""
    if Path(place).is_file():
        return read(place, None)
    try:
        return read(place, split)
    except NoSuchSplit:
        if is_source:  # train must not be read as dev
            raise
    return read(place, None)


def name_of(place: str) -> str:
    """Return a file or folder without its parents, because model cards show it; an id unchanged."""
    return Path(place).name if Path(place).exists() else place


def splits_to_cut(
    given: Collection[str], *, dev_fraction: float, test_fraction: float | None
) -> tuple[dict[str, float], list[str]]:
    """Return the share of each missing split, in the order of the cuts, and a message on an unused share.

    Example:
        >>> splits_to_cut(["train"], dev_fraction=0.1, test_fraction=0.2)
        ({'test': 0.2, 'dev': 0.1}, [])
    """
    shares = {"test": test_fraction, "dev": dev_fraction}
    to_cut = {split: share for split, share in shares.items() if share is not None and split not in given}
    is_unused = test_fraction is not None and "test" in given
    return to_cut, ["test_fraction is not used: there is a test set"] * is_unused


def cut_line(split: str, cut: str, fraction: float) -> str:
    """Return the message on a split that was cut from the training data.

    Example:
        >>> cut_line("test", "150 texts", 0.15)
        'no test set given: 150 texts were cut from train by hash (test_fraction 0.15)'
    """
    return f"no {split} set given: {cut} were cut from train by hash ({split}_fraction {fraction:g})"


def overlap_lines(
    splits: Mapping[str, Sequence[PairExample | TextExample]], *, noun: str
) -> tuple[list[str], int]:
    """Return messages on the rows of dev and test that are also in train, and their number in test.

    Args:
        splits: split -> its rows.
        noun: singular name of a row, `pair` or `text`.
    """
    lines, counts = [], {}
    for split in ("dev", "test"):
        overlaps = find_overlaps(splits["train"], splits.get(split, []))
        counts[split] = len(overlaps)
        if overlaps:
            subject = f"{noun} of {split} is" if len(overlaps) == 1 else f"{noun}s of {split} are"
            where, train_where = (
                Path(place).name for place in (overlaps[0].test_source, overlaps[0].train_source)
            )
            lines.append(
                f"{len(overlaps):,} {subject} also in train: metrics on {split} are too high (first: "
                f"{where} as {train_where}, {overlaps[0].kind})"
            )
    return lines, counts["test"]


def shared_lines(
    splits: Mapping[str, Sequence[PairExample | TextExample]], to_cut: Collection[str]
) -> list[str]:
    """Return the message on rows of a test split cut from train that a given dev split has too, if any."""
    if "test" not in to_cut or "dev" in to_cut:
        return []
    shared = len(find_overlaps(splits["dev"], splits["test"]))
    return [f"test: {shared:,} rows are also in dev, which selects the checkpoint"] if shared else []
