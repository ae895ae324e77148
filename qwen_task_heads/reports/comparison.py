"""Compare engines on the same rows: metrics, latency, and paired differences.

Design decisions:
- All engines and baselines score the same rows in this process. Each pair of them is compared on the same
  resamples of groups, so the interval of a difference is narrower than two separate intervals suggest.
  McNemar's exact test (1947) is added if every row is its own group.
- The scores of a pair of titles are those of the chosen and of the rejected title. Their difference is the
  logit of P(preferred); accuracy, log loss and calibration error are those of `metrics.ranking`.
- Latency is the median over batches of one text, or pair. Throughput is that of one pass over all rows, which
  also gives the scores. If each text has its own few-shot examples, both include the average time of their
  selection.
- `comparison_engines.py` loads engines, `comparison_advice.py` derives the advice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.metrics.classification import (
    SINGLE,
    classification_metrics,
    member_numbers,
)
from qwen_task_heads.metrics.ranking import Floats, pair_credit, ranking_metrics
from qwen_task_heads.metrics.ties import top_credit
from qwen_task_heads.metrics.verdicts import RESAMPLES, mean_measure
from qwen_task_heads.metrics.weighted import bootstrap, interval, of_classes

Row = TypeVar("Row", TextExample, PairExample)
BASELINE = "baseline"
METRICS = ("accuracy", "macro_f1", "log_loss", "ece")
COMPARED = ("accuracy", "macro_f1")
TITLE_METRICS = {
    "accuracy": "pair_accuracy",
    "log_loss": "log_loss",
    "ece": "ece",
}  # name in `ranking_metrics`
ALONE = 32  # texts that are timed one by one
WARMUP = 3  # texts before the first measured time


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Scores, metrics and times of one engine or baseline.

    Args:
        name: name in the table.
        kind: one of `engine_options.KINDS`, or `baseline`.
        scores: (N, L) float64 in the order of the schema; of titles (N, 2), chosen first.
        metrics: of `classification_metrics` or `ranking_metrics`, those of `METRICS`.
        seconds_alone: per text in batches of one: median, quartiles `low` and `high`, `n`.
        texts_per_second: of one pass over all rows.
        device: device of the engine.
        training: rows, seconds and device of its training; None if it was not trained, {} if unknown.
        notes: messages on truncated texts.
    """

    name: str
    kind: str
    scores: Floats
    metrics: dict[str, dict[str, Any]]
    seconds_alone: dict[str, float]
    texts_per_second: float
    device: str
    training: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of `comparison.json`, which has no scores."""
        training = self.training
        if training:
            training = {key: value for key, value in training.items() if key in _TRAINING_KEYS}
        return {
            "name": self.name,
            "kind": self.kind,
            "figures": self.metrics,
            "seconds_alone": self.seconds_alone,
            "texts_per_second": self.texts_per_second,
            "device": self.device,
            "training": training,
            "notes": self.notes,
        }


_TRAINING_KEYS = {"rows", "seconds", "device", "processes", "resumed"}


def measure(
    scores_of: Callable[[Sequence[Any]], Any],
    examples: Sequence[TextExample] | Sequence[PairExample],
    *,
    name: str,
    kind: str,
    labels: LabelMap | None,
    device: str,
    alone: int = ALONE,
    choosing: float = 0.0,
    **facts: Any,
) -> Measured:
    """Time an engine text by text and in one pass, and compute its metrics.

    Args:
        scores_of: from examples to scores as in `Measured`, a tensor or an array.
        examples: N rows with the id of their label, or pairs of titles.
        name, kind, device: see `Measured`.
        labels: the schema; None for titles.
        alone: number of texts that are timed one by one, spread over the rows.
        choosing: seconds per text for the selection of its few-shot examples; added to every time.
        **facts: `training` and `notes` of `Measured`.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.reports.comparison import measure
        >>> rows = [TextExample(text="a", target=0), TextExample(text="b", target=1)]
        >>> always = lambda rows: np.tile([1.0, 0.0], (len(rows), 1))
        >>> labels = LabelMap(("a", "b"))
        >>> found = measure(always, rows, name="x", kind="baseline", labels=labels, device="CPU")
        >>> found.metrics["accuracy"]["value"], "ece" in found.metrics
        (0.5, False)
    """
    timed = np.linspace(0, len(examples) - 1, min(alone, len(examples))).round().astype(int).tolist()
    for index in timed[:WARMUP]:
        scores_of([examples[index]])
    seconds = [choosing + _clocked(scores_of, [examples[index]])[0] for index in timed]
    pass_seconds, outputs = _clocked(scores_of, examples)
    scores = np.asarray(outputs, np.float64)
    metrics = _metrics(scores, examples, labels=labels)
    reported = [key for key in (COMPARED if kind == BASELINE else METRICS) if key in metrics]
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return Measured(
        name=name,
        kind=kind,
        scores=scores,
        metrics={key: metrics[key] for key in reported},
        seconds_alone={"median": middle, "low": low, "high": high, "n": len(seconds)},
        texts_per_second=len(examples) / (pass_seconds + choosing * len(examples)),
        device=device,
        **facts,
    )


def _metrics(
    scores: Floats, examples: Sequence[Any], *, labels: LabelMap | None
) -> dict[str, dict[str, Any]]:
    """Return the metrics of scores, by the names in `METRICS`."""
    groups = [example.group for example in examples]
    if labels is None:
        keys = [group or f"\0{index}" for index, group in enumerate(groups)]  # no group: a group of its own
        metrics = ranking_metrics(scores[:, 0], scores[:, 1], groups=keys)
        return {name: metrics[ranking_name] for name, ranking_name in TITLE_METRICS.items()}
    targets = [example.target for example in examples]
    return classification_metrics(SINGLE, scores, targets, labels=labels.names, groups=groups)


def draw_groups(examples: Sequence[Row], *, rows: int, seed: int = 0) -> list[Row]:
    """Draw whole groups at random up to a number of rows, and return them in the order of the rows.

    Groups are not split, because intervals are over groups. At least one group is drawn, even if it has more
    rows.

    Example:
        >>> from qwen_task_heads.reports.comparison import draw_groups
        >>> pages = [TextExample(text=f"line {n}", target=0, group=f"page {n // 3}") for n in range(9)]
        >>> len(draw_groups(pages, rows=7))
        6
    """
    groups: dict[object, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.group or index, []).append(index)
    drawn: list[int] = []
    for group in random.Random(seed).sample([*groups.values()], len(groups)):
        if drawn and len(drawn) + len(group) > rows:
            break
        drawn += group
    return [examples[index] for index in sorted(drawn)]


def compare(
    measured: Sequence[Measured],
    examples: Sequence[TextExample] | Sequence[PairExample],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compare every pair of engines: paired differences with intervals, and McNemar's exact test.

    Args:
        measured: engines and baselines, on the same rows.
        examples: the N rows; pairs of titles have no `macro_f1`.
        resamples, seed: of the bootstrap over groups; percentile intervals of 95%.

    Returns:
        `{"a", "b", "accuracy", "macro_f1", "mcnemar"}` for each pair. A metric is `{difference, low, high,
        differs}` of a minus b; `differs` is true if the interval excludes 0. `mcnemar` is `{a_only, b_only,
        p}`, the rows that only one predicts correctly; None if rows share groups.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.reports.comparison import compare, measure
        >>> rows = [TextExample(text=str(n), target=n % 2) for n in range(20)]
        >>> right = lambda rows: np.eye(2)[[int(row.text) % 2 for row in rows]]
        >>> options = {"kind": "baseline", "labels": LabelMap(("a", "b")), "device": "CPU"}
        >>> good = measure(right, rows, name="good", **options)
        >>> bad = measure(lambda rows: np.eye(2)[[0] * len(rows)], rows, name="bad", **options)
        >>> [pair] = compare([good, bad], rows)
        >>> pair["accuracy"]["difference"], pair["accuracy"]["differs"], round(pair["mcnemar"]["p"], 4)
        (0.5, True, 0.002)
    """
    member = member_numbers([example.group for example in examples], len(examples))
    ones = np.ones((1, len(examples)))
    resampled, values, credits = {}, {}, {}
    for engine in measured:
        if isinstance(examples[0], PairExample):
            credits[engine.name] = pair_credit(engine.scores[:, 0], engine.scores[:, 1])
            weighted = mean_measure(credits[engine.name], name="accuracy")
        else:
            truth = np.array([example.target for example in examples])  # type: ignore[union-attr]
            credits[engine.name] = top_credit(engine.scores, truth)
            weighted = of_classes(engine.scores, truth, 0.5)[0]
        # The same seed draws the same groups for all engines.
        options = {"width": engine.scores.shape[1], "resamples": resamples, "seed": seed}
        resampled[engine.name] = bootstrap(weighted, member, **options)
        values[engine.name] = weighted(ones)
    every_row_is_a_group = member[-1] == len(examples) - 1
    pairs = []
    for a, b in combinations((engine.name for engine in measured), 2):
        pair: dict[str, Any] = {"a": a, "b": b}
        for key in (name for name in COMPARED if name in values[a]):
            differences = resampled[a][key] - resampled[b][key]
            value = float(values[a][key][0] - values[b][key][0])
            pair[key] = {"difference": value, "low": None, "high": None, "differs": False}
            # No interval for a single group, or for equal answers on all rows.
            if np.isfinite(differences).all() and differences.any():
                # The biases of two macro F1 cancel; a correction would shift resamples of exactly 0.
                low, high = interval(value, differences, is_mean=True)
                pair[key] |= {"low": low, "high": high, "differs": not low <= 0 <= high}
        pair["mcnemar"] = _mcnemar(credits[a], credits[b]) if every_row_is_a_group else None
        pairs.append(pair)
    return pairs


def _mcnemar(a: Any, b: Any) -> dict[str, Any]:
    """Test whether the rows that only one of two predicts correctly are evenly split (exact, two-sided)."""
    from scipy.stats import binomtest

    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"a_only": only_a, "b_only": only_b, "p": p}


def _clocked(call: Callable[[Sequence[Any]], Any], rows: Sequence[Any]) -> tuple[float, Any]:
    """Return wall-clock seconds and outputs; the outputs are on the CPU, so the device has finished."""
    begin = time.perf_counter()
    outputs = call(rows)
    return time.perf_counter() - begin, outputs
