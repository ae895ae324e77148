"""Lines that all cards share: comparison with baselines, selected checkpoint, settings in effect.

Metrics come from the dictionary of `metrics.json`. The selected step comes from the log of the trainer. It is
stated if the logged metric of that step equals the dev metric of the finished model; else it is omitted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from qwen_task_heads.reports.finishing import MODEL
from qwen_task_heads.reports.markdown import escape, format_value, metric_name

if TYPE_CHECKING:
    from qwen_task_heads.reports.finishing import RunRecord

TOLERANCE = 0.005  # the log has the precision of the training, `metrics.json` fp32
SWEPT = ("layers", "poolings", "heads", "losses", "penalties", "seeds", "tolerance", "task")
OPTIMIZER = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "optim",
    "disable_dropout",
)
# From a setting to the condition under which it has no effect on the run.
WITHOUT_EFFECT: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "mix_ratio": lambda settings: not settings.get("mix"),
    "window_overlap": lambda settings: settings.get("truncation") != "windows",
    "window_aggregation": lambda settings: settings.get("truncation") != "windows",
    "head_activation": lambda settings: settings.get("head") != "mlp",
    "head_sizes": lambda settings: settings.get("head") != "mlp",
    "streaming": lambda settings: not settings["streaming"],
    "token_dropout": lambda settings: not settings["token_dropout"],
    "label_smoothing_factor": lambda settings: not settings["label_smoothing_factor"],
    "min_impressions": lambda settings: not settings["min_impressions"],
    "max_p_value": lambda settings: settings["max_p_value"] == 1.0,
    "greater_is_better": lambda settings: True,  # implied by the name of the metric
    # The values that a sweep tried; those of the saved head are among the other settings.
    **dict.fromkeys(SWEPT, lambda settings: "penalties" in settings),
    # A linear head is solved; these settings apply to an MLP.
    **dict.fromkeys(OPTIMIZER, lambda settings: "penalty" in settings),
}


COMPARISONS = {"above": "above it", "level": "level with it", "below": "below it"}


def verdict_lines(
    metrics: Mapping[str, Any], *, name_of: Callable[[str], str] = repr, strong: str = ""
) -> list[str]:
    """Return sentences that compare the model with the best baseline; [] without a verdict.

    Args:
        metrics: content of `metrics.json`, with `verdict` of `metrics.verdicts.give_verdict`.
        name_of: formats the name of a baseline.
        strong: markup on both sides of the comparison, unless it is "above".

    Example:
        >>> from qwen_task_heads.reports.card_lines import verdict_lines
        >>> found = {"split": "test", "metric": "accuracy", "baseline": "TF-IDF", "value": 0.5}
        >>> found |= {"difference": 0.1, "low": 0.04, "high": 0.16, "word": "above"}
        >>> print(*verdict_lines({"verdict": found}))
        The best baseline on test is 'TF-IDF' (accuracy 0.500); this model is above it: +0.100 (95% paired \
interval +0.040 to +0.160).
    """
    verdict = metrics.get("verdict")
    if not verdict:
        return []
    split, metric = verdict["split"], metric_name(verdict["metric"])
    entries = [(f"The best baseline on {split}", verdict), ("Another baseline", verdict.get("beside"))]
    sentences = []
    for subject, entry in entries:
        if entry:
            comparison = COMPARISONS[entry["word"]]
            if entry["word"] != "above":
                comparison = f"{strong}{comparison}{strong}"
            baseline = f"{name_of(entry['baseline'])} ({metric} {format_value(entry['value'])})"
            sentences.append(f"{subject} is {baseline}; this model is {comparison}: {_difference(entry)}.")
    return sentences


def card_verdict(metrics: Mapping[str, Any], split: str) -> str:
    """Return the comparison with the baselines as a paragraph of a card; "" without baselines."""
    lines = verdict_lines(metrics, name_of=lambda name: f"“{escape(name)}”", strong="**")
    if line := lookup_line(metrics, split):
        lines.append(line)
    return " ".join(lines)


def lookup_line(metrics: Mapping[str, Any], split: str) -> str:
    """Return the coverage of the lookup baseline; "" if no row of the split is in train."""
    report = metrics.get("lookup", {}).get(split)
    if not report or not report["known"]:
        return ""
    share = f"{report['known']:,} of {report['rows']:,} rows of {split} ({100 * report['coverage']:.1f}%)"
    return (
        f"The lookup of train rows knows {share}. It compares whole texts, so its accuracy measures "
        "leakage only."
    )


def _difference(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return f"{signed(entry['difference'])} (no interval)"
    between = f"{signed(entry['low'])} to {signed(entry['high'])}"
    return f"{signed(entry['difference'])} (95% paired interval {between})"


def signed(value: float) -> str:
    """Format a difference with its sign.

    Example:
        >>> from qwen_task_heads.reports.card_lines import signed
        >>> signed(0.01234), signed(-0.00001)
        ('+0.012', '+0.000')
    """
    return f"{round(value, 3) + 0.0:+.3f}"


def picked_line(run: RunRecord, metrics: Mapping[str, Any], *, main: str) -> str:
    """Return step and dev metric of the selected checkpoint, to follow "on the dev set"; "" if unknown.

    Args:
        run: its log has the metric of each evaluation on dev.
        metrics: content of `metrics.json`.
        main: metric that selects checkpoints by default.
    """
    key = str(run.settings.get("metric_for_best_model") or "")
    key = key if key.startswith("eval_") else f"eval_{key}"
    if key.removeprefix("eval_") not in (main, main.removeprefix("pair_")) or MODEL not in metrics.get(
        "dev", ()
    ):
        return ""
    evaluations = [entry for entry in run.log_history if entry.get(key) is not None]
    value = metrics["dev"][MODEL][main]["value"]
    if not evaluations or value is None:
        return ""
    best = max(evaluations, key=lambda entry: float(entry[key]))  # the first of equals, as the trainer does
    if abs(float(best[key]) - value) > TOLERANCE:
        return ""
    selected = f"penalty {best['penalty']:g}" if "penalty" in best else f"step {best['step']:,}"
    return f"{selected}, with {metric_name(main)} {format_value(value)} there"


def settings_in_effect(
    settings: Mapping[str, str], run: RunRecord, *, cut: Collection[str]
) -> dict[str, str]:
    """Return the rows of the table of settings that had an effect on the run.

    Args:
        settings: rows of the table, escaped.
        run: its settings, not escaped.
        cut: splits that were cut from the training data, by `dev_fraction` and `test_fraction`.
    """
    omitted = {
        escape(name)
        for name, applies in WITHOUT_EFFECT.items()
        if name in run.settings and applies(run.settings)
    }
    if not run.picked:
        omitted.add("metric_for_best_model")
    omitted |= {escape(f"{split}_fraction") for split in ("dev", "test") if split not in cut}
    return {name: value for name, value in settings.items() if name not in omitted}
