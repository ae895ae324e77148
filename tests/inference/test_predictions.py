"""Tests of predictions by problem type, in batches of different sizes, and of their options."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from problem_assertions import raises_problem
from records import QUESTIONS
from transformers import PreTrainedConfig, set_seed

from qwen_task_heads import PooledClassifierConfig, Scorer, build, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference.predictions import answer_columns, confidence_for, to_predictions

LABELS = {0: "sport", 1: "trade", 2: "art"}
LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.1, 0.2, 0.0]])
TEXTS = ["a match", "a fair"]
KINDS = ("single_label_classification", "multi_label_classification", "regression", "ordinal")


def config(kind: str, labels: dict[int, str] = LABELS) -> PooledClassifierConfig:
    return PooledClassifierConfig(id2label=labels, problem_type=kind)


def answers(kind: str, logits: torch.Tensor = LOGITS, **options: Any) -> list[Any]:
    return to_predictions(logits, config(kind), texts=TEXTS, **options)


def test_answers_to_several_questions() -> None:
    """Each question has its own softmax; a noul has the options false and true."""
    config = PooledClassifierConfig(questions=QUESTIONS)
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0, 1.0, -3.0]])
    [found] = to_predictions(logits, config, texts=["a"], top_k=1)
    labels = {name: answer.label for name, answer in found.answers.items()}
    assert labels == {"intent": "card", "urgency": "today", "refund": "false"}
    shares = logits[0, 2:5].double().softmax(0)
    assert [*found.answers["urgency"].probabilities.values()] == pytest.approx(shares.tolist())
    assert found.answers["urgency"].expected_rank == pytest.approx(float(shares @ torch.arange(3.0).double()))
    assert found.answers["refund"].probabilities["true"] == pytest.approx(torch.tensor(-3.0).sigmoid().item())
    row = found.as_dict()["answers"]["urgency"]
    assert (row["label"], [*row["probabilities"]]) == ("today", ["today"])
    [unsure] = to_predictions(logits, config, texts=["a"], abstain=0.7)
    assert [answer.label for answer in unsure.answers.values()] == ["card", None, "false"]
    for option in ("threshold", "max_error"):
        with raises_problem("option-unsupported", option):
            to_predictions(logits, config, texts=["a"], **{option: 0.5})


def test_single_label_predicts_the_best_label_or_abstains() -> None:
    first, second = answers("single_label_classification", abstain=0.5, top_k=2)
    wanted = LOGITS.double().softmax(1)
    assert (first.label, second.label, first.labels, first.score) == ("sport", None, None, None)
    assert list(first.probabilities.values()) == pytest.approx(wanted[0].tolist())
    assert [name for name, _ in first.ranked] == ["sport", "art"]
    assert first.as_dict() == {
        "label": "sport",
        "probability": round(wanted[0, 0].item(), 6),
        "probabilities": {"sport": round(wanted[0, 0].item(), 6), "art": round(wanted[0, 2].item(), 6)},
    }
    assert second.as_dict()["label"] is None
    assert json.loads(json.dumps(second.as_dict())) == second.as_dict()


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "ordinal"])
def test_top_k_above_the_number_of_labels_gives_all(kind: str) -> None:
    for answer, whole in zip(answers(kind, top_k=99), answers(kind), strict=True):
        assert answer.ranked == whole.ranked
        assert len(answer.ranked) == len(LABELS)


def test_multi_label_takes_those_over_the_threshold_best_first() -> None:
    first, second = answers("multi_label_classification", threshold=0.52)
    assert (first.labels, second.labels, first.label) == (("sport", "art"), ("trade", "sport"), None)
    assert first.probabilities["trade"] == pytest.approx(0.5)
    assert answers("multi_label_classification")[0].labels == ("sport", "art", "trade")  # 0.5 is at it
    assert answers("multi_label_classification", threshold=1.0)[0].as_dict()["labels"] == []


def test_regression_gives_scores_by_name() -> None:
    one = to_predictions(LOGITS[:, :1], config("regression", {0: "score"}), texts=TEXTS)
    assert [answer.score for answer in one] == pytest.approx([2.0, 0.1])
    assert one[0].as_dict() == {"score": 2.0}
    several = answers("regression")
    assert several[0].score is None
    assert several[0].as_dict() == {"scores": {"sport": 2.0, "trade": 0.0, "art": 1.0}}


def test_ordinal_predicts_the_best_label_and_the_expected_rank() -> None:
    logits = torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.1, 0.0001]]).log()
    first, second = answers("ordinal", logits=logits)
    assert (first.label, second.label) == ("art", "sport")
    assert first.expected_rank == pytest.approx(0.3 + 2 * 0.5, abs=1e-6)
    assert list(second.as_dict()) == ["label", "probability", "expected_rank", "probabilities"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_keys_of_the_dictionary_are_attributes(kind: str) -> None:
    for answer in answers(kind):
        for name, value in answer.as_dict().items():
            attribute = getattr(answer, name)
            if isinstance(attribute, (float, dict)):
                assert attribute == pytest.approx(value, abs=1e-6)
            else:
                assert attribute == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_at_the_index_of_its_row(kind: str) -> None:
    options: dict[str, Any] = {"errors": {1: "texts[1]: found ''"}, "text_pairs": ["", "x", ""]}
    found = to_predictions(LOGITS, config(kind), texts=["a match", "", "a fair"], **options)
    assert [answer.error for answer in found] == [None, "texts[1]: found ''", None]
    assert (found[1].text_b, found[1].as_dict()) == ("x", {"error": "texts[1]: found ''"})
    assert [found[0].as_dict(), found[2].as_dict()] == [answer.as_dict() for answer in answers(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_are_the_keys(kind: str) -> None:
    assert list(answers(kind)[0].as_dict()) == answer_columns(config(kind))


@pytest.mark.parametrize(
    ("kind", "options", "code"),
    [
        ("single_label_classification", {"threshold": 0.5}, "option-unsupported"),
        ("multi_label_classification", {"abstain": 0.5}, "option-unsupported"),
        ("regression", {"top_k": 1, "threshold": 0.5, "abstain": 0.5}, "option-unsupported"),
        ("ordinal", {"threshold": 0.5}, "option-unsupported"),
        ("ordinal", {"top_k": 0}, "option-range"),
        ("ordinal", {"top_k": -1}, "option-range"),
        ("ordinal", {"top_k": True, "abstain": 1.5}, "option-range"),
        ("multi_label_classification", {"threshold": float("nan")}, "option-range"),
    ],
)
def test_invalid_options_are_refused_together(kind: str, options: dict[str, Any], code: str) -> None:
    with pytest.raises(TaskHeadsError) as caught:
        answers(kind, **options)
    problems = caught.value.problems
    assert [(problem.code, problem.where) for problem in problems] == [(code, name) for name in options]
    for problem, value in zip(problems, options.values(), strict=True):
        assert str(value) in problem.problem


@pytest.fixture(scope="module", params=["head", "windows"])
def scorer(request: Any, bases: Any, tokenizer: Any, shake: Any) -> Scorer:
    set_seed(3)
    model = build(
        bases["qwen2"],
        task="pooled_classifier",
        labels=list(LABELS.values()),
        problem_type="single_label_classification",
        max_seq_length=24,
        truncation=request.param,
    )
    return Scorer(shake(model, width=0.2), tokenizer=tokenizer, progress=False)


def test_a_batch_of_one_and_of_a_thousand_agree(scorer: Scorer) -> None:
    texts = [f"text {index} " + "and more words " * (index % 17) for index in range(1000)]
    together = scorer.logits(texts)
    assert together.shape == (1000, 3)
    assert together.dtype == torch.float32
    some = range(0, 1000, 97)
    alone = torch.cat([scorer.logits([texts[index]]) for index in some])
    assert (alone - together[list(some)]).abs().max() <= 1e-6
    assert len({round(value, 4) for value in alone[:, 0].tolist()}) == len(some)  # logits that differ
    predicted = scorer.predict(texts[:50])
    assert [answer.text for answer in predicted] == texts[:50]
    assert [answer.label for answer in predicted] == [LABELS[i] for i in together[:50].argmax(1).tolist()]


def test_long_texts_are_truncated_by_the_policy_of_the_config(scorer: Scorer) -> None:
    long = "words of a text " * 30
    logits = scorer.logits([long, long + "and another end of it"])
    same = bool((logits[0] - logits[1]).abs().max() <= 1e-6)
    assert same == (scorer.model.config.truncation == "head")
    # whole rows, as callers of transformers pass them
    ids = torch.tensor([scorer.tokenizer(long, verbose=False)["input_ids"]])
    with torch.inference_mode():
        assert (scorer.model(input_ids=ids).logits[0] - logits[0]).abs().max() <= 1e-6


def test_a_method_of_the_other_kind_of_model_is_refused(scorer: Scorer, bases: Any, tokenizer: Any) -> None:
    titles = Scorer(build(bases["qwen2"]), tokenizer=tokenizer)
    for call in (scorer.score, scorer.rank):
        with pytest.raises(TaskHeadsError, match=r"pooled_classifier.*predict\(\)") as caught:
            call(["a"])
        assert [problem.code for problem in caught.value.problems] == ["model-type"]
    with pytest.raises(TaskHeadsError) as caught:
        scorer.prefer("a", "b")
    assert [problem.code for problem in caught.value.problems] == ["model-type"]
    for call in (titles.logits, titles.predict):
        with pytest.raises(TaskHeadsError, match=r"title_scorer.*score\(\)") as caught:
            call(["a"])
        assert [problem.code for problem in caught.value.problems] == ["model-type"]


def test_invalid_texts_and_options_are_reported(scorer: Scorer) -> None:
    with pytest.raises(TaskHeadsError, match=r"texts\[1\]"):
        scorer.predict(["ok", " "])
    for pair in (("a", "b"), ["a", "b"], {"text": "a", "text_pair": "b"}):  # the forms of pipelines
        with pytest.raises(TaskHeadsError, match=type(pair).__name__) as caught:
            scorer.predict([pair])
        assert [(one.code, one.where) for one in caught.value.problems] == [("argument-type", "texts[0]")]
        assert "text_pairs=[...]" in caught.value.problems[0].fix
    with pytest.raises(TaskHeadsError, match="2 text_pairs for 1 texts") as caught:
        scorer.predict(["ok"], text_pairs=["a", "b"])
    assert [(one.code, one.where) for one in caught.value.problems] == [("argument-type", "text_pairs")]
    with pytest.raises(TaskHeadsError) as caught:
        scorer.predict(["ok"], threshold=0.4)
    assert [(one.code, one.where) for one in caught.value.problems] == [("option-unsupported", "threshold")]
    assert scorer.predict([]) == []
    assert scorer.logits([]).shape == (0, 3)


def test_the_command_line_labels_texts(
    scorer: Scorer, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_task_heads import __main__ as command
    from qwen_task_heads.errors import run_recipe

    folder = save(scorer.model, tokenizer=scorer.tokenizer, folder=tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["qwen_task_heads", str(folder), *TEXTS, "--top_k", "1"])
    assert run_recipe(command.main) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, answer in zip(lines, scorer.predict(TEXTS), strict=True):
        name, probability = answer.ranked[0]
        assert line == f"{name}  |  {name} {probability:.3f}  |  {answer.text}"
    monkeypatch.setattr(sys, "argv", ["qwen_task_heads", str(folder), TEXTS[0], "--top_k", "99"])
    assert run_recipe(command.main) == 0
    shown = capsys.readouterr().out.split("  |  ")[1].split("  ")
    assert [one.rsplit(" ", 1)[0] for one in shown] == [
        name for name, _ in scorer.predict(TEXTS[:1])[0].ranked
    ]
    monkeypatch.setattr(sys, "argv", ["qwen_task_heads", str(folder), *TEXTS, "--prompt", "x"])
    assert run_recipe(command.main) == 2
    assert "--prompt: " in capsys.readouterr().err


def test_the_thresholds_of_the_config_are_the_default() -> None:
    kind = "multi_label_classification"
    known = PooledClassifierConfig(id2label=LABELS, problem_type=kind, label_thresholds=[0.9, 0.5, 0.2])
    found = to_predictions(LOGITS, known, texts=TEXTS)
    assert [answer.labels for answer in found] == [("art", "trade"), ("trade", "art")]
    found = to_predictions(LOGITS, known, texts=TEXTS, threshold=0.51)
    assert [answer.labels for answer in found] == [("sport", "art"), ("trade", "sport")]
    assert [answer.labels for answer in answers(kind)] == [
        ("sport", "art", "trade"),
        ("trade", "sport", "art"),
    ]


CURVE = [
    {"coverage": 1.0, "confidence": 0.3, "error": 0.2, "upper": 0.25},
    {"coverage": 0.6, "confidence": 0.6, "error": 0.1, "upper": 0.15},
    {"coverage": 0.4, "confidence": 0.7, "error": 0.12, "upper": 0.18},
    {"coverage": 0.2, "confidence": 0.9, "error": 0.0, "upper": 0.0511},
]


@pytest.mark.parametrize(("rate", "least"), [(1, 0.3), (0.25, 0.3), (0.24, 0.6), (0.14, 0.9), (0.052, 0.9)])
def test_an_error_rate_is_compared_with_the_upper_end_of_the_interval(rate: float, least: float) -> None:
    known = config("ordinal")
    known.calibration = {"risk_coverage": CURVE}
    assert confidence_for(rate, known) == least
    probability = [[0.61, 0.2, 0.19], [0.31, 0.36, 0.33]]
    found = to_predictions(torch.tensor(probability).log(), known, texts=TEXTS, max_error=rate)
    assert [answer.label is not None for answer in found] == [least <= 0.61, least <= 0.36]


def test_a_rate_below_all_rates_of_dev_is_refused_with_the_lowest() -> None:
    known = config("single_label_classification")
    known.calibration = {"risk_coverage": CURVE}
    with pytest.raises(TaskHeadsError) as caught:
        confidence_for(0.01, known)
    [problem] = caught.value.problems
    assert (problem.code, problem.where) == ("option-range", "max_error")
    rate = float(re.findall(r"give ([\d.]+)", problem.fix)[0])
    assert confidence_for(rate, known) == 0.9
    with pytest.raises(TaskHeadsError) as caught:
        answers("single_label_classification", max_error=0.1)  # without a curve
    assert [(one.code, one.where) for one in caught.value.problems] == [("option-unsupported", "max_error")]
    with pytest.raises(TaskHeadsError) as caught:
        confidence_for(0.1, PreTrainedConfig(id2label=LABELS))  # the config of a generative classifier
    assert [(one.code, one.where) for one in caught.value.problems] == [("option-unsupported", "max_error")]


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_an_error_rate_of_another_problem_type_is_refused(kind: str) -> None:
    known = config(kind, LABELS if kind != "regression" else {0: "score"})
    known.calibration = {"risk_coverage": CURVE}
    with pytest.raises(TaskHeadsError) as caught:
        to_predictions(LOGITS[:, : known.num_labels], known, texts=TEXTS, max_error=0.1)
    assert [(one.code, one.where) for one in caught.value.problems] == [("option-unsupported", "max_error")]
