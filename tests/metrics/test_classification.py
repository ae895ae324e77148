"""Tests of metrics against scikit-learn and scipy, and of undefined values, intervals, speed and errors."""

import json
import math

import numpy as np
import pytest
from problem_assertions import raises_problem
from transformers import EvalPrediction
from work import at_most

from qwen_task_heads.metrics.classification import (
    BEST_METRIC,
    DEV_METRICS,
    MEANS,
    MULTI,
    ORDINAL,
    REGRESSION,
    SINGLE,
    classification_metrics,
    coarse_accuracy,
    confusion_matrix,
    dev_metrics,
    probabilities,
)
from qwen_task_heads.metrics.ranking import wilson_interval
from qwen_task_heads.metrics.weighted import (
    bootstrap,
    multilabel_metrics,
    ordinal_metrics,
    regression_metrics,
)

KINDS = (SINGLE, MULTI, REGRESSION, ORDINAL)  # several questions: `test_questions.py`


def names(count: int) -> list[str]:
    return [f"label {index}" for index in range(count)]


def classes(rows: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and mostly matching truths; the last label does not occur."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, count))
    logits[:, -1] = -9.0
    truth = np.where(rng.random(rows) < 0.5, logits.argmax(1), rng.integers(count - 1, size=rows))
    return logits, truth


def label_sets(rows: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=(rows, count)), 1)  # rounded: rows of equal score
    return logits, (rng.random((rows, count)) < 1 / (1 + np.exp(2 - logits))).astype(int)


def value(metrics: dict, name: str) -> float:
    return metrics[name]["value"]


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_averages_equal_scikit_learn(kind, average):
    from sklearn.metrics import precision_recall_fscore_support

    logits, truth = (classes if kind == SINGLE else label_sets)(300, 6)
    guess = logits.argmax(1) if kind == SINGLE else (logits >= 0).astype(int)
    found = classification_metrics(kind, logits, truth, labels=names(6))
    wanted = precision_recall_fscore_support(truth, guess, average=average, zero_division=0)[:3]
    for name, want in zip(("precision", "recall", "f1"), wanted, strict=True):
        assert value(found, f"{average}_{name}") == pytest.approx(want)


def test_single_label_metrics_equal_scikit_learn():
    from sklearn.metrics import accuracy_score, log_loss
    from sklearn.metrics import confusion_matrix as reference

    logits, truth = classes(300, 6)
    found = classification_metrics(SINGLE, logits, truth, labels=names(6))
    assert value(found, "accuracy") == accuracy_score(truth, logits.argmax(1))
    shares = probabilities(SINGLE, logits)
    assert value(found, "log_loss") == pytest.approx(log_loss(truth, shares, labels=range(6)))
    matrix = confusion_matrix(logits, truth, num_labels=6)
    assert matrix.tolist() == reference(truth, logits.argmax(1), labels=range(6)).tolist()
    for index, row in enumerate(found["per_class"][:5]):
        assert row["label"] == f"label {index}"
        assert row["recall"] == pytest.approx(matrix[index, index] / matrix[index].sum())
        assert row["precision"] == pytest.approx(matrix[index, index] / matrix[:, index].sum())
        assert (row["support"], row["predicted"]) == (matrix[index].sum(), matrix[:, index].sum())
    # The last label does not occur: its metrics are undefined, and the averages exclude it.
    assert {found["per_class"][5][name] for name in ("precision", "recall", "f1")} == {None}


def test_ece_equals_a_manual_computation():
    # Confidence .8 twice and right once, .6 once and right: (2 |.5 - .8| + |1 - .6|) / 3
    logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])
    found = classification_metrics(SINGLE, logits, [0, 1, 1], labels=names(2))
    assert value(found, "ece") == pytest.approx((2 * 0.3 + 0.4) / 3)
    assert found["ece"]["low"] is None


