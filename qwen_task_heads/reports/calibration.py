"""Calibrate a model on dev: fit a temperature, fold it into the head, and record the metrics.

`config.json` and `metrics.json` contain the same record: the fitted values and their reason. After the
evaluation of the folded model it also has the calibration metrics before and after, for each split.
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
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS, sizes_of
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
    SINGLE,
    classification_metrics,
    dev_metrics,
)
from qwen_task_heads.metrics.questions import answered
from qwen_task_heads.metrics.ranking import Floats
from qwen_task_heads.metrics.thresholds import fit_thresholds
from qwen_task_heads.reports.finishing import FinishedTraining

COMPARED = ("macro_f1", "micro_f1")  # at .5 and at the thresholds
OFF = "none was requested"


def calibrate_texts(
    model: Any,
    logits: Callable[[Sequence[TextExample]], Any],
    *,
    run: FinishedTraining,
    sets: TextSets,
    messages: list[str],
) -> Floats | None:
    """Fit on dev, fold the temperature into the head, and store thresholds and record in the config.

    If calibration fails, the model is unchanged and a message says why.

    Args:
        model: a trained `PooledClassifier`, or a `PeftModel` around one.
        logits: from examples to their logits (N, L), as a tensor.
        run: its settings contain `calibrate` and `thresholds`.
        sets: of the run.
        messages: receives a failure, or an option without effect.

    Returns:
        Logits (N, L) of dev if the model is unchanged, so that they remain valid; else None.
    """
    config, kind = model.config, sets.problem_type
    config.calibration = config.label_thresholds = None  # values of the model before the run
    rule = run.settings.get("thresholds")
    if rule is not None and kind != MULTI:
        messages.append(f"--thresholds {rule} has no effect: it applies to {MULTI} models")
    if kind == REGRESSION:
        return None
    if kind == QUESTIONS:
        return _attempt(lambda: _fit_questions(model, logits, run=run, sets=sets), config, messages)

    def fit() -> Floats | None:
        raw = logits(sets.dev).double().numpy()
        rows = _targets_and_groups(sets.dev)
        among_candidates = raw if kind == ORDINAL else within(raw, sets.dev, labels=sets.labels)
        off = ""
        if run.settings.get("calibrate") == "none":
            off = OFF
        elif kind == ORDINAL and config.truncation == "windows":
            off = "an ordinal model averages the log-probabilities of windows, which no head divides"
        temperature = _temperature(kind, among_candidates, off=off, **rows)
        divided = divide_logits(kind, raw, temperature.value) if temperature.value != 1 else raw
        if kind == ORDINAL:  # a temperature may change its predictions
            kappas = [_kappa(scores, rows["targets"]) for scores in (raw, divided)]
            if kappas[1] < kappas[0]:
                reason = (
                    f"it would lower quadratic kappa on dev ({kappas[0]:.3f}, and {kappas[1]:.3f} with it)"
                )
                temperature, divided = replace(temperature, value=1.0, reason=reason), raw
        record = _record(temperature, off=off)
        if kind == MULTI:
            chosen = fit_thresholds(divided, rows["targets"], rule=rule or "f1", groups=rows["groups"])
            facts = {
                "rule": rule or "f1",
                "reason": chosen.reason,
                "held_out": {name: _before_after(*sides) for name, sides in chosen.held_out.items()},
                "never_predicted": [sets.labels.names[label] for label in chosen.unreachable],
            }
            record["thresholds"] = {name: value for name, value in facts.items() if value}
            config.label_thresholds = None if chosen.values is None else list(chosen.values)
        else:
            answers = within(divided, sets.dev, labels=sets.labels)
            record["risk_coverage"] = risk_coverage(kind, answers, **rows)
        if kind == ORDINAL and temperature.value != 1:
            record["changed_answers"] = int((raw.argmax(1) != divided.argmax(1)).sum())
        return _apply(model, temperature, record, outputs=raw)

    return _attempt(fit, config, messages)


def _fit_questions(
    model: Any, logits: Callable[[Sequence[TextExample]], Any], *, run: FinishedTraining, sets: TextSets
) -> Floats | None:
    """Fit a temperature for each question on the rows of dev that answer it; see `calibrate_texts`."""
    raw = logits(sets.dev).double().numpy()
    rows = _targets_and_groups(sets.dev)
    off = OFF if run.settings.get("calibrate") == "none" else ""
    temperatures = dict.fromkeys((one["name"] for one in sets.questions), 1.0)
    records = {}
    for one in answered(sets.questions, raw, rows["targets"]):
        groups = [rows["groups"][row] for row in one.rows.tolist()]
        found = _temperature(SINGLE, one.scores, off=off, targets=one.truth, groups=groups)
        temperatures[one.name], records[one.name] = found.value, _record(found, off=off)
    model.config.calibration = {
        "method": "none" if off else "temperature",
        "fitted_on": "dev",
        "questions": records,
    }
    if set(temperatures.values()) == {1.0}:
        return raw
    fold_temperature(model, np.repeat([*temperatures.values()], sizes_of(sets.questions)).tolist())
    return None


def measured_questions(raw: Mapping[str, Floats], sets: TextSets, config: Any) -> dict[str, Any]:
    """Return the record of a config with the calibration metrics of each question before and after.

    Args:
        raw: from split to logits (N, L) of the calibrated model.
        sets: of the run.
        config: of the model, with a record.
    """
    record, metrics = config.calibration, dict[str, Any]()
    for split, logits in raw.items():
        rows = _targets_and_groups(sets.dev if split == "dev" else sets.test)
        metrics[split] = {}
        for one in answered(sets.questions, logits, rows["targets"]):
            temperature = record["questions"].get(one.name, {"temperature": 1.0})["temperature"]
            groups = [rows["groups"][row] for row in one.rows.tolist()]
            before, after = (
                calibration_metrics(SINGLE, scores, one.truth, groups=groups)
                for scores in (temperature * one.scores, one.scores)
            )
            for name, value in before.items():
                metrics[split][f"{one.name}.{name}"] = _before_after(value, after[name])
    return {**record, "metrics": metrics}


def calibrate_titles(
    model: Any,
    scores: Callable[[], tuple[Floats, Floats]],
    *,
    run: FinishedTraining,
    groups: Sequence[str],
    messages: list[str],
) -> tuple[Floats, Floats] | None:
    """Do for a title scorer what `calibrate_texts` does for a classifier; P(preferred) is calibrated.

    Args:
        model: a trained `TitleScorer`, or a `PeftModel` around one.
        scores: returns the scores of the chosen and the rejected titles of dev, (B,) each.
        run: its settings contain `calibrate`.
        groups: keys of the B pairs.
        messages: receives a failure.

    Returns:
        The scores of dev if the model is unchanged, so that they remain valid; else None.
    """
    model.config.calibration = None

    def fit() -> tuple[Floats, Floats] | None:
        raw = scores()
        both = np.stack(raw, axis=1)
        off = OFF if run.settings.get("calibrate") == "none" else ""
        temperature = _temperature(PAIRS, both, off=off, targets=None, groups=groups)
        record = _record(temperature, off=off)
        record["risk_coverage"] = risk_coverage(PAIRS, both / temperature.value, groups=groups)
        return _apply(model, temperature, record, outputs=raw)

    return _attempt(fit, model.config, messages)


def measured_texts(
    raw: Mapping[str, Floats], sets: TextSets, config: Any, *, after: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the record of a config with the calibration metrics before and after, for each split.

    Args:
        raw: from split to logits (N, L) of the calibrated model.
        sets: of the run.
        config: of the model, with a record.
        after: from split to metrics of the calibrated model.
    """
    kind, record, metrics = sets.problem_type, dict(config.calibration), {}
    for split, logits in raw.items():
        examples = sets.dev if split == "dev" else sets.test
        rows, calibrated = _targets_and_groups(examples), after[split]
        divided = record["temperature"] != 1
        undivided = divide_logits(kind, logits, 1 / record["temperature"]) if divided else logits
        before = calibration_metrics(kind, within(undivided, examples, labels=sets.labels), **rows)
        sides = {key: (value, calibrated[key]) for key, value in before.items()}
        if config.label_thresholds:
            at_half = classification_metrics(kind, logits, labels=sets.labels.names, **rows)
            sides |= {key: (at_half[key], calibrated[key]) for key in COMPARED}
        metrics[split] = {key: _before_after(*values) for key, values in sides.items()}
    return {**record, "metrics": metrics}


