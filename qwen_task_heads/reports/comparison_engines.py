"""Load and measure engines one after the other, and measure baselines: metrics, time and cost of training.

The failure of one engine does not stop the others. Baselines return scores, not probabilities: they have no
log loss and no calibration error.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.data.candidates import within
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.few_shot import Shots
from qwen_task_heads.data.lookups import look_up_texts
from qwen_task_heads.data.text_datasets import TextSets, hash_texts
from qwen_task_heads.data.title_datasets import TitleSets, hash_pairs
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference.engine_options import EMBEDDINGS, FEW_SHOT, EngineSpec, PromptOptions
from qwen_task_heads.inference.engines import open_engine, training_cost
from qwen_task_heads.inference.title_engines import open_title_engine
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.metrics.classification import SINGLE
from qwen_task_heads.metrics.lookup_baseline import LOOKUP, LookupBaseline
from qwen_task_heads.metrics.ranking import Floats
from qwen_task_heads.metrics.text_baselines import TfidfBaseline, TrivialBaseline
from qwen_task_heads.metrics.title_baselines import baseline_rows
from qwen_task_heads.reports.comparison import ALONE, BASELINE, Measured, measure
from qwen_task_heads.reports.finishing import SMALL, device_name


def measure_engines(
    specs: Sequence[EngineSpec],
    sets: TextSets | TitleSets,
    examples: Sequence[Any],
    *,
    asking: PromptOptions,
    alone: int = ALONE,
    choosing: float = 0.0,
) -> tuple[list[Measured], list[str], list[str]]:
    """Load and `measure` one engine after the other; a failure does not stop the others.

    Args:
        specs, sets: engines to load, and the data: labelled texts, or pairs of titles.
        examples: rows that are measured.
        asking: options of prompted engines.
        alone: see `measure`.
        choosing: seconds per text for the selection of its few-shot examples (by similarity).

    Returns:
        Measured engines; messages; names of the engines that failed, whose errors are printed to stderr.
    """
    measured: list[Measured] = []
    messages: list[str] = []
    failed: list[str] = []
    for spec in specs:
        extra = choosing if spec.kind == FEW_SHOT else 0.0
        try:
            engine, new = _measure_engine(spec, sets, examples, asking=asking, alone=alone, choosing=extra)
        except Exception as error:  # noqa: BLE001 (printed here, with a traceback if it is unexpected)
            new = [f"{spec.name} was not measured: {' '.join(str(error).split())}"]
            if not isinstance(error, TaskHeadsError):
                traceback.print_exception(error)
            print(f"error: {new[0]}", file=sys.stderr, flush=True)
            traceback.clear_frames(error.__traceback__)  # releases the memory of a model that did not fit
            failed.append(spec.name)
        else:
            measured.append(engine)
        messages += new
    return measured, messages, failed


def _measure_engine(
    spec: EngineSpec,
    sets: TextSets | TitleSets,
    examples: Sequence[Any],
    *,
    asking: PromptOptions,
    **times: Any,
) -> tuple[Measured, list[str]]:
    """Load and measure an engine; return it with messages."""
    messages = [SMALL] if spec.source == EMBEDDED else []
    train: Sequence[Any] = ()
    cost: dict[str, Any] | None = None
    begin = time.monotonic()
    if spec.kind == EMBEDDINGS:
        train = baseline_rows(sets.train, messages, what=spec.name)
    engine: Any
    if isinstance(sets, TitleSets):
        labels, engine = None, open_title_engine(spec, train, asking=asking)
        scores = engine.scores
    else:
        labels, engine = sets.labels, open_engine(spec, sets.labels, asking=asking, train=train)
        scores = engine.log_scores
    if spec.kind == EMBEDDINGS:
        cost = fitted_cost(len(train), begin, engine.device)
    elif (cost := training_cost(spec, hub=asking.hub)) and not trained_on(cost, sets):
        noun = "pairs" if labels is None else "rows"
        messages.append(
            f"{spec.name} was trained on other {noun} ({cost['rows']:,}) than the given ones; they may "
            f"include {noun} that it is measured on"
        )
    facts: dict[str, Any] = {"name": spec.name, "kind": spec.kind, "training": cost}
    facts |= {"device": device_name(engine.device), "notes": engine.notes(examples)}
    return measure(scores, examples, labels=labels, **facts, **times), messages


def fitted_cost(rows: int, begin: float, device: torch.device) -> dict[str, Any]:
    """Return `training` of `Measured` for a fit that began at `begin`, including loading and encoding."""
    return {"rows": rows, "seconds": round(time.monotonic() - begin, 1), "device": device_name(device)}


def trained_on(cost: Mapping[str, Any], sets: TextSets | TitleSets) -> bool:
    """Return whether a model was trained on these rows, in any order of the labels; True if unknown."""
    if isinstance(sets, TitleSets):
        return bool(cost["sha256"] == hash_pairs(sets.train))
    names = cost.get("labels")
    if not isinstance(names, list) or {*names} != {*sets.labels.names}:
        return True
    old_ids = {new_id: names.index(name) for new_id, name in enumerate(sets.labels.names)}
    rows = [
        replace(row, target=old_ids[row.target]) if isinstance(row.target, int) else row for row in sets.train
    ]
    return bool(cost["sha256"] == hash_texts(rows))


def measure_baselines(
    train: Sequence[TextExample],
    examples: Sequence[TextExample],
    *,
    labels: LabelMap,
    shots: Mapping[str, Shots] | None = None,
    choosing: float = 0.0,
) -> list[Measured]:
    """Measure TF-IDF, the most frequent label, and the majority of the nearest examples, if any are given.

    Like the engines, the baselines choose among the candidate labels of a row.

    Args:
        train: rows that the baselines are fitted on.
        examples: rows that are measured.
        labels: the schema.
        shots: from a text to its examples, the nearest last (few-shot by similarity); None without.
        choosing: seconds per text for the selection of its examples.
    """
    import sklearn.feature_extraction.text
    import sklearn.svm  # noqa: F401 (the time of the import is not measured)

    device = device_name(torch.device("cpu"))

    def baseline(scores_of: Callable[[Sequence[TextExample]], Floats], name: str, **facts: Any) -> Measured:
        facts |= {"name": name, "kind": BASELINE, "labels": labels, "device": device}
        return measure(lambda rows: within(scores_of(rows), rows, labels=labels), examples, **facts)

    trivial = TrivialBaseline(SINGLE, len(labels)).fit(train)
    begin = time.monotonic()
    tfidf = TfidfBaseline(SINGLE, len(labels)).fit(train)
    cost = {"rows": len(train), "seconds": round(time.monotonic() - begin, 1), "device": device}
    measured = [
        baseline(tfidf.predict, "TF-IDF, linear", training=cost),
        baseline(trivial.predict, trivial.name),
    ]
    if shots:
        nearest = shots
        measured.append(
            baseline(
                lambda rows: neighbour_scores([nearest[row.text] for row in rows], labels),
                "majority of the nearest",
                choosing=choosing,
            )
        )
    return measured


def measure_lookup(
    train: Sequence[TextExample], examples: Sequence[TextExample], *, labels: LabelMap
) -> list[Measured]:
    """Measure the lookup of training rows, if any of the examples is in train."""
    if not look_up_texts(train, examples):
        return []
    fitted = LookupBaseline(SINGLE, len(labels)).fit(train)
    facts: dict[str, Any] = {"name": LOOKUP, "kind": BASELINE, "device": device_name(torch.device("cpu"))}
    # Predict once: a pass over train for every text would dominate the times.
    keys = [(row.text, row.text_b) for row in examples]
    known = dict(zip(keys, fitted.predict(examples), strict=True))

    def scores(rows: Sequence[TextExample]) -> Floats:
        return within(np.array([known[row.text, row.text_b] for row in rows]), rows, labels=labels)

    return [measure(scores, examples, labels=labels, **facts)]


def neighbour_scores(shots: Sequence[Shots], labels: LabelMap) -> Floats:
    """Return votes (N, L) of each text's examples; the nearest example breaks ties.

    Example:
        >>> from qwen_task_heads.reports.comparison_engines import neighbour_scores
        >>> shots = [(("far", "a"), ("near", "b"))]
        >>> neighbour_scores(shots, LabelMap(("a", "b"))).argmax(1).tolist()
        [1]
    """
    scores = np.zeros((len(shots), len(labels)))
    for row, examples in enumerate(shots):
        for _, name in examples:
            scores[row, labels.label2id[name]] += 1
        # Less than one vote, and the most for the label of the last example
        ranks = {labels.label2id[name]: rank for rank, (_, name) in enumerate(examples, start=1)}
        for label, rank in ranks.items():
            scores[row, label] += rank / (len(examples) + 1)
    return scores
