"""Files in the layouts of other tools are read as those tools mean them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qwen_task_heads.data import schema
from qwen_task_heads.data.pair_readers import PairData, read_pairs
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.text_readers import TextInput, read_inputs, read_texts
from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.sources.file_options import options_of

ASKED = "About cats"


def lines(path: Path, rows: Iterable[object]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(content: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": content}


def spoken(value: str, who: str = "gpt") -> dict[str, str]:
    return {"from": who, "value": value}


def one(data: PairData) -> tuple[str, str, str]:
    return data.pairs[0].prompt, data.pairs[0].chosen, data.pairs[0].rejected


TURNS = [said("Be brief", "system"), said(ASKED, "user")]
HH = "\n\nHuman: About cats\n\nAssistant: "
PREFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({"prompt": ASKED, "chosen": "Cats!", "rejected": "On cats"}, ASKED),
    "trl, the prompt apart": (
        {"prompt": [said(ASKED, "user")], "chosen": [said("Cats!")], "rejected": [said("On cats")]},
        ASKED,
    ),
    "ultrafeedback": (
        {
            "prompt": ASKED,
            "prompt_id": "7",
            "score_chosen": 8.5,
            "score_rejected": 2.0,
            "chosen": [said(ASKED, "user"), said("Cats!")],
            "rejected": [said(ASKED, "user"), said("On cats")],
            "messages": [said(ASKED, "user"), said("Cats!")],
        },
        ASKED,
    ),
    "ultrafeedback, with a system message": (
        {"prompt": ASKED, "chosen": [*TURNS, said("Cats!")], "rejected": [*TURNS, said("On cats")]},
        f"Be brief\n{ASKED}",
    ),
    "a prompt of messages that are repeated": (
        {"prompt": TURNS, "chosen": [*TURNS, said("Cats!")], "rejected": [*TURNS, said("On cats")]},
        f"Be brief\n{ASKED}",
    ),
    "a system message in the prompt alone": (
        {
            "prompt": TURNS,
            "chosen": [TURNS[1], said("Cats!")],
            "rejected": [TURNS[1], said("On cats")],
        },
        f"Be brief\n{ASKED}",
    ),
    "another prompt before the conversation": (
        {"prompt": "Shop 7", "chosen": [TURNS[1], said("Cats!")], "rejected": [TURNS[1], said("On cats")]},
        f"Shop 7\n{ASKED}",
    ),
    "hh-rlhf": ({"chosen": f"{HH}Cats!", "rejected": f"{HH}On cats"}, ASKED),
    "llama-factory, alpaca": (
        {"instruction": "A title:", "input": ASKED, "chosen": "Cats!", "rejected": "On cats"},
        f"A title:\n{ASKED}",
    ),
    "llama-factory, alpaca without input": (
        {"instruction": ASKED, "input": "", "chosen": "Cats!", "rejected": "On cats"},
        ASKED,
    ),
    "llama-factory, sharegpt": (
        {"conversations": [spoken(ASKED, "human")], "chosen": spoken("Cats!"), "rejected": spoken("On cats")},
        ASKED,
    ),
    "ms-swift": (
        {"messages": [said(ASKED, "user"), said("Cats!")], "rejected_response": "On cats"},
        ASKED,
    ),
    "orca": (
        {"system": "Be brief", "question": ASKED, "chosen": "Cats!", "rejected": "On cats"},
        f"Be brief\n{ASKED}",
    ),
    "query": ({"query": ASKED, "chosen": "Cats!", "rejected": "On cats"}, ASKED),
}


@pytest.mark.parametrize("layout", PREFERENCES)
def test_preferences_of_every_layout(tmp_path: Path, layout: str) -> None:
    row, prompt = PREFERENCES[layout]
    assert one(read_pairs(lines(tmp_path / "a.jsonl", [row]))) == (prompt, "Cats!", "On cats")


@pytest.mark.parametrize("layout", [name for name in PREFERENCES if name != "hh-rlhf"])
@pytest.mark.parametrize("how", ["pandas", "dumped", "arrays"])
def test_preferences_that_went_through_text(tmp_path: Path, layout: str, how: str) -> None:
    """`to_csv` writes what Python shows; a column of arrays has no commas between its messages."""
    row, prompt = PREFERENCES[layout]
    kinds = {
        "pandas": lambda value: value,
        "dumped": lambda value: json.dumps(value) if isinstance(value, list | dict) else value,
        "arrays": lambda value: np.array([*value, None], object)[:-1] if isinstance(value, list) else value,
    }
    frame = pd.DataFrame([{name: kinds[how](value) for name, value in row.items()}])
    path = tmp_path / "a.csv"
    frame.to_csv(path, index=False)
    assert one(read_pairs(str(path))) == (prompt, "Cats!", "On cats")
    if how == "dumped":
        again = {name: kinds[how](value) for name, value in row.items()}
        assert one(read_pairs(lines(tmp_path / "a.jsonl", [again]))) == (prompt, "Cats!", "On cats")


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_several_rejected_titles_make_several_pairs(tmp_path: Path, form: str) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Story {n}", "chosen": f"Good {n}", "rejected": [f"Bad {n}", f"Dull {n}"]}
        for n in range(9)
    ]
    rows.append({"prompt": "Story 9", "chosen": "Good 9", "rejected": ["Bad 9"]})
    path = str(tmp_path / f"a.{form}")
    if form == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        lines(Path(path), rows)
    data = read_pairs(path)
    assert [(pair.chosen, pair.rejected) for pair in data.pairs[:2]] == [
        ("Good 0", "Bad 0"),
        ("Good 0", "Dull 0"),
    ]
    assert (len(data.pairs), data.report.rows_read, data.report.used) == (19, 10, 10)
    assert data.report.lines()[0].startswith("19 pairs")


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"chosen": "A", "rejected": ["B", "A"]}, "are equal"),
        ({"chosen": "A", "rejected": ["B", " "]}, "white space only"),
        ({"chosen": "A", "rejected": ["B", "C"], "preference": 0.75}, "for 2 rejected titles"),
        ({"chosen": ["A"], "rejected": "B"}, "a list of messages"),
    ],
)
def test_defects_among_several_titles(tmp_path: Path, row: dict[str, Any], found: str) -> None:
    path = lines(tmp_path / "a.jsonl", [{"chosen": "X", "rejected": "Y", "preference": 0.9}, row])
    with pytest.raises(TaskHeadsError) as caught:
        read_pairs(path)
    assert [problem.where for problem in caught.value.problems] == [f"{path}:2"]
    assert found in caught.value.problems[0].problem


@pytest.mark.parametrize(
    "title", ["[Video] Ten ways to rest [1]", "[2020]", "{a}", "['a', b]", "Human: a game"]
)
def test_titles_that_look_like_lists_stay_titles(tmp_path: Path, title: str) -> None:
    for name in ("a.jsonl", "a.csv"):
        path = tmp_path / name
        frame = pd.DataFrame([{"chosen": title, "rejected": "B"}])
        frame.to_csv(path, index=False) if name == "a.csv" else lines(path, frame.to_dict("records"))
        assert one(read_pairs(str(path)))[1] == title


def test_counts_that_pandas_wrote_as_floats(tmp_path: Path) -> None:
    rows = [
        {"headline": f"Title {n}", "clicks": 20.0 + n, "impressions": 900.0, "test_id": f"t{n // 2}"}
        for n in range(48)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "arms.csv", index=False)
    data = read_pairs(str(tmp_path / "arms.csv"))
    assert (len(data.groups), data.groups[0].clicks) == (24, (20, 21))
    assert len(read_title_sets(str(tmp_path / "arms.csv")).dev) >= 1


def test_columns_that_are_not_read_are_named_in_one_line(tmp_path: Path) -> None:
    rows = [{"id": n, "chosen": f"A {n}", "rejected": f"B {n}", "url": "x"} for n in range(40)]
    train = lines(tmp_path / "train.jsonl", rows)
    dev = lines(tmp_path / "dev.jsonl", [{"chosen": "C", "rejected": "D", "url": "y"}])
    found = [line for line in read_title_sets(train, dev=dev).lines if "not read" in line]
    assert found == ["columns not read: id (train), url (train, dev)"]
    rows = [{"id": n, "text": f"text {n}", "label": n % 2, "group": 1, "test_id": n} for n in range(40)]
    found = [line for line in read_text_sets(lines(tmp_path / "t.jsonl", rows)).lines if "not read" in line]
    assert found == ["columns not read: id (train), group (train)"]


# Labelled texts

LABELS = ["good", "bad"]
TEXTS: dict[str, tuple[Any, str]] = {
    "alpaca": (
        lambda n: {"instruction": "Good or bad?", "input": f"Food {n}", "output": LABELS[n % 2]},
        "Good or bad?\nFood 0",
    ),
    "alpaca without input": (
        lambda n: {"instruction": f"Food {n}", "input": "", "output": LABELS[n % 2], "history": []},
        "Food 0",
    ),
    "sharegpt": (
        lambda n: {"conversations": [spoken(f"Food {n}", "human"), spoken(LABELS[n % 2])]},
        "Food 0",
    ),
    "sharegpt with labels": (
        lambda n: {"conversations": [spoken(f"Food {n}", "human")], "label": LABELS[n % 2]},
        "Food 0",
    ),
    "openai": (
        lambda n: {"messages": [said("Rate", "system"), said(f"Food {n}", "user"), said(LABELS[n % 2])]},
        "Food 0",
    ),
    "parts of a content": (
        lambda n: {
            "messages": [{"role": "user", "content": [{"type": "text", "text": f"Food {n}"}]}],
            "label": LABELS[n % 2],
        },
        "Food 0",
    ),
}


@pytest.mark.parametrize("layout", TEXTS)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_texts_of_every_layout(tmp_path: Path, layout: str, form: str) -> None:
    make, text = TEXTS[layout]
    rows, path = [make(n) for n in range(30)], tmp_path / f"a.{form}"
    pd.DataFrame(rows).to_csv(path, index=False) if form == "csv" else lines(path, rows)
    sets = read_text_sets(str(path))
    found = {row.text: sets.labels.names[int(row.target)] for row in (*sets.train, *sets.dev)}  # type: ignore[arg-type]
    assert (len(found), found[text]) == (30, "good")
    inputs = [item for _, item in read_inputs(str(path))]
    assert isinstance(inputs[0], TextInput)
    assert inputs[0].text == text


def test_free_answers_are_no_labels(tmp_path: Path) -> None:
    rows = [{"instruction": f"Ask {n}", "input": "", "output": f"A long answer {n}"} for n in range(40)]
    with pytest.raises(TaskHeadsError, match="look like texts"):
        read_text_sets(lines(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("classes", [True, False])
def test_class_files_with_either_column_first(tmp_path: Path, first: bool, classes: bool) -> None:
    names = ("体育", "教育", "财经")
    for split, count in (("train", 90), ("val", 12)):
        rows = sorted((names[n % 3], f"{split} 新闻 {n}") for n in range(count))
        text = "".join("\t".join(row if first else row[::-1]) + "\n" for row in rows)
        (tmp_path / f"cnews.{split}.txt").write_text(text, encoding="utf-8")
    if classes:
        (tmp_path / "class.txt").write_text("\n".join(names), encoding="utf-8")
    sets = read_text_sets(str(tmp_path))
    assert set(sets.labels.names) == {*names}
    assert (len(sets.train), len(sets.dev)) == (90, 12)
    assert all(" 新闻 " in row.text for row in (*sets.train, *sets.dev))
    assert any("begins with its label" in line for line in sets.lines) == first


@pytest.mark.parametrize("several", [True, False])
def test_fasttext(tmp_path: Path, several: bool) -> None:
    more = " __label__late" if several else ""
    rows = [f"__label__{'ab'[n % 2]}{more if n % 3 else ''} text number {n}\n" for n in range(40)]
    (tmp_path / "train.txt").write_text("".join(rows))
    sets = read_text_sets(str(tmp_path / "train.txt"))
    assert sets.labels.names == (("a", "b", "late") if several else ("a", "b"))
    assert {row.text for row in (*sets.train, *sets.dev)} == {f"text number {n}" for n in range(40)}


@pytest.mark.parametrize("classes", [True, False])
def test_ag_news_as_it_is_published(tmp_path: Path, classes: bool) -> None:
    """A CSV without a header: class from 1, title, description; beside it classes.txt."""
    for split, count in (("train", 80), ("test", 8)):
        rows = [f'"{n % 4 + 1}","Title {n}","{split} text {n}, with ""quotes"""\n' for n in range(count)]
        (tmp_path / f"{split}.csv").write_text("".join(rows))
    names = ("World", "Sports", "Business", "Sci/Tech")
    if classes:
        (tmp_path / "classes.txt").write_text("\n".join(names))
    sets = read_text_sets(str(tmp_path), columns=["label,title,text"])
    assert sets.labels.names == (names if classes else ("1", "2", "3", "4"))
    assert (len(sets.train) + len(sets.dev), len(sets.test)) == (80, 8)
    assert [(row.text, row.target) for row in sets.test[:2]] == [
        ('test text 0, with "quotes"', 0),
        ('test text 1, with "quotes"', 1),
    ]
    assert "columns not read: title (train, test)" in sets.lines
    with pytest.raises(TaskHeadsError, match="--columns") as caught:
        read_text_sets(str(tmp_path), columns=["label", "text"])
    assert caught.value.problems[0].code == "file-format"


