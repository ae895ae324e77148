"""Rows that a cut has made equal: found, counted, named by line, and refused where all of them are.

Two texts that differ in their last words alone are one input after a cut to `max_length`. A model cannot tell
them apart, and no metric can be better than a tie. Design decisions:

- Equal means the same token ids, of rows whose texts differ. Rows without a cut may be equal too, if the
  tokenizer writes their difference with the same tokens; no limit helps there, and the line says so.
- A pair of equal titles teaches nothing: it is left out of training, and is a tie in evaluation. Equal titles
  of a group become one, with their clicks and impressions together.
- Equal texts of different labels stay: which of the labels is right is not known.
- If all rows of a set are equal, the run stops, and the error names the smallest limit that tells them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
from qwen_task_heads.hubcode.encoding_task_heads import PARTS, TEMPLATE_KEY, encode, encode_texts, template_of

SHOWN = 5  # rows named in one line
WHOLE = 1 << 40  # tokens; a limit that cuts nothing
PHRASES = {  # of rows that the cut has made equal, and of those that no limit tells apart
    "pairs": ("are equal", "have the same tokens"),
    "groups": ("have titles that are all equal", "have titles of the same tokens"),
    "texts": ("are equal to a text of another label", "have the same tokens as a text of another label"),
}
Ids = list[int]


@dataclass(frozen=True, kw_only=True)
class EqualRows:
    """The rows of a data set that their inputs do not tell apart, though their texts differ.

    Args:
        kind: `pairs`, `groups`, or `texts`, which are equal to a text of another label.
        rows: how many rows the data set has.
        places: indices of the equal rows, ascending.
        sources: where each of them was read, file and line.
        limit: tokens of the longest row, template included; None for no limit.
        needed: the smallest limit that tells apart those that a limit can; None if there are none.
        same: how many of them have the same tokens, whatever the limit.
        titles: of groups, how many titles are equal to another one of their group.
        left_out: whether they were left out of the data set.
    """

    kind: str
    rows: int
    places: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    limit: int | None = None
    needed: int | None = None
    same: int = 0
    titles: int = 0
    left_out: bool = False

    @classmethod
    def of(cls, parts: Sequence[EqualRows]) -> EqualRows:
        """Return the report of a set that was looked at in parts, in their order; there is at least one."""
        starts = accumulate((part.rows for part in parts), initial=0)
        places = [place + start for part, start in zip(parts, starts, strict=False) for place in part.places]
        return replace(
            parts[0],
            rows=sum(part.rows for part in parts),
            places=tuple(places),
            sources=tuple(source for part in parts for source in part.sources),
            needed=max((part.needed for part in parts if part.needed), default=None),
            same=sum(part.same for part in parts),
            titles=sum(part.titles for part in parts),
        )

    @property
    def are_all(self) -> bool:
        """Whether no row is left that tells anything."""
        return self.rows > 0 and len(self.places) == self.rows

    @property
    def named(self) -> str:
        """Files and lines of the first few, without the folders of a machine."""
        shown = ", ".join(Path(source).name for source in self.sources[:SHOWN])
        return shown + (f" and {len(self.sources) - SHOWN:,} more" if len(self.sources) > SHOWN else "")

    def found(self) -> str:
        """Say how many there are, as part of a sentence."""
        count, cut = f"{len(self.places):,} of {self.rows:,} {self.kind}", len(self.places) - self.same
        after_cut, always = PHRASES[self.kind]
        if not cut:
            return f"{count} {always}"
        but = f" ({self.same:,} of them whatever the limit)" if self.same else ""
        return f"{count} {after_cut} after the cut to {self.limit:,} tokens{but}"

    def lines(self, split: str, *, option: str) -> list[str]:
        """Say it of a split in plain words; nothing where nothing is equal."""
        apart = f" ({option}{self.needed} tells them apart)" if self.needed else ""
        lines = []
        if self.titles:
            found = f"{self.titles:,} titles are equal to another one of their group"
            lines.append(f"{split}: {found}, with which they count as one{apart}")
        if self.places:
            then = {"texts": ""}.get(
                self.kind, " and are left out" if self.left_out else " and count as ties"
            )
            lines.append(f"{split}: {self.found()}{then}: {self.named}{apart}")
        return lines


def check_equal(reports: Mapping[str, EqualRows | None], *, option: str) -> list[str]:
    """Refuse splits of which all rows are equal, all at once; give the lines of the others.

    Args:
        reports: split -> its report, or None.
        option: what sets the limit, up to its value: `--max_length ` of a recipe, `max_length=` in Python.

    Raises:
        TaskHeadsError: with the rows, and the smallest limit that tells apart those of all splits.

    Example:
        >>> from qwen_task_heads.tokenization.equal_rows import EqualRows, check_equal
        >>> of = EqualRows(kind="pairs", rows=8, places=(3,), sources=("a.jsonl:4",), limit=16, needed=21)
        >>> check_equal({"dev": of}, option="--max_length ")[0][:62]
        'dev: 1 of 8 pairs are equal after the cut to 16 tokens and cou'
    """
    known = {split: report for split, report in reports.items() if report is not None}
    needed = max((report.needed for report in known.values() if report.needed), default=None)
    problems = [_refusal(split, report, needed, option) for split, report in known.items() if report.are_all]
    if problems:
        raise TaskHeadsError(problems)
    return [line for split, report in known.items() for line in report.lines(split, option=option)]


def _refusal(split: str, report: EqualRows, needed: int | None, option: str) -> Problem:
    accepted = f"{report.kind} of {split} that differ in their tokens within the limit"
    if report.needed is None:
        remedy = "write texts that differ in more than what the tokenizer leaves out"
    else:
        remedy = f"give {option}{needed}, which tells them apart"
        if report.kind != "texts":
            remedy += ", or put what they begin with into the column prompt, which is cut first"
    return Problem(report.named, f"found that {report.found()}", f"{accepted}", remedy)


def equal_pairs(
    pairs: Sequence[PairExample],
    ids: tuple[Sequence[Ids], Sequence[Ids]],
    *,
    tokenizer: Any,
    max_length: int,
    left_out: bool = False,
    start: int = 0,
) -> EqualRows:
    """Find the pairs whose titles have the same ids.

    Args:
        pairs: n pairs.
        ids: n rows of the chosen titles and n of the rejected ones, as they were cut.
        tokenizer: that made them.
        max_length: that they were cut to.
        left_out: what becomes of them.
        start: number of the first pair, which names pairs without a source.
    """
    places = [place for place, (one, other) in enumerate(zip(*ids, strict=True)) if one == other]
    prompts = [pairs[place].prompt for place in places]
    limits = _limits(tokenizer, prompts, [(pairs[place].chosen, pairs[place].rejected) for place in places])
    return EqualRows(
        kind="pairs",
        rows=len(pairs),
        places=tuple(places),
        sources=tuple(_source(pairs[place].source, place + start) for place in places),
        limit=max_length,
        needed=_largest(limits),
        same=limits.count(None),
        left_out=left_out,
    )


def merge_groups(
    groups: Sequence[GroupExample],
    ids: Sequence[Sequence[Ids]],
    *,
    tokenizer: Any,
    max_length: int,
    start: int = 0,
) -> tuple[list[tuple[int, list[Ids], list[float]]], EqualRows]:
    """Make one title of the titles of a group that have the same ids, and leave out groups of one title.

    Args:
        groups: n groups, of titles that were shown.
        ids: of each title of each group, as they were cut.
        tokenizer: that made them.
        max_length: that they were cut to.
        start: number of the first group, which names groups without a source.

    Returns:
        Of each group that is left its index, the ids of its titles and their gains: the click rate of the
        clicks and impressions of equal titles together. And the report.
    """
    kept, out, titles = [], [], 0
    alike: list[tuple[int, tuple[str, ...]]] = []
    for place, (group, rows) in enumerate(zip(groups, ids, strict=True)):
        arms: dict[tuple[int, ...], list[int]] = {}
        for arm, row in enumerate(rows):
            arms.setdefault(tuple(row), []).append(arm)
        alike += [
            (place, tuple(group.titles[arm] for arm in same)) for same in arms.values() if len(same) > 1
        ]
        if len(arms) < 2:
            out.append(place)
            continue
        titles += len(rows) - len(arms)
        rates = [
            sum(group.clicks[arm] for arm in same) / sum(group.impressions[arm] for arm in same)
            for same in arms.values()
        ]
        kept.append((place, [list(row) for row in arms], rates))
    prompts = [groups[place].prompt for place, _ in alike]
    limits = _limits(tokenizer, prompts, [texts for _, texts in alike])
    never = {place for (place, _), limit in zip(alike, limits, strict=True) if limit is None}
    return kept, EqualRows(
        kind="groups",
        rows=len(groups),
        places=tuple(out),
        sources=tuple(_source("".join(groups[place].sources[:1]), place + start) for place in out),
        limit=max_length,
        needed=_largest(limits),
        same=len(never.intersection(out)),
        titles=titles,
        left_out=True,
    )


def equal_texts(
    examples: Sequence[TextExample],
    ids: Sequence[Ids],
    *,
    whole: Callable[[list[int]], list[Ids]],
    limit: int | None,
    behind: int,
    answer: int = 0,
    keeps_head: bool,
    among: Sequence[int] | None = None,
) -> EqualRows:
    """Find the texts that have the ids of another text with another target.

    Args:
        examples: n texts or pairs of texts.
        ids: n rows, as they were cut; of `among` alone, if it is given.
        whole: gives the rows of some indices without a cut.
        limit: that they were cut to.
        behind: tokens that a row has behind its text.
        answer: tokens that the limit leaves behind a row, for the answer of a generative model.
        keeps_head: whether the beginning of a row is what a cut keeps.
        among: indices of the only rows that may be equal to others.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for place, row in zip(range(len(examples)) if among is None else among, ids, strict=True):
        members.setdefault(tuple(row), []).append(place)
    groups = [found for places in members.values() if (found := _conflicting(examples, places))]
    rows = iter(whole([place for places in groups for place in places]))
    needed: list[int] = []
    same = 0
    for places in groups:
        full = [next(rows) for _ in places]
        if len({*map(tuple, full)}) == 1:
            same += len(places)
        elif keeps_head:
            needed.append(_common(full) + 1 + behind + answer)
        else:
            needed.append(max(map(len, full)) + answer)
    places = sorted(place for found in groups for place in found)
    return EqualRows(
        kind="texts",
        rows=len(examples),
        places=tuple(places),
        sources=tuple(_source(examples[place].source, place) for place in places),
        limit=limit,
        needed=max(needed, default=None),
        same=same,
    )


