"""Files of every kind, folders, splits and data set ids."""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from pathlib import Path

import pytest

from qwen_task_heads.data.pair_readers import read_pairs
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.sources.formats import FileProblem, read_rows
from qwen_task_heads.sources.hub_datasets import _pick_split

ROW = {"chosen": "Ten quiet beaches", "rejected": "Beaches"}
LINE = json.dumps(ROW) + "\n"


def read_error(source: object, **options: str) -> TaskHeadsError:
    with pytest.raises(TaskHeadsError) as caught:
        read_pairs(str(source), **options)
    return caught.value


def refusal(source: object, code: str, **options: str) -> str:
    """Return the message of an error with one problem of a code."""
    error = read_error(source, **options)
    assert [problem.code for problem in error.problems] == [code]
    return str(error)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.jsonl", "\ufeff" + LINE + "\n  \r\n" + LINE.strip() + "\r\n", ["1", "4"]),
        ("a.NDJSON", LINE.strip(), ["1"]),
        ("a.json", json.dumps([ROW, ROW], indent=2), ["row 1", "row 2"]),
        ("a.json", "\ufeff" + json.dumps({"version": 1, "data": [ROW]}), ["row 1"]),
        ("a.csv", 'chosen,rejected\r\n"Ten quiet\nbeaches",Beaches\r\n\r\nx,"y ""z"""\r\n', ["2", "5"]),
        ("a.csv", "\ufeffchosen,rejected\nTen quiet beaches,Beaches", ["2"]),
        ("a.tsv", ",chosen\tchosen\trejected\nx\tTen, quiet\tBeaches\n", ["2"]),
    ],
)
def test_rows_and_sources(tmp_path: Path, name: str, content: str, places: list[str]) -> None:
    path = write(tmp_path / name, content)
    pairs = read_pairs(str(path)).pairs
    assert [pair.source for pair in pairs] == [f"{path}:{place}" for place in places]
    assert " ".join(pairs[0].chosen.replace(",", "").split()).startswith("Ten quiet")


def test_parquet_rows_sources_and_nulls(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    message = [{"role": "assistant", "content": "A title"}]
    pq.write_table(
        pa.Table.from_pylist([{**ROW, "margin": 0.5, "votes_chosen": None}, {**ROW, "margin": None}]), path
    )
    pairs = read_pairs(str(path)).pairs
    assert [(pair.source, pair.margin) for pair in pairs] == [(f"{path}:row 1", 0.5), (f"{path}:row 2", None)]
    pq.write_table(
        pa.Table.from_pylist([{"chosen": message, "rejected": [{**message[0], "content": "B"}]}]), path
    )
    assert read_pairs(str(path)).pairs[0].chosen == "A title"


def test_parquet_strings_that_are_not_utf8_are_named_by_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    bad = pa.array([b"fine", b"caf\xe9", b"fine too"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"chosen": bad, "rejected": ["a", "b", "c"]}), path)
    (problem,) = read_error(path).problems
    assert problem.where == f"{path}:row 2"
    assert "0xe9" in problem.problem


def test_numbers_are_parsed_in_csv_only(tmp_path: Path) -> None:
    header = "chosen,rejected,margin,weight,votes_chosen,votes_rejected,prompt,group_id\n"
    path = write(tmp_path / "a.csv", header + "A,B, 0.5 ,2,8,2,,007\nC,D,,,,,,\n")
    first, second = read_pairs(str(path)).pairs
    assert (first.margin, first.weight, first.preference, first.group) == (0.5, 2.0, 0.75, "007")
    assert (second.margin, second.weight, second.preference, second.group) == (None, 1.0, None, "")
    bad = "A,B,nan,1,8,2,,\nA,B,0,1,8.5,2,,\nA,B,0,1,8,,,\nA,B,1_0,1,8,1,,\nA,B,0,1,٣,1,,\nA,,0,1,3,1,,\n"
    problems = read_error(write(tmp_path / "b.csv", header + bad)).problems
    assert [problem.where.rsplit(":")[-1] for problem in problems] == ["2", "3", "4", "5", "6", "7"]
    for problem, found in zip(
        problems, ("nan", "8.5", "'votes_rejected'", "1_0", "٣", "is empty"), strict=True
    ):
        assert found in problem.problem


