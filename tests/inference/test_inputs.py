"""Tests of Python arguments: list-like inputs, invalid rows with their errors, and the device."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from equality import assert_same_logits
from transformers import AutoModelForCausalLM, pipeline

from qwen_task_heads import (
    LabelMap,
    LabelScorer,
    Scorer,
    TaskHeadsError,
    TitleReward,
    build,
    load_tokenizer,
    save,
)
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.few_shot import choose_shots
from qwen_task_heads.inference.inputs import device_of
from qwen_task_heads.inference.loading import choose
from qwen_task_heads.inference.scorer import FailedScore
from qwen_task_heads.pretrained import locate
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts

TEXTS = ["lost card", "age?", "短い文"]
LISTS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "generator": lambda rows: (row for row in rows),
    "iterator": iter,
    "values": lambda rows: dict(enumerate(rows)).values(),
    "numpy": np.array,
    "numpy_objects": lambda rows: np.array(rows, dtype=object),
    "numpy_strings": lambda rows: [np.str_(row) for row in rows],
    "series": lambda rows: pd.Series(rows, index=[7, 3, 5][: len(rows)]),
    "series_string": lambda rows: pd.Series(rows, dtype="string"),
    "series_arrow": lambda rows: pd.Series(rows, dtype=pd.ArrowDtype(pa.string())),
    "series_category": lambda rows: pd.Series(rows, dtype="category"),
    "index": pd.Index,
    "arrow": pa.array,
    "arrow_chunks": lambda rows: pa.chunked_array([rows[:1], rows[1:]]),
    "arrow_dictionary": lambda rows: pa.array(rows).dictionary_encode(),
    "arrow_scalars": lambda rows: list(pa.array(rows)),
}
BAD = ["", " \n", None, math.nan, pd.NA, pd.NaT, 3, b"bytes", "half \ud83d", ["a", "b"], {"text": "a"}]


@pytest.fixture(scope="module")
def classifier() -> Scorer:
    torch.manual_seed(0)
    model = build("embedded", task="pooled_classifier", labels=["a", "b", "c"])
    return Scorer(model, tokenizer=load_tokenizer("embedded"))


@pytest.fixture(scope="module")
def titles() -> Scorer:
    torch.manual_seed(0)
    return Scorer(build("embedded"), tokenizer=load_tokenizer("embedded"))


@pytest.fixture(scope="module")
def asked() -> LabelScorer:
    model = AutoModelForCausalLM.from_pretrained(locate("embedded"), dtype=torch.float32)
    labels = LabelMap(("sport", "trade", "art"))
    options: dict[str, Any] = {"model_type": "qwen2", "instruction": "Sort: {labels}\n"}
    return LabelScorer(model, prompts=AnswerPrompts(load_tokenizer("embedded"), labels, **options))


@pytest.mark.parametrize("kind", LISTS)
def test_all_list_like_types_give_the_same_answers(
    classifier: Scorer, titles: Scorer, asked: LabelScorer, kind: str
) -> None:
    given = LISTS[kind]
    assert_same_logits(classifier.logits(given(TEXTS)), classifier.logits(TEXTS))
    answers = classifier.predict(given(TEXTS))
    assert [answer.text for answer in answers] == TEXTS
    assert {type(answer.text) for answer in answers} == {str}
    assert [answer.label for answer in answers] == [answer.label for answer in classifier.predict(TEXTS)]
    prompts = ["a", "", "b"]
    wanted = titles.score(TEXTS, prompts=prompts)
    assert titles.score(given(TEXTS), prompts=given(prompts)) == pytest.approx(wanted, abs=1e-6)
    assert [row.title for row in titles.rank(given(TEXTS))] == [row.title for row in titles.rank(TEXTS)]
    assert_same_logits(asked.log_scores(given(TEXTS)), asked.log_scores(TEXTS))
    assert [answer.text for answer in asked.predict(given(TEXTS))] == TEXTS


@pytest.mark.parametrize("kind", LISTS)
def test_the_functions_of_the_package_take_list_like_types(
    classifier: Scorer, titles: Scorer, asked: LabelScorer, kind: str
) -> None:
    given, names = LISTS[kind], ["trade", "sport"]
    labels = LabelMap(given(["art", *names]))
    assert labels == LabelMap(("art", *names))
    assert build("embedded", task="pooled_classifier", labels=given(names)).config.id2label == {
        0: "trade",
        1: "sport",
    }
    offers = [given(names), None, ["art"]]
    found = asked.predict(TEXTS, candidates=offers)
    assert [sum(value > 0 for value in row.probabilities.values()) for row in found] == [2, 3, 1]
    chosen = choose(classifier, given(TEXTS), candidates=[given(["a", "b"]), (), None])
    assert chosen[0].probabilities["c"] == 0 < chosen[1].probabilities["c"]
    reward = TitleReward(titles, normalise=False, context="article")
    completions = ["A title", "<title>A title</title>", ""]
    rewards = reward(given(TEXTS), given(completions), article=given(["x", "x", "y"]))
    assert rewards[0] == rewards[1] > rewards[2]
    assert reward.best_of_n(given(completions)).title == "A title"
    train = [TextExample(text=f"text {n}", target=n % 3) for n in range(6)]
    assert len(choose_shots(train, labels, k=2, by="similarity", texts=given(TEXTS))) == 3


@pytest.mark.parametrize("kind", ["series", "numpy", "arrow"])
def test_the_pipeline_takes_columns_and_streams_generators(titles: Scorer, kind: str) -> None:
    ranker = pipeline("title-ranking", model=titles.model, tokenizer=titles.tokenizer)
    wanted = ranker(TEXTS)
    assert ranker(LISTS[kind](TEXTS)) == wanted == ranker({"titles": LISTS[kind](TEXTS)})
    taken: list[int] = []

    def endless() -> Iterator[dict[str, Any]]:
        while True:
            taken.append(1)
            yield {"titles": TEXTS}

    answers = iter(ranker(endless()))
    assert [next(answers), next(answers)] == [wanted, wanted]
    assert len(taken) < 100


@pytest.mark.parametrize(
    "wrong",
    [
        "one text",
        np.array("one text"),
        b"bytes",
        None,
        3,
        {"text": "a"},
        {"a", "b"},
        pd.DataFrame({"text": TEXTS}),
        pa.table({"text": TEXTS}),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_a_value_that_is_not_a_list_of_texts_is_refused(
    classifier: Scorer, titles: Scorer, asked: LabelScorer, wrong: Any
) -> None:
    calls = {"texts": (classifier.predict, classifier.logits, asked.predict), "titles": (titles.score,)}
    for name, methods in calls.items():
        for method in methods:
            for on_error in ("raise", "keep") if method != classifier.logits else ("raise",):
                options = {} if on_error == "raise" else {"on_error": on_error}
                with pytest.raises(TaskHeadsError) as caught:
                    method(wrong, **options)
                assert [problem.where for problem in caught.value.problems] == [name]
    if wrong is not None:
        for call in (
            lambda: titles.score(TEXTS, prompts=wrong),
            lambda: asked.predict(TEXTS, candidates=wrong),
        ):
            with pytest.raises(TaskHeadsError, match=r"prompts|candidates"):
                call()


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_an_invalid_row_keeps_its_place_and_the_others_are_answered(
    classifier: Scorer, titles: Scorer, asked: LabelScorer, bad: Any
) -> None:
    rows = [TEXTS[0], bad, TEXTS[1]]
    for scorer in (classifier, asked):
        with pytest.raises(TaskHeadsError, match=r"texts\[1\]"):
            scorer.predict(rows)
        answers = scorer.predict(iter(rows), on_error="keep")
        wanted = scorer.predict(TEXTS[:2])
        assert [answers[0].label, answers[2].label] == [answer.label for answer in wanted]
        assert answers[0].probability == pytest.approx(wanted[0].probability, abs=1e-6)
        assert answers[0].error is None is answers[2].error
        assert answers[1].text is bad
        assert answers[1].label is None is answers[1].probability
        assert answers[1].error.startswith("texts[1]: ")
        assert answers[1].as_dict() == {"error": answers[1].error}
        json.dumps([answer.as_dict() for answer in answers], allow_nan=False)
    with pytest.raises(TaskHeadsError, match=r"titles\[1\]"):
        titles.score(rows)
    scores = titles.score(rows, on_error="keep")
    assert [scores[0], scores[2]] == pytest.approx(titles.score(TEXTS[:2]), abs=1e-6)
    assert math.isnan(scores[1])
    assert isinstance(scores[1], FailedScore)
    assert scores[1].error.startswith("titles[1]: ")
    ranked = titles.rank(rows, on_error="keep", top_k=1, prompt="which?")
    assert ranked[0] == titles.rank(TEXTS[:2], prompt="which?", top_k=1)[0]
    assert (ranked[1].rank, len(ranked)) == (None, 2)
    assert ranked[1].title is bad
    assert ranked[1].error == scores[1].error


def test_only_invalid_rows_and_no_rows_are_answered(classifier: Scorer, titles: Scorer) -> None:
    assert [bool(answer.error) for answer in classifier.predict(["", None], on_error="keep")] == [True] * 2
    assert [math.isnan(score) for score in titles.score(["", None], on_error="keep")] == [True] * 2
    assert [row.rank for row in titles.rank(["", None], on_error="keep")] == [None] * 2
    assert classifier.predict([], on_error="keep") == titles.score([], on_error="keep") == []


def test_invalid_second_texts_prompts_and_candidates_are_reported_with_their_row(
    titles: Scorer, asked: LabelScorer
) -> None:
    model = build("embedded", labels=["a", "b"], task="pooled_classifier")
    pairs = Scorer(model, tokenizer=load_tokenizer("embedded"))  # without a template it takes both
    found = pairs.predict(TEXTS, text_pairs=["x", None, ""], on_error="keep")
    assert [bool(answer.error) for answer in found] == [False, True, False]
    assert found[0].text_b == "x"
    wanted = pairs.predict([TEXTS[0], TEXTS[2]], text_pairs=["x", ""])
    assert [found[0].probability, found[2].probability] == pytest.approx(
        [answer.probability for answer in wanted], abs=1e-6
    )
    scores = titles.score(TEXTS, prompts=[math.nan, "x", ""], on_error="keep")
    assert [math.isnan(score) for score in scores] == [True, False, False]
    offered = asked.predict(TEXTS, candidates=[["sport"], ["unknown"], "art"], on_error="keep")
    assert [answer.label for answer in offered] == ["sport", None, None]
    assert [(answer.error or "").split(":")[0] for answer in offered] == [
        "",
        "candidates[1]",
        "candidates[2]",
    ]


def test_an_error_of_the_call_is_raised_with_keep(classifier: Scorer, titles: Scorer) -> None:
    for call, where in (
        (lambda: classifier.predict(TEXTS, on_error="skip"), "on_error"),
        (lambda: classifier.predict(TEXTS, text_pairs=["x"], on_error="keep"), "text_pairs"),
        (lambda: titles.score(TEXTS, prompts=["x"], on_error="keep"), "prompts"),
        (lambda: titles.rank(TEXTS, prompt=3, on_error="keep"), "prompt"),  # type: ignore[arg-type]
        (lambda: titles.predict(TEXTS, on_error="keep"), "Scorer.predict"),
    ):
        with pytest.raises(TaskHeadsError) as caught:
            call()
        assert [problem.where for problem in caught.value.problems] == [where]


def test_a_failed_score_can_be_pickled() -> None:
    score = pickle.loads(pickle.dumps(FailedScore("titles[0]: found ''")))
    assert math.isnan(score)
    assert score.error == "titles[0]: found ''"


TAGGED = ["<title>lost card</title>", " <TITLE> age? </Title>\n", "<title><title>短い文", "a <title> inside"]
BARE = ["lost card", "age?", "短い文", "a <title> inside"]


def test_title_tags_are_removed_by_all_callers(titles: Scorer, tmp_path: Any) -> None:
    prompts = ["x", "", "y", ""]
    assert titles.score(TAGGED, prompts=prompts) == pytest.approx(
        titles.score(BARE, prompts=prompts), abs=1e-6
    )
    wanted = titles.rank(BARE)
    ours = titles.rank(TAGGED)
    assert [row.score for row in ours] == pytest.approx([row.score for row in wanted], abs=1e-6)
    assert [TAGGED.index(row.title) for row in ours] == [BARE.index(row.title) for row in wanted]
    assert titles.prefer(TAGGED[0], BARE[0]) == pytest.approx(0.5, abs=1e-6)

    ranker = pipeline("title-ranking", model=titles.model, tokenizer=titles.tokenizer)
    assert [row["score"] for row in ranker(TAGGED)] == pytest.approx([row.score for row in wanted], abs=1e-6)
    reward = TitleReward(titles, normalise=False)
    assert reward([""] * 4, TAGGED)[:2] == pytest.approx(titles.score(BARE[:2]), abs=1e-6)

    folder = save(titles.model, tokenizer=titles.tokenizer, folder=tmp_path / "model")
    spec = importlib.util.spec_from_file_location("handler_of_tags", folder / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(str(folder))
    theirs = [row["score"] for row in handler({"inputs": TAGGED})]
    assert theirs == pytest.approx(titles.score(BARE), abs=1e-6)
    for empty in ("<title></title>", "<title> "):
        with pytest.raises(TaskHeadsError, match=r"titles\[1\]"):
            titles.score(["a", empty])
        with pytest.raises(ValueError, match="title-ranking"):
            ranker(["a", empty])
        for inputs in (["a", empty], {"titles": ["a", empty]}):
            with pytest.raises(ValueError, match=r"inputs.*\[1\]"):
                handler({"inputs": inputs})


def test_the_tags_are_text_for_a_classifier(classifier: Scorer) -> None:
    assert not torch.allclose(classifier.logits(["<title>a</title>"]), classifier.logits(["a"]))


class Listener(logging.Handler):
    """Collects messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_auto_is_the_gpu_if_there_is_one_and_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    listener, logger = Listener(), logging.getLogger("qwen_task_heads.inference.inputs")
    logger.addHandler(listener)
    try:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert device_of("auto") == torch.device("cpu")
        assert listener.messages == []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU of this test")
        assert device_of("auto") == device_of("auto") == torch.device("cuda")
        assert len(listener.messages) == 1
        assert "A GPU of this test" in listener.messages[0]
    finally:
        logger.removeHandler(listener)


@pytest.mark.parametrize("device", ["gpu", "cuda", 3.5, "CPU "])
def test_an_unavailable_device_is_refused(
    titles: Scorer, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for opened in (
        lambda: Scorer(titles.model, tokenizer=titles.tokenizer, device=device),
        lambda: LabelScorer.from_pretrained("embedded", labels=LabelMap(("a", "b")), device=device),
    ):
        with pytest.raises(TaskHeadsError, match="auto") as caught:
            opened()
        code = "device-unavailable" if device == "cuda" else "option-value"
        assert [(one.code, one.where) for one in caught.value.problems] == [(code, "device")]


@pytest.mark.parametrize("int8", [False, True])
def test_auto_loads_a_model_on_this_machine(titles: Scorer, int8: bool) -> None:
    scorer = Scorer(titles.model, tokenizer=titles.tokenizer, device="auto", int8=int8)
    gpu = torch.cuda.is_available() and not int8
    assert scorer.model.device.type == ("cuda" if gpu else "cpu")
    assert scorer.score(TEXTS) == pytest.approx(titles.score(TEXTS), abs=0.5 if int8 else 1e-3)
    titles.model.to("cpu")