def equal_classified(
    examples: Sequence[TextExample],
    ids: Sequence[Ids],
    *,
    tokenizer: Any,
    config: PooledClassifierConfig,
    pairs: bool,
    among: Sequence[int],
) -> EqualRows:
    """Find the texts of a classifier that its cut has made equal to one of another label.

    Args:
        examples: n texts or pairs of texts.
        ids: of the rows `among`, as the config cuts them.
        tokenizer: with the template of the config.
        config: of the classifier.
        pairs: whether some are pairs.
        among: indices of the rows whose ids are those of another row.
    """

    def whole(places: list[int]) -> list[Ids]:
        texts, seconds = ([vars(examples[place])[name] for place in places] for name in ("text", "text_b"))
        return encode_texts(tokenizer, texts, text_pairs=seconds, max_length=None).input_ids

    return equal_texts(
        examples,
        ids,
        whole=whole,
        limit=config.max_seq_length,
        behind=len(template_of(tokenizer)[2]),
        keeps_head=config.truncation == "head" and not pairs,
        among=among,
    )


def _conflicting(examples: Sequence[TextExample], places: Sequence[int]) -> list[int]:
    """Those of some rows beside which there is one of another text and another target."""
    if len(places) < 2:
        return []
    keys = [((one.text, one.text_b), (one.target, one.soft)) for one in (examples[place] for place in places)]
    kinds = set(keys)
    texts, targets = (Counter(kind[part] for kind in kinds) for part in (0, 1))
    # Of all kinds, those with its text or its target are no conflict; it is one of both itself.
    return [
        place
        for place, (text, target) in zip(places, keys, strict=True)
        if len(kinds) > texts[text] + targets[target] - 1
    ]


