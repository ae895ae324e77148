"""Advise on the engine to use, by the rules of `advise` on the metrics of a comparison.

The rules use only values of the table, and every sentence states its values. The advice does not cover
properties that were not measured: other rows, another machine, the cost of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.inference.engine_options import FEW_SHOT, TRAINED, ZERO_SHOT
from qwen_task_heads.metrics.text_baselines import MAJORITY
from qwen_task_heads.metrics.verdicts import ABOVE, BELOW, LEVEL
from qwen_task_heads.reports.comparison import BASELINE, Measured
from qwen_task_heads.reports.markdown import metric_name

UNRELIABLE = 0.1  # calibration error from which probabilities are called unreliable
PROMPTED = (ZERO_SHOT, FEW_SHOT)
FASTER = 1.05  # ratio of latencies below which two engines are about as fast


def advise(
    measured: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], *, metric: str = "accuracy", rows: str
) -> list[str]:
    """Return sentences that advise on the engine to use; the first one names it.

    A difference is significant if its interval excludes 0.

    1. The best engine has the highest metric. The candidates are the best engine and the engines without a
       significant difference from it. A candidate must be significantly above the best baseline, and no other
       engine may be both better and faster. The candidate with the lowest latency is advised.
    2. Without a candidate, the best baseline is advised; "for now" if the best engine is above it, but not
       significantly.
    3. Candidates of rule 1 that need no training are named.
    4. If nothing is significantly above the most frequent label, that baseline is advised. If no engine is
       significantly above it, the advice names the next steps.
    5. A calibration error of `UNRELIABLE` or more of the advised engine is stated.

    Args:
        measured: engines and baselines.
        pairs: of `compare`.
        metric: `accuracy` or `macro_f1`.
        rows: description of the rows, such as `the 500 rows of test`.
    """
    label = metric_name(metric)
    value = {one.name: one.metrics[metric]["value"] for one in measured}
    best, similar = _best(measured, pairs, metric)
    last = f"This applies to {rows} and to the latency on this machine only."
    if best.metrics[metric]["n_groups"] < 2:
        return ["All rows are of one group, so no difference can be tested.", last]
    baseline, chosen = _best_baseline(measured, metric), chosen_of(measured, pairs, metric=metric)
    majority = next((one for one in measured if one.name == MAJORITY), None)
    if majority is not None and not _above_baseline(
        _engines(measured), pairs, baseline=majority, metric=metric
    ):
        last = f"{_what_to_do(measured, pairs, majority=majority, best=best, metric=metric)} {last}"
    if chosen is majority and majority is not None:
        others = [one.name for one in measured if one.kind == BASELINE and one is not majority]
        also = f", and neither is {' or '.join(others)}" if others else ""
        return [
            f"Use {majority.name} for now: no engine is significantly above it{also}. {best.name}, the best "
            f"engine, has {label} {value[best.name]:.3f} against {value[majority.name]:.3f}.",
            last,
        ]
    if chosen is baseline:
        gap = _between(pairs, baseline, best, metric)
        against = f"({label} {value[best.name]:.3f} against {value[baseline.name]:.3f})"
        if gap["difference"] < 0 and not gap["differs"]:
            ahead = _gap(_between(pairs, best, baseline, metric))
            return [
                f"Use {baseline.name} for now: {best.name} is above it by {ahead} {against}, which is not "
                "significant. Measure more rows to decide.",
                last,
            ]
        side = f"{_gap(gap)} below it" if _above(gap) else "not above it"
        others = [one.name for one in similar if one is not best]
        tie = f" (not significantly different: {', '.join(others)})" if others else ""
        return [
            f"Use {baseline.name}: no engine is worth its cost. {best.name}, the best engine{tie}, is {side} "
            f"{against}.",
            last,
        ]
    lines = [_reason(measured, pairs, metric=metric, label=label, value=value, chosen=chosen, best=best)]
    if baseline is not None:
        gap = _between(pairs, chosen, baseline, metric)
        lines.append(
            f"{chosen.name} is {_gap(gap)} above the best baseline, {baseline.name} "
            f"({label} {value[baseline.name]:.3f})."
        )
    fastest = _fastest(_engines(measured))
    if fastest not in similar and _ratio(chosen, fastest) >= FASTER:
        gap = _between(pairs, chosen, fastest, metric)
        if gap["difference"] > 0:
            lines.append(
                f"{fastest.name} is {_times(chosen, fastest)} per text, with {_gap(gap)} less {label}."
            )
    candidates = _above_baseline(similar, pairs, baseline=baseline, metric=metric)
    untrained = [one.name for one in candidates if one.kind in PROMPTED and one is not chosen]
    if untrained:
        lines.append(f"Not significantly worse, and without training: {', '.join(untrained)}.")
    error = chosen.metrics["ece"]["value"]
    if error is not None and error >= UNRELIABLE:
        lines.append(
            f"The probabilities of {chosen.name} are unreliable: on average they differ by {error:.2f} from "
            "the share of correct answers."
        )
    return [*lines, last]


def chosen_of(
    measured: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], *, metric: str = "accuracy"
) -> Measured:
    """Return the engine of rule 1 of `advise`, or the baseline of rule 2 or 4."""
    majority = next((one for one in measured if one.name == MAJORITY), None)
    if majority is not None:
        rest = [one for one in measured if one is not majority]
        if not _above_baseline(rest, pairs, baseline=majority, metric=metric):
            return majority
    _, similar = _best(measured, pairs, metric)
    baseline = _best_baseline(measured, metric)
    candidates = _above_baseline(similar, pairs, baseline=baseline, metric=metric)
    if baseline and not candidates:
        return baseline
    engines = _engines(measured)
    undominated = [one for one in candidates if not any(_dominates(other, one, metric) for other in engines)]
    return _fastest(undominated or candidates)


def _reason(
    measured: Sequence[Measured],
    pairs: Sequence[Mapping[str, Any]],
    *,
    metric: str,
    label: str,
    value: Mapping[str, float],
    chosen: Measured,
    best: Measured,
) -> str:
    """Return the sentence that compares the chosen engine with the other engines."""
    others = [one for one in measured if one.kind != BASELINE and one is not best]
    if chosen is not best:
        return (
            f"Use {chosen.name}: it is not significantly worse than {best.name} "
            f"({label} {value[chosen.name]:.3f} against {value[best.name]:.3f}; difference "
            f"{_gap(_between(pairs, best, chosen, metric))}), and {_times(best, chosen)} per text."
        )
    if not others:
        return f"Use {best.name}, the only engine that was measured ({label} {value[best.name]:.3f})."
    other = max(others, key=lambda one: value[one.name])
    gap = _between(pairs, best, other, metric)
    lead = f"Use {best.name}: it has the best {label}, {value[best.name]:.3f}"
    if gap["differs"]:
        return f"{lead}, {_gap(gap)} above {other.name}, which is significant."
    baseline = _best_baseline(measured, metric)
    above = _above_baseline([other], pairs, baseline=baseline, metric=metric)
    but = "not faster" if above else "not significantly above the best baseline"
    return f"{lead}. {other.name}, which has {value[other.name]:.3f}, is not significantly worse, but {but}."


def _best(
    measured: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], metric: str
) -> tuple[Measured, list[Measured]]:
    """Return the best engine, and a list of it and the engines without a significant difference from it."""
    engines = _engines(measured)
    best = max(engines, key=lambda one: one.metrics[metric]["value"])
    others = [one for one in engines if one is not best]
    return best, [best, *(one for one in others if not _between(pairs, best, one, metric)["differs"])]


def _engines(measured: Sequence[Measured]) -> list[Measured]:
    return [one for one in measured if one.kind != BASELINE]


def _what_to_do(
    measured: Sequence[Measured],
    pairs: Sequence[Mapping[str, Any]],
    *,
    majority: Measured,
    best: Measured,
    metric: str,
) -> str:
    """Return the next steps if no engine is above the most frequent label."""
    steps = ["check that texts and labels of the data belong together"]
    if any(one.kind in TRAINED for one in _engines(measured)):
        steps.append("train longer, on more rows or with a higher --learning_rate")
    if any(one.kind in PROMPTED for one in _engines(measured)):
        steps.append("prompt a larger instruction-tuned model, with descriptions of the labels")
    if _between(pairs, best, majority, metric)["difference"] > 0:
        steps.append("measure more rows")
    if metric == "accuracy":
        steps.append("compare by --figure macro_f1 if rare labels matter")
    return f"No engine is significantly above {majority.name}. Next: {'; '.join(steps)}."


def _best_baseline(measured: Sequence[Measured], metric: str) -> Measured | None:
    baselines = [one for one in measured if one.kind == BASELINE]
    return max(baselines, key=lambda one: one.metrics[metric]["value"]) if baselines else None


def _fastest(engines: Sequence[Measured]) -> Measured:
    return min(engines, key=lambda one: one.seconds_alone["median"])


def _dominates(other: Measured, one: Measured, metric: str) -> bool:
    """Return whether another engine is both faster and better."""
    better = other.metrics[metric]["value"] > one.metrics[metric]["value"]
    return better and _ratio(one, other) >= FASTER


def _above(gap: Mapping[str, Any]) -> bool:
    """Return whether a difference is positive and significant."""
    return bool(gap["differs"] and gap["difference"] > 0)


def _above_baseline(
    engines: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], *, baseline: Measured | None, metric: str
) -> list[Measured]:
    """Return the engines that are significantly above the best baseline; all without a baseline."""
    return [one for one in engines if baseline is None or _above(_between(pairs, one, baseline, metric))]


def _between(pairs: Sequence[Mapping[str, Any]], a: Measured, b: Measured, metric: str) -> dict[str, Any]:
    """Return the difference a - b, for either order of the pair."""
    for pair in pairs:
        if (pair["a"], pair["b"]) == (a.name, b.name):
            return dict(pair[metric])
        if (pair["a"], pair["b"]) == (b.name, a.name):
            entry = pair[metric]
            low, high = (None, None) if entry["low"] is None else (-entry["high"], -entry["low"])
            return {**entry, "difference": -entry["difference"], "low": low, "high": high}
    problem, expected = f"found no pair of {a.name} and {b.name}", "all pairs"
    fix = "pass the result of compare()"
    raise TaskHeadsError(Problem("comparison", problem, expected, fix, code="argument-type"))


def _gap(entry: Mapping[str, Any]) -> str:
    """Format a difference in points, with its interval."""
    points = f"{100 * entry['difference']:.1f} points"
    if entry["low"] is None:
        return points
    return f"{points} (95%: {100 * entry['low']:.1f} to {100 * entry['high']:.1f})"


def _times(slow: Measured, fast: Measured) -> str:
    ratio = _ratio(slow, fast)
    if ratio * FASTER <= 1:
        return f"{1 / ratio:.1f} times slower"
    return f"{ratio:.1f} times faster" if ratio >= FASTER else "about as fast"


def _ratio(slow: Measured, fast: Measured) -> float:
    return slow.seconds_alone["median"] / fast.seconds_alone["median"]


def verdicts(
    measured: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], *, metric: str = "accuracy"
) -> list[dict[str, Any]]:
    """Compare each trained engine with the best untrained engine or baseline, by the paired difference.

    Args:
        measured, pairs, metric: see `advise`.

    Returns:
        `engine`, `baseline`, its `value`, and `difference`, `low`, `high` and `word` as of
        `metrics.verdicts.paired_difference`; `beside`, the same for TF-IDF if it is not the best baseline.
    """
    others = [one for one in measured if one.kind not in TRAINED]
    if not others:
        return []
    best = max(others, key=lambda one: one.metrics[metric]["value"])
    tfidf = next((one for one in others if one.kind == BASELINE and one.name.startswith("TF-IDF")), best)

    def against(one: Measured, other: Measured) -> dict[str, Any]:
        gap = _between(pairs, one, other, metric)
        word = LEVEL if not gap["differs"] else ABOVE if gap["difference"] > 0 else BELOW
        interval = {name: gap[name] for name in ("difference", "low", "high")}
        return {"baseline": other.name, "value": other.metrics[metric]["value"], **interval, "word": word}

    entries = []
    for one in measured:
        if one.kind in TRAINED:
            also = {"beside": against(one, tfidf)} if tfidf is not best else {}
            entries.append({"engine": one.name, "metric": metric, **against(one, best), **also})
    return entries
