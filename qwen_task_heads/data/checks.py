"""Checks that need a whole file, or two: duplicates, contradictions, swapped columns, overlaps of splits.

Design: what a single row cannot show is never refused row by row. It is counted, its sources are kept, and
it is said in plain words; only columns that are swapped on the whole stop the run, because training would
then learn the opposite of what is meant. All checks are linear in the number of rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwen_task_heads.data.example_columns import hashed, rows_containing
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.keys import Hashes, combine, repeated, text_key, within
from qwen_task_heads.data.sequences import blocks, index, pick
from qwen_task_heads.errors import Problem

SHOWN = 3  # sources named in a line of a report
CONTROL = re.compile(r"<\|[a-z0-9_]{1,40}\|>|</?(?:think|tool_call|tool_response)>")  # of the Qwen families
SWAPPED_ROWS = 20  # with fewer rows of evidence, a swapped majority may be chance

# What each kind of finding is called in a report: (one, many).
NAMES = {
    "duplicate": ("duplicate of an earlier pair", "duplicates of earlier pairs"),
    "contradictory": ("pair contradicts an earlier one", "pairs contradict earlier ones"),
    "near_equal": (
        "pair differs only in case, width or spacing",
        "pairs differ only in case, width or spacing",
    ),
    "swapped": (
        "pair whose own votes or clicks prefer the rejected title",
        "pairs whose own votes or clicks prefer the rejected title",
    ),
    "pooled": (
        "arm repeats a headline of its test and was pooled",
        "arms repeat a headline of their test and were pooled",
    ),
    "conversation": (
        "conversation whose earlier messages were joined by line ends, without roles or chat template",
        "conversations whose earlier messages were joined by line ends, without roles or chat template",
    ),
    "duplicate_text": (
        "text repeats an earlier one with its label",
        "texts repeat earlier ones with their labels",
    ),
    "contradictory_text": (
        "text stands with another label above",
        "texts stand with other labels above",
    ),
    "control": (
        "text holds what looks like control tokens, which stay plain text",
        "texts hold what looks like control tokens, which stay plain text",
    ),
    "spoken": (
        "conversation in which others than the user speak, whose messages are left out",
        "conversations in which others than the user speak, whose messages are left out",
    ),
    "strange": (
        "row offers names that are no labels, which are left out",
        "rows offer names that are no labels, which are left out",
    ),
    "lone": (
        "arm is the only headline of its test and was left out",
        "arms are the only headline of their test and were left out",
    ),
}


@dataclass(frozen=True)
class Finding:
    """Rows that deserve a look; all are kept, but for `lone` arms.

    Args:
        kind: a key of `NAMES`.
        sources: where each such row stands, in reading order.
    """

    kind: str
    sources: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.sources)

    def __str__(self) -> str:
        one, many = NAMES[self.kind]
        shown = _places(self.sources)
        return f"{self.count:,} {one if self.count == 1 else many} ({shown})"


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """What became of every row: `rows_read == used + refused`, always.

    Args:
        source: what was read, as the user named it.
        rows_read: rows of data, without headers and blank lines.
        used: rows that stand in `pairs` or `groups`.
        refused: rows left out: defective ones (`bad_rows="skip"`), and arms that are alone in their test,
            which are no defect and stop nothing.
        pairs: pairs read.
        groups: different groups among the pairs, and tests among the arms.
        texts: labelled texts read.
        several: pairs beyond the first of their row.
        refusals: the defects of rows left out; one row may have several.
        findings: rows that deserve a look; kinds without a row are left out.
    """

    source: str
    rows_read: int
    used: int
    refused: int = 0
    pairs: int = 0
    groups: int = 0
    texts: int = 0
    several: int = 0
    refusals: tuple[Problem, ...] = ()
    findings: tuple[Finding, ...] = ()

    def count(self, kind: str) -> int:
        """Rows of one kind of finding, 0 where there is none."""
        return sum(finding.count for finding in self.findings if finding.kind == kind)

    def lines(self) -> list[str]:
        """The report in plain words, one statement per line.

        Example:
            >>> finding = Finding("duplicate", ("train.jsonl:17",))
            >>> report = ReadReport(source="train.jsonl", rows_read=9, used=9, pairs=9, findings=(finding,))
            >>> print("\\n".join(report.lines()))
            9 pairs read from train.jsonl
            1 duplicate of an earlier pair (train.jsonl:17)
        """
        tests = f" of {self.groups:,} {'test' if self.groups == 1 else 'tests'}" if self.groups else ""
        arms = self.used - (self.pairs - self.several) - self.texts
        counts = ((self.texts, "text"), (self.pairs, "pair"), (arms, "arm"))
        parts = [f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count]
        parts = parts or ["0 pairs"]
        result = [f"{' and '.join(parts)}{tests} read from {self.source}"]
        if self.refused:
            result.append(f"{self.refused:,} of {self.rows_read:,} rows left out")
            # Without folders: these lines stand on the card too.
            shown = [replace(problem, where=_places([problem.where])) for problem in self.refusals[:SHOWN]]
            result += [f"  {problem}" for problem in shown]
            more = len(self.refusals) - SHOWN
            result += [f"  … and {more:,} more problems"] if more > 0 else []
        return result + [str(finding) for finding in self.findings]


def _places(sources: Sequence[str]) -> str:
    """The first few sources, without their folders."""
    shown = [source.replace("\\", "/").rsplit("/", 1)[-1] for source in sources[:SHOWN]]
    return ", ".join(shown) + (", …" if len(sources) > SHOWN else "")


def examine(pairs: Sequence[PairExample], *, swapped: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Find duplicate, contradictory and nearly equal pairs.

    Duplicates and contradictions are told by the exact text (white space aside) and the prompt, in any
    group: a later pair repeats, or reverses, an earlier one.

    Args:
        pairs: in reading order.
        swapped: sources of the rows whose own evidence prefers the rejected title, as the reader saw them.

    Returns:
        The kinds that occur, each with the sources of all its rows.
    """
    chosen, rejected, prompt = (hashed(pairs, name) for name in ("chosen", "rejected", "prompt"))
    alike = combine(prompt, np.minimum(chosen, rejected), np.maximum(chosen, rejected))
    odd = np.union1d(repeated(alike), np.flatnonzero(chosen == rejected))
    seen: set[tuple[str, str, str]] = set()
    found: dict[str, list[str]] = {
        "duplicate": [],
        "contradictory": [],
        "near_equal": [],
        "swapped": list(swapped),
    }
    for pair in pick(pairs, odd):
        texts = (" ".join(text.split()) for text in (pair.prompt, pair.chosen, pair.rejected))
        context, one, other = texts
        if (context, one, other) in seen:
            found["duplicate"].append(pair.source)
        if (context, other, one) in seen:
            found["contradictory"].append(pair.source)
        if text_key(one) == text_key(other):
            found["near_equal"].append(pair.source)
        seen.add((context, one, other))
    return tuple(Finding(kind, tuple(sources)) for kind, sources in found.items() if sources)


