"""Tests of label scores: the trie compared with every label alone, and the options."""

from __future__ import annotations

import copy
import json
import random
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config, pipeline

from qwen_task_heads import LabelMap, TaskHeadsError, load_tokenizer
from qwen_task_heads.data.few_shot import with_shots
from qwen_task_heads.inference.decision_schema import question, write_decision
from qwen_task_heads.inference.label_scorer import LabelScorer, fallback_reason
from qwen_task_heads.inference.label_trie import logits_of, make_trie, score_alone
from qwen_task_heads.pretrained import locate
from qwen_task_heads.tokenization.label_prompts import FEW_SHOT_INSTRUCTION, AnswerPrompts

SHORT = "Text: "


def titles() -> list[str]:
    rows = (resources.files("qwen_task_heads") / "assets/upworthy/dev.jsonl").read_text("utf-8").splitlines()
    return list(dict.fromkeys(json.loads(row)["chosen"] for row in rows))


def many_labels(count: int) -> LabelMap:
    """Labels of one to three words, many with common prefixes, and some a prefix of others."""
    draw = random.Random(0)
    words = sorted({word for title in titles()[:40] for word in title.split()})[:60]
    names = {" ".join(draw.sample(words, draw.randint(1, 3))) for _ in range(4 * count)}
    first = sorted(names)[0].split()[0]
    return LabelMap(tuple(sorted(names | {first, f"{first} {first}"}))[:count])


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(locate("embedded"), dtype=torch.float32).eval()


def scorer(model: Any, labels: LabelMap, **options: Any) -> LabelScorer:
    prompts = AnswerPrompts(
        load_tokenizer("embedded"), labels, model_type="qwen2", instruction=options.pop("instruction", SHORT)
    )
    return LabelScorer(model, prompts=prompts, **options)


@torch.inference_mode()
def score_by_cache(model: Any, rows: list[list[int]], answers: list[list[int]]) -> torch.Tensor:
    """Compute as `score_alone` with the cache of transformers: the prompt, then all answers in a batch."""
    found = []
    lengths = torch.tensor([len(answer) for answer in answers])
    width = int(lengths.max())
    tokens = torch.tensor([answer + [0] * (width - len(answer)) for answer in answers])  # (L, T)
    for row in rows:
        prompt = model(input_ids=torch.tensor([row]), use_cache=True, logits_to_keep=1)
        prompt.past_key_values.batch_repeat_interleave(len(answers))
        first = prompt.logits.expand(len(answers), -1, -1)
        later = model(input_ids=tokens[:, :-1], past_key_values=prompt.past_key_values).logits
        logits = torch.cat([first, later], dim=1)  # (L, T, V)
        highest = logits.amax(-1, keepdim=True)
        mass = (logits - highest).exp().sum(-1, dtype=torch.float64).log() + highest[..., 0]
        scores = logits.gather(2, tokens[..., None])[..., 0] - mass
        found.append(scores.masked_fill(torch.arange(width) >= lengths[:, None], 0).sum(1))
    return torch.stack(found)


def compare(model: Any, *, texts: int, labels: int, peer: Any = score_alone, **options: Any) -> None:
    ours = scorer(model, many_labels(labels), **options)
    found = ours.log_scores(titles()[:texts])
    rows = ours.prompts.encode(titles()[:texts]).input_ids
    wanted = peer(model, rows, ours.answers)
    assert torch.allclose(found, wanted, atol=1e-5, rtol=0)
    assert found.argmax(1).tolist() == wanted.argmax(1).tolist()


def test_the_trie_gives_the_scores_of_every_label_alone(model: Any) -> None:
    compare(model, texts=6, labels=40)
    compare(model, texts=3, labels=40, batch_tokens=20)


@pytest.mark.slow
def test_119_labels_of_200_texts(model: Any) -> None:
    compare(model, texts=200, labels=119, peer=score_by_cache)


def test_families_and_a_shared_instruction(model: Any) -> None:
    size = model.config.vocab_size
    common = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    for config in (Qwen3Config(**common, **heads, head_dim=8), LlamaConfig(**common, **heads)):
        other = AutoModelForCausalLM.from_config(config).eval()
        other.lm_head.weight.data.mul_(20)  # of random weights all labels are alike
        assert fallback_reason(other) is None
        compare(other, texts=4, labels=10, instruction="One of {labels}. Text: ")


