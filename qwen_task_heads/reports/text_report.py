"""Report of a classification run; `run_report.py` has the steps.

If rows have candidate labels, the model and the baselines choose among them, and a message says so: a head
scores all labels, and its caller restricts them to the candidates.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_task_heads.commands import words_of
from qwen_task_heads.data.candidates import candidates_line, within
from qwen_task_heads.data.examples import TextExample
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
from qwen_task_heads.metrics.verdicts import text_measure
from qwen_task_heads.reports.calibration import calibrate_texts, measured_texts, update_config
from qwen_task_heads.reports.early_exits import aligned
from qwen_task_heads.reports.finishing import (
    FinishedTraining,
    Trained,
    attempt,
    initial_messages,
    python_command,
    save_first,
)
from qwen_task_heads.reports.markdown import metric_name
from qwen_task_heads.reports.prediction_rows import hardest_errors, write_predictions
from qwen_task_heads.reports.records import MODEL, keep_reference
from qwen_task_heads.reports.run_report import Plots, RunReport
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


def finish_texts(
    model: Any,
    *,
    tokenizer: Any,
    folder: str | Path,
    run: FinishedTraining,
    make: type[TextReport] | None = None,
) -> dict[str, Any]:
    """Save the model and its report, print the summary, and return the metrics.

    Args:
        model: a trained `PooledClassifier`, or a `PeftModel` around one.
        tokenizer: with the compiled template.
        folder: output folder of the model, `metrics.json`, `predictions.jsonl`, `errors.md`,
            `manifest.json`, `README.md` and plots.
        run: the finished training.
        make: class of the report; None for `TextReport`.
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
    options: dict[str, Any] = {"folder": folder, "messages": messages, "outputs": logits}
    report = (make or TextReport)(Trained.of(model), run, **options)
    metrics = report.write()
    pairs = [example.text_b for example in run.sets.dev]
    texts = [example.text for example in run.sets.dev]
    take = partial(take_reference, model, tokenizer=tokenizer, texts=texts)
    keep_reference(folder, take=partial(take, text_pairs=pairs if any(pairs) else None))
    return metrics


