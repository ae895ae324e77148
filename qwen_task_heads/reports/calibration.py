"""The calibration of a run: fitted on dev, folded into the head before it is saved, recorded and reported.

`config.json` and `metrics.json` hold the same record. It has what was fitted and why, and, once the folded
model was measured, the calibration metrics before and after on each split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EvalPrediction

from qwen_task_heads.data.candidates import within
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.head_rows import fold_temperature
from qwen_task_heads.metrics.calibration import (
    PAIRS,
    Temperature,
    calibration_metrics,
    divide_logits,
    fit_temperature,
    risk_coverage,
)
from qwen_task_heads.metrics.classification import (
    MULTI,
    ORDINAL,
    REGRESSION,
    classification_metrics,
    dev_metrics,
)
from qwen_task_heads.metrics.ranking import Floats
from qwen_task_heads.metrics.thresholds import fit_thresholds
from qwen_task_heads.reports.finishing import RunRecord

COMPARED = ("macro_f1", "micro_f1")  # at .5 and at the thresholds
OFF = "none was asked for"


def calibrate_texts(
    model: Any,
    logits: Callable[[Sequence[TextExample]], Any],
    *,
    run: RunRecord,
    sets: TextSets,
    notes: list[str],
) -> Floats | None:
    """Fit on dev, fold the temperature into the head, and put thresholds and record into the config.

    Whatever fails leaves the model as it was, with a note.

    Args:
        model: a trained `PooledClassifier`, or a `PeftModel` around one.
        logits: gives those of examples (N, L), as a tensor.
        run: its settings name `calibrate` and `thresholds`.
        sets: of the run.
        notes: gets a line about what failed, or an option that had no use.

    Returns:
        Logits (N, L) of dev, if they are those of the finished model; else None.
    """
    config, kind = model.config, sets.problem_type
    config.calibration = config.label_thresholds = None  # of what the model was before the run
    rule = run.settings.get("thresholds")
    if rule is not None and kind != MULTI:
        notes.append(f"--thresholds {rule} had no use: it is of {MULTI} models")
    if kind == REGRESSION:
        return None

    def fit() -> Floats | None:
        raw = logits(sets.dev).double().numpy()
        known = _of_rows(sets.dev)
        offered = raw if kind == ORDINAL else within(raw, sets.dev, labels=sets.labels)
        windows = "an ordinal model averages the log-probabilities of windows, which no head divides"
        off = OFF if run.settings.get("calibrate") == "none" else ""
        off = windows if not off and kind == ORDINAL and config.truncation == "windows" else off
        found = _temperature(kind, offered, off=off, **known)
        divided = divide_logits(kind, raw, found.value) if found.value != 1 else raw
        if kind == ORDINAL:  # whose answers it may change
            kappas = [_kappa(scores, known["targets"]) for scores in (raw, divided)]
            if kappas[1] < kappas[0]:
                reason = (
                    f"it would lower quadratic kappa on dev ({kappas[0]:.3f}, and {kappas[1]:.3f} with it)"
                )
                found, divided = replace(found, value=1.0, reason=reason), raw
        record = _record(found, off=off)
        if kind == MULTI:
            chosen = fit_thresholds(divided, known["targets"], rule=rule or "f1", groups=known["groups"])
            held = {name: _sides(*ends) for name, ends in chosen.held_out.items()}
            never = [sets.labels.names[place] for place in chosen.unreachable]
            facts = {"rule": rule or "f1", "reason": chosen.reason, "held_out": held}
            facts["never_predicted"] = never
            record["thresholds"] = {name: value for name, value in facts.items() if value}
            config.label_thresholds = None if chosen.values is None else list(chosen.values)
        else:
            answers = within(divided, sets.dev, labels=sets.labels)
            record["risk_coverage"] = risk_coverage(kind, answers, **known)
        if kind == ORDINAL and found.value != 1:
            record["changed_answers"] = int((raw.argmax(1) != divided.argmax(1)).sum())
        return _apply(model, found, record, known=raw)

    return _attempt(fit, config, notes)


def calibrate_titles(
    model: Any,
    scores: Callable[[], tuple[Floats, Floats]],
    *,
    run: RunRecord,
    groups: Sequence[str],
    notes: list[str],
) -> tuple[Floats, Floats] | None:
    """The same for a title scorer, whose P(preferred) is calibrated.

    Args:
        model: a trained `TitleScorer`, or a `PeftModel` around one.
        scores: gives those of the chosen and the rejected titles of dev, (B,) each.
        run: its settings name `calibrate`.
        groups: keys of the B pairs.
        notes: gets a line about what failed.

    Returns:
        The scores of dev, if they are those of the finished model; else None.
    """
    model.config.calibration = None

    def fit() -> tuple[Floats, Floats] | None:
        known = scores()
        both = np.stack(known, axis=1)
        off = OFF if run.settings.get("calibrate") == "none" else ""
        found = _temperature(PAIRS, both, off=off, targets=None, groups=groups)
        record = _record(found, off=off)
        record["risk_coverage"] = risk_coverage(PAIRS, both / found.value, groups=groups)
        return _apply(model, found, record, known=known)

    return _attempt(fit, model.config, notes)


def measured_texts(
    raw: Mapping[str, Floats], sets: TextSets, config: Any, *, after: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Complete the record of a config: the calibration metrics before and after, on each split.

    Args:
        raw: split to logits (N, L) of the finished model.
        sets: of the run.
        config: of the model, with a record.
        after: split to the metrics of the finished model.
    """
    kind, record, metrics = sets.problem_type, dict(config.calibration), {}
    for name, logits in raw.items():
        examples = sets.dev if name == "dev" else sets.test
        known, found = _of_rows(examples), after[name]
        divided = record["temperature"] != 1
        before = divide_logits(kind, logits, 1 / record["temperature"]) if divided else logits
        earlier = calibration_metrics(kind, within(before, examples, labels=sets.labels), **known)
        sides = {key: (value, found[key]) for key, value in earlier.items()}
        if config.label_thresholds:
            half = classification_metrics(kind, logits, labels=sets.labels.names, **known)
            sides |= {key: (half[key], found[key]) for key in COMPARED}
        metrics[name] = {key: _sides(*values) for key, values in sides.items()}
    return {**record, "metrics": metrics}


