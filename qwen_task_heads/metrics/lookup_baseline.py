"""A baseline that looks up training rows: the label of an equal text in train, or the trivial prediction.

If it is above the trivial baseline, rows of train are also in dev or test (`data.lookups`). For titles, the
scores of `data.lookups.look_up_titles` are the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.lookups import look_up_texts
from qwen_task_heads.metrics.classification import MULTI, REGRESSION
from qwen_task_heads.metrics.ranking import Floats
from qwen_task_heads.metrics.text_baselines import TrivialBaseline

LOOKUP = "lookup of train rows"


class LookupBaseline:
    """Predict the labels of equal texts in train, and those of `TrivialBaseline` for all other texts.

    Args:
        problem_type, num_labels: as for `TrivialBaseline`.

    Example:
        >>> from qwen_task_heads.data.examples import TextExample
        >>> from qwen_task_heads.metrics.lookup_baseline import LookupBaseline
        >>> rows = [TextExample(text=f"text {n}", target=n % 3) for n in (0, 1, 1, 2)]
        >>> baseline = LookupBaseline("single_label_classification", 3).fit(rows)
        >>> new = TextExample(text="new", target=0)
        >>> baseline.predict([rows[0], rows[3], new]).argmax(1).tolist()
        [0, 2, 1]
    """

    def __init__(self, problem_type: str, num_labels: int) -> None:
        self.problem_type, self.num_labels = problem_type, num_labels
        self._trivial = TrivialBaseline(problem_type, num_labels)
        self._train: Sequence[TextExample] = ()

    def fit(self, examples: Sequence[TextExample]) -> LookupBaseline:
        """Store the training rows and return self."""
        self._train = examples
        self._trivial.fit(examples)
        return self

    def predict(self, examples: Sequence[TextExample]) -> Floats:
        """Return scores (N, L): the highest is the class, a label is above 0, or the value itself."""
        scores = self._trivial.predict(examples)
        for row, targets in look_up_texts(self._train, examples).items():
            if self.problem_type == REGRESSION:
                scores[row] = np.mean(targets, axis=0)
                continue
            votes = np.zeros(self.num_labels)
            for target in targets:
                votes[[target] if isinstance(target, int) else list(target)] += 1
            scores[row] = votes - len(targets) / 2 if self.problem_type == MULTI else votes
        return scores
