"""Rows of other data sets in train: their selection, number, labels and messages."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.mixing import mix_in
from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.sources.keys import text_key


def examples(word: str, count: int, **more: Any) -> list[TextExample]:
    return [TextExample(text=f"{word} {n}", target=n % 2, source=f"{word}:{n}", **more) for n in range(count)]


def written(path: Path, rows: Iterable[object]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(word: str, count: int, labels: tuple[Any, ...] = ("a", "b")) -> list[dict[str, Any]]:
    return [{"text": f"{word} {n}", "label": labels[n % len(labels)]} for n in range(count)]


def read(tmp_path: Path, others: Iterable[object], **options: Any) -> TextSets:
    train = written(tmp_path / "train.jsonl", options.pop("own", rows_of("own", 60)))
    return read_text_sets(train, mix=written(tmp_path / "else" / "other.jsonl", others), **options)


def refused(tmp_path: Path, others: Iterable[object], **options: Any) -> TaskHeadsError:
    with pytest.raises(TaskHeadsError) as caught:
        read(tmp_path, others, **options)
    return caught.value


def said(sets: TextSets, what: str) -> list[str]:
    return [line for line in sets.lines if what in line]


# The selection


def test_the_ratio_decides_how_many_and_the_seed_which() -> None:
    own, others = examples("own", 20), examples("new", 300)
    for ratio, count in ((2.0, 10), (0.5, 40), (3.0, 7), (100.0, 1)):
        rows, _ = mix_in(own, others, ratio=ratio)
        assert rows[:20] == own
        assert len(rows) == 20 + count
    one, again, other = (mix_in(own, others, seed=seed)[0] for seed in (0, 0, 1))
    assert one == again != other
    assert len({row.text for row in one}) == 30


def test_the_order_of_rows_does_not_change_the_selection() -> None:
    own, others = examples("own", 40), examples("new", 90)
    shuffled = random.Random(0).sample(others, len(others))
    assert mix_in(own, others)[0] == mix_in(own, shuffled)[0]


def test_too_few_others_are_all_added_with_a_message() -> None:
    rows, lines = mix_in(examples("own", 40), examples("new", 5))
    assert len(rows) == 45
    assert lines[0] == (
        "mix: 5 of 5 rows of the other data set added to 40 own rows "
        "(8:1, but 2:1 was requested: there are no more rows)"
    )


def test_rows_of_dev_test_and_train_are_left_out_and_counted() -> None:
    own, others = examples("own", 20), examples("new", 8)
    others += [
        TextExample(text="OWN  3", target=1),
        TextExample(text="Ｄｅｖ 1", target=0),
        TextExample(text="one", text_b="two", target=0),
        TextExample(text="one", text_b="three", target=0),
    ]
    apart = [TextExample(text="dev 1", target=0), TextExample(text="Two", text_b="One", target=1)]
    rows, lines = mix_in(own, others, apart=apart, ratio=1.0, name="other.jsonl")
    texts = {row.text for row in rows[20:]}
    assert texts == {f"new {n}" for n in range(8)} | {"one"}
    assert [row.text_b for row in rows if row.text == "one"] == ["three"]
    assert lines[1:3] == [
        "mix: 2 rows left out, whose texts are in dev or test",
        "mix: 1 row left out, whose text is in train",
    ]


def test_repeated_texts_count_once_and_contradictory_texts_are_left_out() -> None:
    def row(text: str, target: int, **more: Any) -> TextExample:
        return TextExample(text=text, target=target, **more)

    others = [row("same", 1)] * 5 + [row("same", 0)] * 3 + [row("Twice", 1), row("twice ", 1)]
    others += [row("one", 0, text_b="two"), row("two", 1, text_b="one"), row("twice", 1, weight=2.0)]
    own = examples("own", 20)
    rows, lines = mix_in(own, others)
    assert sorted((row.text_b, text_key(row.text), row.target) for row in rows[20:]) == [
        ("", "twice", 1),
        ("one", "two", 1),
        ("two", "one", 0),
    ]
    assert lines[0].startswith("mix: 3 of 13 rows")
    assert lines[1:3] == [
        "mix: 2 rows left out, that repeat others of them",
        "mix: 8 rows left out, whose texts have several labels",
    ]
    assert mix_in(own, others[::-1])[0] == rows
    assert "mix: 1 row left out, that repeats another of them" in mix_in(own, others[8:10])[1]
    weighted = [row("once", 1, weight=weight) for weight in (2.0, 1.0)]
    assert mix_in(own, weighted)[0][-1].weight == mix_in(own, weighted[::-1])[0][-1].weight
    soft = [row("soft", 1, soft=shares) for shares in ((0.25, 0.75), (0.125, 0.875))]
    with pytest.raises(TaskHeadsError) as caught:
        mix_in(own, soft)
    assert caught.value.problems[0].code == "rows-conflict"


def test_lengths_that_differ_by_more_than_a_factor_of_two_give_a_message() -> None:
    own = [TextExample(text=f"{n:010}", target=0) for n in range(9)]
    for size, warned in ((20, False), (21, True), (5, False), (4, True)):
        others = [TextExample(text=f"{n:0{size}}", target=0) for n in range(1, 9)]
        line = mix_in(own, others, name="o")[1][-1]
        assert line.startswith(f"mix: median length 10 characters in train, {size} in o")
        assert ("the model may learn the length instead of the label" in line) == warned


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_ratios_that_are_refused(tmp_path: Path, ratio: float) -> None:
    with pytest.raises(TaskHeadsError) as caught:
        mix_in(examples("own", 4), examples("new", 4), ratio=ratio)
    [problem] = caught.value.problems
    assert (problem.where, problem.code) == ("mix_ratio", "option-range")
    assert "mix_ratio" in str(refused(tmp_path, rows_of("new", 4), mix_ratio=ratio))


def test_nothing_to_add_is_refused() -> None:
    own = examples("own", 4)
    for others in (own, []):
        with pytest.raises(TaskHeadsError) as caught:
            mix_in(own, others, name="others.jsonl")
        [problem] = caught.value.problems
        assert (problem.where, problem.code) == ("others.jsonl", "rows-too-few")


# In the data sets of a run


def test_mixed_rows_are_for_training_only_and_in_the_fingerprint(tmp_path: Path) -> None:
    others = rows_of("new", 200)
    sets = read(tmp_path, others)
    assert sets.mixed == len(sets.train) // 3 == 27
    assert all(row.text.startswith("new") for row in sets.train[-27:])
    assert all(row.text.startswith("own") for row in (*sets.train[:-27], *sets.dev))
    assert said(sets, "rows of other") == ["mix: 27 of 200 rows of other.jsonl added to 54 own rows (2:1)"]
    assert "mix: 200 texts read from other.jsonl" in sets.lines
    alone = read_text_sets(str(tmp_path / "train.jsonl"))
    assert [row.text for row in alone.dev] == [row.text for row in sets.dev]
    assert alone.fingerprint()["train_texts"] != sets.fingerprint()["train_texts"]
    assert alone.fingerprint()["dev_texts"] == sets.fingerprint()["dev_texts"]
    assert len(read(tmp_path, others, mix_ratio=1.0).train) == 108


def test_texts_of_dev_and_test_are_not_mixed_in(tmp_path: Path) -> None:
    dev, test = rows_of("dev", 10), rows_of("test", 10)
    places = {
        role: written(tmp_path / f"{role}.jsonl", rows) for role, rows in (("dev", dev), ("test", test))
    }
    sets = read(tmp_path, [*dev, *test, *rows_of("new", 30)], **places)
    assert {row.text.split()[0] for row in sets.train} == {"own", "new"}
    assert said(sets, "left out") == ["mix: 20 rows left out, whose texts are in dev or test"]
    [problem] = refused(tmp_path, test, **places).problems
    assert (problem.where, problem.code) == ("other.jsonl", "rows-too-few")


def test_several_datasets_and_the_training_split_of_a_folder(tmp_path: Path) -> None:
    train = written(tmp_path / "own" / "train.jsonl", rows_of("own", 60))
    folder = tmp_path / "folder"
    written(folder / "train.jsonl", rows_of("folder", 10))
    written(folder / "test.jsonl", rows_of("unseen", 10))
    more = written(tmp_path / "more" / "whatever.csv", [])
    Path(more).write_text("text,label\n" + "".join(f"csv {n},{'ab'[n % 2]}\n" for n in range(10)))
    sets = read_text_sets(train, mix=[str(folder), more], mix_ratio=2.0)
    assert {row.text.split()[0] for row in sets.train[-sets.mixed :]} == {"folder", "csv"}
    assert said(sets, "of 20 rows of folder and whatever.csv added")


def test_labels_are_matched_by_name_and_alias(tmp_path: Path) -> None:
    labels = LabelMap(("a", "b"), aliases=(("A-news",), ()))
    sets = read(tmp_path, rows_of("new", 40, ("A-news", "b")), labels=labels)
    assert {row.target == int(row.text.split()[1]) % 2 for row in sets.train[-sets.mixed :]} == {True}


def test_unknown_labels_are_in_one_error_or_skipped(tmp_path: Path) -> None:
    others = [*rows_of("new", 6, ("x", "a", "y")), {"text": "", "label": "a"}, {"text": "q", "label": "x"}]
    problems = refused(tmp_path, others).problems
    assert [(problem.where.rsplit(":", 1)[1], problem.problem) for problem in problems] == [
        ("1", "'x' is none of the 2 labels (the names in train, sorted), in 3 rows"),
        ("3", "'y' is none of the 2 labels (the names in train, sorted), in 2 rows"),
        ("7", "'text' is empty"),
    ]
    sets = read(tmp_path, others, bad_rows="skip")
    assert [row.text for row in sets.train[-sets.mixed :]] in (["new 1", "new 4"], ["new 4", "new 1"])
    assert "mix: 6 of 8 rows left out" in sets.lines


def test_ids_of_another_dataset_are_not_ids_of_train(tmp_path: Path) -> None:
    ids = rows_of("new", 40, (0, 1))
    problem = refused(tmp_path, ids).problems[0]
    assert problem.where.endswith("other.jsonl:1")
    assert problem.code == "label-conflict"
    # its names have another order than those of train
    named = [{**row, "label_name": "ba"[row["label"]]} for row in ids]
    sets = read(tmp_path, named)
    assert {row.target != int(row.text.split()[1]) % 2 for row in sets.train[-sets.mixed :]} == {True}
    (tmp_path / "else" / "class.txt").write_text("b\na\n")
    for own in (rows_of("own", 60), rows_of("own", 60, (0, 1))):
        labels = LabelMap(("a", "b"))
        sets = read(tmp_path, ids, own=own, labels=labels)
        assert {row.target != int(row.text.split()[1]) % 2 for row in sets.train[-sets.mixed :]} == {True}
    (tmp_path / "else" / "class.txt").write_text("a\nb\n")
    sets = read(tmp_path, ids, labels=LabelMap(("a", "b")))
    assert {row.target == int(row.text.split()[1]) % 2 for row in sets.train[-sets.mixed :]} == {True}


def test_ids_without_names_are_ids_of_train_if_train_has_no_names(tmp_path: Path) -> None:
    sets = read(tmp_path, rows_of("new", 40, (0, 1)), own=rows_of("own", 60, (0, 1)))
    assert {row.target == int(row.text.split()[1]) % 2 for row in sets.train[-sets.mixed :]} == {True}
    assert said(sets, "the ids of other.jsonl are read as those of train")
    error = refused(tmp_path, rows_of("new", 40, (0, 1, 2)), own=rows_of("own", 60, (0, 1)))
    assert "label 2 is none of the 2 labels" in str(error)


def test_other_problem_types(tmp_path: Path) -> None:
    own = [{"text": f"own {n}", "labels": ["a", "b"][: n % 3]} for n in range(60)]
    others = [{"text": f"new {n}", "labels": ["b"]} for n in range(9)]
    sets = read(tmp_path, others, own=own)
    assert {row.target for row in sets.train[-sets.mixed :]} == {(1,)}
    (tmp_path / "else" / "labels.yaml").write_text("[b, a]")
    others = [{"text": f"new {n}", "labels": [1]} for n in range(9)]
    assert {row.target for row in read(tmp_path, others, own=own).train[-9:]} == {(0,)}
    soft = [{"text": f"own {n}", "probabilities": {"a": 0.25, "b": 0.75}} for n in range(60)]
    others = [{"text": f"new {n}", "probabilities": [0.75, 0.25]} for n in range(9)]
    assert {row.soft for row in read(tmp_path, others, own=soft).train} == {(0.25, 0.75)}
    scores = [{"text": f"own {n}", "score": n / 7} for n in range(60)]
    others = [{"text": f"new {n}", "score": 0.5} for n in range(9)]
    assert read(tmp_path, others, own=scores).train[-1].target == (0.5,)


def test_an_unreadable_dataset_is_named_with_the_other_problems(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", [*rows_of("own", 20), {"text": "", "label": "a"}])
    with pytest.raises(TaskHeadsError) as caught:
        read_text_sets(
            train, mix=[str(tmp_path / "none.jsonl"), written(tmp_path / "o.jsonl", [{"body": 1}])]
        )
    message = str(caught.value)
    assert "none.jsonl" in message
    assert "o.jsonl:1" in message
    assert "train.jsonl:21" in message
