"""Engines on the same rows: figures, what they cost, which differences are real, and what to use.

Design decisions:
- All engines and baselines answer the same rows in this process, and are compared pair by pair on the same
  resamples of groups: the interval of a difference is narrower than two intervals suggest. McNemar's exact
  test (1947) stands beside it where every row is its own group.
- Of pairs of titles the scores are those of the chosen and of the rejected one: their difference is the logit
  of P(preferred), and accuracy, log loss and calibration are those of `metrics.ranking`.
- Time of one text, or pair, is the median over batches of one; throughput is that of one pass over all rows,
  which is also where the answers come from. Where each text has examples of its own, what choosing them took
  is in both, as the average over all rows.
- What is measured is loaded in `comparison_engines.py`; the advice that follows has `comparison_advice.py`.
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
from qwen_task_heads.data.labels import LabelMap
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
FIGURES = ("accuracy", "macro_f1", "log_loss", "ece")
COMPARED = ("accuracy", "macro_f1")
OF_TITLES = {"accuracy": "pair_accuracy", "log_loss": "log_loss", "ece": "ece"}  # here and in `metrics`
ALONE = 32  # texts that are timed one by one
WARM = 3  # texts before the clock counts


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One engine or baseline on the rows.

    Args:
        name: as in the table.
        kind: one of `engine_options.KINDS`, or `baseline`.
        scores: (N, L) float64 in the order of the schema; of titles (N, 2), chosen first.
        figures: of `classification_metrics` or `ranking_metrics`, those of `FIGURES`.
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
    """Time an engine text by text and in one pass, and measure its answers.

    Args:
        scores_of: examples (n) to scores as of `Measured`, a tensor or an array.
        examples: N rows with the id of their label, or pairs of titles.
        name, kind, device: as of `Measured`.
        labels: the schema; None for titles.
        alone: texts that are timed one by one, spread over the rows.
        choosing: seconds per text that choosing its examples took before; added to every time.
        **facts: `training` and `notes` of `Measured`.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.reports.comparison import measure
        >>> rows = [TextExample(text="a", target=0), TextExample(text="b", target=1)]
        >>> always = lambda rows: np.tile([1.0, 0.0], (len(rows), 1))
        >>> found = measure(always, rows, name="x", kind="baseline", labels=LabelMap(("a", "b")), device="CPU")
        >>> found.figures["accuracy"]["value"], "ece" in found.figures
        (0.5, False)
    """
    places = np.linspace(0, len(examples) - 1, min(alone, len(examples))).round().astype(int).tolist()
    for place in places[:WARM]:
        scores_of([examples[place]])
    seconds = [choosing + _clocked(scores_of, [examples[place]])[0] for place in places]
    whole, found = _clocked(scores_of, examples)
    scores = np.asarray(found, np.float64)
    figures = _figures(scores, examples, labels=labels)
    wanted = [key for key in (COMPARED if kind == BASELINE else FIGURES) if key in figures]
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


def _figures(
    scores: Floats, examples: Sequence[Any], *, labels: LabelMap | None
) -> dict[str, dict[str, Any]]:
    """Metrics of scores by their names here."""
    groups = [example.group for example in examples]
    if labels is None:
        keys = [group or f"\0{place}" for place, group in enumerate(groups)]  # "" is a pair on its own
        found = ranking_metrics(scores[:, 0], scores[:, 1], groups=keys)
        return {here: found[there] for here, there in OF_TITLES.items()}
    targets = [example.target for example in examples]
    return classification_metrics(SINGLE, scores, targets, labels=labels.names, groups=groups)


def draw_groups(examples: Sequence[Row], *, rows: int, seed: int = 0) -> list[Row]:
    """Draw whole groups at random, as many as `rows` hold, in the order of the rows; never none.

    A group that is cut would count as a small one, and intervals are over groups. So the first group is kept
    also where it has more rows.

    Example:
        >>> from qwen_task_heads.reports.comparison import draw_groups
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


def compare(
    measured: Sequence[Measured],
    examples: Sequence[TextExample] | Sequence[PairExample],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Every pair: the difference of its figures with paired intervals, and McNemar's exact test.

    Args:
        measured: engines and baselines, on the same rows.
        examples: the N rows; pairs of titles have no `macro_f1`.
        resamples, seed: of the bootstrap over groups; percentile intervals of 95%.

    Returns:
        `{"a", "b", "accuracy", "macro_f1", "mcnemar"}` for each pair; a figure is `{difference, low, high,
        differs}` of a less b, where `differs` says that the interval excludes 0. `mcnemar` is `{a_only,
        b_only, p}`, the rows that only one has right; None where rows share groups.

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
    ones, drawn, values, hits = np.ones((1, len(examples))), {}, {}, {}
    for one in measured:
        if isinstance(examples[0], PairExample):
            hits[one.name] = pair_credit(one.scores[:, 0], one.scores[:, 1])
            weighted = mean_measure(hits[one.name], name="accuracy")
        else:
            truth = np.array([example.target for example in examples])  # type: ignore[union-attr]
            hits[one.name] = top_credit(one.scores, truth)
            weighted = of_classes(one.scores, truth, 0.5)[0]
        # The same seed draws the same groups for all.
        options = {"width": one.scores.shape[1], "resamples": resamples, "seed": seed}
        drawn[one.name] = bootstrap(weighted, member, **options)
        values[one.name] = weighted(ones)
    pairs = []
    for a, b in combinations((one.name for one in measured), 2):
        pair: dict[str, Any] = {"a": a, "b": b}
        for key in (name for name in COMPARED if name in values[a]):
            differences = drawn[a][key] - drawn[b][key]
            value = float(values[a][key][0] - values[b][key][0])
            pair[key] = {"difference": value, "low": None, "high": None, "differs": False}
            # Not so of one group; and equal answers on all rows show nothing of others.
            if np.isfinite(differences).all() and differences.any():
                # The biases of two macro F1 cancel; a correction would move draws of exactly 0 off it.
                low, high = interval(value, differences, is_mean=True)
                pair[key] |= {"low": low, "high": high, "differs": not low <= 0 <= high}
        pair["mcnemar"] = _mcnemar(hits[a], hits[b]) if member[-1] == len(examples) - 1 else None
        pairs.append(pair)
    return pairs


def _mcnemar(a: Any, b: Any) -> dict[str, Any]:
    """Exact two-sided test that the rows which only one of two has right fall evenly."""
    from scipy.stats import binomtest

    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"a_only": only_a, "b_only": only_b, "p": p}


def _clocked(call: Callable[[Sequence[Any]], Any], rows: Sequence[Any]) -> tuple[float, Any]:
    """Wall-clock seconds; the answers come back to the CPU, so a device is done by then."""
    begin = time.perf_counter()
    found = call(rows)
    return time.perf_counter() - begin, found
