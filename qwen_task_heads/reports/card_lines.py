"""What all cards say of a run: the verdict beside baselines, the checkpoint picked, the settings in force.

Figures come from `metrics.json`'s dictionary. Which step was picked only the trainer's log knows; it is told
where the log's figure of that step is also the dev figure of the finished model, and else left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from qwen_task_heads.reports.finishing import MODEL
from qwen_task_heads.reports.markdown import figure, figure_name, plain

if TYPE_CHECKING:
    from qwen_task_heads.reports.finishing import RunRecord

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
    # Of a sweep, what was tried; what was picked stands in the settings of the head.
    **dict.fromkeys(
        ("layers", "poolings", "heads", "losses", "penalties", "seeds", "tolerance", "task"),
        lambda told: "penalties" in told,
    ),
    # A linear head is solved; steps and rates are those of an MLP.
    **dict.fromkeys(
        (
            "learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
            "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm",
            "optim", "disable_dropout",
        ),
        lambda told: "penalty" in told,
    ),
}  # fmt: skip


STANDS = {"above": "above it", "level": "level with it", "below": "below it"}


def verdict_lines(
    metrics: Mapping[str, Any], *, name_of: Callable[[str], str] = repr, strong: str = ""
) -> list[str]:
    """Where the model stands beside the best baseline, for the screen or a card; [] without a verdict.

    Args:
        metrics: the content of `metrics.json`, with `verdict` of `metrics.verdicts.give_verdict`.
        name_of: writes the name of a baseline.
        strong: stands on both sides of a word that is not above.

    Example:
        >>> from qwen_task_heads.reports.card_lines import verdict_lines
        >>> found = {"split": "test", "metric": "accuracy", "baseline": "TF-IDF", "value": 0.5}
        >>> found |= {"difference": 0.1, "low": 0.04, "high": 0.16, "word": "above"}
        >>> print(*verdict_lines({"verdict": found}))
        The best baseline on test is 'TF-IDF' (accuracy 0.500); this model is above it: +0.100 (95% paired \
interval +0.040 to +0.160).
    """
    found = metrics.get("verdict")
    if not found:
        return []
    split, metric = found["split"], figure_name(found["metric"])
    told = []
    for entry, what in ((found, f"The best baseline on {split}"), (found.get("beside"), "Another baseline")):
        if entry:
            word = STANDS[entry["word"]]
            word = word if entry["word"] == "above" else f"{strong}{word}{strong}"
            of = f"{metric} {figure(entry['value'])}"
            said = f"{name_of(entry['baseline'])} ({of}); this model is {word}: {_difference(entry)}"
            told.append(f"{what} is {said}.")
    return told


def card_verdict(metrics: Mapping[str, Any], split: str) -> str:
    """The verdict as a paragraph of a card; "" without baselines."""
    lines = verdict_lines(metrics, name_of=lambda name: f"“{plain(name)}”", strong="**")
    return " ".join([*lines, *([line] if (line := lookup_line(metrics, split)) else [])])


def lookup_line(metrics: Mapping[str, Any], split: str) -> str:
    """What the lookup of training rows rests on, where it knows some; "" where it knows none."""
    found = metrics.get("lookup", {}).get(split)
    if not found or not found["known"]:
        return ""
    share = f"{found['known']:,} of {found['rows']:,} rows of {split} ({100 * found['coverage']:.1f}%)"
    return f"The lookup of train rows knows {share}. It reads no words, and is right by leaks alone."


def _difference(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return f"{signed(entry['difference'])} (no interval)"
    between = f"{signed(entry['low'])} to {signed(entry['high'])}"
    return f"{signed(entry['difference'])} (95% paired interval {between})"


def signed(value: float) -> str:
    """A difference with its sign.

    Example:
        >>> from qwen_task_heads.reports.card_lines import signed
        >>> signed(0.01234), signed(-0.00001)
        ('+0.012', '+0.000')
    """
    return f"{round(value, 3) + 0.0:+.3f}"


def picked_line(run: RunRecord, metrics: Mapping[str, Any], *, main: str) -> str:
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
    which = f"penalty {best['penalty']:g}" if "penalty" in best else f"step {best['step']:,}"
    return f"{which}, with {figure_name(main)} {figure(value)} there"


def in_force(settings: Mapping[str, str], run: RunRecord, *, cut: Collection[str]) -> dict[str, str]:
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
