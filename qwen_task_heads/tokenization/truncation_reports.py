"""Report how a limit of tokens has cut the texts of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwen_task_heads.tokenization.equal_rows import EqualRows


@dataclass(frozen=True)
class CutReport:
    """Numbers of texts that were cut to `max_length`, and the rows that have become equal."""

    pairs: int
    cut_prompts: int
    cut_titles: int
    max_length: int
    equal: EqualRows | None = field(default=None, compare=False)

    @classmethod
    def of(cls, reports: Sequence[CutReport], max_length: int) -> CutReport:
        """Return the report of a data set from those of its blocks, of which there is at least one."""
        counts = [(report.pairs, report.cut_prompts, report.cut_titles) for report in reports]
        pairs, prompts, titles = map(sum, zip(*counts, strict=True))
        equal = EqualRows.of([report.equal for report in reports if report.equal is not None])
        return cls(pairs, prompts, titles, max_length, equal)

    def line(self) -> str:
        """Return the report as one sentence."""
        if not self.cut_prompts and not self.cut_titles:
            return f"all texts of {self.pairs:,} pairs fit into {self.max_length} tokens"
        return (
            f"of {self.pairs:,} pairs, {self.cut_prompts:,} prompts and {self.cut_titles:,} titles were cut "
            f"to fit into {self.max_length} tokens (raise --max_length to keep more)"
        )


@dataclass(frozen=True)
class TextCutReport:
    """Numbers of texts and tokens that `max_seq_length` has cut; no text is left out.

    Args:
        texts: number of texts.
        cut: number of texts longer than the limit.
        lost: tokens that were cut off, of all texts.
        tokens: tokens of all texts before the cut, without templates.
        windows: number of windows of the long texts; 0 for the other policies.
        max_length: the limit, template included; None for no limit.
        truncation: the policy.
        equal: texts that are equal to a text of another label.
    """

    texts: int
    cut: int
    lost: int
    tokens: int
    windows: int
    max_length: int | None
    truncation: str
    equal: EqualRows | None = field(default=None, compare=False)

    @classmethod
    def of(cls, reports: Sequence[TextCutReport]) -> TextCutReport:
        """Return the report of a data set from those of its blocks, of which there is at least one."""
        counts = [
            (report.texts, report.cut, report.lost, report.tokens, report.windows) for report in reports
        ]
        texts, cut, lost, tokens, windows = map(sum, zip(*counts, strict=True))
        first = reports[0]
        return cls(texts, cut, lost, tokens, windows, first.max_length, first.truncation)

    def line(self) -> str:
        """Return the report as one sentence."""
        if self.max_length is None:
            return f"{self.texts:,} texts, none cut (no --max_seq_length)"
        if not self.cut:
            return f"all {self.texts:,} texts fit into {self.max_length:,} tokens"
        if self.truncation == "windows":
            return (
                f"of {self.texts:,} texts, {self.cut:,} are longer than {self.max_length:,} tokens and are "
                f"read whole, in {self.windows:,} windows"
            )
        share = 100 * self.lost / self.tokens
        return (
            f"of {self.texts:,} texts, {self.cut:,} were cut to {self.max_length:,} tokens (kept: "
            f"{self.truncation.replace('_', ' and ')}); {self.lost:,} tokens were lost, {share:.1f}% of all "
            "(no text was dropped; --truncation windows or a larger --max_seq_length keeps more)"
        )
