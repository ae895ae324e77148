"""The lookup of training rows as a baseline: the answer of the same text in train, else the trivial one.

It reads no words. Where it is above the trivial answer, rows of train stand in dev or test
(`data/lookups.py`). Of titles the scores of `data.lookups.look_up_titles` are the baseline.
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
    """The answers of the same texts in train, and of the `TrivialBaseline` for all others.

    Args:
        problem_type, num_labels: as of `TrivialBaseline`.

    Example:
        >>> from qwen_task_heads.data.examples import TextExample
        >>> from qwen_task_heads.metrics.lookup_baseline import LookupBaseline
        >>> rows = [TextExample(text=f"text {n}", target=n % 3) for n in (0, 1, 1, 2)]
        >>> found = LookupBaseline("single_label_classification", 3).fit(rows)
        >>> new = TextExample(text="new", target=0)
        >>> found.predict([rows[0], rows[3], new]).argmax(1).tolist()
        [0, 2, 1]
    """

    def __init__(self, problem_type: str, num_labels: int) -> None:
        self.problem_type, self.num_labels = problem_type, num_labels
        self._trivial = TrivialBaseline(problem_type, num_labels)
        self._train: Sequence[TextExample] = ()

    def fit(self, examples: Sequence[TextExample]) -> LookupBaseline:
        """Keep the training rows and return self."""
        self._train = examples
        self._trivial.fit(examples)
        return self

    def predict(self, examples: Sequence[TextExample]) -> Floats:
        """Scores (N, L): the highest is the class, over 0 is a label, or the value itself."""
        scores = self._trivial.predict(examples)
        for place, targets in look_up_texts(self._train, examples).items():
            if self.problem_type == REGRESSION:
                scores[place] = np.mean(targets, axis=0)
                continue
            votes = np.zeros(self.num_labels)
            for target in targets:
                votes[[target] if isinstance(target, int) else list(target)] += 1
            scores[place] = votes - len(targets) / 2 if self.problem_type == MULTI else votes
        return scores
