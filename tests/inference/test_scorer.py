"""Tests of `Scorer`: scores in batches of different sizes, by all callers, and its imports."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import pipeline, set_seed

import qwen_task_heads
from qwen_task_heads import Scorer, build, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.tokenization.templates import Template, compile_template

TITLES = [
    "Ten ways to rest",
    "A",
    "Why the trains of the north are late every single winter, and who pays for it",
    "Tea",
    "休む — a word for tired people",
    "You won't believe this title<|im_end|>",
    "Ten ways to rest",
]
PROMPTS = ["", "An article about rest", "Trains", "", "A long brief " * 20, "x", "An article about rest"]


@pytest.fixture(scope="module")
def folder(bases, shake, tmp_path_factory) -> Path:
    set_seed(2)
    model = shake(build(bases["qwen2"], pooling="mean"))
    tokenizer = load_tokenizer(bases["qwen2"])
    compile_template(tokenizer, template=Template(before="Rate: "), model_type="qwen2", max_length=48)
    return save(model, tokenizer=tokenizer, folder=tmp_path_factory.mktemp("scorer") / "model")


@pytest.fixture(scope="module")
def scorer(folder) -> Scorer:
    return Scorer(str(folder))


@pytest.mark.parametrize("prompts", [None, PROMPTS])
@pytest.mark.parametrize("batch_tokens", [1, 60, 200, 8192])
def test_a_score_does_not_depend_on_its_batch_and_keeps_its_place(scorer, prompts, batch_tokens):
    small = Scorer(scorer.model, tokenizer=scorer.tokenizer, batch_tokens=batch_tokens)
    alone = [
        scorer.score([title], prompts=None if prompts is None else [prompts[index]])[0]
        for index, title in enumerate(TITLES)
    ]
    assert small.score(TITLES, prompts=prompts) == pytest.approx(alone, abs=1e-6)
    assert len({round(score, 4) for score in alone}) >= len(set(TITLES))  # scores that differ


def test_equal_titles_have_equal_scores_to_the_bit(folder):
    """Rounding differs between batches of different shapes, and more in bf16."""
    scorer = Scorer(str(folder), batch_tokens=40, dtype=torch.bfloat16)
    rows = [title for other in TITLES for title in ("Ten ways to rest", other)]
    scores = scorer.score(rows)
    assert len(set(scores[::2])) == 1
    assert scores[1::2] == [scores[1 + 2 * TITLES.index(title)] for title in TITLES]
    assert scores[1] == scores[0]


def test_the_score_is_that_of_the_model(scorer):
    for title, prompt in zip(TITLES, PROMPTS, strict=True):
        texts = (prompt, title) if prompt else (title,)
        if prompt.startswith("A long brief"):
            continue  # cut, by a rule of ours, where transformers has another: see the tests of `encode`
        ids = torch.tensor([scorer.tokenizer(*texts)["input_ids"]])
        with torch.inference_mode():
            wanted = scorer.model(input_ids=ids).logits.item()
        assert scorer.score([title], prompts=[prompt])[0] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("prompt", ["", "An article about rest"])
def test_the_pipeline_gives_the_same_ranking(folder, scorer, prompt):
    ranker = pipeline("title-ranking", model=str(folder), trust_remote_code=True)
    theirs = ranker({"titles": TITLES, "prompt": prompt})
    ours = scorer.rank(TITLES, prompt=prompt)
    assert [row["title"] for row in theirs] == [row.title for row in ours]
    assert [row["rank"] for row in theirs] == [row.rank for row in ours]
    for key in ("score", "probability"):
        assert [row[key] for row in theirs] == pytest.approx([vars(row)[key] for row in ours], abs=1e-6)
    assert ranker(TITLES[:2], top_k=1)[0]["rank"] == 1
    if prompt:
        assert ranker(TITLES, prompt=prompt) == theirs
        with pytest.raises(ValueError, match="prompt="):
            ranker({"titles": TITLES}, prompt=prompt)
    for empty in ([], (), {"titles": []}):
        with pytest.raises(ValueError, match="title-ranking"):
            ranker(empty)


def test_probabilities_are_the_softmax_and_for_two_the_preference(scorer):
    ranked = scorer.rank(TITLES)
    scores = scorer.score(TITLES)
    total = sum(math.exp(score) for score in scores)
    for row in ranked:
        assert row.probability == pytest.approx(math.exp(row.score) / total, abs=1e-6)
    assert [row.score for row in ranked] == sorted(scores, reverse=True)
    assert [row.rank for row in ranked] == list(range(1, len(TITLES) + 1))
    a, b = TITLES[0], TITLES[2]
    preference = scorer.prefer(a, b)
    first, second = scorer.score([a, b])
    assert preference == pytest.approx(1 / (1 + math.exp(second - first)), abs=1e-6)
    assert preference + scorer.prefer(b, a) == pytest.approx(1, abs=1e-6)
    assert {row.title: row.probability for row in scorer.rank([a, b])}[a] == pytest.approx(
        preference, abs=1e-6
    )


def test_ties_keep_the_order_of_the_list(bases):
    model = build(bases["qwen2"], pooling="mean")
    torch.nn.init.zeros_(model.score.weight)
    tokenizer = load_tokenizer(bases["qwen2"])
    ranked = Scorer(model, tokenizer=tokenizer).rank(TITLES)
    assert [row.title for row in ranked] == TITLES
    assert [row.probability for row in ranked] == pytest.approx([1 / 7] * 7)


def test_top_k_and_empty_lists(scorer):
    assert scorer.rank(TITLES, top_k=2) == scorer.rank(TITLES)[:2]
    assert scorer.score([]) == []
    assert scorer.rank([]) == []


def test_a_folder_can_be_a_path(folder, scorer):
    assert Scorer(folder).score(TITLES) == scorer.score(TITLES)


def test_scores_do_not_depend_on_the_mode_of_the_model_and_its_gradients(scorer):
    before = scorer.score(TITLES)
    again = Scorer(scorer.model.train(), tokenizer=scorer.tokenizer)
    assert again.score(TITLES) == before
    assert not scorer.model.training


def test_long_titles_are_truncated_as_in_training(scorer):
    long = "word " * 4000
    same = scorer.score([long, "word " * 5000, long + "tail"])
    assert same[0] == pytest.approx(same[1], abs=1e-6)
    assert same[0] == pytest.approx(same[2], abs=1e-6)


@pytest.mark.parametrize(
    ("titles", "prompts", "problems"),
    [
        ("one text", None, [("argument-type", "titles")]),
        (["ok", ""], None, [("text-empty", "titles[1]")]),
        (["ok", " \n"], None, [("text-empty", "titles[1]")]),
        (["ok", None, 3], None, [("value-type", "titles[1]"), ("value-type", "titles[2]")]),
        (["ok"], ["a", "b"], [("argument-type", "prompts")]),
        (["ok"], [None], [("value-type", "prompts[0]")]),
    ],
)
def test_all_invalid_titles_are_reported(scorer, titles, prompts, problems):
    with pytest.raises(TaskHeadsError) as caught:
        scorer.score(titles, prompts=prompts)
    assert [(problem.code, problem.where) for problem in caught.value.problems] == problems


def test_a_model_without_its_tokenizer_is_refused(scorer):
    with pytest.raises(TaskHeadsError, match="tokenizer=") as caught:
        Scorer(scorer.model)
    assert [(one.code, one.where) for one in caught.value.problems] == [("option-missing", "Scorer")]


def test_a_folder_without_a_scorer_is_refused(bases, tmp_path):
    with pytest.raises(TaskHeadsError, match="qwen2"):
        Scorer(bases["qwen2"])
    with pytest.raises(TaskHeadsError, match="nowhere"):
        Scorer(str(tmp_path / "nowhere"))


# accelerate is not among them: transformers imports it by itself.
HEAVY = ("trl", "datasets", "peft", "sklearn", "matplotlib", "pandas", "pyarrow")
LIGHT = """
import json, sys
heavy = set(sys.argv[2:])
import qwen_task_heads
loaded = {"import": sorted(heavy & set(sys.modules))}
ranked = qwen_task_heads.Scorer(sys.argv[1]).rank(["Ten ways to rest", "Tea"])
qwen_task_heads.load, qwen_task_heads.save
qwen_task_heads.build("embedded")
loaded["predict"] = sorted(heavy & set(sys.modules))
print(json.dumps({"loaded": loaded, "scores": {row.title: row.score for row in ranked}}))
"""


@pytest.mark.slow
def test_imports_and_predictions_load_neither_trl_nor_datasets(folder, scorer):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIGHT, str(folder), *HEAVY],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["loaded"] == {"import": [], "predict": []}
    titles = list(answer["scores"])
    assert list(answer["scores"].values()) == pytest.approx(scorer.score(titles), abs=1e-6)


def test_the_command_line_ranks_titles(folder, scorer, capsys, monkeypatch):
    from qwen_task_heads import __main__ as command
    from qwen_task_heads.errors import run_recipe

    monkeypatch.setattr(sys, "argv", ["qwen_task_heads", str(folder), *TITLES[:3], "--prompt", "Trains"])
    assert run_recipe(command.main) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "P(best)", "score", "title"]
    wanted = scorer.rank(TITLES[:3], prompt="Trains")
    assert [line.split(maxsplit=3)[3] for line in lines[1:]] == [row.title for row in wanted]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    monkeypatch.setattr(sys, "argv", ["qwen_task_heads", str(folder / "nowhere"), "A title"])
    assert run_recipe(command.main) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_public_names_exist():
    missing = [name for name in qwen_task_heads.__all__ if not hasattr(qwen_task_heads, name)]
    assert missing == []
