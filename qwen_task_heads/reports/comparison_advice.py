"""What to use, told from the figures of a comparison by rules that `advise` states.

No rule looks at more than the table shows, and every sentence names the figures it comes from. What was not
measured (other rows, another machine, the cost of labels) is not advised on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.inference.engine_options import FEW_SHOT, TRAINED, ZERO_SHOT
from qwen_task_heads.metrics.text_baselines import MAJORITY
from qwen_task_heads.metrics.verdicts import ABOVE, BELOW, LEVEL
from qwen_task_heads.reports.comparison import BASELINE, Measured

UNSURE = 0.1  # calibration error from which probabilities are not to be taken at their word
PROMPTED = (ZERO_SHOT, FEW_SHOT)
FASTER = 1.05  # times, below which two are about as fast


def advise(
    measured: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], *, figure: str = "accuracy", rows: str
) -> list[str]:
    """Sentences on what to use, by rules; the first one says it.

    1. The best engine has the highest figure. Engines whose difference from it has an interval with 0 in it
       are not told from it by these rows. Of these, and of it, the fastest text by text is advised that is
       above the best baseline, by more than chance, and that no other engine beats in both figure and time.
    2. Where none is, the baseline is advised; for now, where the best engine is ahead of it by what may be
       chance.
    3. What needed no training is named where rule 1 did not pass it over for the baseline.
    4. If nothing is above the most frequent label by more than chance, that baseline is advised. If no engine
       is, the advice says so, and what to do.
    5. An advised engine with a calibration error of `UNSURE` or more is not to be taken at its word.

    Args:
        measured: engines and baselines.
        pairs: of `compare`.
        figure: `accuracy` or `macro_f1`.
        rows: what was measured on, such as `the 500 rows of test`.
    """
    told = figure.replace("macro_f1", "macro F1")
    value = {one.name: one.figures[figure]["value"] for one in measured}
    best, alike = _best(measured, pairs, figure)
    last = f"This holds for {rows} and the time of this machine, and for nothing else."
    if best.figures[figure]["n_groups"] < 2:
        return ["All rows are of one group: there is no telling a difference from chance.", last]
    baseline, chosen = _best_baseline(measured, figure), chosen_of(measured, pairs, figure=figure)
    majority = next((one for one in measured if one.name == MAJORITY), None)
    if majority is not None and not _above_baseline(
        _engines(measured), pairs, baseline=majority, figure=figure
    ):
        last = f"{_what_to_do(measured, pairs, majority=majority, best=best, figure=figure)} {last}"
    if chosen is majority and majority is not None:
        others = [one.name for one in measured if one.kind == BASELINE and one is not majority]
        also = f", and neither is {' or '.join(others)}" if others else ""
        return [
            f"Use {majority.name} for now: no engine is above it by more than chance{also}. {best.name}, the "
            f"best engine, has {told} {value[best.name]:.3f} against {value[majority.name]:.3f}.",
            last,
        ]
    if chosen is baseline:
        gap = _between(pairs, baseline, best, figure)
        against = f"({told} {value[best.name]:.3f} against {value[baseline.name]:.3f})"
        if gap["difference"] < 0 and not gap["differs"]:
            ahead = _gap(_between(pairs, best, baseline, figure))
            return [
                f"Use {baseline.name} for now: {best.name} is ahead of it by {ahead} {against}, which may be "
                "chance. More rows would tell.",
                last,
            ]
        side = f"{_gap(gap)} below it" if _above(gap) else "not above it"
        other = [one.name for one in alike if one is not best]
        tie = f", with {', '.join(other)} not told from it by these rows" if other else ""
        return [
            f"Use {baseline.name}: no engine is worth its cost yet. Even {best.name}, the best of them{tie}, is "
            f"{side} {against}.",
            last,
        ]
    lines = [_reason(measured, pairs, figure=figure, told=told, value=value, chosen=chosen, best=best)]
    if baseline is not None:
        gap = _between(pairs, chosen, baseline, figure)
        lines.append(
            f"{chosen.name} is {_gap(gap)} above the best baseline, {baseline.name} "
            f"({told} {value[baseline.name]:.3f})."
        )
    quick = _fastest(_engines(measured))
    if quick not in alike and _ratio(chosen, quick) >= FASTER:
        gap = _between(pairs, chosen, quick, figure)
        if gap["difference"] > 0:
            lines.append(f"{quick.name} is {_times(chosen, quick)} per text, for {_gap(gap)} less {told}.")
    passed = _above_baseline(alike, pairs, baseline=baseline, figure=figure)
    if free := [one.name for one in passed if one.kind in PROMPTED and one is not chosen]:
        lines.append(f"Not clearly worse, and without any training: {', '.join(free)}.")
    error = chosen.figures["ece"]["value"]
    if error is not None and error >= UNSURE:
        lines.append(
            f"Do not take the probabilities of {chosen.name} at their word: on average they are {error:.2f} "
            "away from the share of answers that are right."
        )
    return [*lines, last]


def chosen_of(
    measured: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], *, figure: str = "accuracy"
) -> Measured:
    """What `advise` advises: the engine of rule 1, or the baseline of rule 2 or 4."""
    majority = next((one for one in measured if one.name == MAJORITY), None)
    if majority is not None:
        rest = [one for one in measured if one is not majority]
        if not _above_baseline(rest, pairs, baseline=majority, figure=figure):
            return majority
    _, alike = _best(measured, pairs, figure)
    baseline = _best_baseline(measured, figure)
    passed = _above_baseline(alike, pairs, baseline=baseline, figure=figure)
    engines = _engines(measured)
    unbeaten = [one for one in passed if not any(_beats(other, one, figure) for other in engines)]
    return baseline if baseline and not passed else _fastest(unbeaten or passed)


def _reason(
    measured: Sequence[Measured],
    pairs: Sequence[Mapping[str, Any]],
    *,
    figure: str,
    told: str,
    value: Mapping[str, float],
    chosen: Measured,
    best: Measured,
) -> str:
    """Why the chosen one, against the other engines."""
    others = [one for one in measured if one.kind != BASELINE and one is not best]
    if chosen is not best:
        return (
            f"Use {chosen.name}: it is not clearly worse than {best.name} ({told} {value[chosen.name]:.3f} "
            f"against {value[best.name]:.3f}; the difference, {_gap(_between(pairs, best, chosen, figure))}, "
            f"may be chance), and {_times(best, chosen)} per text."
        )
    if not others:
        return f"Use {best.name}, the only engine that was measured ({told} {value[best.name]:.3f})."
    other = max(others, key=lambda one: value[one.name])
    gap = _between(pairs, best, other, figure)
    lead = f"Use {best.name}: it has the best {told}, {value[best.name]:.3f}"
    if gap["differs"]:
        return f"{lead}, {_gap(gap)} above {other.name}, which is more than chance."
    baseline = _best_baseline(measured, figure)
    passed = _above_baseline([other], pairs, baseline=baseline, figure=figure)
    but = "no faster" if passed else "not clearly above the best baseline"
    return f"{lead}. {other.name}, which has {value[other.name]:.3f}, is not clearly worse, but {but}."


def _best(
    measured: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], figure: str
) -> tuple[Measured, list[Measured]]:
    """The engine with the highest figure; it, and all that the rows do not tell from it."""
    engines = _engines(measured)
    best = max(engines, key=lambda one: one.figures[figure]["value"])
    others = [one for one in engines if one is not best]
    return best, [best, *(one for one in others if not _between(pairs, best, one, figure)["differs"])]


def _engines(measured: Sequence[Measured]) -> list[Measured]:
    return [one for one in measured if one.kind != BASELINE]


def _what_to_do(
    measured: Sequence[Measured],
    pairs: Sequence[Mapping[str, Any]],
    *,
    majority: Measured,
    best: Measured,
    figure: str,
) -> str:
    """Name the next steps if no engine is above the most frequent label."""
    steps = ["check that texts and labels of the data belong together"]
    if any(one.kind in TRAINED for one in _engines(measured)):
        steps.append("train longer, on more rows or with a higher --learning_rate")
    if any(one.kind in PROMPTED for one in _engines(measured)):
        steps.append("ask a larger model that follows instructions, with descriptions of the labels")
    if _between(pairs, best, majority, figure)["difference"] > 0:
        steps.append("measure more rows")
    if figure == "accuracy":
        steps.append("compare by --figure macro_f1 if rare labels matter")
    return f"No engine is above {majority.name} by more than chance. Next: {'; '.join(steps)}."


def _best_baseline(measured: Sequence[Measured], figure: str) -> Measured | None:
    baselines = [one for one in measured if one.kind == BASELINE]
    return max(baselines, key=lambda one: one.figures[figure]["value"]) if baselines else None


def _fastest(engines: Sequence[Measured]) -> Measured:
    return min(engines, key=lambda one: one.seconds_alone["median"])


def _beats(other: Measured, one: Measured, figure: str) -> bool:
    """Whether another engine is both faster and better."""
    better = other.figures[figure]["value"] > one.figures[figure]["value"]
    return better and _ratio(one, other) >= FASTER


def _above(gap: Mapping[str, Any]) -> bool:
    """Above, by more than chance."""
    return bool(gap["differs"] and gap["difference"] > 0)


def _above_baseline(
    engines: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], *, baseline: Measured | None, figure: str
) -> list[Measured]:
    """Those that are above the best baseline by more than chance; all without a baseline."""
    return [one for one in engines if baseline is None or _above(_between(pairs, one, baseline, figure))]


def _between(pairs: Sequence[Mapping[str, Any]], a: Measured, b: Measured, figure: str) -> dict[str, Any]:
    """The difference a - b, whichever way round it was computed."""
    for pair in pairs:
        if (pair["a"], pair["b"]) == (a.name, b.name):
            return dict(pair[figure])
        if (pair["a"], pair["b"]) == (b.name, a.name):
            found = pair[figure]
            low, high = (None, None) if found["low"] is None else (-found["high"], -found["low"])
            return {**found, "difference": -found["difference"], "low": low, "high": high}
    found = f"found no pair of {a.name} and {b.name}"
    raise TaskHeadsError(Problem("comparison", found, "all pairs", "give those of compare()"))


def _gap(found: Mapping[str, Any]) -> str:
    """A difference in points, with its interval."""
    points = f"{100 * found['difference']:.1f} points"
    if found["low"] is None:
        return points
    return f"{points} (95%: {100 * found['low']:.1f} to {100 * found['high']:.1f})"


def _times(slow: Measured, fast: Measured) -> str:
    ratio = _ratio(slow, fast)
    if ratio * FASTER <= 1:
        return f"{1 / ratio:.1f} times slower"
    return f"{ratio:.1f} times faster" if ratio >= FASTER else "about as fast"


def _ratio(slow: Measured, fast: Measured) -> float:
    return slow.seconds_alone["median"] / fast.seconds_alone["median"]


def verdicts(
    measured: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], *, figure: str = "accuracy"
) -> list[dict[str, Any]]:
    """Each trained engine beside the best of what no recipe trained, by the paired difference.

    Args:
        measured, pairs, figure: as of `advise`.

    Returns:
        `engine`, `baseline`, its `value`, and `difference`, `low`, `high` and `word` as of
        `metrics.verdicts.paired_difference`; `beside`, the same against TF-IDF where that is not the best.
    """
    others = [one for one in measured if one.kind not in TRAINED]
    if not others:
        return []
    best = max(others, key=lambda one: one.figures[figure]["value"])
    tfidf = next((one for one in others if one.kind == BASELINE and one.name.startswith("TF-IDF")), best)

    def against(one: Measured, other: Measured) -> dict[str, Any]:
        gap = _between(pairs, one, other, figure)
        word = LEVEL if not gap["differs"] else ABOVE if gap["difference"] > 0 else BELOW
        told = {name: gap[name] for name in ("difference", "low", "high")}
        return {"baseline": other.name, "value": other.figures[figure]["value"], **told, "word": word}

    found = []
    for one in measured:
        if one.kind in TRAINED:
            also = {"beside": against(one, tfidf)} if tfidf is not best else {}
            found.append({"engine": one.name, "metric": figure, **against(one, best), **also})
    return found
