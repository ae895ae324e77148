"""Checks of one or two whole files: duplicates, contradictions, swapped columns, overlaps of splits.

Design: these checks refuse no row. The report counts the rows of each finding and names their sources. Only
columns that are swapped in most rows stop the run, because training would then learn the opposite preference.
All checks are linear in the number of rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwen_task_heads.data.example_columns import hashed, rows_containing
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.sequences import blocks, index, pick
from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.sources.keys import Hashes, combine, repeated, text_key, within

SHOWN = 3  # sources named in a line of a report
CONTROL = re.compile(r"<\|[a-z0-9_]{1,40}\|>|</?(?:think|tool_call|tool_response)>")  # tokens of Qwen models
SWAPPED_ROWS = 20  # with fewer rows with signals, a swapped majority may be chance

# Name of each kind of finding in a report: (singular, plural).
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
        "arm repeats a headline of its experiment and was pooled",
        "arms repeat a headline of their experiment and were pooled",
    ),
    "conversation": (
        "conversation whose earlier messages were joined by newlines, without roles or chat template",
        "conversations whose earlier messages were joined by newlines, without roles or chat template",
    ),
    "duplicate_text": (
        "text repeats an earlier one with its label",
        "texts repeat earlier ones with their labels",
    ),
    "contradictory_text": (
        "text has another label in an earlier row",
        "texts have other labels in earlier rows",
    ),
    "control": (
        "text contains strings like control tokens, which are read as plain text",
        "texts contain strings like control tokens, which are read as plain text",
    ),
    "spoken": (
        "conversation has messages of other roles than user, which are left out",
        "conversations have messages of other roles than user, which are left out",
    ),
    "strange": (
        "row has candidates that are not labels, which are left out",
        "rows have candidates that are not labels, which are left out",
    ),
    "lone": (
        "arm is the only headline of its experiment and was left out",
        "arms are the only headline of their experiment and were left out",
    ),
}


@dataclass(frozen=True)
class Finding:
    """Rows with a common finding; all are kept, except `lone` arms.

    Args:
        kind: a key of `NAMES`.
        sources: file and line of each row, in reading order.
    """

    kind: str
    sources: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.sources)

    def __str__(self) -> str:
        singular, plural = NAMES[self.kind]
        name = singular if self.count == 1 else plural
        return f"{self.count:,} {name} ({_places(self.sources)})"


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """Counts, defects and findings of the rows of a source; `rows_read == used + refused`.

    Args:
        source: file, folder or dataset id, as the user named it.
        rows_read: rows of data, without headers and blank lines.
        used: rows in `pairs` or `groups`.
        refused: rows left out: defective rows (`bad_rows="skip"`), and arms that are alone in their
            experiment, which are not defects and never raise.
        pairs: pairs read.
        groups: different groups among the pairs, and experiments among the arms.
        texts: labelled texts read.
        several: pairs beyond the first of their row.
        refusals: the defects of rows left out; one row may have several.
        findings: findings of rows, without kinds that have no row.
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
        """Return the number of rows of one kind of finding."""
        return sum(finding.count for finding in self.findings if finding.kind == kind)

    def lines(self) -> list[str]:
        """Return the report as text, one statement per line.

        Example:
            >>> finding = Finding("duplicate", ("train.jsonl:17",))
            >>> report = ReadReport(source="train.jsonl", rows_read=9, used=9, pairs=9, findings=(finding,))
            >>> print("\\n".join(report.lines()))
            9 pairs read from train.jsonl
            1 duplicate of an earlier pair (train.jsonl:17)
        """
        noun = "experiment" if self.groups == 1 else "experiments"
        groups = f" of {self.groups:,} {noun}" if self.groups else ""
        arms = self.used - (self.pairs - self.several) - self.texts
        counts = ((self.texts, "text"), (self.pairs, "pair"), (arms, "arm"))
        parts = [f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count]
        parts = parts or ["0 pairs"]
        lines = [f"{' and '.join(parts)}{groups} read from {self.source}"]
        if self.refused:
            lines.append(f"{self.refused:,} of {self.rows_read:,} rows left out")
            # Model cards show these lines, so names of folders are removed.
            first = [replace(problem, where=_places([problem.where])) for problem in self.refusals[:SHOWN]]
            lines += [f"  {problem}" for problem in first]
            more = len(self.refusals) - SHOWN
            lines += [f"  … and {more:,} more problems"] if more > 0 else []
        return lines + [str(finding) for finding in self.findings]


def _places(sources: Sequence[str]) -> str:
    """Return the first sources, without their folders."""
    names = [source.replace("\\", "/").rsplit("/", 1)[-1] for source in sources[:SHOWN]]
    return ", ".join(names) + (", …" if len(sources) > SHOWN else "")


