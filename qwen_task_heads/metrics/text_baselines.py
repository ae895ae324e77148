"""Floors of text classification: what a linear model on TF-IDF, and no model at all, reach on the same rows.

Design decisions:

- Everything is fitted on the training rows: the penalty is fixed for classes; for several labels the
  threshold, and for values the penalty, are taken on a fifth of the training rows that is held out for
  it. The fixed penalty and the n-grams were settled by looking at ten public sets, their test rows too.
- Linear SVMs throughout, as classes and labels go: on the sets tried they beat logistic regression by a
  point in half the time. Of several labels, each with a model of its own, words alone are read.
- n-grams go by script: words 1-2 and characters 3-5 within words; without spaces, characters 1-3,
  of long texts 1-2.
- Rows are normalised, classes weigh what they weigh, long tails are left alone: a baseline is what an
  afternoon gives, not what a competition does.
- Of pairs the model sees both texts, what they share, and how alike they are.
- Scores are not probabilities: take accuracy, F1 and ranks from them, not the log-loss.
- scikit-learn is imported when a baseline is fitted, so that importing this module stays cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.metrics.classification import MULTI, REGRESSION, check_scores
from qwen_task_heads.metrics.ranking import Floats
from qwen_task_heads.metrics.title_baselines import writes_without_spaces

C = 0.3  # inverse penalty of the linear models; between .1 and 1 no set of ours moved by more than a point
ALWAYS = 10.0  # margin of a label that all training rows have
ALPHAS = (0.3, 1.0, 3.0, 10.0, 30.0)  # penalties of ridge regression to choose from
LARGE = 200_000  # characters to train on, from which n-grams of a single row are left out: half the time
LONG = 150  # mean characters of a text without spaces from which pairs of signs do; triples cost minutes


class TfidfBaseline:
    """Linear model on TF-IDF n-grams: a support vector machine per class or label, ridge for values.

    The solvers are scikit-learn's (LinearSVC: Fan et al. 2008, LIBLINEAR).

    Args:
        problem_type: `single_label_classification`, `multi_label_classification`, `regression`, `ordinal`;
            ordinal labels are taken as classes.
        num_labels: labels, or values of a regression.

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
            raise _problem("no training rows", "1 or more", "give the training split")
        self._vectorizers = _vectorizers(examples, several=self.problem_type == MULTI)
        texts = [text for e in examples for text in (e.text, e.text_b) if text]
        try:
            for vectorizer in self._vectorizers:
                vectorizer.fit(texts)
        except ValueError as error:  # scikit-learn: empty vocabulary
            raise _problem(str(error), "texts with letters", "check the texts") from error
        features, truth = self._features(examples), self._truth(examples)
        if self.problem_type == MULTI:
            self._fit_labels(features, truth)
        elif self.problem_type == REGRESSION:
            self._models = [_ridge(features, column) for column in truth.T]
        else:
            self._models = [_classes(features, truth)]
        return self

    def predict(self, examples: Sequence[TextExample]) -> Floats:
        """Scores (N, L): the highest is the class, over 0 is a label, or the value itself.

        Raises:
            TaskHeadsError: called before `fit`.
        """
        if not self._models:
            raise _problem("predict before fit", "a fitted baseline", "call fit first")
        features = self._features(examples)
        if self.problem_type == REGRESSION:
            return np.stack([model.predict(features) for model in self._models], axis=1)
        if self.problem_type == MULTI:
            return self._label_scores(features) - self._shift
        return _class_scores(self._models[0], features, self.num_labels)

    def _truth(self, examples: Sequence[TextExample]) -> NDArray[Any]:
        blank = np.zeros((len(examples), self.num_labels))
        targets = [example.target for example in examples]
        return check_scores(self.problem_type, blank, targets, num_labels=self.num_labels)[1]

    def _features(self, examples: Sequence[TextExample]) -> Any:
        from scipy import sparse

        first = [vectorizer.transform([e.text for e in examples]) for vectorizer in self._vectorizers]
        if not any(e.text_b for e in examples):
            return sparse.hstack(first).tocsr()
        second = [vectorizer.transform([e.text_b for e in examples]) for vectorizer in self._vectorizers]
        shared = [a.multiply(b).tocsr() for a, b in zip(first, second, strict=True)]
        alike = np.hstack([np.asarray(both.sum(axis=1)) for both in shared])  # cosines, as rows have length 1
        return sparse.hstack([*first, *second, *shared, sparse.csr_matrix(alike)]).tocsr()

    def _fit_labels(self, features: Any, truth: Floats) -> None:
        """One SVM per label, and the threshold with the best micro-F1 on held-out rows."""
        held_out = np.arange(len(truth)) % 5 == 4
        if held_out.any():
            self._models = [_label(features[~held_out], column[~held_out]) for column in truth.T]
            self._shift = _best_threshold(self._label_scores(features[held_out]), truth[held_out])
        self._models = [_label(features, column) for column in truth.T]

    def _label_scores(self, features: Any) -> Floats:
        """Margins (N, L); a label that no training row has, or all have, has the same for every row."""
        columns = [
            np.full(features.shape[0], model)
            if isinstance(model, float)
            else model.decision_function(features)
            for model in self._models
        ]
        return np.stack(columns, axis=1)


