"""Convert logits to predictions with label names, by the problem type of the model.

| problem type | answer | options |
|---|---|---|
| single_label_classification | `label`, softmax `probabilities` | `top_k`, `abstain`, `max_error` |
| multi_label_classification | `labels` (maybe none), sigmoid `probabilities` | `top_k`, `threshold` |
| regression | `score`, or one per output in `scores` | none |
| ordinal | `label` (the most probable), `probabilities`, `expected_rank` | `top_k`, `abstain`, `max_error` |
| questions | `answers`: a prediction per question | `top_k`, `abstain` |

The answer of a `choice` is that of a single-label model, the answer of a `score` that of an ordinal one, and
the answer of a `noul` that of a single-label model with the labels false and true.

An option that a problem type does not have is refused instead of ignored. Probabilities are computed in
float64, so that they sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.hubcode.pooling_task_heads import option_scores
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS, options_of, slices_of
from qwen_task_heads.inference.inputs import in_place, rows_of, without

OPTIONS = {
    "single_label_classification": ("top_k", "abstain", "max_error"),
    "multi_label_classification": ("top_k", "threshold"),
    "regression": (),
    "ordinal": ("top_k", "abstain", "max_error"),
    QUESTIONS: ("top_k", "abstain"),
}
THRESHOLD = 0.5
DIGITS = 6  # decimals in files; float32 has no more, and the last one may differ between machines


@dataclass(frozen=True)
class Prediction:
    """Prediction for one text. Fields that the problem type does not have are empty.

    Args:
        text: the text as given.
        text_b: the second text of a pair, or "".
        label: name of the label; None if the model abstains, and for multi-label and regression.
        labels: for multi-label, the names with a probability at or over the threshold, best first.
        score: for regression with one output.
        scores: for regression, by output name.
        probabilities: probability of every label by name, in the order of the ids.
        ranked: (name, probability), best first; the first `top_k`, or all.
        expected_rank: for ordinal, the mean of the label's id (0..K-1) under the probabilities.
        answers: for a model with several questions, the prediction of each question by its name.
        error: the error of an invalid row that was kept; else None.
    """

    text: str
    text_b: str = ""
    label: str | None = None
    labels: tuple[str, ...] | None = None
    score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    probabilities: dict[str, float] = field(default_factory=dict)
    ranked: tuple[tuple[str, float], ...] = ()
    expected_rank: float | None = None
    answers: dict[str, Prediction] = field(default_factory=dict)
    error: str | None = None

    @property
    def probability(self) -> float | None:
        """Probability of the best label, for single-label and ordinal models; else None."""
        if self.labels is not None or not self.probabilities:
            return None
        return max(self.probabilities.values())

    def as_dict(self, *, digits: int | None = DIGITS) -> dict[str, Any]:
        """Return the prediction for JSON, without the text and empty fields.

        `probabilities` are those of `ranked`, best first; an abstention is a `label` of null. An invalid row
        that was kept has only its `error`.

        Args:
            digits: decimals of numbers; None for all.
        """
        if self.error is not None:
            return {"error": self.error}
        if self.answers:
            return {"answers": {name: one.as_dict(digits=digits) for name, one in self.answers.items()}}

        def rounded(number: float) -> float:
            return number if digits is None else round(number, digits)

        if self.scores:
            scores = {name: rounded(score) for name, score in self.scores.items()}
            return {"score": next(iter(scores.values()))} if len(scores) == 1 else {"scores": scores}
        row: dict[str, Any] = {}
        if self.labels is not None:
            row["labels"] = list(self.labels)
        elif self.probability is not None:
            row["label"] = self.label
            row["probability"] = rounded(self.probability)
        if self.expected_rank is not None:
            row["expected_rank"] = rounded(self.expected_rank)
        row["probabilities"] = {name: rounded(probability) for name, probability in self.ranked}
        return row


@dataclass(frozen=True)
class RankedTitle:
    """A title with its score, its rank (1 is best) and the probability that it is the best of its list.

    An invalid row that was kept has an `error`, no rank, and NaN for score and probability.
    """

    title: str
    score: float
    probability: float
    rank: int | None
    error: str | None = None


class FailedScore(float):
    """Score of an invalid row that was kept: NaN, with its `error`.

    Example:
        >>> from qwen_task_heads.inference.predictions import FailedScore
        >>> score = FailedScore("titles[0]: found ''")
        >>> score == score, score.error
        (False, "titles[0]: found ''")
    """

    error: str

    def __new__(cls, error: str) -> FailedScore:
        """Create NaN with an error."""
        score = super().__new__(cls, "nan")
        score.error = error
        return score

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]  # that of float returns its value
        return (self.error,)

    def __repr__(self) -> str:
        return f"FailedScore({self.error!r})"


def answer_columns(config: Any) -> list[str]:
    """Return the keys of `Prediction.as_dict` for a model; `score` for a title scorer."""
    kind = problem_type_of(config)
    if kind == "regression":
        return ["score" if config.num_labels == 1 else "scores"]
    if kind == "multi_label_classification":
        return ["labels", "probabilities"]
    if kind == QUESTIONS:
        return ["answers"]
    return ["label", "probability", *(["expected_rank"] if kind == "ordinal" else []), "probabilities"]


def arrow_type(key: str) -> Any:
    """Return the Arrow type of an answer in a table, where the values of all labels or titles are lists.

    Args:
        key: of `answer_columns` (`score` for each output of a regression), of a list of titles, or a column
            of every model: `error`, `model_revision`, `model_hash`.

    Example:
        >>> from qwen_task_heads.inference.predictions import arrow_type
        >>> arrow_type("labels")
        ListType(list<item: string>)
    """
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    types = dict.fromkeys(("label", "best", "error", "model_revision", "model_hash"), text)
    types |= dict.fromkeys(("probability", "expected_rank", "score"), number)
    types |= dict.fromkeys(("probabilities", "scores"), pa.list_(number))
    fields = ("label", "probability", "expected_rank", "probabilities")
    answer = pa.struct([("question", text), *((name, types[name]) for name in fields)])
    types["answers"] = pa.list_(answer)
    return {**types, "labels": pa.list_(text)}[key]


def check_options(
    config: Any,
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    abstain: float | None = None,
    max_error: float | None = None,
) -> float | None:
    """Validate the options of a prediction for a model; return the probability below which it abstains.

    Raises:
        TaskHeadsError: one problem per option that the problem type does not have or that is out of range;
            or a `max_error` that the model does not support, see `confidence_for`.
    """
    problems, problem_type = [], problem_type_of(config)
    options = {"top_k": top_k, "threshold": threshold, "abstain": abstain, "max_error": max_error}
    for name, value in options.items():
        if value is None:
            continue
        found, code = f"found {shorten(value)}", "option-range"
        if name not in OPTIONS[problem_type]:
            found, code = f"found {value} with a {problem_type} model", "option-unsupported"
            fitting = " or ".join(kind for kind, names in OPTIONS.items() if name in names)
            problems.append(Problem(name, found, f"a {fitting} model", "drop it", code=code))
        elif name == "top_k":
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                expected = "an integer of 1 or more; all labels if there are fewer"
                problems.append(Problem(name, found, expected, "choose such as 3", code=code))
        elif not 0 <= value <= 1:
            expected = "a probability from 0 to 1"
            problems.append(Problem(name, found, expected, "choose such as 0.5", code=code))
    if abstain is not None and max_error is not None:
        found = "found max_error and abstain"
        problems.append(Problem("max_error", found, "one of the two", "drop one", code="option-conflict"))
    if problems:
        raise TaskHeadsError(problems)
    return abstain if max_error is None else confidence_for(max_error, config)


def confidence_for(max_error: float, config: Any) -> float:
    """Return the probability below which a model abstains, for a maximal error rate.

    The rate is compared with the upper end of the 95% interval of the error on dev, because the error itself
    is biased low after this choice. Among the coverages within the rate, the largest is chosen.

    Args:
        max_error: share of wrong answers among those given.
        config: config of the model, with a stored risk-coverage curve.

    Raises:
        TaskHeadsError: a config without the curve, or a rate below all rates of the curve.

    Source: Geifman & El-Yaniv 2017, https://arxiv.org/abs/1705.08500.

    Example:
        >>> from qwen_task_heads import PooledClassifierConfig
        >>> from qwen_task_heads.inference.predictions import confidence_for
        >>> curve = [{"coverage": 1.0, "confidence": 0.4, "error": 0.1, "upper": 0.13},
        ...          {"coverage": 0.5, "confidence": 0.8, "error": 0.01, "upper": 0.03}]
        >>> confidence_for(0.05, PooledClassifierConfig(calibration={"risk_coverage": curve}))
        0.8
    """
    # The config of a generative classifier does not have the field.
    curve = (config.__dict__.get("calibration") or {}).get("risk_coverage")
    if not curve:
        raise error_at(
            "max_error",
            f"found {max_error} with a model without a risk-coverage curve",
            "a model with a risk-coverage curve",
            "give abstain, or train it again",
            code="option-unsupported",
        )
    fitting = [row for row in curve if row["upper"] <= max_error]
    if not fitting:
        lowest = math.ceil(1000 * min(row["upper"] for row in curve)) / 1000
        raise error_at(
            "max_error",
            f"found {max_error:g}",
            f"{lowest:g} or more, the lowest rate that the dev rows support",
            f"give {lowest:g}, or abstain",
            code="option-range",
        )
    return float(max(fitting, key=lambda row: row["coverage"])["confidence"])


def problem_type_of(config: Any) -> str:
    """Return the problem type of a config; if it has none, the type that the loss would assume."""
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")


def thresholds_of(config: Any, threshold: float | None = None) -> list[float]:
    """Return the thresholds (L) of a multi-label model: the given one, else those of its config, else 0.5."""
    if threshold is not None:
        return [threshold] * config.num_labels
    return list(config.label_thresholds or [THRESHOLD] * config.num_labels)


def to_predictions(
    logits: torch.Tensor,
    config: Any,
    *,
    texts: Iterable[str],
    text_pairs: Iterable[str] | None = None,
    errors: Mapping[int, str] | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
    abstain: float | None = None,
    max_error: float | None = None,
) -> list[Prediction]:
    """Convert logits (N, L) to N predictions; with errors, to one more for each invalid row.

    Args:
        logits: logits of a `PooledClassifier`; for an ordinal one they are log-probabilities.
        config: config of the model, with the problem type and the names of the labels.
        texts: the N texts, and the invalid rows at their indices.
        text_pairs: as many second texts, or None.
        errors: errors of invalid rows, which have no logits, by their index.
        top_k, threshold, abstain, max_error: see `Scorer.predict`.

    Raises:
        TaskHeadsError: an option that the problem type does not have, or a value out of range.

    Example:
        >>> import torch
        >>> from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
        >>> from qwen_task_heads.inference.predictions import to_predictions
        >>> config = PooledClassifierConfig(id2label={0: "sport", 1: "trade"})
        >>> [sure, unsure] = to_predictions(
        ...     torch.tensor([[2.0, 0.0], [0.1, 0.0]]), config, texts=["a match", "a fair"], abstain=0.6
        ... )
        >>> sure.label, round(sure.probabilities["sport"], 3), unsure.label
        ('sport', 0.881, None)
    """
    kind = problem_type_of(config)
    abstain = check_options(config, top_k=top_k, threshold=threshold, abstain=abstain, max_error=max_error)
    names = [config.id2label[index] for index in range(config.num_labels)]
    bad, rows = errors or {}, rows_of("texts", texts)
    seconds = [""] * len(rows) if text_pairs is None else rows_of("text_pairs", text_pairs)
    failed = {place: Prediction(rows[place], seconds[place], error=error) for place, error in bad.items()}
    given = list(zip(without(rows, bad), without(seconds, bad), strict=True))
    values = logits.double()
    if kind == QUESTIONS:
        answered = _answers(values, config, given, top_k=top_k, abstain=abstain)
        return in_place(answered, failed)
    if kind == "regression":
        predictions = [
            Prediction(
                text, pair, score=row[0] if len(row) == 1 else None, scores=dict(zip(names, row, strict=True))
            )
            for (text, pair), row in zip(given, values.tolist(), strict=True)
        ]
        return in_place(predictions, failed)
    several = kind == "multi_label_classification"
    probabilities = values.sigmoid() if several else values.softmax(1)  # (N, L)
    least = thresholds_of(config, threshold) if several else ()
    answers = []
    for (text, pair), row in zip(given, probabilities.tolist(), strict=True):
        if not several:
            ordinal = kind == "ordinal"
            one = _of_one_label((text, pair), row, names, is_ordinal=ordinal, top_k=top_k, abstain=abstain)
            answers.append(one)
            continue
        best, common = _probabilities(row, names, top_k=top_k)
        labels = tuple(names[index] for index in best if row[index] >= least[index])
        answers.append(Prediction(text, pair, labels=labels, **common))
    return in_place(answers, failed)


def _probabilities(
    row: list[float], names: list[str], *, top_k: int | None
) -> tuple[list[int], dict[str, Any]]:
    """Return the ids, best first, and the fields of the probabilities of all labels."""
    best = sorted(range(len(row)), key=lambda index: -row[index])  # ties keep the order of the ids
    return best, {
        "probabilities": dict(zip(names, row, strict=True)),
        "ranked": tuple((names[index], row[index]) for index in best[:top_k]),
    }


def _of_one_label(
    pair: tuple[str, str], row: list[float], names: list[str], *, is_ordinal: bool, **options: Any
) -> Prediction:
    """Return the prediction of one of several labels, from their probabilities."""
    best, common = _probabilities(row, names, top_k=options["top_k"])
    sure = options["abstain"] is None or row[best[0]] >= options["abstain"]
    rank = sum(index * value for index, value in enumerate(row)) if is_ordinal else None
    return Prediction(*pair, label=names[best[0]] if sure else None, expected_rank=rank, **common)


def _answers(
    logits: torch.Tensor, config: Any, texts: list[tuple[str, str]], **options: Any
) -> list[Prediction]:
    """Return a prediction for each text with an answer to each question of the model."""
    answers: list[dict[str, Prediction]] = [{} for _ in texts]
    slices = slices_of(config.questions)
    for question in config.questions:
        name, names, ordinal = question["name"], options_of(question), question["type"] == "score"
        scores = option_scores(logits[:, slices[name]], question).exp()
        for pair, row, answer in zip(texts, scores.tolist(), answers, strict=True):
            answer[name] = _of_one_label(pair, row, names, is_ordinal=ordinal, **options)
    return [Prediction(*pair, answers=answer) for pair, answer in zip(texts, answers, strict=True)]