class TextReport(RunReport):
    """Report of a classifier; its outputs are logits (N, L) of N examples, as a tensor."""

    TFIDF, ROWS, DIGEST = TFIDF, "rows", staticmethod(hash_texts)
    FILES = ",\nand the most confident errors in errors.md: review these first."

    def __init__(self, model: Trained, run: FinishedTraining, **options: Any) -> None:
        super().__init__(model, run, **options)
        self.kind, self.labels = run.sets.problem_type, run.sets.labels
        self.metrics |= {"problem_type": self.kind, "labels": list(self.labels.names)}
        self.thresholds = model.config.label_thresholds
        self.raw: dict[str, Floats] = {}  # logits of all labels
        self.scores: dict[str, dict[str, Floats]] = {}  # of model and baselines, within the candidates

    def _fit_baselines(self) -> None:
        kind, count, train = self.kind, len(self.labels), self.run.sets.train
        self.baselines: dict[str, Any] = {}
        rows = baseline_rows(train, self.messages)
        tfidf = attempt(lambda: TfidfBaseline(kind, count).fit(rows), "no TF-IDF baseline", self.messages)
        if tfidf is not None:
            self.baselines[TFIDF] = tfidf
        trivial = TrivialBaseline(kind, count).fit(train)
        self.baselines[trivial.name] = trivial

    @cached_property
    def lookup_baseline(self) -> LookupBaseline:
        """Baseline that looks rows up in train."""
        return LookupBaseline(self.kind, len(self.labels)).fit(self.run.sets.train)

    def _measure(self, split: str, rows: Sequence[TextExample]) -> dict[str, Any]:
        self.raw[split] = self.outputs(rows).double().numpy()
        fitted = dict(self.baselines)
        if self.lookups[split].known:
            fitted[LOOKUP] = self.lookup_baseline
        scores = {MODEL: self.raw[split]}
        scores |= {name: baseline.predict(rows) for name, baseline in fitted.items()}
        scores = {name: within(found, rows, labels=self.labels) for name, found in scores.items()}
        self.scores[split] = scores
        if line := candidates_line(rows, labels=self.labels, split=split):
            if not self.model.is_generative:
                line += "; this model scores all labels, and predict.py --candidates restricts it to them"
            self.messages.append(line)
        kind, targets = self.kind, [example.target for example in rows]
        options: dict[str, Any] = {"labels": self.labels.names, "groups": [e.group for e in rows]}
        metrics = {}
        for name, found in scores.items():
            own = {"threshold": self.thresholds} if self.thresholds and name == MODEL else {}
            metrics[name] = classification_metrics(kind, found, targets, **options, **own)
            if name != MODEL:
                for key in ("per_class", *NEED_PROBABILITIES):
                    metrics[name].pop(key, None)
        ours, logits = metrics[MODEL], scores[MODEL]
        if kind != REGRESSION:
            ours |= calibration_metrics(kind, logits, targets, groups=options["groups"])
        if kind in (SINGLE, ORDINAL):
            parents = self.labels.parents
            coarse = coarse_accuracy(logits, targets, parents=parents, groups=options["groups"])
            if coarse is not None:
                ours["coarse_accuracy"] = coarse
        return metrics

    def _summarize(self) -> None:
        self.messages += self._constant()
        self._add_lookup_and_verdict()
        config = self.model.config
        if config.calibration:
            ours = {split: self.metrics[split][MODEL] for split in self.raw}
            self.metrics["calibration"] = measured_texts(self.raw, self.run.sets, config, after=ours)
            update_config(config, self.folder, calibration=self.metrics["calibration"])

    def _constant(self) -> list[str]:
        """Return a message if the model predicts the same label for every row."""
        if self.kind in (MULTI, REGRESSION):
            return []
        if any(len(set(scores.argmax(1).tolist())) > 1 for scores in self.raw.values()):
            return []
        return ["the model predicts one label for every text: raise --learning_rate, or train longer"]

    def _measures(self) -> Mapping[str, Any]:
        targets = [example.target for example in self.splits[self.reported]]
        return {
            name: text_measure(
                self.kind,
                logits,
                targets,
                num_labels=len(self.labels),
                **({"thresholds": self.thresholds} if self.thresholds and name == MODEL else {}),
            )
            for name, logits in self.scores[self.reported].items()
        }

    def _plots(self) -> Plots:
        kind, names = self.kind, self.labels.names
        targets = [example.target for example in self.splits[self.reported]]
        logits = self.scores[self.reported][MODEL]
        scores, truth = check_scores(kind, logits, targets, num_labels=len(names))
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
        if curve := self.metrics.get("calibration", {}).get("risk_coverage"):
            wanted["Risk and coverage"] = ("risk_coverage.png", lambda path: risk_coverage_plot(curve, path))
        wanted["Training"] = ("training.png", self._draw_curves)
        return wanted

    def _draw_curves(self, path: Path) -> Path:
        percent = self.main == "accuracy"
        return training_curves(
            self.run.log_history,
            path,
            accuracy_key=BEST_METRIC[self.kind][0],
            accuracy_label="correct (%)" if percent else metric_name(self.main),
            loss_label="loss",
            title=f"Dev {metric_name(self.main)}",
            scale=100.0 if percent else 1.0,
            baselines=self._baseline_values(),
        )

    def _write_rows(self, rows: Sequence[TextExample]) -> None:
        logits = self.scores[self.reported][MODEL]
        write_predictions(self.folder / "predictions.jsonl", rows, logits, config=self.model.config)
        page = hardest_errors(
            self.kind,
            rows,
            logits,
            labels=self.labels.names,
            split=self.reported,
            thresholds=self.thresholds,
        )
        (self.folder / "errors.md").write_text(page, encoding="utf-8")

    def _description(self) -> str:
        count = len(self.labels)
        return {
            MULTI: f"a multi-label classifier of {count} labels",
            REGRESSION: "a regression model" if count == 1 else f"a regression model of {count} values",
            ORDINAL: f"an ordinal model of {count} steps",
        }.get(self.kind, f"a classifier of {count} labels")

    def _measured_on(self, main: Mapping[str, Any]) -> str:
        groups = f" of {main['n_groups']:,} groups" if main["n_groups"] != main["n"] else ""
        return f"On {self.reported}: {main['n']:,} rows{groups}, 95% intervals over them"

    def _table(self) -> list[str]:
        return aligned(metric_rows(self.metrics[self.reported], HEADLINES[self.kind]))

    def _further_lines(self) -> list[str]:
        """Return a line with the labels of the lowest F1 among those that occur."""
        if self.kind == REGRESSION:
            return []
        per_class = self.metrics[self.reported][MODEL]["per_class"]
        known = [row for row in per_class if row["support"] and row["f1"] < 1]
        known = sorted(known, key=lambda row: row["f1"])[:WEAKEST]
        if len(per_class) <= 2 or not known:
            return []
        labels = ", ".join(f"{row['label']} ({row['f1']:.2f} of {row['support']} rows)" for row in known)
        return [f"Weakest labels by F1: {labels}."]

    def _next_commands(self) -> list[str]:
        train, folder = self.run.sets.train, str(self.folder)
        predict = f"{shlex.join(words_of('predict'))} --model {shlex.quote(folder)}"
        predict += " --input texts.jsonl --output answers.jsonl"
        if any(example.candidates for example in train):
            predict += " --candidates category"
        if any(example.text_b for example in train):
            return ["Next, a file:", f"  {predict}"]
        command = shlex.join([python_command(), "-m", "qwen_task_heads", folder, "A text of your own."])
        return ["Next, classify a text of your own:", f"  {command}", "or a file:", f"  {predict}"]
