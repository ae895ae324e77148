"""Metrics as `evaluate` modules: they load by path without a network, agree with ours, and combine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qwen_task_heads
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.evaluate_modules import flat, metric_path
from qwen_task_heads.training.classification_metrics import classification_figures
from qwen_task_heads.training.metrics import ranking_metrics

pytest.importorskip("evaluate", reason="evaluate is not installed: pip install 'qwen-task-heads[evaluate]'")
RNG = np.random.default_rng(0)
LOGITS, IDS = RNG.normal(size=(30, 3)), RNG.integers(3, size=30)
HOT, VALUES = (RNG.random((30, 3)) < 0.4).astype(int), RNG.normal(size=30)
LABELS = ["0", "1", "2"]
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
    found = evaluate.load(metric_path(name)).compute(
        predictions=predictions.tolist(), references=references.tolist(), intervals=True
    )
    wanted = classification_figures(kind, predictions, references, labels=labels)
    assert found == pytest.approx(flat(wanted, intervals=True))
    assert not any(key.startswith("per_class") for key in found)
    groups = ["a", "b", "c"] * 10
    grouped = evaluate.load(metric_path(name)).compute(
        predictions=predictions.tolist(), references=references.tolist(), groups=groups, intervals=True
    )
    again = classification_figures(kind, predictions, references, labels=labels, groups=groups)
    assert grouped == pytest.approx(flat(again, intervals=True))


def test_titles_and_options():
    import evaluate

    better, other = LOGITS[:, 0], LOGITS[:, 1]
    found = evaluate.load(metric_path("title_accuracy")).compute(
        predictions=better.tolist(), references=other.tolist()
    )
    assert found == pytest.approx(flat(ranking_metrics(better, other), intervals=False))
    strict = evaluate.load(metric_path("task_heads_multilabel")).compute(
        predictions=LOGITS.tolist(), references=HOT.tolist(), threshold=0.99
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
            predictions=LOGITS[start : start + 7].tolist(), references=IDS[start : start + 7].tolist()
        )
    wanted = classification_figures("single_label_classification", LOGITS, IDS, labels=LABELS)
    assert metric.compute() == pytest.approx(flat(wanted, intervals=False))


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
        env={**os.environ, **home}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "2.0"


def test_every_module_has_one_import_per_line_and_a_name():
    folder = Path(qwen_task_heads.__file__).parent / "evaluate_modules"
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert names == {*KINDS, "title_accuracy"}
    for name in names:
        lines = Path(metric_path(name)).read_text(encoding="utf-8").splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        assert not [line for line in imports if "," in line or "(" in line]


def test_an_unknown_metric_is_refused_with_the_names():
    with pytest.raises(TaskHeadsError, match="task_heads_ordinal"):
        metric_path("accuracy")
