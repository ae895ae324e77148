"""What all cards say of a run: the verdict beside the floors, the checkpoint picked, the settings in force.

Figures come from `metrics.json`'s dictionary. Which step was picked only the trainer's log knows; it is told
where the log's figure of that step is also the dev figure of the finished model, and else left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from qwen_task_heads.publishing.endings import MODEL
from qwen_task_heads.publishing.shown import figure, figure_name, plain

if TYPE_CHECKING:
    from qwen_task_heads.publishing.endings import Account

AGREES = 0.005  # the log is of training's own precision, `metrics.json` of fp32
# What plays no part in a run, name of the setting to when that is so.
IDLE: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "mix_ratio": lambda told: not told.get("mix"),
    "window_overlap": lambda told: told.get("truncation") != "windows",
    "window_aggregation": lambda told: told.get("truncation") != "windows",
    "head_activation": lambda told: told.get("head") != "mlp",
    "head_sizes": lambda told: told.get("head") != "mlp",
    "streaming": lambda told: not told["streaming"],
    "token_dropout": lambda told: not told["token_dropout"],
    "label_smoothing_factor": lambda told: not told["label_smoothing_factor"],
    "min_impressions": lambda told: not told["min_impressions"],
    "max_p_value": lambda told: told["max_p_value"] == 1.0,
    "greater_is_better": lambda told: True,  # the name of the metric says it
}


ABOVE, NOT_ABOVE = "above it", "not above it"
PERHAPS = "above it, by no more than may be chance: its interval reaches down to the floor"


def best_floor(found: Mapping[str, Mapping[str, Any]], main: str) -> tuple[str, float, str] | None:
    """Name and figure of the best floor, and where the model is beside it as both are shown; None without.

    Args:
        found: scorer to its figures, from `metrics.json`.
        main: the figure that is compared; more is better.

    Example:
        >>> from qwen_task_heads.publishing.card_lines import best_floor
        >>> figures = {"this model": {"accuracy": {"value": 0.8}}, "always 'a'": {"accuracy": {"value": 0.5}}}
        >>> best_floor(figures, "accuracy")
        ("always 'a'", 0.5, 'above it')
    """
    low = found[MODEL][main].get("low")
    values = {name: entry[main]["value"] for name, entry in found.items() if main in entry}
    ours = values.pop(MODEL)
    floors = {name: value for name, value in values.items() if value is not None}
    if not floors:
        return None
    name = max(floors, key=lambda name: floors[name])
    if ours is None or round(ours, 3) <= round(floors[name], 3):
        return name, floors[name], NOT_ABOVE
    return name, floors[name], ABOVE if low is None or low > floors[name] else PERHAPS


def verdict_line(found: Mapping[str, Mapping[str, Any]], main: str) -> str:
    """Whether the model is above the best floor, for a card; "" without floors."""
    if (best := best_floor(found, main)) is None:
        return ""
    name, value, verdict = best
    verdict = f"**{verdict}**" if verdict == NOT_ABOVE else verdict
    return (
        f"The best floor is “{plain(name)}” ({figure_name(main)} {figure(value)}); this model is {verdict}."
    )


def picked_line(run: Account, metrics: Mapping[str, Any], *, main: str) -> str:
    """Step and dev figure of the checkpoint that was picked, to follow "on the dev set"; "" if not known.

    Args:
        run: of which the log of the trainer holds a figure per look at dev.
        metrics: the content of `metrics.json`.
        main: the figure in it that the trainer picks by, where it picks by its usual one.
    """
    key = str(run.settings.get("metric_for_best_model") or "")
    key = key if key.startswith("eval_") else f"eval_{key}"
    if key.removeprefix("eval_") not in (main, main.removeprefix("pair_")) or MODEL not in metrics.get(
        "dev", ()
    ):
        return ""
    looks = [entry for entry in run.log_history if entry.get(key) is not None]
    value = metrics["dev"][MODEL][main]["value"]
    if not looks or value is None:
        return ""
    best = max(looks, key=lambda entry: float(entry[key]))  # the first of equals, as the trainer does
    if abs(float(best[key]) - value) > AGREES:
        return ""
    return f"step {best['step']:,}, with {figure_name(main)} {figure(value)} there"


def in_force(settings: Mapping[str, str], run: Account, *, cut: Collection[str]) -> dict[str, str]:
    """The rows of the table of settings without those that play no part.

    Args:
        settings: rows as shown.
        run: its settings as they were.
        cut: names of the sets that were cut from the training data, by `dev_fraction` and `test_fraction`.
    """
    idle = {plain(name) for name, rest in IDLE.items() if name in run.settings and rest(run.settings)}
    idle |= {"metric_for_best_model"} if not run.picked else set()
    idle |= {plain(f"{name}_fraction") for name in ("dev", "test") if name not in cut}
    return {name: value for name, value in settings.items() if name not in idle}
