"""Files of the published systems, under their own names and in their own layout."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from qwen_task_heads.data.pair_readers import read_pairs
from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.data.text_readers import read_inputs
from qwen_task_heads.data.title_datasets import TitleSets, read_title_sets
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.sources.keys import text_key

CLASSES = ("教育", "财经", "科技", "房产", "时政", "家居", "时尚")


def lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def abstracts(count: int, what: str = "train") -> list[dict[str, Any]]:
    """Rows of N24News as https://github.com/xiaohaochen0308/LLM_seq_cls stores them."""
    said = [{"role": "user", "content": f"{what} abstract {n}"} for n in range(count)]
    return [{"messages": [message], "label": n % 24} for n, message in enumerate(said)]


def long_news(count: int, what: str = "train") -> list[dict[str, Any]]:
    """Rows of the long news as https://github.com/Dylan9897/LLM-TextClassification stores them."""
    return [{"metadata": str(n), "content": f"{what} 新闻 {n}", "label": str(n % 7)} for n in range(count)]


def titles(count: int, what: str = "train") -> list[dict[str, str]]:
    return [
        {"chosen": f"<title>{what} 点击 {n}</title>", "rejected": f"<title>{what} 标题 {n}</title>"}
        for n in range(count)
    ]


def names(rows: Iterable[Any], sets: TextSets) -> Counter[str]:
    return Counter(sets.labels.names[row.target] for row in rows)


