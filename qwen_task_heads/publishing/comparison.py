"""Engines on the same rows: figures, what they cost, which differences are real, and what to use.

Design decisions:
- All engines and floors answer the same rows in this process, and are compared pair by pair on the same
  resamples of groups: the interval of a difference is narrower than two intervals suggest. McNemar's exact
  test (1947) stands beside it where every row is its own group.
- Time of one text is the median over batches of one; throughput is that of one pass over all rows, which is
  also where the answers come from. Where each text has examples of its own, what choosing them took is in
  both, as the average over all rows.
- A floor gives scores, not probabilities: it has no log-loss and no calibration error, but it has a time.
- The advice that follows from all this has its own file (`comparison_advice.py`).
"""

from __future__ import annotations

import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.few_shot import Shots
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.offers import within
from qwen_task_heads.data.text_sets import TextSets, hash_texts
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference.engine_options import FEW_SHOT, Asking, EngineSpec
from qwen_task_heads.inference.engines import open_engine, training_cost
from qwen_task_heads.publishing.endings import SMALL
from qwen_task_heads.training.classification_metrics import SINGLE, classification_figures
from qwen_task_heads.training.metrics import Floats
from qwen_task_heads.training.text_floors import TfidfFloor, TrivialFloor
from qwen_task_heads.training.weighted_measures import bootstrap, of_classes

FLOOR = "floor"
FIGURES = ("accuracy", "macro_f1", "log_loss", "ece")
COMPARED = ("accuracy", "macro_f1")
RESAMPLES = 2000  # of differences: their ends decide, and should not move with the seed
ALONE = 32  # texts that are timed one by one
WARM = 3  # texts before the clock counts


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One engine or floor on the rows.

    Args:
        name: as in the table.
        kind: `head`, `sft`, `zero_shot`, `few_shot` or `floor`.
        scores: (N, L) float64 in the order of the schema.
        figures: of `classification_figures`, those of `FIGURES`.
        seconds_alone: per text in batches of one: median, quartiles `low` and `high`, `n`.
        texts_per_second: of one pass over all rows.
        device: where it ran.
        training: rows, seconds and device of its training; None where it was not trained, {} if unknown.
        notes: what became of long texts.
    """

    name: str
    kind: str
    scores: Floats
    figures: dict[str, dict[str, Any]]
    seconds_alone: dict[str, float]
    texts_per_second: float
    device: str
    training: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All but the scores, for JSON."""
        told = {name: value for name, value in vars(self).items() if name != "scores"}
        return {**told, "training": self.training and {k: self.training[k] for k in _TOLD & {*self.training}}}


_TOLD = {"rows", "seconds", "device", "processes", "resumed"}


def measure(
    scores_of: Callable[[Sequence[TextExample]], Any],
    examples: Sequence[TextExample],
    *,
    name: str,
    kind: str,
    labels: LabelMap,
    device: str,
    alone: int = ALONE,
    choosing: float = 0.0,
    **facts: Any,
) -> Measured:
    """Time an engine text by text and in one pass, and measure its answers.

    Args:
        scores_of: examples (n) to (n, L), a tensor or an array, in the order of the schema.
        examples: N rows with the id of their label.
        name, kind, device: as of `Measured`.
        labels: the schema.
        alone: texts that are timed one by one, spread over the rows.
        choosing: seconds per text that choosing its examples took before; added to every time.
        **facts: `training` and `notes` of `Measured`.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.publishing.comparison import measure
        >>> rows = [TextExample(text="a", target=0), TextExample(text="b", target=1)]
        >>> always = lambda rows: np.tile([1.0, 0.0], (len(rows), 1))
        >>> found = measure(always, rows, name="x", kind="floor", labels=LabelMap(("a", "b")), device="CPU")
        >>> found.figures["accuracy"]["value"], "ece" in found.figures
        (0.5, False)
    """
    places = np.linspace(0, len(examples) - 1, min(alone, len(examples))).round().astype(int).tolist()
    for place in places[:WARM]:
        scores_of([examples[place]])
    seconds = [choosing + _clocked(scores_of, [examples[place]])[0] for place in places]
    whole, found = _clocked(scores_of, examples)
    scores = np.asarray(found, np.float64)
    groups = [example.group for example in examples]
    targets = [example.target for example in examples]
    figures = classification_figures(SINGLE, scores, targets, labels=labels.names, groups=groups)
    wanted = COMPARED if kind == FLOOR else FIGURES
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return Measured(
        name=name,
        kind=kind,
        scores=scores,
        figures={key: figures[key] for key in wanted},
        seconds_alone={"median": middle, "low": low, "high": high, "n": len(seconds)},
        texts_per_second=len(examples) / (whole + choosing * len(examples)),
        device=device,
        **facts,
    )


