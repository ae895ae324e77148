"""Rank training rows by how likely their label is wrong: confident learning on out-of-fold predictions.

Each row is scored by a model that was not fitted on it, nor on rows with the same text or group. cleanlab
estimates from these probabilities how many labels are wrong, and the rows are ordered by the probability of
their given label. Source: Northcutt, Jiang & Chuang 2021, arXiv:1911.00068, as in cleanlab's `Datalab`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from qwen_task_heads.data.examples import PairExample, TextExample, full_text
from qwen_task_heads.metrics.classification import MULTI, SINGLE
from qwen_task_heads.metrics.text_baselines import TfidfBaseline
from qwen_task_heads.metrics.title_baselines import TfidfBradleyTerry
from qwen_task_heads.metrics.weighted import log_softmax
from qwen_task_heads.sources.keys import text_key

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
# Fits on some rows, given by their numbers, and returns logits (N, L) of others; margins (N,) for pairs.
FitAndScore = Callable[[Index, Index], Floats]
FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class LabelAudit:
    """Rows by how likely their label is wrong.

    Args:
        order: (N,) row numbers, most suspicious first.
        wrong: estimated number of wrong labels.
        confidence: (N,) out-of-fold probability of the given label; of several labels, the smallest.
        suggested: (N,) or (N, L) label that the model prefers, or truth value of each label.
        accuracy: out-of-fold accuracy against the given labels.
    """

    order: NDArray[np.int64]
    wrong: int
    confidence: Floats
    suggested: NDArray[np.int64]
    accuracy: float


def audit_labels(
    rows: Sequence[TextExample],
    *,
    num_labels: int,
    problem_type: str = SINGLE,
    engines: Sequence[FitAndScore] = (),
    seed: int = 0,
) -> LabelAudit:
    """Audit the labels of texts.

    Args:
        rows: N texts with ids as targets.
        num_labels: L.
        problem_type: `single_label_classification`, `ordinal` or `multi_label_classification`.
        engines: models of a fold, whose probabilities are averaged; TF-IDF with linear support vector
            machines if there are none.
        seed: of the folds.

    Example:
        >>> words = ("bad", "good")
        >>> rows = [TextExample(text=f"{words[n % 2]} film {n}", target=n % 2) for n in range(60)]
        >>> rows[7] = TextExample(text="good film 7", target=0)
        >>> audit = audit_labels(rows, num_labels=2)
        >>> int(audit.order[0]), audit.wrong
        (7, 1)
    """
    from cleanlab.count import num_label_issues
    from cleanlab.rank import get_label_quality_scores

    engines = engines or [tfidf_texts(rows, problem_type, num_labels)]
    logits = [out_of_fold(rows, engine, width=num_labels, seed=seed) for engine in engines]
    if problem_type == MULTI:
        return _audit_sets(rows, logits)
    targets = np.array([row.target for row in rows])
    probabilities = np.mean([softmax(one / temperature_of(one, targets)) for one in logits], axis=0)
    confidence = get_label_quality_scores(targets, probabilities, method="self_confidence")
    return LabelAudit(
        order=np.argsort(confidence, kind="stable"),
        wrong=int(num_label_issues(targets, probabilities)),
        confidence=confidence,
        suggested=probabilities.argmax(1),
        accuracy=float((probabilities.argmax(1) == targets).mean()),
    )


def audit_pairs(
    rows: Sequence[PairExample], *, engines: Sequence[FitAndScore] = (), seed: int = 0
) -> LabelAudit:
    """Audit the preferences of pairs: which chosen titles are likely the worse ones.

    The probability of a row is that of out-of-fold Bradley-Terry models. If votes or clicks give a
    probability of their own, the two are combined as independent: their log-odds are added. The
    number of wrong rows is cleanlab's for two classes, with each pair in both orders.

    Args:
        rows: N pairs; pairs of a group are in one fold.
        engines: models of a fold, which return margins (N,); TF-IDF if there are none.
        seed: of the folds.

    Example:
        >>> rows = [PairExample(chosen=f"good {n}", rejected=f"bad {n}") for n in range(40)]
        >>> rows[3] = PairExample(chosen="bad 3", rejected="good 3")
        >>> audit = audit_pairs(rows)
        >>> int(audit.order[0]), audit.wrong
        (3, 1)
    """
    from cleanlab.count import num_label_issues

    margins = [out_of_fold(rows, engine, width=0, seed=seed) for engine in engines or [tfidf_pairs(rows)]]
    ones = np.ones(len(rows), np.int64)
    odds = np.mean([one / temperature_of(np.stack([-one, one], 1) / 2, ones) for one in margins], axis=0)
    accuracy = float((odds > 0).mean() + (odds == 0).mean() / 2)
    for row, pair in enumerate(rows):
        if pair.preference is not None:
            stated = min(max(pair.preference, 1e-6), 1 - 1e-6)
            odds[row] += np.log(stated / (1 - stated))
    confidence = 1 / (1 + np.exp(-odds))
    sides = np.stack([1 - confidence, confidence], 1)
    both = np.concatenate([sides, sides[:, ::-1]])
    return LabelAudit(
        order=np.argsort(confidence, kind="stable"),
        wrong=round(num_label_issues(np.concatenate([ones, 0 * ones]), both) / 2),
        confidence=confidence,
        suggested=(confidence < 0.5).astype(np.int64),
        accuracy=accuracy,
    )


def out_of_fold(
    rows: Sequence[Any], fit_and_score: FitAndScore, *, width: int, seed: int = 0, folds: int = FOLDS
) -> Floats:
    """Return scores (N, width), or (N,) for width 0, of each row by a model of the other folds.

    Rows with the same text, or of the same group, are in one fold; classes are spread over the folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    is_pairs = isinstance(rows[0], PairExample)
    numbers: dict[str, int] = {}
    groups = [
        numbers.setdefault(f"group:{row.group}" if row.group else _key(row, is_pairs), len(numbers))
        for row in rows
    ]
    strata = [row.target if not is_pairs and isinstance(row.target, int) else 0 for row in rows]
    scores = np.zeros((len(rows), width) if width else len(rows))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label with fewer rows than folds
        parts = list(splitter.split(strata, strata, groups))
    for fitted, held_out in tqdm(parts, desc="Audit", unit="fold", leave=False):
        scores[held_out] = fit_and_score(fitted, held_out)
    return scores