def test_system_a_news(tmp_path: Path) -> None:
    write(tmp_path / "Text_Classification/train_trans_abs.json", lines(abstracts(480)))
    write(tmp_path / "Text_Classification/test_trans_abs.json", lines(abstracts(48, "test")))
    write(tmp_path / "Text_Classification/data.py", "raise SystemExit\n")
    sets = read_text_sets(str(tmp_path / "Text_Classification"))
    assert (len(sets.train) + len(sets.dev), len(sets.test), len(sets.labels)) == (480, 48, 24)
    assert [(row.text, row.target) for row in sets.test[:2]] == [
        ("test abstract 0", 0),
        ("test abstract 1", 1),
    ]
    assert sets.test[7].source.endswith("test_trans_abs.json:8")
    for name in ("train", "test"):  # the names that the script is written for
        write(tmp_path / f"{name}.jsonl", lines(abstracts(48, name)))
    sets = read_text_sets(str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"))
    assert (len(sets.train) + len(sets.dev), len(sets.test)) == (48, 48)


@pytest.mark.parametrize("name", ["train_ctr.jsonl", "train.json"])
def test_system_a_ad_titles(tmp_path: Path, name: str) -> None:
    train = write(tmp_path / name, lines(titles(60)))
    test = write(tmp_path / name.replace("train", "test"), lines(titles(9, "test")))
    sets = read_title_sets(train, test=test)
    assert (len(sets.train) + len(sets.dev), len(sets.test)) == (60, 9)
    assert (sets.test[0].chosen, sets.test[0].rejected) == ("test 点击 0", "test 标题 0")
    assert not sets.test_was_cut


def test_system_b_long_news(tmp_path: Path) -> None:
    folder = tmp_path / "longnews"
    write(folder / "class.txt", "\n".join(CLASSES))
    write(folder / "train.json", lines(long_news(70)))
    write(folder / "dev.json", lines(long_news(21, "dev")) + "\n")
    sets = read_text_sets(str(folder))
    assert (len(sets.train), len(sets.dev), sets.test) == (70, 21, [])
    assert sets.labels.names == CLASSES
    assert names(sets.train, sets) == dict.fromkeys(CLASSES, 10)
    assert (sets.train[5].text, sets.labels.names[sets.train[5].target]) == ("train 新闻 5", "家居")
    assert any(line.startswith("labels: 7 by class.txt, ids in quotes") for line in sets.lines)
    # as the source reports it: its dev set is what it is measured on
    sets = read_text_sets(str(folder / "train.json"), test=str(folder / "dev.json"), test_fraction=0.15)
    assert (len(sets.train) + len(sets.dev), len(sets.test)) == (70, 21)
    assert not sets.test_was_cut
    assert "test_fraction is not used: there is a test set" in sets.lines


def test_system_b_parquet_splits(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, count in (("train", 80), ("test", 16)):
        rows = [
            {"text": f"{name} story {n}", "label": n % 8, "label_text": f"topic {n % 8}"}
            for n in range(count)
        ]
        path = tmp_path / "r8/data" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    sets = read_text_sets(str(tmp_path / "r8/data"), dev_fraction=0.15)
    assert (len(sets.train), len(sets.dev), len(sets.test)) == (68, 12, 16)


def test_system_b_one_file_split_85_to_15(tmp_path: Path) -> None:
    write(tmp_path / "class.txt", "\n".join(CLASSES))
    rows = long_news(700)
    sets = read_text_sets(write(tmp_path / "longnews.json", lines(rows)), test_fraction=0.15)
    assert (len(sets.test), len(sets.train) + len(sets.dev)) == (105, 595)
    assert names(sets.test, sets) == dict.fromkeys(CLASSES, 15)
    assert sets.were_cut == ("dev", "test")
    assert "no test set given: 105 texts were cut from train by hash (test_fraction 0.15)" in sets.lines


@pytest.mark.parametrize("listed", [False, True], ids=["text", "list"])
def test_system_c_fudan_news(tmp_path: Path, listed: bool) -> None:
    offers = (["Sports", "Politics"], ["Space", "Energy", "Law"])
    for name, count in (("train", 60), ("test", 6)):
        rows = [
            {
                "text": f"{name} 第四届牡丹杯 {n}",
                "category": offers[n % 2] if listed else ", ".join(offers[n % 2]),
                "output": offers[n % 2][n // 2 % len(offers[n % 2])],
            }
            for n in range(count)
        ]
        write(tmp_path / f"{name}.jsonl", lines(rows))
    sets = read_text_sets(str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"))
    assert (len(sets.train) + len(sets.dev), len(sets.test)) == (60, 6)
    assert sets.labels.names == ("Energy", "Law", "Politics", "Space", "Sports")
    assert [sets.labels.names[row.target] for row in sets.test] == [
        "Sports",
        "Space",
        "Politics",
        "Energy",
        "Sports",
        "Law",
    ]
    assert sets.test[0].candidates == ("Politics", "Sports")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_system_d_sentiment(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"味道 {n}", "label": ("正向", "负向", "中性")[n % 3]} for n in range(60)]
    table = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)
    path = write(tmp_path / f"train.{suffix}", table if suffix == "csv" else lines(rows))
    sets = read_text_sets(path, test_fraction=0.15)
    assert (len(sets.train) + len(sets.dev), len(sets.test)) == (51, 9)
    assert names([*sets.train, *sets.dev, *sets.test], sets) == {"正向": 20, "负向": 20, "中性": 20}


# JSON lines under the name of a document, and documents


@pytest.mark.parametrize(
    "content",
    [
        lines(titles(5)).encode(),
        b"\xef\xbb\xbf" + lines(titles(5)).encode(),
        b"\n" + lines(titles(5)).replace("\n", "\n\n").encode(),
        lines(titles(5)).replace("\n", "\r\n").encode().rstrip(),
        json.dumps(titles(5)).encode(),
        b"\xef\xbb\xbf" + json.dumps(titles(5), indent=2).encode(),
        json.dumps({"data": titles(5)}, indent=2).encode(),
        b"[\n" + b",\n".join(json.dumps(row).encode() for row in titles(5)) + b"\n]\n",
    ],
    ids=["lines", "lines-bom", "lines-blank", "lines-crlf", "array", "array-bom", "wrapped", "row-per-line"],
)
def test_both_kinds_of_json_files(tmp_path: Path, content: bytes) -> None:
    data = read_pairs(write(tmp_path / "train.json", content))
    assert [pair.chosen for pair in data.pairs] == [f"train 点击 {n}" for n in range(5)]


@pytest.mark.parametrize("bad", [0, 1, 7])
@pytest.mark.parametrize("line", ['{"chosen": "cut', "a note", "[1]", b'{"chosen": "\xff"}'], ids=str)
def test_a_bad_line_of_a_json_file_is_named(tmp_path: Path, bad: int, line: str | bytes) -> None:
    rows = lines(titles(8)).encode().splitlines()
    rows[bad] = line.encode() if isinstance(line, str) else line
    path = write(tmp_path / "train.json", b"\n".join(rows) + b"\n")
    with pytest.raises(TaskHeadsError) as caught:
        read_pairs(path)
    assert [problem.where for problem in caught.value.problems] == [f"{path}:{bad + 1}"]
    assert len(read_pairs(path, bad_rows="skip").pairs) == 7


def test_json_lines_of_the_wrong_kind_stay_one_problem(tmp_path: Path) -> None:
    for content in ('{"a": 1}\n', "a\nb\n", "[1,\n2\n", '{"rows": [\n{"a": 1}\n{"a": 2}\n'):
        with pytest.raises(TaskHeadsError) as caught:
            read_pairs(write(tmp_path / "train.json", content))
        assert len(caught.value.problems) == 1


# Ids in quotes, and `content`


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["0", "1", "0", "1"], "1\n0"),  # names that are numbers
        (["0", "1", 0, 1], "a\nb"),  # two ways of writing
        (["0", "1", "2", "1"], "a\nb"),  # an id that the file lacks
    ],
)
def test_ids_in_quotes_have_one_reading_or_none(tmp_path: Path, labels: list[Any], classes: str) -> None:
    if classes:
        write(tmp_path / "class.txt", classes)
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(labels * 5)]
    path = write(tmp_path / "train.json", lines(rows))
    if classes == "1\n0":  # as before: a number in quotes is a name
        assert names(read_text_sets(path).train, read_text_sets(path)).keys() == {"0", "1"}
        return
    with pytest.raises(TaskHeadsError) as caught:
        read_text_sets(path)
    assert all(problem.where.startswith(f"{path}:") for problem in caught.value.problems)


