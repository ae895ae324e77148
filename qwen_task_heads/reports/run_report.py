"""Report of a run: measure the saved model on dev and test, write all files, and print a summary.

- The model is calibrated on dev and saved before it is measured.
- Every metric on the card, in the summary and in the plots comes from the dictionary of `metrics.json`.
- `Scorer` computes the outputs of the model, as it does for users; the training loop does not.

`text_report.py` and `title_report.py` have what differs between classifiers and title scorers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.metrics.verdicts import give_verdict
from qwen_task_heads.reports.calibration_summary import calibration_line
from qwen_task_heads.reports.card_lines import lookup_line, verdict_lines
from qwen_task_heads.reports.finishing import (
    SMALL,
    FinishedTraining,
    Trained,
    attempt,
    describe_run,
    picked_note,
    split_facts,
    trained_line,
    training_facts,
    write_record,
)
from qwen_task_heads.reports.records import MODEL, main_metric

Plots = Mapping[str, tuple[str, Callable[[Path], Path]]]  # from title to file name and function


class RunReport(ABC):
    """Report of a saved model; `write` makes it.

    Args:
        model: config and kind of the model.
        run: the finished training.
        folder: of the saved model.
        messages: earlier messages of the run.
        outputs: from rows of a split to the outputs of the model.

    Attributes:
        splits: dev, and test if there is one, by name.
        reported: split of the card and of the summary.
        metrics: content of `metrics.json`.
    """

    TFIDF: ClassVar[str]  # name of the baseline that the verdict names besides the best one
    ROWS: ClassVar[str]  # noun for rows of the data, and the key of their number
    DIGEST: ClassVar[Any]  # function from rows to their SHA-256
    FILES: ClassVar[str] = "."  # end of the line on the files

    def __init__(
        self,
        model: Trained,
        run: FinishedTraining,
        *,
        folder: Path,
        messages: list[str],
        outputs: Callable[[Sequence[Any]], Any],
    ) -> None:
        self.model, self.run, self.folder, self.messages = model, run, folder, messages
        self.outputs = outputs
        self.splits = {name: rows for name, rows in (("dev", run.sets.dev), ("test", run.sets.test)) if rows}
        self.reported = "test" if "test" in self.splits else "dev"
        self.metrics: dict[str, Any] = {"seed": run.seed}

    def write(self) -> dict[str, Any]:
        """Measure the model, write its report, print the summary, and return the metrics."""
        run, metrics, messages = self.run, self.metrics, self.messages
        self._fit_baselines()
        metrics["train"] = {self.ROWS: len(run.sets.train), **training_facts(run)}
        metrics["data"] = split_facts(run, self.DIGEST, self.ROWS)
        self.lookups = run.sets.lookups
        messages += run.sets.leak_lines()
        for split, rows in self.splits.items():
            metrics[split] = self._measure(split, rows)
        self._summarize()
        plots = {
            title: attempt(lambda d=draw, f=file: d(self.folder / f), "no plot", messages)  # type: ignore[misc]
            for title, (file, draw) in self._plots().items()
        }
        metrics["notes"] = messages
        self._write_rows(self.splits[self.reported])
        drawn = {title: path.name for title, path in plots.items() if path}
        record = describe_run(self.model, run, name=self.folder.name, metrics=metrics, plots=drawn)
        write_record(self.folder, record, run=run)
        self._print_summary()
        return metrics

    @abstractmethod
    def _fit_baselines(self) -> None:
        """Fit the baselines on train; one that cannot be fitted is omitted with a message."""

    @abstractmethod
    def _measure(self, split: str, rows: Sequence[Any]) -> dict[str, Any]:
        """Return the metrics of the model and the baselines on the same rows."""

    @abstractmethod
    def _summarize(self) -> None:
        """Add lookup, verdict and calibration to the metrics."""

    @abstractmethod
    def _measures(self) -> Mapping[str, Any]:
        """Return the measures of the model and the baselines on the reported split, for the verdict."""

    @abstractmethod
    def _plots(self) -> Plots:
        """Return the plots."""

    @abstractmethod
    def _write_rows(self, rows: Sequence[Any]) -> None:
        """Write the predictions on the reported rows."""

    @abstractmethod
    def _description(self) -> str:
        """Return a short description of the model."""

    @abstractmethod
    def _table(self) -> list[str]:
        """Return the lines of the printed table of metrics."""

    @abstractmethod
    def _next_commands(self) -> list[str]:
        """Return the commands that use the model, with a line before each."""

    def _further_lines(self) -> list[str]:
        """Return further lines of the summary."""
        return []

    @property
    def main(self) -> str:
        """Metric that selects checkpoints by default."""
        return main_metric(self.model.config.model_type, self.metrics)

    def _add_lookup_and_verdict(self) -> None:
        """Compare the model with the best baseline, by the metric that selects checkpoints."""
        rows = self.splits[self.reported]
        verdict = give_verdict(
            self._measures(),
            model=MODEL,
            metric=self.main,
            groups=[row.group for row in rows],
            count=len(rows),
            second=self.TFIDF,
        )
        self.metrics["lookup"] = {split: report.as_dict() for split, report in self.lookups.items()}
        self.metrics["verdict"] = {"split": self.reported, **verdict} if verdict else None

    def _baseline_values(self) -> dict[str, float]:
        """Return the main metric of each baseline on dev, if it is defined."""
        values = {name: entry[self.main]["value"] for name, entry in self.metrics["dev"].items()}
        return {name: value for name, value in values.items() if name != MODEL and value is not None}

    def _print_summary(self) -> None:
        """Print the metrics and the next commands."""
        run, metrics, ours = self.run, self.metrics, self.metrics[self.reported][MODEL][self.main]
        lines = [
            "",
            trained_line(f"{self._description()} on {len(run.sets.train):,} {self.ROWS}", run),
            f"{self._measured_on(ours)}{picked_note(run, self.reported, self.ROWS)}",
            "",
            *self._table(),
            "",
            *verdict_lines(metrics),
        ]
        if lookup := lookup_line(metrics, self.reported):
            lines.append(lookup)
        if "calibration" in metrics:
            lines.append(calibration_line(metrics["calibration"], self.reported))
        lines += self._further_lines()
        if run.backbone == EMBEDDED:
            lines.append(SMALL)
        files = (
            f"Everything is in {self.folder}: model, card (README.md), metrics.json, predictions.jsonl, plots"
        )
        notes = [f"note: {note}" for note in metrics["notes"]]
        print("\n".join([*lines, "", *notes, files + self.FILES, *self._next_commands()]), flush=True)

    @abstractmethod
    def _measured_on(self, main: Mapping[str, Any]) -> str:
        """Return the line on the rows of the metrics; `main` is the entry of the main metric."""