def test_a_family_without_masks_of_four_dimensions_scores_labels_alone(model: Any) -> None:
    labels = many_labels(6)
    wanted = scorer(model, labels).log_scores(titles()[:2])
    ours = scorer(model, labels)
    ours.fallback_reason = "as if"
    assert torch.allclose(ours.log_scores(titles()[:2]), wanted, atol=1e-5, rtol=0)


def test_the_probabilities_of_all_answers_sum_to_at_most_one(model: Any) -> None:
    ours = scorer(model, LabelMap(("a", "a b", "b")))
    mass = ours.log_scores(titles()[:3]).exp().sum(1)
    assert ((mass > 0) & (mass < 1)).all()
    assert torch.allclose(ours.probabilities(titles()[:3]).sum(1), torch.ones(3, dtype=torch.float64))


def test_a_label_that_is_a_prefix_of_another_has_its_own_score(model: Any) -> None:
    trie = make_trie([[5, 1], [5, 6, 1]])
    assert trie.tokens.tolist() == [5, 6]
    assert trie.ancestors.tolist() == [[True, False], [True, True]]
    assert trie.lengths.tolist() == [2, 3]
    assert len(trie.edges) == 4


def test_length_normalized_is_the_mean_over_tokens(model: Any) -> None:
    labels = many_labels(10)
    plain = scorer(model, labels)
    mean = scorer(model, labels, length_normalized=True).log_scores(titles()[:2])
    sizes = torch.tensor([len(answer) for answer in plain.answers])
    assert torch.allclose(mean, plain.log_scores(titles()[:2]) / sizes)


def test_calibration_gives_texts_without_content_no_preference(model: Any) -> None:
    ours = scorer(model, many_labels(5), calibrate=True)
    wanted = scorer(model, many_labels(5)).log_scores(["N/A", "[MASK]", "-"]).softmax(-1).mean(0).log()
    plain = scorer(model, many_labels(5)).log_scores(titles()[:2])
    assert torch.allclose(ours.log_scores(titles()[:2]), plain - wanted, atol=1e-5)


def test_calibration_of_a_label_too_long_for_a_probability(model: Any) -> None:
    labels = LabelMap(("sport", ", ".join(["trade fair"] * 60)))
    found = scorer(model, labels, calibrate=True).probabilities(titles()[:2])
    assert found.isfinite().all()
    assert torch.allclose(found.sum(1), torch.ones(2, dtype=torch.float64))


def test_half_precision_has_the_last_matrix_in_fp32(model: Any) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    ours = scorer(half, many_labels(20))
    found = ours.log_scores(titles()[:4])
    [row, *_] = ours.prompts.encode(titles()[:4]).input_ids
    for place in range(20):
        answer = ours.answers[place]
        states = half.model(input_ids=torch.tensor([[*row, *answer]])).last_hidden_state.float()
        scores = (states @ half.lm_head.weight.float().T)[0, len(row) - 1 : -1].double().log_softmax(-1)
        wanted = scores.gather(1, torch.tensor(answer)[:, None]).sum()
        assert abs(found[0, place] - wanted) < 0.2  # states of another batch, rounded to 8 bits
    logits = logits_of(half, input_ids=torch.tensor([row]))
    assert not torch.equal(logits, logits.bfloat16().float())  # no score is a step of bf16


def test_a_family_that_scales_its_logits_computes_them_itself() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "minicpm3", vocab_size=64, hidden_size=64, dim_model_base=16, intermediate_size=64,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, q_lora_rank=16,
        kv_lora_rank=16, qk_nope_head_dim=16,
        qk_rope_head_dim=16, v_head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(logits_of(model, input_ids=ids), model(input_ids=ids).logits)