def _key(row: Any, is_pairs: bool) -> str:
    if is_pairs:
        return "pair:" + "\n".join(sorted((text_key(row.chosen), text_key(row.rejected))))
    return "text:" + text_key(full_text(row))


def tfidf_texts(rows: Sequence[TextExample], problem_type: str, num_labels: int) -> FitAndScore:
    """Return the engine of TF-IDF with linear support vector machines."""

    def fit_and_score(fitted: Index, held_out: Index) -> Floats:
        model = TfidfBaseline(problem_type, num_labels).fit([rows[row] for row in fitted])
        return model.predict([rows[row] for row in held_out])

    return fit_and_score


def tfidf_pairs(rows: Sequence[PairExample]) -> FitAndScore:
    """Return the engine of TF-IDF with a Bradley-Terry head."""

    def fit_and_score(fitted: Index, held_out: Index) -> Floats:
        model = TfidfBradleyTerry().fit([rows[row] for row in fitted])
        chosen, rejected = ([vars(rows[row])[side] for row in held_out] for side in ("chosen", "rejected"))
        return model.score(chosen) - model.score(rejected)

    return fit_and_score


def features_texts(
    features: Floats, targets: Sequence[Any], num_labels: int, *, C: float = 0.003
) -> FitAndScore:
    """Return the engine of logistic regression on standardised features (N, H) of a frozen backbone.

    Args:
        features: of all rows.
        targets: N ids, or N tuples of ids for several labels.
        num_labels: L.
        C: inverse strength of the penalty.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    several = isinstance(targets[0], tuple)

    def fit_and_score(fitted: Index, held_out: Index) -> Floats:
        linear: Any = LogisticRegression(C=C, max_iter=300)
        own: Any = [targets[row] for row in fitted]
        if several:
            linear, own = OneVsRestClassifier(linear), multi_hot(own, num_labels)
        model = make_pipeline(StandardScaler(), linear).fit(features[fitted], own)
        scores = model.decision_function(features[held_out])
        if several:
            return np.asarray(scores)
        classes = model.classes_
        if len(classes) == 2:
            scores = np.stack([-scores / 2, scores / 2], 1)
        every = np.full((len(held_out), num_labels), scores.min() - 1)  # labels that no fitted row has
        every[:, classes] = scores
        return every

    return fit_and_score


def features_pairs(chosen: Floats, rejected: Floats, *, C: float = 0.003) -> FitAndScore:
    """Return the engine of a Bradley-Terry head on differences of standardised features, (N, H) each."""
    from sklearn.linear_model import LogisticRegression

    scale = np.concatenate([chosen, rejected]).std(0)
    gaps = (chosen - rejected) / np.where(scale > 0, scale, 1)

    def fit_and_score(fitted: Index, held_out: Index) -> Floats:
        sign = np.where(np.arange(len(fitted)) % 2, -1.0, 1.0)  # the solver needs both classes
        model = LogisticRegression(C=C, fit_intercept=False, max_iter=300)
        model.fit(gaps[fitted] * sign[:, None], sign)
        return np.asarray(model.decision_function(gaps[held_out]))

    return fit_and_score


def multi_hot(labels: Sequence[Any], num_labels: int) -> Floats:
    """Return 1 for each label of a row and 0 for the others (N, num_labels)."""
    truth = np.zeros((len(labels), num_labels))
    for row, own in enumerate(labels):
        truth[row, list(own)] = 1
    return truth


def _audit_sets(rows: Sequence[TextExample], logits: Sequence[Floats]) -> LabelAudit:
    """Audit rows with several labels."""
    from cleanlab.multilabel_classification import get_label_quality_scores
    from cleanlab.multilabel_classification.filter import find_label_issues

    labels: list[list[int]] = [list(row.target) for row in rows]  # type: ignore[arg-type]
    truth = multi_hot(labels, logits[0].shape[1])
    probabilities = np.mean(
        [1 / (1 + np.exp(-one / _temperature_of_sets(one, truth))) for one in logits], axis=0
    )
    confidence = get_label_quality_scores(labels, probabilities)
    suggested = (probabilities > 0.5).astype(np.int64)
    return LabelAudit(
        order=np.argsort(confidence, kind="stable"),
        wrong=int(find_label_issues(labels, probabilities, n_jobs=1).sum()),
        confidence=confidence,
        suggested=suggested,
        accuracy=float((suggested == truth).mean()),
    )


def softmax(logits: Floats) -> Floats:
    """Return probabilities (N, L) of logits (N, L)."""
    return np.exp(log_softmax(logits))


def temperature_of(logits: Floats, targets: NDArray[np.int64]) -> float:
    """Return the temperature with the smallest log loss of the given labels."""
    rows = np.arange(len(targets))
    return _smallest(lambda value: -float(log_softmax(logits / value)[rows, targets].mean()))


def _temperature_of_sets(logits: Floats, truth: Floats) -> float:
    return _smallest(lambda value: float(np.logaddexp(0, -(2 * truth - 1) * logits / value).mean()))


def _smallest(loss: Callable[[float], float]) -> float:
    """Return the temperature from 0.05 to 100 that minimises a loss."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda power: loss(float(np.exp(power))), bounds=np.log([0.05, 100]), method="bounded"
    )
    return float(np.exp(found.x))