def measure_engines(
    specs: Sequence[EngineSpec],
    sets: TextSets,
    examples: Sequence[TextExample],
    *,
    asking: Asking,
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
    measured: list[Measured] = []
    notes: list[str] = []
    failed: list[str] = []
    for spec in specs:
        try:
            extra = choosing if spec.kind == FEW_SHOT else 0.0
            one, told = _measure_engine(spec, sets, examples, asking=asking, alone=alone, choosing=extra)
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
    spec: EngineSpec, sets: TextSets, examples: Sequence[TextExample], *, asking: Asking, **times: Any
) -> tuple[Measured, list[str]]:
    """An engine with its figures, and what is to be said of it beside them."""
    engine, cost = open_engine(spec, sets.labels, asking=asking), training_cost(spec, hub=asking.hub)
    facts: dict[str, Any] = {"name": spec.name, "kind": spec.kind, "training": cost}
    notes = [SMALL] if spec.source == EMBEDDED else []
    if cost and not trained_on(cost, sets):
        notes.append(
            f"{spec.name} was trained on other rows ({cost['rows']:,}) than those given here; whether rows "
            "that it is measured on are among them, nobody can tell"
        )
    facts |= {"device": device_name(engine.device), "notes": engine.notes(examples)}
    return measure(engine.log_scores, examples, labels=sets.labels, **facts, **times), notes


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


def draw_groups(examples: Sequence[TextExample], *, rows: int, seed: int = 0) -> list[TextExample]:
    """Draw whole groups at random, as many as `rows` hold, in the order of the rows; never none.

    A group that is cut would count as a small one, and intervals are over groups. So the first group is kept
    also where it has more rows.

    Example:
        >>> from qwen_task_heads.publishing.comparison import draw_groups
        >>> pages = [TextExample(text=f"line {n}", target=0, group=f"page {n // 3}") for n in range(9)]
        >>> len(draw_groups(pages, rows=7))
        6
    """
    groups: dict[object, list[int]] = {}
    for place, example in enumerate(examples):
        groups.setdefault(example.group or place, []).append(place)
    drawn: list[int] = []
    for group in random.Random(seed).sample([*groups.values()], len(groups)):
        if drawn and len(drawn) + len(group) > rows:
            break
        drawn += group
    return [examples[place] for place in sorted(drawn)]


