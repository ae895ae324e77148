"""Follow the fixes of errors about files and their options, and check that the file is then read."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from fixes import refused
from openpyxl import Workbook
from reading import LABELED, PAIRS, Case, Files, follow, inputs, lines, of_row, of_table, texts, titles, write

from qwen_task_heads.data.pair_readers import pairs_of_rows, read_pairs
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.sources import json_files
from qwen_task_heads.sources.formats import read_rows
from qwen_task_heads.sources.json_files import MAX_LINE_BYTES

GOOD = lines(*LABELED)
TABLE = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in LABELED)
TABS = TABLE.replace(",", "\t")
CLASSES = "".join(f"{row['text']}\t{row['label']}\n" for row in LABELED)
NEWS = GOOD.replace("Text", "体育新闻")
DOCUMENT = json.dumps([json.loads(row) for row in NEWS.splitlines()], ensure_ascii=False, indent=0)
DEEP = "[" * 100_000 + "]" * 100_000
DIGITS = '{"text": "x", "label": 1%s}\n' % ("0" * 5000)
SEVERAL = "".join(f"__label__{'ab'[number % 2]} Text {number}\n" for number in range(2000))


def parquet(**columns: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table([*columns.values()], names=[name.rstrip("_") for name in columns]), sink)
    return sink.getvalue()


def workbook(*sheets: list[list[str]]) -> bytes:
    book = Workbook()
    for place, rows in enumerate(sheets):
        sheet = book.active if place == 0 else book.create_sheet()
        for row in rows:
            sheet.append(row)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def moved(name: str, to: str, content: str | bytes = GOOD) -> Files:
    """Return a change that replaces a file."""
    return {name: None, to: content}


TEXT = [row["text"] for row in LABELED]
LABEL = [row["label"] for row in LABELED]
SHEET = [["text", "label"], *([row["text"], row["label"]] for row in LABELED)]
PARQUET = parquet(text=TEXT, label=LABEL)
EMPTY = {"add rows": {"train.jsonl": GOOD}}
KIND = "give the file the suffix of its kind"
CLASS, PARSERS, TABLES = "sources/class_files.py::", "sources/json_files.py::", "sources/table_files.py::"
FORMATS, SHEETS = "sources/formats.py::", "sources/excel.py::read_excel::"
CASES = [
    Case(f"{PARSERS}no_rows::where", {"train.txt": "\n\n"}, "train.txt",
         {"add rows": {"train.txt": CLASSES}}),
    Case(f"{CLASS}_row::where", {"train.txt": f"{SEVERAL}__label__a __label__b Both\n"}, "train.txt:2001",
         {"write JSONL with a column 'labels'": moved("train.txt", "train.jsonl", lines(
             *({"text": f"Text {number}", "labels": ["ab"[number % 2]]} for number in range(9)),
             {"text": "Both", "labels": ["a", "b"]}))}),
    Case(f"{CLASS}_row::where#2", {"train.txt": f"{CLASSES}One\ttwo\tb\n"}, "train.txt:5",
         {"remove the tabs of the text": {"train.txt": f"{CLASSES}One two\tb\n"},
          "write JSONL": moved("train.txt", "train.jsonl")}),
    Case("sources/file_options.py::FileOptions.__post_init__::--encoding", {"train.csv": TABLE}, "--encoding",
         {"name such an encoding": "--encoding gb18030", "save the file as UTF-8": ""},
         words="--encoding utf-16"),
    of_table("sources/file_options.py::FileOptions.__post_init__::--columns", TABLE[11:], "--columns",
             {"name each column once": "--columns text,label"}, words="--columns text text"),
    *(Case("sources/file_options.py::bad_byte::where", {name: text.encode("gbk")}, f"{name}:{row}",
           {"save the file as UTF-8": {name: text}, "read it with --encoding gb18030": "--encoding gb18030"},
           read=read)
      for name, text, row, read in (
          ("train.jsonl", NEWS, 1, texts), ("train.txt", f"{CLASSES}体育\ta", 5, texts),
          ("new.jsonl", NEWS, 1, inputs))),
    Case("sources/file_options.py::bad_byte::where",
         {"train.jsonl": lines(*PAIRS, {"chosen": "Très déçu", "rejected": "Zut"}).encode("cp1252")},
         "train.jsonl:5",
         {"save the file as UTF-8": {"train.jsonl": lines(*PAIRS)},
          "read it with --encoding cp1252": "--encoding cp1252"}, read=titles),
    Case(f"{FORMATS}_read_path::path", {"train.dat": GOOD}, "train.dat",
         {"unpack, convert": moved("train.dat", "train.csv", TABLE),
          "rename the file": moved("train.dat", "train.jsonl")}),
    Case(f"{PARSERS}no_rows::where", {"train.jsonl": ""}, "train.jsonl", EMPTY),
    Case(f"{PARSERS}wrong_kind::path", {"train.parquet": GOOD}, "train.parquet",
         {KIND: moved("train.parquet", "train.jsonl"), "convert it": {"train.parquet": PARQUET}}),
    Case(f"{PARSERS}wrong_kind::path#2", {"train.jsonl": gzip.compress(GOOD.encode())}, "train.jsonl",
         {"unpack": {"train.jsonl": GOOD}, "convert it, and keep the suffix of its kind":
          moved("train.jsonl", "train.csv", TABLE)}),
    Case(f"{PARSERS}wrong_kind::path#2", {"train.csv": PARQUET}, "train.csv",
         {"unpack": moved("train.csv", "train.parquet", PARQUET),
          "convert it, and keep the suffix of its kind": {"train.csv": TABLE}}),
    Case(f"{PARSERS}wrong_kind::path#3", {"train.jsonl": json.dumps(LABELED)}, "train.jsonl",
         {"rename it to .json": moved("train.jsonl", "train.json", json.dumps(LABELED)),
          "write one object per line": {"train.jsonl": GOOD}}),
    Case(f"{PARSERS}wrong_kind::path#4", {"train.csv": json.dumps(LABELED)}, "train.csv",
         {"rename it to .json": moved("train.csv", "train.json", json.dumps(LABELED))}),
    Case(f"{PARSERS}wrong_kind::path#4", {"train.csv": GOOD}, "train.csv",
         {"rename it to .json": moved("train.csv", "train.json")}),
    Case(f"{PARSERS}line_too_long::where",
         {"train.jsonl": GOOD + lines({"text": "x" * MAX_LINE_BYTES, "label": "a"})}, "train.jsonl:5",
         {"cut the text": {"train.jsonl": GOOD + lines({"text": "xx", "label": "a"})},
          "check for missing line ends": {"train.jsonl": GOOD}}),
    Case(f"{PARSERS}no_rows::where", {"train.jsonl": "\n \n"}, "train.jsonl", EMPTY),
    Case(f"{PARSERS}read_jsonl::where", {"train.jsonl": TABLE * 5}, "train.jsonl:1",
         {KIND: moved("train.jsonl", "train.csv", TABLE), "convert it": {"train.jsonl": GOOD}}),
    Case(f"{PARSERS}_parse_json::where", {"train.jsonl": GOOD + '{"text": "cut'}, "train.jsonl:5",
         {"correct the syntax": {"train.jsonl": GOOD + '{"text": "cut", "label": "a"}'}}),
    Case(f"{PARSERS}_parse_json::where", {"train.jsonl": GOOD + "{'text': 'x', 'label': 'a'}\n"},
         "train.jsonl:5", {"correct the syntax": {"train.jsonl": GOOD + '{"text": "x", "label": "a"}\n'}}),
    Case(f"{PARSERS}_parse_json::where#2", {"train.jsonl": GOOD + DEEP + "\n"}, "train.jsonl:5",
         {"write plain rows of columns": {"train.jsonl": GOOD}}),
    Case(f"{PARSERS}_parse_json::where#3", {"train.jsonl": GOOD + DIGITS}, "train.jsonl:5",
         {"correct the number": {"train.jsonl": GOOD}}),
    of_row(f"{PARSERS}check_object::where", ["x", "a"],
           {"write each row as an object": {"text": "x", "label": "a"}}),
    Case(f"{PARSERS}check_object::where#2",
         {"train.jsonl": GOOD + '{"text": "x", "label": "a", "label": "b"}\n'}, "train.jsonl:5",
         {"keep one of the two": {"train.jsonl": GOOD + '{"text": "x", "label": "b"}\n'}}),
    Case(f"{PARSERS}check_object::where#3",
         {"train.jsonl": GOOD + '{"text": "\\ud83d", "label": "a"}\n'}, "train.jsonl:5",
         {"write the text again from its origin":
          {"train.jsonl": GOOD + lines({"text": "😀", "label": "a"})}}),
    Case("sources/file_options.py::bad_byte::where", {"train.json": DOCUMENT.encode("gbk")}, "train.json:3",
         {"save the file as UTF-8": {"train.json": DOCUMENT},
          "read it with --encoding gb18030": "--encoding gb18030"}),
    Case(f"{PARSERS}_read_document::path#2", {"train.json": json.dumps(LABELED)[:-1]}, "train.json",
         {"correct the syntax": {"train.json": json.dumps(LABELED)}}),
    Case(f"{PARSERS}_read_document::path#3", {"train.json": json.dumps(LABELED[0])}, "train.json",
         {"write the rows as one array": {"train.json": json.dumps(LABELED)},
          "as JSONL": moved("train.json", "train.jsonl")}),
    Case(f"{SHEETS}path#2", {"train.xlsx": b"PK\x03\x04rest"}, "train.xlsx",
         {"save it again": {"train.xlsx": workbook(SHEET)},
          "as CSV": moved("train.xlsx", "train.csv", TABLE)}),
    Case(f"{SHEETS}path#3", {"train.xlsx": workbook(SHEET, SHEET)}, "train.xlsx",
         {"save the sheet that is meant as a file of its own": {"train.xlsx": workbook(SHEET)}}),
    Case(f"{SHEETS}path#3", {"train.xlsx": workbook([])}, "train.xlsx",
         {"add rows": {"train.xlsx": workbook(SHEET)}}),
    of_table(f"{TABLES}_Table._fields::where", TABLE + 'an "odd" one,a\n"5" screen",a\n', "train.csv:7",
             {'close the quotes, and write " inside a quoted field as ""': TABLE + '"5"" screen",a\n'}),
    of_table(f"{TABLES}_Table._fields::where", '"te"xt,label\nx,a\n', "train.csv:1",
             {'close the quotes, and write " inside a quoted field as ""': TABLE}),
    of_table(f"{PARSERS}no_rows::where", "text,label\n", "train.csv", {"add rows": TABLE}),
    of_table(f"{TABLES}bad_header::f'{{path}}:1'", "text,label,label\nx,a,a\n", "train.csv:1",
             {"rename one of the two": TABLE.replace(",", ",a,").replace(",a,", ",other,", 1)}),
    *(Case(f"{TABLES}bad_header::f'{{path}}:1'#2", {f"train.{old}": TABLE.replace(",", mark)},
           f"train.{old}:1", {way: moved(f"train.{old}", f"train.{new}", text)})
      for old, mark, way, new, text in (
          ("csv", "\t", "rename it to .tsv", "tsv", TABS), ("tsv", ",", "rename it to .csv", "csv", TABLE),
          ("csv", ";", "write it again with ',' between the columns", "csv", TABLE))),
    Case(f"{TABLES}bad_header::f'{{path}}:1'#2", {"train.xlsx": workbook([["text,label"], ["x,a"]])},
         "train.xlsx:1", {"split the cells into columns": {"train.xlsx": workbook(SHEET)}}),
    Case("sources/file_options.py::bad_byte::where", {"train.csv": f"{TABLE}体育新闻,a\n".encode("gbk")},
         "train.csv:6",
         {"save the file as UTF-8": {"train.csv": TABLE},
          "read it with --encoding gb18030": "--encoding gb18030"}),
    of_table(f"{TABLES}_Table._miscounted::where", TABLE[11:], "train.csv:1",
             {"name as many columns in --columns": "--columns text,label"}, words="--columns text"),
    of_table(f"{TABLES}_Table._miscounted::where", TABLE + "one, two,a\n", "train.csv:6",
             {"quote fields that contain the separator": TABLE + '"one, two",a\n',
              "write a truncated last line again": TABLE + "one two,a\n"}),
    Case(f"{TABLES}read_parquet::path#2", {"train.parquet": parquet(text=TEXT, label=LABEL, label_=LABEL)},
         "train.parquet", {"rename one of the two": {"train.parquet": PARQUET}}),
    Case(f"{PARSERS}no_rows::where", {"train.parquet": parquet(text=[], label=[])}, "train.parquet",
         {"add rows": {"train.parquet": PARQUET}}),
    Case(f"{TABLES}read_parquet::path#3", {"train.parquet": PARQUET[:-20]}, "train.parquet",
         {"copy": {"train.parquet": PARQUET}, "write it again": {"train.parquet": PARQUET}}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fix_of_a_message_is_read(case: Case, tmp_path: Path) -> None:
    follow(case, tmp_path)


def test_a_hub(tmp_path: Path) -> None:
    source = write(tmp_path / "rows", {"train.jsonl": GOOD})
    with refused("hubs/__init__.py::hub_named::--hub") as found:
        read_text_sets(source, hub="hf", dev_fraction=0.5)
    first = found[0].expected.split(", ")[0]
    assert found[0].fix == "choose one of them"
    assert read_text_sets(source, hub=first, dev_fraction=0.5)


@pytest.mark.slow
def test_an_invalid_id() -> None:
    """The id of the form that it asks for is looked up, on a hub that is out of reach."""
    with refused("sources/formats.py::open_source::name") as found:
        list(read_rows("modelscope:news"))
    assert "owner/name" in found[0].expected
    assert found[0].fix == "check the id"
    with pytest.raises(TaskHeadsError) as caught:
        list(read_rows("modelscope:owner/news"))
    [problem] = caught.value.problems
    assert problem.where == "owner/news"
    assert problem.fix != found[0].fix


def test_a_data_set_that_cannot_be_fetched(tmp_path: Path) -> None:
    with refused("sources/hub_datasets.py::_unfetched::where") as found:
        texts("owner/news")
    assert found[0].where == "owner/news"
    assert found[0].fix.endswith("or download the files and give their path")
    assert texts(write(tmp_path / "news", {"train.jsonl": GOOD}))


def test_a_broken_link(tmp_path: Path) -> None:
    """A link to a file that is gone."""
    folder = tmp_path / "rows"
    write(folder, {"train.jsonl": GOOD})
    (folder / "train2.jsonl").symlink_to(tmp_path / "gone")
    with refused("sources/formats.py::_read_path::path#2") as found:
        texts(str(folder))
    assert found[0].where == str(folder / "train2.jsonl")
    assert found[0].fix == "remove it or replace it"
    (folder / "train2.jsonl").unlink()
    assert texts(str(folder))
    (folder / "train2.jsonl").write_text(GOOD)
    assert texts(str(folder))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.symlink_to("/proc/self/mem")  # a file that exists and whose first byte cannot be read
    with refused("sources/formats.py::_read_path::path#3") as found:
        texts(str(path))
    assert found[0].where == str(path)
    assert found[0].fix == "check the path and its rights"
    path.unlink()
    path.write_text(GOOD)
    assert texts(str(path))


def test_a_folder_without_data(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder, {"notes.md": "x", "in/train.jsonl": GOOD})
    with refused("sources/formats.py::_folder_files::folder") as found:
        texts(str(folder))
    assert found[0].where == str(folder)
    assert found[0].fix == "name the folder of the files itself, or convert them"
    assert texts(str(folder / "in"))
    (folder / "notes.csv").write_text(TABLE)
    assert texts(str(folder))


def test_a_folder_of_several_splits(tmp_path: Path) -> None:
    rows = lines(*PAIRS)
    folder = tmp_path / "data"
    write(folder, {"train.jsonl": rows, "test.jsonl": rows})
    with refused("sources/formats.py::_folder_files::folder#2") as found:
        read_pairs(str(folder))
    assert found[0].fix == "name one by split=, or name its file"
    assert read_pairs(str(folder), split="test").pairs
    with refused("sources/formats.py::_folder_files::folder#2"):  # where a recipe is told of a dev set
        texts(write(tmp_path / "a", {"train.jsonl": GOOD}), f"--dev_dataset {folder}")
    (folder / "train.jsonl").write_text(GOOD)
    assert texts(str(tmp_path / "a" / "train.jsonl"), f"--dev_dataset {folder / 'train.jsonl'}")


def test_a_folder_without_the_split(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder, {"dev.jsonl": GOOD})
    with refused("sources/formats.py::_folder_files::folder#3") as found:
        texts(str(folder))
    assert found[0].where == str(folder)
    assert found[0].fix == "add train.jsonl, or name a file of this folder"
    assert texts(str(folder / "dev.jsonl"))
    (folder / "train.jsonl").write_text(GOOD)
    assert texts(str(folder))


def test_the_split_of_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    source = write(folder, {"train.jsonl": lines(*PAIRS), "test.jsonl": lines(*PAIRS)})
    with refused("sources/formats.py::_check_file_split::path") as found:
        read_pairs(source, split="test")
    assert found[0].fix == "name the file of that split, or a folder"
    assert read_pairs(str(folder / "test.jsonl"), split="test").pairs
    assert read_pairs(str(folder), split="test").pairs


def test_a_path_that_is_misspelt(tmp_path: Path) -> None:
    site = "sources/formats.py::_not_found::source if len(source) < 300 else source[:299] + '…'"
    folder = tmp_path / "data"
    write(folder, {"train.jsonl": GOOD})
    with refused(site) as found:
        texts(str(folder / "trian.jsonl"))
    assert found[0].fix == "did you mean train.jsonl?"
    with refused(site) as found:
        texts(str(folder / "reviews.csv"))
    assert found[0].fix == "check the path; the folder has train.jsonl"
    assert texts(str(folder / "train.jsonl"))


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    data = Dataset.from_list(LABELED)
    data.save_to_disk(str(tmp_path / "saved"))
    for source in (tmp_path / "saved", tmp_path / "saved" / "data-00000-of-00001.arrow"):
        arrow = tmp_path / "saved" / "data-00000-of-00001.arrow"
        arrow.write_bytes(arrow.read_bytes()[:100])
        with refused("sources/hub_datasets.py::_load_saved::path") as found:
            texts(str(source))
        assert found[0].where == str(source)
        assert found[0].fix == "save it again, or as Parquet by to_parquet"
        shutil.rmtree(tmp_path / "saved")
        data.save_to_disk(str(tmp_path / "saved"))
        assert texts(str(source))
    data.to_parquet(str(tmp_path / "train.parquet"))
    assert texts(str(tmp_path / "train.parquet"))


def test_a_saved_split_of_another_name(tmp_path: Path) -> None:
    data = Dataset.from_list(PAIRS)
    DatasetDict(first=data, second=data).save_to_disk(str(tmp_path / "saved"))
    with refused("sources/hub_datasets.py::_pick_split::name") as found:
        titles(str(tmp_path / "saved"))
    assert found[0].fix == "name one by split=, or save it as a file of its own (to_parquet) and name that"
    assert "'first', 'second'" in found[0].expected
    assert read_pairs(str(tmp_path / "saved"), split="first").pairs
    data.to_parquet(str(tmp_path / "first.parquet"))
    assert titles(str(tmp_path / "first.parquet"))


def test_rows_that_break_off() -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield PAIRS[0]
        raise OSError("connection reset")

    with refused("sources/hub_datasets.py::_broken::name") as found:
        pairs_of_rows(broken(), name="rows")
    assert found[0].where == "rows"
    assert found[0].fix == "run again, or download it first"
    assert pairs_of_rows(iter(PAIRS), name="rows").pairs


def test_a_split_without_rows() -> None:
    with refused("sources/hub_datasets.py::_hub_rows::name") as found:
        pairs_of_rows([], name="rows")
    assert found[0].fix == "add rows, or name another split"
    assert pairs_of_rows(PAIRS, name="rows").pairs


def test_a_document_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a", {"train.json": json.dumps(LABELED)})
    monkeypatch.setattr(json_files, "MAX_JSON_BYTES", 100)
    with refused("sources/json_files.py::_read_document::path") as found:
        texts(source)
    assert found[0].where == source
    assert found[0].fix == "write JSONL, which is read line by line"
    assert texts(write(tmp_path / "b", {"train.jsonl": GOOD}))