@pytest.mark.parametrize("name", ["gb18030", "big5", "cp1252"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "txt", "json"])
def test_other_encodings_are_suggested_and_read(tmp_path: Path, name: str, form: str) -> None:
    word = {"gb18030": "体育新闻", "big5": "體育新聞", "cp1252": "très déçu, à côté"}[name]
    rows = [{"text": f"{word} {n}", "label": "ab"[n % 2]} for n in range(30)]
    path = tmp_path / f"train.{form}"
    content = {
        "csv": "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows),
        "txt": "".join(f"{row['text']}\t{row['label']}\n" for row in rows),
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "json": json.dumps(rows, ensure_ascii=False),
    }[form]
    path.write_bytes(content.encode(name))
    with pytest.raises(TaskHeadsError) as caught:
        read_text_sets(str(path))
    if name != "big5":  # whose bytes are those of GB 18030 too
        assert f"--encoding {name}" in caught.value.problems[0].fix
    sets = read_text_sets(str(path), encoding=name)
    assert {row.text for row in (*sets.train, *sets.dev)} == {row["text"] for row in rows}
    inputs = [*read_inputs(str(path), options=options_of(name))]
    assert isinstance(inputs[0][1], TextInput)


def test_workbooks(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    rows = [{"text": f"text {n}", "label": n % 3, "date": pd.Timestamp("2026-01-01")} for n in range(30)]
    pd.DataFrame(rows).to_excel(tmp_path / "train.xlsx", index=False)
    sets = read_text_sets(str(tmp_path / "train.xlsx"))
    assert sets.labels.names == ("0", "1", "2")
    assert sets.train[0].source.startswith(f"{tmp_path}/train.xlsx:row ")
    assert "columns not read: date (train)" in sets.lines
    with pd.ExcelWriter(tmp_path / "two.xlsx") as book:
        for sheet in ("one", "two"):
            pd.DataFrame(rows[:3]).to_excel(book, sheet_name=sheet, index=False)
    with pytest.raises(TaskHeadsError, match="'one', 'two'") as caught:
        read_text_sets(str(tmp_path / "two.xlsx"))
    assert caught.value.problems[0].code == "file-format"


@pytest.mark.parametrize("kind", ["parquet", "arrow", "folder", "splits"])
def test_class_names_of_a_schema(tmp_path: Path, kind: str) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

    names = ["anger", "joy", "love"]
    for column, feature in (("label", ClassLabel(names=names)), ("labels", List(ClassLabel(names=names)))):
        features = Features({"text": Value("string"), column: feature})
        values = [n % 2 if column == "label" else [n % 2] for n in range(40)]
        data = Dataset.from_dict(
            {"text": [f"text {n}" for n in range(40)], column: values}, features=features
        )
        folder = tmp_path / column
        if kind == "parquet":
            data.to_parquet(str(folder.with_suffix(".parquet")))
            folder = folder.with_suffix(".parquet")
        elif kind == "splits":
            DatasetDict({"train": data, "validation": data.select(range(4))}).save_to_disk(str(folder))
        else:
            data.save_to_disk(str(folder))
            folder = next(folder.glob("*.arrow")) if kind == "arrow" else folder
        sets = read_text_sets(str(folder))
        assert sets.labels.names == tuple(names)
        assert len(sets.train) + len(sets.dev) == (44 if kind == "splits" else 40)


def test_a_new_layout_is_one_row_of_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row states everything: the columns, that they are one text, and the column of the answer."""
    row = {"task": "Name the topic.", "body": "A match.", "reply": "sport"}
    source = tmp_path / "new.jsonl"
    source.write_text("".join(json.dumps(row | {"reply": label}) + "\n" for label in ("sport", "trade")))
    assert {problem.code for problem in read_texts(str(source)).file_problems} == {"column-missing"}
    layout = schema.TextColumns(("task", "body"), answer="reply", are_joined=True)
    monkeypatch.setattr("qwen_task_heads.data.text_layout.TEXTS", (*schema.TEXTS, layout))
    texts = read_texts(str(source))
    assert [(text.text, text.target.value) for text in texts] == [
        ("Name the topic.\nA match.", "sport"),
        ("Name the topic.\nA match.", "trade"),
    ]
    assert texts.unread == {}
