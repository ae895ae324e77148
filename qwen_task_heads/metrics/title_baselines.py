"""Baselines of title scoring: the longer title wins, and Bradley-Terry on TF-IDF features.

Design decisions:

- The TF-IDF baseline is fitted on the training pairs. Its penalty is chosen from a short grid by the log loss
  of a 3-fold cross-validation over groups of the training pairs. The n-grams depend on the script.
- TF-IDF rows are not normalised, so that the baseline can use the length of a title. Cross-validated on the
  training pairs, this gains a point on Japanese ad texts and nothing on English headlines.
- The prompt is not used: it is the same for both titles of a pair and cancels out.
- scikit-learn is imported when a baseline is fitted, so that importing this module is fast.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.sequences import Example, pick
from qwen_task_heads.errors import error_at

# Scripts written without spaces: Thai, Lao, Myanmar, Khmer, Kana and Han with extensions.
_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
)
_LETTER = re.compile(r"[^\W\d_]")
GRID = (0.0003, 0.001, 0.003, 0.01)  # candidate values of C; rows have norms of 20 to 60
FOLDS = 3
MOST_ROWS = 100_000  # limit of rows that TF-IDF is fitted on


def longer_title(pairs: Sequence[PairExample]) -> NDArray[np.float64]:
    """Return 1 per pair (B,) if the chosen title is longer, 0 if it is shorter, .5 for equal lengths.

    Lengths are in characters.

    Example:
        >>> from qwen_task_heads.data.examples import PairExample
        >>> from qwen_task_heads.metrics.title_baselines import longer_title
        >>> longer_title([PairExample(chosen="ten", rejected="a"), PairExample(chosen="a", rejected="b")])
        array([1. , 0.5])
    """
    gaps = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs], dtype=np.float64)
    return 0.5 + 0.5 * np.sign(gaps)


def baseline_rows(
    train: Sequence[Example], messages: list[str], *, what: str = "the TF-IDF baseline"
) -> Sequence[Example]:
    """Return the training rows that a baseline is fitted on: all, or `MOST_ROWS` evenly spaced ones.

    The features of more rows may not fit into memory.

    Args:
        train: examples.
        messages: list to which a message is appended if rows are dropped.
        what: name of the baseline in the message.

    Example:
        >>> len(baseline_rows(range(250_000), messages := [])), messages[0][:55]
        (100000, 'the TF-IDF baseline was fitted on 100,000 of 250,000 tr')
    """
    if len(train) <= MOST_ROWS:
        return train
    messages.append(f"{what} was fitted on {MOST_ROWS:,} of {len(train):,} training rows")
    return pick(train, np.linspace(0, len(train) - 1, MOST_ROWS).astype(np.int64))


class TfidfBradleyTerry:
    """Bradley-Terry scorer, linear in TF-IDF n-grams: logistic regression on differences, no intercept.

    The n-grams are words 1-2 and characters 3-5 within words; for scripts without spaces, characters 1-4.
    Source: Bradley & Terry 1952; TF-IDF and the solver are scikit-learn's.

    Args:
        C: inverse strength of the L2 penalty; None chooses from `GRID`.

    Example:
        >>> from qwen_task_heads.data.examples import PairExample
        >>> from qwen_task_heads.metrics.title_baselines import TfidfBradleyTerry
        >>> pairs = [PairExample(chosen=f"good {x}", rejected=f"bad {x}") for x in ("cat", "dog", "hat")]
        >>> good, bad = TfidfBradleyTerry().fit(pairs).score(["good bird", "bad bird"])
        >>> bool(good > bad)
        True
    """

    def __init__(self, *, C: float | None = None) -> None:
        self.C = C
        self._vectorizers: list[Any] = []
        self._weights: NDArray[np.float64] | None = None

    def fit(self, pairs: Sequence[PairExample]) -> TfidfBradleyTerry:
        """Fit on training pairs and return self. Takes about 4 s for 2,700 English pairs on one core.

        Raises:
            TaskHeadsError: fewer than two pairs, or titles without any n-gram.
        """
        from scipy import sparse

        if len(pairs) < 2:
            raise error_at(
                "TF-IDF baseline",
                f"found {len(pairs)} training pairs",
                "2 or more",
                "pass the training split",
                code="rows-too-few",
            )
        titles = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        vectorizers = tfidf_vectorizers(titles, longest=4, norm=None)
        try:
            features = sparse.hstack([vectorizer.fit_transform(titles) for vectorizer in vectorizers]).tocsr()
        except ValueError as error:  # scikit-learn: empty vocabulary
            raise error_at(
                "TF-IDF baseline", str(error), "titles with letters", "check the titles", code="text-empty"
            ) from error
        difference = features[: len(pairs)] - features[len(pairs) :]  # (B, F), chosen minus rejected
        # LogisticRegression needs both classes. The loss is symmetric: reversing every second pair equals
        # adding all pairs in reverse, at half the cost.
        sign = np.where(np.arange(len(pairs)) % 2, -1.0, 1.0)
        rows = (sparse.diags(sign) @ difference).tocsr()
        if self.C is None:
            self.C = _choose_penalty(rows, sign, [pair.group or str(i) for i, pair in enumerate(pairs)])
        self._vectorizers, self._weights = vectorizers, _solve(rows, sign, self.C)
        return self

    def score(self, titles: Sequence[str]) -> NDArray[np.float64]:
        """Return scores (N,) of titles; `σ` of a difference is P(preferred).

        Raises:
            TaskHeadsError: called before `fit`.
        """
        from scipy import sparse

        if self._weights is None:
            raise error_at(
                "TF-IDF baseline",
                "found a call of score before fit",
                "a fitted baseline",
                "call fit first",
                code="argument-type",
            )
        features = sparse.hstack([vectorizer.transform(titles) for vectorizer in self._vectorizers]).tocsr()
        return np.asarray(features @ self._weights)


def tfidf_vectorizers(
    texts: Sequence[str], *, longest: int, words_only: bool = False, **options: Any
) -> list[Any]:
    """Return TF-IDF vectorizers, not fitted: of words and of characters, by the script of the texts.

    Args:
        texts: sample that shows the script.
        longest: size of the n-grams of characters in a script without spaces.
        words_only: leave out n-grams of characters in other scripts.
        options: of both vectorizers of scikit-learn.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    common = {"sublinear_tf": True, "dtype": np.float64, **options}
    if writes_without_spaces(texts):
        return [TfidfVectorizer(analyzer="char", ngram_range=(1, longest), **common)]
    # The default pattern drops words of one character, such as "a" and "5".
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **common)
    parts = [] if words_only else [TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), **common)]
    return [words, *parts]


