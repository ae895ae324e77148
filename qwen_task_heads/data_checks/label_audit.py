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

from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data_checks.checked_data import full_text
from qwen_task_heads.metrics.classification import MULTI, SINGLE
from qwen_task_heads.metrics.text_baselines import TfidfBaseline
from qwen_task_heads.metrics.title_baselines import TfidfBradleyTerry
from qwen_task_heads.metrics.weighted import log_softmax
from qwen_task_heads.sources.keys import text_key

Floats = NDArray[np.float64]
# Fits on the rows of one list and returns logits (N, L) of another; margins (N,) for pairs.
FitAndScore = Callable[[Sequence[Any], Sequence[Any]], Floats]
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
        temperature: by which the logits were divided.
    """

    order: NDArray[np.int64]
    wrong: int
    confidence: Floats
    suggested: NDArray[np.int64]
    accuracy: float
    temperature: float


def audit_labels(
    rows: Sequence[TextExample],
    *,
    num_labels: int,
    problem_type: str = SINGLE,
    fit_and_score: FitAndScore | None = None,
    seed: int = 0,
) -> LabelAudit:
    """Audit the labels of texts.

    Args:
        rows: N texts with ids as targets.
        num_labels: L.
        problem_type: `single_label_classification`, `ordinal` or `multi_label_classification`.
        fit_and_score: model of a fold; None for TF-IDF and linear support vector machines.
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

    fit = fit_and_score or _tfidf(problem_type, num_labels)
    logits = out_of_fold(rows, fit, width=num_labels, seed=seed)
    if problem_type == MULTI:
        return _audit_sets(rows, logits)
    targets = np.array([row.target for row in rows])
    temperature = _temperature(logits, targets)
    probabilities = _softmax(logits / temperature)
    confidence = get_label_quality_scores(targets, probabilities, method="self_confidence")
    return LabelAudit(
        order=np.argsort(confidence, kind="stable"),
        wrong=int(num_label_issues(targets, probabilities)),
        confidence=confidence,
        suggested=probabilities.argmax(1),
        accuracy=float((probabilities.argmax(1) == targets).mean()),
        temperature=temperature,
    )


def audit_pairs(
    rows: Sequence[PairExample], *, fit_and_score: FitAndScore | None = None, seed: int = 0
) -> LabelAudit:
    """Audit the preferences of pairs: which chosen titles are likely the worse ones.

    The probability of a row is that of an out-of-fold Bradley-Terry model. If votes or clicks give a
    probability of their own, the two are combined as independent evidence: their log-odds are added.

    Args:
        rows: N pairs; pairs of a group are in one fold.
        fit_and_score: model of a fold, which returns margins (N,); None for TF-IDF.
        seed: of the folds.

    Example:
        >>> rows = [PairExample(chosen=f"good {n}", rejected=f"bad {n}") for n in range(40)]
        >>> rows[3] = PairExample(chosen="bad 3", rejected="good 3")
        >>> int(audit_pairs(rows).order[0])
        3
    """
    margins = out_of_fold(rows, fit_and_score or _tfidf_pairs, width=0, seed=seed)
    temperature = _temperature(np.stack([-margins, margins], 1) / 2, np.ones(len(rows), np.int64))
    odds = margins / temperature
    for row, pair in enumerate(rows):
        if pair.preference is not None:
            stated = min(max(pair.preference, 1e-6), 1 - 1e-6)
            odds[row] += np.log(stated / (1 - stated))
    confidence = 1 / (1 + np.exp(-odds))
    return LabelAudit(
        order=np.argsort(confidence, kind="stable"),
        wrong=round(float((1 - confidence)[confidence < 0.5].sum())),
        confidence=confidence,
        suggested=(confidence < 0.5).astype(np.int64),
        accuracy=float((margins > 0).mean() + (margins == 0).mean() / 2),
        temperature=temperature,
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
        scores[held_out] = fit_and_score([rows[row] for row in fitted], [rows[row] for row in held_out])
    return scores


def _key(row: Any, is_pairs: bool) -> str:
    if is_pairs:
        return "pair:" + "\n".join(sorted((text_key(row.chosen), text_key(row.rejected))))
    return "text:" + text_key(full_text(row))


def _tfidf(problem_type: str, num_labels: int) -> FitAndScore:
    return lambda fitted, held_out: TfidfBaseline(problem_type, num_labels).fit(fitted).predict(held_out)


def _tfidf_pairs(fitted: Sequence[PairExample], held_out: Sequence[PairExample]) -> Floats:
    model = TfidfBradleyTerry().fit(fitted)
    return model.score([row.chosen for row in held_out]) - model.score([row.rejected for row in held_out])


def _audit_sets(rows: Sequence[TextExample], logits: Floats) -> LabelAudit:
    """Audit rows with several labels."""
    from cleanlab.multilabel_classification import get_label_quality_scores
    from cleanlab.multilabel_classification.filter import find_label_issues

    labels: list[list[int]] = [list(row.target) for row in rows]  # type: ignore[arg-type]
    truth = np.zeros(logits.shape)
    for row, own in enumerate(labels):
        truth[row, own] = 1
    temperature = _temperature_of_sets(logits, truth)
    probabilities = 1 / (1 + np.exp(-logits / temperature))
    confidence = get_label_quality_scores(labels, probabilities)
    suggested = (probabilities > 0.5).astype(np.int64)
    return LabelAudit(
        order=np.argsort(confidence, kind="stable"),
        wrong=int(find_label_issues(labels, probabilities, n_jobs=1).sum()),
        confidence=confidence,
        suggested=suggested,
        accuracy=float((suggested == truth).mean()),
        temperature=temperature,
    )


def _softmax(logits: Floats) -> Floats:
    return np.exp(log_softmax(logits))


def _temperature(logits: Floats, targets: NDArray[np.int64]) -> float:
    """Return the temperature with the smallest log loss of the given labels."""
    rows = np.arange(len(targets))
    return _smallest(lambda value: -float(log_softmax(logits / value)[rows, targets].mean()))


def _temperature_of_sets(logits: Floats, truth: Floats) -> float:
    return _smallest(lambda value: float(np.logaddexp(0, -(2 * truth - 1) * logits / value).mean()))


def _smallest(loss: Callable[[float], float]) -> float:
    """Return the temperature from 0.01 to 100 that minimises a loss."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda power: loss(float(np.exp(power))), bounds=np.log([0.01, 100]), method="bounded"
    )
    return float(np.exp(found.x))
