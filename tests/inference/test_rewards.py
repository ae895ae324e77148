"""Tests of rewards from a title scorer: units, and completions without a title."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qwen_task_heads import Scorer, TitleReward, build, load_tokenizer, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference.rewards import CONSTANTS, Paid, reward_constants

TITLES = ["Ten ways to rest", "A man walks into a bar and what he finds there is a surprise", "休む", "Rest"]
KNOWN = {"reward_mean": 0.5, "reward_std": 2.0, "reward_length_mean": 30.0, "reward_length_slope": 0.05}


@pytest.fixture(scope="module")
def scorer(bases):
    torch.manual_seed(0)
    model = build(bases["qwen2"], pooling="mean")
    torch.nn.init.normal_(model.score.weight, std=3.0)
    model.config.update(KNOWN)
    return Scorer(model, tokenizer=load_tokenizer(bases["qwen2"]), progress=False)


def test_a_reward_is_a_score_in_standard_deviations_without_its_length_bias(scorer):
    scores = np.array(scorer.score(TITLES))
    lengths = np.array([len(title) for title in TITLES])
    prompts = ["Write a title."] * 4
    wrapped = [f"<think>x</think><title>{title}</title>" for title in TITLES]
    assert TitleReward(scorer)(prompts, wrapped) == pytest.approx((scores - 0.5) / 2, abs=1e-5)
    raw = TitleReward(scorer, normalise=False)
    assert raw(prompts=prompts, completions=TITLES) == pytest.approx(scores, abs=1e-5)
    for share in (0.5, 1.0):
        expected = (scores - share * 0.05 * (lengths - 30) - 0.5) / 2
        assert TitleReward(scorer, length_penalty=share)(prompts, TITLES) == pytest.approx(expected, abs=1e-5)


def test_a_completion_without_a_title_has_the_lowest_reward_and_all_are_finite(scorer):
    completions = ["!!! 🎉", "<title>…</title>", "<think>never ends", "\u200b", *TITLES]
    of_titles = TitleReward(scorer)([""] * 4, TITLES)
    least = min(of_titles)
    for lowest in (least - 100, least + 3):
        rewards = TitleReward(scorer, lowest=lowest)([""] * 8, completions)
        assert rewards[:4] == pytest.approx([min(lowest, least - 1)] * 4)
        assert rewards[4:] == pytest.approx(of_titles)
        assert all(isinstance(reward, float) and math.isfinite(reward) for reward in rewards)
    assert TitleReward(scorer)([""], ["<title> </title>"]) == [-5.0]
    assert TitleReward(scorer)([], []) == []


def problems_of(caught):
    return [(problem.code, problem.where) for problem in caught.value.problems]


def test_equal_titles_are_scored_once_with_the_contexts_of_the_option(scorer, monkeypatch):
    seen = []
    score = scorer.score
    monkeypatch.setattr(scorer, "score", lambda *a, **k: seen.append((a, k)) or score(*a, **k))
    talk = [{"role": "system", "content": "no"}, {"role": "user", "content": "An article."}]
    metrics = {}
    call = {
        "prompts": [talk, talk, talk],
        "completions": [[{"role": "assistant", "content": "Rest"}]] * 2 + [""],
        "completion_ids": [[1], [1], []],
        "article": ["A", "B", "C"],
        "trainer_state": None,
        "log_metric": metrics.__setitem__,
    }
    TitleReward(scorer)(**call)
    assert seen[-1] == ((["Rest"],), {"prompts": None})
    TitleReward(scorer, context="prompt")(**call)
    assert seen[-1] == ((["Rest"],), {"prompts": ["An article."]})
    rewards = TitleReward(scorer, context="article", normalise=False, lowest=-999)(**call)
    assert seen[-1] == ((["Rest", "Rest"],), {"prompts": ["A", "B"]})
    assert rewards == pytest.approx([*score(["Rest", "Rest"], prompts=["A", "B"]), -999])
    assert metrics == {"title_characters": pytest.approx(8 / 3), "without_title": pytest.approx(1 / 3)}
    with pytest.raises(TaskHeadsError, match="'text'") as caught:
        TitleReward(scorer, context="text")(**call)
    assert problems_of(caught) == [("column-missing", "context")]
    assert "prompt, article" in caught.value.problems[0].expected
    with pytest.raises(TaskHeadsError, match="1 prompts for 2 completions") as caught:
        TitleReward(scorer, context="prompt")(["a"], ["b", "c"])
    assert problems_of(caught) == [("argument-type", "TitleReward")]


def test_the_best_of_n_is_a_title_and_the_first_of_ties(scorer):
    reward = TitleReward(scorer)
    best = reward.best_of_n(["", *TITLES, *TITLES])
    assert best.rewards == reward([""] * 9, ["", *TITLES, *TITLES])
    assert best.index == int(np.argmax(best.rewards[1:])) + 1
    assert best.title == TITLES[best.index - 1]
    assert TitleReward(scorer, lowest=1e6).best_of_n(["", "A"]).index == 1  # no title is never the best
    with pytest.raises(TaskHeadsError) as caught:
        reward.best_of_n(["", "<title></title>"])
    assert problems_of(caught) == [("value-missing", "best_of_n")]


def test_a_value_that_is_not_a_list_of_completions_is_refused(scorer):
    reward = TitleReward(scorer)
    for call in (reward.best_of_n, lambda given: reward(["p"], given)):
        for given in ("A title", {"role": "assistant", "content": "A"}, None, 3):
            with pytest.raises(TaskHeadsError) as caught:
                call(given)
            assert [problem.code for problem in caught.value.problems] == ["argument-type"]
        with pytest.raises(TaskHeadsError) as caught:
            call([None, "A title", 3, ["A"]])
        assert [problem.where[-3:] for problem in caught.value.problems] == ["[0]", "[2]", "[3]"]


def test_the_rewards_of_the_last_call_are_kept(scorer):
    reward = TitleReward(scorer)
    talk = [{"role": "system", "content": "no"}, {"role": "user", "content": "Write."}]
    rewards = reward([talk, "Write."], [[{"role": "assistant", "content": "<title>A</title>"}], ""])
    assert reward.last == [
        Paid("Write.", "A", rewards[0], "<title>A</title>"),
        Paid("Write.", "", rewards[1], ""),
    ]


def test_constants_are_saved_in_the_config_and_validated(scorer, bases, tmp_path):
    folder = save(scorer.model, tokenizer=scorer.tokenizer, folder=tmp_path / "scorer")
    by_name = TitleReward(str(folder), device="cpu", batch_tokens=64)
    assert by_name(["p"] * 4, TITLES) == pytest.approx(TitleReward(scorer)(["p"] * 4, TITLES), abs=1e-5)
    assert by_name.__name__ == "title_reward"
    tokenizer = load_tokenizer(bases["qwen2"])
    plain = Scorer(build(bases["qwen2"]), tokenizer=tokenizer, progress=False)
    with pytest.raises(TaskHeadsError, match="reward_mean") as caught:
        TitleReward(plain)
    assert [problem.code for problem in caught.value.problems] == ["config-invalid"]
    assert "normalise=False" in caught.value.problems[0].fix
    with pytest.raises(TaskHeadsError, match="reward_length_slope"):
        TitleReward(plain, normalise=False, length_penalty=1.0)
    plain.model.config.update({**KNOWN, "reward_std": 0.0})
    with pytest.raises(TaskHeadsError, match="reward_std 0"):
        TitleReward(plain)
    assert len(TitleReward(plain, normalise=False)(["p"], ["A"])) == 1
    with pytest.raises(TaskHeadsError, match="nan") as caught:
        TitleReward(scorer, lowest=float("nan"))
    assert problems_of(caught) == [("option-range", "lowest")]
    for share in (-1, 5, "x", None, math.nan):
        with pytest.raises(TaskHeadsError) as caught:
            TitleReward(scorer, length_penalty=share)
        assert problems_of(caught) == [("option-range", "length_penalty")]
    with pytest.raises(TaskHeadsError) as caught:
        TitleReward(scorer, length_penalty="x", lowest="y")
    assert len(caught.value.problems) == 2
    classifier = build(bases["qwen2"], task="pooled_classifier", labels=["a", "b"])
    with pytest.raises(TaskHeadsError) as caught:
        TitleReward(Scorer(classifier, tokenizer=tokenizer))
    assert problems_of(caught) == [("model-type", "TitleReward")]


def test_constants_are_those_of_the_titles():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 90, 200)
    scores = 1.5 + 0.03 * lengths + rng.normal(size=200)
    found = reward_constants(scores, lengths)
    assert tuple(found) == CONSTANTS
    slope, _ = np.polyfit(lengths, scores, 1)
    assert list(found.values()) == pytest.approx(
        [scores.mean(), scores.std(), lengths.mean(), slope], abs=1e-6
    )
    assert reward_constants([1.0, 2.0], [7, 7])["reward_length_slope"] == 0.0
    for scores, lengths in (([], []), ([1.0], [1, 2]), ([math.nan], [1])):
        with pytest.raises(TaskHeadsError, match="reward_constants"):
            reward_constants(scores, lengths)
