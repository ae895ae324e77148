"""Measure leaks: how many rows of dev and test a lookup of the training rows answers correctly.

Design:

- For pairs, the lookup has the wins and losses of each title in train under the same prompt. The score of a
  title is the smoothed log-odds of its wins, or 0 if train lacks it. For texts, the lookup has the labels of
  the same text. Texts are equal up to case, width and spacing (`keys.text_key`).
- The lookup reads no words, so it can only be right by a leak. If it is right on dev or test, so is a model
  that has memorised train. The usual cause is that pairs of one experiment are in several splits.
- There is a leak if the lookup is above chance in more groups of its known rows than below, by an exact
  one-sided sign test over groups at `LEVEL`. The test uses groups because rows of one experiment are not
  independent. It is exact because few rows may be known: at least 7 groups must agree. Chance is half of all
  pairs. For texts, it is the most frequent answer of train, or the mean of its values, on the same rows.
- A headline in two experiments, one of them in train, is known too: a title that won once tends to win again.
  `splits.split_by_group` keeps such experiments together.
- A leak is reported and not refused, because published splits leak too, and results on them need the same
  splits. The message therefore comes first in the record of a run, in its messages, and on its card.
- The time is linear in the rows of train. Only keys of dev and test are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.example_columns import hashed
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.sequences import blocks, index, pick
from qwen_task_heads.sources.keys import Hashes, combine, within

LEVEL = 0.01  # of the sign test, which every run makes for dev and test
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class LookupReport:
    """The accuracy of a lookup of the training rows on dev or test.

    Args:
        split: `dev` or `test`.
        noun: name of its rows, `pairs` or `texts`.
        rows: number of rows.
        known: rows with a title, or with a text, that train has too.
        accuracy: share of the known rows that the lookup answers correctly. For values, the share of rows to
            which it is nearer than the mean of train. Equal scores count half. None without a known row.
        chance: accuracy of the trivial answer on the same rows.
        p_value: of the sign test over groups of known rows; 1 without a known row.
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
        """Share of known rows."""
        return self.known / self.rows if self.rows else 0.0

    @property
    def leaks(self) -> bool:
        """Whether the lookup is significantly above chance."""
        return self.p_value < LEVEL

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of `metrics.json`."""
        names = ("rows", "known", "accuracy", "chance", "p_value")
        return {"coverage": self.coverage, **{name: vars(self)[name] for name in names}, "leaks": self.leaks}

    def line(self, *, was_cut: bool = False) -> str:
        """Return the message of a leak, with a fix that can be typed; "" without a leak.

        Args:
            was_cut: whether the split was cut from train instead of given.

        Example:
            >>> values = {"rows": 100, "known": 90, "accuracy": 0.9, "chance": 0.5, "p_value": 1e-9}
            >>> LookupReport(split="test", noun="pairs", **values).line()[:75]
            'LEAK: 90 of 100 pairs of test (90%) are known from train, and a lookup of t'
        """
        return f"LEAK: {self.message()}. Fix: {self.fix(was_cut=was_cut)}" if self.leaks else ""

    def message(self) -> str:
        """Return what the lookup found, as one sentence without a full stop."""
        share = "<1" if self.coverage < 0.005 else f"{100 * self.coverage:.0f}"
        return (
            f"{self.known:,} of {self.rows:,} {self.noun} of {self.split} ({share}%) are known from "
            f"train, and a lookup of train that reads no words gets {100 * (self.accuracy or 0):.0f}% of "
            f"them right (chance: {100 * (self.chance or 0):.0f}%), so metrics on {self.split} are too high"
        )

    def fix(self, *, was_cut: bool = False) -> str:
        """Return what to do about a leak; `was_cut` as in `line`."""
        titles = self.noun == "pairs"
        if was_cut:
            return f"give a data set of other {'titles' if titles else 'texts'} by --{self.split}_dataset"
        keys = " (with test_id or group_id, if there is one)" if titles else ""
        kept = "pairs that share an experiment or a title" if titles else "equal texts"
        return (
            f"write all rows{keys} to one file and split it: --dataset_name all.jsonl --test_fraction 0.1, "
            f"without --dev_dataset and --test_dataset; {kept} are then in one split"
        )


def look_up_titles(train: Sequence[PairExample], rows: Sequence[PairExample]) -> tuple[Floats, Floats, Bools]:
    """Return the scores (B,) of chosen and rejected titles by wins in train, and which rows (B,) are known.

    Example:
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
            in_train = _title_keys(part, side)
            in_train = in_train[within(in_train, asked)]
            count += np.bincount(np.searchsorted(asked, in_train), minlength=len(asked))
    odds = np.log((counts[0] + 0.5) / (counts[1] + 0.5))
    seen = counts.sum(0) > 0
    at = [np.searchsorted(asked, side) for side in keys]
    return odds[at[0]], odds[at[1]], seen[at[0]] | seen[at[1]]