@pytest.mark.parametrize(
    ("name", "content", "code", "value"),
    [
        ("a.jsonl", b"", "file-empty", ""),
        ("a.jsonl", b"\n\n", "file-empty", ""),
        ("a.jsonl", gzip.compress(LINE.encode(), mtime=0), "file-format", "gzip"),
        ("a.jsonl", LINE.encode("utf-16"), "file-format", "UTF-16"),
        ("a.jsonl", LINE.encode("utf-16-le"), "file-format", ""),
        ("a.jsonl", bytes(range(256)) * 9, "file-format", ""),
        ("a.jsonl", json.dumps([ROW, ROW]), "file-format", "JSON document"),
        ("a.jsonl", json.dumps([ROW, ROW], indent=1), "file-format", "JSON document"),
        ("a.jsonl", json.dumps(ROW, indent=1), "file-format", "JSON document"),
        ("a.jsonl", "chosen,rejected\n" + "a,b\n" * 30, "file-format", "31 lines"),
        ("a.json", f"[\n{LINE.strip()},\n{LINE.strip()},\n{LINE}", "file-format", "line 5"),
        ("a.json", f'{{"rows": [\n{LINE.strip()}\n{LINE}]}}', "file-format", "line 3"),
        ("a.json", json.dumps(ROW), "file-format", "an object"),
        ("a.json", json.dumps({"chosen": ["a"], "rejected": ["b"]}), "file-format", "an object"),
        ("a.json", b"[3", "file-format", "column 3"),
        ("a.json", b"3", "file-format", "found 3"),
        ("a.json", b'[{"chosen": "caf\xe9"}]', "file-encoding", "0xe9 at position 17"),
        ("a.csv", LINE, "file-format", "JSON"),
        ("a.csv", "chosen;rejected\na;b\n", "file-format", "';'"),
        ("a.csv", "chosen\trejected\na\tb\n", "file-format", "'\\t'"),
        ("a.csv", "chosen,rejected,chosen\na,b,c\n", "column-ambiguous", "'chosen'"),
        ("a.csv", "chosen,rejected\n", "file-empty", ""),
        ("a.csv", 'chosen,"rejected\na,b\n', "file-format", "header"),
        ("a.parquet", b"PAR1 and nothing else", "file-truncated", "row 0"),
        ("a.parquet", LINE, "file-format", "'PAR1'"),
        ("a.xlsx", b"PK\x03\x04", "file-format", ""),
        ("a.xlsx", LINE, "file-format", ""),
        ("a.xls", LINE, "file-format", "'.xls'"),
        ("a.arrow", LINE, "file-format", ""),
        ("rows", LINE, "file-format", "suffix"),
    ],
)
def test_a_file_of_the_wrong_kind_is_one_problem(
    tmp_path: Path, name: str, content: str | bytes, code: str, value: str
) -> None:
    path = write(tmp_path / name, content)
    for bad_rows in ("raise", "skip"):
        (problem,) = read_error(path, bad_rows=bad_rows).problems
        assert isinstance(problem, FileProblem)
        assert problem.code == code
        assert value in problem.problem
        assert problem.where.startswith(str(path))


def test_a_zip_renamed_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sheet.xml", "x" * 999)
    assert "Excel workbook" in str(read_error(path))


def test_defects_of_csv_rows_are_named_by_their_first_line(tmp_path: Path) -> None:
    rows = ['"two\nlines",b', "a,b,c", "a", '"a"b,c', "caf\u00e9,ok"]
    content = ("chosen,rejected\n" + "\n".join(rows) + '\n"never closed,b\nx,y\n').encode()
    path = write(tmp_path / "a.csv", content.replace("\u00e9".encode(), b"\xe9"))
    problems = {problem.where.rsplit(":")[-1]: problem.problem for problem in read_error(path).problems}
    assert list(problems) == ["4", "5", "6", "7", "8"]
    for line, found in zip("45678", ("3 fields", "1 fields", "malformed", "0xe9", "malformed"), strict=True):
        assert found in problems[line]


def test_a_truncated_last_line_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINE + LINE[:20])
    (problem,) = read_error(path).problems
    assert (problem.where, problem.code) == (f"{path}:2", "file-truncated")


