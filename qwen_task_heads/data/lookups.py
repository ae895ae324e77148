"""A lookup of the training rows: what a table that reads no words knows of dev and test, and what it shows.

Design decisions:

- Of pairs the table holds which title won and lost in train, under the same prompt: its score is the smoothed
  log-odds of wins, 0 of a title that is not there. Of texts it holds the labels of the same text. Texts are
  the same up to case, width and spacing (`keys.text_key`).
- Such a table can be right by a leak only. Where it is right on dev or test, a model is as well that has
  learned nothing but the rows of train: pairs of one experiment on both sides are the usual cause.
- It is called a leak where the lookup is above chance in more groups of the rows it knows than it is below,
  by an exact one-sided sign test over groups at `LEVEL`. Groups, because rows of one experiment are not
  independent; exact, because few rows may be known: 7 groups have to agree at least. Chance is half of all
  pairs; of texts, the most frequent answer of train, or the mean of its values, on the same rows.
- A headline that is tested twice, once on either side, is known too: what won once tends to win again.
  `splits.split_by_group` keeps such experiments together.
- A leak is called out and not refused. Published splits leak too, and whoever has to report on them cannot
  cut others; so the line stands first in the account of a run, in its notes, and on its card.
- Linear in the rows of train; only what dev and test hold is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.example_columns import hashed
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.keys import Hashes, combine, within
from qwen_task_heads.data.sequences import blocks, index, pick

LEVEL = 0.01  # of the sign test: dev and test are looked at in every run
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class LookupReport:
    """What a lookup of the training rows is worth on dev or test.

    Args:
        split: `dev` or `test`.
        noun: what its rows are called.
        rows: all of them.
        known: those of which the table holds a title, or the text.
        accuracy: share of the known rows that it gets right; of values, that it is nearer to than their mean
            in train. Equal scores count half. None without a known row.
        chance: the same of what knows no row.
        p_value: of the sign test over groups of known rows; 1 without one.
    """

    split: str
    noun: str
    rows: int
    known: int
    accuracy: float | None = None
    chance: float | None = None
    p_value: float = 1.0

    @property
    def coverage(self) -> float:
        """Share of the rows that are known."""
        return self.known / self.rows if self.rows else 0.0

    @property
    def leaks(self) -> bool:
        """Whether the lookup is above chance by more than chance."""
        return self.p_value < LEVEL

    def as_dict(self) -> dict[str, Any]:
        """For `metrics.json`."""
        names = ("rows", "known", "accuracy", "chance", "p_value")
        return {"coverage": self.coverage, **{name: vars(self)[name] for name in names}, "leaks": self.leaks}

    def line(self, *, was_cut: bool = False) -> str:
        """The call-out, with a fix that can be typed; "" without a leak.

        Args:
            was_cut: the split was cut from train, and not given.

        Example:
            >>> from qwen_task_heads.data.lookups import LookupReport
            >>> found = {"rows": 100, "known": 90, "accuracy": 0.9, "chance": 0.5, "p_value": 1e-9}
            >>> LookupReport(split="test", noun="pairs", **found).line()[:75]
            'LEAK: 90 of 100 pairs of test (90%) are known from train, and a lookup of t'
        """
        if not self.leaks:
            return ""
        titles = self.noun == "pairs"
        share = "<1" if self.coverage < 0.005 else f"{100 * self.coverage:.0f}"
        if was_cut:
            remedy = f"give a set of other {'titles' if titles else 'texts'} by --{self.split}_dataset"
        else:
            keys = " (with test_id or group_id, if there is one)" if titles else ""
            kept = "pairs that share an experiment or a title" if titles else "equal texts"
            remedy = (
                f"write all rows{keys} to one file and let it be cut: --dataset_name all.jsonl "
                f"--test_fraction 0.1, without --dev_dataset and --test_dataset; {kept} stay on one side then"
            )
        return (
            f"LEAK: {self.known:,} of {self.rows:,} {self.noun} of {self.split} ({share}%) are known from "
            f"train, and a lookup of train that reads no words gets {100 * (self.accuracy or 0):.0f}% of "
            f"them right (chance: {100 * (self.chance or 0):.0f}%), so metrics on {self.split} are too "
            f"high. Fix: {remedy}"
        )


def look_up_titles(train: Sequence[PairExample], rows: Sequence[PairExample]) -> tuple[Floats, Floats, Bools]:
    """Scores (B,) of chosen and of rejected titles by their wins in train, and which rows are known (B,).

    Example:
        >>> from qwen_task_heads.data.lookups import look_up_titles
        >>> train = [PairExample(chosen="A", rejected="B"), PairExample(chosen="A", rejected="C")]
        >>> rows = [PairExample(chosen="a", rejected="new"), PairExample(chosen="D", rejected="E")]
        >>> chosen, rejected, known = look_up_titles(train, rows)
        >>> chosen.round(2).tolist(), rejected.tolist(), known.tolist()
        ([1.61, 0.0], [0.0, 0.0], [True, False])
    """
    sides = ("chosen", "rejected")
    keys = [_title_keys(rows, side) for side in sides]
    asked = np.unique(np.concatenate(keys))
    counts = np.zeros((2, len(asked)))  # wins and losses
    for part in blocks(train) if len(asked) else ():
        for side, count in zip(sides, counts, strict=True):
            found = _title_keys(part, side)
            found = found[within(found, asked)]
            count += np.bincount(np.searchsorted(asked, found), minlength=len(asked))
    odds = np.log((counts[0] + 0.5) / (counts[1] + 0.5))
    seen = counts.sum(0) > 0
    at = [np.searchsorted(asked, side) for side in keys]
    return odds[at[0]], odds[at[1]], seen[at[0]] | seen[at[1]]


def look_up_texts(train: Sequence[TextExample], rows: Sequence[TextExample]) -> dict[int, list[Any]]:
    """Targets in train of the same text, or pair of texts in the same order: place of a known row to them.

    Example:
        >>> from qwen_task_heads.data.lookups import look_up_texts
        >>> train = [TextExample(text="Fine", target=1), TextExample(text="Poor", target=0)]
        >>> look_up_texts(train, [TextExample(text="fine ", target=1), TextExample(text="New", target=0)])
        {0: [1]}
    """
    if not len(train) or not len(rows):
        return {}
    keys = _text_keys(rows)
    asked = np.unique(keys)
    alike = index(np.concatenate([within(_text_keys(part), asked) for part in blocks(train)]))
    stated: dict[int, list[Any]] = {}
    found = pick(train, alike)
    for key, row in zip(_text_keys(found).tolist() if len(found) else [], found, strict=True):
        stated.setdefault(key, []).append(row.target)
    return {place: stated[key] for place, key in enumerate(keys.tolist()) if key in stated}


def report_titles(train: Sequence[PairExample], rows: Sequence[PairExample], *, split: str) -> LookupReport:
    """Measure a lookup of the training pairs on dev or test.

    Example:
        >>> from qwen_task_heads.data.lookups import report_titles
        >>> train = [PairExample(chosen=f"a{n}", rejected=f"b{n}") for n in range(9)]
        >>> rows = [PairExample(chosen=f"a{n}", rejected=f"c{n}", group=f"g{n}") for n in range(9)]
        >>> report_titles(train, rows, split="test").leaks, report_titles(train, [], split="dev").leaks
        (True, False)
    """
    told: dict[str, Any] = {"split": split, "noun": "pairs", "rows": len(rows)}
    if not len(rows):
        return LookupReport(**told, known=0)
    chosen, rejected, known = look_up_titles(train, rows)
    credit = (0.5 + 0.5 * np.sign(chosen - rejected))[known]
    return _report(told, credit, np.full(len(credit), 0.5), hashed(rows, "group")[known].tolist())


def report_texts(
    train: Sequence[TextExample], rows: Sequence[TextExample], *, split: str, problem_type: str
) -> LookupReport:
    """Measure a lookup of the training texts on dev or test.

    Example:
        >>> from qwen_task_heads.data.lookups import report_texts
        >>> train = [TextExample(text=f"text {n}", target=n % 2) for n in range(20)]
        >>> kind = "single_label_classification"
        >>> report_texts(train, train, split="test", problem_type=kind).leaks
        True
    """
    told: dict[str, Any] = {"split": split, "noun": "texts", "rows": len(rows)}
    answers = look_up_texts(train, rows)
    if not answers:
        return LookupReport(**told, known=0)
    known = pick(rows, [*answers])
    targets, stated = [row.target for row in known], [*answers.values()]
    if problem_type == "regression":
        mean = np.mean([row.target for row in train], axis=0)
        nearer = [_distance(mean, own) - _distance(np.mean(seen, 0), own)
                  for own, seen in zip(targets, stated, strict=True)]  # fmt: skip
        credit, chance = 0.5 + 0.5 * np.sign(np.array(nearer)), np.full(len(known), 0.5)
    else:
        trivial = Counter(row.target for row in train).most_common(1)[0][0]
        credit = np.array([_share(own, seen) for own, seen in zip(targets, stated, strict=True)])
        chance = np.array([float(own == trivial) for own in targets])
    groups = [row.group or place for place, row in enumerate(known)]
    return _report(told, credit, chance, groups)


def leak_lines(reports: Mapping[str, LookupReport], *, were_cut: Collection[str] = ()) -> list[str]:
    """The call-outs of all splits; `were_cut` names those that were cut from train."""
    lines = (report.line(was_cut=split in were_cut) for split, report in reports.items())
    return [line for line in lines if line]


def _report(told: Mapping[str, Any], credit: Floats, chance: Floats, groups: Sequence[Any]) -> LookupReport:
    """Set the credit of known rows beside chance, group by group."""
    if not len(credit):
        return LookupReport(**told, known=0)
    from scipy.stats import binomtest

    gains: dict[Any, float] = {}
    for group, gain in zip(groups, (credit - chance).tolist(), strict=True):
        gains[group] = gains.get(group, 0.0) + gain
    above, below = (sum(sign * gain > 1e-9 for gain in gains.values()) for sign in (1, -1))
    p_value = float(binomtest(above, above + below, alternative="greater").pvalue) if above else 1.0
    accuracy, by_chance = float(credit.mean()), float(chance.mean())
    return LookupReport(**told, known=len(credit), accuracy=accuracy, chance=by_chance, p_value=p_value)


def _share(own: Any, stated: Sequence[Any]) -> float:
    """Credit of the most frequent answer; of equally frequent ones, that of a draw."""
    counts = Counter(stated)
    most = max(counts.values())
    return (counts[own] == most) / sum(count == most for count in counts.values())


def _distance(one: Any, other: Any) -> float:
    return float(np.abs(np.subtract(one, other)).mean())


def _title_keys(rows: Sequence[PairExample], side: str) -> Hashes:
    return combine(hashed(rows, "prompt"), hashed(rows, side))


def _text_keys(rows: Sequence[TextExample]) -> Hashes:
    return combine(hashed(rows, "text"), hashed(rows, "text_b"))
