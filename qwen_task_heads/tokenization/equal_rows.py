"""Find, count and name rows that truncation has made equal, and refuse a data set with such rows only.

Two texts that differ only in their last words are one input after a cut to `max_length`. A model cannot
distinguish them, and every metric counts a tie. Design:

- Equal means the same token ids for rows with different texts. Rows that were not cut may be equal too, if
  the tokenizer gives their difference the same tokens. No limit helps then, and the message says so.
- A pair of equal titles has no gradient: it is left out of training, and is a tie in evaluation. Equal titles
  of a group become one title, with the sum of their clicks and impressions.
- Equal texts with different labels stay, because the right label is not known.
- If all rows of a data set are equal, the run stops. The error names the smallest limit that distinguishes
  them.
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

SHOWN = 5  # rows named in one message
WHOLE = 1 << 40  # tokens; a limit that cuts nothing
PHRASES = {  # for rows that the cut has made equal, and for rows that no limit distinguishes
    "pairs": ("are equal", "have the same tokens"),
    "groups": ("have titles that are all equal", "have titles of the same tokens"),
    "texts": ("are equal to a text of another label", "have the same tokens as a text of another label"),
}
Ids = list[int]


@dataclass(frozen=True, kw_only=True)
class EqualRows:
    """The rows of a data set with equal inputs and different texts.

    Args:
        kind: `pairs`, `groups`, or `texts`, which are equal to a text of another label.
        rows: number of rows of the data set.
        places: indices of the equal rows, ascending.
        sources: file and line of each equal row.
        limit: tokens of the longest row, template included; None for no limit.
        needed: the smallest limit that distinguishes the rows that a limit can distinguish; None without such
            rows.
        same: number of equal rows that have the same tokens at any limit.
        titles: of groups, number of titles that are equal to another title of their group.
        left_out: whether the equal rows were left out of the data set.
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
    def of(cls, reports: Sequence[EqualRows]) -> EqualRows:
        """Return the report of a data set from those of its blocks, in their order; there is at least one."""
        starts = accumulate((report.rows for report in reports), initial=0)
        places = [
            place + start for report, start in zip(reports, starts, strict=False) for place in report.places
        ]
        return replace(
            reports[0],
            rows=sum(report.rows for report in reports),
            places=tuple(places),
            sources=tuple(source for report in reports for source in report.sources),
            needed=max((report.needed for report in reports if report.needed), default=None),
            same=sum(report.same for report in reports),
            titles=sum(report.titles for report in reports),
        )

    @property
    def are_all(self) -> bool:
        """Whether all rows are equal."""
        return self.rows > 0 and len(self.places) == self.rows

    @property
    def named(self) -> str:
        """Files and lines of the first equal rows, without folders."""
        shown = ", ".join(Path(source).name for source in self.sources[:SHOWN])
        return shown + (f" and {len(self.sources) - SHOWN:,} more" if len(self.sources) > SHOWN else "")

    def summary(self) -> str:
        """Return the number of equal rows, as a clause."""
        count, cut = f"{len(self.places):,} of {self.rows:,} {self.kind}", len(self.places) - self.same
        after_cut, always = PHRASES[self.kind]
        if not cut:
            return f"{count} {always}"
        at_any_limit = f" ({self.same:,} of them at any limit)" if self.same else ""
        return f"{count} {after_cut} after the cut to {self.limit:,} tokens{at_any_limit}"

    def lines(self, split: str, *, option: str) -> list[str]:
        """Return the messages of a split; [] without equal rows."""
        solution = f" ({option}{self.needed} distinguishes them)" if self.needed else ""
        messages = []
        if self.titles:
            count = f"{self.titles:,} titles are equal to another title of their group"
            messages.append(f"{split}: {count} and count as one title{solution}")
        if self.places:
            effect = " and are left out" if self.left_out else " and count as ties"
            if self.kind == "texts":
                effect = ""
            messages.append(f"{split}: {self.summary()}{effect}: {self.named}{solution}")
        return messages


def check_equal(reports: Mapping[str, EqualRows | None], *, option: str) -> list[str]:
    """Refuse all splits whose rows are all equal in one error; return the messages of the others.

    Args:
        reports: map of splits to their report, or None.
        option: option of the limit without its value: `--max_length ` of a recipe, `max_length=` in Python.

    Raises:
        TaskHeadsError: all rows of a split are equal; the smallest limit that distinguishes them is named.

    Example:
        >>> from qwen_task_heads.tokenization.equal_rows import EqualRows, check_equal
        >>> of = EqualRows(kind="pairs", rows=8, places=(3,), sources=("a.jsonl:4",), limit=16, needed=21)
        >>> check_equal({"dev": of}, option="--max_length ")[0][:62]
        'dev: 1 of 8 pairs are equal after the cut to 16 tokens and cou'
    """
    known = {split: report for split, report in reports.items() if report is not None}
    needed = max((report.needed for report in known.values() if report.needed), default=None)
    problems = [_problem(split, report, needed, option) for split, report in known.items() if report.are_all]
    if problems:
        raise TaskHeadsError(problems)
    return [line for split, report in known.items() for line in report.lines(split, option=option)]


