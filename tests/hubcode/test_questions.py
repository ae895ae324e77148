"""A model with several questions: its config, its loss, and the answers of the decision pipeline."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from problem_assertions import raises_problem
from records import ASKED, QUESTIONS
from torch.nn import functional as F
from transformers import AutoModelForDecision, Qwen2Config, pipeline

from qwen_task_heads import (
    PooledClassifierConfig,
    Scorer,
    adapter_config,
    build,
    load,
    load_tokenizer,
    merge,
    save,
)
from qwen_task_heads.adapters import with_adapter
from qwen_task_heads.hubcode.handler import EndpointHandler
from qwen_task_heads.hubcode.pooling_task_heads import question_mean

TEXTS = [f"Why was transfer {number} declined? " + "please " * (number % 40) for number in range(200)]


def saved(folder: Path, **options: Any) -> str:
    torch.manual_seed(0)
    model = build("embedded", task="pooled_classifier", **({"questions": QUESTIONS} | options))
    return str(save(model, tokenizer=load_tokenizer("embedded"), folder=folder / "saved"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model with a choice, a score and a noul, which cuts long texts."""
    return saved(tmp_path_factory.mktemp("desk"), max_seq_length=24)


def decide(folder: str, questions: Any, state: Any = "A text") -> Any:
    return pipeline("decision", model=folder)({"state": state, "questions": questions})


@pytest.mark.parametrize("shape", [{}, {"head": "mlp", "head_sizes": [8], "pooling": "attention"}])
def test_answers_to_200_texts_equal_the_scorer_in_one_pass_each(
    tmp_path: Path, shape: dict[str, Any]
) -> None:
    folder = saved(tmp_path, max_seq_length=24, **shape)
    decision, passes = pipeline("decision", model=folder), []
    decision.model.model.register_forward_hook(lambda *_: passes.append(1))
    for text, expected in zip(TEXTS, Scorer(folder).predict(TEXTS), strict=True):
        found, known = decision({"state": text, "questions": ASKED}), expected.answers
        assert found["intent"]["choice"] == known["intent"].label
        assert found["intent"]["probabilities"] == pytest.approx(known["intent"].probabilities, abs=1e-6)
        assert [*found["urgency"]["probabilities"].values()] == pytest.approx(
            [*known["urgency"].probabilities.values()], abs=1e-6
        )
        assert found["urgency"]["score"] == pytest.approx(known["urgency"].expected_rank, abs=1e-6)
        assert found["refund"]["noul"] == pytest.approx(known["refund"].probabilities["true"], abs=1e-6)
    assert len(passes) == len(TEXTS)


def test_some_questions_with_some_options(desk: str) -> None:
    model = AutoModelForDecision.from_pretrained(desk)
    assert (model.config.as_request(), model.config.questions) == (ASKED, QUESTIONS)
    [known] = Scorer(desk).predict(["A text"])
    one = {"intent": {"type": "choice", "criteria": {"cash": "other words"}}}
    assert decide(desk, one)["intent"]["probabilities"] == {"cash": pytest.approx(1)}
    found = decide(desk, {"refund": {"type": "noul"}})
    yes = known.answers["refund"].probabilities["true"]
    assert found == {"refund": {"type": "noul", "noul": pytest.approx(yes, abs=1e-6)}}


def test_an_object_is_asked_as_its_json(desk: str) -> None:
    state = {"subject": "Überweisung", "body": "lost"}
    [known] = Scorer(desk).predict([json.dumps(state, ensure_ascii=False)])
    found = decide(desk, {"refund": ASKED["refund"]}, state=state)["refund"]["noul"]
    assert found == pytest.approx(known.answers["refund"].probabilities["true"], abs=1e-6)


@pytest.mark.parametrize(
    "question",
    [
        {"spam": {"type": "noul"}},
        {"refund": {"type": "choice", "criteria": {"true": None, "false": None}}},
        {"intent": {"type": "choice", "criteria": {"card": None, "weather": None}}},
        {"urgency": {"type": "score", "criteria": ["can wait", "today"]}},
        {"urgency": {"type": "score", "criteria": ["today", "this week", "can wait"]}},
    ],
)
def test_other_questions_are_refused(desk: str, question: dict[str, Any]) -> None:
    with raises_problem("option-unsupported", match=next(iter(question))):
        decide(desk, question)


def test_the_handler_of_endpoints_answers_each_question(desk: str) -> None:
    handler = EndpointHandler(desk)
    [known] = Scorer(desk).predict(["A text"])
    found = handler({"inputs": "A text"})
    for name, answer in known.answers.items():
        probabilities = {one["label"]: one["score"] for one in found[name]}
        assert probabilities == pytest.approx(answer.probabilities, abs=1e-6)
        assert found[name][0]["label"] == answer.label
    [best] = handler({"inputs": ["A text"], "parameters": {"top_k": 1}})
    assert {name: len(options) for name, options in best.items()} == dict.fromkeys(ASKED, 1)


