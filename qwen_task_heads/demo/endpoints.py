"""Functions of the models as endpoints of Gradio's API, which are also the tools of an MCP server.

With two models, those of the second end with `_2`.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gradio as gr

from qwen_task_heads.demo.answers import DIGITS, DemoModel
from qwen_task_heads.errors import TaskHeadsError

Answer = TypeVar("Answer")


def shown(call: Callable[..., Answer]) -> Callable[..., Answer]:
    """Return a call whose errors are shown on the page, as text: `gr.Error` renders HTML."""

    @functools.wraps(call)
    def listener(*args: Any) -> Answer:
        try:
            return call(*args)
        except TaskHeadsError as error:
            message = html.escape(str(error)).replace("\n", "<br>")
            # The log must not contain texts of visitors.
            raise gr.Error(message, print_exception=False) from None

    return listener


def add_endpoints(models: Sequence[DemoModel]) -> None:
    """Add the endpoints of the models to the page that is being built."""
    for index, model in enumerate(models):
        for call in _title_calls(model) if model.scorer.is_title_scorer else _text_calls(model):
            if index:
                call.__name__ += f"_{index + 1}"
            gr.api(shown(call), api_name=call.__name__)


def _title_calls(model: DemoModel) -> list[Callable[..., Any]]:
    def rank(titles: str, prompt: str = "") -> list[dict[str, Any]]:
        """Rank titles, best first, each with its score and the probability to be the best of the list.

        Args:
            titles: one title per line.
            prompt: context of all titles, if the model was trained with one.
        """
        names = ("rank", "title", "score", "probability")
        return [dict(zip(names, row, strict=True)) for row in model.rank(titles, prompt)]

    return [rank]


def _text_calls(model: DemoModel) -> list[Callable[..., Any]]:
    def classify(text: str, second_text: str = "", threshold: float | None = None) -> dict[str, Any]:
        """Predict the label, the labels or the score of a text, with the probabilities of all labels.

        Args:
            text: the text.
            second_text: second text, for a model of pairs.
            threshold: least probability of a predicted label; that of the model if None.
        """
        answer = model.classify(text, second_text, threshold)
        return {"answer": answer.answer, "probabilities": answer.probabilities}

    def attribute_words(text: str, second_text: str = "") -> dict[str, Any]:
        """Return by how much each word of a text supports the answer: the value falls without the word.

        Args:
            text: two words or more.
            second_text: second text, for a model of pairs.
        """
        found = model.attribute(text, second_text)
        words = [[word.strip(), round(change, DIGITS)] for word, change in found.words]
        return {"label": found.label, "value": round(found.value, DIGITS), "words": words}

    return [classify, attribute_words]