def writes_without_spaces(titles: Sequence[str]) -> bool:
    """Return whether most letters of the titles belong to a script without spaces, such as Chinese or Thai.

    Example:
        >>> from qwen_task_heads.metrics.title_baselines import writes_without_spaces
        >>> writes_without_spaces(["草刈り業者チェーン"]), writes_without_spaces(["A plain title"])
        (True, False)
    """
    sample = "".join(titles[:2000])
    return 2 * len(_NO_SPACES.findall(sample)) > len(_LETTER.findall(sample))


def _solve(rows: Any, sign: NDArray[np.float64], C: float) -> NDArray[np.float64]:
    """Return weights (F,) of the logistic regression of `sign` on `rows`."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, fit_intercept=False, max_iter=1000).fit(rows, sign).coef_[0]


def _choose_penalty(rows: Any, sign: NDArray[np.float64], groups: list[str]) -> float:
    """Return the entry of `GRID` with the least cross-validated log loss; the second one for few groups."""
    from sklearn.model_selection import GroupKFold

    if len(set(groups)) < 10 * FOLDS:
        return GRID[1]
    losses = np.zeros(len(GRID))
    for train, held_out in GroupKFold(FOLDS).split(rows, groups=groups):
        for k, C in enumerate(GRID):
            # Both classes occur: signs alternate, and a fold has more than two rows.
            gap = sign[held_out] * (rows[held_out] @ _solve(rows[train], sign[train], C))
            losses[k] += np.logaddexp(0.0, -gap).sum()
    return GRID[int(losses.argmin())]
