"""Tests of text baselines on generated rows: accuracy, limits, amount of work and errors."""

import ast
import random
from pathlib import Path

import numpy as np
import pytest
from problem_assertions import raises_problem
from work import at_most

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.metrics import text_baselines
from qwen_task_heads.metrics.classification import (
    MULTI,
    ORDINAL,
    REGRESSION,
    SINGLE,
    classification_metrics,
)
from qwen_task_heads.metrics.text_baselines import TfidfBaseline, TrivialBaseline

WORDS = [f"{a}{b}{c}" for a in ("bra", "cli", "dro", "fle") for b in "aeiou" for c in ("mp", "nk", "st")]
SIGNS = [chr(0x4E00 + index) for index in range(60)]


def rows(kind: str, count: int, seed: int, *, words: list[str] = WORDS, glue: str = " ") -> list[TextExample]:
    """Return texts of eight words; the first three words of the list give the labels, or sum to the value."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        indices = sorted({rng.randrange(3) for _ in range(2 if kind in (MULTI, REGRESSION) else 1)})
        body = [rng.choice(words[3:]) for _ in range(7)] + [words[index] for index in indices]
        rng.shuffle(body)
        target = {MULTI: tuple(indices), REGRESSION: (float(sum(indices)),)}.get(kind, indices[0])
        made.append(TextExample(text=glue.join(body), target=target))
    return made


def quality(kind: str, baseline, examples: list[TextExample], name: str, *, count: int = 3) -> float:
    found = classification_metrics(
        kind, baseline.predict(examples), [e.target for e in examples], labels=[str(i) for i in range(count)]
    )
    return found[name]["value"]


@pytest.mark.parametrize(
    ("kind", "name", "count"),
    [
        (SINGLE, "accuracy", 3),
        (ORDINAL, "quadratic_kappa", 3),
        (MULTI, "micro_f1", 3),
        (REGRESSION, "spearman", 1),
    ],
)
@pytest.mark.parametrize("signs", [False, True], ids=["words", "signs"])
def test_tfidf_finds_planted_words(kind, name, count, signs):
    options = {"words": SIGNS, "glue": ""} if signs else {}
    train, test = rows(kind, 300, 0, **options), rows(kind, 100, 1, **options)
    baseline = TfidfBaseline(kind, count).fit(train)
    found = quality(kind, baseline, test, name, count=count)
    assert found > 0.7
    noise = [TextExample(text=a.text, target=b.target) for a, b in zip(train, train[7:], strict=False)]
    assert quality(kind, TfidfBaseline(kind, count).fit(noise), test, name, count=count) < found - 0.15


def test_text_pairs_use_shared_words():
    rng = random.Random(0)
    made = []
    for _ in range(300):
        first = [rng.choice(WORDS) for _ in range(6)]
        kept = rng.randrange(7)
        second = first[:kept] + [rng.choice(WORDS) for _ in range(6 - kept)]
        rng.shuffle(second)
        made.append(TextExample(text=" ".join(first), text_b=" ".join(second), target=(float(kept),)))
    assert (
        quality(REGRESSION, TfidfBaseline(REGRESSION, 1).fit(made[:200]), made[200:], "spearman", count=1)
        > 0.7
    )


def test_the_threshold_of_labels_is_fitted_on_training_rows():
    """Scores of rare labels stay below one half, so that they would never be predicted."""
    # Every ninth row has the one informative word: a third of the rows with it have the label.
    train = [
        TextExample(text=f"{'rare' if i % 9 == 0 else 'other'} w{i % 7}", target=(0,) if i % 27 == 0 else ())
        for i in range(540)
    ]
    baseline = TfidfBaseline(MULTI, 1).fit(train)
    assert baseline._shift < 0
    assert quality(MULTI, baseline, train, "micro_recall", count=1) > 0.5


def test_labels_that_no_training_row_has_are_never_the_first_choice():
    train = [
        TextExample(text=f"{word} {i}", target=k) for i in range(5) for k, word in ((1, "ab"), (3, "cd"))
    ]
    scores = TfidfBaseline(SINGLE, 5).fit(train).predict(train)
    assert scores.shape == (10, 5)
    assert set(scores.argmax(1).tolist()) == {1, 3}
    one = [TextExample(text=f"ab {i}", target=1) for i in range(5)]
    assert TfidfBaseline(SINGLE, 3).fit(one).predict(one).argmax(1).tolist() == [1] * 5
    several = [TextExample(text=f"ab {i}", target=(0,)) for i in range(5)]  # 0 always, 1 never
    assert (TfidfBaseline(MULTI, 2).fit(several).predict(several) > 0).tolist() == [[True, False]] * 5


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION, ORDINAL])
def test_a_baseline_of_one_row_does_not_fail(kind):
    target = {MULTI: (1,), REGRESSION: (2.0,)}.get(kind, 1)
    row = [TextExample(text="one row", target=target)]
    count = 1 if kind == REGRESSION else 2
    for baseline in (TfidfBaseline(kind, count), TrivialBaseline(kind, count)):
        assert baseline.fit(row).predict(row * 2).shape == (2, count)


def test_the_trivial_baseline_predicts_the_most_frequent_label_or_the_mean():
    of = {
        SINGLE: ([0, 2, 2, 1], "accuracy", 0.5),
        ORDINAL: ([0, 2, 2, 1], "mae", 0.75),
        MULTI: ([(0, 2), (2,), (), (1,)], "micro_recall", 0.5),
        REGRESSION: ([(0.0,), (2.0,), (2.0,), (4.0,)], "mse", 2.0),
    }
    for kind, (targets, name, wanted) in of.items():
        examples = [TextExample(text="a", target=target) for target in targets]
        count = 1 if kind == REGRESSION else 3
        baseline = TrivialBaseline(kind, count).fit(examples)
        assert quality(kind, baseline, examples, name, count=count) == pytest.approx(wanted), kind
    # Multi-label: only the most frequent label, even if most rows have several.
    examples = [TextExample(text="a", target=(0, 1, 2)), TextExample(text="b", target=(1, 2))]
    assert (TrivialBaseline(MULTI, 3).fit(examples).predict(examples) > 0).sum(1).tolist() == [1, 1]


def test_baselines_are_deterministic():
    train = rows(MULTI, 60, 4)
    first, second = (TfidfBaseline(MULTI, 3).fit(train).predict(train) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.slow  # thousands of texts
def test_work_grows_no_faster_than_the_texts():
    calls = []
    for count in (750, 3000):
        with at_most(10**8) as work:
            TfidfBaseline(SINGLE, 3).fit(rows(SINGLE, count, 0))
        calls.append(work.calls)
    assert calls[1] <= 5 * calls[0]


def test_invalid_input_raises_errors():
    with raises_problem("file-empty", "TF-IDF baseline"):
        TfidfBaseline(SINGLE, 2).fit([])
    with raises_problem("argument-type", "TF-IDF baseline"):
        TfidfBaseline(SINGLE, 2).predict(rows(SINGLE, 1, 0))
    with raises_problem("text-empty", "TF-IDF baseline"):
        TfidfBaseline(SINGLE, 2).fit([TextExample(text="?!", target=0)] * 3)


def test_scikit_learn_is_imported_inside_functions_only():
    tree = ast.parse(Path(text_baselines.__file__).read_text(encoding="utf-8"))
    top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not {name for name in top if name.split(".")[0] in ("sklearn", "scipy")}
