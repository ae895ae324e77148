"""Metrics and baselines of models with several questions: per question, and the mean over the questions.

A row counts for the questions that it answers. The answer of a soft label is its most probable option; a
`noul` is measured as a question with the options false and true. Metrics have the name of their question
before a dot, such as `intent.accuracy`. `mean_accuracy` and `mean_macro_f1` are means over the questions,
each of which has the same weight. Intervals are those of `classification`, over groups of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.errors import error_at
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS, options_of, sizes_of
from qwen_task_heads.metrics.classification import (
    DEV_METRICS,
    MEANS,
    ORDINAL,
    RESAMPLES,
    SINGLE,
    check_scores,
    dev_metrics,
    member_numbers,
    metric_ends,
)
from qwen_task_heads.metrics.ranking import Floats, Metric
from qwen_task_heads.metrics.weighted import (
    Measures,
    Weighted,
    bootstrap,
    number,
    of_classes,
    ordinal_metrics,
)

Questions = Sequence[Mapping[str, Any]]
MEAN_OF = {"mean_accuracy": "accuracy", "mean_macro_f1": "macro_f1"}
METRICS = {
    "choice": ("accuracy", "macro_f1", "log_loss"),
    "score": ("quadratic_kappa", "mae", "accuracy", "macro_f1", "log_loss"),
    "noul": ("accuracy", "macro_f1", "log_loss"),
}


@dataclass(frozen=True)
class Answered:
    """The rows that answer a question.

    Args:
        question: of the config.
        rows: their indices (n,).
        scores: (n, K) of its options; for a noul 0 and the logit.
        truth: index of the true option (n,).
    """

    question: Mapping[str, Any]
    rows: NDArray[np.int64]
    scores: Floats
    truth: NDArray[np.int64]

    @property
    def name(self) -> str:
        """Name of the question."""
        return str(self.question["name"])

    @property
    def kind(self) -> str:
        """Problem type by which the question is measured."""
        return ORDINAL if self.question["type"] == "score" else SINGLE

    @property
    def measures(self) -> Measures:
        """Measures of the question on its rows."""
        measure = ordinal_metrics if self.kind == ORDINAL else of_classes
        return measure(self.scores, self.truth, 0.5)


def answered(questions: Questions, logits: ArrayLike, targets: ArrayLike) -> Iterator[Answered]:
    """Yield the answered rows of each question, without a question that no row answers.

    Args:
        questions: of the config.
        logits: (N, L) of all outputs.
        targets: (N, L), as `data.question_records.resolve_record` returns them.

    Raises:
        TaskHeadsError: shapes that differ, no rows, or numbers that are not finite.

    Example:
        >>> from qwen_task_heads.metrics.questions import answered
        >>> asked = [{"name": "refund", "type": "noul"}]
        >>> [one] = answered(asked, [[2.0], [-1.0]], [[1.0], [-1.0]])
        >>> one.rows.tolist(), one.scores.tolist(), one.truth.tolist()
        ([0], [[0.0, 2.0]], [1])
    """
    sizes = sizes_of(questions)
    scores, truth = check_scores(QUESTIONS, logits, targets, num_labels=sum(sizes))
    places = np.cumsum([0, *sizes])
    for question, start, end in zip(questions, places, places[1:], strict=False):
        rows = np.flatnonzero((truth[:, start:end] >= 0).all(1))
        if not len(rows):
            continue
        own, shares = scores[rows, start:end], truth[rows, start:end]
        if question["type"] == "noul":
            own = np.concatenate([np.zeros_like(own), own], axis=1)
            shares = np.concatenate([1 - shares, shares], axis=1)
        yield Answered(question, rows, own, shares.argmax(1))


def question_metrics(
    questions: Questions,
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the metrics of all questions on one split: name to `{value, low, high, n, n_groups}`.

    Args:
        questions, logits, targets: as for `answered`.
        groups, resamples, seed: as for `classification_metrics`.

    Returns:
        `mean_accuracy` and `mean_macro_f1`; then for each question its accuracy, macro-F1, log loss and ECE,
        and of a score the quadratic kappa and the mean absolute error in levels. `per_class`: a list with
        precision, recall, f1, support and predicted of every option, called `question=option`.

    Raises:
        TaskHeadsError: as for `answered`.

    Example:
        >>> from qwen_task_heads.metrics.questions import question_metrics
        >>> asked = [{"name": "refund", "type": "noul"}, {"name": "spam", "type": "noul"}]
        >>> logits, targets = [[2.0, 1.0], [-1.0, 3.0]], [[1.0, 0.0], [0.0, -1.0]]
        >>> metrics = question_metrics(asked, logits, targets)
        >>> metrics["mean_accuracy"]["value"], metrics["spam.accuracy"]["n"]
        (0.5, 1)
    """
    parts = [(one, *one.measures) for one in answered(questions, logits, targets)]
    weighted = _weighted([(one, measure) for one, measure, *_ in parts])
    member = member_numbers(groups, len(np.asarray(logits)))
    values = weighted(np.ones((1, len(member))))
    width = max(one.scores.shape[1] for one, *_ in parts)
    draws = bootstrap(weighted, member, width=width, resamples=resamples, seed=seed)
    numbers = {one.name: one.rows for one, *_ in parts}
    metrics: dict[str, Any] = {}
    for name, value in values.items():
        question, _, metric = name.rpartition(".")
        rows = numbers.get(question, np.arange(len(member)))
        count = len(np.unique(member[rows]))
        is_mean = metric in (*MEANS, "mean_accuracy")
        low, high = metric_ends(metric or name, value[0], draws[name], groups=count, is_mean=is_mean)
        metrics[name] = Metric(number(value[0]), low, high, len(rows), count).as_dict()
    per_class = []
    for one, _, plain, own in parts:
        groups_of = len(np.unique(member[one.rows]))
        for name, single in plain.items():
            metrics[f"{one.name}.{name}"] = Metric(single, None, None, len(one.rows), groups_of).as_dict()
        options = options_of(one.question)
        per_class += [
            {"label": f"{one.name}={option}", **row} for option, row in zip(options, own, strict=True)
        ]
    order = [*MEAN_OF, *sorted((name for name in metrics if name not in MEAN_OF), key=_order(questions))]
    return {name: metrics[name] for name in order} | {"per_class": per_class}