def look_up_texts(train: Sequence[TextExample], rows: Sequence[TextExample]) -> dict[int, list[Any]]:
    """Return a map of known rows to the targets in train of the same text, or pair of texts in their order.

    Example:
        >>> train = [TextExample(text="Fine", target=1), TextExample(text="Poor", target=0)]
        >>> look_up_texts(train, [TextExample(text="fine ", target=1), TextExample(text="New", target=0)])
        {0: [1]}
    """
    if not len(train) or not len(rows):
        return {}
    keys = _text_keys(rows)
    asked = np.unique(keys)
    equal = index(np.concatenate([within(_text_keys(part), asked) for part in blocks(train)]))
    stated: dict[int, list[Any]] = {}
    matches = pick(train, equal)
    for key, row in zip(_text_keys(matches).tolist() if len(matches) else [], matches, strict=True):
        stated.setdefault(key, []).append(row.target)
    return {place: stated[key] for place, key in enumerate(keys.tolist()) if key in stated}


def report_titles(train: Sequence[PairExample], rows: Sequence[PairExample], *, split: str) -> LookupReport:
    """Measure a lookup of the training pairs on dev or test.

    Example:
        >>> train = [PairExample(chosen=f"a{n}", rejected=f"b{n}") for n in range(9)]
        >>> rows = [PairExample(chosen=f"a{n}", rejected=f"c{n}", group=f"g{n}") for n in range(9)]
        >>> report_titles(train, rows, split="test").leaks, report_titles(train, [], split="dev").leaks
        (True, False)
    """
    fields: dict[str, Any] = {"split": split, "noun": "pairs", "rows": len(rows)}
    if not len(rows):
        return LookupReport(**fields, known=0)
    chosen, rejected, known = look_up_titles(train, rows)
    credit = (0.5 + 0.5 * np.sign(chosen - rejected))[known]
    return _report(fields, credit, np.full(len(credit), 0.5), hashed(rows, "group")[known].tolist())


def report_texts(
    train: Sequence[TextExample], rows: Sequence[TextExample], *, split: str, problem_type: str
) -> LookupReport:
    """Measure a lookup of the training texts on dev or test.

    Example:
        >>> train = [TextExample(text=f"text {n}", target=n % 2) for n in range(20)]
        >>> kind = "single_label_classification"
        >>> report_texts(train, train, split="test", problem_type=kind).leaks
        True
    """
    fields: dict[str, Any] = {"split": split, "noun": "texts", "rows": len(rows)}
    answers = look_up_texts(train, rows)
    if not answers:
        return LookupReport(**fields, known=0)
    known = pick(rows, [*answers])
    targets, stated = [row.target for row in known], [*answers.values()]
    if problem_type == "regression":
        mean = np.mean([row.target for row in train], axis=0)
        nearer = [
            _distance(mean, own) - _distance(np.mean(seen, 0), own)
            for own, seen in zip(targets, stated, strict=True)
        ]
        credit, chance = 0.5 + 0.5 * np.sign(np.array(nearer)), np.full(len(known), 0.5)
    else:
        trivial = Counter(row.target for row in train).most_common(1)[0][0]
        credit = np.array([_share(own, seen) for own, seen in zip(targets, stated, strict=True)])
        chance = np.array([float(own == trivial) for own in targets])
    groups = [row.group or place for place, row in enumerate(known)]
    return _report(fields, credit, chance, groups)


def _report(fields: Mapping[str, Any], credit: Floats, chance: Floats, groups: Sequence[Any]) -> LookupReport:
    """Compare the credit of known rows with chance, group by group."""
    if not len(credit):
        return LookupReport(**fields, known=0)
    from scipy.stats import binomtest

    gains: dict[Any, float] = {}
    for group, gain in zip(groups, (credit - chance).tolist(), strict=True):
        gains[group] = gains.get(group, 0.0) + gain
    above, below = (sum(sign * gain > 1e-9 for gain in gains.values()) for sign in (1, -1))
    p_value = float(binomtest(above, above + below, alternative="greater").pvalue) if above else 1.0
    accuracy, by_chance = float(credit.mean()), float(chance.mean())
    return LookupReport(**fields, known=len(credit), accuracy=accuracy, chance=by_chance, p_value=p_value)


def _share(own: Any, stated: Sequence[Any]) -> float:
    """Return the credit of the most frequent answer, averaged over equally frequent ones."""
    counts = Counter(stated)
    most = max(counts.values())
    return (counts[own] == most) / sum(count == most for count in counts.values())


def _distance(one: Any, other: Any) -> float:
    return float(np.abs(np.subtract(one, other)).mean())


def _title_keys(rows: Sequence[PairExample], side: str) -> Hashes:
    return combine(hashed(rows, "prompt"), hashed(rows, side))


def _text_keys(rows: Sequence[TextExample]) -> Hashes:
    return combine(hashed(rows, "text"), hashed(rows, "text_b"))