def test_multi_label_metrics_equal_scikit_learn():
    from sklearn.metrics import accuracy_score, average_precision_score

    logits, truth = label_sets(300, 6)
    found = classification_metrics(MULTI, logits, truth, labels=names(6))
    assert value(found, "map") == pytest.approx(average_precision_score(truth, logits, average="macro"))
    assert value(found, "subset_accuracy") == accuracy_score(truth, logits >= 0)
    for row, s, y in zip(found["per_class"], logits.T, truth.T, strict=True):
        assert row["average_precision"] == pytest.approx(average_precision_score(y, s))
    # Ids give the same metrics as zeros and ones.
    ids = [tuple(np.flatnonzero(row).tolist()) for row in truth]
    assert classification_metrics(MULTI, logits, ids, labels=names(6)) == found
    stricter = classification_metrics(MULTI, logits, truth, labels=names(6), threshold=0.9)
    assert value(stricter, "micro_recall") < value(found, "micro_recall")


def test_regression_metrics_equal_scipy():
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=200), 1)
    y = np.round(x + rng.normal(size=200), 1) + 5
    found = classification_metrics(REGRESSION, x[:, None], [(v,) for v in y], labels=["score"])
    assert value(found, "pearson") == pytest.approx(pearsonr(x, y).statistic)
    assert value(found, "spearman") == pytest.approx(spearmanr(x, y).statistic)
    assert value(found, "mse") == pytest.approx(mean_squared_error(y, x))
    assert value(found, "mae") == pytest.approx(mean_absolute_error(y, x))
    assert value(found, "r2") == pytest.approx(r2_score(y, x))
    both = classification_metrics(REGRESSION, np.stack([x, -x], 1), np.stack([y, y], 1), labels=["a", "b"])
    assert value(both, "pearson") == pytest.approx(0.0, abs=1e-12)
    assert both["per_class"][1]["pearson"] == pytest.approx(-found["pearson"]["value"])


def test_ordinal_metrics_equal_scikit_learn():
    from sklearn.metrics import cohen_kappa_score, mean_absolute_error

    logits, truth = classes(300, 6)
    found = classification_metrics(ORDINAL, logits, truth, labels=names(6))
    guess = logits.argmax(1)
    assert value(found, "quadratic_kappa") == pytest.approx(
        cohen_kappa_score(truth, guess, weights="quadratic")
    )
    assert value(found, "mae") == pytest.approx(mean_absolute_error(truth, guess))
    assert value(found, "accuracy") == pytest.approx((truth == guess).mean())


@pytest.mark.parametrize("measure", [ordinal_metrics, multilabel_metrics, regression_metrics])
def test_a_weight_of_two_equals_a_repeated_row(measure):
    """The bootstrap relies on it: every metric of weights equals the metric of the repeated rows."""
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, size=(3, 60)).astype(float)
    if measure is ordinal_metrics:
        scores, truth = classes(60, 4)
    elif measure is multilabel_metrics:
        scores, truth = label_sets(60, 4)
    else:
        scores, truth = np.round(rng.normal(size=(60, 1)), 1), np.round(rng.normal(size=(60, 1)), 1)
    found = measure(scores, truth, 0.5)[0](weights)
    for row in range(3):
        repeated = np.repeat(np.arange(60), weights[row].astype(int))
        again = measure(scores[repeated], truth[repeated], 0.5)[0](np.ones((1, len(repeated))))
        for name in found:
            assert found[name][row] == pytest.approx(again[name][0]), name


def test_intervals_draw_whole_groups():
    # One group of 60 right rows, and six wrong rows that are their own groups.
    logits = np.array([[1.0, 0.0]] * 60 + [[0.0, 1.0]] * 6)
    groups = ["book"] * 60 + [""] * 6
    found = classification_metrics(SINGLE, logits, [0] * 66, labels=names(2), groups=groups)["accuracy"]
    assert (found["n"], found["n_groups"]) == (66, 7)
    assert found["low"] == 0.0  # samples without the large group
    alone = classification_metrics(SINGLE, logits, [0] * 66, labels=names(2))["accuracy"]
    assert alone["low"] > 0.8


