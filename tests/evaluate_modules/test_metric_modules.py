"""Metrics as `evaluate` modules: they load by path without a network, equal the library, and combine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import qwen_task_heads
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.evaluate_modules import metric_path
from qwen_task_heads.evaluate_modules._base import flat
from qwen_task_heads.metrics.classification import classification_metrics
from qwen_task_heads.metrics.ranking import ranking_metrics

pytest.importorskip("evaluate", reason="evaluate is not installed: pip install 'qwen-task-heads[evaluate]'")
RNG = np.random.default_rng(0)
LOGITS, IDS = RNG.normal(size=(30, 3)), RNG.integers(3, size=30)
HOT, VALUES = (RNG.random((30, 3)) < 0.4).astype(int), RNG.normal(size=30)
LABELS = ["0", "1", "2"]
MEASURED = ("precision", "recall", "f1")
KINDS = {
    "task_heads_classification": ("single_label_classification", LOGITS, IDS, LABELS),
    "task_heads_ordinal": ("ordinal", LOGITS, IDS, LABELS),
    "task_heads_multilabel": ("multi_label_classification", LOGITS, HOT, LABELS),
    "task_heads_regression": ("regression", LOGITS[:, 0], VALUES, ["score"]),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_a_metric_is_our_figure(name):
    import evaluate

    kind, predictions, references, labels = KINDS[name]
    given = "predictions" if kind == "regression" else "prediction_scores"
    found = evaluate.load(metric_path(name)).compute(
        **{given: predictions.tolist()}, references=references.tolist(), intervals=True
    )
    wanted = classification_metrics(kind, predictions, references, labels=labels)
    assert found == pytest.approx(flat(wanted, intervals=True))
    assert not any(key.startswith("per_class") for key in found)
    groups = ["a", "b", "c"] * 10
    grouped = evaluate.load(metric_path(name)).compute(
        **{given: predictions.tolist()}, references=references.tolist(), groups=groups, intervals=True
    )
    again = classification_metrics(kind, predictions, references, labels=labels, groups=groups)
    assert grouped == pytest.approx(flat(again, intervals=True))


def test_titles_and_options():
    import evaluate

    better, other = LOGITS[:, 0], LOGITS[:, 1]
    found = evaluate.load(metric_path("title_accuracy")).compute(
        predictions=better.tolist(), references=other.tolist()
    )
    assert found == pytest.approx(flat(ranking_metrics(better, other), intervals=False))
    strict = evaluate.load(metric_path("task_heads_multilabel")).compute(
        prediction_scores=LOGITS.tolist(), references=HOT.tolist(), threshold=0.99
    )
    assert strict["micro_recall"] == 0.0


def test_metrics_of_one_input_combine_by_path():
    import evaluate

    both = evaluate.combine([metric_path("task_heads_regression"), metric_path("title_accuracy")])
    found = both.compute(predictions=[2.0, 0.0], references=[0.0, 1.0])
    assert found["mse"] == 2.5
    assert found["pair_accuracy"] == 0.5


def test_batches_give_the_figures_of_all_rows():
    import evaluate

    metric = evaluate.load(metric_path("task_heads_classification"))
    for start in range(0, 30, 7):
        metric.add_batch(
            prediction_scores=LOGITS[start : start + 7].tolist(), references=IDS[start : start + 7].tolist()
        )
    wanted = classification_metrics("single_label_classification", LOGITS, IDS, labels=LABELS)
    assert metric.compute() == pytest.approx(flat(wanted, intervals=False))


# Labels, as the metrics of evaluate take them


@pytest.fixture(scope="module")
def metrics():
    import evaluate

    return {name: evaluate.load(metric_path(f"task_heads_{name}"), keep_in_memory=True) for name in FORMS}


def forms_of(values):
    """Return the same values as lists, arrays, tensors and series."""
    import pandas as pd

    array = np.asarray(values)
    forms = [array.tolist(), tuple(array.tolist()), array, list(array)]
    if array.dtype.kind in "if":
        forms += [torch.tensor(array), list(torch.tensor(array))]
    return forms + ([pd.Series(array)] if array.ndim == 1 else [])


GUESSES = LOGITS.argmax(1)
NAMED = np.array(["bad", "fair", "good"])
ONE = {"accuracy", *(f"{how}_{what}" for how in ("macro", "micro", "weighted") for what in MEASURED)}
FORMS = {
    "classification": (GUESSES, IDS, ONE),
    "ordinal": (GUESSES, IDS, ONE | {"mae", "quadratic_kappa"}),
    "multilabel": ((LOGITS > 0).astype(int), HOT, (ONE - {"accuracy"}) | {"subset_accuracy"}),
}


@pytest.mark.parametrize("name", list(FORMS))
def test_labels_give_the_figures_of_the_scores_that_choose_them(metrics, name):
    guesses, truths, known = FORMS[name]
    scored = metrics[name].compute(prediction_scores=LOGITS, references=truths)
    assert set(scored) - known == {"log_loss"} | ({"map"} if name == "multilabel" else {"ece"})
    wanted = {key: scored[key] for key in known}
    for predictions, references in zip(forms_of(guesses), reversed(forms_of(truths)), strict=True):
        assert metrics[name].compute(predictions=predictions, references=references) == pytest.approx(wanted)
    for guess, truth in zip(guesses, truths, strict=True):
        metrics[name].add(prediction=guess, reference=truth)
    assert metrics[name].compute() == pytest.approx(wanted)


def test_labels_are_names_too(metrics):
    by_ids = metrics["classification"].compute(predictions=GUESSES, references=IDS)
    for predictions in forms_of(NAMED[GUESSES]):
        found = metrics["classification"].compute(predictions=predictions, references=NAMED[IDS])
        assert found == pytest.approx(by_ids)
    labels = NAMED.tolist()
    for name in ("classification", "ordinal"):
        by_ids = metrics[name].compute(predictions=GUESSES, references=IDS)
        for pair in ((GUESSES, NAMED[IDS]), (NAMED[GUESSES], IDS), (NAMED[GUESSES], NAMED[IDS])):
            found = metrics[name].compute(predictions=pair[0], references=pair[1], labels=labels)
            assert found == pytest.approx(by_ids)
    scored = metrics["classification"].compute(prediction_scores=LOGITS, references=IDS)
    found = metrics["classification"].compute(prediction_scores=LOGITS, references=NAMED[IDS], labels=labels)
    assert found == pytest.approx(scored)
    sets = [[labels[n] for n in np.flatnonzero(row)] for row in HOT]
    assert [] in sets
    by_rows = metrics["multilabel"].compute(predictions=HOT[::-1], references=HOT)
    assert metrics["multilabel"].compute(predictions=sets[::-1], references=sets) == pytest.approx(by_rows)
    # numbers in quotes are names and not ids
    assert (
        metrics["classification"].compute(predictions=["1", "10"], references=["1", "2"])["accuracy"] == 0.5
    )


def test_names_of_ordered_labels_need_their_order(metrics):
    given = {"predictions": ["good", "bad"], "references": ["fair", "bad"]}
    with pytest.raises(TaskHeadsError) as caught:
        metrics["ordinal"].compute(**given)
    [problem] = caught.value.problems
    assert (problem.where, problem.code) == ("labels", "option-missing")
    assert metrics["ordinal"].compute(**given, labels=NAMED.tolist())["mae"] == 0.5


@pytest.mark.parametrize("name", list(FORMS))
def test_probabilities_are_scores(metrics, name):
    truths = FORMS[name][1]
    shares = 1 / (1 + np.exp(-LOGITS))
    if name != "multilabel":
        shares = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    wanted = metrics[name].compute(prediction_scores=LOGITS, references=truths)
    for scores in forms_of(shares):
        found = metrics[name].compute(prediction_scores=scores, references=truths)
        assert found == pytest.approx(wanted, rel=1e-6)
    certain = np.eye(3)[IDS] if name != "multilabel" else HOT.astype(float)
    assert metrics[name].compute(prediction_scores=certain, references=truths)["log_loss"] < 1e-6
    halves = torch.tensor(LOGITS, dtype=torch.bfloat16, requires_grad=True)
    assert np.isfinite(metrics[name].compute(prediction_scores=halves, references=truths)["log_loss"])


@pytest.mark.parametrize(
    ("given", "where", "code"),
    [
        (
            {"predictions": [[0.1, 0.9], [1.0, 0.0]], "references": [1, 0]},
            "predictions[0]",
            "value-type",
        ),
        ({"predictions": LOGITS, "references": IDS}, "predictions[0]", "value-type"),
        ({"predictions": [1, 0.3], "references": [1, 0]}, "predictions[1]", "value-type"),
        ({"predictions": [1, 0], "references": [1.0, 0.0]}, "references[0]", "value-type"),
        ({"predictions": [1, True], "references": [1, 0]}, "predictions[1]", "value-type"),
        ({"predictions": [1, -100], "references": [1, 0]}, "predictions[1]", "value-type"),
        ({"predictions": [1, None], "references": [1, 0]}, "predictions[1]", "value-type"),
        ({"predictions": [0, 10**9], "references": [1, 0]}, "predictions, references", "value-range"),
        ({"predictions": [0, 1], "references": ["a", "b"]}, "predictions, references", "label-conflict"),
        ({"predictions": ["a", 1], "references": ["a", "b"]}, "predictions", "label-conflict"),
        (
            {"predictions": [0, 1], "references": [0, 5], "labels": ["a", "b"]},
            "references[1]",
            "label-unknown",
        ),
        (
            {"predictions": ["a", "c"], "references": ["a", "b"], "labels": ["a", "b"]},
            "predictions[1]",
            "label-unknown",
        ),
        ({"predictions": [0, 1], "references": [0, 1], "labels": ["a", "a"]}, "labels", "label-invalid"),
        ({"predictions": "ab", "references": [0, 1]}, "predictions", "argument-type"),
        ({"predictions": [0, 1], "references": [0]}, "references", "argument-type"),
        ({"predictions": [0, 1]}, "references", "option-missing"),
        ({"references": [0, 1]}, "predictions, prediction_scores", "option-conflict"),
        (
            {"predictions": [0], "prediction_scores": [[0.1]], "references": [0]},
            "predictions, prediction_scores",
            "option-conflict",
        ),
        ({"prediction_scores": [0.2, 0.8], "references": [0, 1]}, "prediction_scores[0]", "value-type"),
        (
            {"prediction_scores": [[0.2, 0.8], [0.1]], "references": [0, 1]},
            "prediction_scores[1]",
            "value-type",
        ),
        ({"prediction_scores": [[0.2, np.nan]], "references": [0]}, "prediction_scores[0]", "value-type"),
        ({"prediction_scores": [[0.2, 0.8]], "references": ["a"]}, "references", "label-conflict"),
        ({"prediction_scores": [[0.2, 0.8]], "references": [2]}, "references[0]", "label-unknown"),
        ({"prediction_scores": [[0.2, 0.8]], "references": [1], "labels": ["a"]}, "labels", "label-invalid"),
    ],
)
def test_the_wrong_argument_is_named(metrics, given, where, code):
    with pytest.raises(TaskHeadsError) as caught:
        metrics["classification"].compute(**given)
    [problem] = caught.value.problems
    assert (problem.where, problem.code) == (where, code)
    assert metrics["classification"].compute(predictions=[1, 0], references=[1, 0])["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"predictions": LOGITS, "references": HOT}, "predictions[0]"),
        ({"predictions": [0, 1], "references": [[0, 1], [1, 0]]}, "predictions[0]"),
        ({"predictions": [[0, 1], [2, 0]], "references": [[0, 1], [1, 0]]}, "predictions[1]"),
        ({"predictions": [[0, 1], [0]], "references": [[0, 1], [1, 0]]}, "predictions[1]"),
        ({"predictions": [["a"], [0, 1]], "references": [["a"], []]}, "predictions"),
        ({"predictions": [["a"]], "references": [[0, 1]]}, "predictions, references"),
    ],
)
def test_the_wrong_argument_of_several_labels_is_named(metrics, given, where):
    with pytest.raises(TaskHeadsError) as caught:
        metrics["multilabel"].compute(**given)
    assert caught.value.problems[0].where == where


def test_batches_of_labels_and_scores_do_not_mix(metrics):
    import evaluate

    metric = evaluate.load(metric_path("task_heads_classification"))
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add_batch(prediction_scores=[[0.5, 0.5]], references=[0])
    with pytest.raises(TaskHeadsError):
        metric.compute()


def test_metrics_of_labels_combine_by_path():
    import evaluate

    both = evaluate.combine([metric_path("task_heads_classification"), metric_path("task_heads_ordinal")])
    for start in (0, 2):
        both.add_batch(
            predictions=[0, 1, 2, 2][start : start + 2], references=[0, 1, 1, 2][start : start + 2]
        )
    found = both.compute()
    assert found["quadratic_kappa"] == pytest.approx(0.8)
    assert found["task_heads_classification_accuracy"] == found["task_heads_ordinal_accuracy"] == 0.75


def test_the_public_name():
    assert qwen_task_heads.metric_path("title_accuracy") == metric_path("title_accuracy")


@pytest.mark.slow
def test_a_clean_process_without_network_loads_them_by_the_public_name(tmp_path: Path):
    code = """
import socket
def refuse(*a, **k): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
import evaluate, qwen_task_heads
metric = evaluate.load(qwen_task_heads.metric_path("task_heads_regression"))
print(metric.compute(predictions=[1.0, 2.0], references=[1.0, 4.0])["mse"])
"""
    home = {"HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env={**os.environ, **home},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "2.0"


def test_every_module_has_one_import_per_line_and_a_name():
    folder = Path(qwen_task_heads.__file__).parent / "evaluate_modules"
    names = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert names == {*KINDS, "title_accuracy"}
    for name in names:
        lines = Path(metric_path(name)).read_text(encoding="utf-8").splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        assert not [line for line in imports if "," in line or "(" in line]


def test_an_unknown_metric_is_refused_with_the_names():
    with pytest.raises(TaskHeadsError, match="task_heads_ordinal") as caught:
        metric_path("accuracy")
    assert caught.value.problems[0].code == "option-value"