def examine(pairs: Sequence[PairExample], *, swapped: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Find duplicate, contradictory and nearly equal pairs.

    A duplicate repeats an earlier pair, and a contradictory pair reverses one. Prompt and titles are
    compared up to white space; groups are not compared.

    Args:
        pairs: in reading order.
        swapped: sources of the rows whose preference signals prefer the rejected title.

    Returns:
        The kinds that occur, each with the sources of all its rows.
    """
    chosen, rejected, prompt = (hashed(pairs, name) for name in ("chosen", "rejected", "prompt"))
    keys = combine(prompt, np.minimum(chosen, rejected), np.maximum(chosen, rejected))
    suspects = np.union1d(repeated(keys), np.flatnonzero(chosen == rejected))
    seen: set[tuple[str, str, str]] = set()
    sources: dict[str, list[str]] = {
        "duplicate": [],
        "contradictory": [],
        "near_equal": [],
        "swapped": list(swapped),
    }
    for pair in pick(pairs, suspects):
        texts = (" ".join(text.split()) for text in (pair.prompt, pair.chosen, pair.rejected))
        context, one, other = texts
        if (context, one, other) in seen:
            sources["duplicate"].append(pair.source)
        if (context, other, one) in seen:
            sources["contradictory"].append(pair.source)
        if text_key(one) == text_key(other):
            sources["near_equal"].append(pair.source)
        seen.add((context, one, other))
    return tuple(Finding(kind, tuple(places)) for kind, places in sources.items() if places)


def examine_texts(examples: Sequence[TextExample], *, spoken: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Find duplicate and contradictory texts, and texts that contain strings like control tokens.

    Texts are compared up to white space; the two texts of a pair in their order.

    Args:
        examples: in reading order.
        spoken: sources of the conversations that have messages of other roles than user.

    Example:
        >>> one = TextExample(text="Fine", target=1, source="a.jsonl:1")
        >>> other = TextExample(text="Fine ", target=0, source="a.jsonl:2")
        >>> print(*examine_texts([one, other, one]), sep="\\n")
        1 text repeats an earlier one with its label (a.jsonl:1)
        1 text has another label in an earlier row (a.jsonl:2)
    """
    first: dict[tuple[str, str], object] = {}
    sources: dict[str, list[str]] = {"duplicate_text": [], "contradictory_text": [], "control": []}
    keys, seconds = hashed(examples, "text"), hashed(examples, "text_b")
    suspects = repeated(keys)  # a pair that repeats another one repeats its first text
    suspects = suspects[repeated(combine(keys[suspects], seconds[suspects]))]
    for example in pick(examples, suspects):
        target = example.soft if example.soft is not None else example.target
        key = (" ".join(example.text.split()), " ".join(example.text_b.split()))
        known = key in first
        if first.setdefault(key, target) != target:
            sources["contradictory_text"].append(example.source)
        elif known:
            sources["duplicate_text"].append(example.source)
    for example in pick(examples, rows_containing(examples, "<")):
        if CONTROL.search(example.text) or CONTROL.search(example.text_b):
            sources["control"].append(example.source)
    sources["spoken"] = list(spoken)
    return tuple(Finding(kind, tuple(places)) for kind, places in sources.items() if places)


def swapped_problem(source: str, *, swapped: int, with_signals: int) -> list[Problem]:
    """Return the problem of a file whose preference signals mostly contradict its columns, if any.

    Args:
        source: file, folder or dataset id.
        swapped: rows whose votes or clicks prefer the rejected title.
        with_signals: rows with votes or clicks; below `SWAPPED_ROWS` there is no problem.
    """
    if with_signals < SWAPPED_ROWS or 2 * swapped <= with_signals:
        return []
    problem = f"in {swapped:,} of {with_signals:,} rows, the votes or clicks prefer the rejected title"
    expected = "preference signals that mostly agree with 'chosen'"
    fix = "exchange 'chosen' and 'rejected' in the names of all columns, or of the counts alone"
    return [Problem(source, problem, expected, fix, code="pairs-swapped")]


def bad_rows_problems(bad_rows: str) -> list[Problem]:
    """Return the problem of another value than `raise` and `skip`, if any."""
    problem, fix = f"found {shorten(bad_rows)}", "choose one of them"
    invalid = Problem("bad_rows", problem, "raise, skip", fix, code="option-value")
    return [] if bad_rows in ("raise", "skip") else [invalid]


@dataclass(frozen=True)
class Overlap:
    """A test row that is also in the training data.

    Args:
        kind: `exact`; `normalised` (same up to case, width, spacing); `swapped` (the titles or texts
            exchanged, also up to case, width, spacing).
        train_source: file and line of the training row.
        test_source: file and line of the test row.
    """

    kind: str
    train_source: str
    test_source: str


def find_overlaps(
    train: Sequence[PairExample | TextExample], test: Sequence[PairExample | TextExample]
) -> list[Overlap]:
    """Find test rows with the prompt and the two titles or texts of a training row, in either order.

    Returns:
        At most one overlap per test row, of the closest kind; in the order of `test`. A title in two
        different pairs is not an overlap; `splits.split_by_group` keeps such titles in one split.

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
    matching = index(np.concatenate([within(_pair_keys(part)[0], keys) for part in blocks(train)]))
    known = np.unique(_pair_keys(pick(train, matching))[0]) if len(matching) else keys[:0]
    seen = np.flatnonzero(within(stated, known) | within(turned, known))
    exact: dict[tuple[str, ...], str] = {}
    normalised: dict[tuple[str, ...], str] = {}
    for row in pick(train, matching):
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
    """Return a key of the texts of each row, and a key with the two titles or texts exchanged."""
    if isinstance(rows[0], TextExample):
        one, other = hashed(rows, "text"), hashed(rows, "text_b")
        return combine(one, other), combine(other, one)
    prompt, one, other = hashed(rows, "prompt"), hashed(rows, "chosen"), hashed(rows, "rejected")
    return combine(prompt, one, other), combine(prompt, other, one)


def _texts(row: PairExample | TextExample) -> tuple[str, ...]:
    if isinstance(row, TextExample):
        return "", row.text, row.text_b
    return row.prompt, row.chosen, row.rejected
