"""Train, dev and test of a classifier: labels, splits, overlaps, and the summary of the data."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from work import at_most

from qwen_task_heads.data.checks import examine_texts, find_overlaps
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.splits import split_texts
from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.sources import hub_datasets
from qwen_task_heads.sources.keys import text_key


def write_rows(path: Path, rows: Iterable[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(labels: Iterable[Any], column: str = "label", **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {n} {column}", column: label, **more} for n, label in enumerate(labels)]


def read(tmp_path: Path, rows: Iterable[object], **options: Any) -> TextSets:
    return read_text_sets(write_rows(tmp_path / "train.jsonl", rows), **options)


def refusal(source: str | Path, **options: Any) -> TaskHeadsError:
    with pytest.raises(TaskHeadsError) as caught:
        read_text_sets(str(source), **options)
    return caught.value


def refused(tmp_path: Path, rows: Iterable[object], **options: Any) -> Problem:
    """Return the first problem of training rows that are refused."""
    return refusal(write_rows(tmp_path / "train.jsonl", rows), **options).problems[0]


def targets(sets: TextSets) -> dict[str, Any]:
    return {row.text: row.target for row in (*sets.train, *sets.dev)}


# Labels


def test_whole_numbers_are_ids_and_their_own_names(tmp_path: Path) -> None:
    sets = read(tmp_path, rows_of([2, 0, 1] * 9))
    assert sets.labels.names == ("0", "1", "2")
    assert targets(sets)["text 0 label"] == 2
    assert sets.problem_type == "single_label_classification"
    assert "labels: 3 by the whole numbers in train ('0', '1', '2')" in sets.lines


def test_names_are_sorted_and_stripped(tmp_path: Path) -> None:
    sets = read(tmp_path, rows_of(["sport", " Art", "体育", "art"] * 5))
    assert sets.labels.names == ("Art", "art", "sport", "体育")
    assert "labels: 1 differ from others only in case, width or spacing ('Art')" in sets.lines


def test_names_of_ids(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": n % 3, "label_name": "zyx"[n % 3]} for n in range(12)]
    del rows[5]["label_name"]
    assert read(tmp_path, rows).labels.names == ("z", "y", "x")
    for row, code, values in (
        ({"label": 0, "label_name": "y"}, "label-conflict", ("label 0", "'y'", "'z'")),
        ({"label": 3, "label_name": "y"}, "label-conflict", ("label 3", "'y'")),
        ({"label": 3}, "value-missing", ("label 3", "'label_name'")),
    ):
        problem = refused(tmp_path, [*rows, {"text": "a", **row}])
        assert (problem.where, problem.code) == (f"{tmp_path}/train.jsonl:13", code)
        assert all(value in problem.problem for value in values)


def test_a_gap_is_refused_unless_the_labels_are_named(tmp_path: Path) -> None:
    rows = rows_of([0, 1, 5, 3] * 5)
    problem = refused(tmp_path, rows)
    assert problem.code == "label-invalid"
    assert "labels up to 5" in problem.problem
    assert "without 2, 4" in problem.problem
    sets = read(tmp_path, rows, labels=LabelMap(tuple("abcdef")))
    assert targets(sets)["text 2 label"] == 5
    assert "labels: 2 without rows in train ('c', 'e')" in sets.lines


def test_given_labels_take_precedence_as_map_option_or_file(tmp_path: Path) -> None:
    rows = rows_of(["a", "b"] * 9)
    (tmp_path / "order.yaml").write_text("- b\n- a\n", encoding="utf-8")
    assert read(tmp_path, rows).labels.names == ("a", "b")
    assert read(tmp_path, rows, labels=str(tmp_path / "order.yaml")).labels.names == ("b", "a")
    (tmp_path / "class.txt").write_text("b\na\n", encoding="utf-8")
    assert targets(read(tmp_path, rows))["text 0 label"] == 1
    assert read_text_sets(str(tmp_path)).labels.names == ("b", "a")
    assert read(tmp_path, rows, labels=LabelMap(("a", "b", "c"))).labels.names == ("a", "b", "c")
    problem = refused(tmp_path, rows, labels="none.yaml")
    assert (problem.where, problem.code) == ("none.yaml", "path-not-found")


def test_ids_of_the_data_are_not_read_as_those_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "class.txt").write_text("b\na\n", encoding="utf-8")
    problem = refused(tmp_path, rows_of([0, 1] * 9), labels=LabelMap(("a", "b")))
    assert (problem.where, problem.code) == (f"{tmp_path}/class.txt", "label-conflict")
    assert read(tmp_path, rows_of([0, 1] * 9), labels=LabelMap(("b", "a"))).labels.names == ("b", "a")


def test_a_label_file_and_label_names_that_disagree(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": n % 2, "label_name": "ab"[n % 2]} for n in range(12)]
    (tmp_path / "class.txt").write_text("b\na\n", encoding="utf-8")
    problem = refused(tmp_path, rows)
    assert (problem.where, problem.code) == (f"{tmp_path}/train.jsonl:1", "label-conflict")


BAD_LABELS: list[tuple[Any, str]] = [
    ("1", "value-type"),
    (True, "value-type"),
    (1.5, "value-type"),
    (float("nan"), "value-missing"),
    (-100, "value-range"),
    (None, "value-missing"),
]


@pytest.mark.parametrize("named", [False, True], ids=["ids", "named"])
@pytest.mark.parametrize("value", [value for value, _ in BAD_LABELS] + [2, "other"], ids=str)
def test_check_5_bad_labels_are_refused_with_their_line(tmp_path: Path, value: Any, named: bool) -> None:
    code = {str(bad): code for bad, code in BAD_LABELS}.get(str(value), "label-unknown")
    labels = LabelMap(("a", "b")) if named else None
    dev = write_rows(tmp_path / "dev.jsonl", [*rows_of([0, 1] * 5), {"text": "x", "label": value}])
    train = write_rows(tmp_path / "train.jsonl", rows_of([0, 1] * 5))
    error = refusal(train, dev=dev, labels=labels)
    assert [(problem.where, problem.code) for problem in error.problems] == [(f"{dev}:11", code)]


def test_whole_numbers_are_ids_however_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"t{n},{n % 3}\n" for n in range(30)), encoding="utf-8")
    assert read_text_sets(str(path)).labels.names == ("0", "1", "2")
    for rows in (
        rows_of(["0", "1"] * 9),
        rows_of([["0"], ["1", "0"]] * 9, "labels"),
        rows_of([0.0, 1.0] * 9),
    ):
        assert read(tmp_path, rows).labels.names == ("0", "1")
    for odd in ("1", 1.0):  # among plain numbers
        problem = refused(tmp_path, [*rows_of([0, 1] * 9), {"text": "x", "label": odd}])
        assert (problem.where, problem.code) == (f"{tmp_path}/train.jsonl:19", "value-type")


def test_missing_label_of_a_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "a,x\nb,y\n" * 9 + "c,NaN\n", encoding="utf-8")
    (problem,) = refusal(path).problems
    assert (problem.where, problem.code) == (f"{path}:20", "value-missing")


def test_unknown_label_is_refused_with_the_origin_of_the_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.yaml").write_text("- bad\n- fine\n- other\n", encoding="utf-8")
    for labels, value in ((["bad", "good"], "'good'"), ([0, 3], "label 3")):
        problem = refused(tmp_path, rows_of(labels * 9))
        assert (problem.where, problem.code) == (f"{tmp_path}/train.jsonl:2", "label-unknown")
        assert value in problem.problem
        assert "labels.yaml" in problem.problem
        assert "--labels" in problem.fix


def test_numbers_and_names_are_not_mixed(tmp_path: Path) -> None:
    problem = refused(tmp_path, rows_of([0, 1, "sport"] * 4))
    assert (problem.where, problem.code) == (f"{tmp_path}/train.jsonl", "label-conflict")


def test_stars_are_names_if_they_fit_no_ids(tmp_path: Path) -> None:
    stars = LabelMap(("1", "2", "3"))
    sets = read(tmp_path, rows_of([1, 2, 3] * 6), labels=stars)
    assert targets(sets)["text 0 label"] == 0
    assert targets(read(tmp_path, rows_of(["3", "1"] * 6), labels=stars))["text 0 label"] == 2
    assert targets(read(tmp_path, rows_of([0, 2] * 6), labels=stars))["text 1 label"] == 2
    assert refused(tmp_path, rows_of([1, 2] * 6), labels=stars).code == "label-invalid"
    dev = write_rows(tmp_path / "dev.jsonl", rows_of([1, 0]))
    problem = refused(tmp_path, rows_of([1, 2, 3] * 6), labels=stars, dev=dev)
    assert (problem.where, problem.code) == (f"{dev}:2", "label-unknown")


def test_one_label_only_is_refused(tmp_path: Path) -> None:
    labels = LabelMap(("a", "b"))
    for rows, given in (
        (rows_of([0] * 9), None),
        (rows_of(["a"] * 9), None),
        (rows_of([0] * 9), labels),
        (rows_of([[]] * 9, "labels"), labels),
        (rows_of([[]] * 9, "labels"), None),
        (rows_of([1.0] * 9, "score"), None),
    ):
        problem = refused(tmp_path, rows, labels=given)
        assert (problem.where, problem.code) == (f"{tmp_path}/train.jsonl", "rows-too-few")


# Problem types


def test_several_labels(tmp_path: Path) -> None:
    sets = read(tmp_path, rows_of([["b", "a"], [], ["c"]] * 6, "labels"))
    assert (sets.problem_type, sets.labels.names) == ("multi_label_classification", ("a", "b", "c"))
    assert [targets(sets)[f"text {n} labels"] for n in range(3)] == [(0, 1), (), (2,)]
    assert read(tmp_path, rows_of([[1, 0], [2]] * 6, "labels")).labels.names == ("0", "1", "2")
    given = LabelMap(("a", "b", "c"))
    problem = refused(
        tmp_path, [*rows_of([["b"], ["a"]], "labels"), {"text": "x", "labels": ["a", "a"]}], labels=given
    )
    assert (problem.where, problem.code) == (f"{tmp_path}/train.jsonl:3", "value-conflict")


def test_several_labels_do_not_read_the_column_of_names(tmp_path: Path) -> None:
    rows = rows_of([[0], [1, 0], [1]] * 10, label_name="x")
    sets = read(tmp_path, rows, problem_type="multi_label_classification")
    assert sets.labels.names == ("0", "1")
    assert "columns not read: label_name (train)" in sets.lines


def test_ids_of_dev_are_those_of_probabilities_in_train(tmp_path: Path) -> None:
    dev = write_rows(tmp_path / "dev.jsonl", rows_of([1.0, 0.0]))
    rows = rows_of([[0.75, 0.25], [0.25, 0.75]] * 2, "probabilities")
    assert [row.target for row in read(tmp_path, rows, dev=dev).dev] == [1, 0]


def test_scores(tmp_path: Path) -> None:
    sets = read(tmp_path, rows_of(range(20), "score"))
    assert (sets.problem_type, sets.labels.names) == ("regression", ("score",))
    assert targets(sets)["text 3 score"] == (3.0,)
    sets = read(tmp_path, rows_of(range(20)), problem_type="regression")
    assert targets(sets)["text 3 label"] == (3.0,)
    sets = read(tmp_path, rows_of([[1, 2], [3, 4.5]] * 9, "score"))
    assert sets.labels.names == ("score_0", "score_1")
    assert refused(tmp_path, rows_of([[1, 2], 3], "score")).code == "rows-conflict"
    dev = write_rows(tmp_path / "dev.jsonl", rows_of([[1, 2]], "score"))
    problem = refused(tmp_path, rows_of([1, 2], "score"), dev=dev)
    assert (problem.where, problem.code) == (f"{dev}:1", "dataset-mismatch")
    (tmp_path / "class.txt").write_text("a\nb\n", encoding="utf-8")
    assert read(tmp_path, rows_of(range(20), "score")).labels.names == ("score",)


def test_ordinal_needs_an_order(tmp_path: Path) -> None:
    sets = read(tmp_path, rows_of([2, 0, 1] * 6), problem_type="ordinal")
    assert (sets.problem_type, targets(sets)["text 0 label"]) == ("ordinal", 2)
    rows = rows_of(["low", "high", "mid"] * 6)
    assert refused(tmp_path, rows, problem_type="ordinal").code == "label-invalid"
    sets = read(tmp_path, rows, problem_type="ordinal", labels=LabelMap(("low", "mid", "high")))
    assert targets(sets)["text 1 label"] == 2


def test_soft_labels(tmp_path: Path) -> None:
    sets = read(tmp_path, rows_of([[0.2, 0.5, 0.3], [1, 0, 0]] * 9, "probabilities"))
    row = next(row for row in (*sets.train, *sets.dev) if row.text == "text 0 probabilities")
    assert (row.target, row.soft, sets.labels.names) == (1, (0.2, 0.5, 0.3), ("0", "1", "2"))
    sets = read(tmp_path, rows_of([{"b": 0.6, "a": 0.4}, {"c": 1}] * 9, "probabilities"))
    row = next(row for row in (*sets.train, *sets.dev) if row.text == "text 0 probabilities")
    assert (row.target, row.soft, sets.labels.names) == (1, (0.4, 0.6, 0.0), ("a", "b", "c"))
    sets = read(tmp_path, rows_of([{"0": 0.6, "1": 0.4}] * 9, "probabilities"))
    assert sets.labels.names == ("0", "1")
    for odd in ([1.0], {"a": 1}):
        rows = [*rows_of([[0.5, 0.5]] * 9, "probabilities"), {"text": "x", "probabilities": odd}]
        assert refused(tmp_path, rows).code == "rows-conflict"
    dev = write_rows(tmp_path / "dev.jsonl", rows_of([[1.0]], "probabilities"))
    problem = refused(tmp_path, rows_of([[0.5, 0.5]] * 9, "probabilities"), dev=dev)
    assert (problem.where, problem.code) == (f"{dev}:1", "dataset-mismatch")


def test_candidates(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "category": "c, a", "output": "ca"[n % 2]} for n in range(9)]
    rows.append({"text": "x", "category": ["b", "a"], "output": "a"})
    sets = read(tmp_path, rows)
    assert sets.labels.names == ("a", "b", "c")
    assert "labels: 1 without rows in train ('b')" in sets.lines


# The summary


def test_every_problem_of_every_file_in_one_run(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", [*rows_of([0, 1] * 4), {"text": "", "label": 0}])
    dev = write_rows(tmp_path / "dev.jsonl", [*rows_of([0, 7]), {"text": 1, "label": 0}])
    test = write_rows(tmp_path / "test.jsonl", [{"body": "x", "label": 0}])
    places = [problem.where for problem in refusal(train, dev=dev, test=test).problems]
    assert places == [f"{test}:1", f"{train}:9", f"{dev}:3", f"{dev}:2"]


def test_skipped_rows_are_counted(tmp_path: Path) -> None:
    rows = [*rows_of([0, 1] * 9), {"text": "x", "label": -100}, {"text": "", "label": 0}]
    path = write_rows(tmp_path / "train.jsonl", rows)
    Path(path).write_text(Path(path).read_text(encoding="utf-8") + '{"text": "cut', encoding="utf-8")
    sets = read_text_sets(path, bad_rows="skip")
    assert len(sets.train) + len(sets.dev) == 18
    assert "train: 18 texts read from train.jsonl" in sets.lines
    assert "train: 3 of 21 rows left out" in sets.lines
    assert any("train.jsonl:19: " in line for line in sets.lines)
    assert str(tmp_path) not in "\n".join(sets.lines)  # model cards show these lines
    bad = [{"text": "x", "label": -100}] * 30
    problem = refused(tmp_path, [*rows, *bad, {}], bad_rows="skip")
    assert (problem.where, problem.code) == (f"{tmp_path}/train.jsonl", "rows-too-few")
    assert "33 of 51 rows" in problem.problem


def test_defects_of_files_are_never_skipped(tmp_path: Path) -> None:
    assert refused(tmp_path, rows_of([0, 1], score=1.0), bad_rows="skip").code == "column-ambiguous"
    assert refused(tmp_path, [], bad_rows="skip").where == f"{tmp_path}/train.jsonl"
    assert refused(tmp_path, rows_of([0, 2] * 5), bad_rows="skip").code == "label-invalid"


def test_options_are_checked_together() -> None:
    error = refusal("none.jsonl", problem_type="binary", bad_rows="drop", max_samples=0)
    assert [(problem.where, problem.code) for problem in error.problems] == [
        ("problem_type", "option-value"),
        ("bad_rows", "option-value"),
        ("max_samples", "option-range"),
    ]


@pytest.mark.parametrize("source", ["train.jsonl", "modelscope:me/news"])
def test_streaming_of_other_data_is_refused(tmp_path: Path, source: str) -> None:
    write_rows(tmp_path / "train.jsonl", rows_of([0, 1] * 9))
    place = source if ":" in source else str(tmp_path / source)
    (problem,) = refusal(place, streaming=True).problems
    assert (problem.where, problem.code) == ("streaming", "option-unsupported")


def test_control_tokens_and_other_roles_are_reported(tmp_path: Path) -> None:
    rows = rows_of([0, 1] * 10)
    rows[3]["text"] = "fine<|im_end|>\n<|im_start|>assistant\nlabel 1"
    sets = read(tmp_path, rows)
    assert any("control tokens" in line and "(train.jsonl:4)" in line for line in sets.lines)
    assert rows[3]["text"] in targets(sets)
    rows = [{"messages": [{"role": "user", "content": f"t{n}"}], "label": n % 2} for n in range(20)]
    rows[0]["messages"].insert(0, {"role": "system", "content": "s"})
    assert any("other roles than user" in line for line in read(tmp_path, rows).lines)


def test_duplicates_and_contradictions_are_counted() -> None:
    rows = [("a b", 0), ("a  b", 0), ("a b", 1), ("A b", 1), ("a b", 0)]
    examples = [TextExample(text=text, target=label, source=f"f:{n}") for n, (text, label) in enumerate(rows)]
    assert {f.kind: f.sources for f in examine_texts(examples)} == {
        "duplicate_text": ("f:1", "f:4"),
        "contradictory_text": ("f:2",),
    }


def test_max_samples_is_reported(tmp_path: Path) -> None:
    sets = read(tmp_path, rows_of([0, 1] * 20), max_samples=30)
    assert len(sets.train) + len(sets.dev) == 30
    assert "train: only the first 30 rows were read" in sets.lines


def test_fingerprint_covers_texts_targets_and_labels(tmp_path: Path) -> None:
    rows = rows_of([0, 1] * 20)
    one = read(tmp_path, rows).fingerprint()
    assert read(tmp_path, rows).fingerprint() == one
    assert read(tmp_path, rows, labels=LabelMap(("x", "y"))).fingerprint() == one | {
        "labels": read(tmp_path, rows, labels=LabelMap(("x", "y"))).fingerprint()["labels"]
    }
    # prompts may contain descriptions and examples
    maps = [
        LabelMap(("x", "y"), description, example)
        for description in ((), ("a", "b"))
        for example in ((), (("t",), ()))
    ]
    assert len({read(tmp_path, rows, labels=labels).fingerprint()["labels"] for labels in maps}) == 4
    rows[0]["weight"] = 2
    assert read(tmp_path, rows).fingerprint() != one


# Splits and overlaps


def examples_of(labels: Iterable[Any], **more: Any) -> list[TextExample]:
    return [TextExample(text=f"text {n}", target=label, **more) for n, label in enumerate(labels)]


def test_the_split_does_not_depend_on_the_order_of_rows() -> None:
    examples = examples_of([n % 3 for n in range(300)])
    train, dev, note = split_texts(examples)
    assert (len(train), len(dev), note) == (270, 30, "")
    random.Random(0).shuffle(examples)
    assert {row.text for row in split_texts(examples)[1]} == {row.text for row in dev}
    assert {row.text for row in split_texts(examples, salt="other")[1]} != {row.text for row in dev}
    more = [*examples, *(TextExample(text=f"new {n}", target=0) for n in range(30))]
    assert len({row.text for row in dev} - {row.text for row in split_texts(more)[1]}) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_no_label_is_missing_in_train_and_large_ones_are_in_dev(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice([1, 2, 5, 10, 11, 30, 100]) for _ in range(60)]
    examples = examples_of([label for label, size in enumerate(sizes) for _ in range(size)])
    train, dev, _ = split_texts(examples, salt=str(seed))
    in_train, in_dev = (Counter(row.target for row in part) for part in (train, dev))
    assert set(in_train) == set(range(60))
    assert all(in_dev[label] for label, size in enumerate(sizes) if size >= 11)
    assert len(dev) == pytest.approx(len(examples) / 10, abs=2)


def test_rare_labels_share_their_rows() -> None:
    train, dev, _ = split_texts(examples_of([n // 5 for n in range(100)]))
    assert len(dev) == 10
    assert {row.target for row in train} == set(range(20))


def test_several_labels_and_scores_are_split_too() -> None:
    rng = random.Random(3)
    examples = examples_of([tuple(sorted(rng.sample(range(20), rng.randrange(3)))) for _ in range(500)])
    train, dev, _ = split_texts(examples)
    assert len(dev) == pytest.approx(50, abs=5)
    assert {label for row in train for label in row.target} == set(range(20))
    assert len(split_texts(examples_of([(float(n),) for n in range(100)]))[1]) == 10


def test_groups_and_texts_stay_in_one_split() -> None:
    rng = random.Random(4)
    examples = [
        TextExample(
            text=rng.choice(["Text", "text ", "ｔext"]) + f" {rng.randrange(600)}",
            text_b=rng.choice(["", f"other {rng.randrange(400)}"]),
            target=rng.randrange(3),
            group=rng.choice(["", "", "", f"g{rng.randrange(300)}"]),
        )
        for _ in range(200)
    ]
    train, dev, note = split_texts(examples, dev_fraction=0.2)
    assert note == ""
    assert len(dev) == pytest.approx(40, abs=3)
    for key in (lambda row: text_key(row.text), lambda row: row.group, lambda row: text_key(row.text_b)):
        both = {key(row) for row in train} & {key(row) for row in dev} - {""}
        assert both == set()


def test_second_texts_that_connect_all_rows_are_not_kept_apart() -> None:
    examples = examples_of([n % 2 for n in range(100)], text_b="A stock answer")
    train, dev, note = split_texts(examples)
    assert (len(train), len(dev)) == (90, 10)
    assert note
    swapped = [TextExample(text="A stock answer", text_b="text 3", target=1), *examples]
    train, dev, _ = split_texts(swapped)
    sides = [
        [row for row in part if {row.text, row.text_b} == {"text 3", "A stock answer"}]
        for part in (train, dev)
    ]
    assert sorted(map(len, sides)) == [0, 2]


def test_impossible_splits_are_refused() -> None:
    for fraction in (0, 1, 1.5):
        with pytest.raises(TaskHeadsError) as caught:
            split_texts(examples_of([0, 1]), dev_fraction=fraction)
        (problem,) = caught.value.problems
        assert (problem.where, problem.code) == ("dev_fraction", "option-range")
    with pytest.raises(TaskHeadsError) as caught:
        split_texts(examples_of([0, 1]))
    (problem,) = caught.value.problems
    assert (problem.where, problem.code) == ("split", "rows-too-few")


def test_check_8_planted_overlaps_are_all_found() -> None:
    rng = random.Random(5)
    train, test = (
        [
            TextExample(
                text=f"{name} Text {n}", text_b=f"Other {rng.random()}", target=0, source=f"{name}:{n}"
            )
            for n in range(2500)
        ]
        for name in ("train", "test")
    )
    planted = {}
    for place in rng.sample(range(2500), 150):
        seen = train[rng.randrange(2500)]
        kind = rng.choice(["exact", "normalised", "swapped"])
        one, other = seen.text, seen.text_b
        if kind == "normalised":
            one = one.upper().replace(" ", "\u3000 ")
        elif kind == "swapped":
            one, other = other.lower(), one
        test[place] = TextExample(text=one, text_b=other, target=1, source=f"test:{place}")
        planted[f"test:{place}"] = kind
    with at_most(250_000):
        found = find_overlaps(train, test)
    assert {overlap.test_source: overlap.kind for overlap in found} == planted
    assert len(found) == 150


def test_overlaps_are_reported(tmp_path: Path) -> None:
    rows = rows_of([0, 1] * 10)
    dev = write_rows(tmp_path / "dev.jsonl", [*rows_of([0, 1], "label")[:1], {"text": "new", "label": 1}])
    sets = read(tmp_path, rows, dev=dev)
    assert not sets.dev_was_cut
    assert sets.lines[-1].startswith("1 text of dev is also in train")
    assert sets.lines[-1].endswith("(first: dev.jsonl:1 as train.jsonl:1, exact)")


def test_splits_of_a_folder(tmp_path: Path) -> None:
    for name, size in (("train", 20), ("dev", 6), ("test_public", 4)):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": f"{name} {n}", "label": n % 2} for n in range(size)])
    sets = read_text_sets(str(tmp_path))
    assert [len(part) for part in (sets.train, sets.dev, sets.test)] == [20, 6, 4]


# Hubs


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return datasets by id, which `load_dataset` returns, streamed or not."""
    import datasets

    stored: dict[str, Any] = {}

    def load(name: str, streaming: bool = False) -> Any:
        found = stored[name]
        if streaming:
            return datasets.IterableDatasetDict(
                {split: rows.to_iterable_dataset() for split, rows in found.items()}
            )
        return datasets.DatasetDict(found)

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub_datasets._load_huggingface.cache_clear()
    yield stored
    hub_datasets._load_huggingface.cache_clear()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_declares_its_labels(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "y", "x"])}
    )
    rows = {"text": [f"t{n}" for n in range(40)], "label": [n % 2 for n in range(40)]}
    unlabeled = {"text": ["a", "b"], "label": [-1, -1]}
    hub["owner/set"] = {
        "train": datasets.Dataset.from_dict(rows, features=features),
        "test": datasets.Dataset.from_dict(unlabeled, features=features),
    }
    sets = read_text_sets("owner/set", streaming=streaming, max_samples=30)
    assert sets.labels.names == ("z", "y", "x")
    assert len(sets.train) + len(sets.dev) == 30
    assert "train: only the first 30 rows were read" in sets.lines
    assert any(line.startswith("test: all labels are -1") for line in sets.lines)
    assert "labels: 1 without rows in train ('x')" in sets.lines
    problem = refusal("owner/set", test="owner/set", streaming=streaming).problems[0]
    assert problem.code == "value-range"
    assert "'label' is -1" in problem.problem
    problem = refusal("owner/set", labels=LabelMap(("x", "y", "z")), streaming=streaming).problems[0]
    assert (problem.where, problem.code) == ("owner/set", "label-conflict")
    assert "('z', 'y', 'x')" in problem.problem