def test_content_is_a_text_where_nothing_else_is(tmp_path: Path) -> None:
    both = [{"text": f"text {n}", "content": "other", "label": n % 2} for n in range(20)]
    sets = read_text_sets(write(tmp_path / "both.jsonl", lines(both)))
    assert {row.text[:4] for row in sets.train} == {"text"}
    titled = [{"title": f"title {n}", "content": f"body {n}", "label": n % 2} for n in range(20)]
    path = write(tmp_path / "titled.jsonl", lines(titled))
    with pytest.raises(TaskHeadsError):
        read_text_sets(path)
    found = [item for _, item in read_inputs(path)]
    assert not any(isinstance(item, Problem) for item in found)
    assert found[0].text == "title 0"  # type: ignore[union-attr]


# The cut


def keys(rows: Iterable[Any]) -> set[str]:
    return {text_key(row.text) for row in rows} | {row.group for row in rows} - {""}


def test_a_cut_test_set_shares_nothing_and_no_order_moves_it(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [
        {"text": f"Text {rng.randrange(1200)}", "label": n % 3, "group_id": f"g{rng.randrange(1200)}"}
        for n in range(400)
    ]
    once = {row["text"]: row for row in rows}  # one label per text
    rows = [dict(once[row["text"]], group_id=row["group_id"]) for row in rows]
    sets = read_text_sets(write(tmp_path / "a.jsonl", lines(rows)), test_fraction=0.2)
    assert len(sets.test) == pytest.approx(80, abs=5)
    parts = (sets.train, sets.dev, sets.test)
    assert sum(map(len, parts)) == 400
    for one in range(3):
        for other in range(one):
            assert keys(parts[one]) & keys(parts[other]) == set()
    rng.shuffle(rows)
    again = read_text_sets(write(tmp_path / "b.jsonl", lines(rows)), test_fraction=0.2)
    assert [keys(part) for part in (again.train, again.dev, again.test)] == [keys(part) for part in parts]
    plain = read_text_sets(str(tmp_path / "b.jsonl"))
    assert plain.test == []
    assert plain.were_cut == ("dev",)


def test_dev_and_test_are_drawn_apart(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": 0 if n % 2 else 1} for n in range(1000)]
    path = write(tmp_path / "a.jsonl", lines(rows))
    dev = keys(read_text_sets(path, dev_fraction=0.2).dev)
    test = keys(read_text_sets(path, test_fraction=0.2).test)
    assert len(dev & test) == pytest.approx(40, abs=20)  # a fifth of a fifth: another hash, not the same rows


def title_keys(rows: Iterable[Any]) -> set[str]:
    return {text_key(title) for row in rows for title in (row.chosen, row.rejected)} | {
        row.group for row in rows
    }


def cut_titles(path: str, **options: Any) -> TitleSets:
    sets = read_title_sets(path, test_fraction=0.2, **options)
    parts = [title_keys(part) for part in (sets.train, sets.dev, sets.test)]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert all(parts)
    return sets


def test_titles_are_cut_by_their_groups(tmp_path: Path) -> None:
    rows = [
        {"chosen": f"A {n // 3} {n}", "rejected": f"B {n // 3}", "group_id": f"g{n // 3}"} for n in range(300)
    ]
    sets = cut_titles(write(tmp_path / "a.jsonl", lines(rows)))
    assert len(sets.train) + len(sets.dev) + len(sets.test) == 300
    arms = [
        {"headline": f"{t} {arm}", "impressions": 900, "clicks": 9 + 9 * arm, "test_id": f"t{t}"}
        for t in range(80)
        for arm in range(3)
    ]
    sets = cut_titles(write(tmp_path / "arms.jsonl", lines(arms)))
    assert {group.group for group in sets.groups} == {pair.group for pair in sets.train}
    dev = write(
        tmp_path / "dev.jsonl", lines({"chosen": p["chosen"], "rejected": p["rejected"]} for p in rows)
    )
    sets = read_title_sets(str(tmp_path / "a.jsonl"), dev=dev, test_fraction=0.2)
    assert sets.were_cut == ("test",)
    assert f"test: {len(sets.test)} rows are also in dev, which selects the checkpoint" in sets.lines


@pytest.mark.parametrize("read", [read_text_sets, read_title_sets])
@pytest.mark.parametrize("fraction", [0, 1, -0.1, 15])
def test_fractions_that_leave_a_side_empty(tmp_path: Path, read: Any, fraction: float) -> None:
    with pytest.raises(TaskHeadsError) as caught:
        read(str(tmp_path / "none.jsonl"), test_fraction=fraction)
    assert caught.value.problems[0].where == "test_fraction"