def measure_floors(
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
        train: rows that the floors are fitted on.
        examples: rows that are measured.
        labels: the schema.
        shots: text to its examples, the nearest last (few-shot by similarity); None without.
        choosing: seconds per text that finding them took.
    """
    import sklearn.feature_extraction.text
    import sklearn.svm  # noqa: F401 (its time is not that of the floor)

    device = device_name(torch.device("cpu"))

    def floor(scores_of: Callable[[Sequence[TextExample]], Floats], name: str, **facts: Any) -> Measured:
        facts |= {"name": name, "kind": FLOOR, "labels": labels, "device": device}
        return measure(lambda rows: within(scores_of(rows), rows, labels=labels), examples, **facts)

    trivial = TrivialFloor(SINGLE, len(labels)).fit(train)
    begin = time.monotonic()
    tfidf = TfidfFloor(SINGLE, len(labels)).fit(train)
    cost = {"rows": len(train), "seconds": round(time.monotonic() - begin, 1), "device": device}
    found = [
        floor(tfidf.predict, "TF-IDF, linear", training=cost),
        floor(trivial.predict, trivial.name),
    ]
    if shots:
        near = shots
        found.append(
            floor(
                lambda rows: neighbour_scores([near[row.text] for row in rows], labels),
                "majority of the nearest",
                choosing=choosing,
            )
        )
    return found


def neighbour_scores(shots: Sequence[Shots], labels: LabelMap) -> Floats:
    """Votes (N, L) of each text's examples; of equal ones the label of the nearest example is above.

    Example:
        >>> from qwen_task_heads.publishing.comparison import neighbour_scores
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


def compare(
    measured: Sequence[Measured],
    examples: Sequence[TextExample],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Every pair: the difference of its figures with paired intervals, and McNemar's exact test.

    Args:
        measured: engines and floors, on the same rows.
        examples: the N rows.
        resamples, seed: of the bootstrap over groups, percentile intervals of 95%.

    Returns:
        `{"a", "b", "accuracy", "macro_f1", "mcnemar"}` for each pair; a figure is `{difference, low, high,
        differs}` of a less b, where `differs` says that the interval excludes 0. `mcnemar` is `{a_only,
        b_only, p}`, the rows that only one has right; None where rows share groups.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.publishing.comparison import compare, measure
        >>> rows = [TextExample(text=str(n), target=n % 2) for n in range(20)]
        >>> right = lambda rows: np.eye(2)[[int(row.text) % 2 for row in rows]]
        >>> options = {"kind": "floor", "labels": LabelMap(("a", "b")), "device": "CPU"}
        >>> good = measure(right, rows, name="good", **options)
        >>> bad = measure(lambda rows: np.eye(2)[[0] * len(rows)], rows, name="bad", **options)
        >>> [pair] = compare([good, bad], rows)
        >>> pair["accuracy"]["difference"], pair["accuracy"]["differs"], round(pair["mcnemar"]["p"], 4)
        (0.5, True, 0.002)
    """
    truth = np.array([example.target for example in examples])
    numbers: dict[object, int] = {}
    member = np.array(
        [numbers.setdefault(e.group or row, len(numbers)) for row, e in enumerate(examples)], np.int64
    )
    ones, drawn, values, hits = np.ones((1, len(truth))), {}, {}, {}
    for one in measured:
        weighted = of_classes(one.scores, truth, 0.5)[0]
        # The same seed draws the same groups for all.
        options = {"width": one.scores.shape[1], "resamples": resamples, "seed": seed}
        drawn[one.name] = bootstrap(weighted, member, **options)
        values[one.name] = weighted(ones)
        hits[one.name] = one.scores.argmax(1) == truth
    pairs = []
    for a, b in combinations((one.name for one in measured), 2):
        pair: dict[str, Any] = {"a": a, "b": b}
        for key in COMPARED:
            differences = drawn[a][key] - drawn[b][key]
            value = float(values[a][key][0] - values[b][key][0])
            pair[key] = {"difference": value, "low": None, "high": None, "differs": False}
            # Not so of one group; and equal answers on all rows show nothing of others.
            if np.isfinite(differences).all() and differences.any():
                low, high = np.quantile(differences, [0.025, 0.975]).tolist()
                pair[key] |= {"low": low, "high": high, "differs": not low <= 0 <= high}
        pair["mcnemar"] = _mcnemar(hits[a], hits[b]) if len(numbers) == len(examples) else None
        pairs.append(pair)
    return pairs


def _mcnemar(a: Any, b: Any) -> dict[str, Any]:
    """Exact two-sided test that the rows which only one of two has right fall evenly."""
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"a_only": only_a, "b_only": only_b, "p": p}


def _clocked(call: Callable[[Sequence[TextExample]], Any], rows: Sequence[TextExample]) -> tuple[float, Any]:
    """Wall-clock seconds; the answers come back to the CPU, so a device is done by then."""
    begin = time.perf_counter()
    found = call(rows)
    return time.perf_counter() - begin, found
