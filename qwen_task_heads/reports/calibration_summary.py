"""What the screen and the card say of a calibration, from the record in `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_task_heads.reports.markdown import figure, figure_name, interval, plain

SIDES = ("before", "after")
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of wrong answers


def calibration_line(record: Mapping[str, Any], reported: str) -> str:
    """What a run says of its calibration on the screen.

    Args:
        record: of `metrics.json`.
        reported: the split whose metrics are named.
    """
    found = record["metrics"][reported]
    sides = {name: [figure(entry[side]["value"]) for side in SIDES] for name, entry in found.items()}
    shown = {name: values if record["temperature"] != 1 else values[1:] for name, values in sides.items()}
    told = ", ".join(f"{figure_name(name)} {' → '.join(shown[name])}" for name in ("ece", "brier"))
    words = f"temperature {figure(record['temperature'])}"
    if record["temperature"] == 1:
        words = f"no temperature ({record['reason']})"
    line = f"Calibration: {words}; on {reported} {told}."
    if "macro_f1" in sides:
        before, after = sides["macro_f1"]
        rule = record["thresholds"]["rule"]
        line += f"\nThresholds per label ({rule} on dev): macro F1 {after} on {reported}, and {before} at .5."
    return line


def calibration_fields(metrics: Mapping[str, Any], reported: str, config: Any) -> dict[str, Any] | None:
    """What the card says in its section on calibration; None without a record.

    Args:
        metrics: the content of `metrics.json`.
        reported: the split of the card.
        config: of the model, with its thresholds.
    """
    record = metrics.get("calibration")
    if not record:
        return None
    found = record["metrics"][reported]
    thresholds = config.__dict__.get("label_thresholds")
    changes = record["temperature"] != 1 or thresholds is not None
    rows = [[figure_name(name), *(interval(entry[side]) for side in SIDES)] for name, entry in found.items()]
    curve = [] if "thresholds" in record else record.get("risk_coverage", [])
    return {
        "words": _words(record),
        "rows": rows if changes else [],
        "thresholds": thresholds is not None,
        "threshold_rule": plain(record.get("thresholds", {}).get("rule", "")),
        "threshold_reason": plain(record.get("thresholds", {}).get("reason", "")),
        "never_predicted": ", ".join(map(plain, record.get("thresholds", {}).get("never_predicted", []))),
        "rates": _rates(curve) if config.model_type != "title_scorer" else [],
    }


def _rates(curve: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """Rows of wanted error rate, coverage and least probability, of the rates that dev can show."""
    rows = []
    for rate in RATES:
        fitting = [row for row in curve if row["upper"] <= rate]
        if fitting:
            best = max(fitting, key=lambda row: row["coverage"])
            rows.append([f"{rate:g}", *(figure(best[name]) for name in ("coverage", "confidence", "error"))])
    return rows


def _words(record: Mapping[str, Any]) -> str:
    """The paragraph of a card on the temperature."""
    if record["temperature"] == 1:
        return f"No temperature divides the logits: {plain(record['reason'])}."
    words = (
        f"A temperature of {figure(record['temperature'])}, fitted on {record['rows']:,} rows of dev, is "
        "folded into the weights of the head (Guo et al. 2017, arXiv:1706.04599), so every way to open the "
        "model gives the calibrated probabilities."
    )
    if changed := record.get("changed_answers"):
        words += f" It changed {changed:,} answers on dev, as it may in an ordinal model."
    return words
