"""Summaries of a calibration for the printed report and the card, from the record in `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_task_heads.reports.markdown import escape, format_interval, format_value, metric_name
from qwen_task_heads.reports.records import RunRecord

SIDES = ("before", "after")
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of wrong answers


def calibration_line(record: Mapping[str, Any], reported: str) -> str:
    """Return the printed summary of a calibration.

    Args:
        record: of `metrics.json`.
        reported: split whose metrics are printed.
    """
    entries = record["metrics"][reported]
    if "questions" in record:
        fitted = {name: own["temperature"] for name, own in record["questions"].items()}
        used = ", ".join(f"{name} {format_value(value)}" for name, value in fitted.items() if value != 1)
        return f"Calibration: a temperature per question ({used or 'none was fitted, see metrics.json'})."
    sides = {name: [format_value(entry[side]["value"]) for side in SIDES] for name, entry in entries.items()}
    if record["temperature"] == 1:
        temperature = f"no temperature ({record['reason']})"
        changes = {name: after for name, (_, after) in sides.items()}
    else:
        temperature = f"temperature {format_value(record['temperature'])}"
        changes = {name: " → ".join(values) for name, values in sides.items()}
    metrics = ", ".join(f"{metric_name(name)} {changes[name]}" for name in ("ece", "brier"))
    line = f"Calibration: {temperature}; on {reported} {metrics}."
    if "macro_f1" in sides:
        before, after = sides["macro_f1"]
        rule = record["thresholds"]["rule"]
        line += f"\nThresholds per label ({rule} on dev): macro F1 {after} on {reported}, {before} at .5."
    return line


def calibration_fields(record: RunRecord) -> dict[str, Any] | None:
    """Return the fields of the card's section on calibration; None if the model was not calibrated."""
    calibration = record.metrics.get("calibration")
    if not calibration:
        return None
    if "questions" in calibration:
        return _question_fields(calibration, reported=record.reported)
    fitted = calibration.get("thresholds", {})
    has_thresholds = bool(fitted) and "reason" not in fitted
    rows = [
        [metric_name(name), *(format_interval(entry[side]) for side in SIDES)]
        for name, entry in calibration["metrics"][record.reported].items()
    ]
    curve = [] if fitted else calibration.get("risk_coverage", [])
    return {
        "temperature": _temperature_text(calibration),
        "rows": rows if calibration["temperature"] != 1 or has_thresholds else [],
        "thresholds": has_thresholds,
        "threshold_rule": escape(fitted.get("rule", "")),
        "threshold_reason": escape(fitted.get("reason", "")),
        "never_predicted": ", ".join(map(escape, fitted.get("never_predicted", []))),
        "rates": [] if record.is_title_scorer else _rates(curve),
    }


def _question_fields(calibration: Mapping[str, Any], *, reported: str) -> dict[str, Any]:
    """Return the fields of a model with several questions, which have a temperature each."""
    fitted = {name: own for name, own in calibration["questions"].items() if own["temperature"] != 1}
    lines = [
        f"{escape(name)}: {format_value(own['temperature'])} ({own['rows']:,} rows of dev)"
        for name, own in fitted.items()
    ]
    lines += [
        f"{escape(name)}: none, because {escape(own['reason'])}"
        for name, own in calibration["questions"].items()
        if name not in fitted
    ]
    rows = [
        [escape(metric_name(name)), *(format_interval(entry[side]) for side in SIDES)]
        for name, entry in calibration["metrics"][reported].items()
        if name.rpartition(".")[0] in fitted
    ]
    text = (
        "A temperature per question, folded into the weights of the head (Guo et al. 2017, arXiv:1706.04599)"
    )
    return {
        "temperature": f"{text}: {'; '.join(lines)}.",
        "rows": rows,
        "thresholds": False,
        "threshold_rule": "",
        "threshold_reason": "",
        "never_predicted": "",
        "rates": [],
    }


def _rates(curve: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """Return rows of error rate, coverage, lowest probability and error on dev, for reachable rates."""
    rows = []
    for rate in RATES:
        fitting = [row for row in curve if row["upper"] <= rate]
        if fitting:
            best = max(fitting, key=lambda row: row["coverage"])
            rows.append(
                [f"{rate:g}", *(format_value(best[name]) for name in ("coverage", "confidence", "error"))]
            )
    return rows


def _temperature_text(record: Mapping[str, Any]) -> str:
    """Return the paragraph of a card on the temperature."""
    if record["temperature"] == 1:
        return f"No temperature divides the logits: {escape(record['reason'])}."
    text = (
        f"A temperature of {format_value(record['temperature'])}, fitted on {record['rows']:,} rows of dev, "
        "is folded into the weights of the head (Guo et al. 2017, arXiv:1706.04599). Every way to load the "
        "model therefore returns calibrated probabilities."
    )
    if changed := record.get("changed_answers"):
        text += f" It changed {changed:,} predictions on dev, which a temperature can do in an ordinal model."
    return text
