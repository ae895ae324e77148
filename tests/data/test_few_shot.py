"""Few-shot examples: the choice of rows, their order, and the exclusion of the text to classify."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.few_shot import choose_shots, shots_line, with_shots
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.sources.keys import text_key
from qwen_task_heads.tokenization.templates import label_template

LABELS = LabelMap(("sport", "trade", "war"))
WORDS = {
    0: ["match", "goal", "team", "won"],
    1: ["ship", "price", "goods", "sold"],
    2: ["army", "tank", "front"],
}


def rows(count: int, seed: int = 0) -> list[TextExample]:
    """Return texts of three to eight words of their label."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        label = number % 3
        words = [rng.choice(WORDS[label]) for _ in range(rng.randint(3, 8))]
        made.append(TextExample(text=f"{' '.join(words)} {number}", target=label))
    return made


def example(text: str, target: int = 0) -> TextExample:
    return TextExample(text=text, target=target)


def test_balance_chooses_k_examples_of_every_label_in_turn() -> None:
    (shots,) = choose_shots(rows(90), LABELS, k=3)
    assert [label for _, label in shots] == ["sport", "trade", "war"] * 3
    label_of = {row.text: LABELS.names[row.target] for row in rows(90)}
    assert all(label_of[text] == label for text, label in shots)
    assert len(set(shots)) == 9


def test_total_k_is_distributed_evenly_and_the_seed_draws_the_rest() -> None:
    more = set()
    for seed in range(30):
        (shots,) = choose_shots(rows(90), LABELS, k=4, each=False, seed=seed)
        counts = Counter(label for _, label in shots)
        assert sorted(counts.values()) == [1, 1, 2]
        more.add(counts.most_common(1)[0][0])
    assert more == set(LABELS.names)
    (shots,) = choose_shots(rows(90), LABELS, k=2, each=False)
    assert len({label for _, label in shots}) == 2


def test_a_label_with_few_rows_contributes_all_of_them() -> None:
    train = [*rows(60), example("longer than the others", 3), example("short", 3)]
    labels = LabelMap((*LABELS.names, "rare", "none"))
    (shots,) = choose_shots(train, labels, k=4)
    counts = Counter(label for _, label in shots)
    assert counts == {"sport": 4, "trade": 4, "war": 4, "rare": 2}
    assert [text for text, label in shots if label == "rare"] == ["short", "longer than the others"]
    assert shots_line(labels, shots) == "few-shot: 14 examples from train; 1 of 5 labels without one ('none')"


def test_typical_and_short_rows_are_chosen() -> None:
    usual = [example(f"the team won match {number}") for number in range(10)]
    odd = [example(text) for text in ("zzz qqq", "x", "0000")]
    long = [example(f"the team won match {number} " * 3) for number in range(13)]
    train = [*usual, *odd, *long, example("a ship", 1), example("a price", 1)]
    (shots,) = choose_shots(train, LABELS, k=5)
    shown = {text for text, label in shots if label == "sport"}
    assert len(shown) == 5
    assert shown <= {row.text for row in usual}


def test_the_seed_and_not_the_order_of_rows_changes_the_choice() -> None:
    train = [example(f"{row.text} {again}", row.target) for row in rows(300) for again in range(3)]
    shuffled = random.Random(1).sample(train, len(train))
    texts = ["the team won", "goods were sold"]
    for options in ({}, {"by": "similarity", "texts": texts}):
        assert choose_shots(train, LABELS, k=3, **options) == choose_shots(shuffled, LABELS, k=3, **options)
    assert choose_shots(train, LABELS, k=3, seed=1) != choose_shots(train, LABELS, k=3)


def test_similarity_equals_a_brute_force_cosine_over_characters() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    train, texts = rows(200), [row.text for row in rows(300, seed=9)]
    found = choose_shots(train, LABELS, k=5, by="similarity", texts=texts)  # more than one batch of texts
    ordered = sorted(train, key=lambda row: row.text)
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    known = vectorizer.fit_transform([row.text for row in ordered]).toarray()
    for text, shots in zip(texts, found, strict=True):
        near = known @ vectorizer.transform([text]).toarray()[0]
        cosines = {row.text: cosine for row, cosine in zip(ordered, near, strict=True) if row.text != text}
        best = sorted(cosines.values())[-5:]
        assert np.allclose([cosines[shown] for shown, _ in shots], best, atol=2e-6)  # the nearest is last
    own = [sum(label == LABELS.names[n % 3] for _, label in shots) for n, shots in enumerate(found)]
    assert np.mean(own) > 4.5