def examine_texts(examples: Sequence[TextExample], *, spoken: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Find duplicate and contradictory texts, and texts that hold forged control tokens.

    Texts are compared white space aside; two texts of a pair in their order.

    Args:
        examples: in reading order.
        spoken: sources of the conversations whose other speakers were left out, as the reader saw them.

    Example:
        >>> one = TextExample(text="Fine", target=1, source="a.jsonl:1")
        >>> other = TextExample(text="Fine ", target=0, source="a.jsonl:2")
        >>> print(*examine_texts([one, other, one]), sep="\\n")
        1 text repeats an earlier one with its label (a.jsonl:1)
        1 text stands with another label above (a.jsonl:2)
    """
    first: dict[tuple[str, str], object] = {}
    found: dict[str, list[str]] = {"duplicate_text": [], "contradictory_text": [], "control": []}
    keys, seconds = hashed(examples, "text"), hashed(examples, "text_b")
    several = repeated(keys)  # a pair that repeats another one repeats its first text
    several = several[repeated(combine(keys[several], seconds[several]))]
    for example in pick(examples, several):
        stated = example.soft if example.soft is not None else example.target
        key = (" ".join(example.text.split()), " ".join(example.text_b.split()))
        known = key in first
        if first.setdefault(key, stated) != stated:
            found["contradictory_text"].append(example.source)
        elif known:
            found["duplicate_text"].append(example.source)
    for example in pick(examples, rows_containing(examples, "<")):
        if CONTROL.search(example.text) or CONTROL.search(example.text_b):
            found["control"].append(example.source)
    found["spoken"] = list(spoken)
    return tuple(Finding(kind, tuple(sources)) for kind, sources in found.items() if sources)


def swapped_problem(source: str, *, swapped: int, with_evidence: int) -> Problem | None:
    """The problem of a file whose evidence mostly speaks against its columns, None where it does not.

    Args:
        source: what was read.
        swapped: rows whose votes or clicks prefer the rejected title.
        with_evidence: rows with votes or clicks; below `SWAPPED_ROWS` nothing is concluded.
    """
    if with_evidence < SWAPPED_ROWS or 2 * swapped <= with_evidence:
        return None
    found = f"in {swapped:,} of {with_evidence:,} rows, the votes or clicks prefer the rejected title"
    remedy = (
        "the columns look swapped: exchange 'chosen' and 'rejected' in the names of all of them, or of the "
        "counts alone"
    )
    return Problem(source, found, "evidence that mostly agrees with 'chosen'", remedy)


@dataclass(frozen=True)
class Overlap:
    """A row of the test that also stands in the training data.

    Args:
        kind: `exact`; `normalised` (same up to case, width, spacing); `swapped` (the titles or texts
            exchanged, also up to case, width, spacing).
        train_source: where it stands in training.
        test_source: where it stands in the test.
    """

    kind: str
    train_source: str
    test_source: str


def find_overlaps(
    train: Sequence[PairExample | TextExample], test: Sequence[PairExample | TextExample]
) -> list[Overlap]:
    """Test rows that training has seen: the same prompt and the same two titles or texts, in either order.

    Returns:
        One overlap per row of the test at most, the closest kind; in the order of `test`. Titles that are
        shared by different pairs are no overlap here; `splits.split_by_group` keeps those apart too.

    Example:
        >>> train = [PairExample(chosen="A tale", rejected="B", source="train.jsonl:1")]
        >>> test = [PairExample(chosen="b", rejected="a  TALE", source="test.jsonl:1")]
        >>> find_overlaps(train, test)
        [Overlap(kind='swapped', train_source='train.jsonl:1', test_source='test.jsonl:1')]
    """
    if not len(train) or not len(test):
        return []
    stated, turned = _pair_keys(test)
    keys = np.unique(np.concatenate([stated, turned]))
    alike = index(np.concatenate([within(_pair_keys(part)[0], keys) for part in blocks(train)]))
    known = np.unique(_pair_keys(pick(train, alike))[0]) if len(alike) else keys[:0]
    seen = np.flatnonzero(within(stated, known) | within(turned, known))
    exact: dict[tuple[str, ...], str] = {}
    normalised: dict[tuple[str, ...], str] = {}
    for row in pick(train, alike):
        exact.setdefault(_texts(row), row.source)
        normalised.setdefault(tuple(map(text_key, _texts(row))), row.source)
    result = []
    for row in pick(test, seen):
        texts = _texts(row)
        prompt, one, other = normal = tuple(map(text_key, texts))
        for kind, table, key in (
            ("exact", exact, texts),
            ("normalised", normalised, normal),
            ("swapped", normalised, (prompt, other, one)),
        ):
            if key in table:
                result.append(Overlap(kind, table[key], row.source))
                break
    return result


def _pair_keys(rows: Sequence[PairExample | TextExample]) -> tuple[Hashes, Hashes]:
    """A key of the texts of each row in their order, and one with the two titles or texts exchanged."""
    if isinstance(rows[0], TextExample):
        one, other = hashed(rows, "text"), hashed(rows, "text_b")
        return combine(one, other), combine(other, one)
    prompt, one, other = hashed(rows, "prompt"), hashed(rows, "chosen"), hashed(rows, "rejected")
    return combine(prompt, one, other), combine(prompt, other, one)


def shared_lines(
    dev: Sequence[PairExample | TextExample], test: Sequence[PairExample | TextExample]
) -> list[str]:
    """State how many rows of a test set that was cut from train are also in a dev set that was given."""
    shared = len(find_overlaps(dev, test))
    return [f"test: {shared:,} rows are also in dev, by which the checkpoint is picked"] if shared else []


def _texts(row: PairExample | TextExample) -> tuple[str, ...]:
    if isinstance(row, TextExample):
        return "", row.text, row.text_b
    return row.prompt, row.chosen, row.rejected
