"""Measure baselines on pairs of titles, as `comparison_engines.py` does on texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.lookups import look_up_titles
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.metrics.lookup_baseline import LOOKUP
from qwen_task_heads.metrics.ranking import Floats
from qwen_task_heads.metrics.title_baselines import TfidfBradleyTerry, baseline_rows
from qwen_task_heads.reports.comparison import BASELINE, Measured, measure
from qwen_task_heads.reports.comparison_engines import fitted_cost
from qwen_task_heads.reports.finishing import device_name
from qwen_task_heads.reports.title_report import LONGER, TFIDF


def measure_title_baselines(
    train: Sequence[PairExample], pairs: Sequence[PairExample], *, messages: list[str]
) -> list[Measured]:
    """Measure the longer title, TF-IDF, and the lookup of training rows if it knows some of the pairs.

    Args:
        train: pairs that the baselines are fitted on.
        pairs: pairs that are measured.
        messages: receives a message if TF-IDF cannot be fitted, or is fitted on some of the rows.
    """
    import sklearn.feature_extraction.text  # noqa: F401 (the time of the import is not measured)

    device = device_name(torch.device("cpu"))

    def baseline(
        score: Callable[[Sequence[PairExample]], tuple[Any, Any]], name: str, **facts: Any
    ) -> Measured:
        facts |= {"name": name, "kind": BASELINE, "labels": None, "device": device}
        return measure(lambda rows: np.stack(score(rows), axis=1), pairs, **facts)

    measured = [baseline(_lengths, LONGER)]
    try:
        begin, fitted_on = time.monotonic(), baseline_rows(train, messages)
        tfidf = TfidfBradleyTerry().fit(fitted_on)
    except TaskHeadsError as error:
        messages.append(f"no TF-IDF baseline: {error}")
    else:
        cost = fitted_cost(len(fitted_on), begin, torch.device("cpu"))

        def scores(rows: Sequence[PairExample]) -> tuple[Floats, Floats]:
            return tfidf.score([row.chosen for row in rows]), tfidf.score([row.rejected for row in rows])

        measured.append(baseline(scores, TFIDF, training=cost))
    chosen, rejected, known = look_up_titles(train, pairs)
    if known.any():
        # Look up once: a pass over train for every pair would dominate the times.
        keys = [(row.prompt, row.chosen, row.rejected) for row in pairs]
        table = dict(zip(keys, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True))

        def looked_up(rows: Sequence[PairExample]) -> tuple[Any, Any]:
            both = np.array([table[row.prompt, row.chosen, row.rejected] for row in rows])
            return both[:, 0], both[:, 1]

        measured.append(baseline(looked_up, LOOKUP))
    return measured


def _lengths(rows: Sequence[PairExample]) -> tuple[Floats, Floats]:
    """Return the lengths in characters as scores; only equal lengths are ties."""
    chosen = np.array([len(row.chosen) for row in rows], float)
    rejected = np.array([len(row.rejected) for row in rows], float)
    return chosen, rejected
