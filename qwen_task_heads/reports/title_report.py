"""Report of a title run; `run_report.py` has the steps."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.lookups import look_up_titles
from qwen_task_heads.data.title_datasets import hash_pairs
from qwen_task_heads.inference.rewards import reward_constants
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.metrics.calibration import PAIRS, calibration_metrics
from qwen_task_heads.metrics.lookup_baseline import LOOKUP
from qwen_task_heads.metrics.ranking import mean_metric, pair_credit, ranking_metrics
from qwen_task_heads.metrics.title_baselines import TfidfBradleyTerry, baseline_rows, longer_title
from qwen_task_heads.metrics.verdicts import PAIR_ACCURACY, mean_measure, pair_measure
from qwen_task_heads.reports.calibration import calibrate_titles, measured_titles, update_config
from qwen_task_heads.reports.finishing import (
    FinishedTraining,
    Trained,
    attempt,
    initial_messages,
    python_command,
    save_first,
)
from qwen_task_heads.reports.records import MODEL, keep_reference
from qwen_task_heads.reports.run_report import Plots, RunReport
from qwen_task_heads.reports.text_plots import risk_coverage_plot
from qwen_task_heads.reports.title_card import accuracy_rows
from qwen_task_heads.reports.title_plots import gap_against_accuracy, training_curves
from qwen_task_heads.training.usage import Usage
from qwen_task_heads.verification.reference import take_reference

LONGER, TFIDF = "the longer title wins", "TF-IDF Bradley-Terry"
Scores = tuple[np.ndarray, np.ndarray]  # of chosen and rejected titles, (B,) each


def finish_titles(model: Any, *, tokenizer: Any, folder: str | Path, run: FinishedTraining) -> dict[str, Any]:
    """Save the model and its report, print the summary, and return the metrics.

    Args:
        model: a trained `TitleScorer`, or a `PeftModel` around one.
        tokenizer: with the compiled template.
        folder: output folder of the model, `metrics.json`, `predictions.jsonl`, `manifest.json`,
            `README.md` and plots.
        run: the finished training.
    """
    scorer, messages = Scorer(model.eval(), tokenizer=tokenizer), initial_messages(model, run)
    dev_scores = None
    try:
        dev_scores = calibrate_titles(
            model,
            partial(_score, scorer, run.sets.dev, run.usage),
            run=run,
            groups=[pair.group for pair in run.sets.dev],
            messages=messages,
        )
    finally:  # save the model even if the calibration is interrupted
        folder = save_first(model, tokenizer=tokenizer, folder=folder)

    def scores(pairs: Sequence[PairExample]) -> Scores:
        if dev_scores is not None and pairs is run.sets.dev:
            return dev_scores
        return _score(scorer, pairs, run.usage)

    metrics = TitleReport(Trained.of(model), run, folder=folder, messages=messages, outputs=scores).write()
    prompted = [pair for pair in run.sets.dev if pair.prompt]
    if prompted:
        texts = {
            "texts": [pair.prompt for pair in prompted],
            "text_pairs": [pair.chosen for pair in prompted],
        }
    else:
        texts = {"texts": [pair.chosen for pair in run.sets.dev]}
    keep_reference(folder, take=partial(take_reference, model, tokenizer=tokenizer, **texts))
    return metrics


class TitleReport(RunReport):
    """Report of a title scorer; its outputs are the scores of chosen and rejected titles."""

    TFIDF, ROWS, DIGEST = TFIDF, "pairs", staticmethod(hash_pairs)

    def __init__(self, model: Trained, run: FinishedTraining, **options: Any) -> None:
        super().__init__(model, run, **options)
        self.scores: dict[str, Scores] = {}
        self.credits: dict[str, dict[str, np.ndarray]] = {}  # (B,) of each baseline, by split

    def _fit_baselines(self) -> None:
        rows = baseline_rows(self.run.sets.train, self.messages)
        self.tfidf = attempt(lambda: TfidfBradleyTerry().fit(rows), "no TF-IDF baseline", self.messages)

    def _measure(self, split: str, rows: Sequence[PairExample]) -> dict[str, Any]:
        chosen, rejected = self.scores[split] = self.outputs(rows)
        groups = [pair.group for pair in rows]
        ours = ranking_metrics(
            chosen,
            rejected,
            groups=groups,
            chosen_lengths=np.array([len(pair.chosen) for pair in rows]),
            rejected_lengths=np.array([len(pair.rejected) for pair in rows]),
        )
        ours |= calibration_metrics(PAIRS, np.stack([chosen, rejected], axis=1), groups=groups)
        metrics = {MODEL: ours}
        self.credits[split] = self._baseline_credits(rows, use_lookup=self.lookups[split].known > 0)
        for name, credit in self.credits[split].items():
            ties = None if name == LONGER else int((credit == 0.5).sum())
            metrics[name] = {PAIR_ACCURACY: mean_metric(credit, groups=groups, ties=ties).as_dict()}
        return metrics

    def _baseline_credits(self, pairs: Sequence[PairExample], *, use_lookup: bool) -> dict[str, np.ndarray]:
        """Return the credit (B,) of each baseline on the pairs."""
        credits = {LONGER: longer_title(pairs)}
        if self.tfidf is not None:
            sides = [[p.chosen for p in pairs], [p.rejected for p in pairs]]
            credits[TFIDF] = pair_credit(*(self.tfidf.score(side) for side in sides))
        if use_lookup:
            credits[LOOKUP] = pair_credit(*look_up_titles(self.run.sets.train, pairs)[:2])
        return credits

    def _summarize(self) -> None:
        config, metrics = self.model.config, self.metrics
        if config.calibration:
            groups = {split: [pair.group for pair in rows] for split, rows in self.splits.items()}
            ours = {split: metrics[split][MODEL] for split in self.scores}
            metrics["calibration"] = measured_titles(self.scores, groups, config, after=ours)
            update_config(config, self.folder, calibration=metrics["calibration"])
        dev, (chosen, rejected) = self.splits["dev"], self.scores["dev"]  # their distinct titles:
        titles = {(pair.prompt, pair.chosen): score for pair, score in zip(dev, chosen, strict=True)}
        titles |= {(pair.prompt, pair.rejected): score for pair, score in zip(dev, rejected, strict=True)}
        metrics["reward"] = reward_constants(list(titles.values()), [len(title) for _, title in titles])
        update_config(config, self.folder, **metrics["reward"])
        self._add_lookup_and_verdict()

    def _measures(self) -> Mapping[str, Any]:
        credits = self.credits[self.reported]
        of_baselines = {name: mean_measure(credit, name=PAIR_ACCURACY) for name, credit in credits.items()}
        return {MODEL: pair_measure(*self.scores[self.reported]), **of_baselines}

    def _plots(self) -> Plots:
        scores, log = self.scores[self.reported], self.run.log_history
        gaps, credit = np.subtract(*scores), pair_credit(*scores)
        baselines = self._baseline_values()
        wanted: dict[str, Any] = {
            "Score gap against accuracy": (
                "gap_against_accuracy.png",
                lambda path: gap_against_accuracy(gaps, credit, path),
            ),
            "Training": ("training.png", lambda path: training_curves(log, path, baselines=baselines)),
        }
        if curve := self.metrics.get("calibration", {}).get("risk_coverage"):
            wanted["Risk and coverage"] = ("risk_coverage.png", lambda path: risk_coverage_plot(curve, path))
        return wanted

    def _write_rows(self, rows: Sequence[PairExample]) -> None:
        _write_predictions(self.folder / "predictions.jsonl", rows, *self.scores[self.reported])

    def _description(self) -> str:
        return "a title scorer"

    def _measured_on(self, main: Mapping[str, Any]) -> str:
        return (
            f"Pair accuracy on {self.reported}: {main['n']:,} pairs of {main['n_groups']:,} groups, "
            "95% interval over them"
        )

    def _table(self) -> list[str]:
        found = self.metrics[self.reported]
        rows = accuracy_rows({name: entry[PAIR_ACCURACY] for name, entry in found.items()})
        width = max(len(row["name"]) for row in rows)
        return [f"  {row['name']:<{width}}  {row['value']}  ({row['low']} to {row['high']})" for row in rows]

    def _next_commands(self) -> list[str]:
        command = [python_command(), "-m", "qwen_task_heads", str(self.folder)]
        command += ["Budget passes", "What the new budget means for your rent"]
        if any(pair.prompt for pair in self.run.sets.train):  # scores depend on the prompt
            command += ["--prompt", "Parliament has passed the budget."]
        return [
            "Next, score titles of your own:",
            f"  {shlex.join(command)}",
            "or load it without this package:",
            f"  AutoModelForSequenceClassification.from_pretrained({str(self.folder)!r}, "
            "trust_remote_code=True)",
        ]


def _score(scorer: Scorer, pairs: Sequence[PairExample], usage: Usage) -> tuple[np.ndarray, np.ndarray]:
    titles = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    distinct: dict[tuple[str, str], int] = {}  # several pairs of an experiment may share a title
    index = [distinct.setdefault(title, len(distinct)) for title in titles]
    prompts = [prompt for prompt, _ in distinct]
    with usage.measured():
        found = scorer.score([title for _, title in distinct], prompts=prompts if any(prompts) else None)
    scores = np.array(found)[index]
    return scores[: len(pairs)], scores[len(pairs) :]


def _write_predictions(
    path: Path, pairs: Sequence[PairExample], chosen: np.ndarray, rejected: np.ndarray
) -> None:
    with path.open("w", encoding="utf-8") as file:
        credits = pair_credit(chosen, rejected)
        for pair, c, r, credit in zip(
            pairs, chosen.tolist(), rejected.tolist(), credits.tolist(), strict=True
        ):
            row = {
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "chosen_score": c,
                "rejected_score": r,
                "p_preferred": 1 / (1 + float(np.exp(np.clip(r - c, -700, 700)))),
                "correct": credit == 1,
                "group": pair.group,
                "source": Path(pair.source).name,
            }
            if credit == 0.5:
                row["tie"] = True
            if pair.prompt:
                row["prompt"] = pair.prompt
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
