"""Metrics and baselines of several questions, compared with scikit-learn on the rows that answer each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problem_assertions import raises_problem
from records import QUESTIONS
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, log_loss
from transformers import EvalPrediction

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.metrics.classification import classification_metrics
from qwen_task_heads.metrics.questions import (
    QuestionBaseline,
    dev_metrics_of,
    mean_accuracy_measure,
    question_metrics,
)
from qwen_task_heads.metrics.text_baselines import TfidfBaseline

ROWS = 80
PARTS = {"intent": slice(0, 2), "urgency": slice(2, 5), "refund": slice(5, 6)}


@pytest.fixture(scope="module")
def rows() -> tuple[Any, Any]:
    """Logits that favour the true answers, and targets of which each question has some."""
    draw = np.random.default_rng(0)
    targets = np.zeros((ROWS, 6))
    targets[np.arange(ROWS), draw.integers(0, 2, ROWS)] = 1
    targets[np.arange(ROWS), 2 + draw.integers(0, 3, ROWS)] = 1
    targets[:, 5] = draw.integers(0, 2, ROWS)
    logits = draw.normal(size=(ROWS, 6)) + targets
    for number, part in enumerate(PARTS.values()):
        targets[number::7, part] = -1
    return logits, targets


def known(rows: tuple[Any, Any], name: str) -> tuple[Any, Any, Any]:
    """Return scores, truths and indices of the rows that answer a question; a noul has two options."""
    logits, targets = (side[:, PARTS[name]] for side in rows)
    places = np.flatnonzero(targets[:, 0] >= 0)
    logits, targets = logits[places], targets[places]
    if name == "refund":
        return np.concatenate([0 * logits, logits], axis=1), targets[:, 0].astype(int), places
    return logits, targets.argmax(1), places


def test_each_question_is_measured_on_the_rows_that_answer_it(rows: tuple[Any, Any]) -> None:
    groups = [f"group {number // 4}" for number in range(ROWS)]
    found = question_metrics(QUESTIONS, *rows, groups=groups)
    for name in PARTS:
        scores, truth, places = known(rows, name)
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        guess = scores.argmax(1)
        wanted = {
            "accuracy": accuracy_score(truth, guess),
            "macro_f1": f1_score(truth, guess, average="macro"),
            "log_loss": log_loss(truth, shares),
        }
        if name == "urgency":
            wanted["quadratic_kappa"] = cohen_kappa_score(truth, guess, weights="quadratic")
            wanted["mae"] = np.abs(truth - guess).mean()
        for metric, value in wanted.items():
            entry = found[f"{name}.{metric}"]
            assert entry["value"] == pytest.approx(value), (name, metric)
            assert entry["n"] == len(places)
            assert entry["n_groups"] == len({groups[place] for place in places})
            assert entry["low"] < value < entry["high"]
        kind = "ordinal" if name == "urgency" else "single_label_classification"
        own = [groups[place] for place in places]
        labels = ["0", "1", "2"][: scores.shape[1]]
        alone = classification_metrics(kind, scores, truth, labels=labels, groups=own)
        assert found[f"{name}.ece"]["value"] == alone["ece"]["value"]
    means = [
        np.mean([found[f"{name}.{metric}"]["value"] for name in PARTS]) for metric in ("accuracy", "macro_f1")
    ]
    assert [found["mean_accuracy"]["value"], found["mean_macro_f1"]["value"]] == pytest.approx(means)
    assert found["mean_accuracy"]["low"] < means[0] < found["mean_accuracy"]["high"]
    assert found["mean_accuracy"]["n"] == ROWS
    assert [row["label"] for row in found["per_class"]][-2:] == ["refund=false", "refund=true"]
    computed = dev_metrics_of("questions", QUESTIONS)(EvalPrediction(*rows))
    assert computed == {name: pytest.approx(found[name]["value"]) for name in computed}
    measure = mean_accuracy_measure(QUESTIONS, *rows)
    assert measure(np.ones((1, ROWS)))["mean_accuracy"][0] == pytest.approx(means[0])


def test_a_question_without_an_answer_has_no_metrics(rows: tuple[Any, Any]) -> None:
    targets = rows[1].copy()
    targets[:, 5] = -1
    found = question_metrics(QUESTIONS, rows[0], targets)
    assert not [name for name in found if name.startswith("refund")]
    wanted = np.mean([found[f"{name}.accuracy"]["value"] for name in ("intent", "urgency")])
    assert found["mean_accuracy"]["value"] == pytest.approx(wanted)


def test_soft_labels_count_as_their_most_probable_option() -> None:
    logits = [[1.0, 0.0, 0, 0, 0, -2.0]]
    found = question_metrics(QUESTIONS, logits, [[0.6, 0.4, -1, -1, -1, 0.3]])
    assert found["mean_accuracy"]["value"] == 1.0


def test_other_shapes_and_the_metrics_of_one_question_are_refused(rows: tuple[Any, Any]) -> None:
    with raises_problem("argument-type"):
        question_metrics(QUESTIONS, rows[0][:, :5], rows[1])
    with raises_problem("option-value", "problem_type"):
        classification_metrics("questions", *rows, labels=["x"] * 6)


def test_baselines_are_fitted_on_the_rows_that_answer() -> None:
    texts = {"card lost": (1.0, 0.0), "cash gone": (0.0, 1.0)}
    rows = [
        TextExample(text=f"{text} {number}", target=(*share, -1.0, -1.0, -1.0, float(number % 2)))
        for number in range(10)
        for text, share in texts.items()
    ]
    rows[0] = TextExample(text="cash cash cash", target=(-1.0,) * 5 + (1.0,))  # says nothing about the intent
    baseline = QuestionBaseline(TfidfBaseline, QUESTIONS)
    with raises_problem("argument-type"):
        baseline.predict(rows)
    scores = baseline.fit(rows).predict([TextExample(text=text, target=()) for text in texts])
    assert scores.shape == (2, 6)
    assert scores[:, :2].argmax(1).tolist() == [0, 1]
    assert (scores[:, 2:5] == 0).all()  # no row answers it
