"""Report of a model with several questions; `text_report.py` has what it shares with other classifiers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.hubcode.questions_task_heads import as_request, options_of
from qwen_task_heads.metrics.classification import SINGLE
from qwen_task_heads.metrics.lookup_baseline import LOOKUP, LookupBaseline
from qwen_task_heads.metrics.questions import (
    QuestionBaseline,
    answered,
    mean_accuracy_measure,
    question_metrics,
)
from qwen_task_heads.metrics.text_baselines import MAJORITY, TfidfBaseline, TrivialBaseline
from qwen_task_heads.metrics.title_baselines import baseline_rows
from qwen_task_heads.reports.calibration import measured_questions, update_config
from qwen_task_heads.reports.early_exits import aligned
from qwen_task_heads.reports.finishing import FinishedTraining, Trained, attempt
from qwen_task_heads.reports.prediction_rows import hardest_errors, write_predictions
from qwen_task_heads.reports.records import MODEL
from qwen_task_heads.reports.run_report import Plots
from qwen_task_heads.reports.text_card import metric_rows
from qwen_task_heads.reports.text_report import NEED_PROBABILITIES, TFIDF, TextReport


class QuestionReport(TextReport):
    """Report of a model with several questions; its outputs are logits (N, L) of N examples, as a tensor."""

    def __init__(self, model: Trained, run: FinishedTraining, **options: Any) -> None:
        super().__init__(model, run, **options)
        self.questions = run.sets.questions
        self.metrics["questions"] = [dict(question) for question in self.questions]

    def _fit_baselines(self) -> None:
        train = self.run.sets.train
        rows = baseline_rows(train, self.messages)
        tfidf = QuestionBaseline(TfidfBaseline, self.questions)
        fitted = attempt(lambda: tfidf.fit(rows), "no TF-IDF baseline", self.messages)
        self.baselines = {TFIDF: fitted} if fitted is not None else {}
        self.baselines[MAJORITY] = QuestionBaseline(TrivialBaseline, self.questions).fit(train)

    @cached_property
    def lookup_baseline(self) -> Any:
        """Baseline that looks rows up in train."""
        return QuestionBaseline(LookupBaseline, self.questions).fit(self.run.sets.train)

    def _measure(self, split: str, rows: Sequence[TextExample]) -> dict[str, Any]:
        scores = {MODEL: self.outputs(rows).double().numpy()}
        fitted = dict(self.baselines)
        if self.lookups[split].known:
            fitted[LOOKUP] = self.lookup_baseline
        scores |= {name: baseline.predict(rows) for name, baseline in fitted.items()}
        self.scores[split] = scores
        targets, groups = [row.target for row in rows], [row.group for row in rows]
        metrics = {}
        for name, found in scores.items():
            own = question_metrics(self.questions, found, targets, groups=groups)
            if name != MODEL:
                own = {key: value for key, value in own.items() if not _needs_probabilities(key)}
            metrics[name] = own
        return metrics

    def _summarize(self) -> None:
        for one in self._answered(self.scores[self.reported][MODEL]):
            if len(set(one.scores.argmax(1).tolist())) == 1 and len(set(one.truth.tolist())) > 1:
                self.messages.append(f"the model predicts one answer to {one.name!r} for every text")
        self._add_lookup_and_verdict()
        config, raw = self.model.config, {split: scores[MODEL] for split, scores in self.scores.items()}
        if config.calibration:
            self.metrics["calibration"] = measured_questions(raw, self.run.sets, config)
            update_config(config, self.folder, calibration=self.metrics["calibration"])

    def _answered(self, logits: Any) -> Any:
        """Return the answered rows of each question of the reported split."""
        targets = [row.target for row in self.splits[self.reported]]
        return answered(self.questions, logits, targets)

    def _measures(self) -> Mapping[str, Any]:
        targets = [row.target for row in self.splits[self.reported]]
        return {
            name: mean_accuracy_measure(self.questions, logits, targets)
            for name, logits in self.scores[self.reported].items()
        }

    def _plots(self) -> Plots:
        return {"Training": ("training.png", self._draw_curves)}

    def _write_rows(self, rows: Sequence[TextExample]) -> None:
        logits = self.scores[self.reported][MODEL]
        write_predictions(self.folder / "predictions.jsonl", rows, logits, config=self.model.config)
        pages = [
            hardest_errors(
                SINGLE,
                [
                    replace(rows[place], target=label)
                    for place, label in zip(one.rows.tolist(), one.truth.tolist(), strict=True)
                ],
                np.asarray(one.scores),
                labels=options_of(one.question),
                split=f"{self.reported}, question {one.name}",
            )
            for one in self._answered(logits)
        ]
        (self.folder / "errors.md").write_text("\n".join(pages), encoding="utf-8")

    def _description(self) -> str:
        return f"a decision model of {len(self.questions)} questions"

    def _table(self) -> list[str]:
        metrics = self.metrics[self.reported]
        names = [name for name in metrics[MODEL] if name != "per_class" and not _needs_probabilities(name)]
        return aligned(metric_rows(metrics, names))

    def _next_commands(self) -> list[str]:
        lines = super()._next_commands()
        request = json.dumps(as_request(self.questions), ensure_ascii=False)
        return [*lines, "or ask these questions by transformers' pipeline('decision'):", f"  {request}"]


def _needs_probabilities(name: str) -> bool:
    return name == "per_class" or name.rpartition(".")[2] in NEED_PROBABILITIES