def test_an_adapter_its_merged_copy_and_a_copy_have_the_questions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build("embedded", task="pooled_classifier", questions=QUESTIONS)
    adapted, tokenizer = with_adapter(model, adapter_config(model)), load_tokenizer("embedded")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    wanted = Scorer(adapted.eval(), tokenizer=tokenizer).predict(TEXTS[:2])
    folder = save(adapted, tokenizer=tokenizer, folder=tmp_path / "adapter")
    merged = merge(str(folder))
    for own in (load(folder), merged, copy.deepcopy(merged)):
        assert own.config.questions == QUESTIONS
        found = pipeline("decision", model=own, tokenizer=tokenizer)({"state": TEXTS[1], "questions": ASKED})
        yes = wanted[1].answers["refund"].probabilities["true"]
        assert found["refund"]["noul"] == pytest.approx(yes, abs=1e-5)


def test_more_than_ten_outputs_are_reloaded(tmp_path: Path) -> None:
    """A run rewrites `config.json` with the ids of the labels sorted as text: 10 before 2."""
    options = [f"option {number}" for number in range(12)]
    asked = [{"name": "many", "type": "choice", "options": options}, {"name": "refund", "type": "noul"}]
    folder = saved(tmp_path, questions=asked)
    content = json.loads(Path(folder, "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content, sort_keys=True))
    assert PooledClassifierConfig.from_pretrained(tmp_path).questions == asked
    [known] = Scorer(folder).predict(["A text"])
    found = decide(folder, {"many": {"type": "choice", "criteria": dict.fromkeys(options)}})["many"]
    assert found["probabilities"] == pytest.approx(known.answers["many"].probabilities, abs=1e-6)


def test_no_label_is_added_to_the_options(desk: str) -> None:
    labels = [*load(desk).config.id2label.values()]
    assert build(desk, task="pooled_classifier", labels=labels).config.questions == QUESTIONS
    for changed in ([*labels, "spam"], labels[1:], labels[::-1]):
        with raises_problem("label-conflict"):
            build(desk, task="pooled_classifier", labels=changed)
    with raises_problem("option-conflict", "--questions"):
        build(desk, task="pooled_classifier", questions=QUESTIONS[:2])


def test_the_loss_is_the_mean_over_answered_questions() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6, requires_grad=True)
    targets = torch.tensor(
        [
            [0.2, 0.8, 0.0, 1.0, 0.0, 1.0],
            [-1.0, -1.0, 1.0, 0.0, 0.0, 0.25],
            [1.0, 0.0, -1.0, -1.0, -1.0, -1.0],
            [-1.0] * 6,
        ]
    )
    found = question_mean(logits, targets, sizes=[2, 3, 1])
    choice = F.cross_entropy(logits[:, :2], targets[:, :2], reduction="none")
    score = F.cross_entropy(logits[:, 2:5], targets[:, 2:5], reduction="none")
    noul = F.binary_cross_entropy_with_logits(logits[:, 5], targets[:, 5].clamp(min=0), reduction="none")
    wanted = torch.stack(
        [(choice + score + noul)[0] / 3, (score + noul)[1] / 2, choice[2], torch.tensor(0.0)]
    )
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    assert logits.grad is not None
    assert (logits.grad[3] == 0).all()
    assert (logits.grad[1, :2] == 0).all()
    assert question_mean(logits.double(), targets.double(), sizes=[2, 3, 1]).dtype == torch.float64
    assert bool(question_mean(logits, targets * torch.nan, sizes=[2, 3, 1]).isnan().all())
    with raises_problem("argument-type"):
        question_mean(logits, targets[:, :5], sizes=[2, 3, 1])


def test_the_model_computes_its_loss(desk: str) -> None:
    model, targets = load(desk), torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0, -1.0]])
    ids = torch.arange(20, 32)[None]
    output = model(input_ids=ids, labels=targets)
    assert output.loss.item() == pytest.approx(
        question_mean(output.logits, targets, sizes=[2, 3, 1]).item(), abs=1e-6
    )


@pytest.mark.parametrize(
    "questions",
    [
        [],
        "intent",
        [{"name": "a"}],
        [{"name": "a", "type": "guess"}],
        [{"name": " ", "type": "noul"}],
        [{"name": "a", "type": "noul"}, {"name": "a", "type": "noul"}],
        [{"name": "a", "type": "choice", "options": ["x"]}],
        [{"name": "a", "type": "choice", "options": ["x", "x"]}],
        [{"name": "a", "type": "score", "options": ["low", 3]}],
        [{"name": "a", "type": "noul", "descriptions": ["no"]}],
        [{"name": "a", "type": "noul", "criteria": {}}],
    ],
)
def test_questions_without_a_meaning_are_refused(questions: Any) -> None:
    with raises_problem("config-invalid"):
        PooledClassifierConfig(text_config=Qwen2Config(), questions=questions)


def test_labels_and_problem_type_follow_from_the_questions() -> None:
    config = PooledClassifierConfig(text_config=Qwen2Config(), questions=QUESTIONS)
    assert [*config.id2label.values()] == [
        "intent=card",
        "intent=cash",
        "urgency=can wait",
        "urgency=this week",
        "urgency=today",
        "refund",
    ]
    with raises_problem("config-invalid", "id2label"):
        PooledClassifierConfig(text_config=Qwen2Config(), questions=QUESTIONS, id2label={0: "a", 1: "b"})
    with raises_problem("option-conflict", "problem_type"):
        PooledClassifierConfig(text_config=Qwen2Config(), questions=QUESTIONS, problem_type="ordinal")
    with raises_problem("config-invalid", "questions"):
        PooledClassifierConfig(text_config=Qwen2Config(), problem_type="questions")
