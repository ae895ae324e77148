"""Baseline of a linear model on the embeddings of a sentence encoder, which is not trained.

The encoder is any model that `sentence-transformers` loads, by repo id or folder. A model of scikit-learn is
fitted on the training rows: logistic regression for classes, and Bradley-Terry for titles (logistic
regression on differences without intercept). Features are standardized. The penalty is the entry of `GRID`
with the lowest log-loss in a cross-validation over groups of train.

Prompts of titles are ignored: both titles of a pair have the same prompt, and it cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, reason_of
from qwen_task_heads.hubs import HUGGINGFACE, resolve
from qwen_task_heads.pretrained import locate
from qwen_task_heads.repo_checks import check_repo

GRID = (0.0003, 0.003, 0.03, 0.3)  # candidates of the inverse penalty, for standardized features
FOLDS = 3
ABSENT = -50.0  # log-probability of a class without training rows
LIBRARY = "sentence_transformers"
Floats = NDArray[np.float64]
Encode = Callable[[Sequence[str]], Floats]


def missing_library(where: str) -> list[Problem]:
    """Return the problem of a missing `sentence-transformers`, or []."""
    if find_spec(LIBRARY) is not None:
        return []
    return [
        Problem(
            where,
            "sentence-transformers is not installed",
            "an installed sentence-transformers",
            'pip install "qwen-task-heads[embeddings]"',
            code="package-missing",
        )
    ]


class Embedder:
    """A sentence encoder.

    Args:
        name: repo id or folder of a model that sentence-transformers loads.
        hub: hub of the id.
        device: device of the model; the default of the library if None.

    Raises:
        TaskHeadsError: sentence-transformers is not installed, or the model does not exist.
    """

    def __init__(
        self, name: str, *, hub: str = HUGGINGFACE, device: str | torch.device | None = None
    ) -> None:
        if problems := missing_library(name):
            raise TaskHeadsError(problems)
        from sentence_transformers import SentenceTransformer

        path, _ = resolve(locate(name), hub=hub)
        try:
            check_repo(path)
            self.model: Any = SentenceTransformer(
                path, device=None if device is None else str(device), trust_remote_code=False
            )
        except TaskHeadsError:
            raise
        except (OSError, ValueError) as error:
            raise error_at(
                name,
                f"the sentence encoder cannot be loaded ({reason_of(error)})",
                "a model of sentence-transformers",
                "check the name and the network",
                code="model-not-found",
            ) from error

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return torch.device(self.model.device)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Return embeddings (N, D) float64 of N texts; equal texts are encoded once."""
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        embeddings = self.model.encode([*places], show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(embeddings, np.float64)[[places[text] for text in texts]]

    def truncation_messages(self, texts: Sequence[str]) -> list[str]:
        """Return a message with the number of truncated texts, or []."""
        limit = self.model.max_seq_length
        if limit is None:
            return []
        lengths = [len(ids) for ids in self.model.tokenizer([*texts], truncation=False)["input_ids"]]
        cut = sum(length > limit for length in lengths)
        return [f"{cut:,} of {len(texts):,} texts were cut to {limit:,} tokens"] if cut else []


class EmbeddingClassifier:
    """Logistic regression on embeddings of texts; for pairs, on both embeddings, their distance and product.

    Args:
        encode: texts (N) -> embeddings (N, D).
        num_labels: number of labels L.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.data.examples import TextExample
        >>> from qwen_task_heads.inference.embeddings import EmbeddingClassifier
        >>> encode = lambda texts: np.array([[len(text), text.count("!")] for text in texts], float)
        >>> rows = [TextExample(text=f"text {n}" + "!" * (n % 2), target=n % 2) for n in range(40)]
        >>> EmbeddingClassifier(encode, 2).fit(rows).log_scores(rows[:2]).argmax(1).tolist()
        [0, 1]
    """

    def __init__(self, encode: Encode, num_labels: int) -> None:
        self.encode, self.num_labels = encode, num_labels

    def fit(self, examples: Sequence[TextExample]) -> EmbeddingClassifier:
        """Fit on training rows and return self."""
        from sklearn.preprocessing import StandardScaler

        truth = np.array([example.target for example in examples])
        features = self._features(examples)
        self._scaler = StandardScaler().fit(features)
        groups = [example.group or str(place) for place, example in enumerate(examples)]
        self._model = _fit(self._scaler.transform(features), truth, groups, intercept=True)
        return self

    def log_scores(self, examples: Sequence[TextExample]) -> Floats:
        """Return log-probabilities (N, L); `ABSENT` for a class without training rows."""
        scores = np.full((len(examples), self.num_labels), ABSENT)
        if isinstance(self._model, int):
            scores[:, self._model] = 0.0
            return scores
        features = self._scaler.transform(self._features(examples))
        scores[:, self._model.classes_] = np.maximum(self._model.predict_log_proba(features), ABSENT)
        return scores

    def _features(self, examples: Sequence[TextExample]) -> Floats:
        first = self.encode([example.text for example in examples])
        if not any(example.text_b for example in examples):
            return first
        second = self.encode([example.text_b for example in examples])
        return np.hstack([first, second, np.abs(first - second), first * second])


class EmbeddingScorer:
    """Bradley-Terry on embeddings of titles: logistic regression on differences, without intercept.

    Source: Bradley & Terry 1952.

    Args:
        encode: titles (N) -> embeddings (N, D).

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.data.examples import PairExample
        >>> from qwen_task_heads.inference.embeddings import EmbeddingScorer
        >>> encode = lambda titles: np.array([[len(title), title.count("!")] for title in titles], float)
        >>> pairs = [PairExample(chosen=f"yes {n}!", rejected=f"no {n}") for n in range(40)]
        >>> one, two = EmbeddingScorer(encode).fit(pairs).score(["new!", "new"])
        >>> bool(one > two)
        True
    """

    def __init__(self, encode: Encode) -> None:
        self.encode = encode

    def fit(self, pairs: Sequence[PairExample]) -> EmbeddingScorer:
        """Fit on training pairs and return self."""
        from sklearn.preprocessing import StandardScaler

        titles = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        self._scaler = StandardScaler().fit(features := self.encode(titles))
        features = self._scaler.transform(features)
        gaps = features[: len(pairs)] - features[len(pairs) :]
        # The loss is symmetric: swapping every second pair equals adding all mirrored pairs, at half the
        # cost.
        sign = np.where(np.arange(len(pairs)) % 2, -1, 1)
        groups = [pair.group or str(place) for place, pair in enumerate(pairs)]
        model = _fit(gaps * sign[:, None], sign, groups, intercept=False)
        self._weights = np.zeros(gaps.shape[1]) if isinstance(model, int) else model.coef_[0]
        return self

    def score(self, titles: Sequence[str]) -> Floats:
        """Return scores (N,) of titles; the sigmoid of a difference is P(preferred)."""
        return np.asarray(self._scaler.transform(self.encode(titles)) @ self._weights, np.float64)


def _fit(features: Floats, truth: NDArray[Any], groups: Sequence[str], *, intercept: bool) -> Any:
    """Fit logistic regression with a cross-validated penalty; return a single class itself."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    if len(np.unique(truth)) < 2:
        return int(truth[0])

    def fitted(rows: Any, penalty: float) -> Any:
        model = LogisticRegression(C=penalty, fit_intercept=intercept, max_iter=2000)
        return model.fit(features[rows], truth[rows])

    everything = np.arange(len(truth))
    if len(set(groups)) < 10 * FOLDS:
        return fitted(everything, GRID[1])
    losses = np.zeros(len(GRID))
    for train, held_out in GroupKFold(FOLDS).split(features, groups=groups):
        known = held_out[np.isin(truth[held_out], truth[train])]
        if len(np.unique(truth[train])) < 2 or not len(known):
            continue
        for place, penalty in enumerate(GRID):
            model = fitted(train, penalty)
            columns = np.searchsorted(model.classes_, truth[known])
            log_p = np.maximum(model.predict_log_proba(features[known]), ABSENT)
            losses[place] -= log_p[np.arange(len(known)), columns].sum()
    return fitted(everything, GRID[int(losses.argmin())])