def test_a_folder_is_read_sorted_and_names_the_problems_of_all_files(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", LINE)
    write(tmp_path / "a.csv", "chosen,rejected\nx,y\n")
    write(tmp_path / "README.md", "no data")
    write(tmp_path / ".hidden.jsonl", "no data")
    pairs = read_pairs(str(tmp_path)).pairs
    assert [pair.source for pair in pairs] == [f"{tmp_path}/a.csv:2", f"{tmp_path}/b.jsonl:1"]
    write(tmp_path / "c.json", "{")
    write(tmp_path / "d.jsonl", '{"chosen": "x", "rejected": ""}')
    write(tmp_path / "e.jsonl", '{"chosn": "x", "rejected": "y"}')
    error = read_error(tmp_path)
    assert sorted({problem.where.split(":")[0].rsplit("/")[-1] for problem in error.problems}) == [
        "c.json",
        "d.jsonl",
        "e.jsonl",
    ]


def test_split_files_of_a_folder(tmp_path: Path) -> None:
    for name in (
        "train-00000-of-00002.jsonl",
        "train-00001-of-00002.jsonl",
        "pairs_validation.jsonl",
        "test.csv",
    ):
        write(tmp_path / name, LINE if name.endswith("l") else "chosen,rejected\nx,y\n")
    assert "dev, test, train" in refusal(tmp_path, "split-missing")
    assert len(read_pairs(str(tmp_path), split="train").pairs) == 2
    assert len(read_pairs(str(tmp_path), split="dev").pairs) == 1
    assert read_pairs(str(tmp_path), split="validation").pairs == read_pairs(str(tmp_path), split="val").pairs
    assert read_pairs(str(tmp_path), split="test").pairs[0].chosen == "x"
    assert "'holdout'" in refusal(tmp_path, "split-missing", split="holdout")
    one = str(tmp_path / "pairs_validation.jsonl")
    assert len(read_pairs(one, split="dev").pairs) == 1
    assert "'train'" in refusal(one, "split-missing", split="train")
    (tmp_path / "pairs_validation.jsonl").unlink()
    assert "test, train" in refusal(tmp_path, "split-missing")


def test_a_folder_without_split_files_is_training_data(tmp_path: Path) -> None:
    write(tmp_path / "devices.jsonl", LINE)
    assert len(read_pairs(str(tmp_path), split="train").pairs) == 1
    assert "'test'" in refusal(tmp_path, "split-missing", split="test")
    (tmp_path / "sub").mkdir()
    assert refusal(tmp_path / "sub", "file-format")


def test_a_misspelt_path_is_never_looked_up_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", LINE)
    monkeypatch.chdir(tmp_path)
    assert "did you mean train.jsonl?" in refusal("data/trian.jsonl", "path-not-found")
    assert "did you mean train.jsonl?" in refusal("data/train", "path-not-found")
    assert "the folder has data" in refusal("zzzzzz", "path-not-found")
    assert "no folder 'nowhere/at'" in refusal("nowhere/at/all.jsonl", "path-not-found")
    assert "owner/name" in refusal("modelscope:a/b/c", "hub-invalid")
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner" / "name", LINE)  # an existing path takes precedence, and needs a suffix
    assert "suffix" in refusal("owner/name", "file-format")


def test_an_id_that_cannot_be_fetched_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What HF_HUB_OFFLINE=1 sets; the hub libraries read the variable once, when they are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    [problem] = read_error("nobody/no-such-set").problems
    assert (problem.where, problem.code) == ("nobody/no-such-set", "hub-unreachable")
    assert "the Hugging Face Hub" in problem.problem


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("modelscope_hub", "datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)  # Python's own way to make an import fail
    assert "pip install 'qwen-task-heads[modelscope]'" in str(read_error("modelscope:owner/name"))
    assert "modelscope is not installed" in str(read_error("owner/name", hub="modelscope"))
    assert "pip install 'qwen-task-heads[train]'" in refusal("owner/name", "package-missing")
    assert "pyarrow" in refusal(write(tmp_path / "a.parquet", b"PAR1"), "package-missing")


def test_parquet_without_rows_or_with_a_column_twice(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    text = pa.array(["x"])
    pq.write_table(pa.Table.from_arrays([text, text, text], ["chosen", "rejected", "chosen"]), path)
    assert refusal(path, "column-ambiguous")
    pq.write_table(
        pa.table({"chosen": pa.array([], pa.string()), "rejected": pa.array([], pa.string())}), path
    )
    assert refusal(path, "file-empty")


def test_a_json_document_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_task_heads.sources.json_files.MAX_JSON_BYTES", 100)
    path = write(tmp_path / "a.json", json.dumps([ROW] * 9))
    assert "100 bytes" in refusal(path, "file-format")


def test_an_error_of_the_disk_is_a_problem_of_the_file(tmp_path: Path) -> None:
    device = Path("/proc/self/mem")  # a file that exists and whose first byte cannot be read
    if not device.exists():
        pytest.skip("no /proc here to raise a real I/O error")
    (tmp_path / "a.jsonl").symlink_to(device)
    assert refusal(tmp_path / "a.jsonl", "path-access")


def test_splits_and_rows_of_a_hub_data_set() -> None:
    """What `load_dataset` hands over, built in memory."""
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{**ROW, "margin": 0.5}, {**ROW, "margin": None}])
    read = _pick_split("owner/name", DatasetDict(train=rows, validation=rows), "dev")
    assert read.name == "owner/name[validation]"
    assert list(read) == [
        ("owner/name[validation]:row 1", {**ROW, "margin": 0.5}),
        ("owner/name[validation]:row 2", ROW),
    ]
    with pytest.raises(TaskHeadsError, match="'train', 'validation'") as several:
        _pick_split("owner/name", DatasetDict(train=rows, validation=rows), None)
    with pytest.raises(TaskHeadsError, match="'test'") as missing:
        _pick_split("owner/name", DatasetDict(train=rows), "test")
    for caught in (several, missing):
        [problem] = caught.value.problems
        assert (problem.where, problem.code) == ("owner/name", "split-missing")
    assert _pick_split("owner/name", DatasetDict(only=rows), None).name == "owner/name[only]"
    assert _pick_split("owner/name", rows, None).name == "owner/name[train]"
    (problem,) = [row for _, row in _pick_split("owner/name", Dataset.from_list([]), None)]
    assert isinstance(problem, FileProblem)


def test_read_rows_yields_problems_in_their_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINE + "{\n" + LINE)
    rows = list(read_rows(str(path)))
    assert [source.rsplit(":")[-1] for source, _ in rows] == ["1", "2", "3"]
    assert [isinstance(row, Problem) for _, row in rows] == [False, True, False]
