"""Data with labels that a saved model lacks: which labels a run has, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.training.added_labels import read_datasets_for

OWN = ("sport", "money", "health")  # not sorted: the order of a label file
SINGLE = "single_label_classification"


def saved(names: tuple[str, ...] = OWN, kind: str = SINGLE, **said: Any) -> dict[str, Any]:
    return {"labels": LabelMap(names, **said), "problem_type": kind}


def write(path: Path, labels: list[Any], *, column: str = "label", **more: list[Any]) -> str:
    """Write eight rows per label."""
    path.parent.mkdir(exist_ok=True, parents=True)
    rows = [
        {"text": f"{path.stem} {place} {number}", column: label}
        | {name: values[place] for name, values in more.items()}
        for number in range(8)
        for place, label in enumerate(labels)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def named(sets: Any) -> set[str]:
    """Return the label name of each text that has one."""
    return {sets.labels.names[row.target] for row in sets.train}


def added(sets: Any) -> list[str]:
    return [line for line in sets.lines if "new (" in line]


def places(source: str, own: dict[str, Any]) -> set[str]:
    """Return the files with refused rows."""
    with pytest.raises(TaskHeadsError) as caught:
        read_datasets_for(source, own)
    return {problem.where.rsplit(":", 1)[0] for problem in caught.value.problems}


def test_new_names_are_sorted_and_follow_the_labels_of_the_model(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", ["art", "health", "cars", "sport", "money"])
    sets = read_datasets_for(data, saved())
    assert sets.labels.names == (*OWN, "art", "cars")
    assert named(sets) == {*sets.labels.names}
    [line] = added(sets)
    assert line.index("'health'") < line.index("'art'")


def test_the_order_of_rows_does_not_change_the_labels(tmp_path: Path) -> None:
    one = read_datasets_for(write(tmp_path / "a.jsonl", ["cars", "sport", "art"]), saved())
    other = read_datasets_for(write(tmp_path / "b.jsonl", ["art", "cars", "sport"]), saved())
    assert one.labels == other.labels


def test_rows_of_fewer_labels_keep_all_labels_of_the_model(tmp_path: Path) -> None:
    sets = read_datasets_for(write(tmp_path / "a.jsonl", ["money", "health"]), saved())
    assert sets.labels.names == OWN
    assert added(sets) == []


def test_rows_of_new_labels_alone(tmp_path: Path) -> None:
    """A dev set with the labels of the model is accepted."""
    data = write(tmp_path / "train.jsonl", ["art", "cars"])
    dev = write(tmp_path / "dev.jsonl", [*OWN, "art", "cars"])
    for where in ({"source": data, "dev": dev}, {"source": str(tmp_path)}):
        sets = read_datasets_for(saved=saved(), **where)
        assert sets.labels.names == (*OWN, "art", "cars")
        assert len(sets.dev) == 40


def test_a_new_label_in_dev_alone_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ["sport", "money"])
    write(tmp_path / "dev.jsonl", ["sport", "art"])
    assert places(str(tmp_path), saved()) == {str(tmp_path / "dev.jsonl")}


@pytest.mark.parametrize("name", ["labels.yaml", "class.txt"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_label_file_that_adds_labels_states_the_order(tmp_path: Path, name: str, beside: bool) -> None:
    order = ["cars", "health", "sport", "art", "money"]
    data = write(tmp_path / "data" / "train.jsonl", ["sport", "art"])
    file = (tmp_path / "data" if beside else tmp_path) / name
    file.write_text("".join(f"- {label}\n" if name.endswith("yaml") else f"{label}\n" for label in order))
    options = {} if beside else {"labels": str(file)}
    sets = read_datasets_for(data, saved(), **options)
    assert [*sets.labels.names] == order
    assert named(sets) == {"sport", "art"}
    assert len(added(sets)) == 1


@pytest.mark.parametrize("value", [int, str])
def test_ids_of_a_label_file_are_those_of_the_file(tmp_path: Path, value: Any) -> None:
    """As in `train.txt` with `class.txt`, ids are those of the file and not those of the model."""
    order = ["cars", "health", "sport", "art", "money"]
    data = write(tmp_path / "train.jsonl", [value(place) for place in range(5)], name=order)
    (tmp_path / "class.txt").write_text("\n".join(order))
    sets = read_datasets_for(data, saved())
    assert [*sets.labels.names] == order
    for row in sets.train:
        assert row.target == int(row.text.split()[1])


def test_class_files_add_labels(tmp_path: Path) -> None:
    order = ["cars", "health", "sport", "money"]
    lines = [f"text {place} {number}\t{place}\n" for number in range(8) for place in range(4)]
    (tmp_path / "train.txt").write_text("".join(lines))
    (tmp_path / "class.txt").write_text("\n".join(order))
    sets = read_datasets_for(str(tmp_path), saved())
    assert [*sets.labels.names] == order
    assert all(row.target == int(row.text.split()[1]) for row in sets.train)


def test_names_of_a_declared_column_are_labels(tmp_path: Path) -> None:
    order = ["cars", "health", "sport", "art", "money"]
    data = write(tmp_path / "a.jsonl", [*range(5)], label_name=order)
    sets = read_datasets_for(data, saved())
    assert [*sets.labels.names] == order
    assert all(row.target == int(row.text.split()[1]) for row in sets.train)


def test_declared_ids_that_contradict_those_of_the_model_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [0, 1, 2], label_name=["money", "sport", "art"])
    assert places(data, saved()) == {data}


def test_ids_without_names_add_no_label_to_names(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [*range(5)])
    assert places(data, saved()) == {data}


def test_ids_add_ids(tmp_path: Path) -> None:
    own = saved(("0", "1", "2"))
    assert read_datasets_for(write(tmp_path / "a.jsonl", [*range(5)]), own).labels.names == tuple("01234")
    assert read_datasets_for(write(tmp_path / "b.jsonl", [3, 4]), own).labels.names == tuple("01234")
    for name, ids in (("c.jsonl", [0, 1, 2, 4]), ("d.jsonl", [0, 400_000_000])):  # a gap
        data = write(tmp_path / name, ids)
        assert places(data, own) == {data}


def test_another_spelling_of_a_label_is_no_new_label(tmp_path: Path) -> None:
    """A new label of the same file is not reported."""
    data = write(tmp_path / "a.jsonl", ["sport", "Money", "art"])
    with pytest.raises(TaskHeadsError) as caught:
        read_datasets_for(data, saved())
    assert all("'Money'" in problem.problem for problem in caught.value.problems)
    assert "'money'" in caught.value.problems[0].fix
    sets = read_datasets_for(write(tmp_path / "b.jsonl", ["sport", "money", "art"]), saved())
    assert sets.labels.names == (*OWN, "art")


def test_an_alias_of_a_label_is_no_new_label(tmp_path: Path) -> None:
    own = saved(aliases=((), ("cash",), ()))
    sets = read_datasets_for(write(tmp_path / "a.jsonl", ["sport", "cash", "art"]), own)
    assert sets.labels.names == (*OWN, "art")
    assert sets.labels.aliases == ((), ("cash",), (), ())
    assert named(sets) == {"sport", "money", "art"}


def test_defective_rows_do_not_include_new_labels(tmp_path: Path) -> None:
    data = Path(write(tmp_path / "a.jsonl", ["sport", "money", "art"]))  # most rows are of old labels
    data.write_text(data.read_text() + '{"text": "", "label": "sport"}\n')
    with pytest.raises(TaskHeadsError) as caught:
        read_datasets_for(str(data), saved())
    assert [problem.where for problem in caught.value.problems] == [f"{data}:25"]
    sets = read_datasets_for(str(data), saved(), bad_rows="skip")
    assert sets.labels.names == (*OWN, "art")
    assert len(sets.train) + len(sets.dev) == 24


def test_several_labels_a_row(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [["sport", "art"], [], ["cars", "money"]], column="labels")
    sets = read_datasets_for(data, saved(kind="multi_label_classification"))
    assert sets.labels.names == (*OWN, "art", "cars")
    assert {row.target for row in sets.train} == {(0, 3), (), (1, 4)}


def test_probabilities_by_name(tmp_path: Path) -> None:
    rows = [{"sport": 0.5, "art": 0.5}, {"money": 1.0}]
    sets = read_datasets_for(write(tmp_path / "a.jsonl", rows, column="probabilities"), saved())
    assert sets.labels.names == (*OWN, "art")
    assert {row.soft for row in sets.train} == {(0.5, 0.0, 0.0, 0.5), (0.0, 1.0, 0.0, 0.0)}


def test_candidates_of_rows_are_labels(tmp_path: Path) -> None:
    offers = [["sport", "art"], ["money", "cars"]]
    data = write(tmp_path / "a.jsonl", ["sport", "cars"], column="output", category=offers)
    assert read_datasets_for(data, saved()).labels.names == (*OWN, "art", "cars")


@pytest.mark.parametrize("labels", [["money", "sport", "health"], ["sport", "art", "money"]])
def test_a_label_file_that_leaves_one_out_or_only_reorders_is_refused(
    tmp_path: Path, labels: list[str]
) -> None:
    data = write(tmp_path / "a.jsonl", ["sport", "money"])
    file = tmp_path / "names.yaml"
    file.write_text(json.dumps(labels))
    with pytest.raises(TaskHeadsError) as caught:
        read_datasets_for(data, saved(), labels=str(file))
    assert [problem.where for problem in caught.value.problems] == [str(file)]
    assert read_datasets_for(data, saved()).labels.names == OWN  # the fix: without the file
    file.write_text(json.dumps([*OWN, *labels[1:2]] if "art" in labels else [*OWN]))
    assert set(read_datasets_for(data, saved(), labels=str(file)).labels.names) >= {
        *OWN
    }  # or with all of them


@pytest.mark.parametrize("given", [False, True])
def test_an_ordinal_model_takes_no_further_labels(tmp_path: Path, given: bool) -> None:
    file = tmp_path / "scale.yaml"
    file.write_text('["0", "1", "2", "3"]')
    data = write(tmp_path / "a.jsonl", [0, 1, 2, 3])
    with pytest.raises(TaskHeadsError) as caught:
        read_datasets_for(data, saved(("0", "1", "2"), "ordinal"), **({"labels": str(file)} if given else {}))
    assert [problem.where for problem in caught.value.problems] == [str(file) if given else data]
    data = write(tmp_path / "b.jsonl", [0, 1])
    assert read_datasets_for(data, saved(("0", "1", "2"), "ordinal")).labels.names == ("0", "1", "2")


def test_scores_of_a_regression_are_read(tmp_path: Path) -> None:
    own = saved(("score",), "regression")
    data = write(tmp_path / "a.jsonl", [0.5, 1.5, 2.5], column="score")
    assert read_datasets_for(data, own).labels.names == ("score",)
    data = write(tmp_path / "b.jsonl", [[0.5, 1.0], [1.5, 0.0]], column="score")
    assert places(data, own) == {data}


def test_a_plain_backbone_has_the_labels_of_the_data(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", ["sport", "art"])
    assert read_datasets_for(data, {}).labels.names == ("art", "sport")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskHeadsError):
        read_datasets_for(str(tmp_path / "nowhere.jsonl"), saved())
