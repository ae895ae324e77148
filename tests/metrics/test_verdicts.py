"""Tests of the comparison with the best baseline: paired, over groups, on the same rows."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

from qwen_task_heads.metrics import lookup_baseline, verdicts
from qwen_task_heads.metrics.classification import BEST_METRIC, classification_metrics
from qwen_task_heads.metrics.verdicts import give_verdict, mean_measure, text_measure

MODEL = "this model"


def credit(right: int, count: int = 200) -> Any:
    """Return a measure that is right on the first rows."""
    return mean_measure((np.arange(count) < right).astype(float), name="accuracy")


def judge(groups: Any = None, *, count: int = 200, second: str | None = None, **right: int) -> Any:
    measures = {name.replace("_", " "): credit(number, count) for name, number in right.items()}
    return give_verdict(measures, model=MODEL, metric="accuracy", groups=groups, count=count, second=second)


def test_a_paired_interval_is_narrower_than_two_intervals() -> None:
    """Ten of two hundred rows differ in one direction: only the paired interval excludes 0."""
    found = judge(this_model=120, rule=110)
    assert (found["baseline"], found["value"], found["word"]) == ("rule", 0.55, "above")
    assert found["difference"] == pytest.approx(0.05)
    assert found["low"] == pytest.approx(0.05 - 1.96 * np.sqrt(0.05 * 0.95 / 200), abs=0.006)
    assert found["high"] == pytest.approx(0.05 + 1.96 * np.sqrt(0.05 * 0.95 / 200), abs=0.006)
    turned = judge(this_model=110, rule=120)
    assert (turned["word"], turned["low"], turned["high"]) == ("below", -found["high"], -found["low"])


def test_whole_groups_are_drawn() -> None:
    """The ten rows are one group of twenty, so that the difference is not significant."""
    groups = [f"g{row // 10}" for row in range(200)]
    assert judge(groups, this_model=120, rule=110)["word"] == "level"
    one = judge(["g"] * 200, this_model=120, rule=110)
    assert (one["word"], one["low"], one["high"]) == ("level", None, None)
    assert judge([""] * 200, this_model=120, rule=110)["word"] == "above"  # rows without a group


def test_the_best_baseline_and_a_named_one_are_compared() -> None:
    found = judge(this_model=120, low=60, high=150, tfidf=100, second="tfidf")
    assert (found["baseline"], found["word"]) == ("high", "below")
    assert found["beside"]["baseline"] == "tfidf"
    assert found["beside"]["word"] == "above"
    assert found["beside"]["difference"] == pytest.approx(0.1)
    assert "beside" not in judge(this_model=120, low=60, tfidf=100, second="tfidf")  # it is the best one
    assert judge(this_model=120) is None


def test_equal_answers_are_level_without_an_interval() -> None:
    found = judge(this_model=120, rule=120)
    assert (found["difference"], found["word"], found["low"]) == (0.0, "level", None)


@pytest.mark.parametrize("kind", [kind for kind in BEST_METRIC if kind != "questions"])
def test_every_problem_type_uses_its_best_metric(kind: str) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(80, 4))
    if kind == "regression":
        scores = scores[:, :1]
        targets: Any = [(value,) for value in (scores[:, 0] + rng.normal(size=80)).tolist()]
    elif kind == "multi_label_classification":
        targets = [tuple(np.flatnonzero(row > 0.5).tolist()) for row in scores + rng.normal(size=(80, 4))]
    else:
        targets = (scores + rng.normal(size=(80, 4))).argmax(1).tolist()
    names = [f"l{n}" for n in range(scores.shape[1])]
    metric = BEST_METRIC[kind][0].removeprefix("eval_")
    wanted = classification_metrics(kind, scores, targets, labels=names)[metric]["value"]
    measure = text_measure(kind, scores, targets, num_labels=len(names))
    assert measure(np.ones((1, 80)))[metric][0] == pytest.approx(wanted)
    chance = text_measure(kind, rng.normal(size=scores.shape), targets, num_labels=len(names))
    found = give_verdict({MODEL: measure, "chance": chance}, model=MODEL, metric=metric, count=80)
    assert found is not None
    assert found["word"] == "above"
    assert found["low"] < found["difference"] < found["high"]


def test_a_baseline_without_a_value_is_ignored() -> None:
    """The correlation of a constant is not defined."""
    targets = [(float(n),) for n in range(30)]
    constant = text_measure("regression", np.zeros((30, 1)), targets, num_labels=1)
    ours = text_measure("regression", np.arange(30.0)[:, None], targets, num_labels=1)
    assert give_verdict({MODEL: ours, "mean": constant}, model=MODEL, metric="spearman", count=30) is None


@pytest.mark.parametrize("module", [verdicts, lookup_baseline])
def test_documented_examples_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