def measured_titles(
    scores: Mapping[str, tuple[Floats, Floats]],
    groups: Mapping[str, Sequence[str]],
    config: Any,
    *,
    after: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The same for a title scorer; `scores` are those of the finished model, by split."""
    record, metrics = dict(config.calibration), {}
    for name, pair in scores.items():
        both = np.stack(pair, axis=1) * record["temperature"]
        before = calibration_metrics(PAIRS, both, groups=groups[name])
        metrics[name] = {key: _sides(value, after[name][key]) for key, value in before.items()}
    return {**record, "metrics": metrics}


def update_config(config: Any, folder: Path, **values: Any) -> None:
    """Put values into a config and into the `config.json` of a saved model.

    Args:
        config: of the model, changed in place.
        folder: of the model; its manifest is written afterwards.
        **values: fields of the config.
    """
    config.update(values)
    path = folder / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**saved, **values}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _of_rows(examples: Sequence[TextExample]) -> dict[str, Any]:
    return {"targets": [one.target for one in examples], "groups": [one.group for one in examples]}


def _temperature(kind: str, logits: Floats, *, targets: Any, groups: Sequence[str], off: str) -> Temperature:
    """The fitted temperature, or 1 if it is switched off."""
    if off:
        return Temperature(value=1.0, rows=len(logits), groups=0, reason=off)
    return fit_temperature(kind, logits, targets, groups=groups)


def _kappa(logits: Floats, targets: Sequence[int]) -> float:
    """Quadratic kappa of the answers; 0 if it is undefined."""
    prediction = EvalPrediction(logits, np.asarray(targets))
    return dev_metrics(ORDINAL)(prediction)["quadratic_kappa"]


def _record(found: Temperature, *, off: str) -> dict[str, Any]:
    """The beginning of the record of a calibration, plain JSON."""
    record: dict[str, Any] = {
        "method": "none" if off else "temperature",
        "temperature": found.value,
        "fitted_on": "dev",
        "rows": found.rows,
    }
    record |= {"groups": found.groups} if found.groups else {}
    record |= {"reason": found.reason} if found.reason else {}
    record |= {"held_out_log_loss": _sides(*found.log_loss)} if found.log_loss else {}
    return record


def _sides(before: Any, after: Any) -> dict[str, Any]:
    return {"before": before, "after": after}


def _apply(model: Any, found: Temperature, record: dict[str, Any], *, known: Any) -> Any:
    """Fold and record; give what is known of dev if it still holds."""
    model.config.calibration = record
    if found.value == 1:
        return known
    fold_temperature(model, found.value)
    return None


def _attempt(fit: Callable[[], Any], config: Any, notes: list[str]) -> Any:
    """Run a calibration; note whatever fails, because the model must be saved."""
    try:
        return fit()
    except (TaskHeadsError, ValueError, ArithmeticError, RuntimeError, MemoryError, ImportError) as error:
        config.calibration = None
        if "label_thresholds" in config.__dict__:
            config.label_thresholds = None
        notes.append(f"not calibrated: {error}")
        return None
