"""Tests of title engines: a trained scorer, and the likelihood of a title under a base model."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen_task_heads import Scorer, build, load_tokenizer, save
from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.generators import load_generator
from qwen_task_heads.inference import engine_options, title_engines
from qwen_task_heads.inference.engine_options import EngineSpec, check_task, parse_engines, task_of
from qwen_task_heads.inference.title_engines import TitleLikelihood, check_title_engines, open_title_engine
from qwen_task_heads.tokenization.templates import Template, compile_template

PAIRS = [
    PairExample(chosen="You will not believe this", rejected="The budget", group="a"),
    PairExample(
        chosen="A plain title", rejected="Another rather longer title of it", prompt="News of the day"
    ),
    PairExample(chosen="Rain", rejected="Sun", prompt="Weather"),
]


@pytest.fixture(scope="module")
def likelihood() -> TitleLikelihood:
    return TitleLikelihood(load_generator("embedded"), load_tokenizer("embedded"), max_length=64)


def by_hand(one: TitleLikelihood, title: str, prompt: str) -> float:
    """Compute the mean log-probability token by token, one row at a time."""
    encode = lambda text: one.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    start = one.tokenizer.bos_token_id
    start = one.tokenizer.eos_token_id if start is None else start
    before = encode(f"{prompt}\n") if prompt else [start]
    ids = [*before, *encode(title)]
    with torch.no_grad():
        log_p = one.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return float(np.mean([float(log_p[place - 1, ids[place]]) for place in range(len(before), len(ids))]))


def test_a_title_has_the_mean_log_probability_of_its_tokens(likelihood: TitleLikelihood) -> None:
    found = likelihood.pairs(PAIRS)
    assert found.shape == (3, 2)
    for row, pair in zip(found, PAIRS, strict=True):
        wanted = [by_hand(likelihood, title, pair.prompt) for title in (pair.chosen, pair.rejected)]
        np.testing.assert_allclose(row, wanted, rtol=1e-5)


def test_a_prompt_changes_a_score_and_a_batch_does_not(likelihood: TitleLikelihood) -> None:
    with_prompt, without = likelihood.score(["Rain", "Rain"], prompts=["Weather", ""])
    assert with_prompt != without
    small = TitleLikelihood(likelihood.model, likelihood.tokenizer, max_length=64, batch_tokens=1)
    np.testing.assert_allclose(small.pairs(PAIRS), likelihood.pairs(PAIRS), rtol=1e-5)


def test_long_rows_are_truncated_and_counted(likelihood: TitleLikelihood) -> None:
    short = TitleLikelihood(likelihood.model, likelihood.tokenizer, max_length=8)
    pairs = [PairExample(chosen="A " * 50, rejected="B", prompt="P " * 50), PAIRS[2]]
    assert np.isfinite(short.pairs(pairs)).all()
    [line] = short.truncation_messages(pairs)
    assert line.startswith("1 of 2 pairs")
    assert likelihood.truncation_messages(PAIRS) == []


@pytest.fixture(scope="module")
def scorer(bases: dict[str, str], shake: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = build(bases["qwen2"], pooling="mean"), load_tokenizer(bases["qwen2"])
    compile_template(tokenizer, template=Template(), model_type="qwen2", max_length=48)
    return save(shake(model), tokenizer=tokenizer, folder=tmp_path_factory.mktemp("titles") / "run")


def test_the_engine_of_a_trained_scorer_gives_its_scores(scorer: Path) -> None:
    engine = open_title_engine(EngineSpec("scorer", str(scorer)), [])
    found, own = engine.scores(PAIRS), Scorer(str(scorer))
    prompts = [pair.prompt for pair in PAIRS]
    for side, name in enumerate(("chosen", "rejected")):
        wanted = own.score([vars(pair)[name] for pair in PAIRS], prompts=prompts)
        np.testing.assert_allclose(found[:, side], wanted, rtol=1e-5, atol=1e-6)


def test_all_sources_without_a_scorer_are_refused(scorer: Path, tmp_path: Path) -> None:
    specs = [EngineSpec("scorer", "embedded"), EngineSpec("zero_shot", str(tmp_path / "none"))]
    with pytest.raises(TaskHeadsError) as caught:
        check_title_engines([*specs, EngineSpec("scorer", str(scorer))])
    wheres = [problem.where for problem in caught.value.problems]
    assert wheres == ["scorer=embedded", str(tmp_path / "none")]
    assert caught.value.problems[0].code == "model-type"


def test_engines_imply_their_task_and_others_are_refused() -> None:
    specs = parse_engines(["scorer=a", "zero_shot=b"])
    assert task_of(specs) == "titles"
    assert task_of(parse_engines(["head=a", "embeddings=b"])) == "texts"
    assert task_of(parse_engines(["zero_shot=a", "embeddings=b"])) is None
    check_task(specs, "titles", {"figure": "accuracy", "labels": None})
    with pytest.raises(TaskHeadsError) as caught:
        check_task(
            parse_engines(["scorer=a", "head=b"]), "titles", {"labels": "l.yaml", "figure": "macro_f1"}
        )
    assert [problem.where for problem in caught.value.problems] == ["head=b", "--labels", "--figure"]
    with pytest.raises(TaskHeadsError) as caught:
        check_task(specs, "texts", {"labels": "l.yaml"})
    assert [problem.where for problem in caught.value.problems] == ["scorer=a"]


@pytest.mark.parametrize("module", [title_engines, engine_options])
def test_documented_examples_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
