"""Tests of linear models on embeddings, and of the library if it is installed."""

from __future__ import annotations

import doctest
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from qwen_task_heads import load_tokenizer
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference import embeddings
from qwen_task_heads.inference.embeddings import Embedder, EmbeddingClassifier, EmbeddingScorer
from qwen_task_heads.inference.engine_checks import check_engines
from qwen_task_heads.inference.engine_options import EngineSpec
from qwen_task_heads.inference.title_engines import check_title_engines

WORDS = ("sun", "rain", "snow", "wind")
installed = pytest.mark.skipif(
    find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)


def bag(texts: Any) -> Any:
    """A stand-in encoder: counts of words, which a linear model can learn from."""
    return np.array([[text.count(word) for word in WORDS] for text in texts], np.float64)


def texts(count: int, seed: int, *, labels: int = 4) -> list[TextExample]:
    rng = random.Random(seed)
    drawn = [rng.randrange(labels) for _ in range(count)]
    return [
        TextExample(text=f"{WORDS[k]} {rng.choice(WORDS)} {WORDS[k]} {n}", target=k)
        for n, k in enumerate(drawn)
    ]


def test_classes_are_learned_and_probabilities_sum_to_one() -> None:
    found = EmbeddingClassifier(bag, 4).fit(texts(300, 0)).log_scores(test := texts(100, 1))
    assert (found.argmax(1) == [row.target for row in test]).mean() > 0.9
    np.testing.assert_allclose(np.exp(found).sum(1), 1, atol=1e-9)


def test_a_class_without_a_training_row_is_never_chosen_and_scores_are_finite() -> None:
    found = EmbeddingClassifier(bag, 5).fit(texts(200, 0, labels=3)).log_scores(texts(50, 1))
    assert np.isfinite(found).all()
    assert set(found.argmax(1)) <= {0, 1, 2}
    one = [TextExample(text="sun", target=2)] * 3
    assert EmbeddingClassifier(bag, 3).fit(one).log_scores(one).argmax(1).tolist() == [2, 2, 2]


def test_pairs_of_texts_are_read_as_pairs() -> None:
    rng = random.Random(0)
    rows = []
    for n in range(300):
        first = rng.choice(WORDS)
        second = first if n % 2 else rng.choice([word for word in WORDS if word != first])
        rows.append(TextExample(text=first, text_b=second, target=n % 2))
    found = EmbeddingClassifier(bag, 2).fit(rows).log_scores(rows)
    assert (found.argmax(1) == [row.target for row in rows]).mean() == 1.0


def test_scores_of_titles_do_not_depend_on_their_order() -> None:
    rng = random.Random(0)
    pairs = [
        PairExample(chosen=f"sun {rng.choice(WORDS)}", rejected=f"rain {rng.choice(WORDS)}", group=f"g{n}")
        for n in range(100)
    ]
    fitted = EmbeddingScorer(bag).fit(pairs)
    chosen, rejected = (fitted.score([vars(pair)[side] for pair in pairs]) for side in ("chosen", "rejected"))
    assert (chosen > rejected).mean() > 0.9
    turned = [PairExample(chosen=pair.rejected, rejected=pair.chosen, group=pair.group) for pair in pairs]
    gap = EmbeddingScorer(bag).fit(turned).score(["sun"]) - EmbeddingScorer(bag).fit(turned).score(["rain"])
    assert gap[0] == pytest.approx(-(fitted.score(["sun"]) - fitted.score(["rain"]))[0], rel=1e-3)


def test_the_penalty_is_chosen_over_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that name the group predict rows of the same group, and nothing of others."""
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(60), 5)
    table = rng.normal(size=(60, 40))
    truth = rng.integers(2, size=60)[names]
    rows = [TextExample(text=str(n), target=int(t), group=f"g{n}") for n, t in zip(names, truth, strict=True)]
    encode = lambda asked: table[[int(text) for text in asked]]  # noqa: E731
    asked: list[float] = []

    from sklearn import linear_model

    class Watched(linear_model.LogisticRegression):
        def __init__(self, *, C: float = 1.0, fit_intercept: bool = True, max_iter: int = 100) -> None:
            super().__init__(C=C, fit_intercept=fit_intercept, max_iter=max_iter)
            asked.append(C)

    monkeypatch.setattr(linear_model, "LogisticRegression", Watched)
    EmbeddingClassifier(encode, 2).fit(rows)
    over_groups = asked[-1]
    alone = [TextExample(text=row.text, target=row.target) for row in rows]
    EmbeddingClassifier(encode, 2).fit(alone)
    assert over_groups < asked[-1]  # rows of one group on both sides choose a weak penalty


@pytest.mark.skipif(find_spec("sentence_transformers") is not None, reason="sentence-transformers is there")
def test_without_the_library_the_engine_is_refused_with_the_command_to_install_it() -> None:
    spec = EngineSpec("embeddings", "embedded")
    for call in (lambda: Embedder("embedded"), lambda: check_title_engines([spec])):
        with pytest.raises(TaskHeadsError) as caught:
            call()
        [problem] = caught.value.problems
        assert 'pip install "qwen-task-heads[embeddings]"' in problem.fix


def test_an_unknown_encoder_is_refused_before_loading(tmp_path: Path) -> None:
    from qwen_task_heads.data.text_datasets import TextSets
    from qwen_task_heads.labels.label_map import LabelMap

    rows = texts(4, 0)
    sets = TextSets(
        train=rows,
        dev=rows,
        test=[],
        problem_type="single_label_classification",
        lines=[],
        labels=LabelMap(WORDS),
        dev_was_cut=False,
    )
    spec = EngineSpec("embeddings", str(tmp_path / "none"))
    for check in (lambda: check_engines([spec], sets), lambda: check_title_engines([spec])):
        with pytest.raises(TaskHeadsError) as caught:
            check()
        assert str(tmp_path / "none") in caught.value.problems[0].where


@installed
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_encoder_is_loaded_from_its_folder(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("embedded")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encode = Embedder(str(tmp_path), device="cpu")
    found = encode(["sun", "rain", "sun"])
    assert found.shape == (3, 16)
    assert (found[0] == found[2]).all()
    fitted = EmbeddingClassifier(encode, 4).fit(texts(60, 0))
    assert fitted.log_scores(texts(5, 1)).shape == (5, 4)


def test_documented_examples_run() -> None:
    result = doctest.testmod(embeddings)
    assert result.attempted > 3
    assert result.failed == 0
