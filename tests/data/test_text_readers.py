"""Columns of labelled texts, row by row and file by file; and texts to predict."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from records import ASKED

from qwen_task_heads.data.raw_texts import RawText, RawTexts
from qwen_task_heads.data.schema import CONVERSATIONS, TARGETS, TEXTS, TextColumns
from qwen_task_heads.data.text_readers import TextInput, read_inputs, read_texts
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode import configuration_task_heads
from qwen_task_heads.hubcode.configuration_task_heads import PROBLEM_TYPES
from qwen_task_heads.sources.json_files import FileProblem


def write_rows(path: Path, rows: Iterable[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_rows(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> RawTexts:
    texts = read_texts(write_rows(tmp_path / "a.jsonl", rows), **options)
    assert texts.rows_read == len(texts) + texts.refused
    return texts


def only(texts: RawTexts) -> RawText:
    assert (texts.problems, texts.file_problems) == ([], [])
    return next(iter(texts))


def said(content: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": content}


def test_the_problem_types_are_those_of_the_models() -> None:
    assert set(PROBLEM_TYPES) == set(configuration_task_heads.PROBLEM_TYPES)


@pytest.mark.parametrize("layout", TEXTS, ids=lambda layout: "+".join(layout.columns))
def test_every_column_layout_of_texts(tmp_path: Path, layout: TextColumns) -> None:
    columns = layout.columns
    target = {"questions": ASKED, "answers": {"refund": True}} if layout.needs else {"label": 0}
    row: dict[str, Any] = {name: f" {name} \n" for name in columns} | target | {"id": 7}
    if columns[0] in CONVERSATIONS:
        row[columns[0]] = [said(columns[0])]
    raw = only(read_rows(tmp_path, row))
    texts = ("\n".join(columns), "") if layout.are_joined else (*columns, "")[:2]
    assert (raw.text, raw.text_b) == texts
    assert raw.target.where == f"{tmp_path}/a.jsonl:1"


def test_text_of_a_conversation_is_that_of_the_user(tmp_path: Path) -> None:
    messages = [said("Be brief", "system"), said("One"), said("Yes?", "assistant"), said("Two")]
    texts = read_rows(tmp_path, {"messages": messages, "label": 1}, {"messages": [said("x")], "label": 0})
    assert only(texts).text == "One\nTwo"
    assert texts.spoken == [f"{tmp_path}/a.jsonl:1"]


@pytest.mark.parametrize(
    ("row", "kind", "value"),
    [
        ({"label": 3}, "single_label_classification", 3),
        ({"labels": "a|b"}, "multi_label_classification", ["a", "b"]),
        ({"labels": "['a', 'b']"}, "multi_label_classification", ["a", "b"]),
        ({"score": "3.5"}, "regression", (3.5,)),
        ({"label": "sport"}, "single_label_classification", "sport"),
        ({"labels": [3, 1]}, "multi_label_classification", [3, 1]),
        ({"labels": ["a ", "b"]}, "multi_label_classification", ["a", "b"]),
        ({"labels": []}, "multi_label_classification", []),
        ({"score": 3}, "regression", (3.0,)),
        ({"score": [1, 2.5]}, "regression", (1.0, 2.5)),
        ({"probabilities": [0.25, 0.75]}, "single_label_classification", [0.25, 0.75]),
        ({"probabilities": {"a": 1, "b": 0}}, "single_label_classification", {"a": 1.0, "b": 0.0}),
        ({"category": ["a", "b"], "output": "b"}, "single_label_classification", "b"),
    ],
)
def test_every_kind_of_target(tmp_path: Path, row: dict[str, Any], kind: str, value: Any) -> None:
    texts = read_rows(tmp_path, {"text": "x"} | row)
    assert (texts.kind, only(texts).target.value) == (kind, value)


@pytest.mark.parametrize(
    ("header", "cell", "problem_type", "value"),
    [
        ("label", "3", None, 3),
        ("label", " sport ", None, "sport"),
        ("label", "007", None, "007"),
        ("labels", "a|b", None, ["a", "b"]),
        ("labels", "3", None, [3]),
        ("labels", '"[1, 2]"', None, [1, 2]),
        ("labels", "[]", None, []),
        ("score", "1.5", None, (1.5,)),
        ("score", '"[1, 2]"', None, (1.0, 2.0)),
        ("label", "2", "regression", (2.0,)),
        ("probabilities", '"[0.5, 0.5]"', None, [0.5, 0.5]),
        ("probabilities", '"{""a"": 0.5, ""b"": 0.5}"', None, {"a": 0.5, "b": 0.5}),
    ],
)
def test_cells_of_tables_are_parsed(
    tmp_path: Path, header: str, cell: str, problem_type: str | None, value: Any
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text,{header}\nx,{cell}\n", encoding="utf-8")
    assert only(read_texts(str(path), problem_type=problem_type)).target.value == value


@pytest.mark.parametrize("category", ["a, b", "a|b", "['a', 'b']", '["a", "b"]', "a，b", ["a", "b "], "a、b"])
def test_candidates_in_every_spelling(tmp_path: Path, category: object) -> None:
    raw = only(read_rows(tmp_path, {"text": "x", "category": category, "output": "b"}))
    assert (raw.target.candidates, raw.target.value) == (("a", "b"), "b")


BAD_ROWS: list[tuple[dict[str, Any], str, str]] = [
    ({"label": True}, "value-type", "True"),
    ({"label": None}, "value-missing", "None"),
    ({"label": 1.5}, "value-type", "1.5"),
    ({"label": math.nan}, "value-missing", "nan"),
    ({"label": -100}, "value-range", "-100"),
    ({"label": -1}, "value-range", "-1"),
    ({"label": 10**30}, "value-range", "1000"),
    ({"label": " "}, "value-missing", "' '"),
    ({"label": ["a"]}, "value-type", "['a']"),
    ({"label": {}}, "value-type", "{}"),
    ({"label": 1, "label_name": ""}, "value-missing", "'label_name' is ''"),
    ({"label": 1, "label_name": 3}, "value-type", "'label_name' is 3"),
    ({"labels": 3}, "value-type", "3"),
    ({"labels": None}, "value-missing", "None"),
    ({"labels": [1, "a"]}, "value-type", "ids and names"),
    ({"labels": [1, 1]}, "value-conflict", "[1, 1]"),
    ({"labels": [True]}, "value-type", "True"),
    ({"labels": [0.0, 1.0]}, "value-type", "0.0"),
    ({"score": "three"}, "value-type", "'three'"),
    ({"score": math.inf}, "value-range", "inf"),
    ({"score": True}, "value-type", "True"),
    ({"score": []}, "value-missing", "[]"),
    ({"score": None}, "value-missing", "None"),
    ({"score": [1, None]}, "value-missing", "[1, None]"),
    ({"score": 10**400}, "value-range", "1000"),
    ({"probabilities": [0.5, 0.4]}, "value-range", "0.9"),
    ({"probabilities": [1.5, -0.5]}, "value-range", "1.5"),
    ({"probabilities": ["1"]}, "value-type", "'1'"),
    ({"probabilities": []}, "value-type", "[]"),
    ({"probabilities": 1}, "value-type", "1"),
    ({"category": ["a"], "output": "b"}, "value-conflict", "'b'"),
    ({"category": [], "output": "b"}, "value-type", "'category' is []"),
    ({"category": ["a"], "output": 1}, "value-type", "'output' is 1"),
    ({"category": ["a", "b", "a "], "output": "b"}, "value-conflict", "'a'"),
    ({"category": "a, b, a", "output": "b"}, "value-conflict", "'a'"),
    ({"text": ""}, "text-empty", "'text'"),
    ({"text": " \n"}, "text-empty", "'text'"),
    ({"text": "\u200b\ufeff"}, "text-empty", "'text'"),
    ({"text": 7}, "value-type", "7"),
    ({"text": None}, "value-missing", "None"),
    ({"weight": 0}, "value-range", "0"),
    ({"weight": "2"}, "value-type", "'2'"),
    ({"group_id": None}, "value-missing", "None"),
]


@pytest.mark.parametrize(("row", "code", "value"), BAD_ROWS, ids=[str(row)[:40] for row, *_ in BAD_ROWS])
def test_bad_value_is_refused_with_its_line(
    tmp_path: Path, row: dict[str, Any], code: str, value: str
) -> None:
    target = {} if set(row) & set(TARGETS) else {"label": 0}
    texts = read_rows(tmp_path, {"text": "x"} | target | row)
    assert texts.refused == 1
    (problem,) = texts.problems
    assert (problem.where, problem.code) == (f"{tmp_path}/a.jsonl:1", code)
    assert value in problem.problem


def test_fix_names_the_column_of_one_or_several_labels(tmp_path: Path) -> None:
    for row, column in (({"label": ["a"]}, "'labels'"), ({"labels": 3}, "'label'")):
        (problem,) = read_rows(tmp_path, {"text": "x"} | row).problems
        assert f"rename the column to {column}" in problem.fix


def test_all_problems_of_a_row_are_reported(tmp_path: Path) -> None:
    texts = read_rows(tmp_path, {"text": "", "label": -1, "weight": 0}, {"text": "x", "label": 0})
    assert [problem.code for problem in texts.problems] == ["text-empty", "value-range", "value-range"]
    assert (texts.refused, len(texts), texts.unlabeled) == (1, 1, 1)


@pytest.mark.parametrize(
    ("row", "problem_type", "code", "text"),
    [
        ({"body": "x", "label": 0}, None, "column-missing", "body"),
        ({"Text": "x", "label": 0}, None, "column-missing", "rename 'Text' to 'text'"),
        ({"text": "x", "messages": [], "label": 0}, None, "column-ambiguous", "messages, text"),
        ({"text_a": "x", "label": 0}, None, "column-missing", "text_a"),
        ({"text": "x"}, None, "column-missing", "text"),
        ({"text": "x", "lable": 0}, None, "column-missing", "rename 'lable' to 'label'"),
        ({"text": "x", "label": 0, "score": 1.0}, None, "column-ambiguous", "label, score"),
        (
            {"text": "x", "label": 0, "probabilities": [1]},
            "single_label_classification",
            "column-ambiguous",
            "label, probabilities",
        ),
        ({"text": "x", "label": 0, "wieght": 1}, None, "column-unknown", "'weight'"),
        ({"text": "x", "score": 1.0}, "single_label_classification", "column-missing", "score"),
        ({"text": "x", "output": "a"}, None, "column-missing", "output"),
    ],
)
def test_defect_of_all_rows_is_reported_once(
    tmp_path: Path, row: dict[str, Any], problem_type: str | None, code: str, text: str
) -> None:
    texts = read_rows(tmp_path, row, row, problem_type=problem_type)
    (problem,) = texts.file_problems
    assert isinstance(problem, FileProblem)
    assert problem.code == code
    assert text in str(problem)
    assert (texts.refused, texts.problems) == (2, [])


def test_the_problem_type_decides_between_targets(tmp_path: Path) -> None:
    row = {"text": "x", "label": 0, "score": 1.5, "labels": [1], "id": 3, "idx": 4, "source": "y"}
    for problem_type, value in (("regression", (1.5,)), ("multi_label_classification", [1]), ("ordinal", 0)):
        assert only(read_rows(tmp_path, row, problem_type=problem_type)).target.value == value


def test_weights_and_groups(tmp_path: Path) -> None:
    raw = only(read_rows(tmp_path, {"text": "x", "label": 0, "weight": 2, "group": "g", "group_id": 7}))
    assert (raw.weight, raw.group) == (2.0, "7")


def test_class_files(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes("\ufeff词汇阅读\t3\r\n\nno label\na\tb\t1\nlast\tsport".encode() + b"\n\xff\t1\n")
    texts = read_texts(str(path))
    assert [(raw.text, raw.target.value) for raw in texts] == [("词汇阅读", 3), ("last", "sport")]
    assert [problem.where.rsplit(":")[-1] for problem in texts.problems] == ["3", "4", "6"]
    assert texts.problems[0].code == "column-missing"
    assert texts.rows_read == 5


def test_readme_and_label_files_of_a_folder_are_not_read(tmp_path: Path) -> None:
    for name in ("readme.txt", "class.txt", "train.txt"):
        (tmp_path / name).write_text("x\t0\n", encoding="utf-8")
    assert read_texts(str(tmp_path), split="train").rows_read == 1
    write_rows(tmp_path / "train.jsonl", [{"text": "y", "label": 1}])
    assert [raw.text for raw in read_texts(str(tmp_path), split="train")] == ["y"]


def test_max_samples_stops_reading(tmp_path: Path) -> None:
    rows = [{"text": f"t{number}", "label": 0} for number in range(10)]
    for name in ("train-1.jsonl", "train-2.jsonl"):
        write_rows(tmp_path / name, rows)
    for wanted, cut_at in ((4, 4), (10, 10), (15, 15), (20, None), (99, None)):
        texts = read_texts(str(tmp_path), split="train", max_samples=wanted)
        assert (len(texts), texts.cut_at) == (min(wanted, 20), cut_at)


def inputs(source: Path | str, **options: Any) -> list[TextInput | Problem]:
    return [item for _, item in read_inputs(str(source), **options)]


def test_texts_to_predict_keep_their_rows(tmp_path: Path) -> None:
    rows = [{"id": 7, "text": " one ", "label": None, "labels": "?"}, {"text": ""}, {"text": "two", "x": [1]}]
    one, two, three = inputs(write_rows(tmp_path / "a.jsonl", rows))
    assert one == TextInput(text="one", row=rows[0], source=f"{tmp_path}/a.jsonl:1")
    assert isinstance(two, Problem)
    assert two.where == f"{tmp_path}/a.jsonl:2"
    assert isinstance(three, TextInput)


def test_texts_to_predict_in_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_text("text,id\none,1\ntwo,2\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("one\ntwo\t3\n", encoding="utf-8")
    (tmp_path / "a.json").write_text('[{"text": "one"}, {"text": "two"}]', encoding="utf-8")
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.txt", "a.json", "a.parquet"):
        assert [item.text for item in inputs(tmp_path / name) if isinstance(item, TextInput)] == [
            "one",
            "two",
        ]


def test_other_text_columns_in_a_later_row_are_refused(tmp_path: Path) -> None:
    rows = [{"x": 1}, {"text": "a"}, {"text": "a", "text_b": "b"}, {"y": 1}, {"text": "c"}]
    items = inputs(write_rows(tmp_path / "a.jsonl", rows))
    assert [isinstance(item, TextInput) for item in items] == [False, True, False, False, True]
    assert isinstance(items[2], Problem)
    assert (items[2].where, items[2].code) == (f"{tmp_path}/a.jsonl:3", "column-ambiguous")
    assert "text and text_b" in items[2].problem


def test_defective_inputs(tmp_path: Path) -> None:
    with pytest.raises(TaskHeadsError, match="no such file"):
        read_inputs(str(tmp_path / "none.jsonl"))
    (tmp_path / "a.jsonl").write_bytes(b"\x1f\x8b\x08")
    (item,) = inputs(tmp_path / "a.jsonl")
    assert isinstance(item, FileProblem)


def test_inputs_of_jsonl_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' * 10 + "{", encoding="utf-8")
    stream = read_inputs(str(path))
    assert [next(stream)[0].rsplit(":")[-1] for _ in range(10)] == [str(n) for n in range(1, 11)]
    assert isinstance(next(stream)[1], Problem)
