"""The contribution of a word is the value with it minus the value without it."""

from __future__ import annotations

import pytest
from demo_models import KINDS, scorer_of
from hypothesis import given
from hypothesis import strategies as st

from qwen_task_heads.demo.attribution import attribute_words, split_words

TEXT = "  My card's payment\nwas declined twice, why? "


def value_of(scorer, text: str, label: str, second: str | None) -> float:
    [answer] = scorer.predict([text], text_pairs=None if second is None else [second])
    return (answer.probabilities or answer.scores)[label]


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_contributions_equal_two_predictions(kind: str) -> None:
    scorer, second = scorer_of(kind), "A second text" if kind == "pairs" else None
    found = attribute_words(scorer, TEXT, text_pair=second)
    words = [word for word, _ in found.words]
    assert "".join(words) == TEXT.lstrip()
    assert [word.strip() for word in words] == TEXT.split()
    [answer] = scorer.predict([TEXT], text_pairs=None if second is None else [second])
    values = answer.probabilities or answer.scores
    assert found.label == (next(iter(values)) if kind.startswith("score") else max(values, key=values.get))
    assert found.value == pytest.approx(values[found.label], abs=1e-6)
    for place, (_, contribution) in enumerate(found.words):
        rest = "".join(words[:place] + words[place + 1 :]).rstrip()
        without = value_of(scorer, rest, found.label, second)
        assert contribution == pytest.approx(found.value - without, abs=1e-5)
    assert max(abs(contribution) for _, contribution in found.words) > 1e-3
    word, contribution = found.strongest
    assert contribution == max((change for _, change in found.words), key=abs)
    assert word in TEXT.split()


@given(st.text())
def test_words_joined_are_the_text(text: str) -> None:
    words = split_words(text)
    assert "".join(words) == text.lstrip()
    assert all(word.strip() for word in words)


def test_scripts_without_spaces_are_split_by_characters() -> None:
    assert split_words("国足2:0获胜。Go! 東京タワー") == [
        "国", "足", "2:0", "获", "胜", "。Go! ", "東", "京", "タ", "ワ", "ー",
    ]  # fmt: skip