def test_intervals_have_about_their_nominal_coverage():
    rng, hits = np.random.default_rng(2), 0
    for trial in range(100):
        right = rng.random(150) < 0.7
        logits = np.eye(2)[np.where(right, 1, 0)]
        found = classification_metrics(SINGLE, logits, [1] * 150, labels=names(2), resamples=300, seed=trial)
        hits += found["accuracy"]["low"] <= 0.7 <= found["accuracy"]["high"]
    assert 88 <= hits <= 100


def test_intervals_are_seeded_and_do_not_depend_on_chunks(monkeypatch):
    from qwen_task_heads.metrics import weighted

    logits, truth = classes(50, 4)
    found = classification_metrics(SINGLE, logits, truth, labels=names(4))
    assert found == classification_metrics(SINGLE, logits, truth, labels=names(4))
    assert found != classification_metrics(SINGLE, logits, truth, labels=names(4), seed=1)
    monkeypatch.setattr(weighted, "CHUNK", 900)
    small = classification_metrics(SINGLE, logits, truth, labels=names(4))
    assert small["accuracy"]["low"] == pytest.approx(found["accuracy"]["low"], abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 4])
def test_undefined_metrics_are_none_and_all_metrics_are_json(kind, rows):
    count = 1 if kind == REGRESSION else 3
    targets = {MULTI: [()] * rows, REGRESSION: [2.5] * rows}.get(kind, [1] * rows)
    found = classification_metrics(kind, np.zeros((rows, count)), targets, labels=names(count))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    undefined = {MULTI: ["map"], REGRESSION: ["spearman", "pearson", "r2"]}.get(kind, [])
    assert all(found[name]["value"] is None and found[name]["low"] is None for name in undefined)
    if rows == 1:
        assert all(found[name]["low"] is None for name in found if name != "per_class")
    same = classification_metrics(ORDINAL, np.eye(3)[[1] * 4], [1] * 4, labels=names(3))
    assert same["quadratic_kappa"]["value"] is None  # one label on both sides: the agreement by chance is 1


@pytest.mark.parametrize("kind", KINDS)
def test_dev_metrics_equal_the_final_metrics(kind):
    logits, truth = (label_sets if kind == MULTI else classes)(40, 5)
    if kind == REGRESSION:
        logits, truth = logits[:, :1], truth.astype(np.float32)
    found = dev_metrics(kind)(EvalPrediction(predictions=logits, label_ids=truth))
    whole = classification_metrics(kind, logits, truth, labels=names(logits.shape[1]))
    assert found == {name: whole[name]["value"] for name in DEV_METRICS[kind]}
    assert BEST_METRIC[kind][0].removeprefix("eval_") in found
    # With more outputs than logits, Trainer passes a tuple.
    assert dev_metrics(kind)(EvalPrediction(predictions=(logits, None), label_ids=truth)) == found


def test_dev_metrics_of_a_constant_model_are_numbers():
    found = dev_metrics(REGRESSION)(EvalPrediction(predictions=np.zeros(4), label_ids=np.arange(4.0)))
    assert found == {"spearman": 0.0, "pearson": 0.0, "mse": 3.5}


def test_ten_thousand_rows_are_counted_without_a_loop_over_them():
    with at_most(50_000):
        logits, truth = classes(10_000, 20)
        classification_metrics(ORDINAL, logits, truth, labels=names(20))
        logits, truth = label_sets(10_000, 20)
        classification_metrics(MULTI, logits, truth, labels=names(20))