@pytest.mark.parametrize("fused", [True, False])
def test_cached_values_are_computed_again_after_a_training_step(model: Any, fused: bool) -> None:
    """A fused optimizer, the default one, does not update torch's version counter."""
    trained = copy.deepcopy(model)
    options = {"calibrate": True, "instruction": "What is it about? " * 20 + "{labels}"}
    ours = scorer(trained, many_labels(5), **options)
    before = ours.log_scores(titles()[:2])
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2, fused=fused)
    trained(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.step()
    found = ours.log_scores(titles()[:2])
    assert not torch.allclose(found, before, atol=1e-3)
    assert torch.equal(found, scorer(trained, many_labels(5), **options).log_scores(titles()[:2]))


def test_the_order_of_candidates_does_not_change_scores(model: Any) -> None:
    ours = scorer(model, many_labels(5))
    one, other = many_labels(5).names[:2]
    passes: list[Any] = []
    handle = model.model.embed_tokens.register_forward_hook(lambda *call: passes.append(call))
    counts = []
    for second in ((one, other), (one, other), (other, one)):  # the first call encodes the instruction too
        ours.log_scores([titles()[0]] * 2, candidates=[(one, other), second])
        counts.append(len(passes))
    handle.remove()
    assert counts[2] - counts[1] == counts[1] - counts[0]


def test_rotations_that_depend_on_the_length_have_no_trie(model: Any) -> None:
    dynamic = copy.deepcopy(model.config)
    dynamic.rope_parameters = {**dynamic.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
    with torch.device("meta"):
        other = AutoModelForCausalLM.from_config(dynamic)
    assert "depends on the length" in str(fallback_reason(other))
    assert fallback_reason(model) is None


def test_cached_values_depend_on_the_weights(model: Any) -> None:
    changed, options = copy.deepcopy(model), {"instruction": "Which of these is it?\n", "calibrate": True}
    ours = scorer(changed, many_labels(5), **options)
    before = ours.log_scores(titles()[:2])
    with torch.no_grad():
        for layer in changed.model.layers:
            layer.mlp.down_proj.weight.mul_(0.5)
    after = ours.log_scores(titles()[:2])
    assert not torch.allclose(before, after, atol=1e-2)
    assert torch.equal(after, scorer(changed, many_labels(5), **options).log_scores(titles()[:2]))


def test_each_text_is_scored_with_its_own_examples(model: Any) -> None:
    labels = with_shots(many_labels(5), (("a text", many_labels(5).names[0]),))
    ours = scorer(model, labels, instruction=FEW_SHOT_INSTRUCTION)
    shots = [((title, labels.names[place]),) for place, title in enumerate(titles()[5:8])]
    found = ours.log_scores(titles()[:3], shots=shots)
    for place, shown in enumerate(shots):
        alone = scorer(model, with_shots(labels, shown), instruction=FEW_SHOT_INSTRUCTION)
        assert torch.allclose(found[place], alone.log_scores(titles()[place : place + 1])[0], atol=1e-5)
    assert not torch.allclose(found, ours.log_scores(titles()[:3]), atol=1e-3)
    with pytest.raises(TaskHeadsError) as caught:
        scorer(model, labels, instruction=FEW_SHOT_INSTRUCTION, calibrate=True).log_scores(
            ["a"], shots=shots[:1]
        )
    assert [(one.code, one.where) for one in caught.value.problems] == [("option-conflict", "calibrate")]


def test_the_instruction_is_encoded_once_for_all_calls(model: Any) -> None:
    own = copy.deepcopy(model)
    ours = scorer(own, many_labels(20), instruction="One of {labels}. Text: ")
    passed: list[int] = []
    own.model.register_forward_pre_hook(
        lambda module, args, kwargs: passed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    known = len(ours.prompts.prefix)
    found = [ours.log_scores([title])[0] for title in titles()[:3]]
    assert passed.count(known) == 1
    assert len(passed) == 7  # with the rest of the prompt and the labels of each text
    assert torch.allclose(torch.stack(found), ours.log_scores(titles()[:3]), atol=1e-5, rtol=0)
    with torch.no_grad():
        own.model.layers[0].mlp.up_proj.weight.add_(0.05)
    fresh = scorer(own, many_labels(20), instruction="One of {labels}. Text: ")
    assert torch.allclose(ours.log_scores(titles()[:1]), fresh.log_scores(titles()[:1]), atol=1e-5, rtol=0)
    assert not torch.allclose(ours.log_scores(titles()[:1])[0], found[0], atol=1e-3)


def test_only_candidates_of_a_row_are_predicted(model: Any) -> None:
    labels = many_labels(8)
    ours = scorer(model, labels)
    chosen = [labels.names[2:4], labels.names]
    found = ours.probabilities(titles()[:2], candidates=chosen)
    assert found[0].nonzero()[:, 0].tolist() == [2, 3]
    assert (found[1] > 0).all()
    alone = ours.probabilities(titles()[:1], candidates=[labels.names[2:4][::-1]])
    assert torch.allclose(found[:1], alone)
    with pytest.raises(TaskHeadsError, match="'unheard'") as caught:
        ours.log_scores(titles()[:3], candidates=[("unheard",), None, ()])
    assert [(problem.code, problem.where) for problem in caught.value.problems] == [
        ("label-unknown", "candidates[0]"),
        ("value-missing", "candidates[2]"),
    ]
    with pytest.raises(TaskHeadsError) as caught:
        ours.log_scores(["A match", " "])
    assert [(one.code, one.where) for one in caught.value.problems] == [("text-empty", "texts[1]")]
    one, other = labels.names[:2]
    with pytest.raises(TaskHeadsError, match=re.escape(f"'{one}' twice")) as caught:
        ours.log_scores(titles()[:3], candidates=[(one, other, one), None, one])
    assert [(problem.code, problem.where) for problem in caught.value.problems] == [
        ("label-conflict", "candidates[0]"),
        ("argument-type", "candidates[2]"),
    ]
    for short in ([], [None]):
        with pytest.raises(TaskHeadsError, match="for 2 texts") as caught:
            ours.predict(titles()[:2], candidates=short)
        assert [problem.code for problem in caught.value.problems] == ["argument-type"]


def test_invalid_labels_and_models_of_other_kinds_are_refused_before_loading(tmp_path: Path) -> None:
    with pytest.raises(TaskHeadsError, match=r"\['good', 'bad'\]") as caught:
        LabelScorer.from_pretrained("no/such-model", labels=["good", "bad"])  # type: ignore[arg-type]
    assert [(one.code, one.where) for one in caught.value.problems] == [("argument-type", "labels")]
    for config, fix in (
        ({"model_type": "title_scorer"}, "Scorer"),
        ({"model_type": "pooled_classifier"}, "Scorer"),
        (
            {"model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"]},
            "text-classification",
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(TaskHeadsError, match=fix):
            LabelScorer.from_pretrained(str(tmp_path), labels=LabelMap(("good", "bad")))


def test_500_predictions_are_all_labels(model: Any) -> None:
    labels = LabelMap(("sport", "trade", "news"))
    found = scorer(model, labels).probabilities([f"{n} {text}" for n, text in enumerate(titles() * 9)][:500])
    assert set(found.argmax(1).tolist()) <= {0, 1, 2}
    assert torch.isfinite(found).all()


def test_the_decision_pipeline_of_transformers_gives_the_same_probabilities(
    model: Any, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer("embedded")
    words = [
        word
        for word in ("sport", "war", "food", "the", "a", "news")
        if len(tokenizer(word)["input_ids"]) == 1
    ]
    labels = LabelMap(tuple(words))
    ours = scorer(model, labels, instruction='One "of" {labels}:\n')
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_decision(tmp_path, prompts=ours.prompts)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    decide = pipeline("decision", model=stock, tokenizer=AutoTokenizer.from_pretrained(tmp_path))
    for text in titles()[:3]:
        answer = decide({"state": text, "questions": {"label": question(labels)}})["label"]
        wanted = ours.probabilities([text])[0].tolist()
        assert list(answer["probabilities"].values()) == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(TaskHeadsError, match="2 tokens") as caught:
        write_decision(tmp_path, prompts=scorer(model, LabelMap(("a", "a b"))).prompts)
    assert [(one.code, one.where) for one in caught.value.problems] == [("label-invalid", "label 'a b'")]


def test_the_end_is_scored_after_labels_of_several_tokens_only(model: Any, tmp_path: Path) -> None:
    """A label of several tokens may be the beginning of another one."""
    one, several = LabelMap(("the", "a")), LabelMap(("the", "the a"))
    assert [scorer(model, labels).with_end for labels in (one, several)] == [False, True]
    end = scorer(model, one).prompts.end
    assert {len(ids) for ids in scorer(model, one).answers} == {1}
    assert {ids[-1] for ids in scorer(model, one, with_end=True).answers} == {end}
    texts = titles()[:3]
    wanted = scorer(model, several, with_end=True).log_scores(texts)
    torch.testing.assert_close(scorer(model, several).log_scores(texts), wanted)
    assert not torch.allclose(scorer(model, several, with_end=False).log_scores(texts), wanted)


def test_a_saved_model_keeps_how_it_was_measured(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    load_tokenizer("embedded").save_pretrained(tmp_path)
    prompts = scorer(model, LabelMap(("the", "a"))).prompts
    for value, wanted in ((True, True), (False, False), (None, False)):
        prompts.save(tmp_path, with_end=value)
        assert LabelScorer.from_pretrained(str(tmp_path)).with_end is wanted
        assert LabelScorer.from_pretrained(str(tmp_path), with_end=True).with_end is True
    prompts.save(tmp_path, with_end=False)
    assert LabelScorer.from_pretrained(str(tmp_path), labels=LabelMap(("the", "the a"))).with_end is True
    path = tmp_path / "label_prompt.json"
    content = json.loads(path.read_text())
    del content["with_end"]  # as older versions wrote it, which scored the end of all labels
    path.write_text(json.dumps(content))
    assert LabelScorer.from_pretrained(str(tmp_path)).with_end is True


def test_labels_that_the_decision_pipeline_would_encode_as_other_tokens_are_refused(tmp_path: Path) -> None:
    """After "Answer: " a label has a leading blank and another token; the pipeline adds no blank."""
    tokenizer = load_tokenizer("embedded")
    words = [word for word in ("the", "a", "of", "to", "in") if len(tokenizer(" " + word)["input_ids"]) == 1]
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\\n'", "assistant\\nAnswer: '")
    prompts = AnswerPrompts(tokenizer, LabelMap(tuple(words)), model_type="qwen2", instruction=SHORT)
    assert [len(ids) for ids in prompts.answers] == [1] * len(words)
    with pytest.raises(TaskHeadsError) as caught:
        write_decision(tmp_path, prompts=prompts)
    assert [(one.code, one.where) for one in caught.value.problems] == [("label-invalid", "chat template")]
    assert not (tmp_path / "decision.json").exists()


def test_a_saved_prompt_is_loaded_with_its_labels(model: Any, tmp_path: Path) -> None:
    labels = LabelMap(("sport", "trade"), descriptions=("games", "goods"))
    first = scorer(model, labels, instruction="{descriptions}\n")
    first.prompts.max_length = 200  # not the default
    model.save_pretrained(tmp_path)
    load_tokenizer("embedded").save_pretrained(tmp_path)
    first.prompts.save(tmp_path)
    again = LabelScorer.from_pretrained(str(tmp_path), dtype=torch.float32)
    assert again.prompts.labels == labels
    assert torch.allclose(again.log_scores(titles()[:2]), first.log_scores(titles()[:2]))
    first.prompts.save(tmp_path, length_normalized=True)
    assert LabelScorer.from_pretrained(str(tmp_path)).length_normalized
    asked = LabelScorer.from_pretrained(str(tmp_path), instruction="Of {labels}:\n").prompts
    assert (asked.labels, asked.max_length) == (labels, first.prompts.max_length)
    [answer] = again.predict(["A match"], top_k=1)
    assert answer.label in labels.names
    assert len(answer.ranked) == 1
    (tmp_path / "label_prompt.json").write_text("{}")
    with pytest.raises(TaskHeadsError) as caught:
        LabelScorer.from_pretrained(str(tmp_path))
    assert caught.value.problems[0].where.endswith("label_prompt.json")
    (tmp_path / "label_prompt.json").unlink()
    with pytest.raises(TaskHeadsError) as caught:
        LabelScorer.from_pretrained(str(tmp_path))
    assert [(one.code, one.where) for one in caught.value.problems] == [("option-missing", str(tmp_path))]
