"""Rows that truncation has made equal: they are found, named by line, and distinct at the named limit."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from qwen_task_heads import PooledClassifierConfig, load_tokenizer
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.tokenization.collators import group_dataset, pair_dataset, text_dataset, text_datasets
from qwen_task_heads.tokenization.equal_rows import EqualRows, check_equal
from qwen_task_heads.tokenization.templates import Template, bind_template, compile_template

LONG = "The council met again on Monday and spoke about the new bridge over the river. "


@pytest.fixture
def tokenizer() -> Any:
    """The embedded tokenizer, with a template of several tokens around a text."""
    tokenizer = load_tokenizer("embedded")
    compile_template(tokenizer, template=Template(before="Rate this:\n", between=" | "), model_type="qwen2")
    return tokenizer


def pairs(*ends: tuple[str, str], begin: str = LONG, **fields: Any) -> list[PairExample]:
    return [
        PairExample(chosen=begin + one, rejected=begin + other, source=f"/data/train.jsonl:{line}", **fields)
        for line, (one, other) in enumerate(ends, start=1)
    ]


def equal_of(examples: list[Any], limit: int, *, tokenizer: Any) -> EqualRows:
    make = group_dataset if isinstance(examples[0], GroupExample) else pair_dataset
    equal = make(examples, tokenizer=tokenizer, max_length=limit)[1].equal
    assert equal is not None
    return equal


@pytest.mark.parametrize("prompt", ["", "An article about bridges."])
@pytest.mark.parametrize(
    "rejected", ["a blue moon", "red", "red moon and stars"], ids=["other", "shorter", "longer"]
)
def test_the_named_limit_is_the_smallest_that_distinguishes_pairs(
    tokenizer: Any, prompt: str, rejected: str
) -> None:
    examples = pairs(("red moon", rejected), begin=LONG * 3, prompt=prompt)
    equal = equal_of(examples, 24, tokenizer=tokenizer)
    assert (equal.places, equal.named, equal.rows) == ((0,), "train.jsonl:1", 1)
    assert equal.needed is not None
    assert equal_of(examples, equal.needed - 1, tokenizer=tokenizer).places == (0,)
    assert equal_of(examples, equal.needed, tokenizer=tokenizer).places == ()


def test_equal_pairs_are_left_out_of_training_and_stay_in_dev(tokenizer: Any) -> None:
    examples = pairs(("red moon", "blue moon"), ("red sun", "blue sun"))
    examples.insert(1, PairExample(chosen="Tea", rejected="Coffee", weight=2.0, source="train.jsonl:9"))
    options = {"tokenizer": tokenizer, "max_length": 16}
    train, cut = pair_dataset(examples, drop_equal=True, **options)
    dev, of_dev = pair_dataset(examples, **options)
    assert (train["row"], dev["row"]) == ([1], [0, 1, 2])
    assert train["weight"] == [2.0]
    for report, then in ((cut, "left out"), (of_dev, "ties")):
        [line] = check_equal({"some": report.equal}, option="--max_length ")
        assert line.startswith("some: 2 of 3 pairs are equal after the cut to 16 tokens")
        assert "train.jsonl:1, train.jsonl:2 (" in line
        assert then in line
        assert "/data" not in line
    apart = int(re.search(r"--max_length (\d+)", line)[1])  # type: ignore[index]
    assert len(pair_dataset(examples, drop_equal=True, tokenizer=tokenizer, max_length=apart)[0]) == 3


def test_a_cut_without_equal_rows_has_no_message(tokenizer: Any) -> None:
    examples = pairs(("x", "y"), begin="")
    _, cut = pair_dataset(examples, tokenizer=tokenizer, max_length=64)
    assert check_equal({"train": cut.equal, "dev": None}, option="") == []


def test_pairs_that_are_all_equal_are_refused_in_all_splits_at_once(tokenizer: Any) -> None:
    train = pairs(*[(f"red {n}", f"blue {n}") for n in range(8)])
    dev = pairs(("red", "blue"), begin=LONG * 2)
    splits = {"train": train, "dev": dev}

    def equal(limit: int) -> dict[str, EqualRows | None]:
        return {name: equal_of(rows, limit, tokenizer=tokenizer) for name, rows in splits.items()}

    with pytest.raises(TaskHeadsError) as refused:
        check_equal(equal(12), option="--max_length ")
    first, second = refused.value.problems
    assert first.code == second.code == "rows-equal"
    assert "8 of 8 pairs" in first.problem
    assert "1 of 1 pairs" in second.problem
    assert first.where.startswith("train.jsonl:1, train.jsonl:2")
    # both messages name one limit for both splits
    [limit] = {re.search(r"--max_length (\d+)", problem.fix)[1] for problem in refused.value.problems}  # type: ignore[index]
    assert check_equal(equal(int(limit)), option="") == []
    # the other fix: the common prefix becomes a prompt
    moved = [
        replace(
            pair,
            chosen=pair.chosen.removeprefix(LONG),
            rejected=pair.rejected.removeprefix(LONG),
            prompt=LONG,
        )
        for pair in train
    ]
    assert equal_of(moved, 16, tokenizer=tokenizer).places == ()


def test_titles_with_the_same_tokens_have_no_limit(tokenizer: Any) -> None:
    """Byte-level tokenizers normalise to NFC: a composed letter and its two parts are one token."""
    examples = [PairExample(chosen="caf\u00e9", rejected="cafe\u0301")]
    equal = equal_of(examples, 64, tokenizer=tokenizer)
    assert (equal.places, equal.same, equal.needed) == ((0,), 1, None)
    with pytest.raises(TaskHeadsError) as refused:
        check_equal({"train": equal}, option="--max_length ")
    [problem] = refused.value.problems
    assert problem.code == "rows-equal"
    assert "--max_length" not in problem.fix


def test_equal_titles_of_a_group_count_as_one(tokenizer: Any) -> None:
    group = GroupExample(
        titles=("Tea", LONG + "red", LONG + "blue"),
        clicks=(1, 8, 2),
        impressions=(10, 10, 40),
        sources=("arms.csv:2", "arms.csv:3", "arms.csv:4"),
    )
    lost = GroupExample(
        titles=(LONG + "a", LONG + "b"),
        clicks=(1, 2),
        impressions=(9, 9),
        sources=("arms.csv:5", "arms.csv:6"),
    )
    options = {"tokenizer": tokenizer, "max_length": 16}
    rows, cut = group_dataset([lost, group], **options)
    assert rows["row"] == [1]
    assert rows["gains"] == [[0.1, 10 / 50]]
    assert rows["length"] == [sum(map(len, rows["title_ids"][0]))]
    lines = check_equal({"train": cut.equal}, option="--max_length ")
    assert "1 titles" in lines[0]
    assert "1 of 2 groups" in lines[1]
    assert "arms.csv:5" in lines[1]
    limit = int(re.search(r"--max_length (\d+)", lines[1])[1])  # type: ignore[index]
    assert group_dataset([lost, group], tokenizer=tokenizer, max_length=limit)[0]["row"] == [0, 1]
    with pytest.raises(TaskHeadsError, match="1 of 1 groups"):  # the message gives the numbers
        check_equal({"train": equal_of([lost], 16, tokenizer=tokenizer)}, option="--max_length ")
    same = group_dataset([group], tokenizer=tokenizer, max_length=limit)[0]
    assert same["gains"] == [[0.1, 0.8, 0.05]]


# --- texts ---


def classifier(tiny_config: Any, *, pairs: bool = False, **options: Any) -> dict[str, Any]:
    tokenizer = load_tokenizer("embedded")
    config = PooledClassifierConfig(text_config=tiny_config(), **{"max_seq_length": 16, **options})
    bind_template(tokenizer, config, template=Template(before="Text:", between=" / "), pairs=pairs)
    return {"tokenizer": tokenizer, "config": config, "num_labels": 3}


def texts(*rows: tuple[str, int], **fields: Any) -> list[TextExample]:
    return [
        TextExample(text=text, target=target, source=f"/data/texts.csv:{line}", **fields)
        for line, (text, target) in enumerate(rows, start=2)
    ]


ROWS = texts(
    (LONG + "red", 0),
    (LONG + "red", 0),
    (LONG + "green", 0),
    (LONG + "blue", 1),
    ("Tea", 1),
    ("Tea", 2),
    ("Milk of " + LONG, 2),
)


def test_texts_of_different_labels_are_named_and_stay(tiny_config: Any) -> None:
    rows, cut = text_dataset(ROWS, **classifier(tiny_config))
    assert len(rows) == len(ROWS)
    # one text with two labels is another defect, which truncation has not caused
    assert cut.equal is not None
    assert cut.equal.places == (0, 1, 2, 3)
    [line] = check_equal({"train": cut.equal}, option="--max_seq_length ")
    assert "4 of 7 texts are equal to a text of another label after the cut to 16 tokens: texts.csv:2" in line
    needed = cut.equal.needed
    assert f"--max_seq_length {needed}" in line
    for limit, places in ((needed, ()), (needed - 1, (0, 1, 2, 3))):
        _, cut = text_dataset(ROWS, **classifier(tiny_config, max_seq_length=limit))
        assert cut.equal.places == places


def test_equal_texts_of_one_label_do_not_conflict(tiny_config: Any) -> None:
    rows = [replace(row, target=1) for row in ROWS]
    assert text_dataset(rows, **classifier(tiny_config))[1].equal.places == ()


@pytest.mark.parametrize("truncation", ["tail", "head_tail"])
def test_the_named_limit_covers_other_policies(tiny_config: Any, truncation: str) -> None:
    rows = texts(*((LONG + word + " " + LONG * 2, target) for target, word in enumerate(("red", "blue"))))
    _, cut = text_dataset(rows, **classifier(tiny_config, truncation=truncation))
    assert cut.equal.places == (0, 1)
    options = classifier(tiny_config, truncation=truncation, max_seq_length=cut.equal.needed)
    assert text_dataset(rows, **options)[1].equal.places == ()
    whole = text_dataset(rows, **classifier(tiny_config, truncation="windows"))[1]
    assert whole.equal.places == ()


def test_both_texts_of_a_pair_are_compared(tiny_config: Any) -> None:
    rows = texts((LONG, 0), (LONG, 1))
    rows = [replace(row, text_b=LONG + end) for row, end in zip(rows, ("red", "blue"), strict=True)]
    _, cut = text_dataset(rows, **classifier(tiny_config, pairs=True))
    assert cut.equal.places == (0, 1)
    _, cut = text_dataset(rows, **classifier(tiny_config, pairs=True, max_seq_length=cut.equal.needed))
    assert cut.equal.places == ()


def test_datasets_whose_texts_are_all_equal_are_refused(tiny_config: Any) -> None:
    lost = texts((LONG + "red", 0), (LONG + "blue", 1))
    with pytest.raises(TaskHeadsError) as refused:
        text_datasets(ROWS, lost, lost, **classifier(tiny_config))
    assert [problem.where for problem in refused.value.problems] == ["texts.csv:2, texts.csv:3"] * 2
    limit = int(re.search(r"--max_seq_length (\d+)", str(refused.value))[1])  # type: ignore[index]
    *_, lines = text_datasets(ROWS, lost, [], **classifier(tiny_config, max_seq_length=limit))
    assert lines == []


def test_many_equal_texts_are_found_in_linear_time(tiny_config: Any) -> None:
    """All texts are equal, so that a quadratic comparison would take too long."""
    rows = texts(*((f"{LONG}{number}", number % 3) for number in range(6_000)))
    _, cut = text_dataset(rows, **classifier(tiny_config))
    assert cut.equal.are_all
