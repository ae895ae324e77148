"""Answers of the page equal those of `Scorer`; thresholds start at what the model stores; limits."""

from __future__ import annotations

import re

import pytest
from demo_models import CURVE, KINDS, scorer_of
from problem_assertions import raises_problem

from qwen_task_heads.demo.answers import DemoLimits, DemoModel, coverage_note

TEXT = "Why was my <b>transfer</b> declined twice\ntoday?"
TITLES = ["A plain title", "10 ways to make tea", "<img src=x> & more", "You won't believe this"]
ROUNDED = 6e-5


@pytest.fixture(scope="module")
def models() -> dict[str, DemoModel]:
    """A model of every kind."""
    limits = DemoLimits(titles=5, characters=200, words=12)
    return {kind: DemoModel(scorer_of(kind), name=kind, limits=limits) for kind in KINDS}


def second_of(kind: str) -> str:
    return "A second text" if kind == "pairs" else ""


@pytest.mark.parametrize("prompt", ["", "An article about tea"])
def test_titles_are_ranked_as_by_the_scorer(models: dict[str, DemoModel], prompt: str) -> None:
    model = models["titles"]
    rows = model.rank("\n  ".join(["", *TITLES, "  "]), f" {prompt}\n")
    expected = model.scorer.rank(TITLES, prompt=prompt)
    assert [row[:2] for row in rows] == [[title.rank, title.title] for title in expected]
    for row, title in zip(rows, expected, strict=True):
        assert row[2:] == pytest.approx([title.score, title.probability], abs=ROUNDED)
    assert len({row[2] for row in rows}) == len(TITLES)


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_a_text_is_answered_as_by_the_scorer(models: dict[str, DemoModel], kind: str) -> None:
    model, second = models[kind], second_of(kind)
    found = model.classify(TEXT, second)
    [wanted] = model.scorer.predict([TEXT], text_pairs=[second] if second else None)
    assert found.probabilities == pytest.approx(dict(wanted.ranked), abs=ROUNDED)
    assert list(found.probabilities) == [name for name, _ in wanted.ranked]
    if kind == "scores":
        assert [row[0] for row in found.rows] == ["clear", "short"]
        assert [row[1] for row in found.rows] == pytest.approx(list(wanted.scores.values()), abs=ROUNDED)
    elif kind == "score":
        assert float(found.answer) == pytest.approx(wanted.score, abs=ROUNDED)
    elif kind in ("multi", "stored"):
        assert {row[0] for row in found.rows if row[3]} == set(wanted.labels or ())
    else:
        assert found.answer.startswith(str(wanted.label))
        assert ("expected rank" in found.answer) == (kind == "ordinal")


def test_thresholds_of_each_label_are_the_stored_ones_or_one_for_all(models: dict[str, DemoModel]) -> None:
    model = models["stored"]
    assert {row[0]: row[2] for row in model.classify(TEXT).rows} == {
        "card": 0.01,
        "<b>cash</b>": 0.99,
        "transfer": 0.5,
    }
    for threshold, count in ((0.0, 3), (1.0, 0)):
        answer = model.classify(TEXT, threshold=threshold)
        assert sum(row[3] == "yes" for row in answer.rows) == count
        assert {row[2] for row in answer.rows} == {threshold}
    assert "," not in answer.answer


def test_no_label_is_given_below_a_threshold(models: dict[str, DemoModel]) -> None:
    for kind in ("single", "ordinal"):
        model = models[kind]
        best = max(model.classify(TEXT).probabilities.values())
        below, over = (model.classify(TEXT, threshold=best + step) for step in (-0.001, 0.001))
        assert below.answer == model.classify(TEXT).answer
        assert over.answer.startswith("(no label")
        assert over.probabilities == below.probabilities


def test_thresholds_start_at_what_the_model_stores(models: dict[str, DemoModel]) -> None:
    started = {kind: model.first_threshold for kind, model in models.items()}
    assert started == {
        "titles": None,
        "single": 0.34,  # the least confidence of the curve
        "multi": 0.5,
        "stored": 0.5,
        "ordinal": 0.34,
        "score": None,
        "scores": None,
        "pairs": 0.0,
    }
    assert [kind for kind, model in models.items() if model.has_stored_thresholds] == ["stored"]
    assert [kind for kind, model in models.items() if model.curve] == ["single", "ordinal"]


def test_a_threshold_is_read_off_the_stored_curve() -> None:
    notes = [coverage_note(CURVE, threshold) for threshold in (0.0, 0.34, 0.35, 0.41, 0.5, 0.61)]
    shares = [re.findall(r"[\d.]+(?=%)", note) for note in notes]
    assert shares[:2] == [["100", "40.0", "95", "50.0"]] * 2
    assert shares[2:4] == [["50", "20.0", "95", "30.0"]] * 2
    assert shares[4:] == [["10", "0.0", "95", "10.0"], ["5"]]
    assert "no stored" in coverage_note([], 0.5)


@pytest.mark.parametrize(
    ("kind", "call", "code", "where"),
    [
        ("titles", lambda model: model.rank(" \n\n"), "text-empty", "titles"),
        ("titles", lambda model: model.rank("<title></title>"), "text-empty", "titles[0]"),
        ("titles", lambda model: model.rank("a\n" * 6), "request-too-large", "titles"),
        ("titles", lambda model: model.rank("a" * 101, "b" * 100), "request-too-large", "titles"),
        ("titles", lambda model: model.rank("a\ud800"), "file-encoding", "titles[0]"),
        ("single", lambda model: model.classify(" "), "text-empty", "text"),
        ("single", lambda model: model.classify("a" * 201), "request-too-large", "text"),
        ("single", lambda model: model.classify("a", "b"), "option-unsupported", "text_pairs"),
        ("single", lambda model: model.classify("a", threshold=2.0), "option-range", "abstain"),
        ("score", lambda model: model.classify("a", threshold=0.5), "option-unsupported", "abstain"),
        ("pairs", lambda model: model.classify("a" * 101, "b" * 100), "request-too-large", "text"),
        ("single", lambda model: model.attribute(" "), "text-empty", "text"),
        ("single", lambda model: model.attribute("one"), "text-empty", "text"),
        ("single", lambda model: model.attribute("a " * 13), "request-too-large", "text"),
        ("single", lambda model: model.attribute("ab " * 70), "request-too-large", "text"),
    ],
)
def test_limits(models: dict[str, DemoModel], kind: str, call, code: str, where: str) -> None:
    with raises_problem(code, where):
        call(models[kind])


def test_a_model_of_pairs_takes_an_empty_second_text(models: dict[str, DemoModel]) -> None:
    [wanted] = models["pairs"].scorer.predict([TEXT], text_pairs=[""])
    assert models["pairs"].classify(TEXT).probabilities == pytest.approx(dict(wanted.ranked), abs=ROUNDED)
    assert models["pairs"].kind == "classifier of pairs"