def _limits(tokenizer: Any, prompts: Sequence[str], titles: Sequence[tuple[str, ...]]) -> list[int | None]:
    """Of each tuple of titles, the smallest limit that tells apart those whose tokens differ.

    None if the tokens of all of them are the same. A title is cut behind its prompt, which is left out first.
    """
    template = tokenizer.init_kwargs.get(TEMPLATE_KEY) or {part: [] for part in PARTS}
    before, between, after = (len(template[part]) for part in PARTS)
    rows = iter(encode(tokenizer, [title for each in titles for title in each], max_length=WHOLE).input_ids)
    limits: list[int | None] = []
    for prompt, each in zip(prompts, titles, strict=True):
        found = [(row := next(rows))[before : len(row) - after] for _ in each]
        fixed = before + after + (between if prompt else 0)
        limits.append(None if len({*map(tuple, found)}) == 1 else fixed + _common(found) + 1)
    return limits


def _common(rows: Sequence[Ids]) -> int:
    """The longest beginning that two different rows share: one token more tells all of them apart."""
    ranked = sorted({*map(tuple, rows)})
    return max(_shared(one, other) for one, other in pairwise(ranked))


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens two rows begin with alike, by halving: rows may be long."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _largest(limits: Sequence[int | None]) -> int | None:
    return max((limit for limit in limits if limit is not None), default=None)


def _source(source: str, place: int) -> str:
    return source or f"row {place + 1}"