MAJORITY = "the most frequent label"


class TrivialBaseline:
    """The same answer for every row: the most frequent label, or the mean of the values.

    Args:
        problem_type: as in `TfidfBaseline`.
        num_labels: labels, or values of a regression.

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
        """What the baseline does, for tables."""
        return "the mean" if self.problem_type == REGRESSION else MAJORITY

    def fit(self, examples: Sequence[TextExample]) -> TrivialBaseline:
        """Count the training rows and return self."""
        blank = np.zeros((len(examples), self.num_labels))
        targets = [example.target for example in examples]
        truth = check_scores(self.problem_type, blank, targets, num_labels=self.num_labels)[1]
        if self.problem_type == REGRESSION:
            self._row = truth.mean(0)
        else:
            share = truth.mean(0) if truth.ndim == 2 else np.bincount(truth, minlength=self.num_labels)
            # by frequency, and over 0 for the first alone: several labels are cut there
            self._row = share / len(examples) - share.max() / len(examples)
            self._row[int(share.argmax())] = 1.0
            self._row[np.arange(self.num_labels) != int(share.argmax())] -= 1.0
        return self

    def predict(self, examples: Sequence[TextExample]) -> Floats:
        """The same scores (N, L) for every row."""
        return np.tile(self._row, (len(examples), 1))


def _vectorizers(examples: Sequence[TextExample], *, several: bool) -> list[Any]:
    """Vectorizers, not fitted; fewer n-grams where several models are fitted to them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    length = sum(len(example.text) + len(example.text_b) for example in examples)
    common = {"sublinear_tf": True, "dtype": np.float64, "min_df": 2 if length >= LARGE else 1}
    if writes_without_spaces([example.text for example in examples[:2000]]):
        longest = 2 if several or length >= LONG * len(examples) else 3
        return [TfidfVectorizer(analyzer="char", ngram_range=(1, longest), **common)]
    # Single characters are words too: "a" against "the" and "5" against "7".
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **common)
    return [words] if several else [words, TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), **common)]


def _classes(features: Any, truth: NDArray[Any]) -> Any:
    """A linear SVM of the classes that occur; the class itself where there is one only."""
    from sklearn.svm import LinearSVC

    present = np.unique(truth)
    return LinearSVC(C=C, random_state=0).fit(features, truth) if len(present) > 1 else int(present[0])


def _class_scores(model: Any, features: Any, num_labels: int) -> Floats:
    """Margins (N, L); classes that no training row has stand below all others."""
    if isinstance(model, int):
        return np.tile(np.eye(num_labels)[model], (features.shape[0], 1))
    margins = model.decision_function(features)
    margins = np.stack([-margins, margins], axis=1) if margins.ndim == 1 else margins
    scores = np.full((len(margins), num_labels), 1.0) * (margins.min(1, keepdims=True) - 1)
    scores[:, model.classes_] = margins
    return scores


def _label(features: Any, truth: Floats) -> Any:
    """A linear SVM of one label; a constant where all training rows agree."""
    from sklearn.svm import LinearSVC

    if truth.min() == truth.max():
        return ALWAYS if truth.max() else -ALWAYS
    return LinearSVC(C=C, random_state=0).fit(features, truth)


def _best_threshold(scores: Floats, truth: Floats) -> float:
    """The score from which predicting a label gives the best micro-F1; 0 where no row has a label."""
    order = np.argsort(-scores, axis=None)
    hits = np.cumsum(truth.ravel()[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    return float(scores.ravel()[order[int(f1.argmax())]]) - 1e-9 if truth.any() else 0.0


def _ridge(features: Any, truth: Floats) -> Any:
    """Ridge regression; the penalty with the least squared error on every fifth row, then all rows."""
    from sklearn.linear_model import Ridge

    held_out = np.arange(len(truth)) % 5 == 4
    errors = []
    for alpha in ALPHAS if held_out.any() else ():
        model = Ridge(alpha=alpha).fit(features[~held_out], truth[~held_out])
        errors.append(float(((model.predict(features[held_out]) - truth[held_out]) ** 2).mean()))
    return Ridge(alpha=ALPHAS[int(np.argmin(errors))] if errors else 1.0).fit(features, truth)


def _problem(found: str, accepted: str, remedy: str) -> TaskHeadsError:
    return TaskHeadsError(Problem("TF-IDF baseline", found, accepted, remedy))
