from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_task_heads.errors import Problem
from qwen_task_heads.sources.batches import (
    ABSENT,
    Batch,
    Kept,
    Row,
    RowBatch,
    RowSource,
    TextRow,
    as_rows,
    in_batches,
)
from qwen_task_heads.sources.json_files import FileProblem, read_jsonl
from qwen_task_heads.sources.table_files import read_parquet, read_table

PROBLEM = Problem("a:2", "found 1", "2", "correct it", code="value-range")


def test_rows_keep_their_order_and_their_places() -> None:
    rows: list[Row] = [("a:1", {"x": 1}), ("a:2", PROBLEM), ("a:4", {"y": None}), ("a:5", TextRow(x="1"))]
    items = list(in_batches(rows))
    assert [type(item) for item in items] == [RowBatch, tuple, RowBatch, RowBatch]
    assert list(as_rows(items)) == rows
    assert isinstance(next(as_rows(items[3:]))[1], TextRow)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_batch_has_a_maximum_of_rows_of_one_source(size: int) -> None:
    rows: list[Row] = [(f"a:row {n}", {"x": n}) for n in range(10)] + [
        (f"b:row {n}", {"x": n}) for n in range(2)
    ]
    batches = [item for item in in_batches(iter(rows), size) if isinstance(item, RowBatch)]
    assert max(map(len, batches)) == min(size, 10)
    assert list(as_rows(batches)) == rows
    assert [batch.source for batch in batches][-1] == "b:row "


def test_columns_and_rows_of_a_batch_are_equal() -> None:
    by_row = RowBatch([{"x": 1, "y": None}, {"z": "c"}], [3, 9], "a:")
    columns = {"x": [1, ABSENT], "y": [None, ABSENT], "z": [ABSENT, "c"]}
    by_column = Batch(columns, [3, 9], "a:")
    for batch in (by_row, by_column):
        assert set(batch.names) == {"x", "y", "z"}
        assert [batch.row(place) for place in (0, 1)] == [{"x": 1, "y": None}, {"z": "c"}]
        assert [batch.column(name) for name in ("x", "unknown")] == [[1, ABSENT], [ABSENT, ABSENT]]
        assert (batch.where(1), len(batch.first(1)), batch.first(1).row(0)) == ("a:9", 1, {"x": 1, "y": None})


def test_an_iterator_can_be_read_again_and_lazily() -> None:
    asked = []

    def rows() -> Iterator[Row]:
        for number in range(1, 5):
            asked.append(number)
            yield f"a:{number}", {"x": number}

    kept = Kept(in_batches(rows(), 2))
    source = RowSource("a", lambda: iter(kept))
    assert next(iter(source)) == ("a:1", {"x": 1})
    assert asked == [1, 2, 3]  # the batch of two, and the row that ends it
    assert [row for _, row in source] == [row for _, row in source] == [{"x": n} for n in range(1, 5)]
    assert asked == [1, 2, 3, 4]


def lines_of(rng: random.Random) -> Iterator[str]:
    """Return lines for the fast path, and lines that need the full parser."""
    odd = [
        '{"text": "a", "text": "b"}',
        '{"text": "\\ud800"}',
        '{"text": "\\ud83d\\ude00"}',
        '{"a": {"b": 1, "b": 2}}',
        '{"a": [1, "x"]}',
        "[1]",
        "{",
        "3",
        '{"a": 1} x',
        '{"a": 1e400}',
        "  ",
        '{"a": NaN, "b": -Infinity}',
        ' {"a": 1}',
        '{"a": 1} ',
        "{}",
        '{"a": 1}\x0b',
        '{"a": "\\u4f60"}',
        '{"a": ' + "9" * 5000 + "}",
        "\ufeff{}",
    ]
    for number in range(400):
        row = {"text": rng.choice(["a", "中", "\t"]), "label": rng.choice([1, 1.0, True, None, "1"])}
        row |= {f"more {rng.randrange(9)}": number} if rng.random() < 0.3 else {}
        yield rng.choice(odd) if rng.random() < 0.2 else json.dumps(row, ensure_ascii=rng.random() < 0.5)


def test_lines_are_read_as_json_reads_them(tmp_path: Path) -> None:
    """The fast path equals `json.loads`, and leaves lines with a defect to the full parser."""
    path = tmp_path / "a.jsonl"
    lines = list(lines_of(random.Random(0)))
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    read = dict(as_rows(read_jsonl(str(path))))
    assert len(read) == sum(bool(line.strip()) for line in lines)
    refused = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = read[f"{path}:{number}"]
        if isinstance(row, Problem):
            refused += 1
            continue
        assert repr(row) == repr(json.loads(line)), line
    bad = {'{"text": "a", "text": "b"}', '{"text": "\\ud800"}', '{"a": {"b": 1, "b": 2}}', "[1]", "{", "3"}
    bad |= {'{"a": 1} x', '{"a": 1}\x0b', '{"a": ' + "9" * 5000 + "}", "\ufeff{}"}
    assert refused == sum(line in bad for line in lines)


def test_a_table_of_many_batches_names_the_line_of_every_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f'"a\n{n}",{n}\n' if n % 100 == 0 else f"a{n},{n}\n" for n in range(9000)]
    rows[5000] = "a,b,c\n"
    path.write_text("text,label\n" + "".join(rows))
    read = list(as_rows(read_table(str(path))))
    assert len(read) == 9000
    text = path.read_text().splitlines()
    for where, row in read:
        line = text[int(where.rsplit(":", 1)[1]) - 1]
        if isinstance(row, Problem):
            assert line == "a,b,c"
        else:
            assert line.startswith((f"a{row['label']},", '"a'))


def test_a_parquet_batch_with_a_bad_string_is_read_row_by_row(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts: list[Any] = [b"t%d" % n for n in range(6000)]
    texts[4500] = b"\xff"
    column = pa.array(texts, pa.binary()).cast(pa.binary()).view(pa.string())
    pq.write_table(
        pa.table({"text": column, "none": pa.nulls(6000), "x": [None, 1] * 3000}), tmp_path / "a.parquet"
    )
    read = list(as_rows(read_parquet(str(tmp_path / "a.parquet"))))
    assert [int(where.rsplit(" ", 1)[1]) for where, _ in read] == [*range(1, 6001)]
    problems = [(where, row) for where, row in read if isinstance(row, Problem)]
    assert [where.rsplit(":", 1)[1] for where, _ in problems] == ["row 4501"]
    assert read[0][1] == {"text": "t0"}
    assert read[1][1] == {"text": "t1", "x": 1}


def test_a_damaged_file_is_reported_after_its_good_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"{n:05d}" * 9 for n in range(40_000)]}),
        path,
        row_group_size=10_000,
        compression="none",
    )
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 60_000] = b"\xff" * 60_000
    path.write_bytes(content)
    *_, (where, last) = as_rows(read_parquet(str(path)))
    assert isinstance(last, FileProblem | Problem)
    assert where.startswith(str(path))
