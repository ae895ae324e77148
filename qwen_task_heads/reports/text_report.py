"""Report of a classification run: calibrate, save, measure on dev and test, write all files, print a summary.

Design decisions, as in `title_report.py`:

- The model is calibrated on dev and saved before it is measured.
- Every metric on the card, in the summary and in the plots comes from the dictionary of `metrics.json`.
- `Scorer` computes the logits, as it does for users; the training loop does not.

If rows have candidate labels, the model and the baselines choose among them, and a message says so: a head
scores all labels, and its caller restricts them to the candidates.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.data.candidates import candidates_line, within
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.lookups import leak_lines, report_texts
from qwen_task_heads.data.text_datasets import hash_texts
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.metrics.calibration import calibration_metrics
from qwen_task_heads.metrics.classification import (
    BEST_METRIC,
    MULTI,
    ORDINAL,
    REGRESSION,
    SINGLE,
    check_scores,
    classification_metrics,
    coarse_accuracy,
    confusion_matrix,
    probabilities,
)
from qwen_task_heads.metrics.lookup_baseline import LOOKUP, LookupBaseline
from qwen_task_heads.metrics.ranking import Floats
from qwen_task_heads.metrics.text_baselines import TfidfBaseline, TrivialBaseline
from qwen_task_heads.metrics.ties import top_credit
from qwen_task_heads.metrics.title_baselines import baseline_rows
from qwen_task_heads.metrics.verdicts import give_verdict, text_measure
from qwen_task_heads.reports.calibration import (
    calibrate_texts,
    measured_texts,
    update_config,
)
from qwen_task_heads.reports.calibration_summary import calibration_line
from qwen_task_heads.reports.card_lines import lookup_line, verdict_lines
from qwen_task_heads.reports.early_exits import aligned
from qwen_task_heads.reports.finishing import (
    SMALL,
    FinishedTraining,
    Trained,
    attempt,
    describe_run,
    initial_messages,
    picked_note,
    python_command,
    save_first,
    split_facts,
    trained_line,
    training_facts,
    write_record,
)
from qwen_task_heads.reports.markdown import metric_name
from qwen_task_heads.reports.prediction_rows import hardest_errors, write_predictions
from qwen_task_heads.reports.records import MODEL, keep_reference
from qwen_task_heads.reports.text_card import HEADLINES, metric_rows
from qwen_task_heads.reports.text_plots import (
    confusion_plot,
    reliability_plot,
    risk_coverage_plot,
    scatter_plot,
)
from qwen_task_heads.reports.title_plots import training_curves
from qwen_task_heads.verification.reference import take_reference

TFIDF = "TF-IDF, linear"
NEED_PROBABILITIES = ("log_loss", "ece")  # baselines return scores
WEAKEST = 3  # labels in the printed summary


def finish_texts(model: Any, *, tokenizer: Any, folder: str | Path, run: FinishedTraining) -> dict[str, Any]:
    """Save the model and its report, print the summary, and return the metrics.

    Args:
        model: a trained `PooledClassifier`, or a `PeftModel` around one.
        tokenizer: with the compiled template.
        folder: output folder of the model, `metrics.json`, `predictions.jsonl`, `errors.md`,
            `manifest.json`, `README.md` and plots.
        run: record of the run.
    """
    scorer, messages = Scorer(model.eval(), tokenizer=tokenizer), initial_messages(model, run)
    cached: dict[int, torch.Tensor] = {}  # logits of dev, if the calibration does not change them

    def logits(examples: Sequence[TextExample]) -> torch.Tensor:
        if id(examples) in cached:
            return cached[id(examples)]
        pairs = [example.text_b for example in examples]
        texts = [example.text for example in examples]
        with run.usage.measured():
            return scorer.logits(texts, text_pairs=pairs if any(pairs) else None)

    try:
        dev_logits = calibrate_texts(model, logits, run=run, sets=run.sets, messages=messages)
    finally:  # save the model even if the calibration is interrupted
        folder = save_first(model, tokenizer=tokenizer, folder=folder)
    if dev_logits is not None:
        cached[id(run.sets.dev)] = torch.from_numpy(dev_logits)
    metrics = record_texts(Trained.of(model), logits=logits, folder=folder, run=run, messages=messages)
    pairs = [example.text_b for example in run.sets.dev]
    texts = [example.text for example in run.sets.dev]
    take = partial(take_reference, model, tokenizer=tokenizer, texts=texts)
    keep_reference(folder, take=partial(take, text_pairs=pairs if any(pairs) else None))
    return metrics


def record_texts(
    model: Trained,
    *,
    logits: Callable[[Sequence[TextExample]], torch.Tensor],
    folder: Path,
    run: FinishedTraining,
    messages: list[str],
) -> dict[str, Any]:
    """Measure a saved model, write its report, print the summary, and return the metrics.

    Args:
        model: config and kind of the model.
        logits: from N examples to logits (N, L); those of labels that are not candidates are ignored.
        folder: of the saved model.
        run: record of the run.
        messages: earlier messages of the run.
    """
    kind, names = run.sets.problem_type, run.sets.labels.names
    baselines = _baselines(run, messages)
    splits = {"dev": run.sets.dev, "test": run.sets.test}
    metrics: dict[str, Any] = {
        "seed": run.seed,
        "problem_type": kind,
        "labels": list(names),
        "train": {"rows": len(run.sets.train), **training_facts(run)},
        "data": split_facts(run, hash_texts, "rows"),
    }
    lookups = {
        split: report_texts(run.sets.train, rows, split=split, problem_type=kind)
        for split, rows in splits.items()
        if rows
    }
    messages += leak_lines(lookups, were_cut=run.sets.were_cut)
    any_known = any(report.known for report in lookups.values())
    lookup = LookupBaseline(kind, len(names)).fit(run.sets.train) if any_known else None
    raw: dict[str, Floats] = {}  # logits of all labels
    scores: dict[str, Floats] = {}  # logits within the candidates
    baseline_scores: dict[str, dict[str, Floats]] = {}
    for split, examples in splits.items():
        if not examples:
            continue
        raw[split] = logits(examples).double().numpy()
        scores[split] = within(raw[split], examples, labels=run.sets.labels)
        fitted: dict[str, Any] = dict(baselines)
        if lookup and lookups[split].known:
            fitted[LOOKUP] = lookup
        baseline_scores[split] = {
            name: within(baseline.predict(examples), examples, labels=run.sets.labels)
            for name, baseline in fitted.items()
        }
        metrics[split] = _measure(
            examples, scores[split], baselines=baseline_scores[split], run=run, config=model.config
        )
        if line := candidates_line(examples, labels=run.sets.labels, split=split):
            if not model.is_generative:
                line += "; this model scores all labels, and predict.py --candidates restricts it to them"
            messages.append(line)
    messages += _constant(kind, raw)
    reported = "test" if run.sets.test else "dev"
    metrics["lookup"] = {split: report.as_dict() for split, report in lookups.items()}
    metrics["verdict"] = _verdict(
        splits[reported],
        {MODEL: scores[reported], **baseline_scores[reported]},
        run=run,
        thresholds=model.config.label_thresholds,
    )
    if metrics["verdict"]:
        metrics["verdict"]["split"] = reported
    if model.config.calibration:
        ours = {split: metrics[split][MODEL] for split in raw}
        metrics["calibration"] = measured_texts(raw, run.sets, model.config, after=ours)
        update_config(model.config, folder, calibration=metrics["calibration"])
    plots = _plots(folder, run, splits[reported], scores[reported], metrics, messages)
    metrics["notes"] = messages
    write_predictions(folder / "predictions.jsonl", splits[reported], scores[reported], config=model.config)
    page = hardest_errors(
        kind,
        splits[reported],
        scores[reported],
        labels=names,
        split=reported,
        thresholds=model.config.label_thresholds,
    )
    (folder / "errors.md").write_text(page, encoding="utf-8")
    record = describe_run(model, run, name=folder.name, metrics=metrics, plots=plots)
    write_record(folder, record, run=run)
    _print_summary(metrics, reported, folder, run)
    return metrics


def _constant(kind: str, logits: Mapping[str, Floats]) -> list[str]:
    """Return a message if the model predicts the same label for every row."""
    if kind in (MULTI, REGRESSION):
        return []
    if any(len(set(scores.argmax(1).tolist())) > 1 for scores in logits.values()):
        return []
    return ["the model predicts one label for every text: raise --learning_rate, or train longer"]


def _baselines(run: FinishedTraining, messages: list[str]) -> dict[str, TfidfBaseline | TrivialBaseline]:
    """Fit the baselines; one that cannot be fitted is omitted with a message."""
    kind, count, train = run.sets.problem_type, len(run.sets.labels), run.sets.train
    baselines: dict[str, TfidfBaseline | TrivialBaseline] = {}
    rows = baseline_rows(train, messages)
    tfidf = attempt(lambda: TfidfBaseline(kind, count).fit(rows), "no TF-IDF baseline", messages)
    if tfidf is not None:
        baselines[TFIDF] = tfidf
    trivial = TrivialBaseline(kind, count).fit(train)
    return {**baselines, trivial.name: trivial}


def _verdict(
    examples: Sequence[TextExample],
    scores: Mapping[str, Floats],
    *,
    run: FinishedTraining,
    thresholds: Sequence[float] | None,
) -> dict[str, Any] | None:
    """Compare the model with the best baseline, by the metric that selects checkpoints."""
    kind, targets = run.sets.problem_type, [example.target for example in examples]
    measures = {
        name: text_measure(kind, logits, targets, num_labels=len(run.sets.labels))
        for name, logits in scores.items()
    }
    if thresholds:  # of the model; the threshold of the baselines is .5
        measures[MODEL] = text_measure(
            kind, scores[MODEL], targets, num_labels=len(run.sets.labels), thresholds=thresholds
        )
    return give_verdict(
        measures,
        model=MODEL,
        metric=BEST_METRIC[kind][0].removeprefix("eval_"),
        groups=[example.group for example in examples],
        count=len(examples),
        beside=TFIDF,
    )


def _measure(
    examples: Sequence[TextExample],
    logits: Floats,
    *,
    baselines: Mapping[str, Floats],
    run: FinishedTraining,
    config: Any,
) -> dict[str, Any]:
    """Return the metrics of the model and the baselines on the same rows; per label for the model only."""
    kind, targets = run.sets.problem_type, [example.target for example in examples]
    options: dict[str, Any] = {"labels": run.sets.labels.names, "groups": [e.group for e in examples]}
    thresholds = {"threshold": config.label_thresholds} if config.label_thresholds else {}
    metrics = {MODEL: classification_metrics(kind, logits, targets, **options, **thresholds)}
    if kind != REGRESSION:
        metrics[MODEL] |= calibration_metrics(kind, logits, targets, groups=options["groups"])
    for name, scores in baselines.items():
        of_baseline = classification_metrics(kind, scores, targets, **options)
        for key in ("per_class", *NEED_PROBABILITIES):
            of_baseline.pop(key, None)
        metrics[name] = of_baseline
    if kind in (SINGLE, ORDINAL):
        parents = run.sets.labels.parents
        coarse = coarse_accuracy(logits, targets, parents=parents, groups=options["groups"])
        if coarse is not None:
            metrics[MODEL]["coarse_accuracy"] = coarse
    return metrics


def _plots(
    folder: Path,
    run: FinishedTraining,
    examples: Sequence[TextExample],
    logits: Floats,
    metrics: dict[str, Any],
    messages: list[str],
) -> dict[str, str]:
    """Draw the plots of the problem type; return the title and file name of each plot."""
    kind, names = run.sets.problem_type, run.sets.labels.names
    scores, truth = check_scores(kind, logits, [e.target for e in examples], num_labels=len(names))
    wanted: dict[str, tuple[str, Callable[[Path], Path]]] = {}
    if kind == REGRESSION:
        wanted["Predicted against true"] = (
            "scatter.png",
            lambda path: scatter_plot(scores.ravel(), truth.ravel(), path),
        )
    else:
        probability = probabilities(kind, scores)
        correct = truth if kind == MULTI else top_credit(scores, truth)
        confidence = probability.ravel() if kind == MULTI else probability.max(1)
        if kind != MULTI:
            wanted["Confusion"] = (
                "confusion.png",
                lambda path: confusion_plot(
                    confusion_matrix(scores, truth, num_labels=len(names)), path, labels=names
                ),
            )
        wanted["Reliability"] = (
            "reliability.png",
            lambda path: reliability_plot(confidence, np.ravel(correct), path),
        )
    if curve := metrics.get("calibration", {}).get("risk_coverage"):
        wanted["Risk and coverage"] = ("risk_coverage.png", lambda path: risk_coverage_plot(curve, path))
    wanted["Training"] = ("training.png", lambda path: _curves(path, run, metrics["dev"]))
    drawn = {
        title: attempt(lambda d=draw, f=file: d(folder / f), "no plot", messages)  # type: ignore[misc]
        for title, (file, draw) in wanted.items()
    }
    return {title: path.name for title, path in drawn.items() if path}


def _curves(path: Path, run: FinishedTraining, dev: dict[str, Any]) -> Path:
    key, _ = BEST_METRIC[run.sets.problem_type]
    name = key.removeprefix("eval_")
    baselines = {baseline: entry[name]["value"] for baseline, entry in dev.items() if baseline != MODEL}
    percent = name == "accuracy"
    return training_curves(
        run.log_history,
        path,
        accuracy_key=key,
        accuracy_label="correct (%)" if percent else metric_name(name),
        loss_label="loss",
        title=f"Dev {metric_name(name)}",
        scale=100.0 if percent else 1.0,
        baselines={baseline: value for baseline, value in baselines.items() if value is not None},
    )


def _print_summary(metrics: dict[str, Any], reported: str, folder: Path, run: FinishedTraining) -> None:
    """Print the metrics, the weakest labels and the next commands."""
    kind, found = run.sets.problem_type, metrics[reported]
    ours = found[MODEL][BEST_METRIC[kind][0].removeprefix("eval_")]
    groups = f" of {ours['n_groups']:,} groups" if ours["n_groups"] != ours["n"] else ""
    lines = [
        "",
        trained_line(f"{describe(run)} on {len(run.sets.train):,} rows", run),
        f"On {reported}: {ours['n']:,} rows{groups}, 95% intervals over them"
        + picked_note(run, reported, "rows"),
        "",
        *aligned(metric_rows(found, HEADLINES[kind])),
        "",
        *verdict_lines(metrics),
    ]
    if lookup := lookup_line(metrics, reported):
        lines.append(lookup)
    if "calibration" in metrics:
        lines.append(calibration_line(metrics["calibration"], reported))
    if kind != REGRESSION:
        lines += _weakest(found[MODEL]["per_class"])
    if run.backbone == EMBEDDED:
        lines.append(SMALL)
    lines += [
        "",
        *(f"note: {note}" for note in metrics["notes"]),
        f"Everything is in {folder}: model, card (README.md), metrics.json, predictions.jsonl, plots,",
        "and the most confident errors in errors.md: review these first.",
        *_next_commands(folder, run),
    ]
    print("\n".join(lines), flush=True)


def _next_commands(folder: Path, run: FinishedTraining) -> list[str]:
    """Return the commands that use the model, with a line before each."""
    predict = f"accelerate launch recipes/predict.py --model {shlex.quote(str(folder))}"
    predict += " --input texts.jsonl --output answers.jsonl"
    if any(example.candidates for example in run.sets.train):
        predict += " --candidates category"
    if any(example.text_b for example in run.sets.train):
        return ["Next, a file:", f"  {predict}"]
    command = [python_command(), "-m", "qwen_task_heads", str(folder), "A text of your own."]
    return ["Next, classify a text of your own:", f"  {shlex.join(command)}", "or a file:", f"  {predict}"]


def _weakest(per_class: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line with the labels of the lowest F1 among those that occur."""
    known = [row for row in per_class if row["support"] and row["f1"] < 1]
    known = sorted(known, key=lambda row: row["f1"])[:WEAKEST]
    if len(per_class) <= 2 or not known:
        return []
    labels = ", ".join(f"{row['label']} ({row['f1']:.2f} of {row['support']} rows)" for row in known)
    return [f"Weakest labels by F1: {labels}."]


def describe(run: FinishedTraining) -> str:
    """Return a short description of the model."""
    count = len(run.sets.labels)
    return {
        MULTI: f"a multi-label classifier of {count} labels",
        REGRESSION: "a regression model" if count == 1 else f"a regression model of {count} values",
        "ordinal": f"an ordinal model of {count} steps",
    }.get(run.sets.problem_type, f"a classifier of {count} labels")
