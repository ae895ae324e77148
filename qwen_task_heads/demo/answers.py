"""Answers of the page: one model, plain values in, plain values out. Knows no Gradio.

The answers are those of `Scorer` for the same texts, rounded to `DIGITS` decimals.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_task_heads.demo.attribution import Attribution, attribute_words
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.inference.predictions import THRESHOLD, Prediction, problem_type_of, thresholds_of
from qwen_task_heads.inference.scorer import Scorer

DIGITS = 4


@dataclass(frozen=True)
class DemoLimits:
    """Limits of one question.

    Args:
        titles: most titles of a list.
        characters: most characters of a text with its second text, or of titles with their prompt.
        words: most words of a text whose words are attributed.
    """

    titles: int = 100
    characters: int = 20_000
    words: int = 100


@dataclass(frozen=True)
class TextAnswer:
    """Answer for one text.

    Args:
        answer: the label, the labels or the score, in words.
        probabilities: of every label by name, best first; empty for a regression.
        rows: for multi-label (label, probability, threshold, "yes" if predicted); for a regression (output,
            score); else (label, probability).
    """

    answer: str
    probabilities: dict[str, float]
    rows: list[list[Any]]


class DemoModel:
    """A model of the page. Calls of several visitors run one after the other.

    Args:
        scorer: the model.
        name: its folder or repo id.
        limits: of one question.

    Example:
        >>> from qwen_task_heads import Scorer, build, load_tokenizer
        >>> from qwen_task_heads.demo.answers import DemoModel
        >>> model = DemoModel(Scorer(build("embedded"), tokenizer=load_tokenizer("embedded")), name="titles")
        >>> [row[0] for row in model.rank("A plain title\\n\\nOne Weird Title")]
        [1, 2]
    """

    def __init__(self, scorer: Scorer, *, name: str, limits: DemoLimits | None = None) -> None:
        self.scorer, self.name, self.limits = scorer, name, limits or DemoLimits()
        self._lock = threading.Lock()  # neither tokenizers nor the prefix cache are made for threads

    @property
    def problem_type(self) -> str:
        """Problem type of the model."""
        return problem_type_of(self.scorer.config)

    @property
    def kind(self) -> str:
        """`title scorer`, `classifier` or `classifier of pairs`; only models of one kind are compared."""
        if self.scorer.is_title_scorer:
            return "title scorer"
        return "classifier of pairs" if self.scorer.needs_pairs else "classifier"

    @property
    def curve(self) -> list[Mapping[str, float]]:
        """Stored risk-coverage curve of the dev rows; empty without one, and for other problem types."""
        if self.problem_type not in ("single_label_classification", "ordinal"):
            return []
        return list((self.scorer.config.calibration or {}).get("risk_coverage") or [])

    @property
    def first_threshold(self) -> float | None:
        """Threshold that the page starts with, in hundredths; None for a model without one.

        Multi-label: 0.5, for visitors who do not want the stored ones. Single-label and ordinal: the lowest
        confidence of the stored curve, so that a text is labelled if a dev row was as uncertain; 0 without
        a curve.
        """
        if self.scorer.is_title_scorer or self.problem_type == "regression":
            return None
        if self.problem_type == "multi_label_classification":
            return THRESHOLD
        lowest = min((row["confidence"] for row in self.curve), default=0.0)
        return math.floor(100 * lowest) / 100

    @property
    def has_stored_thresholds(self) -> bool:
        """Whether the config has a threshold per label."""
        return self.problem_type == "multi_label_classification" and bool(self.scorer.config.label_thresholds)

    def rank(self, titles: str, prompt: str = "") -> list[list[Any]]:
        """Return (rank, title, score, probability to be the best) of each title, best first.

        Args:
            titles: one title per line; empty lines are skipped.
            prompt: context of all titles.

        Raises:
            TaskHeadsError: too many titles or characters, or titles that `Scorer.rank` refuses.
        """
        lines = [line.strip() for line in titles.splitlines() if line.strip()]
        problems = self._too_long("titles", titles, prompt)
        if len(lines) > self.limits.titles:
            found, expected = f"found {len(lines):,} titles", f"at most {self.limits.titles:,}"
            problems.append(Problem("titles", found, expected, "drop some", code="request-too-large"))
        if not lines:
            fix = "write one title per line"
            problems.append(Problem("titles", "found none", "one title or more", fix, code="text-empty"))
        if problems:
            raise TaskHeadsError(problems)
        with self._lock:
            ranked = self.scorer.rank(lines, prompt=prompt.strip())
        return [
            [row.rank, row.title, round(row.score, DIGITS), round(row.probability, DIGITS)] for row in ranked
        ]

    def classify(self, text: str, second_text: str = "", threshold: float | None = None) -> TextAnswer:
        """Return the answer for a text.

        Args:
            text: not empty.
            second_text: of a model of pairs; "" for none.
            threshold: multi-label: predict labels at or over it, instead of the stored thresholds.
                Single-label and ordinal: predict no label if the best probability is below it.

        Raises:
            TaskHeadsError: too many characters, or a text that `Scorer.predict` refuses.
        """
        self.check_text(text, second_text)
        several = self.problem_type == "multi_label_classification"
        options: dict[str, Any] = (
            {} if threshold is None else {"threshold" if several else "abstain": threshold}
        )
        pair = self._pair(second_text)
        pairs = None if pair is None else [pair]
        with self._lock:
            [prediction] = self.scorer.predict([text], text_pairs=pairs, **options)
        probabilities = {name: round(value, DIGITS) for name, value in prediction.ranked}
        rows: list[list[Any]] = [list(item) for item in probabilities.items()]
        if self.problem_type == "regression":
            rows = [[name, round(score, DIGITS)] for name, score in prediction.scores.items()]
        elif several:
            labels = self.scorer.config.id2label.values()
            least = dict(zip(labels, thresholds_of(self.scorer.config, threshold), strict=True))
            chosen = prediction.labels or ()
            rows = [
                [name, value, round(least[name], DIGITS), "yes" if name in chosen else ""]
                for name, value in rows
            ]
        return TextAnswer(self._in_words(prediction, threshold), probabilities, rows)

    def attribute(self, text: str, second_text: str = "") -> Attribution:
        """Return the contributions of the words of a text; see `attribution.attribute_words`.

        Raises:
            TaskHeadsError: too many characters or words, one word, or a text that `Scorer.logits` refuses.
        """
        self.check_text(text, second_text)
        with self._lock:
            pair = self._pair(second_text)
            return attribute_words(self.scorer, text, text_pair=pair, max_words=self.limits.words)

    def check_text(self, text: str, second_text: str = "") -> None:
        """Validate a text before a model reads it.

        Raises:
            TaskHeadsError: no text, or too many characters.
        """
        problems = self._too_long("text", text, second_text)
        if not text.strip():
            problems.append(Problem("text", "found none", "a text", "write one", code="text-empty"))
        if problems:
            raise TaskHeadsError(problems)

    def _pair(self, second_text: str) -> str | None:
        """Return the second text of a model of pairs, and None for a model of single texts without one."""
        return second_text if second_text or self.scorer.needs_pairs else None

    def _too_long(self, name: str, *texts: str) -> list[Problem]:
        size, limit = sum(map(len, texts)), self.limits.characters
        if size <= limit:
            return []
        found, expected = f"found {size:,} characters", f"at most {limit:,}"
        return [Problem(name, found, expected, "shorten it", code="request-too-large")]

    def _in_words(self, prediction: Prediction, threshold: float | None) -> str:
        if prediction.scores:
            if prediction.score is not None:
                return f"{prediction.score:.{DIGITS}f}"
            return ", ".join(f"{name} {score:.{DIGITS}f}" for name, score in prediction.scores.items())
        if prediction.labels is not None:
            return ", ".join(prediction.labels) or "(no label reaches its threshold)"
        if prediction.label is None:
            return f"(no label: the best probability, {prediction.probability:.3f}, is below {threshold:.3f})"
        if prediction.expected_rank is None:
            return prediction.label
        last = self.scorer.config.num_labels - 1
        return f"{prediction.label} (expected rank {prediction.expected_rank:.2f} of 0 to {last})"


def coverage_note(curve: Sequence[Mapping[str, float]], threshold: float) -> str:
    """Return what a threshold means on the dev rows, from the stored risk-coverage curve.

    Example:
        >>> from qwen_task_heads.demo.answers import coverage_note
        >>> curve = [{"coverage": 1.0, "confidence": 0.4, "error": 0.1, "upper": 0.13},
        ...          {"coverage": 0.5, "confidence": 0.8, "error": 0.01, "upper": 0.03}]
        >>> coverage_note(curve, 0.7)
        'Of the dev rows 50% are labelled, 1.0% of them wrongly (95%: at most 3.0%).'
    """
    if not curve:
        return "The model has no stored risk-coverage curve."
    covered = [row for row in curve if row["confidence"] >= threshold]
    if not covered:
        return "No point of the stored curve has this confidence: under 5% of the dev rows are labelled."
    row = max(covered, key=lambda row: row["coverage"])
    return (
        f"Of the dev rows {row['coverage']:.0%} are labelled, {row['error']:.1%} of them wrongly "
        f"(95%: at most {row['upper']:.1%})."
    )