def small_set(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """Return scores and truths of a few rows: rare labels, ties, constants, groups of unequal size."""
    rows, count = int(rng.integers(2, 40)), int(rng.integers(2, 12))
    scores = np.round(rng.normal(size=(rows, count)), int(rng.integers(0, 3)))
    groups = [f"g{n}" for n in rng.integers(max(2, rows // 3), size=rows)] if rng.random() < 0.5 else None
    chance = rng.dirichlet(np.full(count, 0.3))
    if kind == MULTI:
        return scores, (rng.random((rows, count)) < 0.7 * rng.random(count) ** 3).astype(int), groups
    if kind == REGRESSION:
        return (
            scores[:, :2],
            np.round(scores[:, :2] + rng.normal(size=(rows, 2)) * rng.integers(0, 3), 1),
            groups,
        )
    return scores, rng.choice(count, size=rows, p=chance), groups


@pytest.mark.parametrize("kind", KINDS)
def test_every_interval_contains_its_value(kind):
    rng, seen = np.random.default_rng(5), set()
    for _ in range(150):
        scores, truth, groups = small_set(kind, rng)
        options = {"labels": names(scores.shape[1]), "groups": groups, "resamples": 100}
        found = classification_metrics(kind, scores, truth, **options)
        if kind in (SINGLE, ORDINAL):
            parents = ["a", "b"] * 6
            found["coarse"] = coarse_accuracy(
                scores, truth, parents=parents[: scores.shape[1]], groups=groups
            )
        for name, entry in found.items():
            if name != "per_class" and entry["low"] is not None:
                seen.add(name)
                assert entry["low"] <= entry["value"] <= entry["high"], name
                least, most = {"r2": (-math.inf, 1)}.get(name, (-1, 1))
                if name not in MEANS:
                    assert least <= entry["low"], name
                    assert entry["high"] <= most, name
    assert seen == {*found} - {"per_class", "ece"}


def test_intervals_of_means_are_percentiles_and_others_are_corrected_for_bias():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(150, 40))
    truth = (rng.random((150, 40)) < 0.05).astype(int)
    found = classification_metrics(MULTI, scores, truth, labels=names(40))
    drawn = bootstrap(
        multilabel_metrics(scores, truth, 0.5)[0], np.arange(150), width=40, resamples=200, seed=0
    )
    wanted = np.quantile(drawn["log_loss"], [0.025, 0.975])
    again = classification_metrics(MULTI, scores, truth, labels=names(40), resamples=200)
    assert [again["log_loss"][end] for end in ("low", "high")] == pytest.approx(wanted)
    mean_ap = found["map"]
    assert np.quantile(drawn["map"], 0.025) > 0.95 * mean_ap["value"]  # resampling alone raises it
    assert mean_ap["low"] < 0.05  # the value of a random ranking on all rows
    # With one label per row, four metrics and their intervals equal the accuracy.
    found = classification_metrics(SINGLE, *classes(80, 5), labels=names(5))
    for name in ("micro_precision", "micro_recall", "micro_f1", "weighted_recall"):
        assert found[name] == pytest.approx(found["accuracy"])


@pytest.mark.slow
def test_intervals_of_biased_metrics_cover_the_value_of_all_rows():
    def draw(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        truth = (rng.random((rows, 40)) < 0.05).astype(float)
        return 1.5 * truth + rng.normal(size=truth.shape) - 1, truth

    ones, trials = np.ones((1, 40_000)), 60
    whole = multilabel_metrics(*draw(np.random.default_rng(1), 40_000), 0.5)[0](ones)
    covered = dict.fromkeys(("map", "macro_f1"), 0)
    for trial in range(trials):
        scores, truth = draw(np.random.default_rng(2 + trial), 150)
        found = classification_metrics(MULTI, scores, truth, labels=names(40), resamples=300)
        for name in covered:
            covered[name] += found[name]["low"] <= whole[name][0] <= found[name]["high"]
    assert covered["map"] >= 0.7 * trials  # the percentile interval has .07, and .77 of macro F1
    assert covered["macro_f1"] >= 0.85 * trials


def test_invalid_input_raises_errors():
    logits = np.zeros((2, 2))
    for kind, scores, targets, where in (
        (SINGLE, np.zeros((0, 2)), [], "metrics"),
        (SINGLE, np.zeros((2, 3)), [0, 1], "metrics"),
        (SINGLE, logits, [0, 2], "metrics, targets"),
        (SINGLE, logits, [0, -100], "metrics, targets"),
        (SINGLE, logits, [0.0, 1.0], "metrics, targets"),
        (SINGLE, logits, [0], "metrics, targets"),
        (MULTI, logits, [(0,), (2,)], "metrics, targets"),
        (MULTI, logits, np.array([[0, 1], [2, 0]]), "metrics, targets"),
        (REGRESSION, logits, [[0.0, math.inf], [0.0, 0.0]], "metrics, targets"),
        (REGRESSION, logits, [0.0, 1.0], "metrics, targets"),
    ):
        with raises_problem("argument-type", where):
            classification_metrics(kind, scores, targets, labels=names(2))
    with raises_problem("option-value", "problem_type", match="'multi_class'"):
        classification_metrics("multi_class", logits, [0, 1], labels=names(2))
    with raises_problem("number-not-finite", "metrics, logits", match="row 0"):
        classification_metrics(SINGLE, [[0.0, math.nan], [0.0, 0.0]], [0, 1], labels=names(2))
    with raises_problem("argument-type", "metrics", match="2 rows and 1 groups"):
        classification_metrics(SINGLE, logits, [0, 1], labels=names(2), groups=["a"])
    with raises_problem("option-unsupported", "confusion matrix", match="1,001"):
        confusion_matrix(np.zeros((1, 1001)), [0], num_labels=1001)


def test_coarse_accuracy_is_the_accuracy_of_the_parents():
    logits, truth = classes(300, 6)
    groups = [f"g{row // 3}" for row in range(300)]
    parents = ["p", "q", "p", "r", "q", "r"]
    options = {"groups": groups, "seed": 3}
    found = coarse_accuracy(logits, truth, parents=parents, **options)
    predicted = np.array(parents)[logits.argmax(1)] == np.array(parents)[truth]
    fine = classification_metrics(SINGLE, logits, truth, labels=names(6), **options)["accuracy"]
    assert found["value"] == predicted.mean() > fine["value"]
    assert (found["n"], found["n_groups"]) == (300, 100)
    assert found["low"] < found["value"] < found["high"]
    # If every label is its own parent, the metric and its interval equal the accuracy.
    assert coarse_accuracy(logits, truth, parents=names(6), **options) == pytest.approx(fine)


def test_coarse_accuracy_needs_several_parents_and_one_for_every_label():
    logits, truth = classes(20, 3)
    for parents in ((), ("a", "", "b"), ("a", "a", "a")):
        assert coarse_accuracy(logits, truth, parents=parents) is None
    with raises_problem("argument-type", "metrics", match="for 2 labels"):
        coarse_accuracy(logits, truth, parents=("a", "b"))


def test_an_accuracy_of_one_on_few_rows_has_a_wide_interval():
    logits = np.eye(3)[[0, 1, 2] * 6]
    found = classification_metrics("single_label_classification", logits, [0, 1, 2] * 6, labels=list("abc"))
    low, high = wilson_interval(1.0, count=18)
    assert (
        (found["accuracy"]["low"], found["accuracy"]["high"])
        == (low, high)
        == (pytest.approx(0.824, abs=1e-3), 1)
    )
    assert found["macro_f1"]["low"] is None  # every draw is 1
    pairs = ["a", "b", "c"] * 6
    grouped = classification_metrics(
        "single_label_classification", logits, [0, 1, 2] * 6, labels=list("abc"), groups=pairs
    )
    assert grouped["accuracy"]["low"] == wilson_interval(1.0, count=3)[0]
