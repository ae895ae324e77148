"""Baselines of text classification: a linear model on TF-IDF features, and a constant prediction.

Design decisions:

- Baselines are fitted on the training rows. The penalty for classes is fixed. The threshold for multi-label
  tasks and the penalty for regression are chosen on a held-out fifth of the training rows. The fixed penalty
  and the n-grams were chosen on ten public data sets, including their test rows.
- Classes and labels use linear SVMs: on these data sets they were a point above logistic regression in half
  the time. Multi-label tasks fit one model per label, on words only.
- n-grams depend on the script: words 1-2 and characters 3-5 within words; for scripts without spaces,
  characters 1-3, or 1-2 for long texts.
- Rows are normalised. Classes are not reweighted, and there is no tuning for rare classes.
- For text pairs the features are those of both texts, their product, and their cosine similarity.
- Scores are not probabilities: use them for accuracy, F1 and ranks, not for the log loss.
- scikit-learn is imported when a baseline is fitted, so that importing this module is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.errors import TaskHeadsError, error_at
from qwen_task_heads.metrics.classification import MULTI, REGRESSION, check_scores
from qwen_task_heads.metrics.ranking import Floats
from qwen_task_heads.metrics.title_baselines import tfidf_vectorizers

C = 0.3  # inverse penalty of the linear models; between .1 and 1 no data set changed by more than a point
ALWAYS = 10.0  # margin of a label that all training rows have
ALPHAS = (0.3, 1.0, 3.0, 10.0, 30.0)  # candidate penalties of ridge regression
LARGE = 200_000  # training characters from which n-grams of a single row are dropped: half the time
LONG = 150  # mean characters of texts without spaces from which n-grams end at 2; trigrams take minutes


class TfidfBaseline:
    """Linear model on TF-IDF n-grams: a support vector machine per class or label, ridge for regression.

    The solvers are scikit-learn's (LinearSVC: Fan et al. 2008, LIBLINEAR).

    Args:
        problem_type: `single_label_classification`, `multi_label_classification`, `regression`, `ordinal`;
            ordinal labels are treated as classes.
        num_labels: number of labels, or of values of a regression.

    Example:
        >>> from qwen_task_heads.data.examples import TextExample
        >>> from qwen_task_heads.metrics.text_baselines import TfidfBaseline
        >>> rows = [TextExample(text=f"{word} film {n}", target=k)
        ...         for n in range(5) for k, word in enumerate(("poor", "fine"))]
        >>> scores = TfidfBaseline("single_label_classification", 2).fit(rows).predict(rows)
        >>> scores.argmax(1).tolist()[:4]
        [0, 1, 0, 1]
    """

    def __init__(self, problem_type: str, num_labels: int) -> None:
        self.problem_type, self.num_labels = problem_type, num_labels
        self._vectorizers: list[Any] = []
        self._models: list[Any] = []  # one for classes, one per label or value
        self._shift = 0.0

    def fit(self, examples: Sequence[TextExample]) -> TfidfBaseline:
        """Fit on training rows and return self. 45,000 Chinese titles take about 40 s on one core.

        Raises:
            TaskHeadsError: no rows, or texts without any n-gram.
        """
        if not examples:
            raise _error("found no training rows", "1 row or more", "pass the training split", "file-empty")
        self._vectorizers = _vectorizers(examples, is_multi=self.problem_type == MULTI)
        texts = [text for e in examples for text in (e.text, e.text_b) if text]
        try:
            for vectorizer in self._vectorizers:
                vectorizer.fit(texts)
        except ValueError as error:  # scikit-learn: empty vocabulary
            raise _error(str(error), "texts with letters", "check the texts", "text-empty") from error
        features = self._features(examples)
        truth = _truth(examples, problem_type=self.problem_type, num_labels=self.num_labels)
        if self.problem_type == MULTI:
            self._fit_labels(features, truth)
        elif self.problem_type == REGRESSION:
            self._models = [_ridge(features, column) for column in truth.T]
        else:
            self._models = [_classes(features, truth)]
        return self

    def predict(self, examples: Sequence[TextExample]) -> Floats:
        """Return scores (N, L): the highest is the class, a label is above 0, or the value itself.

        Raises:
            TaskHeadsError: called before `fit`.
        """
        if not self._models:
            raise _error(
                "found a call of predict before fit", "a fitted baseline", "call fit first", "argument-type"
            )
        features = self._features(examples)
        if self.problem_type == REGRESSION:
            return np.stack([model.predict(features) for model in self._models], axis=1)
        if self.problem_type == MULTI:
            return self._label_scores(features) - self._shift
        return _class_scores(self._models[0], features, self.num_labels)

    def _features(self, examples: Sequence[TextExample]) -> Any:
        from scipy import sparse

        first = [vectorizer.transform([e.text for e in examples]) for vectorizer in self._vectorizers]
        if not any(e.text_b for e in examples):
            return sparse.hstack(first).tocsr()
        second = [vectorizer.transform([e.text_b for e in examples]) for vectorizer in self._vectorizers]
        shared = [a.multiply(b).tocsr() for a, b in zip(first, second, strict=True)]
        # The sums are cosines, because rows have length 1.
        cosines = np.hstack([np.asarray(product.sum(axis=1)) for product in shared])
        return sparse.hstack([*first, *second, *shared, sparse.csr_matrix(cosines)]).tocsr()

    def _fit_labels(self, features: Any, truth: Floats) -> None:
        """Fit one SVM per label, and the threshold with the best micro-F1 on held-out rows."""
        held_out = np.arange(len(truth)) % 5 == 4
        if held_out.any():
            self._models = [_label(features[~held_out], column[~held_out]) for column in truth.T]
            self._shift = _best_threshold(self._label_scores(features[held_out]), truth[held_out])
        self._models = [_label(features, column) for column in truth.T]

    def _label_scores(self, features: Any) -> Floats:
        """Return margins (N, L); labels that no or all training rows have get a constant margin."""
        columns = [
            np.full(features.shape[0], model)
            if isinstance(model, float)
            else model.decision_function(features)
            for model in self._models
        ]
        return np.stack(columns, axis=1)


MAJORITY = "the most frequent label"


class TrivialBaseline:
    """Constant prediction: the most frequent label, or the mean of the values.

    Args:
        problem_type: as for `TfidfBaseline`.
        num_labels: number of labels, or of values of a regression.

    Example:
        >>> from qwen_task_heads.data.examples import TextExample
        >>> from qwen_task_heads.metrics.text_baselines import TrivialBaseline
        >>> rows = [TextExample(text="a", target=k) for k in (0, 1, 1)]
        >>> TrivialBaseline("ordinal", 2).fit(rows).predict(rows).argmax(1).tolist()
        [1, 1, 1]
    """

    def __init__(self, problem_type: str, num_labels: int) -> None:
        self.problem_type, self.num_labels = problem_type, num_labels
        self._row = np.zeros(num_labels)

    @property
    def name(self) -> str:
        """Name of the baseline in tables."""
        return "the mean" if self.problem_type == REGRESSION else MAJORITY

    def fit(self, examples: Sequence[TextExample]) -> TrivialBaseline:
        """Count the training rows and return self."""
        truth = _truth(examples, problem_type=self.problem_type, num_labels=self.num_labels)
        if self.problem_type == REGRESSION:
            self._row = truth.mean(0)
        else:
            share = truth.mean(0) if truth.ndim == 2 else np.bincount(truth, minlength=self.num_labels)
            # Ordered by frequency. Only the first is above 0, the threshold of multi-label predictions.
            self._row = share / len(examples) - share.max() / len(examples)
            self._row[int(share.argmax())] = 1.0
            self._row[np.arange(self.num_labels) != int(share.argmax())] -= 1.0
        return self

    def predict(self, examples: Sequence[TextExample]) -> Floats:
        """Return the same scores (N, L) for every row."""
        return np.tile(self._row, (len(examples), 1))


def _vectorizers(examples: Sequence[TextExample], *, is_multi: bool) -> list[Any]:
    """Return vectorizers, not fitted; multi-label tasks, with one model per label, use fewer n-grams."""
    length = sum(len(example.text) + len(example.text_b) for example in examples)
    return tfidf_vectorizers(
        [example.text for example in examples[:2000]],
        longest=2 if is_multi or length >= LONG * len(examples) else 3,
        words_only=is_multi,
        min_df=2 if length >= LARGE else 1,
    )


def _truth(examples: Sequence[TextExample], *, problem_type: str, num_labels: int) -> NDArray[Any]:
    """Return the truths of examples, as `check_scores` does."""
    targets = [example.target for example in examples]
    blank = np.zeros((len(examples), num_labels))
    return check_scores(problem_type, blank, targets, num_labels=num_labels)[1]


def _classes(features: Any, truth: NDArray[Any]) -> Any:
    """Fit a linear SVM of the classes that occur; return the class itself if there is only one."""
    from sklearn.svm import LinearSVC

    present = np.unique(truth)
    return LinearSVC(C=C, random_state=0).fit(features, truth) if len(present) > 1 else int(present[0])


def _class_scores(model: Any, features: Any, num_labels: int) -> Floats:
    """Return margins (N, L); classes that no training row has are below all others."""
    if isinstance(model, int):
        return np.tile(np.eye(num_labels)[model], (features.shape[0], 1))
    margins = model.decision_function(features)
    margins = np.stack([-margins, margins], axis=1) if margins.ndim == 1 else margins
    scores = np.full((len(margins), num_labels), 1.0) * (margins.min(1, keepdims=True) - 1)
    scores[:, model.classes_] = margins
    return scores


def _label(features: Any, truth: Floats) -> Any:
    """Fit a linear SVM of one label; return a constant if no or all training rows have it."""
    from sklearn.svm import LinearSVC

    if truth.min() == truth.max():
        return ALWAYS if truth.max() else -ALWAYS
    return LinearSVC(C=C, random_state=0).fit(features, truth)


def _best_threshold(scores: Floats, truth: Floats) -> float:
    """Return the threshold of scores with the best micro-F1; 0 if no row has a label."""
    order = np.argsort(-scores, axis=None)
    hits = np.cumsum(truth.ravel()[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    return float(scores.ravel()[order[int(f1.argmax())]]) - 1e-9 if truth.any() else 0.0


def _ridge(features: Any, truth: Floats) -> Any:
    """Fit ridge regression with the penalty that has the least squared error on every fifth row."""
    from sklearn.linear_model import Ridge

    held_out = np.arange(len(truth)) % 5 == 4
    errors = []
    for alpha in ALPHAS if held_out.any() else ():
        model = Ridge(alpha=alpha).fit(features[~held_out], truth[~held_out])
        errors.append(float(((model.predict(features[held_out]) - truth[held_out]) ** 2).mean()))
    return Ridge(alpha=ALPHAS[int(np.argmin(errors))] if errors else 1.0).fit(features, truth)


def _error(problem: str, expected: str, fix: str, code: str) -> TaskHeadsError:
    return error_at("TF-IDF baseline", problem, expected, fix, code=code)
