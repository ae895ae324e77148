"""The end of a classification run: score dev and test, set them beside baselines, write and say all of it.

As at the end of a title run (`outcome.py`): the model is calibrated on dev and saved, before it is measured;
every figure on the card, the screen and the plots comes from the dictionary that `metrics.json` holds; and it
is `Scorer`, the code that users will run, which computes the logits, not the training loop.

Where rows offer a choice of labels, the model and the baselines are held to it alike, and a note says so: a
head gives scores to all labels, and who uses it chooses among those that are offered.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.data.candidates import candidates_line, within
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.lookups import leak_lines, report_texts
from qwen_task_heads.data.text_datasets import TextSets, hash_texts
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
from qwen_task_heads.reports.card_facts import Trained, picked_note
from qwen_task_heads.reports.card_lines import lookup_line, verdict_lines
from qwen_task_heads.reports.cards import figure_name
from qwen_task_heads.reports.early_exits import aligned
from qwen_task_heads.reports.finishing import (
    MODEL,
    SMALL,
    RunRecord,
    attempt,
    first_notes,
    python_command,
    save_first,
    set_facts,
    trained_line,
    training_facts,
    write_record,
)
from qwen_task_heads.reports.prediction_rows import hardest_errors, write_predictions
from qwen_task_heads.reports.records import keep_reference
from qwen_task_heads.reports.text_card import HEADLINES, figure_rows, text_card
from qwen_task_heads.reports.text_plots import (
    confusion_plot,
    reliability_plot,
    risk_coverage_plot,
    scatter_plot,
)
from qwen_task_heads.reports.title_plots import training_curves
from qwen_task_heads.verification.reference import take_reference

TFIDF = "TF-IDF, linear"
NEED_PROBABILITIES = ("log_loss", "ece")  # baselines give scores
WEAKEST = 3  # labels named on the screen


@dataclass(frozen=True, kw_only=True)
class TextRun(RunRecord):
    """What the end of a run needs to know of it; the rest as in `RunRecord`.

    Args:
        sets: what was trained and measured on, with problem type and labels.
        cut: what became of long texts, in plain words.
    """

    sets: TextSets
    cut: str = ""


def finish_texts(model: Any, *, tokenizer: Any, folder: str | Path, run: TextRun) -> dict[str, Any]:
    """Save the model and everything that is known about it; print the summary; return the metrics.

    Args:
        model: a trained `PooledClassifier`, or a `PeftModel` around one.
        tokenizer: with the compiled template.
        folder: where the model goes; also `metrics.json`, `predictions.jsonl`, `errors.md`,
            `manifest.json`, `README.md` and plots.
        run: the account of the run.
    """
    scorer, notes = Scorer(model.eval(), tokenizer=tokenizer), first_notes(model, run)
    known: dict[int, torch.Tensor] = {}  # of dev, unless the calibration changes them

    def logits(examples: Sequence[TextExample]) -> torch.Tensor:
        if id(examples) in known:
            return known[id(examples)]
        pairs = [example.text_b for example in examples]
        texts = [example.text for example in examples]
        with run.usage.measured():
            return scorer.logits(texts, text_pairs=pairs if any(pairs) else None)

    try:
        of_dev = calibrate_texts(model, logits, run=run, sets=run.sets, notes=notes)
    finally:  # whatever stops it
        folder = save_first(model, tokenizer=tokenizer, folder=folder)
    if of_dev is not None:
        known[id(run.sets.dev)] = torch.from_numpy(of_dev)
    metrics = record_texts(Trained.of(model), logits=logits, folder=folder, run=run, notes=notes)
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
    run: TextRun,
    notes: list[str],
) -> dict[str, Any]:
    """Measure a saved model, whatever computes its logits; write and say all of it; return the metrics.

    Args:
        model: its config and kind.
        logits: (N, L) of N examples; of labels that a row does not offer they do not count.
        folder: where the model was saved.
        run: the account of the run.
        notes: what there is to say already.
    """
    kind, names = run.sets.problem_type, run.sets.labels.names
    baselines = _baseline_rows(run, notes)
    sets = {"dev": run.sets.dev, "test": run.sets.test}
    metrics: dict[str, Any] = {
        "seed": run.seed,
        "problem_type": kind,
        "labels": list(names),
        "train": {"rows": len(run.sets.train), **training_facts(run)},
        "data": set_facts({"train": run.sets.train, **sets}, run.sets.were_cut, hash_texts, "rows"),
    }
    lookups = {
        name: report_texts(run.sets.train, rows, split=name, problem_type=kind)
        for name, rows in sets.items()
        if rows
    }
    notes += leak_lines(lookups, were_cut=run.sets.were_cut)
    known = any(report.known for report in lookups.values())
    lookup = LookupBaseline(kind, len(names)).fit(run.sets.train) if known else None
    said: dict[str, Floats] = {}
    found: dict[str, Floats] = {}
    others: dict[str, dict[str, Floats]] = {}
    for name, examples in sets.items():
        if examples:
            said[name] = logits(examples).double().numpy()
            found[name] = within(said[name], examples, labels=run.sets.labels)
            beside = {**baselines, **({LOOKUP: lookup} if lookup and lookups[name].known else {})}
            others[name] = {
                baseline: within(one.predict(examples), examples, labels=run.sets.labels)
                for baseline, one in beside.items()
            }
            metrics[name] = _measure(examples, found[name], others=others[name], run=run, config=model.config)
            if line := candidates_line(examples, labels=run.sets.labels, split=name):
                held = "; this model scores all labels, and predict.py --candidates holds it to them"
                yours = "" if model.answers else held
                notes.append(line + yours)
    notes += _constant(kind, said)
    reported = "test" if run.sets.test else "dev"
    metrics["lookup"] = {name: report.as_dict() for name, report in lookups.items()}
    every = {MODEL: found[reported], **others[reported]}
    metrics["verdict"] = _verdict(sets[reported], every, run=run, thresholds=model.config.label_thresholds)
    if metrics["verdict"]:
        metrics["verdict"]["split"] = reported
    if model.config.calibration:
        ours = {name: metrics[name][MODEL] for name in said}
        metrics["calibration"] = measured_texts(said, run.sets, model.config, after=ours)
        update_config(model.config, folder, calibration=metrics["calibration"])
    examples, shown = sets[reported], found[reported]
    plots = _plots(folder, run, examples, shown, metrics, notes)
    metrics["notes"] = notes
    write_predictions(folder / "predictions.jsonl", examples, shown, config=model.config)
    options = {"labels": names, "split": reported, "thresholds": model.config.label_thresholds}
    page = hardest_errors(kind, examples, shown, **options)
    (folder / "errors.md").write_text(page, encoding="utf-8")
    card = text_card(model, folder, metrics, reported, run, plots=plots)
    main = BEST_METRIC[kind][0].removeprefix("eval_")
    write_record(folder, run, metrics=metrics, card=card, reported=reported, main=main)
    _say(metrics, reported, folder, run)
    return metrics


def _constant(kind: str, logits: Mapping[str, Floats]) -> list[str]:
    """Say that a model has learned nothing: it gives one answer to every row."""
    if kind in (MULTI, REGRESSION) or any(
        len(set(found.argmax(1).tolist())) > 1 for found in logits.values()
    ):
        return []
    return ["the model gives one label to every text: raise --learning_rate, or train longer"]


def _baseline_rows(run: TextRun, notes: list[str]) -> dict[str, TfidfBaseline | TrivialBaseline]:
    """Name to fitted baseline; one that cannot be fitted is left out with a note."""
    kind, count, train = run.sets.problem_type, len(run.sets.labels), run.sets.train
    baselines: dict[str, TfidfBaseline | TrivialBaseline] = {}
    fitted = baseline_rows(train, notes)
    tfidf = attempt(lambda: TfidfBaseline(kind, count).fit(fitted), "no TF-IDF baseline", notes)
    if tfidf is not None:
        baselines[TFIDF] = tfidf
    trivial = TrivialBaseline(kind, count).fit(train)
    return {**baselines, trivial.name: trivial}


def _verdict(
    examples: Sequence[TextExample],
    scores: Mapping[str, Floats],
    *,
    run: TextRun,
    thresholds: Sequence[float] | None,
) -> dict[str, Any] | None:
    """The model beside the best baseline, by the metric that picks checkpoints."""
    kind, targets = run.sets.problem_type, [example.target for example in examples]
    measures = {
        name: text_measure(kind, found, targets, num_labels=len(run.sets.labels))
        for name, found in scores.items()
    }
    if thresholds:  # the model's own; baselines are cut where their probability is .5
        measures[MODEL] = text_measure(
            kind, scores[MODEL], targets, num_labels=len(run.sets.labels), thresholds=thresholds
        )
    metric, groups = BEST_METRIC[kind][0].removeprefix("eval_"), [example.group for example in examples]
    options: dict[str, Any] = {"groups": groups, "count": len(examples), "beside": TFIDF}
    return give_verdict(measures, model=MODEL, metric=metric, **options)


def _measure(
    examples: Sequence[TextExample],
    logits: Floats,
    *,
    others: Mapping[str, Floats],
    run: TextRun,
    config: Any,
) -> dict[str, Any]:
    """Metrics of the model and of the baselines on the same rows; per label for the model only."""
    kind, targets = run.sets.problem_type, [example.target for example in examples]
    options: dict[str, Any] = {"labels": run.sets.labels.names, "groups": [e.group for e in examples]}
    thresholds = {"threshold": config.label_thresholds} if config.label_thresholds else {}
    figures = {MODEL: classification_metrics(kind, logits, targets, **options, **thresholds)}
    if kind != REGRESSION:
        figures[MODEL] |= calibration_metrics(kind, logits, targets, groups=options["groups"])
    for name, scores in others.items():
        found = classification_metrics(kind, scores, targets, **options)
        for key in ("per_class", *NEED_PROBABILITIES):
            found.pop(key, None)
        figures[name] = found
    if kind in (SINGLE, ORDINAL):
        parents = run.sets.labels.parents
        coarse = coarse_accuracy(logits, targets, parents=parents, groups=options["groups"])
        if coarse is not None:
            figures[MODEL]["coarse_accuracy"] = coarse
    return figures


def _plots(
    folder: Path,
    run: TextRun,
    examples: Sequence[TextExample],
    logits: Floats,
    metrics: dict[str, Any],
    notes: list[str],
) -> dict[str, str]:
    """Draw what fits the problem type; title to file name of what could be drawn."""
    kind, names = run.sets.problem_type, run.sets.labels.names
    scores, truth = check_scores(kind, logits, [e.target for e in examples], num_labels=len(names))
    wanted: dict[str, tuple[str, Callable[[Path], Path]]] = {}
    if kind == REGRESSION:
        wanted["Predicted against true"] = (
            "scatter.png",
            lambda path: scatter_plot(scores.ravel(), truth.ravel(), path),
        )
    else:
        sure = probabilities(kind, scores)
        right = truth if kind == MULTI else top_credit(scores, truth)
        answers = sure.ravel() if kind == MULTI else sure.max(1)
        if kind != MULTI:
            wanted["Confusion"] = (
                "confusion.png",
                lambda path: confusion_plot(
                    confusion_matrix(scores, truth, num_labels=len(names)), path, labels=names
                ),
            )
        wanted["Reliability"] = (
            "reliability.png",
            lambda path: reliability_plot(answers, np.ravel(right), path),
        )
    if curve := metrics.get("calibration", {}).get("risk_coverage"):
        wanted["Risk and coverage"] = ("risk_coverage.png", lambda path: risk_coverage_plot(curve, path))
    wanted["Training"] = ("training.png", lambda path: _curves(path, run, metrics["dev"]))
    drawn = {
        title: attempt(lambda d=draw, f=file: d(folder / f), "no plot", notes)  # type: ignore[misc]
        for title, (file, draw) in wanted.items()
    }
    return {title: path.name for title, path in drawn.items() if path}


def _curves(path: Path, run: TextRun, dev: dict[str, Any]) -> Path:
    key, _ = BEST_METRIC[run.sets.problem_type]
    name = key.removeprefix("eval_")
    baselines = {baseline: entry[name]["value"] for baseline, entry in dev.items() if baseline != MODEL}
    percent = name == "accuracy"
    return training_curves(
        run.log_history,
        path,
        accuracy_key=key,
        accuracy_label="right (%)" if percent else figure_name(name),
        loss_label="loss",
        title=f"Dev {figure_name(name)}",
        scale=100.0 if percent else 1.0,
        baselines={baseline: value for baseline, value in baselines.items() if value is not None},
    )


def _say(metrics: dict[str, Any], reported: str, folder: Path, run: TextRun) -> None:
    """Print the figures, the weakest labels and what to type next, in plain words."""
    kind, found = run.sets.problem_type, metrics[reported]
    main = BEST_METRIC[kind][0].removeprefix("eval_")
    rows = figure_rows(found, HEADLINES[kind])
    ours = found[MODEL][main]
    looked = lookup_line(metrics, reported)
    pairs = any(example.text_b for example in run.sets.train)
    command = [python_command(), "-m", "qwen_task_heads", str(folder), "A text of your own."]
    predict = f"accelerate launch recipes/predict.py --model {shlex.quote(str(folder))}"
    next_lines = [] if pairs else ["Next, classify a text of your own:", "  " + shlex.join(command)]
    next_lines += ["Next, a file:" if pairs else "or a file:"]
    offers = any(example.candidates for example in run.sets.train)
    next_lines += [
        f"  {predict} --input texts.jsonl --output answers.jsonl" + " --candidates category" * offers
    ]
    lines = [
        "",
        trained_line(f"{describe(run)} on {len(run.sets.train):,} rows", run),
        f"On {reported}: {ours['n']:,} rows"
        + (f" of {ours['n_groups']:,} groups" if ours["n_groups"] != ours["n"] else "")
        + ", 95% intervals over them"
        + picked_note(run, reported, "rows"),
        "",
        *aligned(rows),
        "",
        *verdict_lines(metrics),
        *([looked] if looked else []),
        *([calibration_line(metrics["calibration"], reported)] if "calibration" in metrics else []),
        *_weakest(found[MODEL]["per_class"] if kind != REGRESSION else []),
        *([SMALL] if run.backbone == EMBEDDED else []),
        "",
        *(f"note: {note}" for note in metrics["notes"]),
        f"Everything is in {folder}: model, card (README.md), metrics.json, predictions.jsonl, plots,",
        "and the most confident mistakes in errors.md: look at these first.",
        *next_lines,
    ]  # fmt: skip
    print("\n".join(lines), flush=True)


def _weakest(per_class: Sequence[Mapping[str, Any]]) -> list[str]:
    """The labels with the lowest F1 among those that occur."""
    known = [row for row in per_class if row["support"] and row["f1"] < 1]
    known = sorted(known, key=lambda row: row["f1"])[:WEAKEST]
    if len(per_class) <= 2 or not known:
        return []
    told = ", ".join(f"{row['label']} ({row['f1']:.2f} of {row['support']} rows)" for row in known)
    return [f"Weakest labels by F1: {told}."]


def describe(run: TextRun) -> str:
    """What kind of model it is, in a few words."""
    count = len(run.sets.labels)
    return {
        MULTI: f"a multi-label classifier of {count} labels",
        REGRESSION: "a regression model" if count == 1 else f"a regression model of {count} values",
        "ordinal": f"an ordinal model of {count} steps",
    }.get(run.sets.problem_type, f"a classifier of {count} labels")