def _order(questions: Questions) -> Callable[[str], tuple[int, int]]:
    places = {str(one["name"]): place for place, one in enumerate(questions)}
    kinds = {str(one["name"]): (*METRICS[one["type"]], "ece") for one in questions}

    def key(name: str) -> tuple[int, int]:
        question, _, metric = name.rpartition(".")
        return places[question], kinds[question].index(metric)

    return key


def _weighted(parts: Sequence[tuple[Answered, Weighted]]) -> Weighted:
    """Return all metrics with an interval as one function of row weights (R, N)."""

    def weighted(weights: Floats) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        for one, measure in parts:
            with np.errstate(invalid="ignore", divide="ignore"):  # a draw without a row that answers
                own = measure(weights[:, one.rows])
            found |= {f"{one.name}.{name}": own[name] for name in METRICS[one.question["type"]]}
        means = {
            mean: np.mean([found[f"{one.name}.{name}"] for one, _ in parts], axis=0)
            for mean, name in MEAN_OF.items()
        }
        return means | found

    return weighted


def mean_accuracy_measure(questions: Questions, logits: ArrayLike, targets: ArrayLike) -> Weighted:
    """Return `mean_accuracy` as a function of row weights, for `verdicts.give_verdict`."""
    weighted = _weighted([(one, one.measures[0]) for one in answered(questions, logits, targets)])
    return lambda weights: {"mean_accuracy": weighted(weights)["mean_accuracy"]}


def dev_metrics_of(problem_type: str, questions: Questions = ()) -> Callable[[Any], dict[str, float]]:
    """Return `compute_metrics` for `Trainer` of a problem type; for questions, their means.

    Example:
        >>> import numpy as np
        >>> from transformers import EvalPrediction
        >>> from qwen_task_heads.metrics.questions import dev_metrics_of
        >>> compute = dev_metrics_of("questions", [{"name": "refund", "type": "noul"}])
        >>> compute(EvalPrediction(predictions=np.ones((2, 1)), label_ids=np.ones((2, 1))))
        {'mean_accuracy': 1.0, 'mean_macro_f1': 1.0}
    """
    if problem_type != QUESTIONS:
        return dev_metrics(problem_type)

    def compute(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        parts = [(one, one.measures[0]) for one in answered(questions, logits, prediction.label_ids)]
        values = _weighted(parts)(np.ones((1, len(np.asarray(logits)))))
        return {name: number(values[name][0]) or 0.0 for name in DEV_METRICS[QUESTIONS]}

    return compute


class Baseline(Protocol):
    """A baseline of one question."""

    def fit(self, examples: Sequence[TextExample]) -> Any:
        """Fit on training rows."""

    def predict(self, examples: Sequence[TextExample]) -> Floats:
        """Return scores (N, K)."""


class QuestionBaseline:
    """One baseline per question, fitted on the training rows that answer it.

    Args:
        make: returns a baseline for a problem type and a number of labels, such as `TfidfBaseline`.
        questions: of the config.

    Example:
        >>> from qwen_task_heads.metrics.questions import QuestionBaseline
        >>> from qwen_task_heads.metrics.text_baselines import TrivialBaseline
        >>> rows = [TextExample(text="a", target=(share,)) for share in (1.0, 1.0, -1.0, 0.0)]
        >>> baseline = QuestionBaseline(TrivialBaseline, [{"name": "refund", "type": "noul"}]).fit(rows)
        >>> bool((baseline.predict(rows) > 0).all())
        True
    """

    def __init__(self, make: Callable[[str, int], Baseline], questions: Questions) -> None:
        self._make, self._questions = make, questions
        self._baselines: list[Baseline | None] = []

    def fit(self, examples: Sequence[TextExample]) -> QuestionBaseline:
        """Fit each baseline, and return self."""
        targets = [example.target for example in examples]
        blank = np.zeros((len(examples), sum(sizes_of(self._questions))))
        known = {one.name: one for one in answered(self._questions, blank, targets)}
        self._baselines = []
        for question in self._questions:
            one = known.get(question["name"])
            if one is None:
                self._baselines.append(None)
                continue
            rows = [
                replace(examples[row], target=label)
                for row, label in zip(one.rows.tolist(), one.truth.tolist(), strict=True)
            ]
            baseline = self._make(one.kind, len(options_of(question)))
            baseline.fit(rows)
            self._baselines.append(baseline)
        return self

    def predict(self, examples: Sequence[TextExample]) -> Floats:
        """Return scores (N, L) of the outputs of all questions."""
        if not self._baselines:
            raise error_at(
                "baseline",
                "found a call of predict before fit",
                "a fitted baseline",
                "call fit first",
                code="argument-type",
            )
        columns = []
        for question, baseline in zip(self._questions, self._baselines, strict=True):
            count = len(options_of(question))
            scores = np.zeros((len(examples), count)) if baseline is None else baseline.predict(examples)
            columns.append(scores[:, 1:] - scores[:, :1] if question["type"] == "noul" else scores)
        return np.concatenate(columns, axis=1)
