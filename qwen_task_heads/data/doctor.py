"""Checks that need a whole file, or two: duplicates, contradictions, swapped columns, overlaps of splits.

Design: what a single row cannot show is never refused row by row. It is counted, its sources are kept, and
it is said in plain words; only columns that are swapped on the whole stop the run, because training would
then learn the opposite of what is meant. All checks are linear in the number of rows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.errors import Problem

SHOWN = 3  # sources named in a line of a report
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
        refusals: the defects of rows left out; one row may have several.
        findings: rows that deserve a look; kinds without a row are left out.
    """

    source: str
    rows_read: int
    used: int
    refused: int = 0
    pairs: int = 0
    groups: int = 0
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
        arms = self.used - self.pairs
        parts = [f"{self.pairs:,} {'pair' if self.pairs == 1 else 'pairs'}"] if self.pairs or not arms else []
        parts += [f"{arms:,} {'arm' if arms == 1 else 'arms'}"] if arms else []
        result = [f"{' and '.join(parts)}{tests} read from {self.source}"]
        if self.refused:
            result.append(f"{self.refused:,} of {self.rows_read:,} rows left out")
            result += [f"  {problem}" for problem in self.refusals[:SHOWN]]
            more = len(self.refusals) - SHOWN
            result += [f"  … and {more:,} more problems"] if more > 0 else []
        return result + [str(finding) for finding in self.findings]


def _places(sources: Sequence[str]) -> str:
    """The first few sources, without their folders."""
    shown = [source.replace("\\", "/").rsplit("/", 1)[-1] for source in sources[:SHOWN]]
    return ", ".join(shown) + (", …" if len(sources) > SHOWN else "")


def text_key(text: str) -> str:
    """The form in which texts count as the same: NFKC, case folded, white space runs as one blank.

    Example:
        >>> text_key("Ｈello   World")
        'hello world'
    """
    if text.isascii():
        return " ".join(text.casefold().split())
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def examine(pairs: Iterable[PairExample], *, swapped: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Find duplicate, contradictory and nearly equal pairs.

    Duplicates and contradictions are told by the exact text (white space aside) and the prompt, in any
    group: a later pair repeats, or reverses, an earlier one.

    Args:
        pairs: in reading order.
        swapped: sources of the rows whose own evidence prefers the rejected title, as the reader saw them.

    Returns:
        The kinds that occur, each with the sources of all its rows.
    """
    seen: set[tuple[str, str, str]] = set()
    found: dict[str, list[str]] = {
        "duplicate": [],
        "contradictory": [],
        "near_equal": [],
        "swapped": list(swapped),
    }
    for pair in pairs:
        prompt, chosen, rejected = (
            " ".join(text.split()) for text in (pair.prompt, pair.chosen, pair.rejected)
        )
        if (prompt, chosen, rejected) in seen:
            found["duplicate"].append(pair.source)
        if (prompt, rejected, chosen) in seen:
            found["contradictory"].append(pair.source)
        if text_key(chosen) == text_key(rejected):
            found["near_equal"].append(pair.source)
        seen.add((prompt, chosen, rejected))
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
    remedy = "the columns look swapped: exchange the names 'chosen' and 'rejected', or those of the counts"
    return Problem(source, found, "accepted: evidence that mostly agrees with 'chosen'", remedy)


@dataclass(frozen=True)
class Overlap:
    """A test pair that also stands in the training data.

    Args:
        kind: `exact`; `normalised` (same up to case, width, spacing); `swapped` (the titles exchanged, also
            up to case, width, spacing).
        train_source: where it stands in training.
        test_source: where it stands in the test.
    """

    kind: str
    train_source: str
    test_source: str


def find_overlaps(train: Iterable[PairExample], test: Iterable[PairExample]) -> list[Overlap]:
    """Test pairs that training has seen: the same prompt and the same two titles, in either order.

    Returns:
        One overlap per test pair at most, the closest kind; in the order of `test`. Titles that are
        shared by different pairs are no overlap here; `splits.split_by_group` keeps those apart too.

    Example:
        >>> train = [PairExample(chosen="A tale", rejected="B", source="train.jsonl:1")]
        >>> test = [PairExample(chosen="b", rejected="a  TALE", source="test.jsonl:1")]
        >>> find_overlaps(train, test)
        [Overlap(kind='swapped', train_source='train.jsonl:1', test_source='test.jsonl:1')]
    """
    exact: dict[tuple[str, ...], str] = {}
    normalised: dict[tuple[str, ...], str] = {}
    for pair in train:
        exact.setdefault((pair.prompt, pair.chosen, pair.rejected), pair.source)
        normalised.setdefault(_keys(pair), pair.source)
    result = []
    for pair in test:
        prompt, chosen, rejected = keys = _keys(pair)
        for kind, table, key in (
            ("exact", exact, (pair.prompt, pair.chosen, pair.rejected)),
            ("normalised", normalised, keys),
            ("swapped", normalised, (prompt, rejected, chosen)),
        ):
            if key in table:
                result.append(Overlap(kind, table[key], pair.source))
                break
    return result


def _keys(pair: PairExample) -> tuple[str, ...]:
    return text_key(pair.prompt), text_key(pair.chosen), text_key(pair.rejected)