@pytest.mark.parametrize("by", ["balance", "similarity"])
def test_the_text_to_classify_is_excluded(by: str) -> None:
    train = rows(30)
    asked = ["  " + row.text.upper().replace(" ", "   ") for row in train[:6]]
    for text, shots in zip(asked, choose_shots(train, LABELS, k=30, by=by, texts=asked), strict=True):
        shown = {text_key(other) for other, _ in shots}
        assert text_key(text) not in shown
        assert len(shown) == (24 if by == "balance" else 29)


def test_a_text_without_another_row_is_refused_by_its_place() -> None:
    train, texts = [example("a match")], ["other", "A  match", "more", "a match"]
    with pytest.raises(TaskHeadsError) as caught:
        choose_shots(train, LABELS, k=2, by="similarity", texts=texts)
    assert [problem.where for problem in caught.value.problems] == ["texts[1]", "texts[3]"]
    assert {problem.code for problem in caught.value.problems} == {"rows-too-few"}
    shots = choose_shots([*train, example("zzz", 1)], LABELS, k=2, by="similarity", texts=texts)
    assert shots[1] == (("zzz", "trade"),)  # the nearest other row


def test_contradictory_and_repeated_texts() -> None:
    train = [example("same text", 0), example("Same  text", 1), example("twice", 2), example("Twice ", 2)]
    (shots,) = choose_shots(train, LABELS, k=9, by="similarity", texts=["same"])
    assert shots == (("Twice ", "war"),)
    assert choose_shots(train[::-1], LABELS, k=9, by="similarity", texts=["same"]) == (shots,)


def test_long_examples_are_cut_and_pairs_are_joined() -> None:
    train = [
        TextExample(text="a" * 300, target=0),
        TextExample(text="premise", text_b="hypothesis", target=1),
        example("b" * 200, 2),
    ]
    (shots,) = choose_shots(train, LABELS, k=1)
    assert shots == (("a" * 199 + "…", "sport"), ("premise\nhypothesis", "trade"), ("b" * 200, "war"))
    (shots,) = choose_shots(train, LABELS, k=1, max_chars=5)
    assert [text for text, _ in shots] == ["aaaa…", "prem…", "bbbb…"]


def test_shots_are_in_the_instruction() -> None:
    (shots,) = choose_shots([example("a match"), example("a ship", 1)], LABELS, k=2)
    labels = with_shots(LABELS, shots)
    assert labels.examples == (("a match",), ("a ship",), ())
    template = label_template("{examples}\n\nText: ", labels)
    assert template.before[0] == "Text: a match\nLabel: sport\n\nText: a ship\nLabel: trade"


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({"k": 0}, {"k": "option-range"}),
        (
            {"k": 0, "max_chars": 0, "by": "x"},
            {"k": "option-range", "max_chars": "option-range", "by": "option-value"},
        ),
        ({"k": 1, "by": "nearest"}, {"by": "option-value"}),
        ({"k": 1, "by": "similarity"}, {"texts": "option-missing"}),
        ({"k": 1, "texts": ["a match", "a ship"]}, {"few-shot": "rows-too-few"}),
    ],
)
def test_options_that_are_refused(options: dict, problems: dict[str, str]) -> None:
    with pytest.raises(TaskHeadsError) as caught:
        choose_shots([example("a match"), example("a ship", 1)], LABELS, **options)
    assert {problem.where: problem.code for problem in caught.value.problems} == problems


def test_targets_other_than_one_label_and_empty_train_are_refused() -> None:
    for target in ((0, 1), (0.5,), 3):
        bad = TextExample(text="x", target=target, source="train.jsonl:7")
        with pytest.raises(TaskHeadsError) as caught:
            choose_shots([*rows(6), bad], LABELS, k=1)
        [problem] = caught.value.problems
        assert (problem.where, problem.code) == ("train.jsonl:7", "value-type")
    for by in ("balance", "similarity"):
        with pytest.raises(TaskHeadsError) as caught:
            choose_shots([], LABELS, k=1, by=by, texts=["x"])
        assert caught.value.problems[0].code == "rows-too-few"
    assert choose_shots(rows(6), LABELS, k=1, by="similarity", texts=[]) == ()
