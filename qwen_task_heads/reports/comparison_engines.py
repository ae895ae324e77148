"""Engines loaded one after the other, and the baselines beside them: each with its figures, time and cost.

An engine that fails costs the others nothing. A baseline gives scores, not probabilities: it has no log-loss and
no calibration error, but it has a time.
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
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.lookups import look_up_texts
from qwen_task_heads.data.text_datasets import TextSets, hash_texts
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference.engine_options import EMBEDDINGS, FEW_SHOT, EngineSpec, PromptOptions
from qwen_task_heads.inference.engines import open_engine, training_cost
from qwen_task_heads.metrics.classification import SINGLE
from qwen_task_heads.metrics.lookup_baseline import LOOKUP, LookupBaseline
from qwen_task_heads.metrics.ranking import Floats
from qwen_task_heads.metrics.text_baselines import TfidfBaseline, TrivialBaseline
from qwen_task_heads.metrics.title_baselines import baseline_rows
from qwen_task_heads.reports.comparison import ALONE, BASELINE, Measured, measure
from qwen_task_heads.reports.finishing import SMALL


def measure_engines(
    specs: Sequence[EngineSpec],
    sets: TextSets,
    examples: Sequence[TextExample],
    *,
    asking: PromptOptions,
    alone: int = ALONE,
    choosing: float = 0.0,
) -> tuple[list[Measured], list[str], list[str]]:
    """Load and `measure` one engine after the other; what one of them failed at does not stop the others.

    Args:
        specs, sets: what to load, and the data with its labels.
        examples: rows that are measured.
        asking: options of prompted engines.
        alone: as of `measure`.
        choosing: seconds per text that its own examples took (few-shot by similarity); part of its time.

    Returns:
        What was measured; what is to be said of all of them; names of those that failed, whose errors are on
        stderr.
    """

    def measured_one(spec: EngineSpec) -> tuple[Measured, list[str]]:
        extra = choosing if spec.kind == FEW_SHOT else 0.0
        return _measure_engine(spec, sets, examples, asking=asking, alone=alone, choosing=extra)

    return measure_each(specs, measured_one)


def measure_each(
    specs: Sequence[EngineSpec], measure_one: Callable[[EngineSpec], tuple[Measured, list[str]]]
) -> tuple[list[Measured], list[str], list[str]]:
    """Call `measure_one` for each engine; returns as `measure_engines`."""
    measured: list[Measured] = []
    notes: list[str] = []
    failed: list[str] = []
    for spec in specs:
        try:
            one, told = measure_one(spec)
        except Exception as error:  # noqa: BLE001 (told here, with the traceback of a defect)
            told = [f"{spec.name} was not measured: {' '.join(str(error).split())}"]
            if not isinstance(error, TaskHeadsError):
                traceback.print_exception(error)
            print(f"error: {told[0]}", file=sys.stderr, flush=True)
            traceback.clear_frames(error.__traceback__)  # a model that did not fit is let go
            failed.append(spec.name)
        else:
            measured.append(one)
        notes += told
    return measured, notes, failed


def _measure_engine(
    spec: EngineSpec, sets: TextSets, examples: Sequence[TextExample], *, asking: PromptOptions, **times: Any
) -> tuple[Measured, list[str]]:
    """An engine with its figures, and what is to be said of it beside them."""
    notes = [SMALL] if spec.source == EMBEDDED else []
    if spec.kind == EMBEDDINGS:
        begin, train = time.monotonic(), baseline_rows(sets.train, notes, what=spec.name)
        engine = open_engine(spec, sets.labels, asking=asking, train=train)
        cost: dict[str, Any] | None = fitted_cost(len(train), begin, engine.device)
    else:
        engine, cost = open_engine(spec, sets.labels, asking=asking), training_cost(spec, hub=asking.hub)
    facts: dict[str, Any] = {"name": spec.name, "kind": spec.kind, "training": cost}
    if spec.kind != EMBEDDINGS and cost and not trained_on(cost, sets):
        notes.append(
            f"{spec.name} was trained on other rows ({cost['rows']:,}) than those given here; whether rows "
            "that it is measured on are among them, nobody can tell"
        )
    facts |= {"device": device_name(engine.device), "notes": engine.notes(examples)}
    return measure(engine.log_scores, examples, labels=sets.labels, **facts, **times), notes


def fitted_cost(rows: int, begin: float, device: torch.device) -> dict[str, Any]:
    """What fitting a baseline took since `begin`, with loading and encoding; as of `Measured`."""
    return {"rows": rows, "seconds": round(time.monotonic() - begin, 1), "device": device_name(device)}


def trained_on(cost: Mapping[str, Any], sets: TextSets) -> bool:
    """Whether a model was trained on these rows, in whatever order of the labels, or does not say."""
    names = cost.get("labels")
    if not isinstance(names, list) or {*names} != {*sets.labels.names}:
        return True
    place = {number: names.index(name) for number, name in enumerate(sets.labels.names)}
    rows = [
        replace(row, target=place[row.target]) if isinstance(row.target, int) else row for row in sets.train
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
    """TF-IDF, the most frequent label, and the majority of a text's nearest examples where there are any.

    As the engines, all choose within the labels that a row offers.

    Args:
        train: rows that the baselines are fitted on.
        examples: rows that are measured.
        labels: the schema.
        shots: text to its examples, the nearest last (few-shot by similarity); None without.
        choosing: seconds per text that finding them took.
    """
    import sklearn.feature_extraction.text
    import sklearn.svm  # noqa: F401 (its time is not that of the baseline)

    device = device_name(torch.device("cpu"))

    def baseline(scores_of: Callable[[Sequence[TextExample]], Floats], name: str, **facts: Any) -> Measured:
        facts |= {"name": name, "kind": BASELINE, "labels": labels, "device": device}
        return measure(lambda rows: within(scores_of(rows), rows, labels=labels), examples, **facts)

    trivial = TrivialBaseline(SINGLE, len(labels)).fit(train)
    begin = time.monotonic()
    tfidf = TfidfBaseline(SINGLE, len(labels)).fit(train)
    cost = {"rows": len(train), "seconds": round(time.monotonic() - begin, 1), "device": device}
    found = [
        baseline(tfidf.predict, "TF-IDF, linear", training=cost),
        baseline(trivial.predict, trivial.name),
    ]
    if shots:
        near = shots
        found.append(
            baseline(
                lambda rows: neighbour_scores([near[row.text] for row in rows], labels),
                "majority of the nearest",
                choosing=choosing,
            )
        )
    return found


def measure_lookup(
    train: Sequence[TextExample], examples: Sequence[TextExample], *, labels: LabelMap
) -> list[Measured]:
    """The lookup of training rows, where it knows any of these."""
    if not look_up_texts(train, examples):
        return []
    fitted = LookupBaseline(SINGLE, len(labels)).fit(train)
    facts: dict[str, Any] = {"name": LOOKUP, "kind": BASELINE, "device": device_name(torch.device("cpu"))}
    # Looked up once: to look through train for every text would be timed, and is no property of a table.
    keys = [(row.text, row.text_b) for row in examples]
    known = dict(zip(keys, fitted.predict(examples), strict=True))

    def scores(rows: Sequence[TextExample]) -> Floats:
        return within(np.array([known[row.text, row.text_b] for row in rows]), rows, labels=labels)

    return [measure(scores, examples, labels=labels, **facts)]


def neighbour_scores(shots: Sequence[Shots], labels: LabelMap) -> Floats:
    """Votes (N, L) of each text's examples; of equal ones the label of the nearest example is above.

    Example:
        >>> from qwen_task_heads.reports.comparison_engines import neighbour_scores
        >>> shots = [(("far", "a"), ("near", "b"))]
        >>> neighbour_scores(shots, LabelMap(("a", "b"))).argmax(1).tolist()
        [1]
    """
    scores = np.zeros((len(shots), len(labels)))
    for row, shown in enumerate(shots):
        for _, name in shown:
            scores[row, labels.label2id[name]] += 1
        # less than a vote, and most for the label of the last one
        nearest = {labels.label2id[name]: place + 1 for place, (_, name) in enumerate(shown)}
        for label, rank in nearest.items():
            scores[row, label] += rank / (len(shown) + 1)
    return scores


def device_name(device: torch.device) -> str:
    """Where a model runs, with the threads of a CPU.

    Example:
        >>> import torch
        >>> device_name(torch.device("cpu")).startswith("CPU (")
        True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    kind = "CPU" if device.type == "cpu" else device.type.upper()
    return f"{kind} ({threads} thread{'' if threads == 1 else 's'})" if kind == "CPU" else kind