def _problem(split: str, report: EqualRows, needed: int | None, option: str) -> Problem:
    expected = f"{report.kind} of {split} that differ in their tokens within the limit"
    if report.needed is None:
        fix = "write texts that differ in their tokens"
    else:
        fix = f"give {option}{needed}, which distinguishes them"
        if report.kind != "texts":
            fix += ", or move their common prefix into the column prompt, which is cut first"
    return Problem(report.named, report.summary(), expected, fix, code="rows-equal")


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
        ids: n rows of the chosen titles and n of the rejected titles, after the cut.
        tokenizer: that encoded them.
        max_length: limit of the cut.
        left_out: whether the caller leaves them out.
        start: number of the first pair, for the names of pairs without a source.
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
    """Merge titles of a group with the same ids, and leave out groups with one title left.

    Args:
        groups: n groups, whose titles all have impressions.
        ids: of each title of each group, after the cut.
        tokenizer: that encoded them.
        max_length: limit of the cut.
        start: number of the first group, for the names of groups without a source.

    Returns:
        `(kept, report)`: index, ids of the titles and gains of each remaining group; a gain is the click rate
        of the summed clicks and impressions of equal titles.
    """
    kept, out, titles = [], [], 0
    equal: list[tuple[int, tuple[str, ...]]] = []
    for place, (group, rows) in enumerate(zip(groups, ids, strict=True)):
        arms: dict[tuple[int, ...], list[int]] = {}
        for arm, row in enumerate(rows):
            arms.setdefault(tuple(row), []).append(arm)
        equal += [
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
    prompts = [groups[place].prompt for place, _ in equal]
    limits = _limits(tokenizer, prompts, [texts for _, texts in equal])
    at_any_limit = {place for (place, _), limit in zip(equal, limits, strict=True) if limit is None}
    return kept, EqualRows(
        kind="groups",
        rows=len(groups),
        places=tuple(out),
        sources=tuple(_source("".join(groups[place].sources[:1]), place + start) for place in out),
        limit=max_length,
        needed=_largest(limits),
        same=len(at_any_limit.intersection(out)),
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
    subset: Sequence[int] | None = None,
) -> EqualRows:
    """Find the texts that have the ids of another text with another target.

    Args:
        examples: n texts or pairs of texts.
        ids: n rows, after the cut; if `subset` is given, the rows of `subset`.
        whole: returns the rows of some indices without a cut.
        limit: limit of the cut.
        behind: tokens of a row after its text.
        answer: tokens after a row that the limit reserves for the answer of a generative model.
        keeps_head: whether the cut keeps the beginning of a row.
        subset: indices of the rows to compare; None for all.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for place, row in zip(range(len(examples)) if subset is None else subset, ids, strict=True):
        members.setdefault(tuple(row), []).append(place)
    groups = [conflict for places in members.values() if (conflict := _conflicting(examples, places))]
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
    places = sorted(place for group in groups for place in group)
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
    subset: Sequence[int],
) -> EqualRows:
    """Find the texts of a classifier that its cut has made equal to a text of another label.

    Args:
        examples: n texts or pairs of texts.
        ids: of the rows `subset`, after the cut of the config.
        tokenizer: with the template of the config.
        config: of the classifier.
        pairs: whether some examples are pairs.
        subset: indices of the rows whose ids are equal to those of another row.
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
        subset=subset,
    )


def _conflicting(examples: Sequence[TextExample], places: Sequence[int]) -> list[int]:
    """Return the rows in `places` for which another of them has another text and another target."""
    if len(places) < 2:
        return []
    keys = [((one.text, one.text_b), (one.target, one.soft)) for one in (examples[place] for place in places)]
    kinds = set(keys)
    texts, targets = (Counter(kind[side] for kind in kinds) for side in (0, 1))
    # Kinds with the same text or the same target do not conflict; the kind itself is counted in both.
    return [
        place
        for place, (text, target) in zip(places, keys, strict=True)
        if len(kinds) > texts[text] + targets[target] - 1
    ]


def _limits(tokenizer: Any, prompts: Sequence[str], titles: Sequence[tuple[str, ...]]) -> list[int | None]:
    """Return the smallest limit for each tuple of titles that distinguishes titles with different tokens.

    None if all titles have the same tokens. The prompt of a title is cut first.
    """
    template = tokenizer.init_kwargs.get(TEMPLATE_KEY) or {part: [] for part in PARTS}
    before, between, after = (len(template[part]) for part in PARTS)
    rows = iter(encode(tokenizer, [title for each in titles for title in each], max_length=WHOLE).input_ids)
    limits: list[int | None] = []
    for prompt, each in zip(prompts, titles, strict=True):
        ids = [(row := next(rows))[before : len(row) - after] for _ in each]
        fixed = before + after + (between if prompt else 0)
        limits.append(None if len({*map(tuple, ids)}) == 1 else fixed + _common(ids) + 1)
    return limits


def _common(rows: Sequence[Ids]) -> int:
    """Return the length of the longest common prefix of two different rows."""
    ranked = sorted({*map(tuple, rows)})
    return max(_shared(one, other) for one, other in pairwise(ranked))


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return the length of the common prefix of two rows, by bisection, because rows may be long."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _largest(limits: Sequence[int | None]) -> int | None:
    return max((limit for limit in limits if limit is not None), default=None)


def _source(source: str, place: int) -> str:
    return source or f"row {place + 1}"
