"""The answers of one classifier on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import pandas as pd

from qwen_task_heads.demo.answers import DemoModel, coverage_note

BARS = 10  # labels with a bar
METHOD = (
    "Each word is left out once. Red: the value falls without the word, which supports it. Violet: it rises. "
    "The shade is relative to the strongest word."
)


class TextView:
    """The components of a classifier, in the column that is being built, and their values.

    Args:
        model: a classifier.

    Attributes:
        controls: the threshold, and whether to use the stored ones; inputs of `classified`.
        answers: outputs of `classified`.
        attributions: outputs of `attributed`.
    """

    def __init__(self, model: DemoModel) -> None:
        self.model = model
        several, curve = model.problem_type == "multi_label_classification", model.curve
        threshold: gr.Slider | gr.State = gr.State(None)
        stored: gr.Checkbox | gr.State = gr.State(False)
        answer = gr.Textbox(label="Answer", interactive=False, lines=1, max_lines=6)
        details = self._details(several)
        if model.has_stored_thresholds:
            stored = gr.Checkbox(True, label="Stored threshold of each label")
        if model.first_threshold is not None:
            label = "Threshold of all labels" if several else "No label below this probability"
            threshold = gr.Slider(0, 1, model.first_threshold, step=0.01, label=label)
        note = gr.Textbox(
            coverage_note(curve, model.first_threshold or 0.0),
            label="At this threshold",
            interactive=False,
            visible=bool(curve),
            lines=2,
        )
        if curve:
            _plot(curve)
        words = gr.HighlightedText(label="Words", show_inline_category=False, interactive=False)
        strongest = gr.Textbox(label="Attribution", interactive=False, info=METHOD, lines=2)
        self.controls, self.answers = [threshold, stored], [answer, details, note]
        self.attributions = [words, strongest]

    def _details(self, several: bool) -> gr.Label | gr.Dataframe:
        self._has_bars = not several and self.model.problem_type != "regression"
        if self._has_bars:
            return gr.Label(label="Probabilities", num_top_classes=BARS, show_heading=False)
        headers = ["Label", "P", "Min P", "Yes"] if several else ["Output", "Score"]
        return gr.Dataframe(
            headers=headers,
            datatype=["str", "number", "number", "str"] if several else ["str", "number"],
            column_widths=["46%", "20%", "20%", "14%"] if several else ["60%", "40%"],
            label="Labels; predicted from Min P" if several else "Scores",
            interactive=False,
            wrap=True,
            buttons=[],
        )

    def classified(
        self, text: str, second_text: str, threshold: float | None, stored: bool
    ) -> tuple[Any, ...]:
        """Return the values of `answers`; without a text, which the page refuses, only that of the note."""
        note = coverage_note(self.model.curve, threshold or 0.0)
        if not text.strip():
            return gr.skip(), gr.skip(), note
        answer = self.model.classify(text, second_text, None if stored else threshold)
        return answer.answer, answer.probabilities if self._has_bars else answer.rows, note

    def attributed(self, text: str, second_text: str) -> tuple[list[tuple[str, float]], str]:
        """Return the values of `attributions`."""
        found = self.model.attribute(text, second_text)
        word, change = found.strongest
        value = found.label if self.model.problem_type == "regression" else f"P({found.label})"
        largest = abs(change) or 1.0
        shades = [(piece, weight / largest) for piece, weight in found.words]
        return shades, f"{value} is {found.value:.3f}, and {found.value - change:.3f} without {word!r}."


def _plot(curve: Sequence[Mapping[str, float]]) -> None:
    """Draw the stored curve over the threshold, in line with the slider above it."""
    names = {"coverage": "labelled", "error": "wrong", "upper": "wrong, 95% bound"}
    points = [
        {"threshold": row["confidence"], "share": row[key], "dev rows": name}
        for row in curve
        for key, name in names.items()
    ]
    gr.LinePlot(
        pd.DataFrame(points),
        x="threshold",
        y="share",
        color="dev rows",
        x_lim=[0, 1],
        y_lim=[0, 1],
        label="Stored risk-coverage curve",
        buttons=[],
    )
