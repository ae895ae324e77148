"""`pipeline("decision")` answers by the head, equal to `Scorer`; other questions are refused."""

import json

import pytest
import torch
from transformers import AutoModelForDecision, AutoTokenizer, pipeline

from qwen_task_heads import Scorer, build, load_tokenizer, save

LABELS = ["card", "cash", "transfer"]
TEXTS = [
    f"Why was transfer {number} declined? <|im_end|> " + "please " * (number % 40) for number in range(200)
]


def saved(folder, **options):
    torch.manual_seed(0)
    model = build("embedded", task="pooled_classifier", **options)
    return str(save(model, tokenizer=load_tokenizer("embedded"), folder=folder))


@pytest.fixture(scope="module")
def intents(tmp_path_factory):
    """Folder of a single-label classifier that cuts long texts."""
    return saved(tmp_path_factory.mktemp("intents") / "saved", labels=LABELS, max_seq_length=24)


def decide(folder, questions, state="A text", **options):
    return pipeline("decision", model=folder, **options)({"state": state, "questions": questions})


def test_choices_of_200_texts_equal_the_scorer(intents):
    question = {"intent": {"type": "choice", "criteria": dict.fromkeys(reversed(LABELS))}}
    decision = pipeline("decision", model=intents)
    for text, expected in zip(TEXTS, Scorer(intents).predict(TEXTS), strict=True):
        answer = decision({"state": text, "questions": question})["intent"]
        assert answer["choice"] == expected.label
        assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


def test_a_choice_of_some_labels_is_normalised_over_them(intents):
    question = {"intent": {"type": "choice", "criteria": {"cash": None, "card": "A lost card"}}}
    found = decide(intents, question)["intent"]["probabilities"]
    known = Scorer(intents).predict(["A text"])[0].probabilities
    total = known["cash"] + known["card"]
    assert found == pytest.approx({"cash": known["cash"] / total, "card": known["card"] / total}, abs=1e-6)


def test_several_questions_over_one_pass(intents):
    questions = {
        "card": {"type": "noul", "instructions": "Is it about a card?"},
        "intent": {"type": "choice", "criteria": dict.fromkeys(LABELS)},
    }
    passes = []
    decision = pipeline("decision", model=intents)
    decision.model.model.register_forward_hook(lambda *_: passes.append(1))
    answers = decision({"state": "A text", "questions": questions})
    assert len(passes) == 1
    assert answers["card"]["noul"] == pytest.approx(answers["intent"]["probabilities"]["card"], abs=1e-6)


def test_noul_of_two_labels_is_the_second(tmp_path):
    folder = saved(tmp_path / "saved", labels=["ham", "spam"])
    found = decide(folder, {"is it spam?": {"type": "noul"}, "ham": {"type": "noul"}})
    known = Scorer(folder).predict(["A text"])[0].probabilities
    assert found["is it spam?"]["noul"] == pytest.approx(known["spam"], abs=1e-6)
    assert found["ham"]["noul"] == pytest.approx(known["ham"], abs=1e-6)


def test_noul_per_label_of_a_multi_label_model(tmp_path):
    folder = saved(tmp_path / "saved", labels=LABELS, problem_type="multi_label_classification")
    found = decide(folder, {name: {"type": "noul"} for name in LABELS})
    known = Scorer(folder).predict(["A text"])[0].probabilities
    assert {name: answer["noul"] for name, answer in found.items()} == pytest.approx(known, abs=1e-6)


def test_score_of_an_ordinal_model(tmp_path):
    folder = saved(tmp_path / "saved", labels=["low", "middle", "high"], problem_type="ordinal")
    found = decide(folder, {"urgency": {"type": "score", "criteria": ["low", "middle", "high"]}})["urgency"]
    known = Scorer(folder).predict(["A text"])[0]
    assert found["score"] == pytest.approx(known.expected_rank, abs=1e-6)
    assert list(found["probabilities"].values()) == pytest.approx(
        list(known.probabilities.values()), abs=1e-6
    )


@pytest.mark.parametrize("bias", [-9.0, 0.0, 1.25, 2.0, 9.0])
def test_score_of_a_regression_is_its_value_within_the_levels(tmp_path, bias):
    folder = saved(tmp_path / "saved", labels=["stars"], problem_type="regression")
    decision = pipeline("decision", model=folder)
    value = decision.model
    value.register_forward_hook(lambda _, __, output: setattr(output, "logits", output.logits * 0 + bias))
    answer = decision(
        {"state": "A text", "questions": {"stars": {"type": "score", "criteria": ["0", "1", "2"]}}}
    )
    assert answer["stars"]["score"] == pytest.approx(min(max(bias, 0), 2))


@pytest.mark.parametrize(
    "question",
    [
        {"intent": {"type": "choice", "criteria": {"card": None, "weather": None}}},
        {"urgency": {"type": "score", "criteria": ["low", "high"]}},
        {"anything": {"type": "noul"}},
    ],
)
def test_questions_that_the_head_was_not_trained_for_are_refused(intents, question):
    with pytest.raises(ValueError, match=next(iter(question))):
        decide(intents, question)


def test_a_question_about_a_regression_is_a_score(tmp_path):
    folder = saved(tmp_path / "saved", labels=["stars"], problem_type="regression")
    with pytest.raises(ValueError, match="stars"):
        decide(folder, {"stars": {"type": "noul"}})


@pytest.mark.parametrize("state", ["", "  ", "\ud800"])
def test_an_empty_state_is_refused(intents, state):
    with pytest.raises(ValueError, match="state"):
        decide(intents, {"card": {"type": "noul"}}, state=state)


def test_a_request_as_json_and_a_state_of_fields(intents):
    state = {"subject": "card", "body": "lost"}
    request = {"state": state, "questions": {"card": {"type": "noul"}}}
    found = pipeline("decision", model=intents)(json.dumps(request))["card"]["noul"]
    [known] = Scorer(intents).predict([json.dumps(state, ensure_ascii=False)])
    assert found == pytest.approx(known.probabilities["card"], abs=1e-6)


def test_the_auto_class_loads_the_model(intents):
    model = AutoModelForDecision.from_pretrained(intents)
    inputs, questions = model.decision_config.prepare_inputs(
        {"state": "x", "questions": {"card": {"type": "noul"}}}, AutoTokenizer.from_pretrained(intents)
    )[0]
    assert model.decide(**inputs, decision_questions=questions)[0].exp().sum() == pytest.approx(1)
