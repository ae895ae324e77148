"""What to use, told from the figures of a comparison by rules that `advise` states.

No rule looks at more than the table shows, and every sentence names the figures it comes from. What was not
measured (other rows, another machine, the cost of labels) is not advised on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.publishing.comparison import FLOOR, Measured

UNSURE = 0.1  # calibration error from which probabilities are not to be taken at their word


def advise(
    measured: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], *, figure: str = "accuracy", rows: str
) -> list[str]:
    """Sentences on what to use, by rules.

    1. The best engine has the highest figure. Engines whose difference from it has an interval with 0 in it
       are as good as it within noise; the fastest of these, text by text, is advised.
    2. Where no engine is above the best floor, beyond noise, the floor is advised.
    3. What needed no training is named if it is as good as the best.
    4. An advised engine with a calibration error of `UNSURE` or more is not to be taken at its word.

    Args:
        measured: engines and floors.
        pairs: of `compare`.
        figure: `accuracy` or `macro_f1`.
        rows: what was measured on, such as `the 500 rows of test`.
    """
    told = figure.replace("macro_f1", "macro F1")
    value = {one.name: one.figures[figure]["value"] for one in measured}
    engines = [one for one in measured if one.kind != FLOOR]
    best, alike = _best(measured, pairs, figure)
    chosen = _fastest(alike)
    lines, last = [], f"This holds for {rows} and the time of this machine, and for nothing else."
    if all(pair[figure]["low"] is None for pair in pairs):
        lines.append("All rows are of one group: there is no telling a difference from noise.")
    elif chosen is not best:
        gap, times = _between(pairs, best, chosen, figure), _times(best, chosen)
        lines.append(
            f"{chosen.name} is as good as {best.name} within noise ({told} {value[chosen.name]:.3f} against "
            f"{value[best.name]:.3f}; the difference, {_gap(gap)}, may be none) and {times} per text."
        )
    elif len(engines) > 1:
        other = max((one for one in engines if one is not best), key=lambda one: value[one.name])
        gap = _between(pairs, best, other, figure)
        only = f"{best.name} has the best {told}, {value[best.name]:.3f}"
        if gap["differs"]:
            lines.append(f"{only}: {_gap(gap)} above {other.name}, which is more than noise.")
        else:
            lines.append(
                f"{only}; as good within noise, and no faster: {', '.join(one.name for one in alike[1:])}."
            )
        quick = _fastest(engines)
        if quick is not best:
            lost = _gap(_between(pairs, best, quick, figure))
            lines.append(f"{quick.name} is {_times(best, quick)} per text, for {lost} of {told}.")
    else:
        lines.append(f"{best.name} was compared with floors only ({told} {value[best.name]:.3f}).")
    if best.figures[figure]["low"] is None:
        return [*lines, last]
    lines += _against_floors(measured, pairs, figure=figure, told=told, value=value, chosen=chosen, best=best)
    if free := [one.name for one in alike if one.kind in ("zero_shot", "few_shot") and one is not chosen]:
        lines.append(f"As good within noise without any training: {', '.join(free)}.")
    error = chosen.figures["ece"]["value"]
    if error is not None and error >= UNSURE:
        lines.append(f"The probabilities of {chosen.name} are off by {error:.2f} on average, and no chances.")
    return [*lines, last]


def chosen_of(
    measured: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], *, figure: str = "accuracy"
) -> Measured:
    """What `advise` advises: the engine of rule 1, or the floor of rule 2."""
    best, alike = _best(measured, pairs, figure)
    floor = _best_floor(measured, figure)
    if floor and not _above(_between(pairs, best, floor, figure)):
        return floor
    return _fastest(alike)


def _best(
    measured: Sequence[Measured], pairs: Sequence[Mapping[str, Any]], figure: str
) -> tuple[Measured, list[Measured]]:
    """The engine with the highest figure; it, and all that are as good within noise."""
    engines = [one for one in measured if one.kind != FLOOR]
    best = max(engines, key=lambda one: one.figures[figure]["value"])
    others = [one for one in engines if one is not best]
    return best, [best, *(one for one in others if not _between(pairs, best, one, figure)["differs"])]


def _best_floor(measured: Sequence[Measured], figure: str) -> Measured | None:
    floors = [one for one in measured if one.kind == FLOOR]
    return max(floors, key=lambda one: one.figures[figure]["value"]) if floors else None


def _fastest(engines: Sequence[Measured]) -> Measured:
    return min(engines, key=lambda one: one.seconds_alone["median"])


def _above(gap: Mapping[str, Any]) -> bool:
    """Above, and beyond noise."""
    return bool(gap["differs"] and gap["difference"] > 0)


def _against_floors(
    measured: Sequence[Measured],
    pairs: Sequence[Mapping[str, Any]],
    *,
    figure: str,
    told: str,
    value: Mapping[str, float],
    chosen: Measured,
    best: Measured,
) -> list[str]:
    floor = _best_floor(measured, figure)
    if floor is None:
        return []
    gap, ours = _between(pairs, best, floor, figure), _between(pairs, chosen, floor, figure)
    named = f"the best floor, {floor.name} ({told} {value[floor.name]:.3f})"
    if not _above(gap):
        side = "below" if gap["difference"] < 0 and gap["differs"] else "not above, beyond noise,"
        return [
            f"No engine is worth its cost yet: even {best.name} is {side} {named}. Use that, or more data."
        ]
    if not ours["differs"]:
        return [f"{chosen.name} is not above {named} beyond noise; {best.name} is."]
    return [f"It is {_gap(ours)} above {named}."]


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
    raise TaskHeadsError(Problem("comparison", found, "accepted: all pairs", "give those of compare()"))


def _gap(found: Mapping[str, Any]) -> str:
    """A difference in points, with its interval."""
    points = f"{100 * found['difference']:.1f} points"
    if found["low"] is None:
        return points
    return f"{points} (95%: {100 * found['low']:.1f} to {100 * found['high']:.1f})"


def _times(slow: Measured, fast: Measured) -> str:
    ratio = slow.seconds_alone["median"] / fast.seconds_alone["median"]
    return f"{ratio:.1f} times faster" if ratio >= 1.05 else "about as fast"