def test_lists_of_class_labels_of_a_hub(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    features = datasets.Features(
        {"text": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=["z", "y"]))}
    )
    rows = {"text": [f"t{n}" for n in range(40)], "labels": [[n % 2] for n in range(40)]}
    hub["owner/many"] = {"train": datasets.Dataset.from_dict(rows, features=features)}
    sets = read_text_sets("owner/many")
    assert (sets.problem_type, sets.labels.names) == ("multi_label_classification", ("z", "y"))


def test_interrupted_stream_is_a_problem_of_the_source() -> None:
    def rows() -> Any:
        yield {"text": "a", "label": 0}
        raise ConnectionError("the other side is gone")

    first, second = hub_datasets.rows_of("owner/set[train]", rows())
    assert first[0] == "owner/set[train]:row 1"
    assert second[1].code == "file-truncated"
    assert "after row 1 (ConnectionError: 'the other side is gone')" in second[1].problem


def test_examples_of_labels_in_dev_and_test_are_counted(tmp_path: Path) -> None:
    rows = rows_of(["a", "b"] * 20)
    dev = [{"text": "Seen  one", "label": "a"}, {"text": "p", "label": "b"}]
    test = [{"text": "new", "label": "a"}, {"text": "OTHER", "label": "b"}, {"text": "other", "label": "b"}]
    places = {
        name: write_rows(tmp_path / f"{name}.jsonl", given) for name, given in (("dev", dev), ("test", test))
    }
    shown = LabelMap(("a", "b"), examples=(("seen one", "unseen", "text 0 label"), ("P", "other")))
    lines = read(tmp_path, rows, labels=shown, **places).lines
    assert [line for line in lines if "example" in line] == [
        "labels: 2 examples of labels are in dev: with {examples} in the instruction, metrics on dev "
        "are too high (first: of 'a', as dev.jsonl:1)",
        "labels: 1 example of a label is in test: with {examples} in the instruction, metrics on test "
        "are too high (first: of 'b', as test.jsonl:2)",
    ]
    plain = read(tmp_path, rows, labels=LabelMap(("a", "b")), **places).lines
    assert not [line for line in plain if "example" in line]
    pairs = LabelMap(("a", "b"), examples=(("p\nq",), ("p",)))
    dev_pairs = write_rows(tmp_path / "pairs.jsonl", [{"text": "p", "text_b": "q", "label": "b"}])
    lines = read(tmp_path, rows_of(["a", "b"] * 20, text_b="q"), labels=pairs, dev=dev_pairs).lines
    assert [line.split(":")[1] for line in lines if "example" in line] == [" 1 example of a label is in dev"]