def measured_titles(
    scores: Mapping[str, tuple[Floats, Floats]],
    groups: Mapping[str, Sequence[str]],
    config: Any,
    *,
    after: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Do for a title scorer what `measured_texts` does; `scores` are of the calibrated model, by split."""
    record, metrics = dict(config.calibration), {}
    for split, pair in scores.items():
        undivided = np.stack(pair, axis=1) * record["temperature"]
        before = calibration_metrics(PAIRS, undivided, groups=groups[split])
        metrics[split] = {key: _before_after(value, after[split][key]) for key, value in before.items()}
    return {**record, "metrics": metrics}


def update_config(config: Any, folder: Path, **values: Any) -> None:
    """Set values in a config and in the `config.json` of a saved model.

    Args:
        config: of the model, changed in place.
        folder: of the model, before its manifest is written.
        **values: fields of the config.
    """
    config.update(values)
    path = folder / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**saved, **values}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _targets_and_groups(examples: Sequence[TextExample]) -> dict[str, Any]:
    return {"targets": [one.target for one in examples], "groups": [one.group for one in examples]}


def _temperature(kind: str, logits: Floats, *, targets: Any, groups: Sequence[str], off: str) -> Temperature:
    """Fit a temperature; return 1 with the reason `off` if there is one."""
    if off:
        return Temperature(value=1.0, rows=len(logits), groups=0, reason=off)
    return fit_temperature(kind, logits, targets, groups=groups)


def _kappa(logits: Floats, targets: Sequence[int]) -> float:
    """Return quadratic kappa of the predictions; 0 if it is undefined."""
    prediction = EvalPrediction(logits, np.asarray(targets))
    return dev_metrics(ORDINAL)(prediction)["quadratic_kappa"]


def _record(temperature: Temperature, *, off: str) -> dict[str, Any]:
    """Return the JSON record of a fitted temperature."""
    record: dict[str, Any] = {
        "method": "none" if off else "temperature",
        "temperature": temperature.value,
        "fitted_on": "dev",
        "rows": temperature.rows,
    }
    if temperature.groups:
        record["groups"] = temperature.groups
    if temperature.reason:
        record["reason"] = temperature.reason
    if temperature.log_loss:
        record["held_out_log_loss"] = _before_after(*temperature.log_loss)
    return record


def _before_after(before: Any, after: Any) -> dict[str, Any]:
    return {"before": before, "after": after}


def _apply(model: Any, temperature: Temperature, record: dict[str, Any], *, outputs: Any) -> Any:
    """Store the record and fold the temperature; return the outputs of dev if they did not change."""
    model.config.calibration = record
    if temperature.value == 1:
        return outputs
    fold_temperature(model, temperature.value)
    return None


def _attempt(fit: Callable[[], Any], config: Any, messages: list[str]) -> Any:
    """Run a calibration; a failure becomes a message, because the model must still be saved."""
    try:
        return fit()
    except (TaskHeadsError, ValueError, ArithmeticError, RuntimeError, MemoryError, ImportError) as error:
        config.calibration = None
        if "label_thresholds" in config.__dict__:
            config.label_thresholds = None
        messages.append(f"not calibrated: {error}")
        return None
