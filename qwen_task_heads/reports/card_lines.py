"""Sentences of cards and printed summaries: comparison with baselines, selection on dev, settings in effect.

Metrics come from the dictionary of `metrics.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qwen_task_heads.reports.markdown import code, escape, format_value, metric_name
from qwen_task_heads.reports.records import MODEL, RunRecord

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


def picked_what(settings: Mapping[str, Any]) -> str:
    """Return the noun for the selection on dev: the head of a sweep, or a checkpoint."""
    return "head" if "penalties" in settings else "checkpoint"


def picked_line(record: RunRecord) -> str:
    """Return step and dev metric of the selection, to follow "on the dev set"; "" if unknown."""
    if not record.selected:
        return ""
    [(what, value)] = record.selected.items()
    selected = f"step {value:,}" if what == "step" else f"{what} {value:g}"
    metric = record.metrics["dev"][MODEL][record.main_metric]["value"]
    return f"{selected}, with {metric_name(record.main_metric)} {format_value(metric)} there"


def reported_on(record: RunRecord) -> str:
    """Return a sentence on the split of the metrics, and whether the training saw it."""
    if record.reported == "test" and record.test_seen:
        rows = "one row of which is" if record.test_seen == 1 else f"{record.test_seen:,} rows of which are"
        return f"On the test set, {rows} also in train: the metrics are optimistic."
    if record.reported == "test":
        return "On the test set, which was used neither for training nor for model selection."
    if record.picked:
        picked = picked_what(record.settings)
        return f"On the dev set, which also selected the {picked}: expect lower values on new data."
    return "On the dev set, which was not used for model selection: the weights are the last of the run."


def time_line(train: Mapping[str, Any]) -> str:
    """Return a sentence on time, device and processes; `train` is an entry of `metrics.json`."""
    count = train["processes"]
    processes = "one process" if count == 1 else f"{count} processes"
    since = ", counted from the checkpoint from which the run resumed" if train["resumed"] else ""
    return f"Training took {train['seconds']:,.1f} s on {escape(train['device'])}, {processes}{since}."


def loss_line(record: RunRecord, losses: Mapping[str, Any]) -> str:
    """Return formula and source of the run's loss, by default the first; "" for an unknown one."""
    loss = losses.get(str(record.settings.get("loss") or next(iter(losses))))
    return f"Loss: {code(loss.formula)} ({escape(loss.source)})." if loss else ""


def settings_in_effect(record: RunRecord) -> dict[str, Any]:
    """Return the settings that had an effect on the run."""
    settings, omitted = record.settings, set()
    if not record.picked:
        omitted.add("metric_for_best_model")
    omitted |= {f"{split}_fraction" for split in ("dev", "test") if split not in record.cut}
    return {
        name: value
        for name, value in settings.items()
        if name not in omitted and not (name in WITHOUT_EFFECT and WITHOUT_EFFECT[name](settings))
    }
